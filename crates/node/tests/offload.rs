//! Goal: a request is answered by whoever should, as that one alone would have, and what decides is what the model was sure of.
//! Method: the shipped model beside one drawn from a seed, over real sockets; policies that keep everything, nothing, and the surer half.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/hosting.rs"]
mod hosting;

use common::ground;
use cutlayer_data::train_tokenizer;
use cutlayer_generation::offload::{FEATURES, Features, Policy};
use cutlayer_model::{DeviceChoice, ExportDtype, Pretrainer, write_model};
use cutlayer_node::{
    Answerer, Drafting, Embedder, GenerateRequest, Generator, GeneratorConfig, MemoryConfig, NodeError, Offloader, Prompt, Token, Usage,
    no_events,
};
use cutlayer_wire::SamplingSpec;
use hosting::{Keys, alone, host_config, split, start};
use std::path::{Path, PathBuf};

const PROMPT: &str = "What time does the library open";

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/quickstart")
}

async fn open(config: GeneratorConfig, keys: &Keys) -> Generator {
    Generator::open(config, keys.device.clone(), no_events()).await.unwrap()
}

fn request(prompt: &str) -> GenerateRequest {
    GenerateRequest { tokens_max: Some(12), ignore_end: true, ..GenerateRequest::greedy(prompt) }
}

/// As sure as the answer's mean log-probability, and no surer.
fn policy(threshold: f64) -> Policy {
    let mut weights = [0.0; FEATURES];
    weights[Features::NAMES.iter().position(|name| *name == "logprob_mean").unwrap()] = 1.0;
    Policy { weights, bias: 0.0, means: [0.0; FEATURES], deviations: [1.0; FEATURES], threshold }
}

async fn answer(offloader: &Offloader, request: GenerateRequest) -> (String, Vec<Token>, Usage) {
    let (text, tokens, _, usage) = offloader.generate(request).whole().await.unwrap();
    (text, tokens, usage)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_says_who_answers() {
    let (ground, keys) = (ground(), Keys::new());
    let hosted = start(host_config(&shipped()), &keys).await;
    let local = open(alone(ground.model.path()), &keys).await;
    let large = open(split(&shipped(), hosted.addr, hosted.id, 1, None), &keys).await;
    let own = local.generate(request(PROMPT)).whole().await.unwrap().0;
    let theirs = open(alone(&shipped()), &keys).await.generate(request(PROMPT)).whole().await.unwrap().0;
    assert_ne!(own, theirs);
    let auto = |threshold| Offloader::auto(local.clone(), large.clone(), policy(threshold)).unwrap();

    let (text, tokens, usage) = answer(&auto(0.0), request(PROMPT)).await;
    let kept = usage.answered.unwrap();
    assert_eq!((text, tokens.len(), kept.by), (own.clone(), 12, Answerer::Device));
    let (text, _, usage) = answer(&auto(2.0), request(PROMPT)).await;
    let asked = usage.answered.unwrap();
    assert_eq!((text, asked.by, asked.confidence), (theirs, Answerer::Host, kept.confidence));
    assert!(asked.bytes > 0 && usage.first_token_ms <= usage.total_ms, "{usage:?}");

    // On either side of its confidence.
    let sure = kept.confidence.unwrap();
    for (threshold, by) in [(sure - 1e-6, Answerer::Device), (sure + 1e-6, Answerer::Host)] {
        assert_eq!(answer(&auto(threshold), request(PROMPT)).await.2.answered.unwrap().by, by);
    }
    // One model alone has no choice.
    let one = Offloader::one(large.clone());
    let usage = answer(&one, request(PROMPT)).await.2;
    assert_eq!((usage.answered.unwrap().by, usage.answered.unwrap().confidence), (Answerer::Host, None));
    // Too long for the small model's 64 positions: the large one is asked.
    let long = request(&PROMPT.repeat(12));
    let answered = answer(&auto(0.0), long).await.2.answered.unwrap();
    assert_eq!((answered.by, answered.confidence), (Answerer::Host, None));
    // Ids mean something else to the other model.
    let ids = GenerateRequest { prompt: Prompt::Tokens(vec![5, 6]), ..request("") };
    let error = auto(0.0).generate(ids).whole().await.unwrap_err().to_string();
    assert!(error.contains("give the prompt as text"), "{error}");
    assert!(matches!(Offloader::auto(large.clone(), local.clone(), policy(0.0)), Err(NodeError::Task(_))));
    hosted.end().await;
}

/// Goal: the features are of the answer that is given, and watching changes nothing.
/// Method: their log-probabilities beside those that the same request reports, with penalties that count the prompt, and guesses on.
#[tokio::test(flavor = "multi_thread")]
async fn features_are_of_the_answer() {
    let keys = Keys::new();
    let drafting = Drafting::Ngram { depth_max: 4 };
    let local = open(GeneratorConfig { drafting, ..alone(&shipped()) }, &keys).await;
    let sampling = SamplingSpec { temperature: 0.8, repetition_penalty: 1.2, seed: 4, logprobs: Some(0), ..SamplingSpec::GREEDY };
    // Longer than what is watched of a prompt, and asked twice: the second finds its prefix in the cache.
    let request = GenerateRequest { sampling, ..request(&"What time does the library open on Monday? ".repeat(5)) };
    let (expected, tokens, ..) = local.generate(request.clone()).whole().await.unwrap();
    for _ in 0..2 {
        let (text, _, usage, features) = local.answer_with_features(&request).await.unwrap();
        assert_eq!(text, expected);
        let logprobs: Vec<f64> = tokens.iter().map(|token| f64::from(token.logprob.unwrap())).collect();
        let mean = logprobs.iter().sum::<f64>() / logprobs.len() as f64;
        let least = logprobs.iter().copied().fold(f64::INFINITY, f64::min);
        assert!((features.logprob_mean - mean).abs() < 1e-4, "{features:?}, not {mean}");
        assert!((features.logprob_min - least).abs() < 1e-4, "{features:?}, not {least}");
        assert_eq!((features.answer_tokens, features.prompt_tokens), (12.0, f64::from(usage.prompt_tokens)));
        assert!(features.prompt_logprob_mean < 0.0 && features.entropy_max >= features.entropy_mean, "{features:?}");
    }
}

/// Goal: an option's score is its likelihood, wherever the blocks are. Method: the model's own answer, whose log-probabilities it reports.
#[tokio::test(flavor = "multi_thread")]
async fn options_are_scored_by_their_likelihood() {
    let keys = Keys::new();
    let whole = open(alone(&shipped()), &keys).await;
    let sampling = SamplingSpec { logprobs: Some(0), ..SamplingSpec::GREEDY };
    let (text, tokens, ..) = whole.generate(GenerateRequest { sampling, ..request(PROMPT) }).whole().await.unwrap();
    let options = [" zzz".to_owned(), text.clone(), "?".to_owned()];
    let choice = whole.choose(PROMPT, &options, None).await.unwrap();
    let likely: f64 = tokens.iter().map(|token| f64::from(token.logprob.unwrap())).sum();
    assert!((choice.scores[1] * text.len() as f64 - likely).abs() < 1e-3, "{choice:?}, not {likely}: {text}");
    assert!(choice.best != 0 && choice.features.margin_first > 0.0 && choice.features.prompt_logprob_mean < 0.0, "{choice:?}");

    let hosted = start(host_config(&shipped()), &keys).await;
    let mut config = split(&shipped(), hosted.addr, hosted.id, 1, None);
    let plain = open(config.clone(), &keys).await;
    assert!(plain.choose(PROMPT, &options, None).await.unwrap_err().to_string().contains("--tail 0"));
    for tail in [0, 1] {
        config.remote.as_mut().unwrap().tail = Some(tail);
        let cut = open(config.clone(), &keys).await;
        let found = cut.choose(PROMPT, &options, None).await.unwrap();
        assert_eq!(found.best, choice.best);
        assert!(found.scores.iter().zip(&choice.scores).all(|(found, whole)| (found - whole).abs() < 1e-5), "{found:?}, not {choice:?}");
        let auto = |threshold| Offloader::auto(whole.clone(), cut.clone(), policy(threshold)).unwrap();
        assert_eq!(auto(0.0).choose(PROMPT, &options, None).await.unwrap().1.by, Answerer::Device);
        assert_eq!(auto(2.0).choose(PROMPT, &options, None).await.unwrap().1.by, Answerer::Host);
    }
    for wrong in [vec!["one".to_owned()], vec!["one".to_owned(), String::new()]] {
        assert!(whole.choose(PROMPT, &wrong, None).await.is_err());
    }
    hosted.end().await;
}

/// An encoder with a tokenizer, drawn from a seed: what is alike to it hardly matters here.
fn encoder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let texts = ["what time does the library open on monday", "who was the first to cross the river"];
    train_tokenizer(texts.into_iter(), 300, folder.path()).unwrap();
    let config = serde_json::json!({
        "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320, "max_position_embeddings": 64,
        "type_vocab_size": 2
    });
    let weights = Pretrainer::new(&config, 5, &DeviceChoice::Cpu.open().unwrap()).unwrap().weights();
    write_model(folder.path(), &config, weights.into_iter(), ExportDtype::F32).unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_question_is_answered_from_memory() {
    let (keys, folder) = (Keys::new(), encoder());
    let embedder = Embedder::open(alone(folder.path()), keys.device.clone(), no_events()).await.unwrap();
    let config = MemoryConfig { alike_min: 0.9999, entries_max: 2 };
    let offloader = Offloader::one(open(alone(&shipped()), &keys).await).remembering(embedder.clone(), config).unwrap();
    let (text, tokens, usage) = answer(&offloader, request(PROMPT)).await;
    assert_eq!(usage.answered.unwrap().by, Answerer::Device);
    let (again, same, usage) = answer(&offloader, request(PROMPT)).await;
    let answered = usage.answered.unwrap();
    assert_eq!((again, same, answered.by, usage.rounds), (text, tokens, Answerer::Memory, 0));
    assert!(answered.alike.unwrap() > 0.9999 && usage.completion_tokens == 12);
    // Another question, another number of tokens, and ids are nothing that was asked before.
    let others = [request("Who was the first to cross the river"), GenerateRequest { tokens_max: Some(5), ..request(PROMPT) }];
    let ids = GenerateRequest { prompt: Prompt::Tokens(vec![5, 6]), ..request("") };
    for other in others.into_iter().chain([ids]) {
        assert_eq!(answer(&offloader, other).await.2.answered.unwrap().by, Answerer::Device);
    }
    // Two more have come: the first gave way.
    assert_eq!(answer(&offloader, request(PROMPT)).await.2.answered.unwrap().by, Answerer::Device);
    let nothing = MemoryConfig { entries_max: 0, ..config };
    assert!(Offloader::one(offloader.generator().clone()).remembering(embedder, nothing).is_err());
}

//! Goal: split inference gives what the uncut model gives, whatever is cut, guessed, shared, lost or taken away meanwhile.
//! Method: hosts and devices over real sockets, on a small model with weights drawn from a seed and on real ones from the shared data.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/hosting.rs"]
mod hosting;

use common::{BLOCKS, ground};
use cutlayer_node::{
    Drafting, Event, EventSink, FinishReason, GenerateRequest, Generator, GeneratorConfig, HostConfig, NamedAdapter, NodeError, Prompt,
    Usage, no_events,
};
use cutlayer_transport::{Emulator, Profile};
use cutlayer_wire::{FailureCode, RefusalCode, SamplingSpec};
use hosting::{Keys, alone, host_config, split, start};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const TOKENS: u32 = 40;

fn shared_data() -> PathBuf {
    std::env::var_os("CUTLAYER_DATA").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"), PathBuf::from)
}

async fn open(config: GeneratorConfig, keys: &Keys) -> Generator {
    Generator::open(config, keys.device.clone(), no_events()).await.unwrap()
}

fn request(prompt: Vec<u32>) -> GenerateRequest {
    GenerateRequest { prompt: Prompt::Tokens(prompt), tokens_max: Some(TOKENS), ignore_end: true, ..GenerateRequest::greedy("") }
}

fn prompt(seed: u32) -> Vec<u32> {
    (0..18).map(|i| (i * 37 + seed * 11 + 5) % 290).collect()
}

async fn ids(generator: &Generator, request: GenerateRequest) -> (Vec<u32>, Usage) {
    let (_, tokens, _, usage) = generator.generate(request).whole().await.unwrap();
    (tokens.into_iter().map(|token| token.id).collect(), usage)
}

/// Draws by chance, with every penalty that a host can count too.
fn by_chance(seed: u64) -> SamplingSpec {
    SamplingSpec {
        temperature: 0.9,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.01,
        presence_penalty: 0.3,
        frequency_penalty: 0.2,
        seed,
        ..SamplingSpec::GREEDY
    }
}

/// Goal: one text for all cuts, greedy and by chance. Method: every cut and tail of a small model, beside the uncut model's tokens.
#[tokio::test(flavor = "multi_thread")]
async fn every_cut_gives_the_uncut_models_tokens() {
    let (ground, keys) = (ground(), Keys::new());
    let model = ground.model.path();
    let whole = open(alone(model), &keys).await;
    let chance = GenerateRequest { sampling: by_chance(7), ..request(prompt(1)) };
    let (greedy, drawn) = (ids(&whole, request(prompt(1))).await.0, ids(&whole, chance.clone()).await.0);
    assert_eq!((greedy.len(), drawn.len()), (TOKENS as usize, TOKENS as usize));
    assert_ne!(greedy, drawn);
    let hosted = start(host_config(model), &keys).await;
    for cut in 0..=BLOCKS {
        let tails = (0..=BLOCKS - cut).map(Some).chain([None]);
        for tail in tails {
            let device = open(split(model, hosted.addr, hosted.id, cut, tail), &keys).await;
            assert_eq!(ids(&device, request(prompt(1))).await.0, greedy, "cut {cut}, tail {tail:?}");
            assert_eq!(ids(&device, chance.clone()).await.0, drawn, "cut {cut}, tail {tail:?}, by chance");
        }
    }
    hosted.end().await;
}

/// Goal: a real model's text. Method: what llama2.c prints for stories260k at temperature 0, 200 steps from the start of a text.
#[tokio::test(flavor = "multi_thread")]
async fn stories_are_told_word_for_word() {
    let model = shared_data().join("stories260k-hf");
    let expected = shared_data().join("stories260k-llama2c/expected_greedy_200steps.txt");
    let Ok(expected) = std::fs::read_to_string(&expected) else {
        return eprintln!("SKIPPED: {} is not there; set CUTLAYER_DATA to the shared data folder", expected.display());
    };
    let keys = Keys::new();
    let hosted = start(host_config(&model), &keys).await;
    for (cut, tail) in (0..=5).map(|cut| (cut, None)).chain([(1, Some(1)), (2, Some(0))]) {
        let device = open(split(&model, hosted.addr, hosted.id, cut, tail), &keys).await;
        let request = GenerateRequest { tokens_max: Some(200), ignore_end: false, ..request(vec![1]) };
        let (text, tokens, reason, usage) = device.generate(request).whole().await.unwrap();
        assert!(text.trim_start().starts_with(expected.trim()), "cut {cut}, tail {tail:?}: {text}");
        assert_eq!((tokens.len(), reason, usage.completion_tokens), (200, FinishReason::Length, 200));
    }
    hosted.end().await;
}

/// Goal: guesses change how long it takes, not what comes. Method: n-grams, early exit and a draft model, greedy and by chance, on every shape.
#[tokio::test(flavor = "multi_thread")]
async fn guesses_change_no_token() {
    let (ground, keys) = (ground(), Keys::new());
    let model = ground.model.path();
    let hosted = start(host_config(model), &keys).await;
    let whole = open(alone(model), &keys).await;
    let depth_max = 6;
    let drafts =
        [Drafting::Ngram { depth_max }, Drafting::Exit { blocks: 1, depth_max }, Drafting::Model { folder: model.into(), depth_max }];
    for sampling in [SamplingSpec::GREEDY, by_chance(3)] {
        // Tokens that repeat, so that there is something to look up.
        let request = GenerateRequest { sampling, ..request([prompt(2), prompt(2)].concat()[..24].to_vec()) };
        let expected = ids(&whole, request.clone()).await.0;
        for drafting in &drafts {
            for tail in [None, Some(1)] {
                let config = GeneratorConfig { drafting: drafting.clone(), ..split(model, hosted.addr, hosted.id, 1, tail) };
                let (found, usage) = ids(&open(config, &keys).await, request.clone()).await;
                assert_eq!(found, expected, "{drafting:?}, tail {tail:?}");
                if let Drafting::Model { .. } = drafting {
                    // The model guesses for itself.
                    assert!(usage.guessed_right > 0 && usage.rounds < TOKENS, "{usage:?}");
                }
            }
        }
    }
    hosted.end().await;
}

/// Goal: sequences that share passes are what they are alone. Method: sixteen at once, each with a prompt and chance of its own, on a host and here.
#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_are_each_what_they_are_alone() {
    let (ground, keys) = (ground(), Keys::new());
    let model = ground.model.path();
    let hosted = start(host_config(model), &keys).await;
    for config in [alone(model), split(model, hosted.addr, hosted.id, 1, None), split(model, hosted.addr, hosted.id, 1, Some(1))] {
        let generator = open(config, &keys).await;
        let requests: Vec<GenerateRequest> =
            (0..16).map(|i| GenerateRequest { sampling: by_chance(i.into()), ..request(prompt(i)) }).collect();
        let together: Vec<_> = requests.iter().map(|request| generator.generate(request.clone())).collect();
        let mut found = vec![];
        for generation in together {
            found.push(generation.whole().await.unwrap().1.into_iter().map(|token| token.id).collect::<Vec<_>>());
        }
        for (request, found) in requests.into_iter().zip(found) {
            assert_eq!(ids(&generator, request).await.0, found);
        }
    }
    hosted.end().await;
}

/// Goal: more sequences than memory: they give way, are fed again, and end as if alone. Method: a host with pages for two of eight.
#[tokio::test(flavor = "multi_thread")]
async fn sequences_that_give_way_are_fed_again() {
    let (ground, keys) = (ground(), Keys::new());
    let model = ground.model.path();
    let whole = open(alone(model), &keys).await;
    // A token takes 3 blocks of keys and values of 2 heads of 8 f32: 8 pages hold two sequences of 58 tokens.
    let page_bytes = 16 * 3 * 2 * 2 * 8 * 4;
    let hosted = start(HostConfig { cache_bytes: 8 * page_bytes, ..host_config(model) }, &keys).await;
    let device = open(split(model, hosted.addr, hosted.id, 0, None), &keys).await;
    let together: Vec<_> = (0..8).map(|i| device.generate(request(prompt(i)))).collect();
    for (i, generation) in together.into_iter().enumerate() {
        let found: Vec<u32> = generation.whole().await.unwrap().1.into_iter().map(|token| token.id).collect();
        assert_eq!(found, ids(&whole, request(prompt(i as u32))).await.0, "sequence {i}");
    }
    let too_long = GenerateRequest { tokens_max: Some(500), ..request(prompt(0)) };
    // The model's positions bound it before memory does.
    assert_eq!(device.generate(too_long).whole().await.unwrap().2, FinishReason::Length);
    hosted.end().await;
}

/// Goal: long prompts that lose their rows between two chunks are fed again, and no row of theirs counts twice. Method: six prompts of two
/// chunks each on a host with memory for one and a half.
#[tokio::test(flavor = "multi_thread")]
async fn long_prompts_that_give_way_between_chunks_are_fed_again() {
    let model = shared_data().join("stories260k-hf");
    if !model.exists() {
        return eprintln!("SKIPPED: {} is not there; set CUTLAYER_DATA to the shared data folder", model.display());
    }
    let keys = Keys::new();
    let whole = open(alone(&model), &keys).await;
    let asked = |seed: u32| {
        let prompt = (0..400).map(|i| (i * 37 + seed * 11) % 500 + 3).collect();
        GenerateRequest { tokens_max: Some(12), ..request(prompt) }
    };
    // A token takes 5 blocks of keys and values of 4 heads of 8 f32.
    let page_bytes = 16 * 5 * 2 * 4 * 8 * 4;
    let hosted = start(HostConfig { cache_bytes: 40 * page_bytes, ..host_config(&model) }, &keys).await;
    let device = open(split(&model, hosted.addr, hosted.id, 0, None), &keys).await;
    let together: Vec<_> = (0..6).map(|i| device.generate(asked(i))).collect();
    for (i, generation) in together.into_iter().enumerate() {
        let found: Vec<u32> = generation.whole().await.unwrap().1.into_iter().map(|token| token.id).collect();
        assert_eq!(found, ids(&whole, asked(i as u32)).await.0, "sequence {i}");
    }
    hosted.end().await;
}

/// Goal: a prompt seen before costs no prefill, and gives the same. Method: the same twice, then one that goes on from it, then another.
#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_seen_before_is_found_again() {
    let (ground, keys) = (ground(), Keys::new());
    let model = ground.model.path();
    let hosted = start(host_config(model), &keys).await;
    let whole = open(alone(model), &keys).await;
    let long: Vec<u32> = [prompt(1), prompt(2)].concat();
    for config in [alone(model), split(model, hosted.addr, hosted.id, 1, None), split(model, hosted.addr, hosted.id, 1, Some(1))] {
        let generator = open(config, &keys).await;
        let few = |prompt: &[u32]| GenerateRequest { tokens_max: Some(8), ..request(prompt.to_vec()) };
        let (first, usage) = ids(&generator, few(&long)).await;
        assert_eq!((usage.prompt_tokens, usage.cached_tokens), (36, 0));
        let (again, usage) = ids(&generator, few(&long)).await;
        assert_eq!((&again, usage.cached_tokens), (&first, 32), "two whole pages");
        let longer: Vec<u32> = [long.clone(), first.clone()].concat();
        let (on, usage) = ids(&generator, few(&longer)).await;
        assert_eq!(usage.cached_tokens, 32, "what was generated fills no third page to its end");
        assert_eq!(on, ids(&whole, few(&longer)).await.0);
        let mut other = long.clone();
        other[20] += 1;
        assert_eq!(ids(&generator, few(&other)).await.1.cached_tokens, 16, "alike to the first page's end");
    }
    hosted.end().await;
}

/// Goal: a sequence survives its connection and its host. Method: the network is cut, then the host is started again, in the middle of a text.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_and_a_lost_host_change_no_token() {
    let (ground, keys) = (ground(), Keys::new());
    let model = ground.model.path();
    let whole = open(alone(model), &keys).await;
    let asked = GenerateRequest { sampling: by_chance(5), ..request(prompt(4)) };
    let expected = ids(&whole, asked.clone()).await.0;
    for tail in [None, Some(1)] {
        let hosted = start(host_config(model), &keys).await;
        let emulator = Emulator::start("127.0.0.1:0".parse().unwrap(), hosted.addr, &Profile::Loopback.conditions(), 1).unwrap();
        let back = Arc::new(Mutex::new(vec![]));
        let heard = back.clone();
        let events: EventSink = Arc::new(move |event| {
            if let Event::HostBack { resumed, .. } = event {
                heard.lock().unwrap().push(resumed);
            }
        });
        let config = split(model, emulator.local_addr(), hosted.id, 1, tail);
        let device = Generator::open(config, keys.device.clone(), events).await.unwrap();
        let mut generation = device.generate(asked.clone());
        let (mut found, mut hosted) = (vec![], Some(hosted));
        while let Some(piece) = generation.next().await {
            let cutlayer_node::Piece::Token(token) = piece.unwrap() else { break };
            found.push(token.id);
            if found.len() == 10 {
                emulator.cut(Duration::from_secs(3));
            }
            if found.len() == 25 {
                let before = hosted.take().unwrap();
                let listen = before.addr;
                before.end().await;
                hosted = Some(start(HostConfig { listen, ..host_config(model) }, &keys).await);
            }
        }
        assert_eq!(found, expected, "tail {tail:?}");
        assert!(back.lock().unwrap().contains(&false), "the host was found again, started anew: {back:?}");
        hosted.unwrap().end().await;
    }
}

/// Goal: who goes away leaves nothing behind. Method: many that are dropped in the middle, on a host with room for few.
#[tokio::test(flavor = "multi_thread")]
async fn cancelled_sequences_free_their_memory() {
    let (ground, keys) = (ground(), Keys::new());
    let model = ground.model.path();
    let hosted = start(HostConfig { sessions_max: 2, ..host_config(model) }, &keys).await;
    let device = open(split(model, hosted.addr, hosted.id, 1, None), &keys).await;
    for round in 0..20 {
        let mut generation = device.generate(request(prompt(round)));
        generation.next().await.unwrap().unwrap();
        drop(generation);
        // The host hears of it a moment later.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ids(&device, request(prompt(1))).await.0.len(), TOKENS as usize);
    hosted.end().await;
}

async fn refused(generator: &Generator, request: GenerateRequest) -> (FailureCode, String) {
    match generator.generate(request).whole().await.expect_err("refused") {
        NodeError::Generation { code, reason } => (code, reason),
        other => panic!("{other}"),
    }
}

/// Goal: each sequence has the adapter that it names, on both sides. Method: with and without at once, beside the uncut model's; a name that only
/// the device knows.
#[tokio::test(flavor = "multi_thread")]
async fn adapters_are_asked_for_by_name() {
    let fixtures = shared_data().join("../fixtures/llama-nano");
    if !fixtures.exists() {
        return eprintln!("SKIPPED: {} is not there; set CUTLAYER_DATA to the shared data folder", fixtures.display());
    }
    let (model, keys) = (fixtures.join("model"), Keys::new());
    let named = |name: &str| NamedAdapter { name: name.into(), folder: fixtures.join("lora/adapter_final") };
    let asked = |adapter: Option<&str>| GenerateRequest { adapter: adapter.map(Into::into), ..request((5..30).collect()) };
    let whole = open(GeneratorConfig { adapters: vec![named("tuned")], ..alone(&model) }, &keys).await;
    let (base, tuned) = (ids(&whole, asked(None)).await.0, ids(&whole, asked(Some("tuned"))).await.0);
    assert_ne!(base, tuned);
    let hosted = start(HostConfig { adapters: vec![named("tuned")], ..host_config(&model) }, &keys).await;
    for (cut, tail) in [(1, None), (2, Some(1)), (0, None)] {
        let adapters = vec![named("tuned"), named("mine")];
        let device = open(GeneratorConfig { adapters, ..split(&model, hosted.addr, hosted.id, cut, tail) }, &keys).await;
        let (plain, with) = tokio::join!(ids(&device, asked(None)), ids(&device, asked(Some("tuned"))));
        assert_eq!((plain.0, with.0), (base.clone(), tuned.clone()), "cut {cut}, tail {tail:?}");
        assert_eq!(refused(&device, asked(Some("mine"))).await.0, FailureCode::Adapter);
    }
    hosted.end().await;
}

/// Goal: what cannot be is refused in words, and harms nobody. Method: each refusal once, then a request that goes well.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused() {
    let (ground, keys) = (ground(), Keys::new());
    let model = ground.model.path();
    let hosted = start(host_config(model), &keys).await;
    let device = open(split(model, hosted.addr, hosted.id, 1, None), &keys).await;
    assert_eq!(refused(&device, request(vec![])).await.0, FailureCode::Malformed);
    assert_eq!(refused(&device, request(vec![9_999])).await.0, FailureCode::Malformed);
    assert_eq!(refused(&device, request(vec![1; 64])).await.0, FailureCode::TooLong);
    let hot = SamplingSpec { temperature: f32::NAN, ..SamplingSpec::GREEDY };
    assert_eq!(refused(&device, GenerateRequest { sampling: hot, ..request(prompt(1)) }).await.0, FailureCode::Malformed);
    let unknown = GenerateRequest { adapter: Some("nobody".into()), ..request(prompt(1)) };
    let (code, reason) = refused(&device, unknown).await;
    assert_eq!(code, FailureCode::Adapter, "{reason}");
    assert_eq!(ids(&device, request(prompt(1))).await.0.len(), TOKENS as usize);

    // Another model, and a host without a head.
    let other = common::ground();
    std::fs::copy(shared_data().join("stories260k-hf/config.json"), other.run.path().join("config.json")).ok();
    if shared_data().join("stories260k-hf").exists() {
        let stranger = open(split(&shared_data().join("stories260k-hf"), hosted.addr, hosted.id, 1, None), &keys).await;
        let error = stranger.generate(GenerateRequest::greedy("Once")).whole().await.expect_err("another model");
        assert!(matches!(error, NodeError::Refused { code: RefusalCode::BaseModel, .. }), "{error}");
    }
    hosted.end().await;
    let headless = start(HostConfig { head: false, first_block: 1, ..host_config(model) }, &keys).await;
    for (cut, tail, code) in [(1, None, RefusalCode::Cut), (0, Some(1), RefusalCode::Cut)] {
        let device = open(split(model, headless.addr, headless.id, cut, tail), &keys).await;
        let error = device.generate(request(prompt(1))).whole().await.expect_err("refused");
        assert!(matches!(error, NodeError::Refused { code: found, .. } if found == code), "{error}");
    }
    let served = open(split(model, headless.addr, headless.id, 1, Some(1)), &keys).await;
    assert_eq!(ids(&served, request(prompt(1))).await.0.len(), TOKENS as usize);
    headless.end().await;
}

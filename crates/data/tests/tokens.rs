//! Records to examples: what is scored, what is cut, what is passed over.

mod support;

use cutlayer_data::{DataError, Example, Objective, Record, Target, Tokenised, Tokenizer, labels_of, tokenise};
use proptest::test_runner::{Config, TestRunner};
use support::{bare_tokenizer, small_tokenizer};

fn causal(tokenizer: &Tokenizer, records: &[Record], tokens_max: usize) -> Tokenised {
    tokenise(tokenizer, records, Objective::CausalLm, tokens_max).expect("tokenises")
}

fn from(example: &Example) -> usize {
    match example.target {
        Target::Next { from } => from,
        Target::Class(_) => panic!("a class, not next tokens"),
    }
}

#[test]
fn the_trained_tokenizer_round_trips_and_knows_its_ends() {
    let (_folder, tokenizer) = small_tokenizer();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (Some(1), Some(2), 290));
    let text = "  The rain,\n\tünïcode 日本 🙂 10:45 ";
    let ids = tokenizer.encode(text, true).expect("encodes");
    assert_eq!(ids[0], 1);
    assert_eq!(tokenizer.decode(&ids).expect("decodes"), text);
    let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id).expect("a token")).collect();
    assert_eq!(String::from_utf8_lossy(&bytes), text, "the bytes of all tokens are the text");
    assert_eq!((tokenizer.token_name(2).as_deref(), tokenizer.token_bytes(290)), (Some("</s>"), None));
    let seven = tokenizer.encode("777", false).expect("encodes");
    assert_eq!(seven.len(), 3, "each digit is a token");
}

#[test]
fn a_text_is_scored_from_its_first_word_to_the_end_token() {
    let (_folder, tokenizer) = small_tokenizer();
    let tokenised = causal(&tokenizer, &[Record::text("the rain")], 64);
    let [example] = tokenised.examples.as_slice() else { panic!("one example") };
    assert_eq!((example.tokens[0], from(example), example.tokens.last()), (1, 1, Some(&2)));
    assert_eq!(tokenised.scored() as usize, example.tokens.len() - 1);
}

#[test]
fn only_the_completion_is_scored() {
    let (_folder, tokenizer) = small_tokenizer();
    for (prompt, completion) in [("trains at 07:45\n", "the plain"), ("the ", "rain"), ("", "the"), ("日本", "語 grain")] {
        let tokenised = causal(&tokenizer, &[Record::pair(prompt, completion)], 64);
        let example = &tokenised.examples[0];
        let (said, scored) = example.tokens.split_at(from(example));
        assert_eq!(scored.last(), Some(&2), "the end token is scored");
        let scored = tokenizer.decode(scored).expect("decodes");
        assert!(scored.ends_with(completion), "{scored:?}");
        assert!(prompt.starts_with(&tokenizer.decode(said).expect("decodes")), "nothing of the completion is unscored");
    }
    // A token that straddles the border belongs to the completion: else its letters would be scored nowhere.
    let example = &causal(&tokenizer, &[Record::pair("th", "e rain")], 64).examples[0];
    assert_eq!(tokenizer.decode(&example.tokens[from(example)..]).expect("decodes"), "the rain");
}

#[test]
fn what_cannot_be_scored_is_skipped_and_counted() {
    let (_folder, tokenizer) = small_tokenizer();
    let records = [Record::text(" \n"), Record::pair("rain\n", " "), Record::pair("x".repeat(90), "y"), Record::text("z")];
    let tokenised = causal(&tokenizer, &records, 64);
    assert_eq!((tokenised.examples.len(), tokenised.skipped, tokenised.truncated), (1, 3, 0));
    let (_folder, bare) = bare_tokenizer();
    assert_eq!((bare.bos(), bare.eos()), (None, None));
    let tokenised = causal(&bare, &[Record::text("z"), Record::text("zz")], 64);
    assert_eq!((tokenised.examples.len(), tokenised.skipped), (1, 1), "one token predicts nothing");
}

#[test]
fn a_long_pair_loses_its_end_and_is_counted() {
    let (_folder, tokenizer) = small_tokenizer();
    let tokenised = causal(&tokenizer, &[Record::pair("xyz\n", "q".repeat(80))], 32);
    assert_eq!((tokenised.examples[0].tokens.len(), tokenised.truncated), (32, 1));
    assert_ne!(tokenised.examples[0].tokens.last(), Some(&2), "it does not end there");
}

#[test]
fn classes_follow_the_list_of_labels() {
    let (_folder, tokenizer) = small_tokenizer();
    let records = [Record::text("the rain").with_label("wet"), Record::text("x".repeat(80)).with_label("dry")];
    let labels = labels_of(&records);
    assert_eq!(labels, ["dry", "wet"]);
    let objective = Objective::Classify { labels: &labels };
    let tokenised = tokenise(&tokenizer, &records, objective, 32).expect("tokenises");
    let targets: Vec<Target> = tokenised.examples.iter().map(|example| example.target).collect();
    assert_eq!(targets, [Target::Class(1), Target::Class(0)]);
    assert_eq!((tokenised.examples[1].tokens.len(), tokenised.truncated), (32, 1));
    let refused = |record: Record| tokenise(&tokenizer, &[record], objective, 32).expect_err("refused").to_string();
    assert!(refused(Record::text("a").with_label("odd")).contains("memory:1: label `odd` is not among the task's 2"));
    assert!(refused(Record::text("a")).contains("memory:1: no label"));
}

#[test]
fn too_short_a_limit_is_refused() {
    let (_folder, tokenizer) = small_tokenizer();
    let refused = tokenise(&tokenizer, &[Record::text("a")], Objective::CausalLm, 2).expect_err("refused");
    assert!(matches!(refused, DataError::TokensMax { tokens_max: 2, tokens_min: 3 }));
}

#[test]
fn a_folder_without_a_tokenizer_is_refused_with_a_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let message = |folder: &std::path::Path| Tokenizer::open(folder).err().expect("refused").to_string();
    assert!(message(folder.path()).contains("no tokenizer.json here"));
    std::fs::write(folder.path().join("tokenizer.json"), "{}").expect("writes");
    assert!(message(folder.path()).contains("tokenizer.json"));
    let (folder, _) = small_tokenizer();
    std::fs::write(folder.path().join("tokenizer_config.json"), r#"{"eos_token": "</x>"}"#).expect("writes");
    assert!(message(folder.path()).contains("`eos_token` is `</x>`, which is not a token"));
    std::fs::write(folder.path().join("tokenizer_config.json"), r#"{"eos_token": {"content": "</s>"}}"#).expect("writes");
    assert_eq!(Tokenizer::open(folder.path()).expect("opens").eos(), Some(2));
}

/// Goal: windows lose nothing and score nothing twice. Method: the scored tokens of all windows, one after
/// the other, are the whole text's scored tokens.
fn check_windows(tokenizer: &Tokenizer, text: &str, tokens_max: usize) {
    let whole = causal(tokenizer, &[Record::text(text)], 1 << 20);
    let windows = causal(tokenizer, &[Record::text(text)], tokens_max);
    let scored = |tokenised: &Tokenised| -> Vec<u32> {
        tokenised.examples.iter().flat_map(|example| example.tokens[from(example)..].to_vec()).collect()
    };
    assert_eq!(scored(&windows), scored(&whole));
    assert_eq!(windows.skipped, whole.skipped);
    assert!(windows.examples.iter().all(|example| (2..=tokens_max).contains(&example.tokens.len())));
}

#[test]
fn windows_score_every_token_once() {
    let tokenizers = [small_tokenizer(), bare_tokenizer()];
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    let texts = proptest::string::string_regex("(the |rain|x|日| ){1,60}").expect("a regex");
    runner
        .run(&(texts, 3usize..20), |(text, tokens_max)| {
            tokenizers.iter().for_each(|(_folder, tokenizer)| check_windows(tokenizer, &text, tokens_max));
            Ok(())
        })
        .expect("holds");
}

#[test]
fn training_a_tokenizer_is_deterministic() {
    let files = |(folder, _): &(tempfile::TempDir, Tokenizer)| {
        ["tokenizer.json", "tokenizer_config.json"].map(|name| std::fs::read(folder.path().join(name)).expect("reads"))
    };
    assert_eq!(files(&small_tokenizer()), files(&small_tokenizer()));
    let refused = cutlayer_data::train_tokenizer(std::iter::once("a"), 100, std::path::Path::new("/nowhere"));
    assert!(refused.expect_err("refused").to_string().contains("a vocabulary of 100"));
}

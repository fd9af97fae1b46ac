//! The files of the shared data folder. Skipped, loudly, where the folder is absent.

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use cutlayer_data::{
    BatchShape, DataSpec, HeldOut, Layout, Lists, Objective, Partition, Pieces, Record, Source, Target, Tokenizer, evaluation_batches,
    labels_of, tokenise,
};
use support::shared_data;

fn read(data: &Path, source: &Source) -> Vec<Record> {
    source.read(data).unwrap_or_else(|error| panic!("{error}"))
}

fn keys(records: &[Record]) -> BTreeSet<&str> {
    records.iter().filter_map(|record| record.key.as_deref()).collect()
}

#[test]
fn shakespeare_roles_become_windows_of_three_clients() {
    let Some(data) = shared_data() else { return };
    let source = Source { key: Some("role".into()), ..Source::text("tinyshakespeare/by_role.jsonl", "turns") };
    assert_eq!(keys(&read(&data, &source)).len(), 309);
    let turns = read(&data, &Source { lists: Some(Lists::Each), ..source.clone() });
    assert!(turns.len() > 5000, "{} turns", turns.len());
    let spec = DataSpec { source, held_out: Some(HeldOut::KeyFraction(0.1)), partition: Some(Partition::Key) };
    let shares = spec.load(&data, 3, 7).expect("shares");
    let held: BTreeSet<&str> = shares.held_out.iter().flat_map(|share| keys(share)).collect();
    assert_eq!(held.len(), 31);
    assert!(shares.train.iter().all(|share| keys(share).is_disjoint(&held)));
    let bytes: Vec<usize> = shares.train.iter().map(|share| share.iter().map(Record::text_bytes).sum()).collect();
    assert!(bytes.iter().max() < bytes.iter().min().map(|least| least * 11 / 10).as_ref(), "{bytes:?}");
    let tokenizer = Tokenizer::open(&data.join("stories260k-hf")).expect("opens");
    let tokenised = tokenise(&tokenizer, &shares.held_out.concat(), Objective::CausalLm, 128).expect("tokenises");
    assert!(tokenised.examples.len() > 50);
    assert!(tokenised.examples.iter().all(|example| example.tokens[0] == 1 && example.tokens.len() <= 128));
    let shape = BatchShape { sequences: 8, tokens_max: 128, layout: Layout::Packed, group_by_length: false };
    let batches = evaluation_batches(&tokenised.examples, &shape).expect("batches");
    assert_eq!(batches.iter().map(|batch| u64::from(batch.scored())).sum::<u64>(), tokenised.scored());
}

#[test]
fn banking77_is_labelled() {
    let Some(data) = shared_data() else { return };
    let train = read(&data, &Source::labelled("banking77/train.csv", "text", "category"));
    let test = read(&data, &Source::labelled("banking77/test.csv", "text", "category"));
    assert_eq!((train.len(), test.len(), labels_of(&train).len()), (10_003, 3080, 77));
    assert_eq!(labels_of(&train), labels_of(&test));
}

#[test]
fn clinc150_domains_are_ten_clients() {
    let Some(data) = shared_data() else { return };
    let member = |member: &str| Source {
        member: Some(member.into()),
        key_map: Some("clinc150/domains.json".into()),
        ..Source::labelled("clinc150/data_full.json", "0", "1")
    };
    let spec = DataSpec { source: member("train"), held_out: Some(HeldOut::Source(member("test"))), partition: Some(Partition::Key) };
    let shares = spec.load(&data, 10, 1).expect("shares");
    for (train, held_out) in shares.train.iter().zip(&shares.held_out) {
        assert_eq!((train.len(), held_out.len(), labels_of(train).len()), (1500, 450, 15));
        assert_eq!(keys(train).len(), 1);
        assert_eq!(keys(train), keys(held_out));
    }
    let oos = member("oos_test").read(&data).expect_err("refused").to_string();
    assert!(oos.contains("data_full.json:") && oos.contains("label `oos` is not in the key map"), "{oos}");
}

#[test]
fn e2e_and_commonsense_score_the_completion() {
    let Some(data) = shared_data() else { return };
    let tokenizer = Tokenizer::open(&data.join("tinystories-656k-hf")).expect("opens");
    let sources = [
        (Source::pairs("e2e/devset.csv", "mr", "ref"), 4672),
        (Source::pairs("e2e/testset_w_refs.csv", "mr", "ref"), 4693),
        (Source::pairs("commonsense/ARC-Challenge-train.json", "instruction", "output"), 1119),
        (Source::pairs("gsm8k/test.jsonl", "question", "answer"), 1319),
    ];
    for (source, count) in sources {
        let records = read(&data, &source);
        assert_eq!(records.len(), count, "{}", source.path.display());
        let tokenised = tokenise(&tokenizer, &records[..200], Objective::CausalLm, 512).expect("tokenises");
        assert!(tokenised.examples.len() > 150);
        for example in &tokenised.examples {
            let Target::Next { from } = example.target else { panic!("next tokens") };
            assert!(from > 5 && from < example.tokens.len());
        }
    }
}

#[test]
fn tinystories_are_separated_by_a_marker() {
    let Some(data) = shared_data() else { return };
    let marker = Pieces::Marker("<|endoftext|>".into());
    let stories = read(&data, &Source { pieces: Some(marker), ..Source::new("tinystories/tinystories_train_head_2MiB.txt") });
    assert_eq!(stories.len(), 2317, "2316 whole stories and a cut one");
}

/// Ids and texts as transformers 5.23 gives them (checked once by hand).
#[test]
fn the_real_tokenizers_encode_as_transformers_does() {
    let Some(data) = shared_data() else { return };
    let text = "Once upon a time, Lily saw 3 big  dogs.\nThe ünd";
    let cases: [(&str, usize, Option<u32>, &[u32]); 3] = [
        ("stories260k-hf", 512, Some(2), &STORIES),
        ("tinystories-656k-hf", 2048, Some(2), &TINY),
        ("gpt2-tokenizer", 50_257, Some(50_256), &GPT2),
    ];
    for (folder, vocab_size, eos, ids) in cases {
        let tokenizer = Tokenizer::open(&data.join(folder)).expect("opens");
        assert_eq!((tokenizer.vocab_size(), tokenizer.eos()), (vocab_size, eos), "{folder}");
        let encoded = tokenizer.encode(text, true).expect("encodes");
        assert_eq!(encoded, ids, "{folder}");
        let known = if encoded.contains(&0) { text.replace('ü', "") } else { text.to_owned() };
        assert_eq!(tokenizer.decode(&encoded).expect("decodes"), known, "{folder}");
    }
}
const STORIES: [u32; 23] = [1, 403, 407, 261, 378, 432, 317, 394, 410, 472, 370, 410, 400, 428, 419, 426, 13, 434, 260, 410, 198, 191, 264];
const TINY: [u32; 17] = [1, 80, 147, 201, 282, 215, 303, 497, 14, 80, 202, 80, 604, 71, 446, 0, 389];
const GPT2: [u32; 17] = [7454, 2402, 257, 640, 11, 20037, 2497, 513, 1263, 220, 6844, 13, 198, 464, 6184, 120, 358];

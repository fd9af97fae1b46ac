//! The shipped corpus as the quickstart uses it: its own tokenizer, sequences of 128.

use cutlayer_data::corpus::{CorpusSpec, Part, pairs, pretraining_documents, write_corpus};
use cutlayer_data::{Objective, Source, Target, Tokenizer, tokenise, train_tokenizer};

#[test]
fn the_shipped_pairs_fit_in_128_tokens_and_score_the_completion_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let spec = CorpusSpec::shipped();
    write_corpus(folder.path(), &spec).expect("writes");
    let documents = pretraining_documents(&spec).expect("documents");
    train_tokenizer(documents.iter().map(String::as_str), 1024, folder.path()).expect("trains");
    let tokenizer = Tokenizer::open(folder.path()).expect("opens");
    assert_eq!(tokenizer.vocab_size(), 1024);
    for (file, part) in [("train.jsonl", Part::Train), ("heldout.jsonl", Part::HeldOut)] {
        let records = Source::pairs(file, "prompt", "completion").read(folder.path()).expect("reads");
        let tokenised = tokenise(&tokenizer, &records, Objective::CausalLm, 128).expect("tokenises");
        assert_eq!((tokenised.skipped, tokenised.truncated), (0, 0), "{file}");
        for (example, pair) in tokenised.examples.iter().zip(pairs(&spec, part).expect("pairs")) {
            let Target::Next { from } = example.target else { panic!("next tokens") };
            let scored = tokenizer.decode(&example.tokens[from..]).expect("decodes");
            assert_eq!(scored, pair.completion, "no token straddles prompt and completion");
        }
    }
}

/// A changed generator makes other text than the repository ships: if this is meant, ship the new text with it.
#[test]
fn the_shipped_corpus_is_frozen() {
    let folder = tempfile::tempdir().expect("a folder");
    write_corpus(folder.path(), &CorpusSpec::shipped()).expect("writes");
    let digest = |name: &str| blake3::hash(&std::fs::read(folder.path().join(name)).expect("reads")).to_hex()[..16].to_owned();
    let digests = ["pretrain.txt", "train.jsonl", "heldout.jsonl"].map(digest);
    assert_eq!(digests, ["1fe9ab0ddd436afd", "6fce91c015be971e", "f56570ac6425b475"]);
}

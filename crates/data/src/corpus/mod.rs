//! The quickstart corpus: data-to-text pairs that a seed writes, so that the repository can ship them.
//!
//! A pair is a meaning representation and a short English text that says it:
//! ```text
//! trains | from: Oakwell | to: Penhaven | leaves: 07:45 | platform: 3
//! At 07:45 a train departs Oakwell for Penhaven. Please go to platform 3.
//! ```
//! There are eight domains. Six ([`CLIENT_DOMAINS`]) are clients' own: each has its attributes, its words and a
//! house style, and only fine-tuning sees its pairs. Two ([`PRETRAINED_DOMAINS`]) teach the base model the task:
//! `pretrain.txt` holds their pairs as plain text, next to prose about all eight domains in another style. So the base
//! model knows the words and the idea, and each client has a format and a style to learn.
//!
//! Every domain names two attributes whose *combination* (a line's two ends, a dish and its main ingredient) is held
//! out for one combination in eight: no such combination occurs in the prose or in the training pairs, and every
//! held-out pair has one. Its parts all occur in training; scoring well means having learned to say, not to recall.
//!
//! The text is this file's and its tables' own: no other data went into it. Names of places are put together from
//! parts. Nothing here trains a model.

mod grammar;
mod services;
mod visits;

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::rng::Seeded;
use crate::tokenizer_training::write;
use grammar::{Domain, Facts, Style};

/// The domains whose pairs only clients have, one natural client each.
pub const CLIENT_DOMAINS: [&str; 6] = ["weather", "trains", "recipes", "shops", "sport", "museums"];

/// The domains whose pairs are part of the pretraining text.
pub const PRETRAINED_DOMAINS: [&str; 2] = ["hikes", "concerts"];

/// One combination in this many is held out.
const HELD_OUT_EVERY: u64 = 8;

/// How often a draw may be repeated until it is new and on the right side of the split.
const DRAWS_MAX: usize = 10_000;

/// How much corpus is made. The same spec gives the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusSpec {
    /// Decides every draw.
    pub seed: u64,
    /// Passages of prose in the pretraining text, for each of the eight domains.
    pub passages: usize,
    /// Pairs as plain text in the pretraining text, for each pretrained domain.
    pub lessons: usize,
    /// Training pairs for each client domain.
    pub train_pairs: usize,
    /// Held-out pairs for each client domain.
    pub held_out_pairs: usize,
}

impl CorpusSpec {
    /// The corpus the repository ships: about a megabyte.
    pub fn shipped() -> Self {
        Self { seed: 7, passages: 280, lessons: 420, train_pairs: 300, held_out_pairs: 50 }
    }
}

/// A meaning representation, the text that says it, and whose it is. One line of `train.jsonl` and `heldout.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The meaning representation, without a line break.
    pub prompt: String,
    /// The text.
    pub completion: String,
    /// The natural key.
    pub domain: String,
}

/// Which side of the held-out split pairs come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Combinations that may be trained on.
    Train,
    /// The others.
    HeldOut,
}

/// What [`write_corpus`] wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CorpusSummary {
    /// Documents in `pretrain.txt`.
    pub documents: usize,
    /// Pairs in `train.jsonl`.
    pub train_pairs: usize,
    /// Pairs in `heldout.jsonl`.
    pub held_out_pairs: usize,
    /// Bytes in the three files.
    pub bytes: usize,
}

/// Writes `pretrain.txt` (documents separated by blank lines), `train.jsonl` and `heldout.jsonl` into `folder`.
pub fn write_corpus(folder: &Path, spec: &CorpusSpec) -> Result<CorpusSummary, DataError> {
    let documents = pretraining_documents(spec)?;
    let (train, held_out) = (pairs(spec, Part::Train)?, pairs(spec, Part::HeldOut)?);
    let texts = [documents.join("\n\n") + "\n", lines(&train), lines(&held_out)];
    for (name, text) in ["pretrain.txt", "train.jsonl", "heldout.jsonl"].iter().zip(&texts) {
        write(&folder.join(name), text)?;
    }
    Ok(CorpusSummary {
        documents: documents.len(),
        train_pairs: train.len(),
        held_out_pairs: held_out.len(),
        bytes: texts.iter().map(String::len).sum(),
    })
}

/// The documents of the pretraining text, shuffled: prose of every domain, and the pretrained domains' pairs.
pub fn pretraining_documents(spec: &CorpusSpec) -> Result<Vec<String>, DataError> {
    let mut documents = Vec::new();
    for domain in domains() {
        documents.extend(documents_of(spec, domain)?);
    }
    Seeded::new(spec.seed, "corpus order", 0).shuffle(&mut documents);
    Ok(documents)
}

fn documents_of(spec: &CorpusSpec, domain: &'static Domain) -> Result<Vec<String>, DataError> {
    let mut documents = Vec::new();
    let mut passages = Writer::new(spec, domain, "passages", Part::Train);
    for _ in 0..spec.passages {
        documents.push(passages.write(Style::Prose)?.1);
    }
    if PRETRAINED_DOMAINS.contains(&domain.name) {
        let mut lessons = Writer::new(spec, domain, "lessons", Part::Train);
        for _ in 0..spec.lessons {
            let (prompt, text) = lessons.write(Style::Report)?;
            documents.push(format!("{prompt}\n{text}"));
        }
    }
    Ok(documents)
}

/// The clients' pairs, domain after domain in the order of [`CLIENT_DOMAINS`].
pub fn pairs(spec: &CorpusSpec, part: Part) -> Result<Vec<Pair>, DataError> {
    let (count, purpose) = match part {
        Part::Train => (spec.train_pairs, "train"),
        Part::HeldOut => (spec.held_out_pairs, "held out"),
    };
    let mut pairs = Vec::new();
    for domain in domains().filter(|domain| CLIENT_DOMAINS.contains(&domain.name)) {
        let mut writer = Writer::new(spec, domain, purpose, part);
        for _ in 0..count {
            let (prompt, completion) = writer.write(Style::Report)?;
            pairs.push(Pair { prompt, completion, domain: domain.name.to_owned() });
        }
    }
    Ok(pairs)
}

fn domains() -> impl Iterator<Item = &'static Domain> {
    services::DOMAINS.iter().chain(visits::DOMAINS)
}

fn lines(pairs: &[Pair]) -> String {
    let line = |pair| serde_json::to_string(pair).expect("three strings are JSON") + "\n";
    pairs.iter().map(line).collect()
}

/// Writes one domain's texts, no two about the same facts.
struct Writer {
    domain: &'static Domain,
    part: Part,
    seed: u64,
    rng: Seeded,
    written: BTreeSet<String>,
}

impl Writer {
    fn new(spec: &CorpusSpec, domain: &'static Domain, purpose: &str, part: Part) -> Self {
        let rng = Seeded::new(spec.seed, &format!("corpus {} {purpose}", domain.name), 0);
        Self { domain, part, seed: spec.seed, rng, written: BTreeSet::new() }
    }

    /// The next meaning representation and its text.
    fn write(&mut self, style: Style) -> Result<(String, String), DataError> {
        for _ in 0..DRAWS_MAX {
            let facts = self.domain.draw(&mut self.rng);
            if part_of(self.seed, self.domain, &facts) != Some(self.part) {
                continue;
            }
            let meaning = self.domain.meaning(&facts);
            if self.written.insert(meaning.clone()) {
                let text = self.domain.say(&facts, style, &mut self.rng);
                return Ok((meaning, text));
            }
        }
        let (domain, written) = (self.domain.name, self.written.len());
        Err(DataError::CorpusExhausted { domain, written })
    }
}

/// The side of the split that facts fall on, or `None` where they make no sense (a train to where it started).
fn part_of(seed: u64, domain: &Domain, facts: &Facts) -> Option<Part> {
    let mut values = domain.combination.map(|slot| grammar::value(facts, slot));
    // Sorted: the way back of a held-out line is held out as well.
    values.sort_unstable();
    let [first, second] = values;
    if first == second {
        return None;
    }
    let purpose = format!("corpus split {} {first} + {second}", domain.name);
    let held_out = Seeded::new(seed, &purpose, 0).below(HELD_OUT_EVERY as usize) == 0;
    Some(if held_out { Part::HeldOut } else { Part::Train })
}

#[cfg(test)]
mod tests {
    use super::grammar::{Phrases, Slot, Values};
    use super::*;

    fn small() -> CorpusSpec {
        CorpusSpec { seed: 1, passages: 40, lessons: 40, train_pairs: 60, held_out_pairs: 30 }
    }

    fn made(spec: &CorpusSpec, part: Part) -> Vec<Pair> {
        pairs(spec, part).expect("enough facts")
    }

    /// The values of a meaning representation, by attribute.
    fn attributes(pair: &Pair) -> Vec<(&str, &str)> {
        pair.prompt.split(" | ").skip(1).map(|part| part.split_once(": ").expect("name: value")).collect()
    }

    fn combination(pair: &Pair) -> Vec<String> {
        let domain = domains().find(|domain| domain.name == pair.domain).expect("a domain");
        let value = |slot: &str| attributes(pair).iter().find(|(name, _)| *name == slot).expect("present").1.to_owned();
        domain.combination.map(value).to_vec()
    }

    #[test]
    fn every_text_says_all_its_facts() {
        for part in [Part::Train, Part::HeldOut] {
            for pair in made(&small(), part) {
                for (name, value) in attributes(&pair) {
                    let said = pair.completion.to_lowercase().contains(&value.to_lowercase());
                    assert!(said, "{name} is missing in {pair:?}");
                }
                assert!(!pair.completion.contains(['{', '}']) && !pair.prompt.contains('\n'), "{pair:?}");
            }
        }
    }

    #[test]
    fn held_out_combinations_are_nowhere_in_training() {
        let spec = small();
        for domain in domains() {
            let of_domain = |pair: &Pair| pair.domain == domain.name;
            let (held, train) = (made(&spec, Part::HeldOut), made(&spec, Part::Train));
            let held: BTreeSet<Vec<String>> = held.into_iter().filter(of_domain).map(|pair| combination(&pair)).collect();
            assert!(train.iter().filter(|pair| of_domain(pair)).all(|pair| !held.contains(&combination(pair))));
            for document in documents_of(&spec, domain).expect("enough facts") {
                let leak = held.iter().find(|both| both.iter().all(|name| document.contains(name.as_str())));
                assert!(leak.is_none(), "{leak:?} in {document}");
            }
        }
    }

    #[test]
    fn the_seed_decides_everything_and_nothing_repeats() {
        assert_eq!(made(&small(), Part::Train), made(&small(), Part::Train));
        assert_ne!(made(&small(), Part::Train), made(&CorpusSpec { seed: 2, ..small() }, Part::Train));
        let all = [made(&small(), Part::Train), made(&small(), Part::HeldOut)].concat();
        let distinct: BTreeSet<&str> = all.iter().map(|pair| pair.prompt.as_str()).collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(all.len(), 6 * 90);
    }

    #[test]
    fn the_shipped_corpus_is_about_a_megabyte_and_reads_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let summary = write_corpus(folder.path(), &CorpusSpec::shipped()).expect("writes");
        assert!((900_000..1_150_000).contains(&summary.bytes), "{summary:?}");
        let source = crate::Source { key: Some("domain".into()), ..crate::Source::pairs("train.jsonl", "prompt", "completion") };
        let held_out = crate::Source { path: "heldout.jsonl".into(), ..source.clone() };
        let spec = crate::DataSpec { source, held_out: Some(crate::HeldOut::Source(held_out)), partition: Some(crate::Partition::Key) };
        let shares = spec.load(folder.path(), 6, 1).expect("loads");
        for (client, domain) in CLIENT_DOMAINS.iter().enumerate() {
            for share in [&shares.train[client], &shares.held_out[client]] {
                assert!(!share.is_empty() && share.iter().all(|record| record.key.as_deref() == Some(domain)));
            }
        }
        let stories = crate::Source { pieces: Some(crate::Pieces::BlankLines), ..crate::Source::new("pretrain.txt") };
        assert_eq!(stories.read(folder.path()).expect("reads").len(), summary.documents);
    }

    #[test]
    fn asking_for_more_than_there_is_to_say_is_refused() {
        const LETTERS: Values = Values::Words(&["a", "b", "c", "d"]);
        static TINY: Domain = Domain {
            name: "tiny",
            slots: &[Slot { name: "x", values: LETTERS, said: None }, Slot { name: "y", values: LETTERS, said: None }],
            combination: ["x", "y"],
            openings: Phrases { report: &["{x} {y}."], prose: &[] },
        };
        let mut writer = Writer::new(&small(), &TINY, "test", Part::Train);
        let error = std::iter::repeat_with(|| writer.write(Style::Report)).find_map(Result::err).expect("ends");
        assert!(error.to_string().contains("the domain tiny has nothing new to say after"), "{error}");
    }

    #[test]
    fn all_domains_are_on_one_side() {
        let named: Vec<&str> = domains().map(|domain| domain.name).collect();
        assert_eq!(named.len(), CLIENT_DOMAINS.len() + PRETRAINED_DOMAINS.len());
        assert!(CLIENT_DOMAINS.iter().chain(&PRETRAINED_DOMAINS).all(|name| named.contains(name)));
    }
}

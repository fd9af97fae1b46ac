//! Everything that can be wrong with data, in words that name the file, the line and the remedy.

use std::path::PathBuf;

use crate::record::Origin;

/// Why data could not be read, shared out, tokenised or batched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file could not be opened or read.
    #[error("cannot read {}: {source}; check the path, relative paths start at the run file's folder", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or folder could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that must be held in memory is larger than we hold.
    #[error("{} is {bytes} B, over the {bytes_max} B read at once; split it or convert it to .jsonl", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The most that is read.
        bytes_max: u64,
    },
    /// A line does not parse.
    #[error("{at}: {reason}")]
    Malformed {
        /// Where.
        at: Origin,
        /// What is wrong with it.
        reason: String,
    },
    /// A row lacks a column the source names.
    #[error("{at}: no column `{column}`; it has {}", listed(found))]
    NoColumn {
        /// Where.
        at: Origin,
        /// The column asked for.
        column: String,
        /// The columns that are there.
        found: Vec<String>,
    },
    /// A JSON file lacks the member the source names.
    #[error("{}: no member `{member}`; it has {}", path.display(), listed(found))]
    NoMember {
        /// The file.
        path: PathBuf,
        /// The member asked for.
        member: String,
        /// The members that are there.
        found: Vec<String>,
    },
    /// The description of a source contradicts itself.
    #[error("data source {}: {reason}", path.display())]
    BadSource {
        /// The file described.
        path: PathBuf,
        /// What to change.
        reason: String,
    },
    /// A source held no record.
    #[error("{} holds no records", path.display())]
    NoRecords {
        /// The file.
        path: PathBuf,
    },
    /// A label that the key map does not mention.
    #[error("{at}: label `{label}` is not in the key map {}; add it there or drop the row", key_map.display())]
    UnmappedLabel {
        /// Where.
        at: Origin,
        /// The label.
        label: String,
        /// The file that maps labels to keys.
        key_map: PathBuf,
    },
    /// A record without a label where the task or the partition needs one.
    #[error("{at}: no label, and {wanted}; name its column with `label = ...`")]
    NoLabel {
        /// Where.
        at: Origin,
        /// What wants it.
        wanted: &'static str,
    },
    /// A record without a key where the partition or the split needs one.
    #[error("{at}: no key, and {wanted}; name its column with `key = ...`")]
    NoKey {
        /// Where.
        at: Origin,
        /// What wants it.
        wanted: &'static str,
    },
    /// A label outside the task's list.
    #[error("{at}: label `{label}` is not among the task's {labels} labels")]
    UnknownLabel {
        /// Where.
        at: Origin,
        /// The label.
        label: String,
        /// How many labels the task has.
        labels: usize,
    },
    /// A key named in the split that no record has.
    #[error("held-out key `{key}` is in no record; the keys are {}", listed(found))]
    UnknownKey {
        /// The key.
        key: String,
        /// The keys that are there.
        found: Vec<String>,
    },
    /// More clients than there is anything to give.
    #[error("{clients} clients but only {have} {what}; use fewer clients or more data")]
    TooFew {
        /// How many clients.
        clients: usize,
        /// How many things there are.
        have: usize,
        /// What the things are.
        what: &'static str,
    },
    /// A split or partition that cannot be carried out.
    #[error("{0}")]
    BadSplit(String),
    /// More corpus was asked for than a domain's tables can say.
    #[error("the domain {domain} has nothing new to say after {written} texts; ask for fewer")]
    CorpusExhausted {
        /// The domain.
        domain: &'static str,
        /// How many texts it had written.
        written: usize,
    },
    /// A tokenizer that does not load.
    #[error("tokenizer {}: {reason}", path.display())]
    Tokenizer {
        /// Its file or folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Text that the tokenizer refuses.
    #[error("{at}: the tokenizer refuses it: {reason}")]
    Encode {
        /// Where.
        at: Origin,
        /// What it said.
        reason: String,
    },
    /// Sequences too short to hold anything.
    #[error("tokens_max is {tokens_max}, but this tokenizer needs at least {tokens_min} a sequence")]
    TokensMax {
        /// The limit asked for.
        tokens_max: usize,
        /// The least that works.
        tokens_min: usize,
    },
    /// Examples that cannot be batched as asked.
    #[error("cannot batch: {0}")]
    BadBatch(String),
    /// A batcher's saved state belongs to other data.
    #[error("the saved batcher state is of other examples ({saved}, here {here}): same files, tokenizer, tokens_max and seed?")]
    OtherExamples {
        /// Fingerprint in the state.
        saved: String,
        /// Fingerprint of the examples at hand.
        here: String,
    },
}

/// How many names an error lists before it says how many more there are.
const NAMES_LISTED_MAX: usize = 8;

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let mut text = names.iter().take(NAMES_LISTED_MAX).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > NAMES_LISTED_MAX {
        text.push_str(&format!(" and {} more", names.len() - NAMES_LISTED_MAX));
    }
    text
}

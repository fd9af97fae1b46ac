//! Records to scored examples: token ids, and which of them count in the loss.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::DataError;
use crate::record::{Body, Record};
use crate::tokenizer::{Encoded, Tokenizer};

/// What an example is scored on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every next token from position `from` of the example on; `1 <= from < tokens.len()`.
    Next {
        /// The first position whose token is scored.
        from: usize,
    },
    /// The class of the whole sequence.
    Class(u32),
}

/// One sequence, no longer than the limit it was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Its token ids.
    pub tokens: Vec<u32>,
    /// What is scored.
    pub target: Target,
}

impl Example {
    /// How many scores it adds to a loss: predicted tokens, or one for a class.
    pub fn scored(&self) -> usize {
        match self.target {
            Target::Next { from } => self.tokens.len().saturating_sub(from),
            Target::Class(_) => 1,
        }
    }
}

/// The task that records are made into examples for.
#[derive(Clone, Copy, Debug)]
pub enum Objective<'a> {
    /// Predict the next token. Of a prompt and completion only the completion is scored. Labels are not used.
    CausalLm,
    /// Predict the label, one of these. Of a prompt and completion both are read.
    Classify {
        /// The labels; a class is an index into them.
        labels: &'a [String],
    },
}

/// The examples of some records, and what did not become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenised {
    /// The examples, in the records' order.
    pub examples: Vec<Example>,
    /// Records passed over because nothing in them can be scored: blank, one token, or all prompt.
    pub skipped: usize,
    /// Records whose end was cut off (pairs and labelled texts; plain texts become several examples instead).
    pub truncated: usize,
}

impl Tokenised {
    /// The scores one pass over the examples adds up.
    pub fn scored(&self) -> u64 {
        self.examples.iter().map(|example| example.scored() as u64).sum()
    }
}

/// Every label in the records, sorted: the list a classification task starts from.
pub fn labels_of(records: &[Record]) -> Vec<String> {
    records.iter().filter_map(|record| record.label.clone()).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Makes examples of at most `tokens_max` tokens.
///
/// The tokenizer's post-processor decides on a beginning token; the end token, where the tokenizer has one, is
/// appended to text and completion. A long plain text becomes windows that together score every token once;
/// a long pair, or text to classify, loses its end.
pub fn tokenise(tokenizer: &Tokenizer, records: &[Record], objective: Objective<'_>, tokens_max: usize) -> Result<Tokenised, DataError> {
    let specials = tokenizer.encode("", true)?.len();
    let tokens_min = specials + 2;
    if tokens_max < tokens_min {
        return Err(DataError::TokensMax { tokens_max, tokens_min });
    }
    let classes: BTreeMap<&str, u32> = match objective {
        Objective::CausalLm => BTreeMap::new(),
        Objective::Classify { labels } => labels.iter().map(String::as_str).zip(0..).collect(),
    };
    let mut tokenised = Tokenised { examples: Vec::new(), skipped: 0, truncated: 0 };
    for record in records {
        let class = match objective {
            Objective::CausalLm => None,
            Objective::Classify { .. } => Some(class_of(record, &classes)?),
        };
        if is_blank(&record.body) {
            tokenised.skipped += 1;
            continue;
        }
        let (text, prompt_bytes) = match &record.body {
            Body::Text(text) => (text.clone(), None),
            Body::Pair { prompt, completion } => (format!("{prompt}{completion}"), Some(prompt.len())),
        };
        let encoded = tokenizer.encode_with_ends(&text).map_err(|reason| DataError::Encode { at: record.at.clone(), reason })?;
        match (class, prompt_bytes) {
            (Some(class), _) => classify(encoded, class, tokens_max, &mut tokenised),
            (None, None) => windows(encoded, tokenizer.eos(), tokens_max, &mut tokenised),
            (None, Some(prompt_bytes)) => complete(encoded, prompt_bytes, tokenizer.eos(), tokens_max, &mut tokenised),
        }
    }
    Ok(tokenised)
}

fn is_blank(body: &Body) -> bool {
    match body {
        Body::Text(text) => text.trim().is_empty(),
        Body::Pair { completion, .. } => completion.trim().is_empty(),
    }
}

fn class_of(record: &Record, classes: &BTreeMap<&str, u32>) -> Result<u32, DataError> {
    let wanted = "the task is classification";
    let label = record.label.as_deref().ok_or_else(|| DataError::NoLabel { at: record.at.clone(), wanted })?;
    classes.get(label).copied().ok_or_else(|| DataError::UnknownLabel {
        at: record.at.clone(),
        label: label.to_owned(),
        labels: classes.len(),
    })
}

fn ended(mut ids: Vec<u32>, eos: Option<u32>) -> Vec<u32> {
    if eos.is_some() && ids.last().copied() != eos {
        ids.extend(eos);
    }
    ids
}

/// A text to classify: cut from the end, its special tokens kept at both.
fn classify(encoded: Encoded, class: u32, tokens_max: usize, tokenised: &mut Tokenised) {
    let Encoded { ids: mut tokens, trail, .. } = encoded;
    if tokens.len() > tokens_max {
        let tail = tokens.split_off(tokens.len() - trail);
        tokens.truncate(tokens_max - trail);
        tokens.extend(tail);
        tokenised.truncated += 1;
    }
    tokenised.examples.push(Example { tokens, target: Target::Class(class) });
}

/// A prompt and its completion: scored from the first token that holds any of the completion.
fn complete(encoded: Encoded, prompt_bytes: usize, eos: Option<u32>, tokens_max: usize, tokenised: &mut Tokenised) {
    let Encoded { ids, ends, .. } = encoded;
    let from = ends.iter().position(|end| *end > prompt_bytes).unwrap_or(ids.len()).max(1);
    let mut tokens = ended(ids, eos);
    let fits = tokens.len() <= tokens_max;
    tokens.truncate(tokens_max);
    if from >= tokens.len() {
        tokenised.skipped += 1;
        return;
    }
    tokenised.truncated += usize::from(!fits);
    tokenised.examples.push(Example { tokens, target: Target::Next { from } });
}

/// A plain text, in windows that score each of its tokens once.
///
/// Where the tokenizer puts tokens in front of a text, every window starts with them again: many models do
/// badly without. Where it does not, a window starts with the last token of the one before, which it only reads.
fn windows(encoded: Encoded, eos: Option<u32>, tokens_max: usize, tokenised: &mut Tokenised) {
    let lead = encoded.lead;
    let ids = ended(encoded.ids, eos);
    if ids.len() < 2 {
        tokenised.skipped += 1;
        return;
    }
    let mut push = |tokens| tokenised.examples.push(Example { tokens, target: Target::Next { from: lead.max(1) } });
    if lead > 0 {
        let (front, body) = ids.split_at(lead);
        body.chunks(tokens_max - lead).for_each(|chunk| push([front, chunk].concat()));
    } else {
        let starts = (0..ids.len() - 1).step_by(tokens_max - 1);
        starts.for_each(|start| push(ids[start..ids.len().min(start + tokens_max)].to_vec()));
    }
}

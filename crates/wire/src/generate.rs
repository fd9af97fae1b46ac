//! What a device and an edge server say while a model generates across the cut.
//!
//! After [`crate::Message::HelloGenerate`] and [`crate::Message::WelcomeGenerate`] on the control stream, each session has a bidirectional
//! stream of its own. On it go records: a fixed header of 12 bytes, little-endian, and a body. Sessions keep no state that cannot be made
//! again: the server says how many rows it holds, and the device sends what is missing.

use crate::encoding::Encoding;
use crate::message::NAME_BYTES_MAX;
use crate::record::POSITIONS_MAX;
use crate::record_error::RecordError;
use serde::{Deserialize, Serialize};

/// Bytes of a record's header.
pub const RECORD_HEADER_BYTES: usize = 12;
/// Most rows in one record.
pub const RECORD_ROWS_MAX: u16 = 1024;
/// Tokens of one page of a cache: what prefixes are shared and found again by.
pub const PAGE_TOKENS: u32 = 16;
/// Most pages that an opening session may name.
pub const PREFIX_PAGES_MAX: usize = 8192;
/// Most likeliest tokens that an answer lists beside the chosen one.
pub const TOP_LOGPROBS_MAX: u8 = 20;
/// Most tokens whose logits are shifted.
pub const LOGIT_BIASES_MAX: usize = 1024;

/// Names a page of a prefix, and all before it: a keyed hash of the tokens, under a key that stays on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageDigest(pub [u8; 16]);

/// How the next token is drawn. The draw at a position depends on the logits, this, and the tokens before it, and on nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingSpec {
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f32,
    /// Only so many of the likeliest tokens; 0 for all.
    pub top_k: u32,
    /// Only the likeliest tokens that together have this probability (Holtzman et al. 2020); 1 for all.
    pub top_p: f32,
    /// Only tokens with this share of the likeliest one's probability (Nguyen et al. 2024); 0 for all.
    pub min_p: f32,
    /// Logits of tokens that were there before are divided by it where positive, multiplied where negative (Keskar et al. 2019); 1 is none.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that were generated before.
    pub presence_penalty: f32,
    /// Subtracted once for each time a token was generated before.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws.
    pub seed: u64,
    /// Whether the log-probability of the chosen token is wanted, and of how many of the likeliest.
    pub logprobs: Option<u8>,
}

impl SamplingSpec {
    /// The likeliest token, always.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: vec![],
        seed: 0,
        logprobs: None,
    };
}

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// The token.
    pub id: u32,
    /// The natural logarithm of its probability under the model, where it was asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens and theirs, best first.
    pub top: Vec<(u32, f32)>,
}

/// What opens a session, and opens it again after a lost connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Open {
    /// The adapter, by the name the server gave it; `None` for the base model.
    pub adapter: Option<String>,
    /// How tokens are drawn. `None` in a U-shape: hidden states come back and the device draws.
    pub sampling: Option<SamplingSpec>,
    /// Tokens the sequence may grow to: what the server admits it by.
    pub tokens_max: u32,
    /// The pages that the device knows of the sequence, first to last.
    pub prefix: Vec<PageDigest>,
    /// Position of the first token that was generated, and those generated so far, where the server drew them: penalties count them.
    pub generated: (u32, Vec<u32>),
}

/// Rows of hidden states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowsRecord {
    /// Where in the sequence the first stands. What the server holds from there on is forgotten first.
    pub position: u32,
    /// How many.
    pub rows: u16,
    /// Which of them are answered.
    pub wanted: Wanted,
    /// Digests of the next pages that the device holds to be final, which the server has not heard of.
    pub digests: Vec<PageDigest>,
    /// The rows, encoded.
    pub payload: Vec<u8>,
}

/// Which rows of a record are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Wanted {
    /// None: more of the prompt follows.
    None = 0,
    /// The last one.
    Last = 1,
    /// Each of them.
    All = 2,
}

/// What the device says on a session's stream.
#[derive(Clone, Debug, PartialEq)]
pub enum DeviceRecord {
    /// First.
    Open(Open),
    /// Rows to compute.
    Rows(RowsRecord),
}

/// Why a session cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FailureCode {
    /// No adapter of that name.
    Adapter = 1,
    /// The sequence is longer than the model's positions or the server's bound.
    TooLong = 2,
    /// Too many wait already.
    Busy = 3,
    /// The record makes no sense here.
    Malformed = 4,
    /// The server failed.
    Internal = 5,
}

/// What the server says on it.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerRecord {
    /// It holds so many rows of the sequence: the device sends from there. Answers `Open`, and any rows of which the ones before are gone.
    Held(u32),
    /// Tokens drawn after the rows that were wanted, the first of which stands at `position`.
    Tokens {
        /// Position of the first row that is answered; its token's own is one more.
        position: u32,
        /// One for each.
        drawn: Vec<Drawn>,
    },
    /// U-shape: hidden states of the rows that were wanted.
    Rows {
        /// Position of the first.
        position: u32,
        /// How many.
        rows: u16,
        /// Encoded.
        payload: Vec<u8>,
    },
    /// The session is over.
    Failed {
        /// For programs.
        code: FailureCode,
        /// For people.
        reason: String,
    },
}

/// What a record's reader allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLimits {
    /// Hidden size.
    pub hidden: u32,
    /// Encoding of the rows.
    pub encoding: Encoding,
    /// Longest sequence.
    pub positions_max: u32,
}

impl Open {
    /// What any reader allows of this: the sender's own check.
    pub(crate) fn widest(&self) -> RecordLimits {
        RecordLimits { hidden: 0, encoding: Encoding::F32, positions_max: POSITIONS_MAX }
    }

    /// Refuses what no reader could act on. Whether the adapter exists and the sequence fits are the server's to say, in words of the session.
    pub fn check(&self, limits: &RecordLimits) -> Result<(), RecordError> {
        let positions_max = limits.positions_max.min(POSITIONS_MAX) as usize;
        if let Some(adapter) = &self.adapter {
            let shown = format!("of {} B", adapter.len());
            require((1..=NAME_BYTES_MAX).contains(&adapter.len()), "adapter", shown, "give a name of 1 to 128 bytes, or none")?;
        }
        require(self.tokens_max >= 1, "tokens_max", self.tokens_max, "a sequence has a token")?;
        require(self.prefix.len() <= PREFIX_PAGES_MAX, "prefix", self.prefix.len(), "name at most 8192 pages")?;
        let (first, generated) = (self.generated.0 as usize, self.generated.1.len());
        require(
            generated <= positions_max && first <= positions_max && first + generated <= positions_max + 1,
            "generated",
            format_args!("{generated} from {first} on"),
            "no sequence is that long",
        )?;
        self.sampling.as_ref().map_or(Ok(()), SamplingSpec::check)
    }
}

impl SamplingSpec {
    /// Refuses numbers that no logits can be divided by, raised by or cut at.
    pub fn check(&self) -> Result<(), RecordError> {
        let Self { temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, .. } = *self;
        let positive = |value: f32| value.is_finite() && value > 0.0;
        require(temperature == 0.0 || positive(temperature), "temperature", temperature, "give 0, or a finite number above it")?;
        require((0.0..=1.0).contains(&top_p), "top_p", top_p, "give a probability")?;
        require((0.0..=1.0).contains(&min_p), "min_p", min_p, "give a share from 0 to 1")?;
        require(positive(repetition_penalty), "repetition_penalty", repetition_penalty, "give a finite number above 0; 1 is none")?;
        for (field, penalty) in [("presence_penalty", presence_penalty), ("frequency_penalty", frequency_penalty)] {
            require(penalty.is_finite(), field, penalty, "give a finite number; 0 is none")?;
        }
        require(self.logit_bias.len() <= LOGIT_BIASES_MAX, "logit_bias", self.logit_bias.len(), "shift at most 1024 tokens")?;
        for (id, bias) in &self.logit_bias {
            require(bias.is_finite(), "logit_bias", format_args!("{bias} for token {id}"), "give a finite number; -100 bans a token")?;
        }
        let logprobs = self.logprobs.unwrap_or(0);
        require(logprobs <= TOP_LOGPROBS_MAX, "logprobs", logprobs, "ask for at most 20 tokens")
    }
}

/// Refuses a field of `Open` unless `holds`.
fn require(holds: bool, field: &'static str, found: impl std::fmt::Display, remedy: &'static str) -> Result<(), RecordError> {
    if holds {
        return Ok(());
    }
    Err(RecordError::Open { field, found: found.to_string(), remedy })
}

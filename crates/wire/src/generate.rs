//! What a device and an edge server say while a model generates across the cut.
//!
//! After [`crate::Message::HelloGenerate`] and [`crate::Message::WelcomeGenerate`] on the control stream, each session has a bidirectional
//! stream of its own. On it go records: a fixed header of 12 bytes, little-endian, and a body. Sessions keep no state that cannot be made
//! again: the server says how many rows it holds, and the device sends what is missing.

use crate::encoding::Encoding;
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

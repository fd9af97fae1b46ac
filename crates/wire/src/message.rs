//! The messages of the control stream, the bidirectional stream that a client opens first.
//!
//! On the stream each message is a little-endian u32 length and that many bytes of [`crate::encode`].

use serde::{Deserialize, Serialize};

use crate::encoding::{Encoding, EncodingError, EncodingPart};
use crate::frame::REASON_BYTES_MAX;
use crate::ids::{BaseHash, CutPoint, RoundId};
use crate::plan::Plan;
use crate::plan_parts::PlanError;
use crate::record::POSITIONS_MAX;

/// The protocol both sides must speak; raised whenever any golden byte of this crate changes.
pub const PROTOCOL_VERSION: u16 = 4;

/// The longest name a client may give itself, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// The most parts of encodings a client may offer: more than there are, so that a newer client may offer them too.
pub const ENCODINGS_MAX: usize = 64;

/// The most adapters a generating server may name.
pub const ADAPTERS_MAX: usize = 1024;

const _: () = assert!(EncodingPart::ALL.len() <= ENCODINGS_MAX);

/// Sums over what was scored: label tokens of a language model, examples of a classifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalSums {
    /// Sum of cross-entropies, in nats.
    pub loss_sum: f64,
    /// How many were scored.
    pub scored: u64,
    /// How many of those were predicted right.
    pub correct: u64,
}

/// Which run, and which start of its server: a client that comes back names what it knew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunId {
    /// Drawn when the run was first started.
    pub run: u64,
    /// How often its server was started, from 1. What a server held in memory died with the start before.
    pub start: u32,
}

/// What a client that comes back to a server holds in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The run and the start of the server that it was welcomed by.
    pub id: RunId,
    /// The newest global adapter that it holds.
    pub holds: Option<RoundId>,
}

/// Work that a server waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// As [`Message::Train`].
    Train(RoundId),
    /// As [`Message::Evaluate`].
    Evaluate(RoundId),
}

/// Why a server would not have a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// Different protocol versions.
    Version,
    /// A different base model.
    BaseModel,
    /// A cut the server cannot serve.
    Cut,
    /// No encoding in common.
    Encoding,
    /// The client cannot carry out the plan.
    Plan,
    /// The run is past the point where one could join.
    Busy,
    /// The run has all its clients.
    Full,
    /// This server trains, or this server generates, and the client wants the other.
    Purpose,
}

/// One message on the control stream.
///
/// Variant and field order are the wire format: append, never reorder, and raise [`PROTOCOL_VERSION`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// The client's first word. `version` stays the first field in every version to come.
    Hello {
        /// Protocol the client speaks.
        version: u16,
        /// Base model it holds.
        base: BaseHash,
        /// Blocks in that model.
        blocks: u16,
        /// Its hidden size.
        hidden: u32,
        /// Where the client cuts.
        cut: CutPoint,
        /// Blocks it keeps at the end, beside the final norm and the head (U-shaped split, labels stay with it);
        /// nothing is a vanilla split, where the server computes the loss.
        tail: Option<u16>,
        /// Parts of encodings it can read and write: it speaks every encoding that is made of them.
        encodings: Vec<EncodingPart>,
        /// Examples it trains on.
        samples: u64,
        /// Examples it holds out.
        eval_samples: u64,
        /// What people call it; identity comes from TLS alone.
        name: String,
        /// What it holds of this run in memory, where it lost its connection and comes back. A process that was started again holds
        /// nothing in memory.
        resume: Option<Resume>,
    },
    /// The server's yes, with everything the client needs to train.
    Welcome {
        /// The run's plan.
        plan: Plan,
        /// Encoding of activations, in both directions.
        activations: Encoding,
        /// Encoding of gradients, in both directions.
        gradients: Encoding,
        /// Encoding of updates: f32 sends an adapter whole, any other the difference from the global one.
        adapters: Encoding,
        /// This client's index in the run.
        client: u32,
        /// Clients in the run.
        clients: u32,
        /// The run and the start of its server.
        id: RunId,
        /// Whether the server still knows everything of the client's session: it goes on where it was, steps under way are sent again.
        resumed: bool,
        /// The work that the server waits for from this client, as if it said so now.
        awaits: Option<Ask>,
        /// The last round whose update the server has from this client.
        updated: Option<RoundId>,
    },
    /// The server's no; the connection closes.
    Refused {
        /// For programs.
        code: RefusalCode,
        /// For people.
        reason: String,
    },
    /// Take the round's local steps from global adapter `round - 1`, then send an update.
    Train {
        /// The round to train.
        round: RoundId,
    },
    /// Score global adapter `round` on the held-out examples.
    Evaluate {
        /// The round whose adapter to score.
        round: RoundId,
    },
    /// The client's scores.
    Evaluated {
        /// The round asked about.
        round: RoundId,
        /// Sums over the held-out examples.
        sums: EvalSums,
    },
    /// What became of the client's update.
    Settled {
        /// The update's round.
        round: RoundId,
        /// Whether it is in the global adapter.
        accepted: bool,
        /// Why not, where it is not.
        reason: String,
    },
    /// The run is over.
    Finish {
        /// The global adapter to leave with; wait for it if it has not arrived.
        adapter: RoundId,
        /// Why.
        reason: String,
    },
    /// The sender leaves and reads nothing more.
    Goodbye {
        /// Why.
        reason: String,
    },
    /// The first word of a device that wants to generate. `version` stays the first field in every version to come.
    HelloGenerate {
        /// Protocol the device speaks.
        version: u16,
        /// Base model it holds.
        base: BaseHash,
        /// Blocks in that model.
        blocks: u16,
        /// Its hidden size.
        hidden: u32,
        /// Where the device cuts.
        cut: CutPoint,
        /// Blocks it keeps at the end, beside the final norm and the head: it draws the tokens. Nothing lets the server draw them.
        tail: Option<u16>,
        /// Encoding of hidden states, in both directions.
        encoding: Encoding,
        /// What people call it; identity comes from TLS alone.
        name: String,
    },
    /// A generating server's yes.
    WelcomeGenerate {
        /// Drawn at each start of the server: what it held of any sequence died with the start before.
        start: u64,
        /// The adapters it serves, by name.
        adapters: Vec<String>,
        /// Longest sequence it serves.
        positions_max: u32,
        /// Most sessions that this device may have open.
        sessions_max: u32,
    },
}

/// A message that decodes but says something impossible.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// A text longer than its bound.
    #[error("{message}: {field} of {bytes} B exceeds {bytes_max} B: shorten it")]
    TextTooLong {
        /// The message's name.
        message: &'static str,
        /// The field.
        field: &'static str,
        /// Its length.
        bytes: usize,
        /// Its bound.
        bytes_max: usize,
    },
    /// No parts of encodings, or too many.
    #[error("Hello offers {count} parts of encodings: offer 1 to {ENCODINGS_MAX}")]
    Encodings {
        /// How many were offered.
        count: usize,
    },
    /// A split that is not one.
    #[error("{message} cuts at {cut} and keeps {tail} of {blocks} blocks at the end: lower the cut or the tail")]
    Cut {
        /// The message's name.
        message: &'static str,
        /// The cut.
        cut: CutPoint,
        /// Blocks kept at the end.
        tail: u16,
        /// Blocks in the model.
        blocks: u16,
    },
    /// A model of width zero.
    #[error("{message} says a hidden size of 0: the model's config.json is wrong")]
    Hidden {
        /// The message's name.
        message: &'static str,
    },
    /// An encoding in which nothing is generated, or not at this width.
    #[error("HelloGenerate: {0}")]
    Encoding(#[from] EncodingError),
    /// More of something than there can be, or nothing.
    #[error("WelcomeGenerate says {field} {found}, it must be {least} to {most}: the server is at fault")]
    Welcome {
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// The least it may be.
        least: u64,
        /// The most.
        most: u64,
    },
    /// A client numbered outside the run.
    #[error("Welcome numbers this client {client} of {clients}: the server is at fault")]
    Client {
        /// The index.
        client: u32,
        /// The count.
        clients: u32,
    },
    /// A plan that cannot be carried out.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Scores no evaluation can give.
    #[error("Evaluated says loss {loss_sum} over {scored} with {correct} right: the loss diverged or the peer is at fault")]
    Sums {
        /// The loss claimed.
        loss_sum: f64,
        /// How many were scored.
        scored: u64,
        /// How many were right.
        correct: u64,
    },
}

impl EvalSums {
    /// Adds another set of sums.
    pub fn add(&mut self, other: &Self) {
        self.loss_sum += other.loss_sum;
        self.scored = self.scored.saturating_add(other.scored);
        self.correct = self.correct.saturating_add(other.correct);
    }

    /// Mean loss in nats, where anything was scored.
    pub fn mean_loss(&self) -> Option<f64> {
        (self.scored > 0).then(|| self.loss_sum / self.scored as f64)
    }

    /// Fraction predicted right, where anything was scored.
    pub fn accuracy(&self) -> Option<f64> {
        (self.scored > 0).then(|| self.correct as f64 / self.scored as f64)
    }

    /// Whether some evaluation could have given these sums.
    pub fn is_possible(&self) -> bool {
        self.loss_sum.is_finite() && self.correct <= self.scored
    }
}

impl Message {
    /// The variant's name, for logs and errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "Hello",
            Self::Welcome { .. } => "Welcome",
            Self::Refused { .. } => "Refused",
            Self::Train { .. } => "Train",
            Self::Evaluate { .. } => "Evaluate",
            Self::Evaluated { .. } => "Evaluated",
            Self::Settled { .. } => "Settled",
            Self::Finish { .. } => "Finish",
            Self::Goodbye { .. } => "Goodbye",
            Self::HelloGenerate { .. } => "HelloGenerate",
            Self::WelcomeGenerate { .. } => "WelcomeGenerate",
        }
    }

    /// Checks what can be checked of a message on its own; [`crate::decode`] and [`crate::encode`] both call this.
    pub fn check(&self) -> Result<(), MessageError> {
        match self {
            Self::Hello { blocks, hidden, cut, tail, encodings, name, .. } => {
                self.check_text("name", name, NAME_BYTES_MAX)?;
                if encodings.is_empty() || encodings.len() > ENCODINGS_MAX {
                    return Err(MessageError::Encodings { count: encodings.len() });
                }
                self.check_split((*cut, *tail), *blocks, *hidden)
            }
            Self::HelloGenerate { blocks, hidden, cut, tail, encoding, name, .. } => {
                self.check_text("name", name, NAME_BYTES_MAX)?;
                self.check_split((*cut, *tail), *blocks, *hidden)?;
                encoding.check_generates()?;
                Ok(encoding.check_columns(*hidden)?)
            }
            Self::WelcomeGenerate { adapters, positions_max, sessions_max, .. } => {
                check_welcome("adapters", adapters.len() as u64, (0, ADAPTERS_MAX as u64))?;
                check_welcome("positions_max", (*positions_max).into(), (1, POSITIONS_MAX.into()))?;
                check_welcome("sessions_max", (*sessions_max).into(), (1, u32::MAX.into()))?;
                adapters.iter().try_for_each(|name| self.check_text("adapters", name, NAME_BYTES_MAX))
            }
            Self::Welcome { plan, client, clients, .. } => {
                if client >= clients {
                    return Err(MessageError::Client { client: *client, clients: *clients });
                }
                Ok(plan.validate()?)
            }
            Self::Evaluated { sums, .. } if !sums.is_possible() => {
                let EvalSums { loss_sum, scored, correct } = *sums;
                Err(MessageError::Sums { loss_sum, scored, correct })
            }
            Self::Train { .. } | Self::Evaluate { .. } | Self::Evaluated { .. } => Ok(()),
            Self::Refused { reason, .. } | Self::Settled { reason, .. } | Self::Finish { reason, .. } | Self::Goodbye { reason } => {
                self.check_text("reason", reason, REASON_BYTES_MAX)
            }
        }
    }

    /// A cut and a tail that the model has blocks for.
    fn check_split(&self, (cut, tail): (CutPoint, Option<u16>), blocks: u16, hidden: u32) -> Result<(), MessageError> {
        let (message, tail) = (self.name(), tail.unwrap_or(0));
        if u32::from(cut.0) + u32::from(tail) > u32::from(blocks) {
            return Err(MessageError::Cut { message, cut, tail, blocks });
        }
        if hidden == 0 { Err(MessageError::Hidden { message }) } else { Ok(()) }
    }

    fn check_text(&self, field: &'static str, text: &str, bytes_max: usize) -> Result<(), MessageError> {
        if text.len() <= bytes_max {
            return Ok(());
        }
        Err(MessageError::TextTooLong { message: self.name(), field, bytes: text.len(), bytes_max })
    }
}

fn check_welcome(field: &'static str, found: u64, (least, most): (u64, u64)) -> Result<(), MessageError> {
    if (least..=most).contains(&found) { Ok(()) } else { Err(MessageError::Welcome { field, found, least, most }) }
}

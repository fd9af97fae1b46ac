//! What a run tells whoever watches it: one value per thing that happened, one JSON object a line on disk.

use crate::phases::Phases;
use cutlayer_wire::EvalSums;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Receives events as they happen; must not block.
pub type EventSink = Arc<dyn Fn(Event) + Send + Sync>;

/// A sink that ignores everything.
pub fn no_events() -> EventSink {
    Arc::new(|_| {})
}

/// One thing that happened. Times are wall-clock milliseconds or seconds, sizes bytes, losses nats per scored label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The server accepts clients.
    Listening {
        /// Its address.
        addr: String,
        /// Its identity, 64 hex digits.
        peer_id: String,
    },
    /// A client is in.
    Joined {
        /// Its index in the run.
        client: u32,
        /// Its own name for itself; a label, not an identity.
        name: String,
        /// Its identity, 64 hex digits.
        peer_id: String,
        /// Blocks it runs from the bottom.
        cut: u16,
        /// Blocks it runs from the top; `None` without a head (vanilla split).
        tail: Option<u16>,
        /// Training examples it holds.
        samples: u64,
    },
    /// A client travels in encodings that were found for its link.
    Encodings {
        /// Its index.
        client: u32,
        /// Its name.
        name: String,
        /// Encoding of activations.
        activations: String,
        /// Encoding of gradients.
        gradients: String,
        /// Encoding of adapters.
        adapters: String,
        /// What was chosen and why, in words.
        reason: String,
    },
    /// A device is in, to generate.
    DeviceJoined {
        /// Its identity, 64 hex digits.
        peer: String,
        /// Its own name for itself.
        name: String,
    },
    /// It is gone.
    DeviceLeft {
        /// Its identity, 64 hex digits.
        peer: String,
        /// Why.
        reason: String,
    },
    /// The host of a device is out of reach, and looked for.
    HostAway {
        /// How it was lost.
        reason: String,
    },
    /// It is found again.
    HostBack {
        /// Seconds without it.
        seconds: f64,
        /// Whether it was not started again meanwhile.
        resumed: bool,
    },
    /// A client is gone.
    Left {
        /// Its index.
        client: u32,
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// A connection is lost, and waited for: on the server a client's, on a client the server's.
    Away {
        /// The client's index.
        client: u32,
        /// Its name.
        name: String,
        /// How it was lost.
        reason: String,
    },
    /// It is back.
    Back {
        /// The client's index.
        client: u32,
        /// Its name.
        name: String,
        /// How long it was gone.
        seconds: f64,
        /// Whether both sides still hold all that they held in memory; if not, the round that was under way is taken again.
        resumed: bool,
    },
    /// A run that was interrupted goes on.
    Resumed {
        /// The last round that was committed.
        round: u32,
        /// How often its server was started.
        starts: u32,
    },
    /// A peer was turned away.
    Refused {
        /// Its identity, if it got so far.
        peer: String,
        /// Why.
        reason: String,
    },
    /// Local steps begin.
    RoundStarted {
        /// The round, from 1.
        round: u32,
        /// The clients sampled.
        clients: Vec<u32>,
    },
    /// One training step is done.
    Step {
        /// The client.
        client: u32,
        /// The round.
        round: u32,
        /// The step in the round, from 1.
        step: u32,
        /// Mean loss of the scored labels, if the teller knows it.
        loss: Option<f64>,
        /// Tokens in the batch.
        tokens: u32,
        /// Tokens in the rectangle that the same batch would fill if it were padded to its longest sequence.
        #[serde(default)]
        rectangle: u32,
        /// Labels scored.
        scored: u32,
        /// Bytes of the step from the client.
        bytes_up: u64,
        /// Bytes of the step to the client.
        bytes_down: u64,
        /// Time the step waited for its turn on the server.
        wait_ms: f64,
        /// Time the teller computed.
        compute_ms: f64,
        /// What it computed in that time, where that was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        phases: Option<Phases>,
    },
    /// A client's update arrived.
    Updated {
        /// The client.
        client: u32,
        /// The round.
        round: u32,
        /// Whether it counts.
        accepted: bool,
        /// Why not.
        reason: String,
    },
    /// A round goes on without some of its clients.
    Late {
        /// The round.
        round: u32,
        /// Names of those missing.
        missing: Vec<String>,
        /// How long they were waited for.
        waited_ms: u64,
    },
    /// A new global adapter is on disk.
    Committed {
        /// The round.
        round: u32,
        /// Updates behind it.
        updates: u32,
        /// Its size.
        adapter_bytes: u64,
        /// Time since the round started.
        seconds: f64,
    },
    /// The global adapter of a round on held-out data; round 0 is the starting adapter.
    Evaluated {
        /// The round.
        round: u32,
        /// Mean loss.
        loss: f64,
        /// `exp(loss)`.
        perplexity: f64,
        /// Share of labels guessed right.
        accuracy: f64,
        /// Labels scored.
        scored: u64,
    },
    /// The run is over.
    Finished {
        /// Rounds committed.
        rounds: u32,
        /// Why it ended.
        reason: String,
    },
}

impl Event {
    /// The scores of a round's global adapter; `None` where nothing was scored.
    pub fn evaluated(round: u32, sums: &EvalSums) -> Option<Self> {
        let (loss, accuracy) = (sums.mean_loss()?, sums.accuracy()?);
        // JSON has no infinity.
        Some(Self::Evaluated { round, loss, perplexity: loss.exp().min(f64::MAX), accuracy, scored: sums.scored })
    }
}

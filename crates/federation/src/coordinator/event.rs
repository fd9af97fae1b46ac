//! What a coordinator hears and what it asks for. Plain values: the node owns the sockets and the clock.

use std::fmt;
use std::sync::Arc;

use cutlayer_wire::{AdapterFrame, AdapterState, EvalSums, PeerId, RoundId};

use crate::update::Update;

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A client was welcomed.
    Joined {
        /// Who, as TLS proved.
        peer: PeerId,
        /// Its index in the run: rounds are sampled and folded in this order, not in order of arrival.
        client: u32,
        /// The tensors that it trains itself; empty where the server holds every adapted layer.
        keys: Vec<String>,
    },
    /// A client is gone. To be heard before it is let in again: afterwards, it would take the new session out.
    Left {
        /// Who.
        peer: PeerId,
        /// Why.
        reason: String,
    },
    /// A client's update arrived.
    Updated {
        /// Who sent it.
        peer: PeerId,
        /// The update, not yet believed.
        frame: AdapterFrame,
    },
    /// The answer to [`Action::CollectServerPart`].
    ServerPart {
        /// The round asked about.
        round: RoundId,
        /// What the server trained: for each client apart, or shared. Weights are filled in here.
        updates: Vec<Update>,
    },
    /// A client's scores arrived.
    Evaluated {
        /// Who sent them.
        peer: PeerId,
        /// The adapter scored.
        round: RoundId,
        /// The scores.
        sums: EvalSums,
    },
    /// Time passed. See [`crate::Coordinator::next_deadline_ms`].
    Tick,
    /// End the run with what it has.
    Stop {
        /// Why, as clients will read it.
        reason: String,
    },
}

/// Something the node is to do, in the order given.
///
/// A peer means the session of it that the coordinator last heard join. One that has come back while earlier actions were still being
/// carried out, and whose [`Event::Joined`] is still to be heard, must not get them: it would be sent an adapter twice, or told what
/// became of an update that it did not send.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send global adapter `round`.
    Broadcast {
        /// To whom.
        peers: Vec<PeerId>,
        /// Which: it is [`crate::Coordinator::global`].
        round: RoundId,
    },
    /// Say Train; start the server's part for this client from the global adapter.
    Train {
        /// To whom.
        peer: PeerId,
        /// The round.
        round: RoundId,
    },
    /// Say Evaluate.
    Evaluate {
        /// To whom.
        peer: PeerId,
        /// The adapter to score.
        round: RoundId,
    },
    /// Say Settled: the update is in the global adapter just committed.
    Accept {
        /// To whom.
        peer: PeerId,
        /// The update's round.
        round: RoundId,
    },
    /// Say Settled: the update does not count.
    Refuse {
        /// To whom.
        peer: PeerId,
        /// The update's round.
        round: RoundId,
        /// Why.
        reason: String,
    },
    /// Say Refused and close: this client cannot take part.
    Reject {
        /// To whom.
        peer: PeerId,
        /// Why.
        reason: String,
    },
    /// Hand over what the server trained in the round, as [`Event::ServerPart`].
    CollectServerPart {
        /// The round.
        round: RoundId,
        /// The clients whose updates count, and what they weigh.
        peers: Vec<(PeerId, f64)>,
    },
    /// Make the new global adapter durable. It precedes every word about it to a client.
    Commit {
        /// The round.
        round: RoundId,
        /// The adapter; unchanged where the round was skipped.
        state: Arc<AdapterState>,
        /// What the round was.
        summary: RoundSummary,
    },
    /// Record the scores.
    EvalDone {
        /// The adapter scored.
        round: RoundId,
        /// Over everyone who answered.
        sums: EvalSums,
        /// One by one, in client order.
        per_peer: Vec<(PeerId, EvalSums)>,
    },
    /// Tell people who kept everyone waiting; the run goes on without them.
    Missing {
        /// The round.
        round: RoundId,
        /// What was waited for.
        wait: Wait,
        /// Who did not answer, in client order.
        peers: Vec<PeerId>,
        /// How long they were given.
        waited_ms: u64,
    },
    /// Say Finish to everyone and end.
    Finish {
        /// Why.
        reason: String,
    },
}

/// What a wait was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Updates of a round.
    Updates,
    /// Scores of an evaluation.
    Scores,
}

/// How a round went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoundSummary {
    /// Updates in the global adapter and what they weigh, in client order.
    pub accepted: Vec<(PeerId, f64)>,
    /// Updates that do not count, and why.
    pub refused: Vec<(PeerId, String)>,
    /// Clients that had not answered when the deadline passed.
    pub missing: Vec<PeerId>,
    /// Clients that left during the round, and why.
    pub left: Vec<(PeerId, String)>,
    /// Updates of earlier rounds that arrived since the last commit and were dropped.
    pub late: u32,
    /// Why the shared server's part does not count, where it does not.
    pub server_refused: Option<String>,
    /// Why the global adapter is unchanged, where it is.
    pub skipped: Option<String>,
    /// From the round's first Train to its commit.
    pub took_ms: u64,
}

impl fmt::Display for Wait {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Updates => "updates",
            Self::Scores => "scores",
        })
    }
}

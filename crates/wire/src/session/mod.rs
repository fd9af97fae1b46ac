//! The order of a session: who may say what, when, and how often. One machine per side.
//!
//! A session knows no socket and no clock: the node tells it what was sent and what arrived, and it
//! answers whether that was in order. Content is checked elsewhere: a message by [`crate::decode`], a
//! frame by its limits, an update by the federation's contract.
//!
//! What a round asks of a client is ordered: train 1, evaluate 1, train 2, and so on; the server may skip
//! any. A server that stops waiting moves on, so an answer about something past is *late*: it is counted
//! and dropped, and the session lives. An answer never asked for, or given twice, ends the session.

mod client;
mod server;

use std::fmt;

pub use client::ClientSession;
pub use server::ServerSession;

use crate::frame_header::FrameKind;
use crate::ids::{RoundId, StepId};
use crate::message::{Ask, EvalSums, RefusalCode};

/// What something that arrived in order means.
#[derive(Clone, Debug, PartialEq)]
pub enum SessionEvent {
    /// The client introduced itself: answer Welcome or Refused.
    Hello,
    /// The server took us: wait for adapter 0, or the current one, and for work.
    Welcome,
    /// The server would not have us.
    Refused {
        /// Why.
        code: RefusalCode,
    },
    /// Take the round's steps from global adapter `from`.
    Train {
        /// The round.
        round: RoundId,
        /// The adapter it starts from; wait for it if it has not arrived.
        from: RoundId,
    },
    /// Score global adapter `round`; wait for it if it has not arrived.
    Evaluate {
        /// The round.
        round: RoundId,
    },
    /// The scores that were asked for.
    Evaluated {
        /// The round.
        round: RoundId,
        /// The scores.
        sums: EvalSums,
    },
    /// A step to serve.
    Step {
        /// Whether it trains.
        train: bool,
    },
    /// A step, an update or scores that came before, sent again over a new connection: to be answered as it was, and to count once.
    Again {
        /// The round it is about.
        round: RoundId,
    },
    /// The update that was asked for.
    Update {
        /// The round.
        round: RoundId,
    },
    /// What became of our update.
    Settled {
        /// The round.
        round: RoundId,
        /// Whether it is in the global adapter.
        accepted: bool,
    },
    /// An answer about something past: count it, drop it, say so if it is a step.
    Late {
        /// The round it is about.
        round: RoundId,
    },
    /// The run is over: say Goodbye once this global adapter has arrived.
    Finish {
        /// The adapter to leave with.
        adapter: RoundId,
    },
    /// The peer left: close.
    Goodbye,
}

/// What a session is doing, as its errors name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was said yet.
    Opening,
    /// Hello was said, its answer was not.
    Introduced,
    /// Welcome was said, no work is asked for.
    Idle,
    /// The round is being trained.
    Training(RoundId),
    /// The round's adapter is being scored.
    Evaluating(RoundId),
    /// Finish was said.
    Finishing,
    /// Refused or Goodbye was said.
    Closed,
}

/// Something said out of order: it ends the session it happened in, and that one alone.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// A message that has no place here.
    #[error("{message} has no place while {phase}: close the session")]
    Unexpected {
        /// The message.
        message: &'static str,
        /// What the session was doing.
        phase: Phase,
    },
    /// A peer that wants to generate, where the run trains.
    #[error("HelloGenerate to a server that trains: refuse it, and tell it to go to one that generates")]
    Purpose,
    /// A second Hello.
    #[error("Hello was said twice: a peer introduces itself once a connection")]
    HelloRepeated,
    /// Anything after the end.
    #[error("{message} after the session ended: reconnect to start another")]
    AfterEnd {
        /// What came.
        message: &'static str,
    },
    /// Work asked for in the wrong order.
    #[error("{message} of round {round} was asked for while {phase}: rounds only go forward")]
    Backward {
        /// Train or Evaluate.
        message: &'static str,
        /// Its round.
        round: RoundId,
        /// What the session was doing.
        phase: Phase,
    },
    /// An answer to a question that was not asked.
    #[error("{message} of round {round} was not asked for while {phase}")]
    NotAsked {
        /// What came.
        message: &'static str,
        /// Its round.
        round: RoundId,
        /// What the session was doing.
        phase: Phase,
    },
    /// The same answer again.
    #[error("{message} of round {round} came again: the first one counts")]
    Repeated {
        /// What came.
        message: &'static str,
        /// Its round.
        round: RoundId,
    },
    /// A step whose id says another round or purpose than its header.
    #[error("step {step} says that it {} round {round}", if *train { "trains" } else { "scores" })]
    StepPlace {
        /// The step.
        step: StepId,
        /// The round its header names.
        round: RoundId,
        /// Whether its header says that it trains.
        train: bool,
    },
    /// A step in a round whose update is already in.
    #[error("step {step} came after round {round}'s update: wait for the next round")]
    StepAfterUpdate {
        /// The step.
        step: StepId,
        /// The round.
        round: RoundId,
    },
    /// A step stream that opens with something other than Forward.
    #[error("step {step} opens with a {kind:?} frame: only Forward opens a step")]
    StepKind {
        /// The step.
        step: StepId,
        /// What it opened with.
        kind: FrameKind,
    },
    /// A training step while scoring, or the other way round.
    #[error("step {step} {} while {phase}", if *train { "trains" } else { "does not train" })]
    StepPurpose {
        /// The step.
        step: StepId,
        /// Whether it trains.
        train: bool,
        /// What the session was doing.
        phase: Phase,
    },
    /// The server moved on while the client still worked.
    #[error("round {round} is over, the session is {phase}: drop the round's work")]
    Superseded {
        /// The round that is over.
        round: RoundId,
        /// What the session is doing.
        phase: Phase,
    },
}

impl fmt::Display for Phase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opening => out.write_str("waiting for Hello"),
            Self::Introduced => out.write_str("waiting for Welcome"),
            Self::Idle => out.write_str("waiting for work"),
            Self::Training(round) => write!(out, "training round {round}"),
            Self::Evaluating(round) => write!(out, "evaluating round {round}"),
            Self::Finishing => out.write_str("finishing"),
            Self::Closed => out.write_str("closed"),
        }
    }
}

impl Phase {
    /// Where the phase stands in the order of work: train 1, evaluate 1, train 2; nothing before them.
    fn place(self) -> Option<(RoundId, bool)> {
        match self {
            Self::Training(round) => Some((round, false)),
            Self::Evaluating(round) => Some((round, true)),
            Self::Opening | Self::Introduced | Self::Idle | Self::Finishing | Self::Closed => None,
        }
    }

    /// What a session does that was asked for this.
    fn asked(ask: Ask) -> Self {
        match ask {
            Ask::Train(round) => Self::Training(round),
            Ask::Evaluate(round) => Self::Evaluating(round),
        }
    }

    /// Moves on to `next`, which must lie ahead.
    fn advance(&mut self, message: &'static str, next: Self) -> Result<(), SessionError> {
        let phase = *self;
        match phase {
            Self::Finishing | Self::Closed => return Err(SessionError::AfterEnd { message }),
            Self::Opening | Self::Introduced => {
                return Err(SessionError::Unexpected { message, phase });
            }
            Self::Idle | Self::Training(_) | Self::Evaluating(_) => {}
        }
        let (round, _) = next.place().expect("only work advances a phase");
        if phase.place() >= next.place() || next == Self::Training(RoundId(0)) {
            return Err(SessionError::Backward { message, round, phase });
        }
        *self = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests;

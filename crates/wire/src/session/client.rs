//! The client's side of its one session. It must never believe a server that goes back in time.

use super::{Phase, SessionError, SessionEvent};
use crate::ids::{RoundId, StepId};
use crate::message::Message;

/// The server, as a client orders its words.
#[derive(Clone, Debug)]
pub struct ClientSession {
    phase: Phase,
    next_step: StepId,
    adapter: Option<RoundId>,
    last_update: Option<RoundId>,
    last_evaluated: Option<RoundId>,
    last_settled: Option<RoundId>,
}

impl Default for ClientSession {
    fn default() -> Self {
        Self::new()
    }
}

impl ClientSession {
    /// A connection on which nothing was said.
    pub fn new() -> Self {
        Self { phase: Phase::Opening, next_step: StepId(1), adapter: None, last_update: None, last_evaluated: None, last_settled: None }
    }

    /// What the session is doing.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The global adapter last received.
    pub fn adapter_round(&self) -> Option<RoundId> {
        self.adapter
    }

    /// A message arrived from the server.
    pub fn handle(&mut self, message: &Message) -> Result<SessionEvent, SessionError> {
        let name = message.name();
        match (self.phase, message) {
            (Phase::Closed, _) => Err(SessionError::AfterEnd { message: name }),
            (Phase::Introduced, Message::Welcome { .. }) => {
                self.phase = Phase::Idle;
                Ok(SessionEvent::Welcome)
            }
            // A client that was welcomed can still turn out not to fit the run, until it is first asked for work.
            (Phase::Introduced | Phase::Idle, Message::Refused { code, .. }) => {
                self.phase = Phase::Closed;
                Ok(SessionEvent::Refused { code: *code })
            }
            (_, Message::Goodbye { .. }) => {
                self.phase = Phase::Closed;
                Ok(SessionEvent::Goodbye)
            }
            (_, Message::Train { round }) => {
                self.phase.advance(name, Phase::Training(*round))?;
                Ok(SessionEvent::Train { round: *round, from: round.previous() })
            }
            (_, Message::Evaluate { round }) => {
                self.phase.advance(name, Phase::Evaluating(*round))?;
                Ok(SessionEvent::Evaluate { round: *round })
            }
            (Phase::Idle | Phase::Training(_) | Phase::Evaluating(_) | Phase::Finishing, Message::Settled { round, accepted, .. }) => {
                self.settled(*round, *accepted)
            }
            (Phase::Idle | Phase::Training(_) | Phase::Evaluating(_), Message::Finish { .. }) => {
                self.phase = Phase::Finishing;
                Ok(SessionEvent::Finish)
            }
            (Phase::Finishing, _) => Err(SessionError::AfterEnd { message: name }),
            (
                _,
                Message::Hello { .. }
                | Message::Welcome { .. }
                | Message::Refused { .. }
                | Message::Evaluated { .. }
                | Message::Settled { .. }
                | Message::Finish { .. },
            ) => Err(SessionError::Unexpected { message: name, phase: self.phase }),
        }
    }

    /// A message is about to be sent to the server.
    pub fn sent(&mut self, message: &Message) -> Result<(), SessionError> {
        let name = message.name();
        match (self.phase, message) {
            (Phase::Closed, _) => Err(SessionError::AfterEnd { message: name }),
            (Phase::Opening, Message::Hello { .. }) => {
                self.phase = Phase::Introduced;
                Ok(())
            }
            (_, Message::Hello { .. }) => Err(SessionError::HelloRepeated),
            (_, Message::Goodbye { .. }) => {
                self.phase = Phase::Closed;
                Ok(())
            }
            (_, Message::Evaluated { round, .. }) => {
                self.must_be_doing(*round, Phase::Evaluating(*round))?;
                if self.last_evaluated == Some(*round) {
                    return Err(SessionError::Repeated { message: name, round: *round });
                }
                self.last_evaluated = Some(*round);
                Ok(())
            }
            (
                _,
                Message::Welcome { .. }
                | Message::Refused { .. }
                | Message::Train { .. }
                | Message::Evaluate { .. }
                | Message::Settled { .. }
                | Message::Finish { .. },
            ) => Err(SessionError::Unexpected { message: name, phase: self.phase }),
        }
    }

    /// A fresh id for a step that trains `round`, or scores it; [`SessionError::Superseded`] once the
    /// server has moved on, which is how a slow client learns to drop its work.
    pub fn open_step(&mut self, round: RoundId, train: bool) -> Result<StepId, SessionError> {
        let (doing, answered) =
            if train { (Phase::Training(round), self.last_update) } else { (Phase::Evaluating(round), self.last_evaluated) };
        self.must_be_doing(round, doing)?;
        if answered == Some(round) {
            return Err(SessionError::StepAfterUpdate { step: self.next_step, round });
        }
        let step = self.next_step;
        self.next_step = step.next();
        Ok(step)
    }

    /// The update of `round` is about to be sent.
    pub fn update(&mut self, round: RoundId) -> Result<(), SessionError> {
        self.must_be_doing(round, Phase::Training(round))?;
        if self.last_update == Some(round) {
            return Err(SessionError::Repeated { message: "an update", round });
        }
        self.last_update = Some(round);
        Ok(())
    }

    /// A global adapter arrived that says it is round `round`'s.
    pub fn adapter(&mut self, round: RoundId) -> Result<(), SessionError> {
        let message = "a global adapter";
        match self.phase {
            Phase::Opening | Phase::Introduced => Err(SessionError::Unexpected { message, phase: self.phase }),
            Phase::Closed => Err(SessionError::AfterEnd { message }),
            _ if self.adapter.is_some_and(|last| round <= last) => Err(SessionError::Repeated { message, round }),
            _ => {
                self.adapter = Some(round);
                Ok(())
            }
        }
    }

    fn settled(&mut self, round: RoundId, accepted: bool) -> Result<SessionEvent, SessionError> {
        let message = "Settled";
        if self.last_settled.is_some_and(|last| round <= last) {
            return Err(SessionError::Repeated { message, round });
        }
        if self.last_update.is_none_or(|last| round > last) {
            return Err(SessionError::NotAsked { message, round, phase: self.phase });
        }
        self.last_settled = Some(round);
        Ok(SessionEvent::Settled { round, accepted })
    }

    fn must_be_doing(&self, round: RoundId, doing: Phase) -> Result<(), SessionError> {
        match self.phase {
            phase if phase == doing => Ok(()),
            Phase::Closed => Err(SessionError::AfterEnd { message: "work" }),
            phase => Err(SessionError::Superseded { round, phase }),
        }
    }
}

//! The client's side of its one session. It must never believe a server that goes back in time.

use super::{Phase, SessionError, SessionEvent};
use crate::ids::{RoundId, StepId};
use crate::message::{Ask, Message};

/// The server, as a client orders its words.
#[derive(Clone, Debug)]
pub struct ClientSession {
    phase: Phase,
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
        Self { phase: Phase::Opening, adapter: None, last_update: None, last_evaluated: None, last_settled: None }
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
            (Phase::Introduced, Message::Welcome { awaits, updated, .. }) => {
                self.phase = Phase::Idle;
                self.last_update = *updated;
                self.asked(*awaits)?;
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
            (Phase::Idle | Phase::Training(_) | Phase::Evaluating(_), Message::Finish { adapter, .. }) => {
                self.phase = Phase::Finishing;
                Ok(SessionEvent::Finish { adapter: *adapter })
            }
            (Phase::Finishing, _) => Err(SessionError::AfterEnd { message: name }),
            (
                _,
                Message::Hello { .. }
                | Message::Welcome { .. }
                | Message::Refused { .. }
                | Message::Evaluated { .. }
                | Message::Settled { .. }
                | Message::Finish { .. }
                | Message::HelloGenerate { .. }
                | Message::WelcomeGenerate { .. },
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
                | Message::Finish { .. }
                | Message::HelloGenerate { .. }
                | Message::WelcomeGenerate { .. },
            ) => Err(SessionError::Unexpected { message: name, phase: self.phase }),
        }
    }

    /// The same session over a new connection, whose Welcome said that the server still knows it and waits for `awaits`. A session that
    /// was told to finish is told again.
    pub fn resume(&mut self, awaits: Option<Ask>) -> Result<(), SessionError> {
        if self.phase == Phase::Finishing {
            self.phase = Phase::Idle;
        }
        self.asked(awaits)
    }

    /// The work that the server waits for now: what is being done, or something ahead of it that was not heard.
    pub fn asked_for(&self) -> Option<Ask> {
        match self.phase {
            Phase::Training(round) => Some(Ask::Train(round)),
            Phase::Evaluating(round) => Some(Ask::Evaluate(round)),
            Phase::Opening | Phase::Introduced | Phase::Idle | Phase::Finishing | Phase::Closed => None,
        }
    }

    /// Whether the update, or the scores, that `ask` wants were sent.
    pub fn answered(&self, ask: Ask) -> bool {
        match ask {
            Ask::Train(round) => self.last_update == Some(round),
            Ask::Evaluate(round) => self.last_evaluated == Some(round),
        }
    }

    fn asked(&mut self, awaits: Option<Ask>) -> Result<(), SessionError> {
        match awaits.map(Phase::asked) {
            // A server that waits for nothing may have gone on: its next word says so.
            None => Ok(()),
            Some(next) if next == self.phase => Ok(()),
            Some(next) => self.phase.advance("Welcome", next),
        }
    }

    /// The id of a step that trains `round`, or scores it; [`SessionError::Superseded`] once the
    /// server has moved on, which is how a slow client learns to drop its work.
    pub fn open_step(&mut self, round: RoundId, train: bool, index: u32, micro: u32) -> Result<StepId, SessionError> {
        let (doing, answered) =
            if train { (Phase::Training(round), self.last_update) } else { (Phase::Evaluating(round), self.last_evaluated) };
        self.must_be_doing(round, doing)?;
        let step = StepId::new(round, train, index, micro);
        if answered == Some(round) {
            return Err(SessionError::StepAfterUpdate { step, round });
        }
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
            return Ok(SessionEvent::Again { round });
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

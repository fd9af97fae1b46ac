//! The server's side of one session. It must never answer for another client's session.

use super::{Phase, SessionError, SessionEvent};
use crate::frame_header::{FrameFlags, FrameHeader, FrameKind};
use crate::ids::{RoundId, StepId};
use crate::message::{Ask, Message};

/// One client, as the server orders its words.
#[derive(Clone, Debug)]
pub struct ServerSession {
    phase: Phase,
    last_step: Option<StepId>,
    last_update: Option<RoundId>,
    last_evaluated: Option<RoundId>,
    late: u64,
    heard: bool,
}

impl Default for ServerSession {
    fn default() -> Self {
        Self::new()
    }
}

impl ServerSession {
    /// A connection on which nothing was said.
    pub fn new() -> Self {
        Self { phase: Phase::Opening, last_step: None, last_update: None, last_evaluated: None, late: 0, heard: false }
    }

    /// What the session is doing.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Answers that came late and were dropped.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// A message arrived from the client.
    pub fn handle(&mut self, message: &Message) -> Result<SessionEvent, SessionError> {
        let name = message.name();
        self.heard |= self.is_welcomed();
        match (self.phase, message) {
            (Phase::Closed, _) => Err(SessionError::AfterEnd { message: name }),
            (Phase::Opening, Message::Hello { .. }) => {
                self.phase = Phase::Introduced;
                Ok(SessionEvent::Hello)
            }
            (_, Message::Hello { .. }) => Err(SessionError::HelloRepeated),
            // Still opening: what follows is a Refused.
            (Phase::Opening, Message::HelloGenerate { .. }) => Err(SessionError::Purpose),
            (Phase::Opening, _) => self.unexpected(name),
            (_, Message::Goodbye { .. }) => {
                self.phase = Phase::Closed;
                Ok(SessionEvent::Goodbye)
            }
            (_, Message::Evaluated { round, .. }) if self.last_evaluated.is_some_and(|last| *round <= last) => {
                Ok(SessionEvent::Again { round: *round })
            }
            (_, Message::Evaluated { round, sums }) => {
                let now = Phase::Evaluating(*round);
                let late = self.is_late(name, now)?;
                self.last_evaluated = Some(*round);
                if late {
                    return Ok(SessionEvent::Late { round: *round });
                }
                Ok(SessionEvent::Evaluated { round: *round, sums: *sums })
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
            ) => self.unexpected(name),
        }
    }

    /// A message is about to be sent to the client.
    pub fn sent(&mut self, message: &Message) -> Result<(), SessionError> {
        let name = message.name();
        match (self.phase, message) {
            (Phase::Closed, _) => Err(SessionError::AfterEnd { message: name }),
            (Phase::Introduced, Message::Welcome { .. }) => {
                self.phase = Phase::Idle;
                Ok(())
            }
            // A Hello that cannot even be decoded is refused too, and so is one that was welcomed too soon: whether a client fits
            // the run is the federation's to say, which hears of it after the Welcome and before the first work.
            (Phase::Opening | Phase::Introduced | Phase::Idle, Message::Refused { .. }) | (_, Message::Goodbye { .. }) => {
                self.phase = Phase::Closed;
                Ok(())
            }
            (_, Message::Train { round }) => self.phase.advance(name, Phase::Training(*round)),
            (_, Message::Evaluate { round }) => self.phase.advance(name, Phase::Evaluating(*round)),
            (Phase::Idle | Phase::Training(_) | Phase::Evaluating(_) | Phase::Finishing, Message::Settled { .. }) => Ok(()),
            (Phase::Idle | Phase::Training(_) | Phase::Evaluating(_), Message::Finish { .. }) => {
                self.phase = Phase::Finishing;
                Ok(())
            }
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
            ) => self.unexpected(name),
        }
    }

    /// The last round whose update came.
    pub fn updated(&self) -> Option<RoundId> {
        self.last_update
    }

    /// Whether the client can resume this session: it said something since its Welcome, so it heard that. One that did not may hold
    /// the session that it had before this one, at the same start of the server: it has to begin anew, and has lost nothing.
    pub fn is_resumable(&self) -> bool {
        self.heard
    }

    /// What is still owed by the client: the work asked for, unless its answer came.
    pub fn awaits(&self) -> Option<Ask> {
        match self.phase {
            Phase::Training(round) => (self.last_update != Some(round)).then_some(Ask::Train(round)),
            Phase::Evaluating(round) => (self.last_evaluated != Some(round)).then_some(Ask::Evaluate(round)),
            Phase::Opening | Phase::Introduced | Phase::Idle | Phase::Finishing | Phase::Closed => None,
        }
    }

    /// The client is back over a new connection, which said Hello and heard Welcome: the session goes on. One that had been told to
    /// finish has to be told again.
    pub fn resume(&mut self) {
        if matches!(self.phase, Phase::Finishing | Phase::Opening | Phase::Introduced) {
            self.phase = Phase::Idle;
        }
    }

    /// A step stream was opened with this header: [`SessionEvent::Step`] is to be served, [`SessionEvent::Again`] to be answered
    /// as before, or served if it never was, [`SessionEvent::Late`] to be answered with a Failed frame.
    ///
    /// Streams must be handed over in the order in which they were opened.
    pub fn step(&mut self, header: &FrameHeader) -> Result<SessionEvent, SessionError> {
        let FrameHeader { kind, step, round, flags, .. } = *header;
        if kind != FrameKind::Forward {
            return Err(SessionError::StepKind { step, kind });
        }
        self.must_be_joined("a step")?;
        self.heard = true;
        let train = flags.has(FrameFlags::TRAIN);
        if step.round() != round || step.trains() != train {
            return Err(SessionError::StepPlace { step, round, train });
        }
        let again = self.last_step.is_some_and(|last| step <= last);
        self.last_step = self.last_step.max(Some(step));
        let asked = if train { Phase::Training(round) } else { Phase::Evaluating(round) };
        if self.phase != asked && self.phase.place().is_some_and(|(now, _)| now == round) {
            // Train r comes before Evaluate r, so a straggling training step of r is late, not wrong.
            if train {
                self.late += 1;
                return Ok(SessionEvent::Late { round });
            }
            return Err(SessionError::StepPurpose { step, train, phase: self.phase });
        }
        if self.is_late("a step", asked)? {
            return Ok(SessionEvent::Late { round });
        }
        let answered = if train { self.last_update } else { self.last_evaluated };
        if answered.is_some_and(|last| last >= round) {
            return Err(SessionError::StepAfterUpdate { step, round });
        }
        Ok(if again { SessionEvent::Again { round } } else { SessionEvent::Step { train } })
    }

    /// An adapter arrived that says it is the update of `round`.
    pub fn update(&mut self, round: RoundId) -> Result<SessionEvent, SessionError> {
        let message = "an update";
        self.must_be_joined(message)?;
        self.heard = true;
        if self.last_update.is_some_and(|last| round <= last) {
            return Ok(SessionEvent::Again { round });
        }
        let late = self.is_late(message, Phase::Training(round))?;
        self.last_update = Some(round);
        if late {
            return Ok(SessionEvent::Late { round });
        }
        Ok(SessionEvent::Update { round })
    }

    /// Whether an answer to `asked` is past; one that was never asked for is an error.
    fn is_late(&mut self, message: &'static str, asked: Phase) -> Result<bool, SessionError> {
        let (round, _) = asked.place().expect("only work is answered");
        let phase = self.phase;
        let not_asked = Err(SessionError::NotAsked { message, round, phase });
        let late = match phase {
            Phase::Training(_) | Phase::Evaluating(_) if asked.place() > phase.place() => {
                return not_asked;
            }
            Phase::Training(_) | Phase::Evaluating(_) => asked != phase,
            Phase::Finishing => true,
            Phase::Opening | Phase::Introduced | Phase::Idle | Phase::Closed => return not_asked,
        };
        self.late += u64::from(late);
        Ok(late)
    }

    fn is_welcomed(&self) -> bool {
        !matches!(self.phase, Phase::Opening | Phase::Introduced)
    }

    fn must_be_joined(&self, message: &'static str) -> Result<(), SessionError> {
        match self.phase {
            Phase::Opening | Phase::Introduced => self.unexpected(message),
            Phase::Closed => Err(SessionError::AfterEnd { message }),
            Phase::Idle | Phase::Training(_) | Phase::Evaluating(_) | Phase::Finishing => Ok(()),
        }
    }

    fn unexpected<T>(&self, message: &'static str) -> Result<T, SessionError> {
        Err(SessionError::Unexpected { message, phase: self.phase })
    }
}

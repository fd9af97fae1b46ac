//! A client: wire's session machine, a toy model, and a life of connections and processes.
//!
//! It knows no network and no clock: it hears of things and answers with effects. One that is honest must
//! never find the server out of order; that is asserted here. What it does when it is asked is in `work.rs`.

use std::collections::VecDeque;

use cutlayer_wire::{
    AdapterFrame, AdapterLimits, AdapterState, Ask, ClientSession, CutPoint, Encoding, EncodingPart, Message, PROTOCOL_VERSION, Resume,
    RoundId, RunId, SessionEvent, StepId,
};

use crate::bytes::{Lane, Packet, read_adapter, read_control};
use crate::network::Connection;
use crate::random::Random;
use crate::scenario::{ClientPlan, Scenario, Temper};
use crate::toy::{BASE, HIDDEN, LAYERS, VALUES};
use crate::work::{Doing, Mind, Saved};

/// Connections that a client tries before it gives up.
pub const ATTEMPTS_MAX: u32 = 150;
/// The longest wait between two of them.
pub const BACKOFF_MS: u64 = 600;
/// The longest before the first after a loss.
const FIRST_MS: u64 = 60;

/// Something that a client wants done.
#[derive(Clone, Debug)]
pub enum Effect {
    Connect {
        after_ms: u64,
    },
    Send {
        connection: Connection,
        packet: Packet,
    },
    /// Call [`Client::woken`] with the same life.
    Wake {
        after_ms: u64,
        life: u32,
    },
    Close {
        connection: Connection,
        graceful: bool,
    },
    Note(String),
}

/// How it ended for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The server said that the run is over.
    Told,
    /// The server said that it does not fit the run.
    Refused,
    /// It could not connect any more.
    GaveUp,
}

pub struct Client {
    pub index: usize,
    pub plan: ClientPlan,
    pub connection: Option<Connection>,
    pub ending: Option<Ending>,
    pub accepted: Vec<RoundId>,
    pub superseded: u32,
    /// Updates and scores that were sent again.
    pub sent_again: u32,
    pub(crate) seed: u64,
    pub(crate) eval_steps: u32,
    pub(crate) run: cutlayer_wire::Plan,
    pub(crate) encodings: (Encoding, Encoding),
    /// The number that the server gave it.
    pub(crate) number: u32,
    pub(crate) session: ClientSession,
    /// While this connection's Welcome is awaited; it becomes the session unless the server still knows that.
    handshake: Option<ClientSession>,
    /// Who welcomed the session.
    welcomed: Option<RunId>,
    /// Heard, not yet taken in.
    words: VecDeque<Message>,
    /// Taken in, not yet done.
    orders: VecDeque<SessionEvent>,
    pub(crate) adapters: VecDeque<AdapterFrame>,
    pub(crate) own: AdapterState,
    pub(crate) doing: Doing,
    /// Steps under way whose answers nobody waits for any more.
    pub(crate) dropped: Vec<StepId>,
    /// What was last answered, and to what: an answer that was lost is sent again.
    pub(crate) answer: Option<(Ask, Vec<Packet>)>,
    pub(crate) mind: Mind,
    /// The client's disk.
    pub(crate) saved: Option<Saved>,
    /// Processes so far.
    pub(crate) process: u32,
    /// Wakes of an earlier life mean nothing.
    pub(crate) life: u32,
    attempts: u32,
    pub(crate) random: Random,
    pub(crate) effects: Vec<Effect>,
}

impl Client {
    pub fn new(index: usize, scenario: &Scenario, random: Random) -> Self {
        Self {
            index,
            plan: scenario.clients[index],
            connection: None,
            ending: None,
            accepted: Vec::new(),
            superseded: 0,
            sent_again: 0,
            seed: scenario.seed,
            eval_steps: scenario.eval_steps,
            run: scenario.plan.clone(),
            encodings: (scenario.activations, scenario.gradients),
            number: 0,
            session: ClientSession::new(),
            handshake: None,
            welcomed: None,
            words: VecDeque::new(),
            orders: VecDeque::new(),
            adapters: VecDeque::new(),
            own: AdapterState::new(),
            doing: Doing::Nothing,
            dropped: Vec::new(),
            answer: None,
            mind: Mind::default(),
            saved: None,
            process: 0,
            life: 0,
            attempts: 0,
            random,
            effects: Vec::new(),
        }
    }

    pub fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    fn is_honest(&self) -> bool {
        self.plan.temper != Temper::Nonsense
    }

    /// A connection stands: the first word is ours. It says what is still held in memory.
    pub fn connected(&mut self, connection: Connection) {
        self.connection = Some(connection);
        self.attempts += 1;
        let name = if self.plan.temper == Temper::Foreign { "foreign" } else { "client" };
        let resume = self.welcomed.map(|id| Resume { id, holds: self.session.adapter_round() });
        let hello = Message::Hello {
            version: PROTOCOL_VERSION,
            base: BASE,
            blocks: LAYERS,
            hidden: HIDDEN,
            cut: CutPoint(self.plan.cut),
            tail: None,
            encodings: EncodingPart::ALL.to_vec(),
            samples: 1,
            eval_samples: 1,
            name: name.into(),
            resume,
        };
        let mut handshake = ClientSession::new();
        handshake.sent(&hello).expect("Hello comes first");
        self.handshake = Some(handshake);
        self.send(Packet::control(&hello));
    }

    /// There is no connection any more, or none came about. What the session knows is kept; what was heard over that connection and
    /// not taken in is said again over the next.
    pub fn disconnected(&mut self) {
        let first = self.connection.take().is_some();
        self.attempts += u32::from(!first);
        self.handshake = None;
        self.life += 1;
        self.words.clear();
        self.adapters.clear();
        self.dropped.clear();
        self.orders.retain(|order| matches!(order, SessionEvent::Settled { .. }));
        if self.ending.is_some() {
            return;
        }
        if self.attempts >= ATTEMPTS_MAX {
            self.ending = Some(Ending::GaveUp);
            return;
        }
        let at_most_ms = if first { self.random.pick(&[5, FIRST_MS]) } else { BACKOFF_MS };
        let after_ms = self.random.between(0, at_most_ms);
        self.effects.push(Effect::Connect { after_ms });
    }

    /// The process is killed: only what is on its disk is left.
    pub fn died(&mut self) {
        self.connection = None;
        self.handshake = None;
        self.life += 1;
        self.process += 1;
        self.words.clear();
        self.forget();
        self.adapters.clear();
        self.dropped.clear();
        self.mind = self.saved.as_ref().map(|saved| saved.end.unwrap_or(saved.start)).unwrap_or_default();
    }

    /// The session is over: the next begins with nothing.
    fn forget(&mut self) {
        self.session = ClientSession::new();
        self.welcomed = None;
        self.orders.clear();
        self.own.clear();
        self.doing = Doing::Nothing;
        self.answer = None;
    }

    pub fn arrived(&mut self, packet: &Packet) {
        let outcome = match packet.lane {
            Lane::Control => self.hear(&packet.bytes),
            Lane::Adapter => read_adapter(&packet.bytes, &AdapterLimits::for_values(VALUES)).map(|frame| self.adapters.push_back(frame)),
            Lane::Step => self.answered(&packet.bytes),
        };
        self.go_on(outcome);
    }

    pub fn woken(&mut self, life: u32) {
        if life == self.life {
            let outcome = self.computed();
            self.go_on(outcome);
        }
    }

    fn go_on(&mut self, outcome: Result<(), String>) {
        let outcome = outcome.and_then(|()| self.follow());
        if let Err(trouble) = outcome {
            assert!(!self.is_honest(), "client {} is honest, but: {trouble}", self.index);
            self.effects.push(Effect::Note(format!("gives this connection up: {trouble}")));
            self.forget();
            self.close(false);
            self.disconnected();
        }
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), String> {
        let message = read_control(bytes)?;
        if let Some(handshake) = self.handshake.take() {
            return self.introduced(handshake, &message);
        }
        let idle = matches!(message, Message::Train { .. } | Message::Evaluate { .. });
        if self.plan.temper == Temper::Silent && idle {
            // It hears, so that its session is in order, and does nothing.
            return self.session.handle(&message).map(drop).map_err(|error| error.to_string());
        }
        if self.plan.eager {
            let order = self.session.handle(&message).map_err(|error| error.to_string())?;
            self.orders.push_back(order);
        } else {
            self.words.push_back(message);
        }
        Ok(())
    }

    /// Welcome, or what came in its place.
    fn introduced(&mut self, mut handshake: ClientSession, message: &Message) -> Result<(), String> {
        let event = handshake.handle(message).map_err(|error| error.to_string())?;
        let Message::Welcome { client, plan, id, resumed, awaits, .. } = message else {
            self.forget();
            self.session = handshake;
            self.orders.push_back(event);
            return Ok(());
        };
        if *resumed {
            assert_eq!(self.welcomed, Some(*id), "a server knows only the sessions that it welcomed");
            self.session.resume(*awaits).map_err(|error| error.to_string())?;
        } else {
            self.forget();
            self.session = handshake;
        }
        (self.number, self.run, self.welcomed) = (*client, plan.clone(), Some(*id));
        self.effects.push(Effect::Note(format!("is welcome as number {client}, resumed {resumed}, awaits {awaits:?}")));
        if self.plan.temper != Temper::Silent {
            self.take_up(*awaits);
        }
        Ok(())
    }

    /// Goes on where the session is: with what is being done, with an answer that was lost, or with something that was not heard.
    fn take_up(&mut self, awaits: Option<Ask>) {
        let ask = self.session.asked_for();
        if ask.is_some() && self.doing.ask() == ask {
            return self.again();
        }
        self.doing = Doing::Nothing;
        let Some(ask) = ask else { return };
        if self.session.answered(ask) {
            if awaits == Some(ask)
                && let Some((_, packets)) = self.answer.clone().filter(|(answered, _)| *answered == ask)
            {
                self.sent_again += 1;
                packets.into_iter().for_each(|packet| self.send(packet));
            }
            return;
        }
        self.orders.push_back(match ask {
            Ask::Train(round) => SessionEvent::Train { round, from: round.previous() },
            Ask::Evaluate(round) => SessionEvent::Evaluate { round },
        });
    }

    /// Takes the next thing to do, until there is something to wait for.
    fn follow(&mut self) -> Result<(), String> {
        loop {
            if self.connection.is_none() || self.handshake.is_some() {
                return Ok(());
            }
            if let Some(from) = self.doing.needs() {
                if !self.adopt(from)? {
                    return Ok(());
                }
                self.adopted();
            }
            if !matches!(self.doing, Doing::Nothing) || self.connection.is_none() {
                return Ok(());
            }
            let order = if let Some(order) = self.orders.pop_front() {
                order
            } else if let Some(word) = self.words.pop_front() {
                self.session.handle(&word).map_err(|error| error.to_string())?
            } else {
                return Ok(());
            };
            self.obey(order);
        }
    }

    fn obey(&mut self, order: SessionEvent) {
        match order {
            SessionEvent::Train { round, .. } => self.begin(Ask::Train(round)),
            SessionEvent::Evaluate { round } => self.begin(Ask::Evaluate(round)),
            SessionEvent::Settled { round, accepted } => {
                self.accepted.extend(accepted.then_some(round));
                self.effects.push(Effect::Note(format!("hears that round {round} settled: {accepted}")));
            }
            SessionEvent::Finish { adapter } => self.doing = Doing::Leaving(adapter),
            SessionEvent::Refused { .. } => {
                self.ending = Some(Ending::Refused);
                self.close(true);
                self.disconnected();
            }
            SessionEvent::Goodbye => {
                self.forget();
                self.close(true);
                self.disconnected();
            }
            SessionEvent::Again { round } => self.effects.push(Effect::Note(format!("hears again of round {round}"))),
            other => unreachable!("a client does not hear {other:?}"),
        }
    }

    /// The final adapter is here.
    pub(crate) fn leave(&mut self) {
        self.ending = Some(Ending::Told);
        let goodbye = Message::Goodbye { reason: "the run is over".into() };
        self.session.sent(&goodbye).expect("a session can be left");
        self.send(Packet::control(&goodbye));
        self.close(true);
        self.disconnected();
    }

    pub(crate) fn send(&mut self, packet: Packet) {
        let connection = self.connection.expect("only a connected client sends");
        self.effects.push(Effect::Send { connection, packet });
    }

    fn close(&mut self, graceful: bool) {
        let connection = self.connection.expect("only a connected client closes");
        self.effects.push(Effect::Close { connection, graceful });
    }
}

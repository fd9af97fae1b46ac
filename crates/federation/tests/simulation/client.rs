//! A client: wire's session machine, a toy model, and a life of connections.
//!
//! It knows no network and no clock: it hears of things and answers with effects. One that is honest must
//! never find the server out of order; that is asserted here.

use std::collections::VecDeque;

use cutlayer_wire::{
    AdapterFrame, AdapterLimits, AdapterState, ClientSession, CutPoint, Encoding, EncodingPart, EvalSums, Frame, FrameFlags, FrameHeader,
    FrameKind, FrameLimits, Message, PROTOCOL_VERSION, RoundId, SessionError, SessionEvent, Weighting,
};

use crate::bytes::{Lane, Packet, read_adapter, read_control, read_frame};
use crate::mischief;
use crate::network::Connection;
use crate::random::Random;
use crate::scenario::{ClientPlan, Scenario, Temper};
use crate::toy::{self, At, BASE, HIDDEN, LAYERS, VALUES};

/// Connections that a client tries before it gives up.
const ATTEMPTS_MAX: u32 = 30;
/// The longest wait between two of them.
const BACKOFF_MS: u64 = 600;

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
    /// It could not connect any more.
    GaveUp,
}

/// What a client was asked to do.
#[derive(Clone, Debug)]
struct Work {
    round: RoundId,
    from: RoundId,
    train: bool,
    sums: EvalSums,
    sequences: u64,
    index: u32,
}

/// What a client is in the middle of.
#[derive(Clone, Debug)]
enum Doing {
    Nothing,
    /// The adapter is not here yet.
    Adopting(Work),
    /// Half a step is computed.
    Computing(Work),
    /// The server has the step with this header.
    Waiting(Work, FrameHeader),
}

pub struct Client {
    pub index: usize,
    pub plan: ClientPlan,
    pub connection: Option<Connection>,
    pub ending: Option<Ending>,
    pub accepted: Vec<RoundId>,
    pub superseded: u32,
    seed: u64,
    eval_steps: u32,
    run: cutlayer_wire::Plan,
    encodings: (Encoding, Encoding),
    /// The number that the server gave it.
    number: u32,
    session: ClientSession,
    /// Heard, not yet taken in.
    words: VecDeque<Message>,
    /// Taken in, not yet done.
    orders: VecDeque<SessionEvent>,
    adapters: VecDeque<AdapterFrame>,
    own: AdapterState,
    doing: Doing,
    /// Wakes of an earlier life mean nothing.
    life: u32,
    attempts: u32,
    random: Random,
    effects: Vec<Effect>,
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
            seed: scenario.seed,
            eval_steps: scenario.eval_steps,
            run: scenario.plan.clone(),
            encodings: (scenario.activations, scenario.gradients),
            number: 0,
            session: ClientSession::new(),
            words: VecDeque::new(),
            orders: VecDeque::new(),
            adapters: VecDeque::new(),
            own: AdapterState::new(),
            doing: Doing::Nothing,
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
        matches!(self.plan.temper, Temper::Honest | Temper::Silent)
    }

    /// A connection stands: the first word is ours.
    pub fn connected(&mut self, connection: Connection) {
        self.connection = Some(connection);
        self.session = ClientSession::new();
        self.attempts += 1;
        let name = if self.plan.temper == Temper::Foreign { "foreign" } else { "client" };
        self.say(Message::Hello {
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
            resume: None,
        });
    }

    /// There is no connection any more, or none came about; whatever was under way is lost.
    pub fn disconnected(&mut self) {
        self.attempts += u32::from(self.connection.is_none());
        self.forget();
        if self.ending.is_some() {
            return;
        }
        if self.attempts >= ATTEMPTS_MAX {
            self.ending = Some(Ending::GaveUp);
            return;
        }
        let after_ms = self.random.between(1, BACKOFF_MS);
        self.effects.push(Effect::Connect { after_ms });
    }

    /// Everything of this life is gone.
    pub fn forget(&mut self) {
        self.connection = None;
        self.life += 1;
        self.words.clear();
        self.orders.clear();
        self.adapters.clear();
        self.own.clear();
        self.doing = Doing::Nothing;
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
            self.close(false);
            self.disconnected();
        }
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), String> {
        let message = read_control(bytes)?;
        let idle = matches!(message, Message::Train { .. } | Message::Evaluate { .. });
        if self.plan.temper == Temper::Silent && idle {
            // It hears, so that its session is in order, and does nothing.
            return self.take_in(&message).map(drop);
        }
        if self.plan.eager {
            let order = self.take_in(&message)?;
            self.orders.push_back(order);
        } else {
            self.words.push_back(message);
        }
        Ok(())
    }

    /// Lets the session judge a word.
    fn take_in(&mut self, message: &Message) -> Result<SessionEvent, String> {
        let event = self.session.handle(message).map_err(|error| error.to_string())?;
        if let Message::Welcome { client, plan, .. } = message {
            self.number = *client;
            self.run = plan.clone();
        }
        Ok(event)
    }

    /// Takes the next thing to do, until there is something to wait for.
    fn follow(&mut self) -> Result<(), String> {
        loop {
            if let Doing::Adopting(work) = &self.doing {
                let from = work.from;
                if !self.adopt(from)? {
                    return Ok(());
                }
                self.start_step();
            }
            if !matches!(self.doing, Doing::Nothing) || self.connection.is_none() {
                return Ok(());
            }
            let order = if let Some(order) = self.orders.pop_front() {
                order
            } else if let Some(word) = self.words.pop_front() {
                self.take_in(&word)?
            } else {
                return Ok(());
            };
            self.obey(order);
        }
    }

    fn obey(&mut self, order: SessionEvent) {
        let work = |round, from, train| Work { round, from, train, sums: EvalSums::default(), sequences: 0, index: 0 };
        match order {
            SessionEvent::Train { round, from } => self.doing = Doing::Adopting(work(round, from, true)),
            SessionEvent::Evaluate { round } => self.doing = Doing::Adopting(work(round, round, false)),
            SessionEvent::Settled { round, accepted } => {
                self.accepted.extend(accepted.then_some(round));
                self.effects.push(Effect::Note(format!("hears that round {round} settled: {accepted}")));
            }
            SessionEvent::Finish { .. } => {
                self.ending = Some(Ending::Told);
                self.say(Message::Goodbye { reason: "the run is over".into() });
                self.close(true);
                self.forget();
            }
            SessionEvent::Refused { .. } | SessionEvent::Goodbye => {
                self.close(true);
                self.disconnected();
            }
            SessionEvent::Welcome => self.effects.push(Effect::Note(format!("is welcome as number {}", self.number))),
            other => unreachable!("a client does not hear {other:?}"),
        }
    }

    /// Installs the newest adapter that `from` needs, if it is here.
    fn adopt(&mut self, from: RoundId) -> Result<bool, String> {
        while self.session.adapter_round().is_none_or(|have| have < from) {
            let Some(frame) = self.adapters.pop_front() else { return Ok(false) };
            self.session.adapter(frame.round).map_err(|error| error.to_string())?;
            assert_eq!(frame.state.keys().cloned().collect::<Vec<_>>(), toy::keys(0..self.plan.cut), "a client is sent its own layers");
            self.own = frame.state;
        }
        Ok(true)
    }

    /// Computes the first half of a step, or what follows the last.
    fn start_step(&mut self) {
        if let Doing::Adopting(work) = std::mem::replace(&mut self.doing, Doing::Nothing) {
            self.compute(work);
        }
    }

    fn compute(&mut self, work: Work) {
        self.doing = Doing::Computing(work);
        let after_ms = self.random.between(0, self.plan.compute_ms);
        self.effects.push(Effect::Wake { after_ms, life: self.life });
    }

    fn at(&self, work: &Work) -> At {
        At { seed: self.seed, client: self.number, round: work.round, index: work.index }
    }

    /// Half a step, or the whole work, is computed: send it.
    fn computed(&mut self) -> Result<(), String> {
        if self.plan.temper == Temper::Nonsense {
            let stray = mischief::stray(&mut self.random);
            stray.into_iter().for_each(|packet| self.send(packet));
        }
        let Doing::Computing(work) = std::mem::replace(&mut self.doing, Doing::Nothing) else { return Ok(()) };
        let steps = if work.train { self.run.local_steps } else { self.eval_steps };
        let sent = if work.index < steps {
            self.open_step(work)
        } else if work.train {
            self.send_update(&work)
        } else {
            let scores = Message::Evaluated { round: work.round, sums: work.sums };
            self.session.sent(&scores).map(|()| self.send(Packet::control(&scores)))
        };
        match sent {
            Ok(()) => Ok(()),
            Err(SessionError::Superseded { round, .. }) => {
                self.superseded += 1;
                self.effects.push(Effect::Note(format!("drops round {round}: the server went on")));
                Ok(())
            }
            Err(other) => Err(other.to_string()),
        }
    }

    fn open_step(&mut self, mut work: Work) -> Result<(), SessionError> {
        let step = self.session.open_step(work.round, work.train, work.index, 0)?;
        let lengths = toy::lengths(self.at(&work));
        let values = toy::activations(&self.own, self.at(&work));
        let tokens: u32 = lengths.iter().sum();
        work.sequences += lengths.len() as u64;
        let flags = FrameFlags::NONE.with_if(FrameFlags::TRAIN, work.train).with_if(FrameFlags::NEEDS_GRADIENT, self.plan.cut > 0);
        let payload = self.encodings.0.encode(&values, HIDDEN as usize, step.0).expect("rows of the hidden size");
        let labels = vec![1; tokens as usize];
        let frame = Frame::forward(step, work.round, flags, self.encodings.0, HIDDEN, lengths, labels, payload);
        self.send(Packet::step(&frame));
        self.doing = Doing::Waiting(work, frame.header);
        Ok(())
    }

    fn answered(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Doing::Waiting(mut work, asked) = std::mem::replace(&mut self.doing, Doing::Nothing) else {
            return Err("an answer to a step that was not asked".into());
        };
        let limits = FrameLimits::new(HIDDEN, 9, 9).encoded(self.encodings.0, self.encodings.1).answering(&asked);
        let answer = read_frame(bytes, &limits)?;
        match answer.header.kind {
            FrameKind::Failed => {
                self.effects.push(Effect::Note(format!("gives round {} up: {}", work.round, answer.reason().unwrap_or_default())));
                return Ok(());
            }
            FrameKind::Gradient => {
                let values = answer
                    .header
                    .encoding
                    .decode(&answer.payload, answer.header.tokens as usize, HIDDEN as usize)
                    .map_err(|error| error.to_string())?;
                toy::step_client(&mut self.own, &values);
            }
            FrameKind::Done => {}
            other => return Err(format!("{other:?} answers nothing")),
        }
        work.sums.add(&answer.header.sums());
        work.index += 1;
        self.compute(work);
        Ok(())
    }

    fn send_update(&mut self, work: &Work) -> Result<(), SessionError> {
        self.session.update(work.round)?;
        let weight = match self.run.weighting {
            Weighting::Tokens => work.sums.scored as f64,
            Weighting::Samples => work.sequences as f64,
            Weighting::Uniform => 1.0,
        };
        let frame = AdapterFrame::new(work.round, weight, &BASE, self.own.clone());
        let packets = match self.plan.temper {
            Temper::Nonsense => mischief::spoil(frame, &mut self.random),
            _ => vec![Packet::adapter(&frame)],
        };
        packets.into_iter().for_each(|packet| self.send(packet));
        Ok(())
    }

    fn say(&mut self, message: Message) {
        self.session.sent(&message).expect("our own words are in order");
        self.send(Packet::control(&message));
    }

    fn send(&mut self, packet: Packet) {
        let connection = self.connection.expect("only a connected client sends");
        self.effects.push(Effect::Send { connection, packet });
    }

    fn close(&mut self, graceful: bool) {
        let connection = self.connection.expect("only a connected client closes");
        self.effects.push(Effect::Close { connection, graceful });
    }
}

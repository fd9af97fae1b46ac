//! The server: connections, words and steps, as `node` has them. The seats and the driver have their own files.
//!
//! An honest client's session must never end for something that the client said.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use cutlayer_federation::{Coordinator, Event};
use cutlayer_wire::{
    AdapterFrame, AdapterLimits, AdapterState, Frame, FrameFlags, FrameLimits, Message, PeerId, RoundId, RunId, ServerSession,
    SessionEvent, StepOrder, Weighting,
};

use crate::bytes::{Lane, Packet, read_adapter, read_control, read_frame};
use crate::driver::Disk;
use crate::edge::{Edge, is_last};
use crate::ledger::Ledger;
use crate::memo::Known;
use crate::network::Connection;
use crate::random::Random;
use crate::scenario::{Scenario, Temper};
use crate::seat::{Seat, Serving};
use crate::toy::{self, HIDDEN, VALUES};
use crate::trace::{Trace, hash_of};
use crate::turns::Turns;
use crate::witness::Witness;

/// How long a client may take to introduce itself.
const HELLO_MS: u64 = 2000;
/// Commands that may wait for a client.
const COMMANDS_MAX: usize = 16;

/// Something that the server wants done.
#[derive(Clone, Debug)]
pub enum Effect {
    Send { connection: Connection, packet: Packet },
    Close { connection: Connection, graceful: bool },
    Wake { after_ms: u64, timer: Timer },
}

/// What a wake is about.
#[derive(Clone, Copy, Debug)]
pub enum Timer {
    Hello(Connection),
    Obey(Connection),
    Served(PeerId, u32),
    Disk,
    Part,
    Deadline,
    /// Someone may have been away for too long.
    Away,
    Leave,
}

/// What a client is to be told next, in the order given.
#[derive(Clone)]
#[expect(clippy::large_enum_variant, reason = "a few words of a toy")]
pub enum Command {
    Adopt { round: RoundId, state: Arc<AdapterState> },
    Say(Message),
}

/// What the driver hears, in order.
pub enum Word {
    Event(Event),
    /// The client of this seat left.
    Ended {
        peer: PeerId,
        reason: String,
    },
}

/// A step that came, judged by the session when it came.
struct Step {
    frame: Frame,
    request: u64,
    event: SessionEvent,
}

/// One connection. All of it ends with the connection.
pub struct Connected {
    pub peer: PeerId,
    pub seated: bool,
    /// It introduced itself, but the seat is not free yet.
    pub hello: Option<Message>,
    commands: VecDeque<Command>,
    obeying: bool,
    steps: VecDeque<Step>,
}

/// What everything on the server may look at and tell.
pub struct Around<'a> {
    pub now_ms: u64,
    pub disk: &'a mut Disk,
    pub witness: &'a mut Witness,
    pub ledger: &'a mut Ledger,
    pub trace: &'a mut Trace,
}

pub struct Server {
    pub scenario: Scenario,
    /// Which process of the server this is, from 1.
    pub start: u32,
    pub coordinator: Coordinator,
    pub connections: BTreeMap<Connection, Connected>,
    pub seats: BTreeMap<PeerId, Seat>,
    pub incarnations: u32,
    pub edge: Edge,
    pub turns: Turns,
    /// Heard, not yet told to the coordinator.
    pub inbox: VecDeque<Word>,
    pub driver: crate::driver::State,
    pub random: Random,
    pub effects: Vec<Effect>,
    /// Connections that were closed for a newer one of the same client, which must not be theirs any more.
    pub replaced: Vec<Connection>,
}

impl Server {
    pub fn new(scenario: &Scenario, start: u32, coordinator: Coordinator, disk: &Disk, random: Random) -> Self {
        let (_, global) = coordinator.global();
        let edge = Edge::new(scenario.plan.server_adapters, global.as_ref().clone(), disk.moments.clone());
        Self {
            scenario: scenario.clone(),
            start,
            coordinator,
            connections: BTreeMap::new(),
            seats: BTreeMap::new(),
            incarnations: 0,
            edge,
            turns: Turns::default(),
            inbox: VecDeque::new(),
            driver: crate::driver::State::default(),
            random,
            effects: Vec::new(),
            replaced: Vec::new(),
        }
    }

    pub fn id(&self) -> RunId {
        RunId { run: self.scenario.seed, start: self.start }
    }

    pub fn accepted(&mut self, connection: Connection, peer: PeerId) {
        let open = Connected { peer, seated: false, hello: None, commands: VecDeque::new(), obeying: false, steps: VecDeque::new() };
        self.connections.insert(connection, open);
        self.wake(HELLO_MS, Timer::Hello(connection));
    }

    pub fn wake(&mut self, after_ms: u64, timer: Timer) {
        self.effects.push(Effect::Wake { after_ms, timer });
    }

    pub fn arrived(&mut self, around: &mut Around<'_>, connection: Connection, packet: Packet) {
        let Some(open) = self.connections.get(&connection) else { return };
        let peer = open.peer;
        let outcome = match packet.lane {
            Lane::Control if !open.seated => self.greet(around, connection, &packet.bytes),
            _ if !open.seated => Err("it did not wait for Welcome".into()),
            Lane::Control => self.hear(around, peer, &packet.bytes),
            Lane::Adapter => self.take_update(around, peer, &packet.bytes),
            Lane::Step => self.take_step(around, connection, peer, &packet.bytes),
        };
        if let Err(trouble) = outcome {
            self.is_ill(around, connection, &trouble);
        }
        self.pump(around);
    }

    pub fn lost(&mut self, around: &mut Around<'_>, connection: Connection) {
        self.hang_up(around, connection, "it was lost");
        self.pump(around);
    }

    pub fn timer(&mut self, around: &mut Around<'_>, timer: Timer) {
        match timer {
            Timer::Hello(connection) => {
                if self.connections.get(&connection).is_some_and(|open| !open.seated && open.hello.is_none()) {
                    self.hang_up(around, connection, "it did not say Hello");
                }
            }
            Timer::Obey(connection) => self.obey(connection),
            Timer::Served(peer, incarnation) => self.served(around, peer, incarnation),
            Timer::Disk | Timer::Part | Timer::Deadline | Timer::Away | Timer::Leave => self.driver_timer(around, timer),
        }
        self.pump(around);
    }

    /// A peer that is out of order ends its own session, and that alone.
    fn is_ill(&mut self, around: &mut Around<'_>, connection: Connection, trouble: &str) {
        let Some(open) = self.connections.get(&connection) else { return };
        let (peer, client) = (open.peer, Scenario::client_of(open.peer));
        let temper = self.scenario.clients[client].temper;
        assert_eq!(temper, Temper::Nonsense, "client {client} means well, but its session ends: {trouble}");
        if open.seated { self.end(around, peer, trouble, false) } else { self.hang_up(around, connection, trouble) }
    }

    /// Ends a connection; its client's seat, if it had one, is kept for a while.
    pub fn hang_up(&mut self, around: &mut Around<'_>, connection: Connection, reason: &str) {
        if let Some(peer) = self.connections.get(&connection).map(|open| open.peer) {
            self.away(around, peer, connection);
            self.close(around, connection, reason, false);
        }
    }

    pub fn close(&mut self, around: &mut Around<'_>, connection: Connection, reason: &str, graceful: bool) {
        if self.connections.remove(&connection).is_some() {
            around.trace.note(around.now_ms, format_args!("server: connection {} ends: {reason}", connection.0));
            self.effects.push(Effect::Close { connection, graceful });
        }
    }

    fn greet(&mut self, around: &mut Around<'_>, connection: Connection, bytes: &[u8]) -> Result<(), String> {
        let hello = read_control(bytes)?;
        if self.connections[&connection].hello.is_some() {
            return Err("it did not wait for Welcome".into());
        }
        ServerSession::new().handle(&hello).map_err(|error| error.to_string())?;
        self.admit(around, connection, hello);
        Ok(())
    }

    fn hear(&mut self, around: &mut Around<'_>, peer: PeerId, bytes: &[u8]) -> Result<(), String> {
        let message = read_control(bytes)?;
        let seat = self.seats.get_mut(&peer).expect("only a seat hears");
        match seat.order.handle(&message).map_err(|error| error.to_string())? {
            SessionEvent::Evaluated { round, sums } => self.inbox.push_back(Word::Event(Event::Evaluated { peer, round, sums })),
            SessionEvent::Goodbye => self.end(around, peer, "it said goodbye", false),
            SessionEvent::Late { round } => around.witness.late_word(round),
            SessionEvent::Again { .. } => around.ledger.answers_again += 1,
            other => unreachable!("a server does not hear {other:?}"),
        }
        Ok(())
    }

    /// Has something told to a client that has a seat: now, or by the Welcome that it is given when it comes back.
    pub fn tell(&mut self, around: &mut Around<'_>, peer: &PeerId, command: Command) {
        let seat = self.seats.get_mut(peer).expect("a seat is freed only when the coordinator knows");
        if seat.place == crate::seat::Place::Ended {
            return;
        }
        assert!(seat.known || self.driver.over.is_some(), "{peer} is told what was meant for who sat there before");
        match &command {
            Command::Adopt { round, state } => seat.adapter = Some((*round, state.clone())),
            Command::Say(message) => {
                if let Err(error) = seat.order.sent(message) {
                    panic!("the server's own word {} to {peer} is out of order: {error}", message.name());
                }
                around.trace.note(around.now_ms, format_args!("server: says {message:?} to {peer}, {:?}", seat.place));
                match message {
                    Message::Settled { .. } => seat.settled = Some(message.clone()),
                    Message::Finish { .. } => seat.finish = Some(message.clone()),
                    _ => {}
                }
            }
        }
        let here = seat.here();
        if let Command::Say(message @ Message::Refused { .. }) = &command {
            // Whether or not it hears: there is nothing to come back to.
            self.effects.extend(here.map(|connection| Effect::Send { connection, packet: Packet::control(message) }));
            return self.end(around, *peer, "it was refused", true);
        }
        if let Some(connection) = here {
            self.queue(around, connection, command);
        }
    }

    /// Queues something for a connection. One that does not read what it is told is closed.
    pub fn queue(&mut self, around: &mut Around<'_>, connection: Connection, command: Command) {
        let open = self.connections.get_mut(&connection).expect("whoever is here has a connection");
        open.commands.push_back(command);
        if open.commands.len() > COMMANDS_MAX {
            return self.hang_up(around, connection, "it does not read what it is told");
        }
        if !std::mem::replace(&mut open.obeying, true) {
            self.obey_later(connection);
        }
    }

    /// A word takes a moment, and an adapter longer: words may wait behind it.
    fn obey_later(&mut self, connection: Connection) {
        let adopt = matches!(self.connections[&connection].commands.front(), Some(Command::Adopt { .. }));
        let after_ms = self.random.between(0, if adopt { 60 } else { 3 });
        self.wake(after_ms, Timer::Obey(connection));
    }

    fn obey(&mut self, connection: Connection) {
        let Some(open) = self.connections.get_mut(&connection) else { return };
        let peer = open.peer;
        let packet = match open.commands.pop_front() {
            None => {
                open.obeying = false;
                return;
            }
            Some(Command::Adopt { round, state }) => {
                let keys = &self.seats[&peer].keys;
                let own = keys.iter().filter_map(|key| Some((key.clone(), state.get(key)?.clone()))).collect();
                Packet::adapter(&AdapterFrame::new(round, 0.0, &toy::BASE, own))
            }
            Some(Command::Say(message)) => Packet::control(&message),
        };
        self.effects.push(Effect::Send { connection, packet });
        self.obey_later(connection);
    }

    fn take_update(&mut self, around: &mut Around<'_>, peer: PeerId, bytes: &[u8]) -> Result<(), String> {
        let mut frame = read_adapter(bytes, &AdapterLimits::for_values(VALUES))?;
        let seat = self.seats.get_mut(&peer).expect("only a seat hears");
        match seat.order.update(frame.round).map_err(|error| error.to_string())? {
            SessionEvent::Update { .. } => {
                let work = self.edge.work(seat.number);
                let seen = match self.scenario.plan.weighting {
                    Weighting::Tokens => work.scored as f64,
                    Weighting::Samples => work.sequences as f64,
                    Weighting::Uniform => 1.0,
                };
                if self.scenario.weight_is_bounded {
                    frame.weight = frame.weight.min(seen);
                }
                self.edge.end_round(seat.number);
                self.turns.finish(seat.number, frame.round);
                self.inbox.push_back(Word::Event(Event::Updated { peer, frame }));
                self.turn_passes();
            }
            // The first one counts.
            SessionEvent::Again { .. } => around.ledger.answers_again += 1,
            _ => around.witness.late_update(frame.round),
        }
        Ok(())
    }

    fn take_step(&mut self, around: &mut Around<'_>, connection: Connection, peer: PeerId, bytes: &[u8]) -> Result<(), String> {
        let limits = FrameLimits::new(HIDDEN, 9, 9).encoded(self.scenario.activations, self.scenario.gradients);
        let frame = read_frame(bytes, &limits)?;
        let seat = self.seats.get_mut(&peer).expect("only a seat hears");
        let event = seat.order.step(&frame.header).map_err(|error| error.to_string())?;
        let step = Step { frame, request: hash_of(bytes), event };
        self.connections.get_mut(&connection).expect("it just sent").steps.push_back(step);
        self.serve(around, peer);
        Ok(())
    }

    /// Begins with a client's next step, unless one is under way: one after the other.
    fn serve(&mut self, around: &mut Around<'_>, peer: PeerId) {
        loop {
            let Some(seat) = self.seats.get_mut(&peer).filter(|seat| seat.serving.is_none()) else { return };
            let Some(connection) = seat.here() else { return };
            let open = self.connections.get_mut(&connection).expect("whoever is here has a connection");
            let Some(Step { frame, request, event }) = open.steps.pop_front() else { return };
            let header = frame.header;
            let failed = |reason| Packet::step(&Frame::failed(&header, reason));
            let known = if header.flags.has(FrameFlags::TRAIN) { seat.memo.find(header.step, request) } else { Known::New };
            let packet = match (event, known) {
                (SessionEvent::Late { .. }, _) => failed("the round went on without this client"),
                (_, Known::Answered(answer)) => {
                    around.ledger.answered_again += 1;
                    around.ledger.answers(self.start, seat.number, header.step, request, &answer.bytes);
                    answer
                }
                (_, Known::OtherBytes) => {
                    around.ledger.other_bytes += 1;
                    failed("this step came before with other bytes")
                }
                (_, Known::PassedOver) => failed("steps after it were taken without it"),
                (event, Known::New) => {
                    around.ledger.served_late += u64::from(matches!(event, SessionEvent::Again { .. }));
                    seat.serving = Some(Serving { frame, request, asker: connection, computing: false });
                    return self.turn_passes();
                }
            };
            self.effects.push(Effect::Send { connection, packet });
        }
    }

    /// Whoever's turn it is computes.
    pub fn turn_passes(&mut self) {
        let lockstep = self.scenario.plan.step_order == StepOrder::Lockstep;
        for (peer, seat) in &mut self.seats {
            let Some(serving) = seat.serving.as_mut().filter(|serving| !serving.computing) else { continue };
            let header = serving.frame.header;
            if !lockstep || !header.flags.has(FrameFlags::TRAIN) || self.turns.is_turn(seat.number, header.step) {
                serving.computing = true;
                let after_ms = self.random.between(0, 10);
                self.effects.push(Effect::Wake { after_ms, timer: Timer::Served(*peer, seat.incarnation) });
            }
        }
    }

    /// The server's half of a step is computed. The round may have gone on since the step was taken: then it changes nothing.
    fn served(&mut self, around: &mut Around<'_>, peer: PeerId, incarnation: u32) {
        let Some(seat) = self.seats.get_mut(&peer).filter(|seat| seat.incarnation == incarnation) else { return };
        let Serving { frame, request, asker, .. } = seat.serving.take().expect("a step was computed");
        let (header, number) = (frame.header, seat.number);
        let train = header.flags.has(FrameFlags::TRAIN);
        let answer = if train && self.edge.round(number) != Some(header.round) {
            Packet::step(&Frame::failed(&header, "the round went on while this step waited"))
        } else {
            let answer = Packet::step(&self.edge.open(number, &frame, self.scenario.gradients));
            if train {
                around.ledger.answers(self.start, number, header.step, request, &answer.bytes);
                around.ledger.applied(self.start, number, header.step, around.disk.progress.round);
                seat.memo.keep(header.step, request, answer.clone());
                if is_last(&header) {
                    self.turns.done(number, header.step);
                }
            }
            answer
        };
        if seat.here() == Some(asker) {
            self.effects.push(Effect::Send { connection: asker, packet: answer });
        }
        self.turn_passes();
        self.serve(around, peer);
    }
}

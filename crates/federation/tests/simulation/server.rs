//! The server: sessions, seats and steps, as `node` has them. The driver, in its own file, decides.
//!
//! An honest client's session must never end for something that the client said.

use std::collections::{BTreeMap, VecDeque};

use cutlayer_federation::{Coordinator, Event};
use cutlayer_wire::{
    AdapterFrame, AdapterLimits, AdapterState, Frame, FrameFlags, FrameLimits, Message, PeerId, RefusalCode, RoundId, RunId, ServerSession,
    SessionEvent, Weighting,
};

use crate::bytes::{Lane, Packet, read_adapter, read_control, read_frame};
use crate::driver::Disk;
use crate::edge::Edge;
use crate::network::Connection;
use crate::random::Random;
use crate::scenario::{Scenario, Temper};
use crate::toy::{self, HIDDEN, LAYERS, VALUES};
use crate::trace::Trace;
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
    Served(Connection),
    Disk,
    Part,
    Deadline,
    Leave,
}

/// What a session is to do next, in the order given.
#[expect(clippy::large_enum_variant, reason = "a few words of a toy")]
pub enum Command {
    Adopt { round: RoundId, state: std::sync::Arc<AdapterState> },
    Say(Message),
}

/// One connection.
pub struct Session {
    pub peer: PeerId,
    /// The client's number, once it has a seat.
    pub number: Option<u32>,
    /// Whether the coordinator has heard of it. What it decided before was for this client's session before: see [`Server::tell`].
    pub known: bool,
    order: ServerSession,
    keys: Vec<String>,
    commands: VecDeque<Command>,
    obeying: bool,
    steps: VecDeque<Vec<u8>>,
    serving: Option<(Frame, bool)>,
}

/// What everything on the server may look at and tell.
pub struct Around<'a> {
    pub now_ms: u64,
    pub disk: &'a mut Disk,
    pub witness: &'a mut Witness,
    pub trace: &'a mut Trace,
}

pub struct Server {
    pub scenario: Scenario,
    pub coordinator: Coordinator,
    pub sessions: BTreeMap<Connection, Session>,
    pub edge: Edge,
    /// Heard, not yet told to the coordinator.
    pub inbox: VecDeque<Event>,
    pub driver: crate::driver::State,
    pub random: Random,
    pub effects: Vec<Effect>,
}

impl Server {
    pub fn new(scenario: &Scenario, coordinator: Coordinator, random: Random) -> Self {
        let (_, global) = coordinator.global();
        let edge = Edge::new(scenario.plan.server_adapters, global.as_ref().clone());
        Self {
            scenario: scenario.clone(),
            coordinator,
            sessions: BTreeMap::new(),
            edge,
            inbox: VecDeque::new(),
            driver: crate::driver::State::default(),
            random,
            effects: Vec::new(),
        }
    }

    pub fn accepted(&mut self, connection: Connection, peer: PeerId) {
        let session = Session {
            peer,
            number: None,
            known: false,
            order: ServerSession::new(),
            keys: Vec::new(),
            commands: VecDeque::new(),
            obeying: false,
            steps: VecDeque::new(),
            serving: None,
        };
        self.sessions.insert(connection, session);
        self.wake(HELLO_MS, Timer::Hello(connection));
    }

    pub fn wake(&mut self, after_ms: u64, timer: Timer) {
        self.effects.push(Effect::Wake { after_ms, timer });
    }

    pub fn arrived(&mut self, around: &mut Around<'_>, connection: Connection, packet: Packet) {
        let Some(session) = self.sessions.get_mut(&connection) else { return };
        let outcome = match packet.lane {
            Lane::Control => self.hear(around, connection, &packet.bytes),
            Lane::Adapter => self.take_update(around, connection, &packet.bytes),
            Lane::Step => {
                session.steps.push_back(packet.bytes);
                self.serve(connection)
            }
        };
        self.unless_ill(around, connection, outcome);
        self.pump(around);
    }

    pub fn lost(&mut self, around: &mut Around<'_>, connection: Connection) {
        self.end(around, connection, "its connection was lost");
        self.pump(around);
    }

    pub fn timer(&mut self, around: &mut Around<'_>, timer: Timer) {
        let outcome = match timer {
            Timer::Hello(connection) => match self.sessions.get(&connection) {
                Some(session) if session.number.is_none() => {
                    self.end(around, connection, "it did not say Hello");
                    Ok(())
                }
                _ => Ok(()),
            },
            Timer::Obey(connection) => {
                self.obey(around, connection);
                Ok(())
            }
            Timer::Served(connection) => {
                let outcome = self.served(around, connection);
                self.unless_ill(around, connection, outcome);
                Ok(())
            }
            Timer::Disk | Timer::Part | Timer::Deadline | Timer::Leave => self.driver_timer(around, timer),
        };
        outcome.expect("only a session fails");
        self.pump(around);
    }

    fn unless_ill(&mut self, around: &mut Around<'_>, connection: Connection, outcome: Result<(), String>) {
        let Err(trouble) = outcome else { return };
        let Some(session) = self.sessions.get(&connection) else { return };
        let client = Scenario::client_of(session.peer);
        let temper = self.scenario.clients[client].temper;
        assert_eq!(temper, Temper::Nonsense, "client {client} means well, but its session ends: {trouble}");
        self.end(around, connection, &trouble);
    }

    /// Ends a session: first all that it was is cleared, then its seat is free for who comes next.
    pub fn end(&mut self, around: &mut Around<'_>, connection: Connection, reason: &str) {
        self.close(around, connection, reason, false);
    }

    fn close(&mut self, around: &mut Around<'_>, connection: Connection, reason: &str, graceful: bool) {
        let Some(session) = self.sessions.remove(&connection) else { return };
        around.trace.note(around.now_ms, format_args!("server: session {} ends: {reason}", connection.0));
        if let Some(number) = session.number {
            self.edge.unseat(number, session.peer);
            self.inbox.push_back(Event::Left { peer: session.peer, reason: reason.into() });
        }
        self.effects.push(Effect::Close { connection, graceful });
    }

    /// Whoever has a seat.
    pub fn seated(&self, peer: &PeerId) -> Option<Connection> {
        self.sessions.iter().find(|(_, session)| session.number.is_some() && session.peer == *peer).map(|(connection, _)| *connection)
    }

    fn hear(&mut self, around: &mut Around<'_>, connection: Connection, bytes: &[u8]) -> Result<(), String> {
        let message = read_control(bytes)?;
        let session = self.sessions.get_mut(&connection).expect("only a session hears");
        let peer = session.peer;
        match session.order.handle(&message).map_err(|error| error.to_string())? {
            SessionEvent::Hello => self.admit(around, connection, &message),
            SessionEvent::Evaluated { round, sums } => self.inbox.push_back(Event::Evaluated { peer, round, sums }),
            SessionEvent::Goodbye => self.end(around, connection, "it said goodbye"),
            SessionEvent::Late { round } => around.witness.late_word(round),
            SessionEvent::Again { .. } => {}
            other => unreachable!("a server does not hear {other:?}"),
        }
        Ok(())
    }

    fn admit(&mut self, around: &mut Around<'_>, connection: Connection, hello: &Message) {
        let Message::Hello { cut, name, .. } = hello else { unreachable!("Hello is made of Hello") };
        let peer = self.sessions[&connection].peer;
        if self.seated(&peer).is_some() {
            let reason = "this key is in the run already".to_string();
            self.say(around, connection, &Message::Refused { code: RefusalCode::Full, reason: reason.clone() });
            return self.close(around, connection, &reason, true);
        }
        // A client's place among those enrolled: the same whenever it comes.
        let number = Scenario::client_of(peer) as u32;
        self.edge.seat(number, peer, cut.0..LAYERS);
        let (activations, gradients) = (self.scenario.activations, self.scenario.gradients);
        let plan = self.scenario.plan.clone();
        let clients = self.scenario.clients.len() as u32;
        self.say(
            around,
            connection,
            &Message::Welcome {
                plan,
                activations,
                gradients,
                adapters: cutlayer_wire::Encoding::F32,
                client: number,
                clients,
                id: RunId { run: 1, start: 1 },
                resumed: false,
                awaits: None,
                updated: None,
            },
        );
        let mut keys = toy::keys(0..cut.0);
        // As if this server read another model than the one that the contract is of.
        keys.extend((name == "foreign").then(|| "layers.99".to_string()));
        let session = self.sessions.get_mut(&connection).expect("it was just spoken to");
        session.number = Some(number);
        session.keys.clone_from(&keys);
        self.inbox.push_back(Event::Joined { peer, client: number, keys });
    }

    /// Says something now. What the coordinator wants said must always be in order.
    fn say(&mut self, around: &mut Around<'_>, connection: Connection, message: &Message) {
        let session = self.sessions.get_mut(&connection).expect("only a session speaks");
        if let Err(error) = session.order.sent(message) {
            panic!("the server's own word {} to session {} is out of order: {error}", message.name(), connection.0);
        }
        match message {
            // It holds the whole plan.
            Message::Welcome { client, .. } => {
                around.trace.note(around.now_ms, format_args!("server: welcomes session {} as {client}", connection.0));
            }
            _ => around.trace.note(around.now_ms, format_args!("server: says {message:?} to session {}", connection.0)),
        }
        self.effects.push(Effect::Send { connection, packet: Packet::control(message) });
    }

    /// Gives a client something to do. A session that the coordinator has not heard of is not the one that it means: the client
    /// came back while the coordinator's last words were still being carried out.
    pub fn tell(&mut self, around: &mut Around<'_>, peer: &PeerId, command: Command) {
        if let Some(connection) = self.seated(peer).filter(|connection| self.sessions[connection].known) {
            self.tell_session(around, connection, command);
        }
    }

    /// Gives a session something to do. One that does not read what it is told ends.
    pub fn tell_session(&mut self, around: &mut Around<'_>, connection: Connection, command: Command) {
        let session = self.sessions.get_mut(&connection).expect("only a session is told");
        session.commands.push_back(command);
        if session.commands.len() > COMMANDS_MAX {
            return self.end(around, connection, "it does not read what it is told");
        }
        if !std::mem::replace(&mut session.obeying, true) {
            self.obey_later(connection);
        }
    }

    /// A word takes a moment, and an adapter longer: words may wait behind it.
    fn obey_later(&mut self, connection: Connection) {
        let adopt = matches!(self.sessions[&connection].commands.front(), Some(Command::Adopt { .. }));
        let after_ms = self.random.between(0, if adopt { 60 } else { 3 });
        self.wake(after_ms, Timer::Obey(connection));
    }

    fn obey(&mut self, around: &mut Around<'_>, connection: Connection) {
        let Some(session) = self.sessions.get_mut(&connection) else { return };
        match session.commands.pop_front() {
            None => session.obeying = false,
            Some(Command::Adopt { round, state }) => {
                let own = session.keys.iter().filter_map(|key| Some((key.clone(), state.get(key)?.clone()))).collect();
                let packet = Packet::adapter(&AdapterFrame::new(round, 0.0, &toy::BASE, own));
                self.effects.push(Effect::Send { connection, packet });
                self.obey_later(connection);
            }
            Some(Command::Say(message)) => {
                self.say(around, connection, &message);
                if matches!(message, Message::Refused { .. }) {
                    return self.close(around, connection, "it was refused", true);
                }
                self.obey_later(connection);
            }
        }
    }

    fn take_update(&mut self, around: &mut Around<'_>, connection: Connection, bytes: &[u8]) -> Result<(), String> {
        let mut frame = read_adapter(bytes, &AdapterLimits::for_values(VALUES))?;
        let session = self.sessions.get_mut(&connection).expect("only a session hears");
        let peer = session.peer;
        match session.order.update(frame.round).map_err(|error| error.to_string())? {
            SessionEvent::Update { .. } => {
                let number = session.number.expect("a session in order has a seat");
                let work = self.edge.work(number);
                let seen = match self.scenario.plan.weighting {
                    Weighting::Tokens => work.scored as f64,
                    Weighting::Samples => work.sequences as f64,
                    Weighting::Uniform => 1.0,
                };
                if self.scenario.weight_is_bounded {
                    frame.weight = frame.weight.min(seen);
                }
                self.inbox.push_back(Event::Updated { peer, frame });
            }
            // The first one counts.
            SessionEvent::Again { .. } => {}
            _ => around.witness.late_update(frame.round),
        }
        Ok(())
    }

    /// Begins with the next step, unless one is under way: one after the other.
    fn serve(&mut self, connection: Connection) -> Result<(), String> {
        let limits = FrameLimits::new(HIDDEN, 9, 9).encoded(self.scenario.activations, self.scenario.gradients);
        let session = self.sessions.get_mut(&connection).expect("only a session serves");
        while session.serving.is_none() {
            let Some(bytes) = session.steps.pop_front() else { return Ok(()) };
            let frame = read_frame(&bytes, &limits)?;
            match session.order.step(&frame.header).map_err(|error| error.to_string())? {
                SessionEvent::Step { train } => {
                    session.serving = Some((frame, train));
                    let after_ms = self.random.between(0, 10);
                    self.effects.push(Effect::Wake { after_ms, timer: Timer::Served(connection) });
                }
                _ => {
                    let failed = Frame::failed(&frame.header, "the round went on without this client");
                    self.effects.push(Effect::Send { connection, packet: Packet::step(&failed) });
                }
            }
        }
        Ok(())
    }

    /// The server's half of a step is computed. The round may have gone on since the step was taken: then it changes nothing.
    fn served(&mut self, around: &mut Around<'_>, connection: Connection) -> Result<(), String> {
        let Some(session) = self.sessions.get_mut(&connection) else { return Ok(()) };
        let Some((frame, train)) = session.serving.take() else { return Ok(()) };
        let number = session.number.expect("a session in order has a seat");
        let header = frame.header;
        let answer = if train && self.edge.round(number) != Some(header.round) {
            Frame::failed(&header, "the round went on while this step waited")
        } else {
            if train {
                around.witness.applied(connection, header.step, header.round, around.disk.progress.round);
            }
            assert_eq!(header.flags.has(FrameFlags::TRAIN), train);
            self.edge.open(number, &frame, self.scenario.gradients)
        };
        self.effects.push(Effect::Send { connection, packet: Packet::step(&answer) });
        self.serve(connection)
    }
}

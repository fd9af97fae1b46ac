//! Virtual time: one queue of happenings, and everyone they happen to. It ends when nothing is left to happen.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use cutlayer_federation::{Contract, Coordinator, Event, Progress, by_name};
use cutlayer_wire::{AdapterState, RoundId, StepOrder};

use crate::bytes::Lane;
use crate::client::{self, Client, Ending};
use crate::driver::Disk;
use crate::edge::Moments;
use crate::ledger::Ledger;
use crate::network::{Connection, End, Network};
use crate::random::Random;
use crate::scenario::{Fault, Kind, Scenario, Temper};
use crate::server::{self, Around, Server, Timer, Word};
use crate::toy::{self, BASE};
use crate::trace::Trace;
use crate::witness::{Tally, Witness};

/// More than any run needs: beyond it, something goes round in circles.
const HAPPENINGS_MAX: u64 = 100_000;

/// How long a server that died at its disk is down.
const DOWN_MS: u64 = 50;

/// Something that happens.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Connect {
        client: usize,
        life: u32,
    },
    Arrives {
        connection: Connection,
        to: End,
        lane: Lane,
    },
    /// An end learns that the other is gone.
    Gone {
        connection: Connection,
        to: End,
    },
    ClientWakes {
        client: usize,
        life: u32,
    },
    /// A timer of the server's process of that number.
    ServerWakes {
        process: u32,
        timer: Timer,
    },
    ServerStarts,
    Fault(Fault),
}

/// When, and what breaks a tie: whichever was planned first.
type Planned = Reverse<(u64, u64)>;

/// What a seed came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub digest: u64,
    pub events: u64,
    pub ended_ms: u64,
    pub disk: (RoundId, AdapterState),
    pub tally: Tally,
    pub ledger: Ledger,
    /// Who trained in each round.
    pub trained: Vec<Vec<usize>>,
    pub told: usize,
    pub restarts: u32,
    pub superseded: u32,
    pub sent_again: u32,
}

pub struct World {
    scenario: Scenario,
    now_ms: u64,
    queue: BinaryHeap<(Planned, usize)>,
    /// What was planned, by its number in the queue; taken when it happens.
    planned: Vec<Happening>,
    network: Network,
    random: Random,
    trace: Trace,
    disk: Disk,
    witness: Witness,
    ledger: Ledger,
    server: Option<Server>,
    /// Processes of the server so far.
    processes: u32,
    clients: Vec<Client>,
    /// Lives of each client's wish to connect: a crash makes an earlier one void.
    wishes: Vec<u32>,
    /// Connections that each end still holds.
    held: Vec<[bool; 2]>,
}

impl World {
    pub fn new(scenario: &Scenario, loud: bool) -> Self {
        let mut random = Random::new(!scenario.seed);
        let links = scenario.clients.iter().map(|client| client.link).collect();
        let clients = (0..scenario.clients.len()).map(|index| Client::new(index, scenario, random.fork())).collect();
        let weight_max = Contract::weight_max_of(&scenario.plan);
        let mut world = Self {
            scenario: scenario.clone(),
            now_ms: 0,
            queue: BinaryHeap::new(),
            planned: Vec::new(),
            network: Network::new(random.fork(), links),
            trace: Trace::new(scenario.seed, loud),
            disk: Disk { progress: Progress::default(), state: toy::start(), moments: Moments::default(), deaths: scenario.deaths.clone() },
            witness: Witness::new(scenario.config.clone(), weight_max),
            ledger: Ledger::new(scenario.plan.step_order == StepOrder::Lockstep),
            server: None,
            processes: 0,
            clients,
            wishes: vec![0; scenario.clients.len()],
            held: Vec::new(),
            random,
        };
        world.start_server();
        for (index, client) in scenario.clients.iter().enumerate() {
            world.plan(client.start_ms, Happening::Connect { client: index, life: 0 });
        }
        scenario.faults.iter().for_each(|(at_ms, fault)| world.plan(*at_ms, Happening::Fault(*fault)));
        world
    }

    /// Lets everything happen.
    pub fn run(mut self) -> Outcome {
        let mut happenings = 0;
        while let Some((Reverse((at_ms, _)), place)) = self.queue.pop() {
            happenings += 1;
            assert!(happenings < HAPPENINGS_MAX, "the run goes round in circles");
            self.now_ms = at_ms;
            self.happens(self.planned[place]);
        }
        self.check_end();
        self.trace.hash(&toy_bytes(&self.disk.state));
        let told = self.clients.iter().filter(|client| client.ending == Some(Ending::Told)).count();
        let trained = self.witness.trained.iter().map(|seats| seats.iter().map(|(number, _)| *number as usize).collect()).collect();
        Outcome {
            digest: self.trace.digest(),
            events: self.trace.events(),
            ended_ms: self.now_ms,
            disk: (self.disk.progress.round, self.disk.state.clone()),
            tally: self.witness.tally,
            ledger: self.ledger,
            trained,
            told,
            restarts: self.processes - 1,
            superseded: self.clients.iter().map(|client| client.superseded).sum(),
            sent_again: self.clients.iter().map(|client| client.sent_again).sum(),
        }
    }

    /// Nothing is left to happen: then the run is over, and everyone knows.
    fn check_end(&self) {
        let server = self.server.as_ref().expect("the server is up in the end");
        assert!(server.coordinator.is_finished() && server.driver.closed, "nothing is left to happen, but the run is not over");
        assert!(server.connections.is_empty());
        for client in &self.clients {
            assert!(client.ending.is_some() && client.connection.is_none(), "client {} waits for ever", client.index);
            for round in &client.accepted {
                let seats = self.witness.trained.get(round.0 as usize - 1).expect("what was said to be accepted is on the disk");
                assert!(
                    seats.iter().any(|(_, peer)| Scenario::client_of(*peer) == client.index),
                    "round {round} of client {}",
                    client.index
                );
            }
        }
        let deadline_ms = self.scenario.longest_ms(self.processes);
        assert!(self.now_ms <= deadline_ms, "the run took {} ms, and must be over after {deadline_ms}", self.now_ms);
        if self.scenario.kind != Kind::Wild {
            let honest = self.clients.iter().filter(|client| client.plan.temper == Temper::Honest);
            honest.for_each(|client| assert_eq!(client.ending, Some(Ending::Told), "client {} was not told", client.index));
        }
    }

    fn plan(&mut self, after_ms: u64, happening: Happening) {
        self.plan_at(self.now_ms + after_ms, happening);
    }

    fn plan_at(&mut self, at_ms: u64, happening: Happening) {
        let number = self.planned.len();
        self.planned.push(happening);
        self.queue.push((Reverse((at_ms, number as u64)), number));
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Connect { client, life } => self.connect(client, life),
            Happening::Arrives { connection, to, .. } | Happening::Gone { connection, to } => {
                // Whoever is cut off learns of it all afterwards.
                if let Some(until_ms) = self.network.cut_off(self.now_ms, connection) {
                    return self.plan_at(until_ms, happening);
                }
                if let Happening::Arrives { lane, .. } = happening { self.arrives(connection, to, lane) } else { self.gone(connection, to) }
            }
            Happening::ClientWakes { client, life } => {
                self.clients[client].woken(life);
                self.client_effects(client);
            }
            Happening::ServerWakes { process, timer } => {
                if process == self.processes {
                    self.with_server(|server, around| server.timer(around, timer));
                }
            }
            Happening::ServerStarts => {
                if self.server.is_none() {
                    self.start_server();
                }
            }
            Happening::Fault(fault) => self.fault(fault),
        }
    }

    fn start_server(&mut self) {
        self.processes += 1;
        let Scenario { config, plan, .. } = &self.scenario;
        let contract = Contract::of(BASE, &self.disk.state, Contract::weight_max_of(plan));
        let strategy = by_name("fedavg").expect("a strategy of ours");
        let coordinator = Coordinator::new(self.now_ms, config.clone(), contract, strategy, self.disk.progress, self.disk.state.clone())
            .expect("a sound run");
        self.witness.restarted(self.disk.progress.round, &self.disk.state);
        self.trace.note(self.now_ms, format_args!("server: process {} starts from round {}", self.processes, self.disk.progress.round));
        self.server = Some(Server::new(&self.scenario, self.processes, coordinator, &self.disk, self.random.fork()));
        self.with_server(|server, around| server.pump(around));
    }

    /// Lets something happen to the server, and does what it asks for.
    fn with_server(&mut self, happen: impl FnOnce(&mut Server, &mut Around<'_>)) {
        let Some(server) = &mut self.server else { return };
        let (disk, witness, ledger, trace) = (&mut self.disk, &mut self.witness, &mut self.ledger, &mut self.trace);
        happen(server, &mut Around { now_ms: self.now_ms, disk, witness, ledger, trace });
        server.check_waits(self.now_ms);
        let dead = server.driver.dead;
        for replaced in std::mem::take(&mut server.replaced) {
            let client = &self.clients[self.network.client_of(replaced)];
            assert_ne!(client.connection, Some(replaced), "client {} is told that another took its place", client.index);
        }
        for effect in std::mem::take(&mut server.effects) {
            match effect {
                server::Effect::Send { connection, packet } => self.send(connection, End::Client, packet),
                server::Effect::Close { connection, graceful } => self.close(connection, End::Server, graceful),
                server::Effect::Wake { after_ms, timer } => {
                    self.plan(after_ms, Happening::ServerWakes { process: self.processes, timer });
                }
            }
        }
        if dead {
            self.ledger.deaths += 1;
            self.restart(DOWN_MS);
        }
    }

    fn client_effects(&mut self, index: usize) {
        for effect in self.clients[index].effects() {
            match effect {
                client::Effect::Connect { after_ms } => {
                    let life = self.wishes[index];
                    self.plan(after_ms, Happening::Connect { client: index, life });
                }
                client::Effect::Send { connection, packet } => self.send(connection, End::Server, packet),
                client::Effect::Wake { after_ms, life } => self.plan(after_ms, Happening::ClientWakes { client: index, life }),
                client::Effect::Close { connection, graceful } => self.close(connection, End::Client, graceful),
                client::Effect::Note(what) => self.trace.note(self.now_ms, format_args!("client {index}: {what}")),
            }
        }
    }

    fn send(&mut self, connection: Connection, to: End, packet: crate::bytes::Packet) {
        let lane = packet.lane;
        self.trace.note(self.now_ms, format_args!("to {to:?} of {}: {} B of {lane:?}", connection.0, packet.bytes.len()));
        self.trace.hash(&packet.bytes);
        if let Some(at_ms) = self.network.send(self.now_ms, connection, to, packet) {
            self.plan_at(at_ms, Happening::Arrives { connection, to, lane });
        }
    }

    fn connect(&mut self, index: usize, life: u32) {
        let client = &mut self.clients[index];
        if life != self.wishes[index] || client.connection.is_some() || client.ending.is_some() {
            return;
        }
        let serves = self.server.as_ref().is_some_and(|server| !server.driver.closed);
        if !serves {
            client.disconnected();
            return self.client_effects(index);
        }
        let connection = self.network.connect(index);
        self.held.push([true, true]);
        self.trace.note(self.now_ms, format_args!("client {index}: connects as {}", connection.0));
        client.connected(connection);
        self.with_server(|server, _| server.accepted(connection, Scenario::peer(index)));
        self.client_effects(index);
    }

    fn arrives(&mut self, connection: Connection, to: End, lane: Lane) {
        let Some(packet) = self.network.arrive(connection, to, lane) else { return };
        match to {
            End::Server => self.with_server(|server, around| server.arrived(around, connection, packet)),
            End::Client => {
                let index = self.network.client_of(connection);
                if self.clients[index].connection == Some(connection) {
                    self.clients[index].arrived(&packet);
                    self.client_effects(index);
                }
            }
        }
    }

    /// An end closes: the other learns of it after a while.
    fn close(&mut self, connection: Connection, by: End, graceful: bool) {
        let to = if by == End::Client { End::Server } else { End::Client };
        self.held[connection.0][by as usize] = false;
        if self.held[connection.0][to as usize] {
            let at_ms = self.network.close_arrives(self.now_ms, connection, to, graceful);
            self.plan_at(at_ms, Happening::Gone { connection, to });
        }
    }

    fn gone(&mut self, connection: Connection, to: End) {
        if !std::mem::replace(&mut self.held[connection.0][to as usize], false) {
            return;
        }
        match to {
            End::Server => self.with_server(|server, around| server.lost(around, connection)),
            End::Client => {
                let index = self.network.client_of(connection);
                if self.clients[index].connection == Some(connection) {
                    self.clients[index].disconnected();
                    self.client_effects(index);
                }
            }
        }
    }

    /// A connection carries nothing more; each end that is still there learns of it in its own time.
    fn lose(&mut self, connection: Connection) {
        self.network.lose(connection);
        for to in [End::Client, End::Server] {
            let after_ms = self.network.notice_ms();
            self.plan(after_ms, Happening::Gone { connection, to });
        }
    }

    fn fault(&mut self, fault: Fault) {
        self.trace.note(self.now_ms, format_args!("fault: {fault:?}"));
        match fault {
            Fault::Lose { client } => {
                if let Some(connection) = self.clients[client].connection {
                    self.lose(connection);
                }
            }
            Fault::Roam { client } => {
                if let Some(connection) = self.clients[client].connection {
                    self.held[connection.0][End::Client as usize] = false;
                    let after_ms = self.network.notice_ms();
                    self.plan(after_ms, Happening::Gone { connection, to: End::Server });
                    self.clients[client].disconnected();
                    self.client_effects(client);
                }
            }
            Fault::Crash { client, down_ms } => {
                if self.clients[client].ending.is_some() {
                    return;
                }
                if let Some(connection) = self.clients[client].connection {
                    self.held[connection.0][End::Client as usize] = false;
                    self.lose(connection);
                }
                self.clients[client].died();
                self.wishes[client] += 1;
                let life = self.wishes[client];
                self.plan(down_ms, Happening::Connect { client, life });
            }
            Fault::CutOff { client, ms } => {
                self.network.partition(client, self.now_ms + ms);
                // QUIC gives a silent peer up; a shorter silence it mends.
                if let Some(connection) = self.clients[client].connection.filter(|_| ms > crate::network::IDLE_MS) {
                    self.lose(connection);
                }
            }
            Fault::Restart { down_ms } => self.restart(down_ms),
            Fault::Stop => self.with_server(|server, around| {
                server.inbox.push_back(Word::Event(Event::Stop { reason: "somebody stopped it".into() }));
                server.pump(around);
            }),
        }
    }

    fn restart(&mut self, down_ms: u64) {
        let Some(server) = self.server.take_if(|server| !server.driver.closed) else { return };
        for connection in server.connections.into_keys() {
            self.held[connection.0][End::Server as usize] = false;
            self.lose(connection);
        }
        // The timers of this process are void from here on.
        self.plan(down_ms, Happening::ServerStarts);
    }
}

fn toy_bytes(state: &AdapterState) -> Vec<u8> {
    toy::bits(state).into_iter().flat_map(|(_, bits)| bits).flat_map(u32::to_le_bytes).collect()
}

//! A client's seat: what the server keeps of a client while its connections come and go.
//!
//! Only the driver frees a seat, in the same breath as the coordinator hears that its client left: nobody is ever told what was
//! meant for who sat there before.

use std::sync::Arc;

use cutlayer_federation::Event;
use cutlayer_wire::{AdapterState, Frame, Message, PeerId, Resume, RoundId, ServerSession, SessionEvent};

use crate::bytes::Packet;
use crate::memo::Memo;
use crate::network::Connection;
use crate::scenario::Scenario;
use crate::server::{Around, Command, Server, Timer, Word};
use crate::toy::{self, LAYERS};

/// Where a seat's client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Here(Connection),
    /// Its connection was lost; the seat is kept until then.
    Away {
        until_ms: u64,
    },
    /// It will not come back to this seat: the driver is to free it.
    Ended,
}

/// A step under way on the server.
pub struct Serving {
    pub frame: Frame,
    pub request: u64,
    /// Who asked: a client that lost that connection asks again, and is answered from the memo.
    pub asker: Connection,
    /// It has its turn.
    pub computing: bool,
}

pub struct Seat {
    pub number: u32,
    pub place: Place,
    /// Tells this seat from one that the same client had before.
    pub incarnation: u32,
    /// Whether the coordinator has heard of it.
    pub known: bool,
    pub keys: Vec<String>,
    /// What was said to the client, and what it said: a word counts as said when the driver wants it said, whether or not the client is
    /// there to hear it, so that [`ServerSession::awaits`] is always what the coordinator waits for.
    pub order: ServerSession,
    /// The newest adapter that was broadcast to it.
    pub adapter: Option<(RoundId, Arc<AdapterState>)>,
    pub settled: Option<Message>,
    pub finish: Option<Message>,
    pub memo: Memo,
    pub serving: Option<Serving>,
}

impl Seat {
    pub fn here(&self) -> Option<Connection> {
        if let Place::Here(connection) = self.place { Some(connection) } else { None }
    }
}

impl Server {
    /// A connection introduced itself: a newcomer, or someone who has a seat.
    pub fn admit(&mut self, around: &mut Around<'_>, connection: Connection, hello: Message) {
        let peer = self.connections[&connection].peer;
        match self.seats.get(&peer).map(|seat| seat.place) {
            None => self.welcome(around, connection, &hello),
            // The seat is about to be free: the newest connection waits for it.
            Some(Place::Ended) => {
                let waiting: Vec<_> = self.waiting(&peer).collect();
                waiting.into_iter().for_each(|older| self.hang_up(around, older, "a newer connection waits for its seat"));
                self.connections.get_mut(&connection).expect("it just spoke").hello = Some(hello);
            }
            // Its Hello took longer than that of a connection made later.
            Some(Place::Here(newer)) if newer > connection => self.hang_up(around, connection, "its client came back since"),
            Some(Place::Here(older)) => {
                around.ledger.replaced += 1;
                self.replaced.push(older);
                self.hang_up(around, older, "its client came back");
                self.welcome_back(around, connection, &hello);
            }
            Some(Place::Away { .. }) => self.welcome_back(around, connection, &hello),
        }
    }

    /// Connections of a client that wait for its seat to be freed.
    pub fn waiting(&self, peer: &PeerId) -> impl Iterator<Item = Connection> {
        self.connections.iter().filter(|(_, open)| open.peer == *peer && open.hello.is_some()).map(|(connection, _)| *connection)
    }

    fn welcome(&mut self, around: &mut Around<'_>, connection: Connection, hello: &Message) {
        let Message::Hello { cut, name, .. } = hello else { unreachable!("Hello is made of Hello") };
        let peer = self.connections[&connection].peer;
        // A client's place among those enrolled: the same whenever it comes.
        let number = Scenario::client_of(peer) as u32;
        self.edge.seat(number, peer, cut.0..LAYERS);
        let mut keys = toy::keys(0..cut.0);
        // As if this server read another model than the one that the contract is of.
        keys.extend((name == "foreign").then(|| "layers.99".to_string()));
        let mut order = ServerSession::new();
        assert_eq!(order.handle(hello), Ok(SessionEvent::Hello));
        let welcome = self.welcome_message(number, false, &order);
        order.sent(&welcome).expect("Welcome answers Hello");
        self.incarnations += 1;
        let seat = Seat {
            number,
            place: Place::Here(connection),
            incarnation: self.incarnations,
            known: false,
            keys: keys.clone(),
            order,
            adapter: None,
            settled: None,
            finish: None,
            memo: Memo::default(),
            serving: None,
        };
        self.seats.insert(peer, seat);
        self.say_welcome(around, connection, &welcome);
        match self.driver.over.clone() {
            None => self.inbox.push_back(Word::Event(Event::Joined { peer, client: number, keys })),
            // The coordinator decides nothing any more.
            Some(finish) => self.tell_end(around, &peer, finish),
        }
    }

    /// The seat's client is back, in the same process or in a new one. Nothing that comes over its connection before counts from here on.
    fn welcome_back(&mut self, around: &mut Around<'_>, connection: Connection, hello: &Message) {
        let Message::Hello { resume, .. } = hello else { unreachable!("Hello is made of Hello") };
        let peer = self.connections[&connection].peer;
        let (id, seat) = (self.id(), self.seats.get_mut(&peer).expect("it has a seat"));
        seat.order.resume();
        let resume = resume.filter(|resume| resume.id == id && seat.order.is_resumable());
        seat.place = Place::Here(connection);
        let mut again = Vec::new();
        if let Some((round, state)) = seat.adapter.clone()
            && resume.is_none_or(|Resume { holds, .. }| holds < Some(round))
        {
            again.push(Command::Adopt { round, state });
        }
        again.extend(seat.settled.clone().map(Command::Say));
        let (number, order, finish) = (seat.number, seat.order.clone(), seat.finish.clone());
        // What was said before is said again, in the same breath: no step of the client's is judged in between.
        if let Some(finish) = finish {
            seat.order.sent(&finish).expect("a session that resumed can be told to finish");
            again.push(Command::Say(finish));
        }
        around.ledger.back(resume.is_some());
        let welcome = self.welcome_message(number, resume.is_some(), &order);
        self.say_welcome(around, connection, &welcome);
        again.into_iter().for_each(|command| self.queue(around, connection, command));
    }

    fn welcome_message(&self, client: u32, resumed: bool, order: &ServerSession) -> Message {
        Message::Welcome {
            plan: self.scenario.plan.clone(),
            activations: self.scenario.activations,
            gradients: self.scenario.gradients,
            adapters: cutlayer_wire::Encoding::F32,
            client,
            clients: self.scenario.clients.len() as u32,
            id: self.id(),
            resumed,
            awaits: order.awaits(),
            updated: order.updated(),
        }
    }

    fn say_welcome(&mut self, around: &mut Around<'_>, connection: Connection, welcome: &Message) {
        let Message::Welcome { client, resumed, awaits, .. } = welcome else { unreachable!("it was just made") };
        let what = format_args!("server: welcomes connection {} as {client}, resumed {resumed}, awaits {awaits:?}", connection.0);
        around.trace.note(around.now_ms, what);
        self.connections.get_mut(&connection).expect("it just spoke").seated = true;
        self.effects.push(crate::server::Effect::Send { connection, packet: Packet::control(welcome) });
    }

    /// The client of a connection that is no more has some time to come back.
    pub fn away(&mut self, around: &mut Around<'_>, peer: PeerId, connection: Connection) {
        let reconnect_ms = self.scenario.reconnect_ms;
        let Some(seat) = self.seats.get_mut(&peer).filter(|seat| seat.place == Place::Here(connection)) else { return };
        seat.place = Place::Away { until_ms: around.now_ms + reconnect_ms };
        self.wake(reconnect_ms, Timer::Away);
    }

    /// The seat's client leaves for good: the driver tells the coordinator, then frees the seat.
    pub fn end(&mut self, around: &mut Around<'_>, peer: PeerId, reason: &str, graceful: bool) {
        let seat = self.seats.get_mut(&peer).expect("only a seat ends");
        let here = seat.here();
        if std::mem::replace(&mut seat.place, Place::Ended) != Place::Ended {
            self.inbox.push_back(Word::Ended { peer, reason: reason.into() });
        }
        if let Some(connection) = here {
            self.close(around, connection, reason, graceful);
        }
    }

    /// Nobody sits here any more: whoever waits is next.
    pub fn free(&mut self, around: &mut Around<'_>, peer: PeerId) {
        let seat = self.seats.remove(&peer).expect("only a seat is freed");
        around.trace.note(around.now_ms, format_args!("server: the seat of {peer} is free"));
        self.edge.unseat(seat.number);
        self.turns.leave(seat.number);
        self.turn_passes();
        if let Some(connection) = self.waiting(&peer).max() {
            let hello = self.connections.get_mut(&connection).and_then(|open| open.hello.take()).expect("it waits");
            self.admit(around, connection, hello);
        }
    }
}

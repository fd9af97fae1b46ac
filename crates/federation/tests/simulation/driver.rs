//! Carries out what the coordinator decides, in order, as `node`'s driver does: durable first, then in force, then said.

use std::collections::VecDeque;
use std::sync::Arc;

use cutlayer_federation::{Action, Event, Progress, Wait};
use cutlayer_wire::{AdapterState, Message, PeerId, RefusalCode, RoundId};

use crate::edge::Moments;
use crate::seat::{Place, Seat};
use crate::server::{Around, Command, Server, Timer, Word};

/// When the server's process is killed, relative to a write to its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    BeforeWrite,
    AfterWrite,
}

/// What survives the server's process.
pub struct Disk {
    pub progress: Progress,
    pub state: AdapterState,
    pub moments: Moments,
    /// The writes of a round that kill the process.
    pub deaths: Vec<(u32, Death)>,
}

impl Disk {
    /// Each round is written once, and in order, whoever wrote the one before.
    fn write(&mut self, progress: Progress, state: &AdapterState, moments: Moments) {
        assert_eq!(progress.round, self.progress.round.next(), "rounds are committed one by one");
        (self.progress, self.state, self.moments) = (progress, state.clone(), moments);
    }

    /// Whether the process dies just now.
    fn kills(&mut self, round: RoundId, death: Death) -> bool {
        let place = self.deaths.iter().position(|planned| *planned == (round.0, death));
        place.map(|place| self.deaths.remove(place)).is_some()
    }
}

/// What the driver is in the middle of.
#[derive(Default)]
pub struct State {
    todo: VecDeque<Action>,
    /// It waits for the disk or for the server's part, and hears nothing.
    blocked: bool,
    writing: Option<(RoundId, Arc<AdapterState>)>,
    collecting: Option<(RoundId, Vec<PeerId>)>,
    scheduled_ms: Option<u64>,
    /// The run is over, and this is what everyone was told.
    pub over: Option<Message>,
    /// The process was killed.
    pub dead: bool,
    /// Nobody is served any more.
    pub closed: bool,
}

impl Server {
    /// Does all that can be done now.
    pub fn pump(&mut self, around: &mut Around<'_>) {
        while !self.driver.blocked && !self.driver.dead && !self.driver.closed {
            if let Some(action) = self.driver.todo.pop_front() {
                self.perform(around, action);
            } else if let Some(word) = self.inbox.pop_front() {
                match word {
                    Word::Event(event) => self.tell_coordinator(around, event),
                    Word::Ended { peer, reason } => self.left(around, peer, reason),
                }
            } else if let Some(peer) = self.overdue(around.now_ms) {
                around.ledger.given_up += 1;
                self.left(around, peer, "it did not come back".into());
            } else if self.coordinator.next_deadline_ms().is_some_and(|at_ms| at_ms <= around.now_ms) {
                self.tell_coordinator(around, Event::Tick);
            } else {
                break;
            }
        }
        let deadline_ms = self.coordinator.next_deadline_ms();
        if !self.driver.blocked && deadline_ms != self.driver.scheduled_ms {
            self.driver.scheduled_ms = deadline_ms;
            if let Some(at_ms) = deadline_ms {
                let late_ms = self.random.between(0, 3);
                self.wake(at_ms - around.now_ms + late_ms, Timer::Deadline);
            }
        }
        if self.driver.over.is_some() && !self.driver.closed && self.seats.is_empty() {
            self.close_all(around);
        }
    }

    /// Whoever was away for too long. Judged here and now: one that came back in time was never overdue.
    fn overdue(&self, now_ms: u64) -> Option<PeerId> {
        let overdue = |place| matches!(place, Place::Away { until_ms } if until_ms <= now_ms);
        self.seats.iter().find(|(_, seat)| overdue(seat.place)).map(|(peer, _)| *peer)
    }

    /// No wait of the driver's goes on after its end, unless it is in the middle of something short.
    pub fn check_waits(&self, now_ms: u64) {
        let idle = !self.driver.blocked && !self.driver.dead && !self.driver.closed;
        let late = |seat: &Seat| matches!(seat.place, Place::Away { until_ms } if until_ms < now_ms);
        assert!(!idle || !self.seats.values().any(late), "a seat is kept for too long");
    }

    /// The coordinator hears that a client left, and its seat is free: both or neither.
    fn left(&mut self, around: &mut Around<'_>, peer: PeerId, reason: String) {
        self.tell_coordinator(around, Event::Left { peer, reason });
        self.free(around, peer);
    }

    pub fn driver_timer(&mut self, around: &mut Around<'_>, timer: Timer) {
        match timer {
            Timer::Disk => {
                let (round, state) = self.driver.writing.take().expect("only a commit waits for the disk");
                if around.disk.kills(round, Death::BeforeWrite) {
                    self.driver.dead = true;
                    return;
                }
                around.disk.write(self.coordinator.progress(), &state, self.edge.moments());
                if around.disk.kills(round, Death::AfterWrite) {
                    self.driver.dead = true;
                    return;
                }
                around.trace.note(around.now_ms, format_args!("disk: round {round} is durable"));
                self.edge.install(round, state.as_ref().clone());
                self.driver.blocked = false;
            }
            Timer::Part => {
                let (round, peers) = self.driver.collecting.take().expect("only a collecting server waits for its part");
                let updates = self.edge.parts(round, &peers);
                self.driver.blocked = false;
                self.inbox.push_front(Word::Event(Event::ServerPart { round, updates }));
            }
            Timer::Leave => self.close_all(around),
            // The pump looks at the clock itself.
            _ => {}
        }
    }

    fn close_all(&mut self, around: &mut Around<'_>) {
        self.driver.closed = true;
        let connections: Vec<_> = self.connections.keys().copied().collect();
        connections.into_iter().for_each(|connection| self.close(around, connection, "the server closes", false));
        self.seats.clear();
    }

    fn tell_coordinator(&mut self, around: &mut Around<'_>, event: Event) {
        around.trace.note(around.now_ms, format_args!("coordinator: hears {}", name(&event)));
        around.witness.heard(around.now_ms, &event);
        if let Event::Joined { peer, .. } = &event {
            self.seats.get_mut(peer).expect("a seat is freed only when the coordinator knows").known = true;
        }
        let actions = self.coordinator.handle(around.now_ms, event);
        around.witness.decided(around.now_ms, &actions, &self.coordinator);
        self.begin_round(&actions);
        self.driver.todo.extend(actions);
    }

    /// Training starts for all clients of a round at once, before the first of them hears of it.
    fn begin_round(&mut self, actions: &[Action]) {
        let mut training = None;
        let mut numbers = Vec::new();
        for action in actions {
            if let Action::Train { peer, round } = action {
                let seat = self.seats.get_mut(peer).expect("a seat is freed only when the coordinator knows");
                seat.memo.clear();
                self.edge.begin_round(seat.number, *round);
                numbers.push(seat.number);
                training = Some(*round);
            }
        }
        if let Some(round) = training {
            self.turns.begin(round, numbers);
            self.turn_passes();
        }
    }

    fn perform(&mut self, around: &mut Around<'_>, action: Action) {
        let settled = |round, accepted, reason: String| Command::Say(Message::Settled { round, accepted, reason });
        // Whatever is said of a round is true of the disk.
        let durable = |around: &mut Around<'_>, round: RoundId| {
            around.witness.tells(round);
            assert!(around.disk.progress.round >= round, "round {round} is spoken of, the disk has {}", around.disk.progress.round);
        };
        match action {
            Action::Broadcast { peers, round } => {
                durable(around, round);
                let (newest, state) = self.coordinator.global();
                assert_eq!(newest, round, "only the newest adapter is sent");
                let state = state.clone();
                peers.iter().for_each(|peer| self.tell(around, peer, Command::Adopt { round, state: state.clone() }));
            }
            Action::Train { peer, round } => {
                durable(around, round.previous());
                self.tell(around, &peer, Command::Say(Message::Train { round }));
            }
            Action::Evaluate { peer, round } => {
                durable(around, round);
                self.tell(around, &peer, Command::Say(Message::Evaluate { round }));
            }
            Action::Accept { peer, round } => {
                durable(around, round);
                self.tell(around, &peer, settled(round, true, String::new()));
            }
            Action::Refuse { peer, round, reason } => self.tell(around, &peer, settled(round, false, reason)),
            Action::Reject { peer, reason } => {
                self.tell(around, &peer, Command::Say(Message::Refused { code: RefusalCode::Plan, reason }));
            }
            Action::CollectServerPart { round, peers } => {
                self.driver.collecting = Some((round, peers.into_iter().map(|(peer, _)| peer).collect()));
                self.driver.blocked = self.scenario.collect_blocks;
                let after_ms = self.random.between(0, 30);
                self.wake(after_ms, Timer::Part);
            }
            Action::Commit { round, state, .. } => {
                self.driver.writing = Some((round, state));
                self.driver.blocked = true;
                let after_ms = self.random.between(0, 20);
                self.wake(after_ms, Timer::Disk);
            }
            Action::EvalDone { round, .. } => {
                durable(around, round);
                around.disk.progress = self.coordinator.progress();
            }
            Action::Missing { round, wait, peers, waited_ms } => {
                // Nobody waits for a step that may never come. The next round may have begun already: that one waits for everyone in it.
                let numbers: Vec<u32> = peers.iter().filter_map(|peer| Some(self.seats.get(peer)?.number)).collect();
                if wait == Wait::Updates {
                    around.ledger.overdue(round);
                    numbers.into_iter().for_each(|number| self.turns.finish(number, round));
                }
                self.turn_passes();
                let peers = peers.len();
                around.trace.note(around.now_ms, format_args!("driver: {peers} owe {wait} of round {round} for {waited_ms} ms"));
            }
            Action::Finish { reason } => self.finish(around, &reason),
        }
    }

    fn finish(&mut self, around: &mut Around<'_>, reason: &str) {
        around.trace.note(around.now_ms, format_args!("driver: the run is over: {reason}"));
        assert_eq!(around.disk.progress.round, self.coordinator.global().0, "the run ends with what is on the disk");
        let finish = Message::Finish { adapter: around.disk.progress.round, reason: reason.into() };
        self.driver.over = Some(finish.clone());
        // Also whoever was welcomed too late for the coordinator to hear of.
        let seated: Vec<PeerId> = self.seats.keys().copied().collect();
        seated.into_iter().for_each(|peer| self.tell_end(around, &peer, finish.clone()));
        self.wake(self.scenario.leave_ms, Timer::Leave);
    }

    /// Nobody is told to leave with an adapter that was not sent.
    pub fn tell_end(&mut self, around: &mut Around<'_>, peer: &PeerId, finish: Message) {
        let (round, state) = self.coordinator.global();
        let command = Command::Adopt { round, state: state.clone() };
        if self.seats[peer].adapter.as_ref().is_none_or(|(newest, _)| *newest < round) {
            self.tell(around, peer, command);
        }
        self.tell(around, peer, Command::Say(finish));
    }
}

fn name(event: &Event) -> String {
    match event {
        Event::Joined { peer, client, .. } => format!("that {peer} joined as {client}"),
        Event::Left { peer, reason } => format!("that {peer} left: {reason}"),
        Event::Updated { peer, frame } => format!("an update of round {} of {peer} that weighs {}", frame.round, frame.weight),
        Event::ServerPart { round, updates } => format!("{} parts of round {round}", updates.len()),
        Event::Evaluated { peer, round, .. } => format!("scores of round {round} of {peer}"),
        Event::Tick => "the clock".into(),
        Event::Stop { reason } => format!("a stop: {reason}"),
    }
}

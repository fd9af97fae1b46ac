//! Carries out what the coordinator decides, in order, as `node`'s driver does: durable first, then in force, then said.

use std::collections::VecDeque;
use std::sync::Arc;

use cutlayer_federation::{Action, Event, Progress};
use cutlayer_wire::{AdapterState, Message, PeerId, RefusalCode, RoundId};

use crate::network::Connection;
use crate::server::{Around, Command, Server, Timer};

/// How long clients may take to leave after the run.
const LEAVE_MS: u64 = 5000;

/// What survives the server's process.
pub struct Disk {
    pub progress: Progress,
    pub state: AdapterState,
    pub writes: u32,
}

impl Disk {
    /// Each round is written once, and in order, whoever wrote the one before.
    fn write(&mut self, progress: Progress, state: &AdapterState) {
        assert_eq!(progress.round, self.progress.round.next(), "rounds are committed one by one");
        (self.progress, self.state) = (progress, state.clone());
        self.writes += 1;
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
    /// The run is over, and everyone was told.
    pub over: bool,
    /// Nobody is served any more.
    pub closed: bool,
}

impl Server {
    /// Does all that can be done now.
    pub fn pump(&mut self, around: &mut Around<'_>) {
        while !self.driver.blocked {
            if let Some(action) = self.driver.todo.pop_front() {
                self.perform(around, action);
            } else if let Some(event) = self.inbox.pop_front() {
                self.tell_coordinator(around, event);
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
        if self.driver.over && !self.driver.closed && !self.sessions.values().any(|session| session.number.is_some()) {
            self.close_all(around);
        }
    }

    pub fn driver_timer(&mut self, around: &mut Around<'_>, timer: Timer) -> Result<(), String> {
        match timer {
            Timer::Disk => {
                let (round, state) = self.driver.writing.take().expect("only a commit waits for the disk");
                around.disk.write(self.coordinator.progress(), &state);
                around.trace.note(around.now_ms, format_args!("disk: round {round} is durable"));
                self.edge.install(round, state.as_ref().clone());
                self.driver.blocked = false;
            }
            Timer::Part => {
                let (round, peers) = self.driver.collecting.take().expect("only a collecting server waits for its part");
                let updates = self.edge.parts(round, &peers);
                self.driver.blocked = false;
                self.inbox.push_front(Event::ServerPart { round, updates });
            }
            Timer::Leave => self.close_all(around),
            // The pump looks at the deadline itself.
            _ => {}
        }
        Ok(())
    }

    fn close_all(&mut self, around: &mut Around<'_>) {
        self.driver.closed = true;
        let connections: Vec<_> = self.sessions.keys().copied().collect();
        connections.into_iter().for_each(|connection| self.end(around, connection, "the server closes"));
    }

    fn tell_coordinator(&mut self, around: &mut Around<'_>, event: Event) {
        around.trace.note(around.now_ms, format_args!("coordinator: hears {}", name(&event)));
        around.witness.heard(around.now_ms, &event);
        if let Event::Joined { peer, .. } = &event
            && let Some(connection) = self.seated(peer)
        {
            self.sessions.get_mut(&connection).expect("whoever is seated has a session").known = true;
        }
        let actions = self.coordinator.handle(around.now_ms, event);
        around.witness.decided(around.now_ms, &actions, &self.coordinator);
        self.begin_round(&actions);
        self.driver.todo.extend(actions);
    }

    /// Training starts for all clients of a round at once, before the first of them hears of it.
    fn begin_round(&mut self, actions: &[Action]) {
        for action in actions {
            if let Action::Train { peer, round } = action
                && let Some(connection) = self.seated(peer).filter(|connection| self.sessions[connection].known)
            {
                let number = self.sessions[&connection].number.expect("whoever is seated has a number");
                self.edge.begin_round(number, *round);
            }
        }
    }

    fn perform(&mut self, around: &mut Around<'_>, action: Action) {
        let settled = |round, accepted, reason: String| Command::Say(Message::Settled { round, accepted, reason });
        // Whatever is said of a round is true of the disk.
        let durable = |around: &Around<'_>, round: RoundId| {
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
                let peers = peers.len();
                around.trace.note(around.now_ms, format_args!("driver: {peers} owe {wait} of round {round} for {waited_ms} ms"));
            }
            Action::Finish { reason } => self.finish(around, &reason),
        }
    }

    fn finish(&mut self, around: &mut Around<'_>, reason: &str) {
        around.trace.note(around.now_ms, format_args!("driver: the run is over: {reason}"));
        assert_eq!(around.disk.progress.round, self.coordinator.global().0, "the run ends with what is on the disk");
        self.driver.over = true;
        let round = around.disk.progress.round;
        // Also whoever was welcomed too late for the coordinator to hear of.
        let seated = self.sessions.iter().filter(|(_, session)| session.number.is_some());
        let seated: Vec<Connection> = seated.map(|(connection, _)| *connection).collect();
        for connection in seated {
            self.tell_session(around, connection, Command::Say(Message::Finish { adapter: round, reason: reason.into() }));
        }
        self.wake(LEAVE_MS, Timer::Leave);
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

//! The round state machine: gather, evaluate, train, collect, commit, and again.
//!
//! Pure: [`Coordinator::handle`] takes the time and an event and returns actions. It never waits for
//! someone without a deadline, and never lets a tensor into the global adapter unchecked.
//!
//! A round ends when every sampled client has answered or left, or at its deadline. With `min_updates`
//! or more it is folded; with fewer it is skipped: committed with the global adapter unchanged, so that
//! rounds count on, at most [`SKIPPED_ROUNDS_MAX`] in a row.

mod config;
mod event;
mod fold;
mod phase;
mod progress;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cutlayer_wire::{AdapterFrame, AdapterState, EvalSums, PeerId, RoundId, Weighting};

pub use config::{ConfigError, CoordinatorConfig};
pub use event::{Action, Event, RoundSummary, Wait};
pub use progress::Progress;

use crate::aggregator::Aggregator;
use crate::contract::{Contract, UpdateRefused};
use crate::update::{Source, Update};
use phase::{Collecting, Evaluating, Phase, Seat, Training};

/// Skipped rounds in a row that end the run: something is wrong that waiting does not mend.
pub const SKIPPED_ROUNDS_MAX: u32 = 3;

/// What a client hears that sends an update nobody waits for.
const NOT_ASKED: &str = "this client was not asked for an update of that round: it is dropped";

/// One client that is connected.
#[derive(Debug)]
struct Member {
    seat: Seat,
    contract: Contract,
    /// The global adapter last broadcast to it.
    holds: Option<RoundId>,
    /// The round of its last update that was believed. One that comes back knows nothing of what it sent before it left.
    sent: Option<RoundId>,
}

/// The server's view of the whole run.
pub struct Coordinator {
    config: CoordinatorConfig,
    contract: Contract,
    aggregator: Box<dyn Aggregator>,
    global: Arc<AdapterState>,
    progress: Progress,
    members: BTreeMap<PeerId, Member>,
    phase: Phase,
    late: u32,
    actions: Vec<Action>,
}

impl Coordinator {
    /// A run that starts at `now_ms` from `global`, the adapter that round `start.round` left. One that was under way gathers its
    /// clients anew, scores that adapter where that is due and was not done, and goes on with the next round.
    pub fn new(
        now_ms: u64,
        config: CoordinatorConfig,
        contract: Contract,
        aggregator: Box<dyn Aggregator>,
        start: Progress,
        global: AdapterState,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        if start.round.0 > config.rounds {
            return Err(ConfigError {
                field: "rounds",
                found: config.rounds.to_string(),
                remedy: "the run to resume has already gone further: give more rounds",
            });
        }
        contract.check_state(&global).map_err(|refused| ConfigError {
            field: "the starting adapter",
            found: refused.to_string(),
            remedy: "start from an adapter of this model and this plan",
        })?;
        let needed = config.min_clients as usize;
        Ok(Self {
            config,
            contract,
            aggregator,
            global: Arc::new(global),
            progress: start,
            members: BTreeMap::new(),
            phase: Phase::Gathering { since_ms: now_ms, needed, started: false },
            late: 0,
            actions: Vec::new(),
        })
    }

    /// The newest global adapter and the round that left it.
    pub fn global(&self) -> (RoundId, &Arc<AdapterState>) {
        (self.progress.round, &self.global)
    }

    /// How far the run has come: what to save when a [`Action::Commit`] or an [`Action::EvalDone`] is carried out.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Whether the run is over: every further event is ignored.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Finished)
    }

    /// Who has not answered yet, in client order: the clients that everyone is waiting for.
    pub fn waiting_for(&self) -> Vec<PeerId> {
        let pending = match &self.phase {
            Phase::Training(training) => &training.pending,
            Phase::Evaluating(evaluating) => &evaluating.pending,
            Phase::Gathering { .. } | Phase::Collecting(_) | Phase::Finished => return Vec::new(),
        };
        pending.iter().map(|seat| seat.peer).collect()
    }

    /// When a [`Event::Tick`] is next needed, if ever.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let (since_ms, wait_ms) = match &self.phase {
            Phase::Gathering { since_ms, .. } => (*since_ms, self.config.join_deadline_ms),
            Phase::Training(training) => (training.since_ms, self.config.round_deadline_ms),
            Phase::Evaluating(evaluating) => (evaluating.since_ms, self.config.round_deadline_ms),
            Phase::Collecting(_) | Phase::Finished => return None,
        };
        Some(since_ms.saturating_add(wait_ms))
    }

    /// Hears one event; says what to do about it, in order.
    pub fn handle(&mut self, now_ms: u64, event: Event) -> Vec<Action> {
        if self.is_finished() {
            return Vec::new();
        }
        match event {
            Event::Joined { peer, client, keys } => self.joined(peer, client, &keys),
            Event::Left { peer, reason } => self.left(peer, &reason),
            Event::Updated { peer, frame } => self.updated(peer, frame),
            Event::ServerPart { round, updates } => self.server_part(now_ms, round, updates),
            Event::Evaluated { peer, round, sums } => self.evaluated(peer, round, sums),
            Event::Tick => {}
            Event::Stop { reason } => self.stop(&reason),
        }
        while self.advance(now_ms) {}
        std::mem::take(&mut self.actions)
    }

    fn joined(&mut self, peer: PeerId, client: u32, keys: &[String]) {
        if self.members.contains_key(&peer) {
            self.left(peer, "it connected again");
        }
        match self.contract.restricted_to(keys) {
            Ok(contract) => {
                let member = Member { seat: Seat { client, peer }, contract, holds: None, sent: None };
                self.members.insert(peer, member);
            }
            Err(refused) => {
                self.actions.push(Action::Reject { peer, reason: refused.to_string() });
            }
        }
    }

    /// An update that has already been accepted stays: its work was done.
    fn left(&mut self, peer: PeerId, reason: &str) {
        let Some(Member { seat, .. }) = self.members.remove(&peer) else { return };
        match &mut self.phase {
            Phase::Training(training) => {
                training.pending.remove(&seat);
                training.summary.left.push((peer, reason.to_string()));
            }
            Phase::Collecting(collecting) => {
                collecting.summary.left.push((peer, reason.to_string()));
            }
            Phase::Evaluating(evaluating) => {
                evaluating.pending.remove(&seat);
            }
            Phase::Gathering { .. } | Phase::Finished => {}
        }
    }

    /// Believes an update or says why not. A repeated one is ignored: the first counts.
    fn updated(&mut self, peer: PeerId, frame: AdapterFrame) {
        let Some(Member { seat, contract, sent, .. }) = self.members.get_mut(&peer) else { return };
        let round = frame.round;
        let refused = match &mut self.phase {
            _ if round <= self.progress.round => Some(self.late("was over")),
            Phase::Training(training) => {
                if training.pending.remove(seat) {
                    let checked = contract.check(training.round, &frame);
                    if checked.is_ok() {
                        let update = weigh(self.config.weighting, peer, frame);
                        training.accepted.insert(*seat, update);
                        *sent = Some(round);
                    }
                    let refused = checked.err().map(|refused| refused.to_string());
                    let named = refused.clone().map(|reason| (peer, reason));
                    training.summary.refused.extend(named);
                    refused
                } else if training.accepted.contains_key(seat) {
                    None
                } else {
                    Some(NOT_ASKED.to_string())
                }
            }
            Phase::Collecting(open) if open.accepted.contains_key(seat) => None,
            Phase::Collecting(open) if open.round == round => Some(self.late("closed")),
            Phase::Collecting(_) | Phase::Gathering { .. } | Phase::Evaluating(_) | Phase::Finished => Some(NOT_ASKED.to_string()),
        };
        let refuse = refused.map(|reason| Action::Refuse { peer, round, reason });
        self.actions.extend(refuse);
    }

    fn late(&mut self, how: &str) -> String {
        self.late += 1;
        format!("the round {how} before the update arrived: it is dropped")
    }

    fn evaluated(&mut self, peer: PeerId, round: RoundId, sums: EvalSums) {
        let Some(Member { seat, .. }) = self.members.get(&peer) else { return };
        if let Phase::Evaluating(evaluating) = &mut self.phase
            && evaluating.round == round
            && evaluating.pending.remove(seat)
            // The wire lets no other sums pass; one that did would poison the mean.
            && sums.is_possible()
        {
            evaluating.scores.insert(*seat, sums);
        }
    }

    fn stop(&mut self, reason: &str) {
        let unsettled = match std::mem::replace(&mut self.phase, Phase::Finished) {
            Phase::Training(Training { accepted, round, .. }) | Phase::Collecting(Collecting { accepted, round, .. }) => {
                Some((round, accepted))
            }
            Phase::Gathering { .. } | Phase::Evaluating(_) | Phase::Finished => None,
        };
        if let Some((round, accepted)) = unsettled {
            self.refuse_all(round, &accepted, &format!("the run ends: {reason}"));
        }
        self.finish(reason.to_string());
    }

    /// Moves on if the phase is over; whether it was.
    fn advance(&mut self, now_ms: u64) -> bool {
        match &self.phase {
            Phase::Gathering { .. } => self.advance_gathering(now_ms),
            Phase::Training(_) => self.advance_training(now_ms),
            Phase::Evaluating(_) => self.advance_evaluating(now_ms),
            Phase::Collecting(_) | Phase::Finished => false,
        }
    }

    fn advance_gathering(&mut self, now_ms: u64) -> bool {
        let Phase::Gathering { since_ms, needed, started } = self.phase else { return false };
        let waited_ms = now_ms.saturating_sub(since_ms);
        if self.members.len() >= needed {
            if started {
                self.start_training(now_ms);
            } else {
                self.after_commit(now_ms);
            }
            return true;
        }
        if waited_ms < self.config.join_deadline_ms {
            return false;
        }
        if self.progress.evaluated && self.progress.round.0 >= self.config.rounds {
            // Only the last word was left to say, and who does not come for it has heard it.
            self.next_round(now_ms);
            return true;
        }
        let here: Vec<String> = self.members.keys().map(PeerId::to_string).collect();
        let here = if here.is_empty() { "nobody".to_string() } else { here.join(", ") };
        self.finish(format!(
            "{} of {needed} clients were connected after {waited_ms} ms ({here}): start the others, or lower the number needed",
            self.members.len(),
        ));
        true
    }

    fn advance_training(&mut self, now_ms: u64) -> bool {
        let Phase::Training(training) = &self.phase else { return false };
        let waited_ms = now_ms.saturating_sub(training.since_ms);
        let needed = self.config.min_updates as usize;
        let overdue = waited_ms >= self.config.round_deadline_ms;
        let hopeless = training.pending.len() + training.accepted.len() < needed;
        if !(training.pending.is_empty() || overdue || hopeless) {
            return false;
        }
        let Phase::Training(training) = std::mem::replace(&mut self.phase, Phase::Finished) else {
            unreachable!("the phase was just looked at");
        };
        let Training { round, since_ms, pending, accepted, mut summary } = training;
        if overdue && !pending.is_empty() {
            let peers: Vec<PeerId> = pending.iter().map(|seat| seat.peer).collect();
            summary.missing.clone_from(&peers);
            self.actions.push(Action::Missing { round, wait: Wait::Updates, peers, waited_ms });
        }
        if accepted.len() < needed {
            self.skip(now_ms, Collecting { round, since_ms, accepted, summary }, None);
            return true;
        }
        let weight = |(seat, update): (&Seat, &Update)| (seat.peer, update.weight);
        let peers = accepted.iter().map(weight).collect();
        self.actions.push(Action::CollectServerPart { round, peers });
        self.phase = Phase::Collecting(Collecting { round, since_ms, accepted, summary });
        true
    }

    fn advance_evaluating(&mut self, now_ms: u64) -> bool {
        let Phase::Evaluating(Evaluating { round, since_ms, pending, scores }) = &self.phase else {
            return false;
        };
        let (round, waited_ms) = (*round, now_ms.saturating_sub(*since_ms));
        if !pending.is_empty() && waited_ms < self.config.round_deadline_ms {
            return false;
        }
        if !pending.is_empty() {
            let peers = pending.iter().map(|seat| seat.peer).collect();
            self.actions.push(Action::Missing { round, wait: Wait::Scores, peers, waited_ms });
        }
        let mut sums = EvalSums::default();
        scores.values().for_each(|score| sums.add(score));
        let per_peer = scores.iter().map(|(seat, score)| (seat.peer, *score)).collect();
        self.progress.evaluated = true;
        self.actions.push(Action::EvalDone { round, sums, per_peer });
        self.next_round(now_ms);
        true
    }

    /// The newest adapter is evaluated where that is due, else the next round starts.
    fn after_commit(&mut self, now_ms: u64) {
        let Progress { round, evaluated, .. } = self.progress;
        let every = self.config.evaluate_every;
        let due = round.0 == 0 || round.0 == self.config.rounds || (every > 0 && round.0.is_multiple_of(every));
        if !due || evaluated || self.members.is_empty() {
            return self.next_round(now_ms);
        }
        let pending: BTreeSet<Seat> = self.members.values().map(|member| member.seat).collect();
        self.broadcast(&pending);
        let evaluate = |seat: &Seat| Action::Evaluate { peer: seat.peer, round };
        self.actions.extend(pending.iter().map(evaluate));
        let scores = BTreeMap::new();
        self.phase = Phase::Evaluating(Evaluating { round, since_ms: now_ms, pending, scores });
    }

    fn next_round(&mut self, now_ms: u64) {
        let needed = self.config.min_updates as usize;
        if self.progress.round.0 >= self.config.rounds {
            self.finish(format!("all {} rounds are done", self.config.rounds));
        } else if self.members.len() < needed {
            self.phase = Phase::Gathering { since_ms: now_ms, needed, started: true };
        } else {
            self.start_training(now_ms);
        }
    }

    fn start_training(&mut self, now_ms: u64) {
        let round = self.progress.round.next();
        let seats: BTreeSet<Seat> = self.members.values().map(|member| member.seat).collect();
        let seats: Vec<Seat> = seats.into_iter().collect();
        let count = match self.config.clients_per_round {
            0 => seats.len(),
            count => count as usize,
        };
        let pending = crate::sample::sample(self.config.seed, round, &seats, count);
        let pending: BTreeSet<Seat> = pending.into_iter().collect();
        self.broadcast(&pending);
        let train = |seat: &Seat| Action::Train { peer: seat.peer, round };
        self.actions.extend(pending.iter().map(train));
        self.phase =
            Phase::Training(Training { round, since_ms: now_ms, pending, accepted: BTreeMap::new(), summary: RoundSummary::default() });
    }

    /// Sends the newest adapter to those of `seats` that do not hold it.
    fn broadcast(&mut self, seats: &BTreeSet<Seat>) {
        let round = self.progress.round;
        let mut peers = Vec::new();
        for seat in seats {
            let member = self.members.get_mut(&seat.peer).expect("only members are spoken to");
            if member.holds.replace(round) != Some(round) {
                peers.push(seat.peer);
            }
        }
        if !peers.is_empty() {
            self.actions.push(Action::Broadcast { peers, round });
        }
    }

    fn refuse_all(&mut self, round: RoundId, accepted: &BTreeMap<Seat, Update>, reason: &str) {
        let waiting = accepted.keys().filter(|seat| self.waits_for_word(seat.peer, round));
        let refuse = |seat: &Seat| Action::Refuse { peer: seat.peer, round, reason: reason.to_string() };
        let refuse: Vec<Action> = waiting.map(refuse).collect();
        self.actions.extend(refuse);
    }

    /// Whether a client is here that sent an update of the round since it last joined: it is told what became of it. To one that
    /// left and came back, a word about the update would answer a question that its session never asked.
    fn waits_for_word(&self, peer: PeerId, round: RoundId) -> bool {
        self.members.get(&peer).is_some_and(|member| member.sent == Some(round))
    }

    /// Everyone leaves with the newest adapter.
    fn finish(&mut self, reason: String) {
        let seats = self.members.values().map(|member| member.seat).collect();
        self.broadcast(&seats);
        self.actions.push(Action::Finish { reason });
        self.phase = Phase::Finished;
    }
}

/// What a client sent, as the plan's weighting reads it.
fn weigh(weighting: Weighting, peer: PeerId, frame: AdapterFrame) -> Update {
    let weight = match weighting {
        Weighting::Tokens | Weighting::Samples => frame.weight,
        Weighting::Uniform => 1.0,
    };
    Update { source: Source::Client(peer), round: frame.round, weight, tensors: frame.state }
}

#[cfg(test)]
mod tests;

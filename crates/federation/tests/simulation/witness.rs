//! What must hold, whatever happens: a second, plain account of a run that the coordinator's is held against.
//!
//! It hears what the coordinator hears and judges what it decides; it shares no code with it. It must never
//! look into the coordinator.

use std::collections::{BTreeMap, BTreeSet};

use cutlayer_federation::{Action, Coordinator, CoordinatorConfig, Event, RoundSummary, Source, Update};
use cutlayer_wire::{AdapterFrame, AdapterState, EvalSums, HostTensor, PeerId, RoundId, Weighting};

use crate::toy::{self, BASE, SHAPE};

/// A client's number and its key, in the order in which rounds are folded.
type Seat = (u32, PeerId);

struct Member {
    number: u32,
    keys: Vec<String>,
}

/// The round that is under way.
struct Open {
    round: RoundId,
    since_ms: u64,
    pending: BTreeSet<Seat>,
    counted: BTreeMap<Seat, AdapterFrame>,
    refused: usize,
    collecting: bool,
    parts: Vec<Update>,
}

struct Scoring {
    round: RoundId,
    since_ms: u64,
    pending: BTreeSet<Seat>,
    scores: BTreeMap<Seat, EvalSums>,
}

/// What happened over a run, or over many.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub committed: u64,
    pub skipped: u64,
    pub accepted: u64,
    pub refused: u64,
    pub late: u64,
    pub late_words: u64,
    pub overdue: u64,
    pub rejected: u64,
    pub returned: u64,
}

pub struct Witness {
    config: CoordinatorConfig,
    weight_max: f64,
    committed: RoundId,
    global: AdapterState,
    members: BTreeMap<PeerId, Member>,
    open: Option<Open>,
    scoring: Option<Scoring>,
    /// Late updates since the last commit that the coordinator heard of.
    late: u32,
    /// Whom the next actions must refuse.
    refuse: Option<PeerId>,
    reject: Option<PeerId>,
    /// The last round whose commit a client was told of, in whatever words.
    told: RoundId,
    /// What each round left.
    states: Vec<AdapterState>,
    /// Everyone that ever joined.
    known: BTreeSet<PeerId>,
    /// Who trained in each round that was committed.
    pub trained: Vec<Vec<Seat>>,
    pub finished: bool,
    pub tally: Tally,
}

impl Witness {
    pub fn new(config: CoordinatorConfig, weight_max: f64) -> Self {
        Self {
            config,
            weight_max,
            committed: RoundId(0),
            global: toy::start(),
            members: BTreeMap::new(),
            open: None,
            scoring: None,
            late: 0,
            refuse: None,
            reject: None,
            told: RoundId(0),
            states: Vec::new(),
            known: BTreeSet::new(),
            trained: Vec::new(),
            finished: false,
            tally: Tally::default(),
        }
    }

    /// The server's process started again from its disk: what it knew besides is gone. What was committed stays, and with it every
    /// round that anyone was told of.
    pub fn restarted(&mut self, round: RoundId, state: &AdapterState) {
        assert!(round >= self.told, "round {} was spoken of, the disk has {round}", self.told);
        if let Some(committed) = (round.0 as usize).checked_sub(1) {
            assert_eq!(toy::bits(&self.states[committed]), toy::bits(state), "round {round} is not what was committed");
        }
        self.states.truncate(round.0 as usize);
        (self.committed, self.global) = (round, state.clone());
        self.members.clear();
        (self.open, self.scoring, self.late) = (None, None, 0);
        // An end that was decided, but neither durable nor said, was not one.
        self.finished = false;
        self.trained.truncate(round.0 as usize);
    }

    /// Someone is told something that is true only once `round` is committed.
    pub fn tells(&mut self, round: RoundId) {
        self.told = self.told.max(round);
    }

    /// A session dropped an update that came late.
    pub fn late_update(&mut self, round: RoundId) {
        let over = round <= self.committed;
        let closed = self.open.as_ref().is_none_or(|open| open.collecting) || self.finished;
        assert!(over || closed, "an update of round {round} is not late: the round is under way");
        self.tally.late += 1;
    }

    /// A session dropped scores that came late.
    pub fn late_word(&mut self, _round: RoundId) {
        self.tally.late_words += 1;
    }

    /// Before the coordinator hears it.
    pub fn heard(&mut self, now_ms: u64, event: &Event) {
        (self.refuse, self.reject) = (None, None);
        if self.finished {
            return;
        }
        match event {
            Event::Joined { peer, client, keys } => self.joined(*peer, *client, keys),
            Event::Left { peer, .. } => self.left(peer),
            Event::Updated { peer, frame } => self.updated(*peer, frame),
            Event::ServerPart { updates, .. } => {
                if let Some(open) = self.open.as_mut().filter(|open| open.collecting) {
                    open.parts.clone_from(updates);
                }
            }
            Event::Evaluated { peer, round, sums } => {
                let Some(member) = self.members.get(peer) else { return };
                let seat = (member.number, *peer);
                if let Some(scoring) = self.scoring.as_mut().filter(|scoring| scoring.round == *round)
                    && scoring.pending.remove(&seat)
                {
                    scoring.scores.insert(seat, *sums);
                }
            }
            Event::Tick => {
                let waits = self.open.as_ref().map(|open| open.since_ms).or(self.scoring.as_ref().map(|scoring| scoring.since_ms));
                let overdue = waits.is_some_and(|since_ms| now_ms >= since_ms + self.config.round_deadline_ms);
                self.tally.overdue += u64::from(overdue);
            }
            Event::Stop { .. } => {}
        }
    }

    fn joined(&mut self, peer: PeerId, number: u32, keys: &[String]) {
        self.left(&peer);
        if keys.iter().all(|key| self.global.contains_key(key)) {
            self.members.insert(peer, Member { number, keys: keys.to_vec() });
            self.tally.returned += u64::from(!self.known.insert(peer));
        } else {
            self.reject = Some(peer);
            self.tally.rejected += 1;
        }
    }

    fn left(&mut self, peer: &PeerId) {
        let Some(member) = self.members.remove(peer) else { return };
        let seat = (member.number, *peer);
        if let Some(open) = &mut self.open {
            open.pending.remove(&seat);
        }
        if let Some(scoring) = &mut self.scoring {
            scoring.pending.remove(&seat);
        }
    }

    fn updated(&mut self, peer: PeerId, frame: &AdapterFrame) {
        let Some(member) = self.members.get(&peer) else { return };
        let seat = (member.number, peer);
        if frame.round <= self.committed {
            self.late += 1;
            self.refuse = Some(peer);
            return;
        }
        let Some(open) = &mut self.open else {
            self.refuse = Some(peer);
            return;
        };
        if !open.collecting && open.pending.remove(&seat) {
            if is_valid(frame, open.round, &member.keys, self.weight_max) {
                open.counted.insert(seat, frame.clone());
            } else {
                open.refused += 1;
                self.refuse = Some(peer);
            }
        } else if !open.counted.contains_key(&seat) {
            self.late += u32::from(open.collecting && frame.round == open.round);
            self.refuse = Some(peer);
        }
    }

    /// After the coordinator decided.
    pub fn decided(&mut self, now_ms: u64, actions: &[Action], coordinator: &Coordinator) {
        for action in actions {
            assert!(!self.finished, "{action:?} after the end");
            self.judge(now_ms, action);
        }
        if let Some(peer) = self.refuse.filter(|peer| self.members.contains_key(peer)) {
            let refused = actions.iter().any(|action| matches!(action, Action::Refuse { peer: other, .. } if *other == peer));
            assert!(refused, "{peer} is not told that its update does not count: {actions:?}");
        }
        if let Some(peer) = self.reject {
            assert!(actions.iter().any(|action| matches!(action, Action::Reject { peer: other, .. } if *other == peer)));
        }
        assert_eq!(self.finished, coordinator.is_finished());
        assert_eq!(self.committed, coordinator.global().0);
        // No wait without an end, and none whose end has passed: the next look at the clock changes something.
        let collecting = self.open.as_ref().is_some_and(|open| open.collecting);
        match coordinator.next_deadline_ms() {
            Some(at_ms) => assert!(at_ms > now_ms, "the deadline of {at_ms} ms has passed and nothing moved"),
            None => assert!(self.finished || collecting, "a wait without a deadline"),
        }
        let owing = |seats: &BTreeSet<Seat>| seats.iter().map(|(_, peer)| *peer).collect::<Vec<_>>();
        let waiting = match (&self.open, &self.scoring) {
            (Some(open), _) if !open.collecting => owing(&open.pending),
            (None, Some(scoring)) => owing(&scoring.pending),
            _ => Vec::new(),
        };
        assert_eq!(coordinator.waiting_for(), waiting, "whom everyone waits for");
    }

    fn judge(&mut self, now_ms: u64, action: &Action) {
        match action {
            Action::Train { peer, round } => self.asked_to_train(now_ms, *peer, *round),
            Action::Evaluate { peer, round } => {
                assert_eq!(*round, self.committed, "the newest adapter is scored");
                let member = self.members.get(peer).expect("only members are asked");
                let fresh = || Scoring { round: *round, since_ms: now_ms, pending: BTreeSet::new(), scores: BTreeMap::new() };
                self.scoring.get_or_insert_with(fresh).pending.insert((member.number, *peer));
            }
            Action::CollectServerPart { round, peers } => self.collects(now_ms, *round, peers),
            Action::Commit { round, state, summary } => self.commits(now_ms, *round, state, summary),
            Action::EvalDone { round, sums, per_peer } => {
                let scoring = self.scoring.take().expect("scores were asked for");
                let overdue = now_ms >= scoring.since_ms + self.config.round_deadline_ms;
                assert!(scoring.pending.is_empty() || overdue, "an evaluation ends early");
                let scores: Vec<_> = scoring.scores.iter().map(|((_, peer), sums)| (*peer, *sums)).collect();
                let mut total = EvalSums::default();
                scores.iter().for_each(|(_, score)| total.add(score));
                assert_eq!((*round, *sums, per_peer), (scoring.round, total, &scores), "scores add up");
            }
            Action::Accept { peer, round } => {
                assert_eq!(*round, self.committed, "accepted once committed");
                assert!(self.members.contains_key(peer), "{peer} is gone");
                self.tally.accepted += 1;
            }
            Action::Refuse { peer, .. } => {
                assert!(self.members.contains_key(peer), "{peer} is gone");
                self.tally.refused += 1;
            }
            Action::Reject { peer, .. } => assert_eq!(Some(*peer), self.reject),
            Action::Missing { peers, waited_ms, .. } => {
                assert!(!peers.is_empty() && *waited_ms >= self.config.round_deadline_ms);
            }
            Action::Broadcast { peers, round } => {
                assert_eq!(*round, self.committed, "only the newest adapter is sent");
                assert!(peers.iter().all(|peer| self.members.contains_key(peer)));
            }
            Action::Finish { .. } => {
                self.finished = true;
                (self.open, self.scoring) = (None, None);
            }
        }
    }

    fn asked_to_train(&mut self, now_ms: u64, peer: PeerId, round: RoundId) {
        assert_eq!(round, self.committed.next(), "rounds are trained in order");
        let member = self.members.get(&peer).expect("only members are asked");
        let fresh = || Open {
            round,
            since_ms: now_ms,
            pending: BTreeSet::new(),
            counted: BTreeMap::new(),
            refused: 0,
            collecting: false,
            parts: Vec::new(),
        };
        self.open.get_or_insert_with(fresh).pending.insert((member.number, peer));
    }

    fn collects(&mut self, now_ms: u64, round: RoundId, peers: &[(PeerId, f64)]) {
        let open = self.open.as_mut().expect("a round is under way");
        let overdue = now_ms >= open.since_ms + self.config.round_deadline_ms;
        assert!(open.pending.is_empty() || overdue, "round {round} ends early: {:?} are owed", open.pending);
        assert!(open.counted.len() >= self.config.min_updates as usize, "round {round} ends with too few updates");
        let weight = |((_, peer), frame): (&Seat, &AdapterFrame)| (*peer, weigh(self.config.weighting, frame));
        assert_eq!((round, peers), (open.round, &open.counted.iter().map(weight).collect::<Vec<_>>()[..]), "exactly what counts");
        open.collecting = true;
    }

    fn commits(&mut self, now_ms: u64, round: RoundId, state: &AdapterState, summary: &RoundSummary) {
        assert_eq!(round, self.committed.next(), "rounds are committed once and in order");
        let open = self.open.take().expect("a round is under way");
        assert_eq!(round, open.round);
        assert_eq!(summary.late, std::mem::take(&mut self.late), "late updates are counted");
        let needed = self.config.min_updates as usize;
        let seats: Vec<Seat> = open.counted.keys().copied().collect();
        if summary.skipped.is_some() {
            // k updates at the deadline are a round, never a skipped one.
            assert!(open.counted.len() < needed, "round {round} is skipped with {} of {needed} updates", open.counted.len());
            let hopeless = open.pending.len() + open.counted.len() < needed;
            let overdue = now_ms >= open.since_ms + self.config.round_deadline_ms;
            assert!(hopeless || overdue, "round {round} is given up early");
            assert_eq!(toy::bits(state), toy::bits(&self.global), "a skipped round changes nothing");
            self.tally.skipped += 1;
        } else {
            assert!(open.collecting, "a round is committed with the server's part");
            let weight = |((_, peer), frame): (&Seat, &AdapterFrame)| (*peer, weigh(self.config.weighting, frame));
            assert_eq!(summary.accepted, open.counted.iter().map(weight).collect::<Vec<_>>(), "what is in is what counted");
            assert_eq!(summary.refused.len(), open.refused);
            let expected = plain_mean(&self.global, &open, self.config.weighting);
            assert_eq!(toy::bits(state), toy::bits(&expected), "round {round} is the weighted mean of what counted");
            self.tally.committed += 1;
        }
        self.trained.push(seats);
        self.states.push(state.clone());
        (self.committed, self.global) = (round, state.clone());
    }
}

fn weigh(weighting: Weighting, frame: &AdapterFrame) -> f64 {
    if weighting == Weighting::Uniform { 1.0 } else { frame.weight }
}

/// What an update must be, in the words of the documentation.
fn is_valid(frame: &AdapterFrame, round: RoundId, keys: &[String], weight_max: f64) -> bool {
    let belongs = frame.round == round && frame.base_prefix == BASE.prefix();
    let weighs = frame.weight.is_finite() && frame.weight > 0.0 && frame.weight <= weight_max;
    let fits =
        |tensor: &HostTensor| tensor.shape == SHAPE && tensor.values.len() == 6 && tensor.values.iter().all(|value| value.is_finite());
    let mut wanted: Vec<&String> = keys.iter().collect();
    wanted.sort();
    belongs && weighs && frame.state.keys().eq(wanted) && frame.state.values().all(fits)
}

/// Tensor by tensor, over whoever trained it.
fn plain_mean(global: &AdapterState, open: &Open, weighting: Weighting) -> AdapterState {
    let of_key = |(key, current): (&String, &HostTensor)| {
        let mut weighed = Vec::new();
        let mut left_to_shared = 0.0;
        for ((_, peer), frame) in &open.counted {
            let weight = weigh(weighting, frame);
            let part = open.parts.iter().find(|part| part.source == Source::Client(*peer));
            let own = frame.state.get(key);
            weighed.extend(own.or(part.and_then(|part| part.tensors.get(key))).map(|tensor| (weight, tensor)));
            left_to_shared += if own.is_none() { weight } else { 0.0 };
        }
        let shared = open.parts.iter().find(|part| part.source == Source::SharedServer).and_then(|part| part.tensors.get(key));
        weighed.extend(shared.filter(|_| left_to_shared > 0.0).map(|tensor| (left_to_shared, tensor)));
        (key.clone(), toy::mean(&weighed).unwrap_or_else(|| current.clone()))
    };
    global.iter().map(of_key).collect()
}

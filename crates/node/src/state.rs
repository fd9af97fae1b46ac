//! What either side keeps on the disk, so that a run goes on where it was when a process is killed.
//!
//! The server keeps each round that it commits; a client what each round starts from. Both then take the round under way again, and
//! since a round follows from the seed and from what is kept, it comes out the same to the bit.

use crate::edge::EdgeState;
use crate::error::NodeError;
use cutlayer_data::BatcherState;
use cutlayer_durable::{Saved, Store};
use cutlayer_federation::Progress;
use cutlayer_model::{Moment, Moments};
use cutlayer_wire::{AdapterState, EvalSums, HostTensor, RoundId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Steps behind each tensor's moments, by whose they are.
type Steps = BTreeMap<String, BTreeMap<String, u32>>;
type Tensors = BTreeMap<String, HostTensor>;

const RUN: &str = "run";
const SHARED: &str = "shared";

/// A run as its server committed it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RunState {
    pub about: RunAbout,
    pub global: AdapterState,
    pub edge: EdgeState,
}

/// What of it is not tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunAbout {
    /// Drawn when the run began.
    pub run: u64,
    /// How often its server was started.
    pub starts: u32,
    /// A digest of all that must not change on the way.
    pub plan: String,
    pub progress: Progress,
    /// Rounds that changed the adapter.
    pub trained: u32,
    /// Each client's index, by its key.
    pub indices: BTreeMap<String, u32>,
    pub evaluations: Vec<(u32, EvalSums)>,
}

#[derive(Serialize, Deserialize)]
struct RunFile {
    #[serde(flatten)]
    about: RunAbout,
    steps: Steps,
}

/// Where a server keeps its run.
pub(crate) struct RunStore {
    store: Store,
    folder: PathBuf,
}

impl RunStore {
    pub fn open(folder: &Path) -> Result<Self, NodeError> {
        Ok(Self { store: Store::open(folder)?, folder: folder.into() })
    }

    /// The run as it was last committed; nothing in a new folder. One with another `plan` is refused.
    pub fn load(&self, plan: &str) -> Result<Option<RunState>, NodeError> {
        let Some((_, saved)) = self.store.newest::<RunFile>(RUN, |_| true)? else { return Ok(None) };
        let RunFile { about, steps } = saved.state;
        if about.plan != plan {
            let reason = "it holds a run with another plan, base model or encodings".into();
            return Err(NodeError::OtherRun { folder: self.folder.clone(), reason });
        }
        let mut tensors = saved.tensors;
        let edge = EdgeState {
            shared: tensors.keys().any(|name| name.starts_with("shared/value/")).then(|| {
                let moments = take_moments(SHARED, &steps, &mut tensors);
                (take("shared/value/", &mut tensors), moments)
            }),
            clients: about
                .indices
                .values()
                .map(|client| (*client, take_moments(&client.to_string(), &steps, &mut tensors)))
                .filter(|(_, moments)| !moments.is_empty())
                .collect(),
        };
        Ok(Some(RunState { about, global: take("global/", &mut tensors), edge }))
    }

    /// Keeps the run as committed.
    pub fn save(&self, state: RunState) -> Result<(), NodeError> {
        let RunState { about, global, edge } = state;
        let number = u64::from(about.progress.round.0);
        let (mut tensors, mut steps) = (Tensors::new(), Steps::new());
        put("global/", global, &mut tensors);
        for (client, moments) in edge.clients {
            put_moments(&client.to_string(), moments, &mut steps, &mut tensors);
        }
        if let Some((values, moments)) = edge.shared {
            put("shared/value/", values, &mut tensors);
            put_moments(SHARED, moments, &mut steps, &mut tensors);
        }
        Ok(self.store.save(RUN, number, &Saved { state: RunFile { about, steps }, tensors })?)
    }
}

/// What a round starts from on a client, beside the global adapter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RoundStart {
    pub batches: BatcherState,
    pub moments: Moments,
}

#[derive(Serialize, Deserialize)]
struct RoundFile {
    batches: BatcherState,
    steps: Steps,
}

/// Where a client keeps the starts of the rounds of one run.
pub(crate) struct RoundStore {
    store: Store,
    name: String,
}

impl RoundStore {
    /// The store in `folder` of the run `run`, in which this client is number `client`.
    pub fn open(folder: &Path, run: u64, client: u32) -> Result<Self, NodeError> {
        Ok(Self { store: Store::open(folder)?, name: format!("round-{run:016x}-{client}") })
    }

    /// What `round` starts from: what was kept of it or, where this client was not asked for some rounds, of the last one before it.
    pub fn load(&self, round: RoundId) -> Result<Option<(RoundId, RoundStart)>, NodeError> {
        let Some((number, mut saved)) = self.store.newest::<RoundFile>(&self.name, |number| number <= u64::from(round.0))? else {
            return Ok(None);
        };
        let moments = take_moments("own", &saved.state.steps, &mut saved.tensors);
        let of = RoundId(u32::try_from(number).unwrap_or(round.0));
        Ok(Some((of, RoundStart { batches: saved.state.batches, moments })))
    }

    /// Keeps what `round` starts from; the two before it are kept too.
    pub fn save(&self, round: RoundId, start: RoundStart) -> Result<(), NodeError> {
        let (mut tensors, mut steps) = (Tensors::new(), Steps::new());
        put_moments("own", start.moments, &mut steps, &mut tensors);
        let state = RoundFile { batches: start.batches, steps };
        Ok(self.store.save(&self.name, round.0.into(), &Saved { state, tensors })?)
    }
}

fn put(prefix: &str, state: impl IntoIterator<Item = (String, HostTensor)>, tensors: &mut Tensors) {
    tensors.extend(state.into_iter().map(|(key, tensor)| (format!("{prefix}{key}"), tensor)));
}

fn take(prefix: &str, tensors: &mut Tensors) -> BTreeMap<String, HostTensor> {
    let taken = tensors.extract_if(.., |name, _| name.starts_with(prefix));
    taken.map(|(name, tensor)| (name[prefix.len()..].to_owned(), tensor)).collect()
}

fn put_moments(whose: &str, moments: Moments, steps: &mut Steps, tensors: &mut Tensors) {
    let mut counted = BTreeMap::new();
    for (key, Moment { mean, square, steps }) in moments {
        tensors.insert(format!("{whose}/mean/{key}"), mean);
        tensors.insert(format!("{whose}/square/{key}"), square);
        counted.insert(key, steps);
    }
    steps.insert(whose.to_owned(), counted);
}

fn take_moments(whose: &str, steps: &Steps, tensors: &mut Tensors) -> Moments {
    let mut means = take(&format!("{whose}/mean/"), tensors);
    let mut squares = take(&format!("{whose}/square/"), tensors);
    let moment = |(key, steps): (&String, &u32)| {
        let (mean, square) = (means.remove(key)?, squares.remove(key)?);
        Some((key.clone(), Moment { mean, square, steps: *steps }))
    };
    steps.get(whose).into_iter().flatten().filter_map(moment).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(fill: f32) -> HostTensor {
        HostTensor { shape: vec![2], values: vec![fill, -fill] }
    }

    fn moments(fill: f32) -> Moments {
        let moment = |steps| Moment { mean: tensor(fill), square: tensor(fill + 1.0), steps };
        [("a.weight".to_owned(), moment(3)), ("b/c".to_owned(), moment(4))].into()
    }

    /// Goal: a run comes back as it was, and another is refused. Method: save two rounds, load.
    #[test]
    fn runs_survive() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = RunStore::open(folder.path()).expect("a new folder");
        assert_eq!(store.load("plan").expect("nothing yet"), None);
        let state = |round: u32| RunState {
            about: RunAbout {
                run: u64::MAX - 5,
                starts: 2,
                plan: "plan".into(),
                progress: Progress { round: RoundId(round), evaluated: false, skipped_in_a_row: 1 },
                trained: 4,
                indices: [("aa".to_owned(), 0), ("bb".to_owned(), 12)].into(),
                evaluations: vec![(0, EvalSums { loss_sum: 2.5, scored: 3, correct: 1 })],
            },
            global: [("x".to_owned(), tensor(round as f32))].into(),
            edge: EdgeState { clients: [(12, moments(1.0))].into(), shared: Some(([("x".to_owned(), tensor(9.0))].into(), moments(5.0))) },
        };
        store.save(state(1)).expect("room on the disk");
        store.save(state(2)).expect("room on the disk");
        assert_eq!(store.load("plan").expect("whole"), Some(state(2)));
        let refused = store.load("another").expect_err("another plan").to_string();
        assert!(refused.contains("another plan"), "{refused}");
    }

    /// Goal: a client finds the rounds of its own run alone. Method: two runs, four rounds, of which three are kept.
    #[test]
    fn starts_of_rounds_survive() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let start =
            |given| RoundStart { batches: BatcherState { fingerprint: "f".into(), epoch: 1, given }, moments: moments(given as f32) };
        let store = RoundStore::open(folder.path(), 7, 0).expect("a new folder");
        for round in 1..=4 {
            store.save(RoundId(round), start(u64::from(round))).expect("room on the disk");
        }
        assert_eq!(store.load(RoundId(3)).expect("whole"), Some((RoundId(3), start(3))));
        assert_eq!(store.load(RoundId(2)).expect("whole"), Some((RoundId(2), start(2))));
        assert_eq!(store.load(RoundId(9)).expect("rounds without it"), Some((RoundId(4), start(4))));
        assert_eq!(store.load(RoundId(1)).expect("three are kept"), None);
        drop(store);
        let other = RoundStore::open(folder.path(), 8, 0).expect("the same folder");
        assert_eq!(other.load(RoundId(3)).expect("another run's"), None);
    }
}

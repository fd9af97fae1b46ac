//! Whatever happens, in whatever order: the promises that every action keeps.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const CLIENTS: u32 = 4;
const KEYS: [&[&str]; 4] = [&["0"], &["0", "1"], &[], &["0", "1", "2"]];

/// One thing that may happen; rounds are relative to the newest committed one.
#[derive(Clone, Debug)]
enum Chance {
    Join(u32),
    Leave(u32),
    Update { client: u32, ahead: u32, value: f32 },
    Part { ahead: u32, shared: bool, value: f32 },
    Score { client: u32, ahead: u32 },
    Wait(u64),
    Stop,
}

fn chances() -> impl Strategy<Value = Chance> {
    let clients = || 0..CLIENTS;
    let ahead = || prop_oneof![8 => Just(1_u32), 1 => Just(0), 1 => Just(2)];
    let values = || prop_oneof![9 => -1.0..1.0_f32, 1 => Just(f32::NAN)];
    prop_oneof![
        20 => clients().prop_map(Chance::Join),
        4 => clients().prop_map(Chance::Leave),
        40 => (clients(), ahead(), values())
            .prop_map(|(client, ahead, value)| Chance::Update { client, ahead, value }),
        20 => (ahead(), any::<bool>(), values())
            .prop_map(|(ahead, shared, value)| Chance::Part { ahead, shared, value }),
        40 => (clients(), prop_oneof![8 => Just(0_u32), 1 => Just(1)])
            .prop_map(|(client, ahead)| Chance::Score { client, ahead }),
        5 => (0..DEADLINE_MS).prop_map(Chance::Wait),
        1 => Just(Chance::Stop),
    ]
}

fn play(bench: &mut Bench, chance: Chance) -> Vec<Action> {
    let newest = bench.coordinator.global().0.0;
    match chance {
        Chance::Join(client) => bench.join(client, KEYS[client as usize]),
        Chance::Leave(client) => bench.leave(client),
        Chance::Update { client, ahead, value } => {
            let filled: Vec<_> = KEYS[client as usize].iter().map(|key| (*key, value)).collect();
            bench.update(client, newest + ahead, 5.0, layers(&filled))
        }
        Chance::Part { ahead, shared, value } => {
            let parts = if shared {
                vec![part(Source::SharedServer, &[("1", value), ("2", value)])]
            } else {
                vec![part(Source::Client(peer(0)), &[("1", value)])]
            };
            bench.server_part(newest + ahead, parts)
        }
        Chance::Score { client, ahead } => bench.score(client, newest + ahead),
        Chance::Wait(ms) => bench.wait(ms),
        Chance::Stop => bench.hear(Event::Stop { reason: "stop".into() }),
    }
}

/// The promises, checked as actions go by.
#[derive(Default)]
struct Witness {
    committed: u32,
    connected: BTreeSet<PeerId>,
    holds: BTreeMap<PeerId, RoundId>,
    finished: bool,
}

impl Witness {
    fn heard(&mut self, chance: &Chance) {
        match chance {
            Chance::Join(client) => {
                self.connected.insert(peer(*client));
                self.holds.remove(&peer(*client));
            }
            Chance::Leave(client) => {
                self.connected.remove(&peer(*client));
            }
            _ => {}
        }
    }

    fn sees(&mut self, actions: &[Action]) {
        for action in actions {
            assert!(!self.finished, "{action:?} after the end");
            match action {
                Action::Broadcast { peers, round } => {
                    assert_eq!(round.0, self.committed, "only the newest adapter is sent");
                    for peer in peers {
                        assert!(self.connected.contains(peer), "{peer} is gone");
                        assert_ne!(self.holds.insert(*peer, *round), Some(*round), "sent twice");
                    }
                }
                Action::Train { peer, round } => self.asks(peer, round.0 - 1),
                Action::Evaluate { peer, round } => self.asks(peer, round.0),
                Action::Commit { round, state, summary } => {
                    assert_eq!(round.0, self.committed + 1, "rounds are committed one by one");
                    self.committed = round.0;
                    assert_eq!(state.len(), 3);
                    assert!(state.values().all(HostTensor::is_finite), "{state:?}");
                    assert_eq!(summary.skipped.is_some(), summary.accepted.is_empty());
                }
                Action::Accept { peer, round } => {
                    assert_eq!(round.0, self.committed, "accepted once committed");
                    assert!(self.connected.contains(peer));
                }
                Action::Refuse { peer, .. } => assert!(self.connected.contains(peer)),
                Action::Missing { peers, .. } => {
                    assert!(!peers.is_empty() && peers.iter().all(|p| self.connected.contains(p)));
                }
                Action::Finish { .. } => {
                    self.finished = true;
                    for peer in &self.connected {
                        assert_eq!(self.holds[peer].0, self.committed, "{peer} leaves without it");
                    }
                }
                Action::CollectServerPart { .. } | Action::EvalDone { .. } => {}
                Action::Reject { .. } => panic!("every client here is a good one"),
            }
        }
    }

    /// Nobody is asked to work on an adapter that it does not have.
    fn asks(&self, peer: &PeerId, needs: u32) {
        assert!(self.connected.contains(peer), "{peer} is gone");
        assert_eq!(self.holds.get(peer), Some(&RoundId(needs)), "{peer} lacks adapter {needs}");
    }
}

fn configs() -> impl Strategy<Value = CoordinatorConfig> {
    (1..=CLIENTS, 0..3_u32, 0..5_u32, 0..3_u32, any::<u64>()).prop_map(|(min_clients, clients_per_round, rounds, evaluate_every, seed)| {
        CoordinatorConfig {
            clients_per_round,
            min_updates: min_clients.min(clients_per_round.max(1)),
            evaluate_every,
            seed,
            ..config(min_clients, rounds)
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Goal: no order of events breaks a promise, and every run ends. Method: chance, then silence.
    #[test]
    fn every_promise_is_kept(config in configs(), chances in vec(chances(), 0..200)) {
        let (rounds, mut bench, mut witness) =
            (config.rounds, Bench::new(config), Witness::default());
        for chance in chances {
            witness.heard(&chance);
            let actions = play(&mut bench, chance);
            witness.sees(&actions);
        }
        // Silence: only deadlines, and a node that answers for its own part.
        for _ in 0..4 * (rounds + 2) {
            let actions = match bench.coordinator.next_deadline_ms() {
                Some(deadline_ms) => bench.wait(deadline_ms.saturating_sub(bench.now_ms)),
                None => bench.server_part(witness.committed + 1, vec![]),
            };
            witness.sees(&actions);
        }
        prop_assert!(witness.finished && bench.coordinator.is_finished());
        prop_assert!(witness.committed <= rounds);
    }

    /// Goal: a failure replays. Method: the same events twice give the same actions.
    #[test]
    fn the_same_events_give_the_same_actions(
        config in configs(),
        // Without NaN, which is not equal to itself.
        chances in vec(chances().prop_filter("a number", |chance| !matches!(
            chance,
            Chance::Update { value, .. } | Chance::Part { value, .. } if value.is_nan()
        )), 0..60),
    ) {
        let (mut one, mut other) = (Bench::new(config.clone()), Bench::new(config));
        for chance in chances {
            prop_assert_eq!(play(&mut one, chance.clone()), play(&mut other, chance));
        }
    }
}

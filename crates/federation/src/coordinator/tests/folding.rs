//! What a round makes of its updates, whatever the mix of cuts.

use super::*;
use crate::aggregator::{AggregateError, Aggregator};

/// Three cuts over three layers: client 0 trains layer 0, client 1 layers 0 and 1, client 2 nothing.
/// Weights 10, 30 and 60; round 1 waits for the server's part.
fn mixed() -> Bench {
    let mut bench = Bench::new(config(3, 1));
    bench.join(0, &["0"]);
    bench.join(1, &["0", "1"]);
    bench.join(2, &[]);
    (0..3).for_each(|client| drop(bench.score(client, 0)));
    bench.update(2, 1, 60.0, layers(&[]));
    bench.update(0, 1, 10.0, layers(&[("0", 1.0)]));
    let collect = bench.update(1, 1, 30.0, layers(&[("0", 2.0), ("1", 2.0)]));
    let peers = vec![(peer(0), 10.0), (peer(1), 30.0), (peer(2), 60.0)];
    assert_eq!(collect, [Action::CollectServerPart { round: RoundId(1), peers }]);
    bench
}

fn check_layers(bench: &Bench, expected: [f32; 3]) {
    assert_eq!(["0", "1", "2"].map(|key| bench.value_of(key)), expected);
}

fn client(client: u32) -> Source {
    Source::Client(peer(client))
}

/// Goal: per-client server adapters weigh what their clients weigh. Method: every layer by hand.
#[test]
fn per_client_parts_weigh_what_their_clients_do() {
    let mut bench = mixed();
    bench.server_part(
        1,
        vec![
            part(client(2), &[("0", 3.0), ("1", 3.0), ("2", 3.0)]),
            part(client(0), &[("1", 1.0), ("2", 1.0)]),
            part(client(1), &[("2", 2.0)]),
        ],
    );
    let mean = (10.0 * 1.0 + 30.0 * 2.0 + 60.0 * 3.0) / 100.0;
    check_layers(&bench, [mean; 3]);
}

/// Goal: the shared part weighs, layer by layer, the clients that left the layer to it. Method: by hand.
#[test]
fn the_shared_part_weighs_who_left_it_the_layer() {
    let mut bench = mixed();
    bench.server_part(1, vec![part(Source::SharedServer, &[("0", 9.0), ("1", 9.0), ("2", 9.0)])]);
    let zero = (10.0 * 1.0 + 30.0 * 2.0 + 60.0 * 9.0) / 100.0;
    let one = (30.0 * 2.0 + 70.0 * 9.0) / 100.0;
    check_layers(&bench, [zero, one, 9.0]);
}

/// Goal: a layer that every client trains itself is nobody else's. Method: a shared part that claims it.
#[test]
fn nobody_speaks_for_a_layer_all_clients_train() {
    let mut bench = Bench::training(config(1, 1));
    bench.good(0, 1);
    bench.server_part(1, vec![part(Source::SharedServer, &[("0", 50.0), ("1", 4.0)])]);
    check_layers(&bench, [1.0, 4.0, 0.0]);
}

/// Goal: a part that nobody accounts for is dropped. Method: of a client that left, and of a stranger.
#[test]
fn parts_of_others_are_dropped() {
    let mut bench = Bench::training(CoordinatorConfig { min_updates: 1, ..config(2, 1) });
    bench.leave(1);
    bench.good(0, 1);
    bench.server_part(1, vec![part(client(1), &[("2", 8.0)]), part(client(7), &[("2", 8.0)])]);
    check_layers(&bench, [1.0, 0.0, 0.0]);
}

/// Goal: a client whose activations spoilt its server part loses its update, and only it.
/// Method: a NaN in one part of three.
#[test]
fn a_spoilt_part_takes_its_client_along() {
    let mut bench = Bench::training(CoordinatorConfig { min_updates: 1, ..config(2, 1) });
    bench.update(0, 1, 10.0, layers(&[("0", 1.0)]));
    bench.update(1, 1, 10.0, layers(&[("0", 3.0)]));
    let done =
        bench.server_part(1, vec![part(client(0), &[("1", 1.0)]), part(client(1), &[("1", 3.0)]), part(client(1), &[("2", f32::NAN)])]);
    assert_eq!(words(&done)[..3], ["refuse 1 1", "commit 1", "accept 1 0"]);
    assert!(refusal_in(&done).contains("server's part"), "{done:?}");
    check_layers(&bench, [1.0, 1.0, 0.0]);
}

/// Goal: a part may not overrule what its client trained itself. Method: both hold layer 0.
#[test]
fn a_part_and_its_client_hold_different_layers() {
    let mut bench = Bench::training(CoordinatorConfig { min_updates: 1, ..config(2, 1) });
    bench.good(0, 1);
    bench.good(1, 1);
    let done = bench.server_part(1, vec![part(client(1), &[("0", 9.0)])]);
    assert_eq!(words(&done)[0], "refuse 1 1");
    check_layers(&bench, [1.0, 0.0, 0.0]);
}

/// Goal: a spoilt shared part spoils nobody's own layers. Method: a NaN in it; the reason is recorded.
#[test]
fn a_spoilt_shared_part_is_left_out() {
    let mut bench = mixed();
    let done = bench.server_part(1, vec![part(Source::SharedServer, &[("2", f32::INFINITY)])]);
    let reason = summary_of(&done).server_refused.expect("a reason");
    assert!(reason.contains("\"2\""), "{reason}");
    check_layers(&bench, [(10.0 + 60.0) / 40.0, 2.0, 0.0]);
}

/// Goal: too few are left after spoilt parts: the round is skipped. Method: the only client's is spoilt.
#[test]
fn spoilt_parts_may_cost_the_round() {
    let mut bench = Bench::training(config(1, 2));
    bench.good(0, 1);
    let done = bench.server_part(1, vec![part(client(0), &[("1", f32::NAN)])]);
    check_words(&done, &["refuse 1 0", "skip 1", "broadcast 1 to 0", "train 2 0"]);
    check_layers(&bench, [0.0; 3]);
}

/// Goal: an answer to no question changes nothing. Method: before, for another round, and twice.
#[test]
fn stray_parts_change_nothing() {
    let mut bench = Bench::training(config(1, 2));
    check_words(&bench.server_part(1, vec![]), &[]);
    bench.good(0, 1);
    check_words(&bench.server_part(2, vec![]), &[]);
    assert!(!bench.server_part(1, vec![]).is_empty());
    check_words(&bench.server_part(1, vec![]), &[]);
}

/// A strategy with a fault.
struct Faulty(fn(AdapterState) -> Result<AdapterState, AggregateError>);

impl Aggregator for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn aggregate(&mut self, _: RoundId, global: &AdapterState, _: &[Update]) -> Result<AdapterState, AggregateError> {
        self.0(global.clone())
    }
}

fn check_strategy_skipped(says: &str, fault: fn(AdapterState) -> Result<AdapterState, AggregateError>) {
    let mut bench = Bench::training(config(1, 1));
    bench.coordinator.aggregator = Box::new(Faulty(fault));
    bench.good(0, 1);
    let done = bench.server_part(1, vec![]);
    assert_eq!(words(&done)[..2], ["refuse 1 0", "skip 1"]);
    let skipped = summary_of(&done).skipped.expect("a reason");
    assert!(skipped.contains(says), "{skipped:?} does not say {says:?}");
    check_layers(&bench, [0.0; 3]);
}

/// Goal: whatever a strategy makes is checked before it is the global adapter. Method: errors, NaN, a lost layer.
#[test]
fn a_faulty_strategy_spoils_nothing() {
    check_strategy_skipped("no update", |_| Err(AggregateError::NoUpdates { round: RoundId(1) }));
    check_strategy_skipped("NaN or infinite", |mut state| {
        state.get_mut("1").unwrap().values[0] = f32::NAN;
        Ok(state)
    });
    check_strategy_skipped("lacks \"2\"", |mut state| {
        state.remove("2");
        Ok(state)
    });
}

/// Goal: keys and arrival do not matter to the bit. Method: the same clients in every order of arrival.
#[test]
fn arrival_does_not_matter() {
    let run = |order: [u32; 3]| {
        let mut bench = Bench::training(config(3, 1));
        for client in order {
            let (weight, value) = ([0.1, 0.7, 333.3], [1.0e-3, 0.333, -7.7e5]);
            let at = client as usize;
            bench.update(client, 1, weight[at], layers(&[("0", value[at])]));
        }
        bench.server_part(1, vec![]);
        bench.value_of("0").to_bits()
    };
    for order in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        assert_eq!(run(order), run([0, 1, 2]), "{order:?}");
    }
}

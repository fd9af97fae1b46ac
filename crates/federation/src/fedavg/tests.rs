//! What the weighted mean is, and what it refuses.

#![allow(clippy::unwrap_used)]

use cutlayer_wire::PeerId;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::update::Source;

const ROUND: RoundId = RoundId(3);

fn tensor(values: &[f32]) -> HostTensor {
    HostTensor::new(vec![values.len()], values.to_vec()).unwrap()
}

fn state(tensors: &[(&str, &[f32])]) -> AdapterState {
    tensors.iter().map(|(key, values)| ((*key).to_string(), tensor(values))).collect()
}

fn update(client: u8, weight: f64, tensors: &[(&str, &[f32])]) -> Update {
    let source = Source::Client(PeerId([client; 32]));
    Update { source, round: ROUND, weight, tensors: state(tensors) }
}

fn check_mean(global: &AdapterState, updates: &[Update], expected: &[(&str, &[f32])]) {
    assert_eq!(FedAvg.aggregate(ROUND, global, updates).unwrap(), state(expected));
}

/// Goal: the mean is weighted. Method: by hand, with weights 1 and 3.
#[test]
fn a_mean_is_weighted() {
    let global = state(&[("a", &[0.0, 0.0])]);
    let updates = [update(1, 1.0, &[("a", &[4.0, -8.0])]), update(2, 3.0, &[("a", &[8.0, 0.0])])];
    check_mean(&global, &updates, &[("a", &[7.0, -2.0])]);
}

/// Goal: a layer is folded over whoever trained it. Method: three cuts; layer 0 by two clients, layer 1
/// by one client and the shared server, layer 2 by the server, layer 3 by nobody.
#[test]
fn layers_are_folded_over_whoever_trained_them() {
    let global = state(&[("0", &[9.0]), ("1", &[9.0]), ("2", &[9.0]), ("3", &[9.0])]);
    let server = |weight, tensors| Update { source: Source::SharedServer, ..update(0, weight, tensors) };
    let updates = [
        update(1, 2.0, &[("0", &[1.0]), ("1", &[1.0])]),
        update(2, 6.0, &[("0", &[5.0])]),
        update(3, 5.0, &[]),
        server(6.0, &[("1", &[5.0])]),
        server(8.0, &[("2", &[-1.0])]),
    ];
    check_mean(&global, &updates, &[("0", &[4.0]), ("1", &[4.0]), ("2", &[-1.0]), ("3", &[9.0])]);
}

fn check_refused(says: &str, spoil: impl FnOnce(&mut Update)) {
    let global = state(&[("a", &[0.0, 0.0])]);
    let mut spoilt = update(2, 1.0, &[("a", &[1.0, 1.0])]);
    spoil(&mut spoilt);
    let updates = [update(1, 1.0, &[("a", &[1.0, 1.0])]), spoilt];
    let error = FedAvg.aggregate(ROUND, &global, &updates).expect_err(says).to_string();
    assert!(error.contains(says), "{error:?} does not say {says:?}");
}

/// Goal: no spoilt update is folded. Method: spoil one of two in each way.
#[test]
fn spoilt_updates_are_refused() {
    check_refused("client 02020202 sent an update of round 2 to round 3", |u| u.round = RoundId(2));
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        check_refused(&format!("client 02020202 weighs {weight}"), |u| u.weight = weight);
    }
    check_refused("holds \"b\"", |u| u.tensors = state(&[("b", &[1.0])]));
    check_refused("shape [3], the global adapter's is [2]", |u| {
        u.tensors = state(&[("a", &[1.0; 3])]);
    });
    check_refused("\"a\" of round 3 is not finite", |u| u.tensors = state(&[("a", &[1.0, f32::NAN])]));
    check_refused("is not finite", |u| u.tensors = state(&[("a", &[f32::NEG_INFINITY, 1.0])]));
    let nothing = FedAvg.aggregate(ROUND, &AdapterState::new(), &[]);
    assert_eq!(nothing, Err(AggregateError::NoUpdates { round: ROUND }));
}

/// Goal: the mean of the largest values is finite. Method: twice f32's maximum, whose sum overflows f32.
#[test]
fn large_values_do_not_overflow() {
    let tensors: &[(&str, &[f32])] = &[("a", &[f32::MAX, f32::MIN])];
    check_mean(&state(tensors), &[update(1, 1e15, tensors), update(2, 1e15, tensors)], tensors);
}

fn values() -> impl Strategy<Value = Vec<f32>> {
    vec(prop_oneof![-1e3..1e3_f32, -1e-30..1e-30_f32, -1e38..1e38_f32], 4)
}

fn clients() -> impl Strategy<Value = Vec<(f64, Vec<f32>)>> {
    vec((1e-3..1e9_f64, values()), 1..8)
}

fn updates_of(clients: &[(f64, Vec<f32>)]) -> Vec<Update> {
    let one = |(client, (weight, values)): (u8, &(f64, Vec<f32>))| update(client, *weight, &[("a", values)]);
    (0..).zip(clients).map(one).collect()
}

proptest! {
    /// Goal: no client's place matters. Method: any order gives the same mean, to f32's rounding.
    #[test]
    fn order_does_not_matter(
        (clients, shuffled) in clients().prop_flat_map(|c| (Just(c.clone()), Just(c).prop_shuffle())),
    ) {
        let global = state(&[("a", &[0.0; 4])]);
        let one = FedAvg.aggregate(ROUND, &global, &updates_of(&clients)).unwrap();
        let other = FedAvg.aggregate(ROUND, &global, &updates_of(&shuffled)).unwrap();
        for place in 0..4 {
            let largest = clients.iter().map(|(_, v)| v[place].abs()).fold(0.0, f32::max);
            let gap = (one["a"].values[place] - other["a"].values[place]).abs();
            prop_assert!(gap <= largest * f32::EPSILON, "{gap} at {place}");
        }
    }

    /// Goal: one client alone is the global adapter. Method: to the bit, whatever its weight.
    #[test]
    fn one_client_is_the_identity(weight in 1e-3..1e15_f64, values in values()) {
        let global = state(&[("a", &[0.0; 4])]);
        let updates = updates_of(&[(weight, values.clone())]);
        let mean = FedAvg.aggregate(ROUND, &global, &updates).unwrap();
        prop_assert_eq!(&mean["a"].values, &values);
    }

    /// Goal: what all agree on stays. Method: equal clients of unequal weights, to the bit.
    #[test]
    fn equal_clients_are_a_fixed_point(weights in vec(1e-3..1e9_f64, 1..8), values in values()) {
        let clients: Vec<_> = weights.into_iter().map(|weight| (weight, values.clone())).collect();
        let global = state(&[("a", &values)]);
        let mean = FedAvg.aggregate(ROUND, &global, &updates_of(&clients)).unwrap();
        prop_assert_eq!(mean, global);
    }

    /// Goal: a mean lies between its parts, and only ratios of weights matter. Method: bounds; weights doubled.
    #[test]
    fn a_mean_lies_between(clients in clients()) {
        let global = state(&[("a", &[0.0; 4])]);
        let mean = FedAvg.aggregate(ROUND, &global, &updates_of(&clients)).unwrap();
        let doubled: Vec<_> = clients.iter().map(|(w, v)| (w * 2.0, v.clone())).collect();
        prop_assert_eq!(&mean, &FedAvg.aggregate(ROUND, &global, &updates_of(&doubled)).unwrap());
        for place in 0..4 {
            let column = clients.iter().map(|(_, values)| values[place]);
            let (low, high) = (column.clone().fold(f32::MAX, f32::min), column.fold(f32::MIN, f32::max));
            let value = mean["a"].values[place];
            prop_assert!((low..=high).contains(&value), "{value} outside {low}..={high}");
        }
    }
}

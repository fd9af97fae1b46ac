//! Each way in which an update can break its contract.

#![allow(clippy::unwrap_used)]

use super::*;

const BASE: BaseHash = BaseHash([7; 32]);

fn state(rank: usize) -> AdapterState {
    ["layers.0.A", "layers.0.B", "layers.1.A"].map(|key| (key.to_string(), HostTensor::zeros(vec![rank, 4]))).into()
}

fn contract() -> Contract {
    Contract::of(BASE, &state(2), 100.0)
}

fn check_refused(says: &str, spoil: impl FnOnce(&mut AdapterFrame)) {
    let mut frame = AdapterFrame::new(RoundId(3), 100.0, &BASE, state(2));
    contract().check(RoundId(3), &frame).unwrap();
    spoil(&mut frame);
    let error = contract().check(RoundId(3), &frame).expect_err(says).to_string();
    assert!(error.contains(says), "{error:?} does not say {says:?}");
}

/// Goal: every way of being wrong is refused by name. Method: spoil one thing at a time.
#[test]
fn spoilt_updates_are_refused_by_name() {
    check_refused("of round 2, this is round 3", |f| f.round = RoundId(2));
    check_refused("of round 4, this is round 3", |f| f.round = RoundId(4));
    check_refused("base model 0000000000000001, this run trains 0707070707070707", |f| {
        f.base_prefix = 1;
    });
    for weight in [0.0, -1.0, 100.1, f64::NAN, f64::INFINITY] {
        check_refused(&format!("weighs {weight}"), |f| f.weight = weight);
    }
    check_refused("holds \"extra\"", |f| {
        f.state.insert("extra".into(), HostTensor::zeros(vec![1]));
    });
    check_refused("lacks \"layers.0.A\" and 1 others", |f| {
        f.state.retain(|key, _| key == "layers.1.A");
    });
    check_refused("\"layers.0.A\" has shape [4, 4], the plan's rank and the model make it [2, 4]", |f| {
        f.state = state(4);
    });
    check_refused("\"layers.1.A\" has shape", |f| {
        f.state.get_mut("layers.1.A").unwrap().values.pop();
    });
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        check_refused("\"layers.0.B\" holds a NaN or infinite value", |f| {
            f.state.get_mut("layers.0.B").unwrap().values[3] = value;
        });
    }
}

/// Goal: a client answers for its own layers. Method: one layer's contract against all, one and none.
#[test]
fn a_client_answers_for_its_own_layers() {
    let keys = ["layers.0.A".to_string(), "layers.0.B".to_string()];
    let own = contract().restricted_to(&keys).unwrap();
    let mut layers = state(2);
    assert!(own.check_state(&layers).is_err());
    layers.retain(|key, _| keys.contains(key));
    own.check_state(&layers).unwrap();
    own.check_part(&AdapterState::new()).unwrap();
    assert!(own.check_state(&AdapterState::new()).is_err());
    let none = contract().restricted_to(&[]).unwrap();
    none.check_state(&AdapterState::new()).unwrap();
    let error = contract().restricted_to(&["layers.9.A".to_string()]).expect_err("no such layer");
    assert!(error.to_string().contains("layers.9.A"), "{error}");
}

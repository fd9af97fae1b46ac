//! Goal: policies tell right from wrong as well as can be, within their budgets, and are reported as they are on unseen examples. Method:
//! examples drawn from a known law, and labels that say nothing.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::offload::Cost;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

const LOCAL: Cost = Cost { latency_ms: 20.0, energy_j: 2.0, bytes: 0.0 };
const EDGE: Cost = Cost { latency_ms: 120.0, energy_j: 0.5, bytes: 4000.0 };

fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    f64::from(rng.next_u32()) / 2_f64.powi(32)
}

/// Examples whose answers are right with a probability that two features tell, the edge's with 0.9 whatever they are.
fn examples(seed: u64, count: usize) -> Vec<Example> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let example = |_| {
        let entropy = uniform(&mut rng) * 4.0;
        let margin = uniform(&mut rng);
        let (prompt_tokens, noise) = ((uniform(&mut rng) * 500.0).floor(), uniform(&mut rng));
        let right = probability(3.0 - 2.0 * entropy + 2.0 * margin);
        let features = Features { entropy_mean: entropy, margin_first: margin, prompt_tokens, logprob_mean: -noise, ..Features::default() };
        let local_right = f64::from(u8::from(uniform(&mut rng) < right));
        let edge_right = f64::from(u8::from(uniform(&mut rng) < 0.9));
        Example { features, local_right, edge_right, local: LOCAL, edge: EDGE }
    };
    (0..count).map(example).collect()
}

/// What a policy gives on examples.
fn outcome(policy: &Policy, examples: &[Example]) -> (f64, f64) {
    let count = examples.len() as f64;
    let kept = |example: &&Example| policy.keeps_local(&example.features);
    let right = |example: &Example| if kept(&example) { example.local_right } else { example.edge_right };
    (examples.iter().map(right).sum::<f64>() / count, examples.iter().filter(kept).count() as f64 / count)
}

/// Goal: the law is found, and what is reported is what comes. Method: 2,000 examples to fit, 20,000 others.
#[test]
fn what_is_reported_is_what_unseen_examples_give() {
    let fit = fit(&examples(1, 2000), Budget::Accuracy(0.9)).unwrap();
    let other = examples(2, 20_000);
    let (accuracy, share) = outcome(&fit.policy, &other);
    assert!((accuracy - fit.chosen.outcome.accuracy).abs() < 0.02, "{accuracy}, not {}", fit.chosen.outcome.accuracy);
    assert!((share - fit.chosen.outcome.share_local).abs() < 0.03, "{share}, not {}", fit.chosen.outcome.share_local);
    let error = other.iter().map(|example| {
        let law = probability(3.0 - 2.0 * example.features.entropy_mean + 2.0 * example.features.margin_first);
        (fit.policy.confidence(&example.features) - law).abs()
    });
    assert!(error.sum::<f64>() / 20_000.0 < 0.03);
    assert!(fit.calibration_error < 0.04 && fit.auc > 0.85, "{} {}", fit.calibration_error, fit.auc);
    assert!(fit.aurc < 0.6 * (1.0 - fit.always_local.accuracy), "{} of {:?}", fit.aurc, fit.always_local);
    assert!(fit.chosen.outcome.accuracy > fit.random.accuracy + 0.05 && fit.chosen.outcome.accuracy < fit.oracle.accuracy);
    assert_eq!(fit.policy.threshold, fit.chosen.threshold);
    assert!(fit.policy.weights[0] < -1.0 && fit.policy.weights[4] > 0.3, "{:?}", fit.policy.weights);
}

/// Goal: nothing is reported of the examples that were learnt from. Method: labels that no feature tells, few enough to be learnt by heart.
#[test]
fn labels_that_say_nothing_are_not_told_apart() {
    let aucs: Vec<f64> = (0..20)
        .map(|seed| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut examples = examples(seed, EXAMPLES_MIN);
            examples.iter_mut().for_each(|example| example.local_right = f64::from(rng.next_u32() % 2));
            fit(&examples, Budget::Local(0.5)).unwrap().auc
        })
        .collect();
    let mean = aucs.iter().sum::<f64>() / 20.0;
    assert!(mean < 0.55, "{mean} of {aucs:?}");
}

#[test]
fn budgets_are_kept() {
    let examples = examples(3, 600);
    let chosen = |budget| fit(&examples, budget).unwrap().chosen.outcome;
    let whole = fit(&examples, Budget::Local(0.0)).unwrap();
    for budget in [
        Budget::Accuracy(0.8),
        Budget::Accuracy(0.9),
        Budget::LatencyMs(60.0),
        Budget::EnergyJ(1.0),
        Budget::Bytes(1000.0),
        Budget::Local(0.7),
    ] {
        let chosen = chosen(budget);
        let within = |outcome: &Outcome| match budget {
            Budget::Accuracy(least) => outcome.accuracy >= least,
            Budget::LatencyMs(most) => outcome.latency_ms <= most,
            Budget::EnergyJ(most) => outcome.energy_j <= most,
            Budget::Bytes(most) => outcome.bytes <= most,
            Budget::Local(least) => outcome.share_local >= least,
        };
        let better = |outcome: &Outcome| match budget {
            Budget::Accuracy(_) => outcome.share_local > chosen.share_local,
            _ => outcome.accuracy > chosen.accuracy,
        };
        assert!(within(&chosen), "{budget:?}: {chosen:?}");
        assert!(!whole.curve.iter().any(|point| within(&point.outcome) && better(&point.outcome)), "{budget:?}: {chosen:?}");
    }
    // The ends are always there.
    assert_eq!(chosen(Budget::Local(1.0)), whole.always_local);
    assert_eq!(chosen(Budget::Bytes(0.0)), whole.always_local);
    assert_eq!((whole.always_edge.share_local, whole.always_edge.bytes), (0.0, EDGE.bytes));
    assert!((chosen(Budget::Accuracy(0.0)).share_local - 1.0).abs() < 1e-12);
}

#[test]
fn what_is_out_of_reach_says_what_is_not() {
    let examples = examples(3, 600);
    let best = fit(&examples, Budget::Local(0.0)).unwrap().chosen.outcome.accuracy;
    let refused = |budget| match fit(&examples, budget) {
        Err(FitError::Unreachable { reachable, .. }) => reachable,
        other => panic!("{other:?}"),
    };
    assert!((refused(Budget::Accuracy(1.0)) - best).abs() < 1e-12);
    assert!((refused(Budget::LatencyMs(19.0)) - 20.0).abs() < 1e-9);
    assert!((refused(Budget::EnergyJ(0.1)) - 0.5).abs() < 1e-9);
}

#[test]
fn the_same_examples_give_the_same_policy() {
    let examples = examples(5, 300);
    assert_eq!(fit(&examples, Budget::Local(0.3)), fit(&examples, Budget::Local(0.3)));
}

#[test]
fn bad_examples_and_budgets_are_refused() {
    let good = examples(6, EXAMPLES_MIN);
    let local = Budget::Local(0.5);
    assert_eq!(fit(&good[1..], local).unwrap_err(), FitError::TooFew { examples: EXAMPLES_MIN - 1 });
    for right in [0.0, 1.0] {
        let same: Vec<Example> = good.iter().map(|example| Example { local_right: right, ..*example }).collect();
        assert!(matches!(fit(&same, local), Err(FitError::OneClass { .. })));
    }
    let with = |change: fn(&mut Example)| {
        let mut bad = good.clone();
        change(&mut bad[7]);
        match fit(&bad, local) {
            Err(FitError::Example { index: 7, name, .. }) => name,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(with(|example| example.features.entropy_max = f64::NAN), "entropy_max");
    assert_eq!(with(|example| example.features.prompt_tokens = -2.0), "prompt_tokens");
    assert_eq!(with(|example| example.local_right = 1.1), "local_right");
    assert_eq!(with(|example| example.edge_right = f64::NAN), "edge_right");
    assert_eq!(with(|example| example.edge.bytes = -1.0), "bytes");
    assert_eq!(with(|example| example.local.latency_ms = f64::INFINITY), "latency_ms");
    for budget in
        [Budget::Accuracy(1.1), Budget::Local(-0.1), Budget::LatencyMs(f64::NAN), Budget::Bytes(f64::INFINITY), Budget::EnergyJ(-1.0)]
    {
        assert!(matches!(fit(&good, budget), Err(FitError::Budget { .. })), "{budget:?}");
    }
}

/// Goal: every fold has its share of both classes, however the file is sorted. Method: labels in blocks and in turns.
#[test]
fn folds_are_dealt_evenly() {
    for count in [EXAMPLES_MIN, 97, 1000] {
        for labels in [
            (0..count).map(|place| f64::from(u8::from(place < count / 3))).collect::<Vec<_>>(),
            (0..count).map(|place| (place % 2) as f64).collect(),
        ] {
            let folds = deal(&labels);
            for class in [0.0, 1.0] {
                let of_class = |fold| (0..count).filter(|place| labels[*place] == class && folds[*place] == fold).count();
                let sizes: Vec<usize> = (0..FOLDS).map(of_class).collect();
                assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
            }
        }
    }
}

#[test]
fn features_that_are_no_numbers_ask_the_edge() {
    let policy = fit(&examples(1, 100), Budget::Local(1.0)).unwrap().policy;
    assert!(policy.keeps_local(&Features::default()));
    assert!(!policy.keeps_local(&Features { entropy_mean: f64::NAN, ..Features::default() }));
}

//! Learns a policy from examples, and what it would give from examples that it did not see.
//!
//! The examples are dealt into folds. Each fold's are scored by a regression on the others, and those scores are calibrated by Platt's
//! method (Platt 1999) on the others' scores: so the curve, the areas and the chosen point are of unseen examples. The policy itself is
//! fitted on all of them. Only the choice of the threshold among the curve's looked at the numbers that it is reported with.

use super::curve::{self, Outcome, Point};
use super::logistic::{probability, regress};
use super::{Budget, Example, FEATURES, Features, Policy};
use serde::{Deserialize, Serialize};

/// Fewest examples: five for each feature.
pub const EXAMPLES_MIN: usize = 5 * FEATURES;
/// Fewest of them that the device got right, and that it got wrong: one for each fold.
pub const CLASS_MIN: usize = FOLDS;
/// Parts of the examples, each scored by what was learnt from the others.
pub const FOLDS: usize = 5;

/// The ridge of standardised features, in examples.
const RIDGE: f64 = 1.0;
/// The ridge of the calibration's one weight: only so that it stays finite.
const CALIBRATION_RIDGE: f64 = 1e-3;
/// A feature that varies less says nothing.
const DEVIATION_MIN: f64 = 1e-9;
/// Budgets are met up to rounding.
const ROUNDING: f64 = 1e-9;

/// Why there is no policy.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FitError {
    /// Nothing can be learnt from so few.
    #[error("{examples} examples; give at least {EXAMPLES_MIN}")]
    TooFew {
        /// How many.
        examples: usize,
    },
    /// The device is always right, or always wrong: there is nothing to tell apart.
    #[error("the device gets {right} right and {wrong} wrong; examples need at least {CLASS_MIN} of each, or use mode local or edge")]
    OneClass {
        /// Examples that it got right, at least by half.
        right: usize,
        /// The others.
        wrong: usize,
    },
    /// A number that cannot be.
    #[error("example {index}: {name} is {value}; it must be {allowed}")]
    Example {
        /// Which example, from 0.
        index: usize,
        /// Which of its numbers.
        name: &'static str,
        /// What it is.
        value: f64,
        /// What it may be.
        allowed: &'static str,
    },
    /// A budget that means nothing.
    #[error("a budget of {value}; it must be {allowed}")]
    Budget {
        /// What was asked for.
        value: f64,
        /// What may be.
        allowed: &'static str,
    },
    /// No threshold keeps within the budget.
    #[error("{name} {asked} is out of reach; the best that any threshold gives is {reachable}")]
    Unreachable {
        /// Of what.
        name: &'static str,
        /// What was asked for.
        asked: f64,
        /// The best on the curve.
        reachable: f64,
    },
}

/// A policy, and what it gives on examples that it was not fitted on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// What decides from now on.
    pub policy: Policy,
    /// Its threshold on the curve.
    pub chosen: Point,
    /// Every threshold that makes a difference, from nothing local to everything.
    pub curve: Vec<Point>,
    /// Everything on the device.
    pub always_local: Outcome,
    /// Everything on the edge.
    pub always_edge: Outcome,
    /// Each example where it is answered best: what no threshold can pass.
    pub oracle: Outcome,
    /// The chosen share kept by chance: what a threshold must pass.
    pub random: Outcome,
    /// The probability that a right answer is surer than a wrong one.
    pub auc: f64,
    /// Area under the curve of risk over coverage of the device's answers; less is better.
    pub aurc: f64,
    /// How far confidence is from the share that is right.
    pub calibration_error: f64,
}

/// The policy that keeps within `budget` and is the most right; of those as right, the one that keeps more local.
pub fn fit(examples: &[Example], budget: Budget) -> Result<Fit, FitError> {
    check_budget(budget)?;
    check_examples(examples)?;
    let labels: Vec<f64> = examples.iter().map(|example| example.local_right).collect();
    let rows: Vec<[f64; FEATURES]> = examples.iter().map(|example| example.features.values()).collect();
    let folds = deal(&labels);
    let scores = across(&folds, |train, index| {
        let model = learn(&pick(&rows, train), &pick(&labels, train));
        index.iter().map(|index| model.score(&rows[*index])).collect()
    });
    let confidences = across(&folds, |train, index| {
        let calibration = Calibration::of(&pick(&scores, train), &pick(&labels, train));
        index.iter().map(|index| calibration.confidence(scores[*index])).collect()
    });
    let curve = curve::curve(examples, &confidences);
    let chosen = choose(&curve, budget)?;
    let mut policy = Calibration::of(&scores, &labels).calibrate(learn(&rows, &labels));
    policy.threshold = chosen.threshold;
    let [always_edge, always_local] = [curve.first(), curve.last()].map(|point| point.expect("a curve has two ends").outcome);
    Ok(Fit {
        policy,
        chosen,
        always_local,
        always_edge,
        oracle: curve::oracle(examples),
        random: curve::random(chosen.outcome.share_local, always_edge, always_local),
        auc: curve::auc(&labels, &confidences),
        aurc: curve::aurc(&labels, &confidences),
        calibration_error: curve::calibration_error(&labels, &confidences),
        curve,
    })
}

fn check_budget(budget: Budget) -> Result<(), FitError> {
    let (value, most, allowed) = match budget {
        Budget::Accuracy(value) | Budget::Local(value) => (value, 1.0, "from 0 to 1"),
        Budget::LatencyMs(value) | Budget::EnergyJ(value) | Budget::Bytes(value) => (value, f64::MAX, "0 or more, and finite"),
    };
    if (0.0..=most).contains(&value) { Ok(()) } else { Err(FitError::Budget { value, allowed }) }
}

fn check_examples(examples: &[Example]) -> Result<(), FitError> {
    if examples.len() < EXAMPLES_MIN {
        return Err(FitError::TooFew { examples: examples.len() });
    }
    for (index, example) in examples.iter().enumerate() {
        let check = |name, value: f64, allowed, ok: bool| if ok { Ok(()) } else { Err(FitError::Example { index, name, value, allowed }) };
        for (name, value) in Features::NAMES.into_iter().zip(example.features.values()) {
            check(name, value, "finite", value.is_finite())?;
        }
        for (name, value) in [("local_right", example.local_right), ("edge_right", example.edge_right)] {
            check(name, value, "from 0 to 1", (0.0..=1.0).contains(&value))?;
        }
        for cost in [example.local, example.edge] {
            for (name, value) in [("latency_ms", cost.latency_ms), ("energy_j", cost.energy_j), ("bytes", cost.bytes)] {
                check(name, value, "0 or more, and finite", (0.0..=f64::MAX).contains(&value))?;
            }
        }
    }
    let right = examples.iter().filter(|example| example.local_right >= 0.5).count();
    let wrong = examples.len() - right;
    if right.min(wrong) < CLASS_MIN { Err(FitError::OneClass { right, wrong }) } else { Ok(()) }
}

/// The fold of each example: right and wrong ones are dealt apart, so that each fold has its share of both. A stride that shares no
/// factor with the count stands for shuffling: files are often sorted, and a shuffle would need chance.
fn deal(labels: &[f64]) -> Vec<usize> {
    let mut folds = vec![0; labels.len()];
    let (right, wrong): (Vec<usize>, Vec<usize>) = (0..labels.len()).partition(|index| labels[*index] >= 0.5);
    for class in [right, wrong] {
        let count = class.len();
        let stride = (count * 3 / 5..).find(|stride| gcd((*stride).max(1), count) == 1).expect("primes go on").max(1);
        for place in 0..count {
            folds[class[place * stride % count]] = place % FOLDS;
        }
    }
    folds
}

fn gcd(one: usize, other: usize) -> usize {
    if other == 0 { one } else { gcd(other, one % other) }
}

/// A number for each example, from those of other folds: `score` takes the indices to learn from and those to score.
fn across(folds: &[usize], score: impl Fn(&[usize], &[usize]) -> Vec<f64>) -> Vec<f64> {
    let mut scores = vec![0.0; folds.len()];
    for fold in 0..FOLDS {
        let (held_out, train): (Vec<usize>, Vec<usize>) = (0..folds.len()).partition(|index| folds[*index] == fold);
        for (index, value) in held_out.iter().zip(score(&train, &held_out)) {
            scores[*index] = value;
        }
    }
    scores
}

fn pick<T: Copy>(all: &[T], indices: &[usize]) -> Vec<T> {
    indices.iter().map(|index| all[*index]).collect()
}

/// The regression on standardised features; its confidence is not yet calibrated, and nothing is below its threshold.
fn learn(rows: &[[f64; FEATURES]], labels: &[f64]) -> Policy {
    let count = rows.len() as f64;
    let means: [f64; FEATURES] = std::array::from_fn(|place| rows.iter().map(|row| row[place]).sum::<f64>() / count);
    let deviations = std::array::from_fn(|place| {
        let variance = rows.iter().map(|row| (row[place] - means[place]).powi(2)).sum::<f64>() / count;
        // A feature that never varied is left as it is: standardised, its rounding would be all there is of it.
        if variance.sqrt() < DEVIATION_MIN { 1.0 } else { variance.sqrt() }
    });
    let standard = |row: &[f64; FEATURES]| std::array::from_fn(|place| (row[place] - means[place]) / deviations[place]);
    let (weights, bias) = regress(&rows.iter().map(standard).collect::<Vec<_>>(), labels, RIDGE);
    Policy { weights, bias, means, deviations, threshold: 0.0 }
}

/// Confidence from a score of an unseen example.
struct Calibration {
    slope: f64,
    shift: f64,
}

impl Calibration {
    /// Labels are drawn in a little, as Platt does, so that a few examples make nothing certain.
    fn of(scores: &[f64], labels: &[f64]) -> Self {
        let right: f64 = labels.iter().sum();
        let wrong = labels.len() as f64 - right;
        let (most, least) = ((right + 1.0) / (right + 2.0), 1.0 / (wrong + 2.0));
        let labels: Vec<f64> = labels.iter().map(|label| least + label * (most - least)).collect();
        let rows: Vec<[f64; 1]> = scores.iter().map(|score| [*score]).collect();
        let ([slope], shift) = regress(&rows, &labels, CALIBRATION_RIDGE);
        if slope > 0.0 {
            return Self { slope, shift };
        }
        // Scores that are the wrong way round on unseen examples say nothing: all are as sure as the base rate.
        let (_, shift) = regress(&vec![[0.0]; labels.len()], &labels, CALIBRATION_RIDGE);
        Self { slope: 0.0, shift }
    }

    fn confidence(&self, score: f64) -> f64 {
        probability(self.slope * score + self.shift)
    }

    fn calibrate(&self, policy: Policy) -> Policy {
        let weights = policy.weights.map(|weight| weight * self.slope);
        Policy { weights, bias: policy.bias * self.slope + self.shift, ..policy }
    }
}

fn choose(curve: &[Point], budget: Budget) -> Result<Point, FitError> {
    // Each budget as something to be at most, and what is the better of two that are.
    let (name, sign, asked): (_, f64, f64) = match budget {
        Budget::Accuracy(accuracy) => ("an accuracy of", -1.0, accuracy),
        Budget::LatencyMs(most) => ("a mean latency in milliseconds of", 1.0, most),
        Budget::EnergyJ(most) => ("a mean energy in joules of", 1.0, most),
        Budget::Bytes(most) => ("a mean of bytes of", 1.0, most),
        Budget::Local(share) => ("a local share of", -1.0, share),
    };
    let spent = |outcome: Outcome| match budget {
        Budget::Accuracy(_) => outcome.accuracy,
        Budget::LatencyMs(_) => outcome.latency_ms,
        Budget::EnergyJ(_) => outcome.energy_j,
        Budget::Bytes(_) => outcome.bytes,
        Budget::Local(_) => outcome.share_local,
    };
    let worth = |point: &Point| match budget {
        Budget::Accuracy(_) => [point.outcome.share_local, point.outcome.accuracy],
        _ => [point.outcome.accuracy, point.outcome.share_local],
    };
    let within = curve.iter().filter(|point| sign * spent(point.outcome) <= sign * asked + ROUNDING * asked.max(1.0));
    let best = within.max_by(|one, other| {
        let ([one_first, one_second], [other_first, other_second]) = (worth(one), worth(other));
        one_first.total_cmp(&other_first).then(one_second.total_cmp(&other_second))
    });
    best.copied().ok_or_else(|| {
        let reachable = curve.iter().map(|point| sign * spent(point.outcome)).fold(f64::INFINITY, f64::min) * sign;
        FitError::Unreachable { name, asked, reachable }
    })
}

#[cfg(test)]
mod tests;

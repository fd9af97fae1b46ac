//! What stays on the device: a small model answers, and how sure it was says whether its answer is kept or the edge is asked.
//!
//! [`fit`] learns that from a validation set and a [`Budget`]; a [`Policy`] then decides for each request. What is reported is of examples
//! that the reported numbers were not fitted on. Nothing here has a stream of chance or a clock: the same examples give the same policy.

mod curve;
mod features;
mod fitting;
mod logistic;

pub use curve::{Outcome, Point};
pub use features::{FEATURES, FeatureGauge, Features};
pub use fitting::{CLASS_MIN, EXAMPLES_MIN, FOLDS, Fit, FitError, fit};

use serde::{Deserialize, Serialize};

/// What one answer costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Until it was there, in milliseconds.
    pub latency_ms: f64,
    /// That the device spent, in joules.
    pub energy_j: f64,
    /// Sent and received.
    pub bytes: f64,
}

/// One request of the validation set, answered by both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Example {
    /// What the device saw of its own answer.
    pub features: Features,
    /// How right the device's answer was, from 0 to 1.
    pub local_right: f64,
    /// How right the edge's was.
    pub edge_right: f64,
    /// What the device's answer cost.
    pub local: Cost,
    /// What the edge's cost, with whatever the device had spent before it asked.
    pub edge: Cost,
}

/// What may be spent, as the mean of all requests; the rest is made as right as it can be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// At least so right, from 0 to 1, with as much as possible kept local.
    Accuracy(f64),
    /// At most so many milliseconds.
    LatencyMs(f64),
    /// At most so many joules of the device.
    EnergyJ(f64),
    /// At most so many bytes.
    Bytes(f64),
    /// At least this share of the requests stays local, from 0 to 1.
    Local(f64),
}

/// Decides for each request: a logistic regression on standardised features, and how sure is sure enough.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// One for each feature, in the order of [`Features::NAMES`].
    pub weights: [f64; FEATURES],
    /// Added to the weighted sum.
    pub bias: f64,
    /// What is subtracted from each feature.
    pub means: [f64; FEATURES],
    /// What each is divided by.
    pub deviations: [f64; FEATURES],
    /// Answers at least this sure are kept.
    pub threshold: f64,
}

impl Policy {
    /// The probability that the device's answer is right. Features that are no numbers give none.
    pub fn confidence(&self, features: &Features) -> f64 {
        logistic::probability(self.score(&features.values()))
    }

    /// Whether the device's answer is kept; where its features are no numbers it is not.
    pub fn keeps_local(&self, features: &Features) -> bool {
        self.confidence(features) >= self.threshold
    }

    fn score(&self, values: &[f64; FEATURES]) -> f64 {
        let parts = (0..FEATURES).map(|place| self.weights[place] * (values[place] - self.means[place]) / self.deviations[place]);
        self.bias + parts.sum::<f64>()
    }
}

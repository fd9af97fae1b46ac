//! What every threshold would have given, and how well confidence tells right from wrong.

use super::{Cost, Example};
use serde::{Deserialize, Serialize};

/// Above any confidence: nothing stays local.
pub(crate) const NEVER: f64 = 2.0;
/// Bins of the calibration error.
const BINS: usize = 10;

/// What a way to share requests out gives, as means of all requests.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Share of the requests that stay local.
    pub share_local: f64,
    /// How right the answers are.
    pub accuracy: f64,
    /// Until the answer was there, in milliseconds.
    pub latency_ms: f64,
    /// That the device spent, in joules.
    pub energy_j: f64,
    /// Sent and received.
    pub bytes: f64,
}

/// A threshold and what it gives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Answers at least this sure stay local: 0 keeps all, 2 none.
    pub threshold: f64,
    /// What comes of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Sums over examples, of which some stay local.
#[derive(Clone, Copy, Default)]
struct Sums {
    local: f64,
    right: f64,
    cost: Cost,
}

impl Sums {
    fn add(&mut self, right: f64, cost: Cost, sign: f64) {
        self.right += sign * right;
        self.cost.latency_ms += sign * cost.latency_ms;
        self.cost.energy_j += sign * cost.energy_j;
        self.cost.bytes += sign * cost.bytes;
    }

    fn outcome(&self, examples: usize) -> Outcome {
        let count = examples as f64;
        Outcome {
            share_local: self.local / count,
            accuracy: self.right / count,
            latency_ms: self.cost.latency_ms / count,
            energy_j: self.cost.energy_j / count,
            bytes: self.cost.bytes / count,
        }
    }
}

/// A point for each threshold that makes a difference, from nothing local to everything.
pub(crate) fn curve(examples: &[Example], confidences: &[f64]) -> Vec<Point> {
    let order = surest_first(confidences);
    let mut sums = Sums::default();
    examples.iter().for_each(|example| sums.add(example.edge_right, example.edge, 1.0));
    let mut points = vec![Point { threshold: NEVER, outcome: sums.outcome(examples.len()) }];
    for (place, index) in order.iter().enumerate() {
        let example = &examples[*index];
        sums.local += 1.0;
        sums.add(example.edge_right, example.edge, -1.0);
        sums.add(example.local_right, example.local, 1.0);
        let (surer, next) = (confidences[*index], order.get(place + 1).map(|next| confidences[*next]));
        if next == Some(surer) {
            continue;
        }
        let threshold = next.map_or(0.0, |next| between(next, surer));
        points.push(Point { threshold, outcome: sums.outcome(examples.len()) });
    }
    points
}

/// Where each example goes where it is answered best; of equal answers the local one, which asks nobody.
pub(crate) fn oracle(examples: &[Example]) -> Outcome {
    let mut sums = Sums::default();
    for example in examples {
        let stays = example.local_right >= example.edge_right;
        sums.local += f64::from(u8::from(stays));
        let (right, cost) = if stays { (example.local_right, example.local) } else { (example.edge_right, example.edge) };
        sums.add(right, cost, 1.0);
    }
    sums.outcome(examples.len())
}

/// What chance gives where it keeps `share_local`: between nothing local and everything.
pub(crate) fn random(share_local: f64, edge: Outcome, local: Outcome) -> Outcome {
    let mix = |edge: f64, local: f64| edge + share_local * (local - edge);
    Outcome {
        share_local,
        accuracy: mix(edge.accuracy, local.accuracy),
        latency_ms: mix(edge.latency_ms, local.latency_ms),
        energy_j: mix(edge.energy_j, local.energy_j),
        bytes: mix(edge.bytes, local.bytes),
    }
}

/// The probability that of a right and a wrong answer the right one is the surer; ties count half. Labels between count as both.
pub(crate) fn auc(labels: &[f64], confidences: &[f64]) -> f64 {
    let (mut wrong_below, mut won) = (0.0, 0.0);
    let groups = groups(confidences);
    for group in groups.iter().rev() {
        let right: f64 = group.iter().map(|index| labels[*index]).sum();
        let wrong = group.len() as f64 - right;
        won += right * (wrong_below + wrong / 2.0);
        wrong_below += wrong;
    }
    let right: f64 = labels.iter().sum();
    won / (right * wrong_below)
}

/// Area under the curve of risk over coverage (Geifman and El-Yaniv 2017): the mean, over how many of the surest are kept, of the share
/// of those that is wrong. Equally sure ones come in any order.
pub(crate) fn aurc(labels: &[f64], confidences: &[f64]) -> f64 {
    let (mut kept, mut wrong, mut area) = (0.0, 0.0, 0.0);
    for group in groups(confidences) {
        let risk = group.iter().map(|index| 1.0 - labels[*index]).sum::<f64>() / group.len() as f64;
        for _ in &group {
            kept += 1.0;
            wrong += risk;
            area += wrong / kept;
        }
    }
    area / labels.len() as f64
}

/// Expected calibration error (Guo et al. 2017), in ten bins of equal width: how far confidence is from the share that is right.
pub(crate) fn calibration_error(labels: &[f64], confidences: &[f64]) -> f64 {
    let mut gaps = [0.0; BINS];
    for (label, confidence) in labels.iter().zip(confidences) {
        let bin = ((confidence * BINS as f64) as usize).min(BINS - 1);
        gaps[bin] += confidence - label;
    }
    gaps.iter().map(|gap: &f64| gap.abs()).sum::<f64>() / labels.len() as f64
}

fn surest_first(confidences: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..confidences.len()).collect();
    order.sort_by(|one, other| confidences[*other].total_cmp(&confidences[*one]));
    order
}

/// Indices of equally sure examples, the surest first.
fn groups(confidences: &[f64]) -> Vec<Vec<usize>> {
    let order = surest_first(confidences);
    order.chunk_by(|one, other| confidences[*one] == confidences[*other]).map(<[usize]>::to_vec).collect()
}

/// A threshold that keeps `surer` and not `next`, even where no number is between them.
fn between(next: f64, surer: f64) -> f64 {
    let middle = next + (surer - next) / 2.0;
    if middle > next { middle } else { surer }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::Features;
    use proptest::prelude::*;

    fn example(local_right: f64, edge_right: f64) -> Example {
        let local = Cost { latency_ms: 1.0, energy_j: 2.0, bytes: 0.0 };
        let edge = Cost { latency_ms: 11.0, energy_j: 1.0, bytes: 100.0 };
        Example { features: Features::default(), local_right, edge_right, local, edge }
    }

    #[test]
    fn a_curve_goes_from_nothing_local_to_everything() {
        let examples = [example(1.0, 1.0), example(0.0, 1.0), example(1.0, 0.0), example(0.0, 0.0)];
        let points = curve(&examples, &[0.9, 0.2, 0.9, 0.4]);
        let brief: Vec<_> =
            points.iter().map(|Point { outcome, .. }| (outcome.share_local, outcome.accuracy, outcome.latency_ms, outcome.bytes)).collect();
        assert_eq!(brief, [(0.0, 0.5, 11.0, 100.0), (0.5, 0.75, 6.0, 50.0), (0.75, 0.75, 3.5, 25.0), (1.0, 0.5, 1.0, 0.0)]);
        assert_eq!(points.iter().map(|point| point.outcome.energy_j).collect::<Vec<_>>(), [1.0, 1.5, 1.75, 2.0]);
        assert_eq!((points[0].threshold, points[3].threshold), (NEVER, 0.0));
        assert!((points[1].threshold - 0.65).abs() < 1e-12 && (points[2].threshold - 0.3).abs() < 1e-12);
        let best = oracle(&examples);
        assert_eq!((best.accuracy, best.share_local), (0.75, 0.75));
        let chance = random(0.5, points[0].outcome, points[3].outcome);
        assert_eq!((chance.accuracy, chance.latency_ms, chance.bytes, chance.share_local), (0.5, 6.0, 50.0, 0.5));
    }

    #[test]
    fn neighbours_are_told_apart() {
        let next = f64::from_bits(0.7_f64.to_bits() - 1);
        let threshold = between(next, 0.7);
        assert!(0.7 >= threshold && next < threshold);
    }

    #[test]
    fn known_areas() {
        let labels = [1.0, 1.0, 0.0, 0.0];
        assert_eq!(auc(&labels, &[0.9, 0.8, 0.2, 0.1]), 1.0);
        assert_eq!(auc(&labels, &[0.1, 0.2, 0.8, 0.9]), 0.0);
        assert_eq!(auc(&labels, &[0.5; 4]), 0.5);
        assert_eq!(auc(&labels, &[0.9, 0.2, 0.8, 0.1]), 0.75);
        // Risks of the surest one, two, three and four.
        assert_eq!(aurc(&labels, &[0.9, 0.8, 0.2, 0.1]), (0.0 + 0.0 + 1.0 / 3.0 + 0.5) / 4.0);
        assert_eq!(aurc(&labels, &[0.5; 4]), 0.5);
        assert!((calibration_error(&[1.0, 0.0, 1.0, 1.0], &[0.55, 0.55, 1.0, 0.9]) - (0.1 + 0.1) / 4.0).abs() < 1e-12);
        assert_eq!(calibration_error(&labels, &labels), 0.0);
    }

    /// Goal: sums that are carried along are those of each threshold. Method: each point anew from its threshold, and AUC from all pairs.
    #[test]
    fn points_are_what_their_thresholds_give() {
        let some = (0_u32..6, 0.0_f64..=1.0, 0.0_f64..=1.0);
        proptest!(|(some in proptest::collection::vec(some, 2..30))| {
            let confidences: Vec<f64> = some.iter().map(|(tenths, _, _)| f64::from(*tenths) / 10.0 + 0.2).collect();
            let examples: Vec<Example> = some.iter().map(|(_, local, edge)| example(*local, *edge)).collect();
            for point in curve(&examples, &confidences) {
                let kept = |place: usize| confidences[place] >= point.threshold;
                let right = |place: usize| if kept(place) { examples[place].local_right } else { examples[place].edge_right };
                let count = examples.len() as f64;
                prop_assert!(((0..examples.len()).map(right).sum::<f64>() / count - point.outcome.accuracy).abs() < 1e-9);
                let share = (0..examples.len()).filter(|place| kept(*place)).count() as f64 / count;
                prop_assert!((share - point.outcome.share_local).abs() < 1e-9);
                prop_assert!(point.outcome.accuracy <= oracle(&examples).accuracy + 1e-9);
            }
            let labels: Vec<f64> = examples.iter().map(|example| example.local_right).collect();
            let (mut won, mut pairs) = (0.0, 0.0);
            for (right, surer) in labels.iter().zip(&confidences) {
                for (other, less_sure) in labels.iter().zip(&confidences) {
                    let weight = right * (1.0 - other);
                    pairs += weight;
                    won += weight * match surer.total_cmp(less_sure) {
                        std::cmp::Ordering::Greater => 1.0,
                        std::cmp::Ordering::Equal => 0.5,
                        std::cmp::Ordering::Less => 0.0,
                    };
                }
            }
            prop_assert!((auc(&labels, &confidences) - won / pairs).abs() < 1e-9);
        });
    }
}

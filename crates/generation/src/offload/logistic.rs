//! Logistic regression with a ridge, by Newton's method: few features, a few steps, the same result every time.

/// Most Newton steps. Six to ten are usual; the ridge makes the problem strictly convex.
const STEPS_MAX: usize = 100;
/// Steps are halved until the loss falls, at most so often.
const HALVINGS_MAX: usize = 40;
/// The loss is as low as it gets once the next step promises less than this.
const DECREMENT_MIN: f64 = 1e-12;
/// The ridge of the bias: none, but for examples of one label, where the bias would be infinite.
const BIAS_RIDGE: f64 = 1e-6;

/// 1 / (1 + e^-score), without overflow.
pub(crate) fn probability(score: f64) -> f64 {
    if score >= 0.0 {
        1.0 / (1.0 + (-score).exp())
    } else {
        let odds = score.exp();
        odds / (1.0 + odds)
    }
}

/// Weights and bias that minimise the cross-entropy of `labels`, each from 0 to 1, and half the `ridge` times the square of the weights.
pub(crate) fn regress<const N: usize>(rows: &[[f64; N]], labels: &[f64], ridge: f64) -> ([f64; N], f64) {
    assert_eq!(rows.len(), labels.len(), "each example has a label");
    // The bias is the last coefficient, of a feature that is always 1.
    let mut at = vec![0.0; N + 1];
    let mut loss_here = loss(rows, labels, ridge, &at);
    for _ in 0..STEPS_MAX {
        let (gradient, hessian) = derivatives(rows, labels, ridge, &at);
        let step = solve(hessian, gradient.clone());
        if step.iter().zip(&gradient).map(|(step, slope)| step * slope).sum::<f64>() < DECREMENT_MIN {
            break;
        }
        let lower = (0..HALVINGS_MAX).find_map(|halvings| {
            let share = 0.5_f64.powi(halvings as i32);
            let next: Vec<f64> = at.iter().zip(&step).map(|(at, step)| at - share * step).collect();
            let loss = loss(rows, labels, ridge, &next);
            (loss < loss_here).then_some((next, loss))
        });
        // No step is lower: what is left is rounding.
        let Some((next, loss)) = lower else { break };
        (at, loss_here) = (next, loss);
    }
    (std::array::from_fn(|place| at[place]), at[N])
}

fn score<const N: usize>(row: &[f64; N], at: &[f64]) -> f64 {
    row.iter().zip(at).map(|(value, weight)| value * weight).sum::<f64>() + at[N]
}

fn loss<const N: usize>(rows: &[[f64; N]], labels: &[f64], ridge: f64, at: &[f64]) -> f64 {
    let cross_entropy = |(row, label): (&[f64; N], &f64)| {
        let score = score(row, at);
        // ln(1 + e^score) - label * score, without overflow.
        score.max(0.0) + (-score.abs()).exp().ln_1p() - label * score
    };
    let penalty = ridge * at[..N].iter().map(|weight| weight * weight).sum::<f64>() + BIAS_RIDGE * at[N] * at[N];
    rows.iter().zip(labels).map(cross_entropy).sum::<f64>() + penalty / 2.0
}

fn derivatives<const N: usize>(rows: &[[f64; N]], labels: &[f64], ridge: f64, at: &[f64]) -> (Vec<f64>, Vec<Vec<f64>>) {
    let ridge_of = |place: usize| if place == N { BIAS_RIDGE } else { ridge };
    let mut gradient: Vec<f64> = (0..=N).map(|place| ridge_of(place) * at[place]).collect();
    let mut hessian: Vec<Vec<f64>> =
        (0..=N).map(|row| (0..=N).map(|column| if row == column { ridge_of(row) } else { 0.0 }).collect()).collect();
    for (row, label) in rows.iter().zip(labels) {
        let likely = probability(score(row, at));
        let value = |place: usize| if place == N { 1.0 } else { row[place] };
        for one in 0..=N {
            gradient[one] += (likely - label) * value(one);
            for (other, sum) in hessian[one][..=one].iter_mut().enumerate() {
                *sum += likely * (1.0 - likely) * value(one) * value(other);
            }
        }
    }
    (gradient, hessian)
}

/// Solves for a positive definite matrix, of which the lower half is given, by Cholesky's factors.
fn solve(mut matrix: Vec<Vec<f64>>, mut vector: Vec<f64>) -> Vec<f64> {
    let size = vector.len();
    for row in 0..size {
        for column in 0..=row {
            let known: f64 = (0..column).map(|place| matrix[row][place] * matrix[column][place]).sum();
            let rest = matrix[row][column] - known;
            // The ridge keeps what is under the root positive, but for rounding.
            matrix[row][column] = if row == column { rest.max(f64::MIN_POSITIVE).sqrt() } else { rest / matrix[column][column] };
        }
    }
    for row in 0..size {
        let known: f64 = (0..row).map(|place| matrix[row][place] * vector[place]).sum();
        vector[row] = (vector[row] - known) / matrix[row][row];
    }
    for row in (0..size).rev() {
        let known: f64 = (row + 1..size).map(|place| matrix[place][row] * vector[place]).sum();
        vector[row] = (vector[row] - known) / matrix[row][row];
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equations_are_solved() {
        let lower = [vec![4.0], vec![2.0, 5.0], vec![0.0, 1.0, 3.0]];
        let square = |row: usize, column: usize| if column <= row { lower[row][column] } else { lower[column][row] };
        let padded = (0..3).map(|row| (0..3).map(|column| if column <= row { lower[row][column] } else { 0.0 }).collect()).collect();
        let solution = solve(padded, vec![1.0, -2.0, 3.0]);
        for (row, expected) in [1.0, -2.0, 3.0].into_iter().enumerate() {
            let product: f64 = (0..3).map(|column| square(row, column) * solution[column]).sum();
            assert!((product - expected).abs() < 1e-12, "{solution:?}");
        }
    }

    /// Goal: the result is the minimum. Method: random examples, those of one label and of none among them; no slope is left.
    #[test]
    fn nothing_is_lower_than_the_result() {
        // The third feature never varies, beside a bias that does the same.
        let example = (-5.0_f64..5.0, -5.0_f64..5.0, 0.0_f64..=1.0).prop_map(|(one, two, label)| ([one, two, 1.0], label));
        proptest!(|(examples in proptest::collection::vec(example, 0..40), ridge in 0.01_f64..10.0, round: bool)| {
            let (rows, labels): (Vec<[f64; 3]>, Vec<f64>) =
                examples.into_iter().map(|(row, label)| (row, if round { label.round() } else { label })).unzip();
            let (weights, bias) = regress(&rows, &labels, ridge);
            let at: Vec<f64> = weights.into_iter().chain([bias]).collect();
            let (gradient, _) = derivatives(&rows, &labels, ridge, &at);
            prop_assert!(gradient.iter().all(|slope| slope.abs() < 1e-4), "{gradient:?} at {at:?}");
        });
    }

    #[test]
    fn what_can_be_told_apart_wholly_stays_finite() {
        let rows: Vec<[f64; 1]> = (0..20).map(|value| [f64::from(value) - 9.5]).collect();
        let labels: Vec<f64> = rows.iter().map(|row| f64::from(u8::from(row[0] > 0.0))).collect();
        let (weights, bias) = regress(&rows, &labels, 0.1);
        assert!(weights[0] > 1.0 && weights[0].is_finite() && bias.abs() < 1e-6, "{weights:?} {bias}");
        assert!(regress(&rows, &[1.0; 20], 1.0).1.is_finite());
    }

    /// Goal: without features that tell, the answer is the base rate. Method: its logarithmic odds.
    #[test]
    fn the_bias_is_the_base_rate() {
        let (_, bias) = regress(&[[0.0]; 8], &[1.0, 0.0, 1.0, 1.0, 1.0, 0.5, 1.0, 0.5], 1.0);
        assert!((bias - 3_f64.ln()).abs() < 1e-4, "{bias}");
    }

    #[test]
    fn probabilities_do_not_overflow() {
        assert_eq!([probability(-1e9), probability(0.0), probability(1e9)], [0.0, 0.5, 1.0]);
    }
}

//! Norms, rotation, activations and softmax cross-entropy: what is done row by row, each in one or two passes over memory.

use super::simd::{activation, exp, fma, lanes, load, store, vectorised};
use crate::spec::Activation;

vectorised! {
    /// `x / sqrt(mean(x²) + ε) · w`.
    fn rms_norm<S>(simd, x: &'a [f32], weight: &'a [f32], epsilon: f32, y: &'a mut [f32]) {
        let inverse = simd.splat_f32s(inverse_rms(simd, x, epsilon));
        for i in (0..x.len()).step_by(lanes::<S>()) {
            let scaled = simd.mul_f32s(load(simd, x, i), inverse);
            store(simd, y, i, simd.mul_f32s(scaled, load(simd, weight, i)));
        }
    }
}

vectorised! {
    /// With `g = grad·w`: `(g - x·mean(g·x)/rms²) / rms`.
    fn rms_norm_backward<S>(simd, x: &'a [f32], weight: &'a [f32], grad: &'a [f32], epsilon: f32, dx: &'a mut [f32]) {
        let inverse = inverse_rms(simd, x, epsilon);
        let mut dot = simd.splat_f32s(0.0);
        for i in (0..x.len()).step_by(lanes::<S>()) {
            let g = simd.mul_f32s(load(simd, grad, i), load(simd, weight, i));
            dot = fma(simd, g, load(simd, x, i), dot);
        }
        let pull = simd.splat_f32s(-simd.reduce_sum_f32s(dot) * inverse * inverse / x.len() as f32);
        let inverse = simd.splat_f32s(inverse);
        for i in (0..x.len()).step_by(lanes::<S>()) {
            let g = simd.mul_f32s(load(simd, grad, i), load(simd, weight, i));
            store(simd, dx, i, simd.mul_f32s(fma(simd, load(simd, x, i), pull, g), inverse));
        }
    }
}

#[inline(always)]
fn inverse_rms<S: pulp::Simd>(simd: S, x: &[f32], epsilon: f32) -> f32 {
    let mut sum = simd.splat_f32s(0.0);
    for i in (0..x.len()).step_by(lanes::<S>()) {
        let value = load(simd, x, i);
        sum = fma(simd, value, value, sum);
    }
    1.0 / (simd.reduce_sum_f32s(sum) / x.len() as f32 + epsilon).sqrt()
}

/// Mean, and one over the standard deviation.
#[inline(always)]
fn moments<S: pulp::Simd>(simd: S, x: &[f32], epsilon: f32) -> (f32, f32) {
    let mut sum = simd.splat_f32s(0.0);
    for i in (0..x.len()).step_by(lanes::<S>()) {
        sum = simd.add_f32s(sum, load(simd, x, i));
    }
    let mean = simd.reduce_sum_f32s(sum) / x.len() as f32;
    // Centred before it is squared: a large mean must not cancel.
    let (whole, rest) = x.split_at(x.len() - x.len() % lanes::<S>());
    let mut squares = simd.splat_f32s(0.0);
    for i in (0..whole.len()).step_by(lanes::<S>()) {
        let centred = simd.sub_f32s(load(simd, whole, i), simd.splat_f32s(mean));
        squares = fma(simd, centred, centred, squares);
    }
    let rest: f32 = rest.iter().map(|value| (value - mean) * (value - mean)).sum();
    (mean, 1.0 / ((simd.reduce_sum_f32s(squares) + rest) / x.len() as f32 + epsilon).sqrt())
}

vectorised! {
    /// `(x - mean) / sqrt(var + ε) · w + b`.
    fn layer_norm<S>(simd, x: &'a [f32], weight: &'a [f32], bias: &'a [f32], epsilon: f32, y: &'a mut [f32]) {
        let (mean, inverse) = moments(simd, x, epsilon);
        let (mean, inverse) = (simd.splat_f32s(mean), simd.splat_f32s(inverse));
        for i in (0..x.len()).step_by(lanes::<S>()) {
            let unit = simd.mul_f32s(simd.sub_f32s(load(simd, x, i), mean), inverse);
            store(simd, y, i, fma(simd, unit, load(simd, weight, i), load(simd, bias, i)));
        }
    }
}

vectorised! {
    /// With `u` the normalised row and `g = grad·w`: `(g - mean(g) - u·mean(g·u)) / deviation`.
    fn layer_norm_backward<S>(simd, x: &'a [f32], weight: &'a [f32], grad: &'a [f32], epsilon: f32, dx: &'a mut [f32]) {
        let count = x.len() as f32;
        let (mean, inverse) = moments(simd, x, epsilon);
        let (mean, inverse) = (simd.splat_f32s(mean), simd.splat_f32s(inverse));
        let unit = |i: usize| simd.mul_f32s(simd.sub_f32s(load(simd, x, i), mean), inverse);
        let (mut sum, mut dot) = (simd.splat_f32s(0.0), simd.splat_f32s(0.0));
        for i in (0..x.len()).step_by(lanes::<S>()) {
            // Beyond the end the weight reads as zero, and so does `g`.
            let g = simd.mul_f32s(load(simd, grad, i), load(simd, weight, i));
            sum = simd.add_f32s(sum, g);
            dot = fma(simd, g, unit(i), dot);
        }
        let offset = simd.splat_f32s(-simd.reduce_sum_f32s(sum) / count);
        let pull = simd.splat_f32s(-simd.reduce_sum_f32s(dot) / count);
        for i in (0..x.len()).step_by(lanes::<S>()) {
            let g = simd.mul_f32s(load(simd, grad, i), load(simd, weight, i));
            let centred = fma(simd, unit(i), pull, simd.add_f32s(g, offset));
            store(simd, dx, i, simd.mul_f32s(centred, inverse));
        }
    }
}

vectorised! {
    /// Turns one head: pairs `(i, i + e/2)` by the angles of `cos` and `sin`, backwards with `sign` -1.
    fn rotate<S>(simd, head: &'a mut [f32], cos: &'a [f32], sin: &'a [f32], sign: f32) {
        let sign = simd.splat_f32s(sign);
        let (low, high) = head.split_at_mut(cos.len());
        for i in (0..cos.len()).step_by(lanes::<S>()) {
            let (c, s) = (load(simd, cos, i), simd.mul_f32s(load(simd, sin, i), sign));
            let (x, y) = (load(simd, low, i), load(simd, high, i));
            store(simd, low, i, fma(simd, x, c, simd.neg_f32s(simd.mul_f32s(y, s))));
            store(simd, high, i, fma(simd, y, c, simd.mul_f32s(x, s)));
        }
    }
}

vectorised! {
    /// `act(gate)·up`.
    fn gated<S>(simd, gate: &'a [f32], up: &'a [f32], kind: Activation, y: &'a mut [f32]) {
        for i in (0..y.len()).step_by(lanes::<S>()) {
            let (value, _) = activation(simd, kind, load(simd, gate, i));
            store(simd, y, i, simd.mul_f32s(value, load(simd, up, i)));
        }
    }
}

vectorised! {
    /// Gradients of `gate` and `up`.
    fn gated_backward<S>(
        simd,
        gate: &'a [f32],
        up: &'a [f32],
        grad: &'a [f32],
        kind: Activation,
        d_gate: &'a mut [f32],
        d_up: &'a mut [f32],
    ) {
        for i in (0..grad.len()).step_by(lanes::<S>()) {
            let g = load(simd, grad, i);
            let (value, slope) = activation(simd, kind, load(simd, gate, i));
            store(simd, d_up, i, simd.mul_f32s(g, value));
            store(simd, d_gate, i, simd.mul_f32s(simd.mul_f32s(g, load(simd, up, i)), slope));
        }
    }
}

vectorised! {
    /// `act(x)`.
    fn activate<S>(simd, x: &'a [f32], kind: Activation, y: &'a mut [f32]) {
        for i in (0..x.len()).step_by(lanes::<S>()) {
            store(simd, y, i, activation(simd, kind, load(simd, x, i)).0);
        }
    }
}

vectorised! {
    /// `grad·act'(x)`.
    fn activate_backward<S>(simd, x: &'a [f32], grad: &'a [f32], kind: Activation, dx: &'a mut [f32]) {
        for i in (0..x.len()).step_by(lanes::<S>()) {
            store(simd, dx, i, simd.mul_f32s(load(simd, grad, i), activation(simd, kind, load(simd, x, i)).1));
        }
    }
}

vectorised! {
    /// The largest value; rows are not empty.
    fn largest<S>(simd, x: &'a [f32]) -> f32 {
        let (whole, rest) = S::as_simd_f32s(x);
        let mut best = simd.splat_f32s(f32::NEG_INFINITY);
        for &value in whole {
            best = simd.max_f32s(best, value);
        }
        rest.iter().copied().fold(simd.reduce_max_f32s(best), f32::max)
    }
}

vectorised! {
    /// `x = e^(scale·x - shift)` in place; returns the sum.
    fn exp_in_place<S>(simd, x: &'a mut [f32], scale: f32, shift: f32) -> f32 {
        let (scale, shift) = (simd.splat_f32s(scale), simd.splat_f32s(-shift));
        let (whole, rest) = S::as_mut_simd_f32s(x);
        let mut sum = simd.splat_f32s(0.0);
        for value in whole {
            *value = exp(simd, fma(simd, *value, scale, shift));
            sum = simd.add_f32s(sum, *value);
        }
        let mut total = simd.reduce_sum_f32s(sum);
        if !rest.is_empty() {
            let values = exp(simd, fma(simd, simd.partial_load_f32s(rest), scale, shift));
            simd.partial_store_f32s(rest, values);
            total += rest.iter().sum::<f32>();
        }
        total
    }
}

vectorised! {
    /// `x *= factor`.
    fn scale<S>(simd, x: &'a mut [f32], factor: f32) {
        let factor = simd.splat_f32s(factor);
        for i in (0..x.len()).step_by(lanes::<S>()) {
            let value = simd.mul_f32s(load(simd, x, i), factor);
            store(simd, x, i, value);
        }
    }
}

vectorised! {
    /// `y = p·(y - offset)·factor`: the gradient of a softmax's scores from that of its probabilities.
    fn softmax_backward<S>(simd, p: &'a [f32], y: &'a mut [f32], offset: f32, factor: f32) {
        let (offset, factor) = (simd.splat_f32s(offset), simd.splat_f32s(factor));
        for i in (0..y.len()).step_by(lanes::<S>()) {
            let share = simd.mul_f32s(load(simd, p, i), factor);
            let value = simd.mul_f32s(share, simd.sub_f32s(load(simd, y, i), offset));
            store(simd, y, i, value);
        }
    }
}

vectorised! {
    /// `Σ x·y`.
    fn dot<S>(simd, x: &'a [f32], y: &'a [f32]) -> f32 {
        let mut sum = simd.splat_f32s(0.0);
        for i in (0..x.len()).step_by(lanes::<S>()) {
            sum = fma(simd, load(simd, x, i), load(simd, y, i), sum);
        }
        simd.reduce_sum_f32s(sum)
    }
}

/// Cross-entropy of one row: its loss and likeliest class; the logits become `softmax - onehot(target)`.
pub(super) fn cross_entropy(logits: &mut [f32], target: usize) -> (f32, i32) {
    let best = largest(logits);
    let class = logits.iter().position(|&value| value == best).unwrap_or(0);
    let wanted = logits[target] - best;
    let sum = exp_in_place(logits, 1.0, best);
    scale(logits, 1.0 / sum);
    logits[target] -= 1.0;
    (sum.ln() - wanted, class as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_a_few_units_of_the_last_place_and_clamped_outside() {
        let mut x: Vec<f32> = (0..20_001).map(|i| -87.0 + 175.0 * i as f32 / 20_000.0).collect();
        let expected: Vec<f64> = x.iter().map(|&v| f64::from(v).exp()).collect();
        exp_in_place(&mut x, 1.0, 0.0);
        for (found, expected) in x.iter().zip(expected) {
            assert!((f64::from(*found) / expected - 1.0).abs() < 4e-7, "{found} is not {expected}");
        }
        let mut far = [-1e30, -200.0, f32::NEG_INFINITY];
        exp_in_place(&mut far, 1.0, 0.0);
        assert!(far.iter().all(|&v| (0.0..2e-38).contains(&v)), "{far:?}");
    }

    #[test]
    fn activations_match_their_formulas_and_their_slopes_the_difference_quotient() {
        let plain = |kind: Activation, x: f64| match kind {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => {
                // erf by its Taylor series, which converges everywhere.
                let z = x / std::f64::consts::SQRT_2;
                let (mut term, mut sum) = (z, z);
                for n in 1..200 {
                    term *= -z * z / f64::from(n);
                    sum += term / f64::from(2 * n + 1);
                }
                0.5 * x * (1.0 + 2.0 / std::f64::consts::PI.sqrt() * sum)
            }
            Activation::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh()),
            Activation::Relu => x.max(0.0),
        };
        let x: Vec<f32> = (0..67).map(|i| (i as f32 - 33.3) / 7.0).collect();
        for kind in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
            let (mut y, mut slope) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            activate(&x, kind, &mut y);
            activate_backward(&x, &vec![1.0; x.len()], kind, &mut slope);
            for (i, &x) in x.iter().enumerate() {
                let x = f64::from(x);
                let expected = (plain(kind, x + 1e-5) - plain(kind, x - 1e-5)) / 2e-5;
                assert!((f64::from(y[i]) - plain(kind, x)).abs() < 2e-6, "{kind:?}({x}) is {}, not {}", y[i], plain(kind, x));
                assert!((f64::from(slope[i]) - expected).abs() < 1e-5, "{kind:?}'({x}) is {}, not {expected}", slope[i]);
            }
        }
    }
}

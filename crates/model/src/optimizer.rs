//! AdamW (Loshchilov and Hutter 2019) and SGD over the tensors of an [`Adapter`], with clipping by the global norm.
//!
//! As torch computes them: the decay is decoupled, the moments bias-corrected, ε outside the root.

use crate::lora::{Adapter, Parameter};
use burn::tensor::Tensor;
use cutlayer_wire::{OptimizerKind, OptimizerSpec};
use std::collections::BTreeMap;

/// Gradients by key, off the tape.
pub type Gradients = BTreeMap<String, Tensor<2>>;

/// The sum of the gradients of several steps, in the order given.
pub fn sum(steps: impl IntoIterator<Item = Gradients>) -> Gradients {
    let mut all = Gradients::new();
    for (key, gradient) in steps.into_iter().flatten() {
        let sum = match all.remove(&key) {
            Some(before) => before + gradient,
            None => gradient,
        };
        all.insert(key, sum);
    }
    all
}

/// Applies `gradients` to `adapter` at learning rate `learning_rate`. Tensors without a gradient stay as they are.
pub fn apply(spec: &OptimizerSpec, learning_rate: f64, adapter: &mut Adapter, mut gradients: Gradients) {
    if let Some(norm_max) = spec.clip_norm {
        clip(&mut gradients, f64::from(norm_max));
    }
    for (key, gradient) in gradients {
        let parameter = adapter.parameters_mut().get_mut(&key).expect("a gradient belongs to a parameter of its own adapter");
        match spec.kind {
            OptimizerKind::Sgd => parameter.value = parameter.value.clone() - gradient.mul_scalar(learning_rate),
            OptimizerKind::AdamW { beta1, beta2, eps, weight_decay } => {
                let settings =
                    Settings { beta1: decimal(beta1), beta2: decimal(beta2), epsilon: decimal(eps), decay: decimal(weight_decay) };
                adamw(&settings, learning_rate, parameter, gradient);
            }
        }
    }
}

/// AdamW's settings, in the precision of the arithmetic on them.
struct Settings {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    decay: f64,
}

/// The number that was written: 0.9, where a plain widening of the f32 gives 0.8999999762.
pub(crate) fn decimal(value: f32) -> f64 {
    value.to_string().parse().expect("a printed f32 parses as f64")
}

fn adamw(s: &Settings, learning_rate: f64, parameter: &mut Parameter, gradient: Tensor<2>) {
    let (mean, square, steps) = parameter.moments.take().unwrap_or_else(|| (gradient.zeros_like(), gradient.zeros_like(), 0));
    let steps = steps + 1;
    let mean = mean.mul_scalar(s.beta1) + gradient.clone().mul_scalar(1.0 - s.beta1);
    let square = square.mul_scalar(s.beta2) + gradient.square().mul_scalar(1.0 - s.beta2);
    let correction = |beta: f64| 1.0 - beta.powi(steps as i32);
    let denominator = square.clone().sqrt().div_scalar(correction(s.beta2).sqrt()).add_scalar(s.epsilon);
    let change = (mean.clone() / denominator).mul_scalar(learning_rate / correction(s.beta1));
    parameter.value = parameter.value.clone().mul_scalar(1.0 - learning_rate * s.decay) - change;
    parameter.moments = Some((mean, square, steps));
}

/// Scales all gradients so that their joint Euclidean norm is at most `norm_max`, as torch's `clip_grad_norm_`.
fn clip(gradients: &mut Gradients, norm_max: f64) {
    let Some(squares) = gradients.values().map(|gradient| gradient.clone().square().sum()).reduce(|sum, next| sum + next) else {
        return;
    };
    let norm = f64::from(squares.into_scalar::<f32>()).sqrt();
    let factor = norm_max / (norm + 1e-6);
    if factor < 1.0 {
        gradients.values_mut().for_each(|gradient| *gradient = gradient.clone().mul_scalar(factor));
    }
}

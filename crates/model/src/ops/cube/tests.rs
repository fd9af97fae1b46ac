//! Goal: each kernel computes its formula. Method: plain loops in f64 on the host, random shapes, values and gradients.
//! These tests see the kernels alone: `tests/wgpu.rs` sees them inside a model.

use crate::lora::download;
use crate::ops::{Fused, Heads};
use crate::spec::Activation;
use crate::{Device, DeviceChoice, Tensor, TensorData};
use burn::backend::{BackendTensor, Dispatch, DispatchTensor, DispatchTensorKind};
use burn::tensor::{FloatDType, Int};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Share of the largest expected value.
const TOLERANCE: f64 = 2e-5;
const EPSILON: f32 = 1e-5;
const ACTIVATIONS: [Activation; 4] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];

/// Every device of this build that starts; none is a failure in CI.
fn devices() -> Vec<Device> {
    let choices = [DeviceChoice::Wgpu(0), DeviceChoice::Cuda(0)];
    let open = |choice: DeviceChoice| choice.open().inspect_err(|error| eprintln!("SKIPPED: {error}")).ok();
    let devices: Vec<Device> = choices.into_iter().filter_map(open).collect();
    assert!(!devices.is_empty() || std::env::var_os("CI").is_none(), "CI has a software Vulkan driver");
    devices
}

/// Values of a normal-like spread, as f32 holds them.
fn random(rng: &mut ChaCha8Rng, count: usize) -> Vec<f64> {
    (0..count).map(|_| f64::from((0..4).map(|_| rng.random_range(-1.0f32..1.0)).sum::<f32>())).collect()
}

fn matrix(values: &[f64], columns: usize, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    let rows = values.len() / columns;
    Tensor::from_data(TensorData::new(values, [rows, columns]), device)
}

fn vector(values: &[f64], device: &Device) -> Tensor<1> {
    let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

fn values<const D: usize>(tensor: DispatchTensor) -> Vec<f32> {
    download(Tensor::<D>::from_dispatch(tensor))
}

fn strides(tensor: &DispatchTensor) -> Vec<usize> {
    match &tensor.kind {
        DispatchTensorKind::Cube(BackendTensor::Float(tensor)) => tensor.meta.strides().to_vec(),
        _ => panic!("a float tensor on a CubeCL device"),
    }
}

#[track_caller]
fn check(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let scale = expected.iter().fold(1e-6f64, |scale, value| scale.max(value.abs()));
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        // Not `>`: a NaN must fail.
        let close = (f64::from(found) - expected).abs() <= TOLERANCE * scale;
        assert!(close, "{what}: {found} is not {expected} at {i}, scale {scale}");
    }
}

/// Norm of each row and its gradient, by the definition.
fn norm_reference(x: &[f64], w: &[f64], bias: Option<&[f64]>, grad: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let d = w.len();
    let (mut y, mut dx) = (Vec::new(), Vec::new());
    for (x, grad) in x.chunks(d).zip(grad.chunks(d)) {
        let mean = if bias.is_some() { x.iter().sum::<f64>() / d as f64 } else { 0.0 };
        let centred: Vec<f64> = x.iter().map(|x| x - mean).collect();
        let inverse = 1.0 / (centred.iter().map(|c| c * c).sum::<f64>() / d as f64 + f64::from(EPSILON)).sqrt();
        y.extend((0..d).map(|i| centred[i] * inverse * w[i] + bias.map_or(0.0, |bias| bias[i])));
        let pull: Vec<f64> = (0..d).map(|i| grad[i] * w[i]).collect();
        let pull_mean = if bias.is_some() { pull.iter().sum::<f64>() / d as f64 } else { 0.0 };
        let along = (0..d).map(|i| pull[i] * centred[i]).sum::<f64>() / d as f64 * inverse * inverse;
        dx.extend((0..d).map(|i| inverse * (pull[i] - pull_mean - centred[i] * along)));
    }
    (y, dx)
}

#[test]
fn norms_match_the_definition() {
    for device in &devices() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for (n, d) in [(1, 32), (7, 33), (130, 64), (257, 576), (3, 1500)] {
            let (x, grad) = (random(&mut rng, n * d), random(&mut rng, n * d));
            let (w, bias) = (random(&mut rng, d), random(&mut rng, d));
            let x_d = || matrix(&x, d, device).into_dispatch();
            let w_d = || vector(&w, device).into_dispatch();
            let grad_d = || matrix(&grad, d, device).into_dispatch();
            let (y, dx) = norm_reference(&x, &w, None, &grad);
            check(&values::<2>(Dispatch::rms_norm(x_d(), w_d(), EPSILON)), &y, "rms norm");
            check(&values::<2>(Dispatch::rms_norm_backward(x_d(), w_d(), grad_d(), EPSILON)), &dx, "rms norm, dx");
            let (y, dx) = norm_reference(&x, &w, Some(&bias), &grad);
            let bias = vector(&bias, device).into_dispatch();
            check(&values::<2>(Dispatch::layer_norm(x_d(), w_d(), bias, EPSILON)), &y, "layer norm");
            check(&values::<2>(Dispatch::layer_norm_backward(x_d(), w_d(), grad_d(), EPSILON)), &dx, "layer norm, dx");
        }
    }
}

#[test]
fn rotary_turns_pairs_and_copies_the_rest() {
    for device in &devices() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for (n, heads, turned, e) in [(1, 3, 2, 32), (7, 5, 4, 64), (130, 1, 1, 6), (257, 4, 0, 16)] {
            let x = random(&mut rng, n * heads * e);
            let angles = random(&mut rng, n * e / 2);
            let cos: Vec<f64> = angles.iter().map(|a| a.cos()).collect();
            let sin: Vec<f64> = angles.iter().map(|a| a.sin()).collect();
            for inverse in [false, true] {
                let sign = if inverse { -1.0 } else { 1.0 };
                let mut expected = x.clone();
                for (row, head, i) in (0..n * turned * e / 2).map(|p| (p / (e / 2) / turned, p / (e / 2) % turned, p % (e / 2))) {
                    let (low, high) = (row * heads * e + head * e + i, row * heads * e + head * e + i + e / 2);
                    let (c, s) = (cos[row * e / 2 + i], sign * sin[row * e / 2 + i]);
                    expected[low] = x[low] * c - x[high] * s;
                    expected[high] = x[high] * c + x[low] * s;
                }
                let [x, cos, sin] = [(&x, heads * e), (&cos, e / 2), (&sin, e / 2)].map(|(v, d)| matrix(v, d, device).into_dispatch());
                check(&values::<2>(Dispatch::rotary(x, cos, sin, turned, e, inverse)), &expected, "rotary");
            }
        }
    }
}

/// `erf` by its series, and by its continued fraction beyond 3.
fn erf(x: f64) -> f64 {
    if x.abs() > 3.0 {
        let fraction = (1..60).rev().fold(0.0, |tail, k| k as f64 / 2.0 / (x.abs() + tail));
        return x.signum() * (1.0 - (-x * x).exp() / std::f64::consts::PI.sqrt() / (x.abs() + fraction));
    }
    let (mut term, mut sum) = (x, x);
    for k in 1..80 {
        term *= -x * x / f64::from(k);
        sum += term / f64::from(2 * k + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn curve(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Activation::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        Activation::Relu => x.max(0.0),
    }
}

/// By a central difference, which is good to 1e-9 here.
fn slope(x: f64, activation: Activation) -> f64 {
    let h = 1e-5;
    (curve(x + h, activation) - curve(x - h, activation)) / (2.0 * h)
}

#[test]
fn activations_match_their_formulas() {
    for device in &devices() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for (n, f) in [(1, 32), (7, 33), (130, 64), (257, 18)] {
            for activation in ACTIVATIONS {
                let mut both = random(&mut rng, n * 2 * f);
                // Far out, where a careless formula overflows.
                (both[0], both[1]) = (-200.0, 30.0);
                let (grad, full_grad) = (random(&mut rng, n * f), random(&mut rng, n * 2 * f));
                let both_d = || matrix(&both, 2 * f, device).into_dispatch();
                let plain: Vec<f64> = both.iter().map(|&x| curve(x, activation)).collect();
                check(&values::<2>(Dispatch::activate(both_d(), activation)), &plain, &format!("{activation:?}"));
                let plain: Vec<f64> = both.iter().zip(&full_grad).map(|(&x, g)| g * slope(x, activation)).collect();
                let full_grad = matrix(&full_grad, 2 * f, device).into_dispatch();
                check(&values::<2>(Dispatch::activate_backward(both_d(), full_grad, activation)), &plain, &format!("{activation:?}, dx"));
                let at = |row: usize, i: usize| (both[row * 2 * f + i], both[row * 2 * f + f + i]);
                let gated: Vec<f64> = (0..n * f).map(|p| at(p / f, p % f)).map(|(gate, up)| curve(gate, activation) * up).collect();
                check(&values::<2>(Dispatch::gated(both_d(), activation)), &gated, &format!("gated {activation:?}"));
                let mut expected = vec![0.0; n * 2 * f];
                for p in 0..n * f {
                    let (gate, up) = at(p / f, p % f);
                    expected[p / f * 2 * f + p % f] = grad[p] * up * slope(gate, activation);
                    expected[p / f * 2 * f + f + p % f] = grad[p] * curve(gate, activation);
                }
                let grad = matrix(&grad, f, device).into_dispatch();
                check(&values::<2>(Dispatch::gated_backward(both_d(), grad, activation)), &expected, &format!("gated {activation:?}, dx"));
            }
        }
    }
}

/// Whom each token sees and by whom it is seen: sequences of these lengths side by side.
fn spans(lengths: &[usize], causal: bool, window: usize) -> Vec<i32> {
    let mut spans = Vec::new();
    let mut first = 0;
    for &length in lengths {
        let end = first + length;
        for i in first..end {
            let (before, after) = ((i + 1).saturating_sub(window).max(first), i.saturating_add(window).min(end));
            let (sees_end, seen_start) = if causal { (i + 1, i) } else { (after, before) };
            spans.extend([before, sees_end, seen_start, after].map(|place| place as i32));
        }
        first = end;
    }
    spans
}

struct Attended {
    out: Vec<f64>,
    lse: Vec<f64>,
    dqkv: Vec<f64>,
}

/// Attention and its gradient, by the definition: a softmax over every key that a token sees.
fn attention_reference(qkv: &[f64], spans: &[i32], grad: &[f64], heads: Heads, scale: f64) -> Attended {
    let (h, k, e) = (heads.query, heads.kv, heads.dim);
    let (n, width) = (spans.len() / 4, (h + 2 * k) * e);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut all = Attended { out: vec![0.0; n * h * e], lse: vec![0.0; n * h], dqkv: vec![0.0; n * width] };
    for (i, head) in (0..n * h).map(|p| (p / h, p % h)) {
        let kv = head / (h / k);
        let place = |row: usize, column: usize| row * width + column * e..row * width + (column + 1) * e;
        let q = place(i, head);
        let seen = spans[i * 4] as usize..spans[i * 4 + 1] as usize;
        let scores: Vec<f64> = seen.clone().map(|j| scale * dot(&qkv[q.clone()], &qkv[place(j, h + kv)])).collect();
        let top = scores.iter().copied().fold(f64::MIN, f64::max);
        let lse = top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln();
        all.lse[i * h + head] = lse;
        let o = (i * h + head) * e..(i * h + head + 1) * e;
        let p: Vec<f64> = scores.iter().map(|s| (s - lse).exp()).collect();
        for (j, p) in seen.clone().zip(&p) {
            all.out[o.clone()].iter_mut().zip(&qkv[place(j, h + k + kv)]).for_each(|(o, v)| *o += p * v);
        }
        let pull = &grad[o.clone()];
        let d = dot(pull, &all.out[o]);
        for (j, p) in seen.zip(&p) {
            let (key, value) = (place(j, h + kv), place(j, h + k + kv));
            let ds = scale * p * (dot(pull, &qkv[value.clone()]) - d);
            for c in 0..e {
                all.dqkv[q.start + c] += ds * qkv[key.start + c];
                all.dqkv[key.start + c] += ds * qkv[q.start + c];
                all.dqkv[value.start + c] += p * pull[c];
            }
        }
    }
    all
}

fn check_attention(lengths: &[usize], causal: bool, window: usize, heads: Heads, seed: u64, device: &Device) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let n: usize = lengths.iter().sum();
    let width = (heads.query + 2 * heads.kv) * heads.dim;
    let (qkv, grad) = (random(&mut rng, n * width), random(&mut rng, n * heads.query * heads.dim));
    let spans = spans(lengths, causal, window);
    let scale = 1.0 / (heads.dim as f64).sqrt();
    let expected = attention_reference(&qkv, &spans, &grad, heads, scale);
    let what = format!("attention, {lengths:?} {heads:?} causal {causal} window {window}");
    let spans_d = || Tensor::<2, Int>::from_data(TensorData::new(spans.clone(), [n, 4]), device).into_dispatch();
    let qkv_d = || matrix(&qkv, width, device).into_dispatch();
    let (out, lse) = Dispatch::attention(qkv_d(), spans_d(), heads, scale as f32);
    check(&values::<2>(out.clone()), &expected.out, &format!("{what}: out"));
    check(&values::<2>(lse.clone()), &expected.lse, &format!("{what}: lse"));
    let grad = matrix(&grad, heads.query * heads.dim, device).into_dispatch();
    let dqkv = Dispatch::attention_backward(qkv_d(), spans_d(), out, lse, grad, heads, scale as f32);
    check(&values::<2>(dqkv), &expected.dqkv, &format!("{what}: dqkv"));
}

#[test]
fn attention_matches_the_softmax_over_what_is_seen() {
    for device in &devices() {
        for (seed, dim) in [32, 64].into_iter().enumerate() {
            for (query, kv) in [(2, 2), (3, 1)] {
                let heads = Heads { query, kv, dim };
                let seed = seed as u64;
                for lengths in [&[1][..], &[7], &[130], &[257], &[3, 64, 1, 70]] {
                    check_attention(lengths, true, usize::MAX, heads, seed, device);
                }
                check_attention(&[130], true, 17, heads, seed, device);
                check_attention(&[130], false, usize::MAX, heads, seed, device);
                check_attention(&[5, 120, 33], false, usize::MAX, heads, seed, device);
                check_attention(&[5, 120, 33], false, 9, heads, seed, device);
            }
        }
    }
}

/// Goal: half-precision tensors lose only what their storage loses. Method: inputs that bf16 and f16 hold exactly.
#[test]
fn half_tensors_are_computed_in_f32() {
    for device in &devices() {
        for dtype in [FloatDType::BF16, FloatDType::F16] {
            if !device.supports_dtype(dtype) {
                eprintln!("SKIPPED: the device has no {dtype:?}");
                continue;
            }
            let mut rng = ChaCha8Rng::seed_from_u64(7);
            let mut draw = |count| random(&mut rng, count).iter().map(|x| (x * 32.0).round() / 32.0).collect::<Vec<f64>>();
            let check = |found: DispatchTensor, expected: &[f64], what: &str| {
                let scale = expected.iter().fold(1e-6f64, |scale, value| scale.max(value.abs()));
                let worst = values::<2>(found).iter().zip(expected).map(|(&f, e)| (f64::from(f) - e).abs()).fold(0.0, f64::max);
                assert!(worst <= 0.01 * scale, "{what} of {dtype:?}: off by {worst}, scale {scale}");
            };
            let half = |values: &[f64], columns| matrix(values, columns, device).cast(dtype).into_dispatch();
            let (x, w, grad) = (draw(70 * 64), draw(64), draw(70 * 64));
            let w_d = || vector(&w, device).cast(dtype).into_dispatch();
            let (y, dx) = norm_reference(&x, &w, None, &grad);
            check(Dispatch::rms_norm(half(&x, 64), w_d(), EPSILON), &y, "rms norm");
            check(Dispatch::rms_norm_backward(half(&x, 64), w_d(), half(&grad, 64), EPSILON), &dx, "rms norm, dx");
            let plain: Vec<f64> = x.iter().map(|&x| curve(x, Activation::Silu)).collect();
            check(Dispatch::activate(half(&x, 64), Activation::Silu), &plain, "silu");
            let heads = Heads { query: 3, kv: 1, dim: 32 };
            let (qkv, grad) = (draw(70 * 5 * 32), draw(70 * 3 * 32));
            let spans = spans(&[30, 40], true, usize::MAX);
            let expected = attention_reference(&qkv, &spans, &grad, heads, 0.125);
            let spans_d = || Tensor::<2, Int>::from_data(TensorData::new(spans.clone(), [70, 4]), device).into_dispatch();
            let (out, lse) = Dispatch::attention(half(&qkv, 5 * 32), spans_d(), heads, 0.125);
            check(out.clone(), &expected.out, "attention");
            check(lse.clone(), &expected.lse, "lse");
            let dqkv = Dispatch::attention_backward(half(&qkv, 5 * 32), spans_d(), out, lse, half(&grad, 3 * 32), heads, 0.125);
            check(dqkv, &expected.dqkv, "dqkv");
        }
    }
}

/// Goal: gaps between rows, as CUDA's allocations and slices have, and transposed matrices change nothing.
/// Method: the same values in each layout.
#[test]
fn every_layout_is_read_right() {
    for device in &devices() {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let (n, d) = (37, 5 * 32);
        let heads = Heads { query: 3, kv: 1, dim: 32 };
        let (x, grad, narrow) = (random(&mut rng, n * d), random(&mut rng, n * d), random(&mut rng, n * 3 * 32));
        let (w, angles) = (vector(&random(&mut rng, d), device), random(&mut rng, n * 16));
        let spans = Tensor::<2, Int>::from_data(TensorData::new(spans(&[20, 17], true, usize::MAX), [n, 4]), device);
        let targets = Tensor::<1, Int>::from_data(TensorData::new(vec![3i32; n], [n]), device);
        let results = |layout: usize| {
            let at = |values: &[f64], columns: usize| {
                let plain = matrix(values, columns, device);
                let laid = match layout {
                    0 => plain,
                    1 => Tensor::cat(vec![Tensor::zeros([n, 64], device), plain], 1).narrow(1, 64, columns),
                    _ => {
                        let flipped: Vec<f64> = (0..n * columns).map(|p| values[p % n * columns + p / n]).collect();
                        matrix(&flipped, n, device).transpose()
                    }
                }
                .into_dispatch();
                assert_eq!(strides(&laid), [[columns, 1], [columns + 64, 1], [1, n]][layout]);
                laid
            };
            let (x, grad, narrow) = (|| at(&x, d), || at(&grad, d), || at(&narrow, 96));
            let (w, spans) = (|| w.clone().into_dispatch(), || spans.clone().into_dispatch());
            let (out, lse) = Dispatch::attention(x(), spans(), heads, 0.2);
            let (losses, _, slopes) = Dispatch::cross_entropy(x(), targets.clone().into_dispatch());
            vec![
                values::<2>(Dispatch::rms_norm(x(), w(), EPSILON)),
                values::<2>(Dispatch::layer_norm_backward(x(), w(), grad(), EPSILON)),
                values::<2>(Dispatch::gated(x(), Activation::Silu)),
                values::<2>(Dispatch::activate_backward(x(), grad(), Activation::Gelu)),
                values::<2>(Dispatch::rotary(x(), at(&angles, 16), at(&angles, 16), 2, 32, false)),
                values::<2>(Dispatch::attention_backward(x(), spans(), out, lse, narrow(), heads, 0.2)),
                values::<1>(losses),
                values::<2>(slopes),
            ]
        };
        let expected = results(0);
        for layout in 1..3 {
            for (i, (found, expected)) in results(layout).iter().zip(&expected).enumerate() {
                let expected: Vec<f64> = expected.iter().map(|&x| x.into()).collect();
                check(found, &expected, &format!("result {i} in layout {layout}"));
            }
        }
    }
}

/// Heads that are no multiple of a tile's side, and those of which only small tiles fit shared memory.
#[test]
fn attention_takes_heads_of_any_size() {
    for device in &devices() {
        for dim in [6, 8, 20, 80, 96, 128] {
            check_attention(&[9, 40], true, usize::MAX, Heads { query: 4, kv: 2, dim }, dim as u64, device);
        }
    }
}

#[test]
fn cross_entropy_matches_the_log_softmax() {
    for device in &devices() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for (n, v) in [(1, 97), (7, 4096), (130, 97), (257, 50), (3, 4097)] {
            let mut logits: Vec<f64> = random(&mut rng, n * v).iter().map(|x| x * 4.0).collect();
            // Large logits, and a tie that the lower class wins.
            logits[..v].iter_mut().for_each(|x| *x = (*x as f32 + 300.0).into());
            (logits[5], logits[9]) = (400.0, 400.0);
            let targets: Vec<i32> = (0..n).map(|_| rng.random_range(0..v as i32)).collect();
            let (mut losses, mut best, mut grad) = (Vec::new(), Vec::new(), Vec::new());
            for (row, &target) in logits.chunks(v).zip(&targets) {
                let top = row.iter().copied().fold(f64::MIN, f64::max);
                let lse = top + row.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
                losses.push(lse - row[target as usize]);
                best.push(row.iter().position(|&x| x == top).expect("the maximum is there") as i64);
                grad.extend(row.iter().enumerate().map(|(i, x)| (x - lse).exp() - f64::from(u8::from(i == target as usize))));
            }
            let targets = Tensor::<1, Int>::from_data(TensorData::new(targets, [n]), device).into_dispatch();
            let (found_losses, found_best, found_grad) = Dispatch::cross_entropy(matrix(&logits, v, device).into_dispatch(), targets);
            check(&values::<1>(found_losses), &losses, "losses");
            let found_best: Vec<i64> = Tensor::<1, Int>::from_dispatch(found_best).into_data().iter::<i64>().collect();
            assert_eq!(found_best, best, "best class");
            check(&values::<2>(found_grad), &grad, "gradient of the logits");
        }
    }
}

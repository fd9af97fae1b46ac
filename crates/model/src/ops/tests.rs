//! Goal: every fused operation gives the values and the gradients of its composition from burn's own operations.
//! Method: random shapes and values from seeds; the gradient of a random linear functional of the output, for every input that takes one.

use super::{Factors, Groups, Heads, Kernels};
use crate::block::Surroundings;
use crate::device::DeviceChoice;
use crate::rows::{Rows, indices};
use crate::spec::{Activation, BlockSpec};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The device under test.
fn device_name() -> String {
    std::env::var("CUTLAYER_TEST_DEVICE").unwrap_or("cpu".into())
}

/// Differences allowed, as a share of the largest value.
fn tolerance() -> f32 {
    if device_name() == "cpu" { 2e-5 } else { 1e-4 }
}

struct Draw(ChaCha8Rng, Device);

impl Draw {
    fn matrix(&mut self, rows: usize, columns: usize) -> Tensor<2> {
        let values: Vec<f32> = (0..rows * columns).map(|_| self.0.random_range(-1.0..1.0)).collect();
        Tensor::from_data(TensorData::new(values, [rows, columns]), &self.1)
    }

    fn vector(&mut self, count: usize) -> Tensor<1> {
        self.matrix(1, count).reshape([count])
    }
}

fn draws(seed: u64) -> Draw {
    Draw(ChaCha8Rng::seed_from_u64(seed), {
        device_name().parse::<DeviceChoice>().expect("a device").open().expect("the device under test")
    })
}

fn values<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    crate::lora::download(x.clone())
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}: another shape");
    let scale = expected.iter().fold(1e-3f32, |scale, v| scale.max(v.abs()));
    for (at, (x, y)) in found.iter().zip(expected).enumerate() {
        assert!((x - y).abs() <= tolerance() * scale, "{what}, element {at}: {x} is not {y} (scale {scale})");
    }
}

fn llama() -> crate::spec::ModelSpec {
    crate::arch::spec(&serde_json::json!({
        "model_type": "llama", "hidden_act": "silu", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 32, "vocab_size": 32, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 1e4, "tie_word_embeddings": true
    }))
    .expect("a llama")
}

/// The output of `run` on `inputs`, and the gradient of `sum(output · upstream)` for each.
fn both_ways(inputs: &[Tensor<2>], upstream: &Tensor<2>, run: impl Fn(&[Tensor<2>]) -> Tensor<2>) -> Vec<Vec<f32>> {
    let leaves: Vec<Tensor<2>> = inputs.iter().map(|x| x.clone().autodiff().require_grad()).collect();
    let out = run(&leaves);
    let mut all = vec![values(&out.clone().inner())];
    let taken = (out * upstream.clone()).sum().backward();
    all.extend(leaves.iter().map(|leaf| values(&leaf.grad(&taken).expect("each input takes a gradient"))));
    // Without autodiff the same values come out.
    assert_close("untracked", &values(&run(inputs)), &all[0]);
    all
}

fn assert_same(what: &str, inputs: &[Tensor<2>], upstream: &Tensor<2>, run: impl Fn(Kernels, &[Tensor<2>]) -> Tensor<2>) {
    let fused = both_ways(inputs, upstream, |x| run(Kernels::Fused, x));
    let composed = both_ways(inputs, upstream, |x| run(Kernels::Composed, x));
    for (i, (fused, composed)) in fused.iter().zip(&composed).enumerate() {
        let part = if i == 0 { "values".into() } else { format!("gradient of input {i}") };
        assert_close(&format!("{what}: {part}"), fused, composed);
    }
}

#[test]
fn linear_with_every_mix_of_bias_residual_and_adapter() {
    for (seed, &(n, inputs, outputs, rank)) in [(1, 16, 16, 2), (7, 33, 50, 4), (130, 64, 161, 8), (64, 600, 97, 16)].iter().enumerate() {
        let draw = &mut draws(seed as u64);
        let (x, stored, bias) = (draw.matrix(n, inputs), draw.matrix(outputs, inputs), draw.vector(outputs));
        let (residual, a, up) = (draw.matrix(n, outputs), draw.matrix(rank, inputs), draw.matrix(rank, outputs));
        let upstream = draw.matrix(n, outputs);
        for weight in [stored.clone().transpose(), Tensor::cat(vec![stored.clone().transpose()], 1) * 1.0] {
            for case in 0..4 {
                let bias = (case % 2 == 0).then(|| bias.clone());
                let what = format!("{n} x {inputs} x {outputs}, case {case}");
                assert_same(&what, &[x.clone(), residual.clone(), a.clone(), up.clone()], &upstream, |kernels, x| {
                    let factors = Some(Factors { a: x[2].clone(), up: x[3].clone(), groups: Groups::new([(0..n, rank)]) });
                    kernels.linear(x[0].clone(), Some(weight.clone()), bias.clone(), Some(x[1].clone()), factors)
                });
                assert_same(&what, &[x.clone(), a.clone(), up.clone()], &upstream, |kernels, x| {
                    let factors = Some(Factors { a: x[1].clone(), up: x[2].clone(), groups: Groups::new([(0..n, rank)]) });
                    kernels.linear(x[0].clone(), Some(weight.clone()), bias.clone(), None, factors)
                });
                assert_same(&what, std::slice::from_ref(&x), &upstream, |kernels, x| {
                    kernels.linear(x[0].clone(), Some(weight.clone()), bias.clone(), None, None)
                });
            }
        }
    }
}

/// Rows and rank of the adapters of a batch of 61 rows: mixed ranks, and rows without an adapter at either end and between.
fn mixed() -> Vec<(std::ops::Range<usize>, usize)> {
    vec![(2..3, 4), (3..20, 1), (27..44, 16), (44..60, 3)]
}

#[test]
fn linear_with_an_adapter_for_each_group_of_rows() {
    let (n, inputs, outputs) = (61, 70, 130);
    let groups = Groups::new(mixed());
    let draw = &mut draws(7);
    let (x, weight, bias) = (draw.matrix(n, inputs), draw.matrix(inputs, outputs), draw.vector(outputs));
    let (residual, upstream) = (draw.matrix(n, outputs), draw.matrix(n, outputs));
    let (a, up) = (draw.matrix(groups.ranks(), inputs), draw.matrix(groups.ranks(), outputs));
    for case in 0..4 {
        // Without a weight there are the low-rank terms alone, beside a residual or not.
        let (weight, bias) = ((case < 2).then(|| weight.clone()), (case == 0).then(|| bias.clone()));
        let inputs = [x.clone(), a.clone(), up.clone(), residual.clone()];
        let inputs = if case == 3 { &inputs[..3] } else { &inputs };
        assert_same(&format!("groups, case {case}"), inputs, &upstream, |kernels, x| {
            let factors = Factors { a: x[1].clone(), up: x[2].clone(), groups: groups.clone() };
            kernels.linear(x[0].clone(), weight.clone(), bias.clone(), x.get(3).cloned(), Some(factors))
        });
    }
}

/// Goal: on the CPU with our own products, a row's results do not depend on the rows beside it, to the bit. Method: each group alone.
#[test]
fn a_group_gives_the_same_bits_alone() {
    if device_name() != "cpu" || !super::flex::has_own_products() {
        eprintln!("SKIPPED: products are not our own here");
        return;
    }
    for (seed, (inputs, outputs)) in [(70, 130), (576, 960), (1536, 576), (3100, 48)].into_iter().enumerate() {
        let draw = &mut draws(30 + seed as u64);
        let groups = Groups::new(mixed());
        let n = 61;
        let (x, weight, residual) = (draw.matrix(n, inputs), draw.matrix(outputs, inputs).transpose(), draw.matrix(n, outputs));
        let (a, up, upstream) = (draw.matrix(groups.ranks(), inputs), draw.matrix(groups.ranks(), outputs), draw.matrix(n, outputs));
        let run = |kernels: Kernels, groups: &Groups| {
            let groups = groups.clone();
            let weight = weight.clone();
            move |x: &[Tensor<2>]| {
                let factors = Factors { a: x[2].clone(), up: x[3].clone(), groups: groups.clone() };
                kernels.linear(x[0].clone(), Some(weight.clone()), None, Some(x[1].clone()), Some(factors))
            }
        };
        let together = both_ways(&[x.clone(), residual.clone(), a.clone(), up.clone()], &upstream, run(Kernels::Fused, &groups));
        for super::Group { rows, ranks } in groups.iter() {
            let own = |x: &Tensor<2>, of: &std::ops::Range<usize>| x.clone().narrow(0, of.start, of.len());
            let alone = Groups::new([(0..rows.len(), ranks.len())]);
            let inputs = [own(&x, rows), own(&residual, rows), own(&a, ranks), own(&up, ranks)];
            let alone = both_ways(&inputs, &own(&upstream, rows), run(Kernels::Fused, &alone));
            let widths = [outputs, inputs[0].dims()[1], outputs, inputs[0].dims()[1], outputs];
            for (part, width) in widths.into_iter().enumerate() {
                let of = if part < 3 { rows } else { ranks };
                let expected = &together[part][of.start * width..of.end * width];
                assert!(alone[part] == expected, "{inputs:?}: part {part} of rows {rows:?} differs", inputs = inputs[0].dims());
            }
        }
    }
}

#[test]
fn norms() {
    for (seed, &(n, d)) in [(1, 8), (5, 33), (130, 64), (3, 576)].iter().enumerate() {
        let draw = &mut draws(10 + seed as u64);
        let (x, weight, bias, upstream) = (draw.matrix(n, d) * 3.0 + 0.5, draw.vector(d), draw.vector(d), draw.matrix(n, d));
        for bias in [None, Some(bias)] {
            assert_same(&format!("{n} x {d}"), std::slice::from_ref(&x), &upstream, |kernels, x| {
                kernels.norm(x[0].clone(), weight.clone(), bias.clone(), 1e-5)
            });
        }
    }
}

#[test]
fn rotary_turns_the_first_heads_and_leaves_the_others() {
    for (seed, &(n, heads, turned, e)) in [(1, 3, 2, 4), (9, 5, 5, 8), (70, 4, 3, 64), (6, 3, 1, 20)].iter().enumerate() {
        let draw = &mut draws(20 + seed as u64);
        let (x, angles, upstream) = (draw.matrix(n, heads * e), draw.matrix(n, e / 2) * 9.0, draw.matrix(n, heads * e));
        assert_same(&format!("{n} x {heads} x {e}"), &[x], &upstream, |kernels, x| {
            kernels.rotary(x[0].clone(), angles.clone().cos(), angles.clone().sin(), turned, e)
        });
    }
}

#[test]
fn activations_alone_and_gated() {
    for kind in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
        if kind == Activation::Gelu && device_name() != "cpu" {
            continue; // There burn's gradient of the exact GELU is that of the tanh one; `cube/tests.rs` holds ours against f64.
        }
        for (seed, &(n, f)) in [(1, 7), (33, 64), (4, 1536)].iter().enumerate() {
            let draw = &mut draws(30 + seed as u64);
            let (both, upstream) = (draw.matrix(n, 2 * f) * 4.0, draw.matrix(n, f));
            assert_same(&format!("gated {kind:?}"), std::slice::from_ref(&both), &upstream, |kernels, x| kernels.gated(x[0].clone(), kind));
            let x = both.narrow(1, 0, f);
            assert_same(&format!("{kind:?}"), &[x], &upstream, |kernels, x| kernels.activate(x[0].clone(), kind));
        }
    }
}

#[test]
fn attention_of_grouped_heads_under_every_mask() {
    let lengths: [&[u32]; 5] = [&[1], &[7], &[64, 65], &[130, 1, 40], &[300]];
    for (seed, &(heads, kv, dim)) in [(2, 2, 8), (6, 2, 16), (9, 3, 64), (4, 1, 20)].iter().enumerate() {
        for lengths in lengths {
            let draw = &mut draws(40 + seed as u64);
            let shape = Heads { query: heads, kv, dim };
            let rows = Rows::new(lengths, 1024).expect("fits");
            let (qkv, upstream) = (draw.matrix(rows.tokens(), shape.columns()) * 2.0, draw.matrix(rows.tokens(), heads * dim));
            for (causal, window) in [(true, None), (false, None), (true, Some(5)), (false, Some(70)), (true, Some(1))] {
                let what = format!("{heads}:{kv} x {dim}, {lengths:?}, causal {causal}, window {window:?}");
                let spec = BlockSpec { causal, window, rotary: None, ..llama().block };
                assert_same(&what, std::slice::from_ref(&qkv), &upstream, |kernels, x| {
                    let around = Surroundings::new(&spec, &rows, kernels, burn::tensor::DType::F32, &qkv.device());
                    kernels.attention(x[0].clone(), &spec, &around, shape)
                });
            }
        }
    }
}

#[test]
fn projected_loss_in_chunks() {
    for (seed, &(n, d, v)) in [(1, 8, 11), (37, 24, 97), (300, 16, 50_000)].iter().enumerate() {
        let draw = &mut draws(60 + seed as u64);
        let (x, table, upstream) = (draw.matrix(n, d), draw.matrix(v, d), draw.matrix(n, 1));
        let targets = indices(&(0..n).map(|i| (i * 7919 % v) as u32).collect::<Vec<_>>(), &x.device());
        assert_same(&format!("{n} x {d} x {v}"), std::slice::from_ref(&x), &upstream, |kernels, x| {
            kernels.projected_loss(x[0].clone(), table.clone(), targets.clone()).0.reshape([n, 1])
        });
        let best = |kernels: Kernels| {
            kernels.projected_loss(x.clone(), table.clone(), targets.clone()).1.into_data().iter::<i64>().collect::<Vec<_>>()
        };
        assert_eq!(best(Kernels::Fused), best(Kernels::Composed));
    }
}

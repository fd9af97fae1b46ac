//! One transformer block on burn tensors: the frozen weights, and the forward pass beside an adapter.
//!
//! No gradient of a frozen weight is ever computed: frozen weights stand outside autodiff, which then keeps and computes
//! nothing for them. Shapes: `n` tokens of all sequences, `d` hidden, `h` query heads, `k` key/value heads, `e` features per head.

use crate::bound::Bounds;
use crate::ops::{Factors, Heads, Kernels};
use crate::rows::Rows;
use crate::spec::{BlockSpec, NormOrder, RotaryScaling, RotarySpec};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

/// One or more frozen projections of the same input, side by side: `[in, out]`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// Full module path of each, which names its adapter too, and its columns.
    pub parts: Vec<(String, usize)>,
    pub weight: Tensor<2>,
    pub bias: Option<Tensor<1>>,
}

impl Linear {
    /// `x·W + b`, the adapters' terms where there are any, and `residual`.
    pub fn forward(&self, kernels: Kernels, x_nd: Tensor<2>, residual: Option<Tensor<2>>, adapters: &dyn Beside) -> Tensor<2> {
        let (weight, bias) = (Some(self.weight.clone()), self.bias.clone());
        let y = kernels.linear(x_nd.clone(), weight, bias, residual, adapters.factors(&self.parts));
        let dropped = adapters.dropped(&self.parts, &x_nd);
        dropped.into_iter().fold(y, |y, (x, factors)| kernels.linear(x, None, None, Some(y), Some(factors)))
    }

    /// `x·W + b`.
    pub fn project(&self, kernels: Kernels, x_nd: Tensor<2>) -> Tensor<2> {
        kernels.linear(x_nd, Some(self.weight.clone()), self.bias.clone(), None, None)
    }
}

/// What runs beside frozen projections.
pub(crate) trait Beside {
    /// The low-rank factors beside projections that stand side by side, of these paths and widths.
    fn factors(&self, parts: &[(String, usize)]) -> Option<Factors>;
    /// Those that read an input of their own, with features dropped.
    fn dropped(&self, parts: &[(String, usize)], x_nd: &Tensor<2>) -> Vec<(Tensor<2>, Factors)>;
}

/// A frozen norm: root-mean-square, or with a bias a layer norm.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub epsilon: f64,
    pub weight: Tensor<1>,
    pub bias: Option<Tensor<1>>,
}

impl Norm {
    /// Normalises each row.
    pub fn forward(&self, kernels: Kernels, x_nd: Tensor<2>) -> Tensor<2> {
        kernels.norm(x_nd, self.weight.clone(), self.bias.clone(), self.epsilon)
    }
}

/// Feed-forward network.
#[derive(Clone, Debug)]
pub(crate) enum Mlp {
    /// Gate and up side by side, and down.
    Gated(Linear, Linear),
    /// Up and down.
    Plain(Linear, Linear),
}

/// The frozen weights of one block.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub attention_norm: Norm,
    /// Queries, keys and values side by side.
    pub qkv: Linear,
    pub head_norms: Option<(Norm, Norm)>,
    pub output: Linear,
    pub mlp_norm: Norm,
    pub mlp: Mlp,
}

/// What every block of a step shares: where tokens stand, whom they see, and by which kernels it is computed.
pub(crate) struct Surroundings {
    pub kernels: Kernels,
    pub rows: Rows,
    pub rotary: Option<Angles>,
    /// [`Rows::spans`], `[n, 4]`.
    pub spans: Tensor<2, Int>,
}

impl Surroundings {
    pub fn new(spec: &BlockSpec, rows: &Rows, kernels: Kernels, activations: DType, device: &Device) -> Self {
        let table = spec.rotary.as_ref().map(|rotary| AngleTable::new(rotary, spec.head_dim));
        let rotary = table.map(|mut table| table.of(&rows.positions(), activations, device));
        let spans: Vec<i32> = rows.spans(spec.causal, spec.window).into_iter().flatten().map(|at| at as i32).collect();
        let spans = Tensor::from_data(TensorData::new(spans, [rows.tokens(), 4]), device);
        Self { kernels, rows: rows.clone(), rotary, spans }
    }
}

impl Block {
    /// `[n, d]` to `[n, d]`.
    pub fn forward(&self, spec: &BlockSpec, hidden: Tensor<2>, around: &Surroundings, adapter: &Bounds) -> Tensor<2> {
        let angles = around.rotary.as_ref();
        self.run(spec, hidden, around.kernels, angles, adapter, |qkv, heads| around.kernels.attention(qkv, spec, around, heads))
    }

    /// The same with attention given: `mix` takes queries, keys and values side by side, rotated, `[n, (h + 2k)·e]`, to `[n, h·e]`.
    pub fn run(
        &self,
        spec: &BlockSpec,
        hidden: Tensor<2>,
        kernels: Kernels,
        angles: Option<&Angles>,
        adapter: &dyn Beside,
        mix: impl FnOnce(Tensor<2>, Heads) -> Tensor<2>,
    ) -> Tensor<2> {
        match spec.norm_order {
            NormOrder::Pre => {
                let normed = self.attention_norm.forward(kernels, hidden.clone());
                let mixed = mix(self.queries_keys_values(spec, normed, kernels, angles, adapter), heads(spec));
                let hidden = self.output.forward(kernels, mixed, Some(hidden), adapter);
                let normed = self.mlp_norm.forward(kernels, hidden.clone());
                self.feed_forward(spec, normed, hidden, kernels, adapter)
            }
            NormOrder::Post => {
                let mixed = mix(self.queries_keys_values(spec, hidden.clone(), kernels, angles, adapter), heads(spec));
                let attended = self.output.forward(kernels, mixed, Some(hidden), adapter);
                let hidden = self.attention_norm.forward(kernels, attended);
                let fed = self.feed_forward(spec, hidden.clone(), hidden, kernels, adapter);
                self.mlp_norm.forward(kernels, fed)
            }
        }
    }

    /// Queries, keys and values of `x`, normed and rotated where the model does that.
    fn queries_keys_values(
        &self,
        spec: &BlockSpec,
        x: Tensor<2>,
        kernels: Kernels,
        angles: Option<&Angles>,
        adapter: &dyn Beside,
    ) -> Tensor<2> {
        let heads = heads(spec);
        let mut qkv = self.qkv.forward(kernels, x, None, adapter);
        if let Some((q_norm, k_norm)) = &self.head_norms {
            let part = |first: usize, count: usize| qkv.clone().narrow(1, first * heads.dim, count * heads.dim);
            let normed = |norm: &Norm, x: Tensor<2>| {
                let shape = x.dims();
                let heads = x.reshape([-1, heads.dim as i32]);
                norm.forward(kernels, heads).reshape(shape)
            };
            let (q, k) = (normed(q_norm, part(0, heads.query)), normed(k_norm, part(heads.query, heads.kv)));
            qkv = Tensor::cat(vec![q, k, part(heads.query + heads.kv, heads.kv)], 1);
        }
        match angles {
            Some((cos, sin)) => kernels.rotary(qkv, cos.clone(), sin.clone(), heads.query + heads.kv, heads.dim),
            None => qkv,
        }
    }

    /// Its projections, each with those that stand beside it.
    pub fn linears(&self) -> [&Linear; 4] {
        let (Mlp::Gated(inner, down) | Mlp::Plain(inner, down)) = &self.mlp;
        [&self.qkv, &self.output, inner, down]
    }

    /// The feed-forward network of `x`, added to `residual`.
    fn feed_forward(&self, spec: &BlockSpec, x: Tensor<2>, residual: Tensor<2>, kernels: Kernels, adapter: &dyn Beside) -> Tensor<2> {
        let (inner, down) = match &self.mlp {
            Mlp::Gated(both, down) => (kernels.gated(both.forward(kernels, x, None, adapter), spec.activation), down),
            Mlp::Plain(up, down) => (kernels.activate(up.forward(kernels, x, None, adapter), spec.activation), down),
        };
        down.forward(kernels, inner, Some(residual), adapter)
    }
}

/// The heads of a block.
pub(crate) fn heads(spec: &BlockSpec) -> Heads {
    Heads { query: spec.heads, kv: spec.kv_heads, dim: spec.head_dim }
}

/// Cosine and sine of the rotary angles of some tokens, `[n, e/2]` each.
pub(crate) type Angles = (Tensor<2>, Tensor<2>);

/// Cosines and sines of the rotary angles `position · frequency` of all positions so far, computed in f64.
pub(crate) struct AngleTable {
    frequencies: Vec<f64>,
    /// A row for each position.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl AngleTable {
    pub fn new(spec: &RotarySpec, head_dim: usize) -> Self {
        let frequency = |i: usize| scaled(spec, spec.theta.powf(-2.0 * i as f64 / head_dim as f64));
        Self { frequencies: (0..head_dim / 2).map(frequency).collect(), cos: vec![], sin: vec![] }
    }

    /// Those of tokens at `positions`, in the type of activations.
    pub fn of(&mut self, positions: &[u32], activations: DType, device: &Device) -> Angles {
        let half = self.frequencies.len();
        let longest = positions.iter().max().map_or(0, |&position| position as usize + 1);
        for position in self.cos.len() / half.max(1)..longest {
            self.cos.extend(self.frequencies.iter().map(|f| (position as f64 * f).cos() as f32));
            self.sin.extend(self.frequencies.iter().map(|f| (position as f64 * f).sin() as f32));
        }
        let table = |all: &[f32]| {
            let values: Vec<f32> = positions.iter().flat_map(|&p| &all[p as usize * half..(p as usize + 1) * half]).copied().collect();
            Tensor::<2>::from_data(TensorData::new(values, [positions.len(), half]), device).cast(activations)
        };
        (table(&self.cos), table(&self.sin))
    }
}

/// One frequency after the context scaling; for `Llama3` as in Meta's reference and transformers' `_compute_llama3_parameters`.
fn scaled(spec: &RotarySpec, frequency: f64) -> f64 {
    match spec.scaling {
        RotaryScaling::None => frequency,
        RotaryScaling::Linear { factor } => frequency / factor,
        RotaryScaling::Llama3 { factor, low, high, original_positions } => {
            let wavelength = std::f64::consts::TAU / frequency;
            if wavelength > original_positions / low {
                frequency / factor
            } else if wavelength < original_positions / high {
                frequency
            } else {
                let smooth = (original_positions / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

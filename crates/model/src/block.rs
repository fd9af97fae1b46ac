//! One transformer block on burn tensors: the frozen weights, and the forward pass beside an adapter.
//!
//! No gradient of a frozen weight is ever computed: frozen weights stand outside autodiff, which then keeps and computes
//! nothing for them. Shapes: `n` tokens of all sequences, `d` hidden, `h` query heads, `k` key/value heads, `e` features per head.

use crate::bound::Bounds;
use crate::ops::{Heads, Kernels};
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
    pub fn forward(&self, kernels: Kernels, x_nd: Tensor<2>, residual: Option<Tensor<2>>, adapters: &Bounds) -> Tensor<2> {
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
    /// Cosine and sine of the rotary angles, `[n, e/2]` each.
    rotary: Option<(Tensor<2>, Tensor<2>)>,
    /// [`Rows::spans`], `[n, 4]`.
    pub spans: Tensor<2, Int>,
}

impl Surroundings {
    pub fn new(spec: &BlockSpec, rows: &Rows, kernels: Kernels, activations: DType, device: &Device) -> Self {
        let rotary = spec.rotary.as_ref().map(|rotary| {
            let (cos, sin) = angles(rotary, spec.head_dim, &rows.positions(), device);
            (cos.cast(activations), sin.cast(activations))
        });
        let spans: Vec<i32> = rows.spans(spec.causal, spec.window).into_iter().flatten().map(|at| at as i32).collect();
        let spans = Tensor::from_data(TensorData::new(spans, [rows.tokens(), 4]), device);
        Self { kernels, rows: rows.clone(), rotary, spans }
    }
}

impl Block {
    /// `[n, d]` to `[n, d]`.
    pub fn forward(&self, spec: &BlockSpec, hidden: Tensor<2>, around: &Surroundings, adapter: &Bounds) -> Tensor<2> {
        let kernels = around.kernels;
        match spec.norm_order {
            NormOrder::Pre => {
                let normed = self.attention_norm.forward(kernels, hidden.clone());
                let hidden = self.attend(spec, normed, hidden, around, adapter);
                let normed = self.mlp_norm.forward(kernels, hidden.clone());
                self.feed_forward(spec, normed, hidden, kernels, adapter)
            }
            NormOrder::Post => {
                let attended = self.attend(spec, hidden.clone(), hidden, around, adapter);
                let hidden = self.attention_norm.forward(kernels, attended);
                let fed = self.feed_forward(spec, hidden.clone(), hidden, kernels, adapter);
                self.mlp_norm.forward(kernels, fed)
            }
        }
    }

    /// Attention of `x`, added to `residual`.
    fn attend(&self, spec: &BlockSpec, x: Tensor<2>, residual: Tensor<2>, around: &Surroundings, adapter: &Bounds) -> Tensor<2> {
        let heads = Heads { query: spec.heads, kv: spec.kv_heads, dim: spec.head_dim };
        let kernels = around.kernels;
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
        if let Some((cos, sin)) = &around.rotary {
            qkv = kernels.rotary(qkv, cos.clone(), sin.clone(), heads.query + heads.kv, heads.dim);
        }
        let mixed = kernels.attention(qkv, spec, around, heads);
        self.output.forward(kernels, mixed, Some(residual), adapter)
    }

    /// The feed-forward network of `x`, added to `residual`.
    fn feed_forward(&self, spec: &BlockSpec, x: Tensor<2>, residual: Tensor<2>, kernels: Kernels, adapter: &Bounds) -> Tensor<2> {
        let (inner, down) = match &self.mlp {
            Mlp::Gated(both, down) => (kernels.gated(both.forward(kernels, x, None, adapter), spec.activation), down),
            Mlp::Plain(up, down) => (kernels.activate(up.forward(kernels, x, None, adapter), spec.activation), down),
        };
        down.forward(kernels, inner, Some(residual), adapter)
    }
}

/// Cosines and sines of the rotary angles `position · frequency`, `[n, e/2]` each, computed in f64.
fn angles(spec: &RotarySpec, head_dim: usize, positions: &[u32], device: &Device) -> (Tensor<2>, Tensor<2>) {
    let half = head_dim / 2;
    let frequencies: Vec<f64> = (0..half).map(|i| scaled(spec, spec.theta.powf(-2.0 * i as f64 / head_dim as f64))).collect();
    let longest = positions.iter().max().map_or(0, |&p| p + 1);
    let table = |function: fn(f64) -> f64| {
        let each: Vec<f32> = (0..longest).flat_map(|p| frequencies.iter().map(move |f| function(f64::from(p) * f) as f32)).collect();
        let values: Vec<f32> = positions.iter().flat_map(|&p| &each[p as usize * half..(p as usize + 1) * half]).copied().collect();
        Tensor::from_data(TensorData::new(values, [positions.len(), half]), device)
    };
    (table(f64::cos), table(f64::sin))
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

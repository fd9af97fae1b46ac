//! One transformer block on burn tensors: the frozen weights, and the forward pass beside an adapter.
//!
//! No gradient of a frozen weight is ever computed: frozen weights stand outside autodiff, which then keeps and computes
//! nothing for them. Shapes: `b` rows, `t` tokens a row, `n = b·t`, `d` hidden, `k` key/value heads, `g` query heads per
//! key/value head, `e` features per head.

use crate::lora::Bound;
use crate::rows::Rows;
use crate::spec::{Activation, BlockSpec, NormKind, NormOrder, RotaryScaling, RotarySpec};
use burn::tensor::{Device, Tensor, TensorData, activation};

/// A frozen projection, `[in, out]`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// Full module path, which names its adapter too.
    pub path: String,
    pub weight: Tensor<2>,
    pub bias: Option<Tensor<1>>,
}

impl Linear {
    /// `x·W + b`, and the adapter's term where it has one.
    pub fn forward(&self, x_nd: Tensor<2>, adapter: &Bound) -> Tensor<2> {
        let delta = adapter.delta(&self.path, &x_nd);
        let mut y = x_nd.matmul(self.weight.clone());
        if let Some(bias) = &self.bias {
            y = y + bias.clone().unsqueeze();
        }
        match delta {
            Some(delta) => y + delta,
            None => y,
        }
    }
}

/// A frozen norm.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub kind: NormKind,
    pub epsilon: f64,
    pub weight: Tensor<1>,
    pub bias: Option<Tensor<1>>,
}

impl Norm {
    /// Normalises the last dimension.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let centred = match self.kind {
            NormKind::Rms => x,
            NormKind::Layer => {
                let mean = x.clone().mean_dim(D - 1);
                x - mean
            }
        };
        let deviation = (centred.clone().square().mean_dim(D - 1) + self.epsilon).sqrt();
        let y = centred / deviation * self.weight.clone().unsqueeze();
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        }
    }
}

/// Query, key and value projections.
#[derive(Clone, Debug)]
pub(crate) enum Qkv {
    Separate([Linear; 3]),
    Fused(Linear),
}

/// Feed-forward network.
#[derive(Clone, Debug)]
pub(crate) enum Mlp {
    Gated([Linear; 3]),
    Plain([Linear; 2]),
}

/// The frozen weights of one block.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub attention_norm: Norm,
    pub qkv: Qkv,
    pub head_norms: Option<(Norm, Norm)>,
    pub output: Linear,
    pub mlp_norm: Norm,
    pub mlp: Mlp,
}

/// What every block of a step shares: where tokens stand and whom they see.
pub(crate) struct Surroundings {
    /// Cosine and sine of the rotary angles, `[t, e/2]` each.
    rotary: Option<(Tensor<2>, Tensor<2>)>,
    mask: Option<Tensor<5>>,
}

impl Surroundings {
    pub fn new(spec: &BlockSpec, rows: &Rows, device: &Device) -> Self {
        let rotary = spec.rotary.as_ref().map(|rotary| angles(rotary, spec.head_dim, &rows.positions(), device));
        Self { rotary, mask: rows.mask(spec.causal, spec.window, device) }
    }
}

impl Block {
    /// `[b, t, d]` to `[b, t, d]`.
    pub fn forward(&self, spec: &BlockSpec, hidden_btd: Tensor<3>, around: &Surroundings, adapter: &Bound) -> Tensor<3> {
        match spec.norm_order {
            NormOrder::Pre => {
                let normed = self.attention_norm.forward(hidden_btd.clone());
                let hidden_btd = hidden_btd + self.attend(spec, normed, around, adapter);
                let normed = self.mlp_norm.forward(hidden_btd.clone());
                hidden_btd + self.feed_forward(spec, normed, adapter)
            }
            NormOrder::Post => {
                let attended = self.attend(spec, hidden_btd.clone(), around, adapter);
                let hidden_btd = self.attention_norm.forward(hidden_btd + attended);
                let fed = self.feed_forward(spec, hidden_btd.clone(), adapter);
                self.mlp_norm.forward(hidden_btd + fed)
            }
        }
    }

    fn attend(&self, spec: &BlockSpec, x_btd: Tensor<3>, around: &Surroundings, adapter: &Bound) -> Tensor<3> {
        let [b, t, d] = x_btd.dims();
        let (k, e) = (spec.kv_heads, spec.head_dim);
        let g = spec.heads / k;
        let (q, key, value) = self.project(spec, x_btd.reshape([b * t, d]), adapter);
        // Heads outside, so that one batched product serves all: query heads that share a key head stand side by side.
        let mut q = q.reshape([b, t, spec.heads, e]).swap_dims(1, 2);
        let mut key = key.reshape([b, t, k, e]).swap_dims(1, 2);
        let value = value.reshape([b, t, k, e]).swap_dims(1, 2);
        if let Some((q_norm, k_norm)) = &self.head_norms {
            (q, key) = (q_norm.forward(q), k_norm.forward(key));
        }
        if let Some(angles) = &around.rotary {
            (q, key) = (rotate(q, angles), rotate(key, angles));
        }
        let q = q.mul_scalar(1.0 / (e as f64).sqrt()).reshape([b, k, g * t, e]);
        let mut scores = q.matmul(key.swap_dims(2, 3)).reshape([b, k, g, t, t]);
        if let Some(mask) = &around.mask {
            scores = scores + mask.clone();
        }
        let weights = activation::softmax(scores, 4).reshape([b, k, g * t, t]);
        let mixed = weights.matmul(value).reshape([b, spec.heads, t, e]).swap_dims(1, 2).reshape([b * t, spec.heads * e]);
        self.output.forward(mixed, adapter).reshape([b, t, d])
    }

    fn project(&self, spec: &BlockSpec, x_nd: Tensor<2>, adapter: &Bound) -> (Tensor<2>, Tensor<2>, Tensor<2>) {
        match &self.qkv {
            Qkv::Separate([q, k, v]) => (q.forward(x_nd.clone(), adapter), k.forward(x_nd.clone(), adapter), v.forward(x_nd, adapter)),
            Qkv::Fused(all) => {
                let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
                let all = all.forward(x_nd, adapter);
                (all.clone().narrow(1, 0, q), all.clone().narrow(1, q, kv), all.narrow(1, q + kv, kv))
            }
        }
    }

    fn feed_forward(&self, spec: &BlockSpec, x_btd: Tensor<3>, adapter: &Bound) -> Tensor<3> {
        let [b, t, d] = x_btd.dims();
        let x_nd = x_btd.reshape([b * t, d]);
        let y = match &self.mlp {
            Mlp::Gated([gate, up, down]) => {
                let gated = activate(spec.activation, gate.forward(x_nd.clone(), adapter));
                down.forward(gated * up.forward(x_nd, adapter), adapter)
            }
            Mlp::Plain([up, down]) => down.forward(activate(spec.activation, up.forward(x_nd, adapter)), adapter),
        };
        y.reshape([b, t, d])
    }
}

fn activate(kind: Activation, x: Tensor<2>) -> Tensor<2> {
    match kind {
        Activation::Silu => activation::silu(x),
        Activation::Gelu => activation::gelu(x),
        Activation::GeluTanh => activation::gelu_approximate(x),
        Activation::Relu => activation::relu(x),
    }
}

/// Rotates feature pairs `(i, i + e/2)` of `x [b, h, t, e]` by each token's angles.
fn rotate(x: Tensor<4>, (cos, sin): &(Tensor<2>, Tensor<2>)) -> Tensor<4> {
    let half = x.dims()[3] / 2;
    let (cos, sin) = (cos.clone().unsqueeze::<4>(), sin.clone().unsqueeze::<4>());
    let (low, high) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let turned_low = low.clone() * cos.clone() - high.clone() * sin.clone();
    let turned_high = high * cos + low * sin;
    Tensor::cat(vec![turned_low, turned_high], 3)
}

/// Cosines and sines of the rotary angles `position · frequency`, `[t, e/2]` each, computed in f64.
fn angles(spec: &RotarySpec, head_dim: usize, positions: &[u32], device: &Device) -> (Tensor<2>, Tensor<2>) {
    let half = head_dim / 2;
    let frequencies: Vec<f64> = (0..half).map(|i| scaled(spec, spec.theta.powf(-2.0 * i as f64 / head_dim as f64))).collect();
    let table = |function: fn(f64) -> f64| {
        let values: Vec<f32> = positions.iter().flat_map(|&p| frequencies.iter().map(move |f| function(f64::from(p) * f) as f32)).collect();
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

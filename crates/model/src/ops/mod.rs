//! The fused operations of a block: one trait that each backend implements, and its face on tensors.
//!
//! Burn routes a call to the CPU (`flex/`), to CubeCL (`cube/`: wgpu and CUDA) or, where gradients are taken, to `autodiff.rs`,
//! which pairs each operation with its hand-written backward. `composed.rs` is the same mathematics from burn's own operations: the
//! reference of every test, and what runs where weights themselves are trained.
//!
//! Everything is ragged: `n` tokens of all sequences stand one after another, `[n, features]`, without padding.

mod autodiff;
mod cache;
pub(crate) mod composed;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod cube;

#[allow(unsafe_code, reason = "vector instructions, and threads that write disjoint parts of one tensor")]
mod flex;
mod groups;

#[cfg(test)]
mod cached_tests;
#[cfg(test)]
mod tests;

use crate::block::Surroundings;
use crate::spec::{Activation, BlockSpec};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, ExtensionType, TensorMetadata, backend_extension};
use burn::tensor::{Device, Int, Tensor};
pub(crate) use cache::{CachePlan, Sequence};
pub(crate) use groups::{Group, Groups};

/// Logits that may stand at once in a loss: 64 MiB of f32.
const LOGITS_MAX: usize = 16 << 20;

/// A tensor that an operation can do without.
#[derive(Clone, Debug, ExtensionType)]
pub(crate) enum Maybe<B: Backend> {
    /// There.
    Some(FloatTensor<B>),
    /// Absent.
    None,
}

/// Query heads, key and value heads, and features per head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    pub query: usize,
    pub kv: usize,
    pub dim: usize,
}

impl Heads {
    /// Columns of queries, keys and values side by side.
    pub fn columns(self) -> usize {
        (self.query + 2 * self.kv) * self.dim
    }
}

/// Operations that a backend computes in one piece. Those named `_backward` are called by `autodiff.rs` alone.
#[backend_extension(Flex, Autodiff, Cube: cfg(any(feature = "wgpu", feature = "cuda")))]
pub(crate) trait Fused: Backend {
    /// `x·W + low·up + bias + residual`: `x [n, in]`, `W [in, out]`; each of the others may be absent.
    ///
    /// The second term is each group's own: to a group's rows it adds those of `low [n, w]`, as many columns as the group has ranks, times the
    /// group's rows of `up [R, out]`. Other rows have none.
    fn affine(
        x: FloatTensor<Self>,
        #[extension_type] weight: Maybe<Self>,
        #[extension_type] low: Maybe<Self>,
        #[extension_type] up: Maybe<Self>,
        groups: Groups,
        #[extension_type] bias: Maybe<Self>,
        #[extension_type] residual: Maybe<Self>,
    ) -> FloatTensor<Self>;

    /// Each group's rows of `x [n, k]` times the transpose of its rows of `factors [R, k]`: `[n, w]`. What is to the right of a group's rank
    /// means nothing.
    fn shrink(x: FloatTensor<Self>, factors: FloatTensor<Self>, groups: Groups) -> FloatTensor<Self> {
        let ([n, k], width) = (x.shape().dims::<2>(), groups.width());
        if groups.is_whole(n) {
            return product::<Self>(x, Self::float_transpose(factors));
        }
        let mut low = Self::float_zeros([n, width].into(), &x.device(), x.dtype().into());
        for Group { rows, ranks } in groups.iter().cloned() {
            let own = Self::float_slice(x.clone(), &[rows.clone().into(), (0..k).into()]);
            let factors = Self::float_slice(factors.clone(), &[ranks.clone().into(), (0..k).into()]);
            let own = product::<Self>(own, Self::float_transpose(factors));
            low = Self::float_slice_assign(low, &[rows.into(), (0..ranks.len()).into()], own);
        }
        low
    }

    /// The transpose of each group's rows of `low [n, w]`, as many columns as it has ranks, times its rows of `y [n, k]`: `[R, k]`.
    fn outer(low: FloatTensor<Self>, y: FloatTensor<Self>, groups: Groups) -> FloatTensor<Self> {
        let [n, k] = y.shape().dims::<2>();
        if groups.is_whole(n) {
            return product::<Self>(Self::float_transpose(low), y);
        }
        let each = groups.iter().cloned().map(|Group { rows, ranks }| {
            let low = Self::float_slice(low.clone(), &[rows.clone().into(), (0..ranks.len()).into()]);
            let y = Self::float_slice(y.clone(), &[rows.into(), (0..k).into()]);
            product::<Self>(Self::float_transpose(low), y)
        });
        Self::float_cat(each.collect(), 0)
    }

    /// A frozen projection and its adapters (Hu et al. 2021): `x·W + (x·Aᵀ)·up + bias + residual`, with each group's `A` and `up`, the scale
    /// already in it, among the rows of `A [R, in]` and `up [R, out]`. Gradients flow to `x`, `residual`, `A` and `up`.
    fn linear(
        x: FloatTensor<Self>,
        #[extension_type] weight: Maybe<Self>,
        #[extension_type] bias: Maybe<Self>,
        #[extension_type] residual: Maybe<Self>,
        #[extension_type] a: Maybe<Self>,
        #[extension_type] up: Maybe<Self>,
        groups: Groups,
    ) -> FloatTensor<Self> {
        let low = match a {
            Maybe::Some(a) => Maybe::Some(Self::shrink(x.clone(), a, groups.clone())),
            Maybe::None => Maybe::None,
        };
        Self::affine(x, weight, low, up, groups, bias, residual)
    }

    /// `x / sqrt(mean(x²) + ε) · w` of each row (Zhang and Sennrich 2019).
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;
    /// Gradient of `x`.
    fn rms_norm_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, grad: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;

    /// `(x - mean) / sqrt(var + ε) · w + b` of each row (Ba et al. 2016).
    fn layer_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;
    /// Gradient of `x`.
    fn layer_norm_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, grad: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;

    /// In each of the first `turned` heads of `x [n, heads·e]`, rotates feature pairs `(i, i + e/2)` by the token's angle, whose cosine and
    /// sine are `[n, e/2]` (Su et al. 2021); by minus the angle if `inverse`, which is its backward. Other columns stay.
    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        turned: usize,
        head_dim: usize,
        inverse: bool,
    ) -> FloatTensor<Self>;

    /// `act(gate)·up` of `both = [gate | up]`, `[n, 2f]` to `[n, f]` (Shazeer 2020).
    fn gated(both: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;
    /// Gradient of `both`.
    fn gated_backward(both: FloatTensor<Self>, grad: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;

    /// `act(x)`.
    fn activate(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;
    /// Gradient of `x`.
    fn activate_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;

    /// Softmax attention without a score matrix (Dao et al. 2022), queries grouped over keys (Ainslie et al. 2023).
    ///
    /// `qkv [n, (h + 2k)·e]` holds queries, keys and values side by side. Token `i` sees the keys `spans[i][0]..spans[i][1]`, never
    /// none; the queries that may see key `j` lie within `spans[j][2]..spans[j][3]`. Returns `[n, h·e]` and, for the backward,
    /// the logarithm of each softmax's denominator, `[n, h]`.
    fn attention(qkv: FloatTensor<Self>, spans: IntTensor<Self>, heads: Heads, scale: f32) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// Gradient of `qkv`.
    fn attention_backward(
        qkv: FloatTensor<Self>,
        spans: IntTensor<Self>,
        out: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        heads: Heads,
        scale: f32,
    ) -> FloatTensor<Self>;

    /// Attention of the next tokens of growing sequences over what the pool holds of them and themselves, causal.
    ///
    /// `qkv` is as in `attention`. New keys and values are written to their slots of `pool [pages·PAGE_TOKENS, 2·k·e]` first, in place where
    /// nobody else holds it. Returns `[n, h·e]`, and the pool.
    fn cached_attention(
        qkv: FloatTensor<Self>,
        pool: FloatTensor<Self>,
        plan: CachePlan,
        heads: Heads,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        cache::composed::<Self>(qkv, pool, &plan, heads, scale)
    }

    /// Softmax cross-entropy of some rows: of `logits [c, v]` and the classes `targets [c]`, each row's loss `[c]`, its likeliest class
    /// `[c]`, and `softmax(logits) - onehot(target)`.
    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> (FloatTensor<Self>, IntTensor<Self>, FloatTensor<Self>);

    /// Loss `[n]` of each row of `x·tableᵀ`, the likeliest class `[n]`, and, if `with_grad`, the loss's gradient by that row of
    /// `x`, `[n, d]`. Rows go a chunk at a time, so that no `[n, vocab]` tensor ever stands.
    fn projected_loss(
        x: FloatTensor<Self>,
        table: FloatTensor<Self>,
        targets: IntTensor<Self>,
        with_grad: bool,
    ) -> (FloatTensor<Self>, IntTensor<Self>, FloatTensor<Self>) {
        let ([n, d], [v, _]) = (x.shape().dims::<2>(), table.shape().dims::<2>());
        let chunk = n.div_ceil((n * v).div_ceil(LOGITS_MAX).max(1)).next_multiple_of(8);
        let (mut losses, mut best, mut d_x) = (vec![], vec![], vec![]);
        for from in (0..n).step_by(chunk) {
            let rows = from..n.min(from + chunk);
            let part = Self::float_slice(x.clone(), &[rows.clone().into(), (0..d).into()]);
            let logits = product::<Self>(part, Self::float_transpose(table.clone()));
            let (part_losses, part_best, slopes) = Self::cross_entropy(logits, Self::int_slice(targets.clone(), &[rows.into()]));
            losses.push(part_losses);
            best.push(part_best);
            if with_grad {
                d_x.push(product::<Self>(slopes, table.clone()));
            }
        }
        let d_x = if with_grad { Self::float_cat(d_x, 0) } else { x };
        (Self::float_cat(losses, 0), Self::int_cat(best, 0), d_x)
    }
}

/// `x·y` alone.
fn product<B: Fused>(x: FloatTensor<B>, y: FloatTensor<B>) -> FloatTensor<B> {
    B::affine(x, Maybe::Some(y), Maybe::None, Maybe::None, Groups::default(), Maybe::None, Maybe::None)
}

impl<B: Backend> From<Option<FloatTensor<B>>> for Maybe<B> {
    fn from(x: Option<FloatTensor<B>>) -> Self {
        x.map_or(Maybe::None, Maybe::Some)
    }
}

fn maybe<const D: usize>(x: Option<Tensor<D>>) -> Maybe<Dispatch> {
    x.map(Tensor::into_dispatch).into()
}

/// The low-rank factors that run beside a projection: `A [R, in]` and `up [R, out]`, the scale in it, of all groups.
#[derive(Clone, Debug)]
pub(crate) struct Factors {
    pub a: Tensor<2>,
    pub up: Tensor<2>,
    pub groups: Groups,
}

/// What computes the operations of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernels {
    /// In one piece each, with a backward of their own; frozen weights only.
    #[default]
    Fused,
    /// From burn's own operations: slower, and able to train any weight.
    Composed,
}

/// Whether `device` is burn's CPU.
pub(crate) fn is_cpu(device: &Device) -> bool {
    matches!(device.clone().inner().as_dispatch(), DispatchDevice::Flex(_))
}

/// Each takes what its namesake in `Fused` takes.
impl Kernels {
    /// The fastest on `device`: every backend of this build has the fused ones.
    pub fn on(_: &Device) -> Self {
        Self::Fused
    }

    pub(crate) fn linear(
        self,
        x_nd: Tensor<2>,
        weight: Option<Tensor<2>>,
        bias: Option<Tensor<1>>,
        residual: Option<Tensor<2>>,
        factors: Option<Factors>,
    ) -> Tensor<2> {
        if self == Self::Composed {
            return composed::linear(x_nd, weight, bias, residual, factors);
        }
        let (a, up, groups) = factors.map_or((None, None, Groups::default()), |all| (Some(all.a), Some(all.up), all.groups));
        let x = x_nd.into_dispatch();
        Tensor::from_dispatch(Dispatch::linear(x, maybe(weight), maybe(bias), maybe(residual), maybe(a), maybe(up), groups))
    }

    /// A root-mean-square norm, or with a bias a layer norm.
    pub(crate) fn norm(self, x_nd: Tensor<2>, weight: Tensor<1>, bias: Option<Tensor<1>>, epsilon: f64) -> Tensor<2> {
        if self == Self::Composed {
            return composed::norm(x_nd, weight, bias, epsilon);
        }
        let (x, weight, epsilon) = (x_nd.into_dispatch(), weight.into_dispatch(), epsilon as f32);
        Tensor::from_dispatch(match bias {
            None => Dispatch::rms_norm(x, weight, epsilon),
            Some(bias) => Dispatch::layer_norm(x, weight, bias.into_dispatch(), epsilon),
        })
    }

    pub(crate) fn rotary(self, x_nc: Tensor<2>, cos: Tensor<2>, sin: Tensor<2>, turned: usize, head_dim: usize) -> Tensor<2> {
        if self == Self::Composed {
            return composed::rotary(x_nc, cos, sin, turned, head_dim);
        }
        let (x, cos, sin) = (x_nc.into_dispatch(), cos.into_dispatch(), sin.into_dispatch());
        Tensor::from_dispatch(Dispatch::rotary(x, cos, sin, turned, head_dim, false))
    }

    pub(crate) fn gated(self, both: Tensor<2>, activation: Activation) -> Tensor<2> {
        match self {
            Self::Composed => composed::gated(both, activation),
            Self::Fused => Tensor::from_dispatch(Dispatch::gated(both.into_dispatch(), activation)),
        }
    }

    pub(crate) fn activate(self, x: Tensor<2>, activation: Activation) -> Tensor<2> {
        match self {
            Self::Composed => composed::activate(x, activation),
            Self::Fused => Tensor::from_dispatch(Dispatch::activate(x.into_dispatch(), activation)),
        }
    }

    /// With scores scaled by `1/√e`.
    pub(crate) fn attention(self, qkv: Tensor<2>, spec: &BlockSpec, around: &Surroundings, heads: Heads) -> Tensor<2> {
        if self == Self::Composed {
            return composed::attention(qkv, &around.rows, spec.causal, spec.window, heads);
        }
        let scale = 1.0 / (heads.dim as f32).sqrt();
        let (out, _) = Dispatch::attention(qkv.into_dispatch(), around.spans.clone().into_dispatch(), heads, scale);
        Tensor::from_dispatch(out)
    }

    /// Takes no gradient. Returns the pool too, written.
    pub(crate) fn cached_attention(
        self,
        qkv: Tensor<2>,
        pool: Tensor<2>,
        plan: CachePlan,
        heads: Heads,
        scale: f32,
    ) -> (Tensor<2>, Tensor<2>) {
        let (qkv, pool) = (qkv.into_dispatch(), pool.into_dispatch());
        let (out, pool) = match self {
            Self::Composed => cache::composed::<Dispatch>(qkv, pool, &plan, heads, scale),
            Self::Fused => Dispatch::cached_attention(qkv, pool, plan, heads, scale),
        };
        (Tensor::from_dispatch(out), Tensor::from_dispatch(pool))
    }

    /// Loss of each row of `x·tableᵀ`, and its likeliest class.
    pub(crate) fn projected_loss(self, x_nd: Tensor<2>, table_vd: Tensor<2>, targets: Tensor<1, Int>) -> (Tensor<1>, Tensor<1, Int>) {
        if self == Self::Composed {
            return composed::projected_loss(x_nd, table_vd, targets);
        }
        let (x, table, targets) = (x_nd.into_dispatch(), table_vd.into_dispatch(), targets.into_dispatch());
        let (losses, best, _) = Dispatch::projected_loss(x, table, targets, false);
        (Tensor::from_dispatch(losses), Tensor::from_dispatch(best))
    }
}

/// Runs `f`, a step of a few tokens, with the CPU's threads kept awake between its operations; on a GPU it just runs.
pub(crate) fn in_pool<T>(f: impl FnOnce() -> T) -> T {
    flex::muster(f)
}

/// GFLOP/s that the CPU gives a plain matrix product; see `cutlayer bench step`.
pub(crate) use flex::gemm_gflops as cpu_gemm_gflops;

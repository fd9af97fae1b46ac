//! The mathematics of the fused operations, from burn's own: their reference, and what runs where a weight itself is trained.

use super::{Factors, Group, Heads};
use crate::rows::Rows;
use crate::spec::Activation;
use burn::tensor::{Int, Tensor, activation};

/// As [`super::linear`].
pub(crate) fn linear(
    x_nd: Tensor<2>,
    weight: Option<Tensor<2>>,
    bias: Option<Tensor<1>>,
    residual: Option<Tensor<2>>,
    factors: Option<Factors>,
) -> Tensor<2> {
    let low_rank = factors.map(|factors| low_rank(&x_nd, factors));
    let product = weight.map(|weight| {
        let weight = weight.cast(x_nd.dtype());
        x_nd.matmul(weight)
    });
    let terms = [product, bias.map(|bias| bias.unsqueeze()), residual, low_rank];
    terms.into_iter().flatten().reduce(|y, term: Tensor<2>| y + term).expect("a projection of nothing")
}

/// `(x·Aᵀ)·up` of each group, and zeros between them.
fn low_rank(x_nd: &Tensor<2>, Factors { a, up, groups }: Factors) -> Tensor<2> {
    let ([n, _], [_, outputs]) = (x_nd.dims(), up.dims());
    let nothing = |rows: usize| Tensor::zeros([rows, outputs], (&x_nd.device().inner(), x_nd.dtype()));
    let (mut parts, mut done): (Vec<Tensor<2>>, usize) = (vec![], 0);
    for Group { rows, ranks } in groups.iter() {
        if rows.start > done {
            parts.push(nothing(rows.start - done));
        }
        let own = |factors: &Tensor<2>| factors.clone().narrow(0, ranks.start, ranks.len());
        let x = x_nd.clone().narrow(0, rows.start, rows.len());
        parts.push(x.matmul(own(&a).transpose()).matmul(own(&up)));
        done = rows.end;
    }
    if n > done {
        parts.push(nothing(n - done));
    }
    Tensor::cat(parts, 0)
}

/// As [`super::norm`].
pub(crate) fn norm(x_nd: Tensor<2>, weight: Tensor<1>, bias: Option<Tensor<1>>, epsilon: f64) -> Tensor<2> {
    let centred = match bias {
        None => x_nd,
        Some(_) => {
            let mean = x_nd.clone().mean_dim(1);
            x_nd - mean
        }
    };
    let deviation = (centred.clone().square().mean_dim(1) + epsilon).sqrt();
    let y = centred / deviation * weight.unsqueeze();
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

/// As [`super::rotary`].
pub(crate) fn rotary(x_nc: Tensor<2>, cos: Tensor<2>, sin: Tensor<2>, turned: usize, head_dim: usize) -> Tensor<2> {
    let [n, columns] = x_nc.dims();
    let half = head_dim / 2;
    let heads = x_nc.reshape([n, columns / head_dim, head_dim]);
    let (turning, still) = (heads.clone().narrow(1, 0, turned), columns / head_dim - turned);
    let (cos, sin) = (cos.unsqueeze_dim::<3>(1), sin.unsqueeze_dim::<3>(1));
    let (low, high) = (turning.clone().narrow(2, 0, half), turning.narrow(2, half, half));
    let turned_low = low.clone() * cos.clone() - high.clone() * sin.clone();
    let turned_high = high * cos + low * sin;
    let mut all = Tensor::cat(vec![turned_low, turned_high], 2);
    if still > 0 {
        all = Tensor::cat(vec![all, heads.narrow(1, turned, still)], 1);
    }
    all.reshape([n, columns])
}

/// As [`super::gated`].
pub(crate) fn gated(both: Tensor<2>, kind: Activation) -> Tensor<2> {
    let f = both.dims()[1] / 2;
    activate(both.clone().narrow(1, 0, f), kind) * both.narrow(1, f, f)
}

/// As [`super::activate`].
pub(crate) fn activate(x: Tensor<2>, kind: Activation) -> Tensor<2> {
    match kind {
        Activation::Silu => activation::silu(x),
        Activation::Gelu => activation::gelu(x),
        Activation::GeluTanh => activation::gelu_approximate(x),
        Activation::Relu => activation::relu(x),
    }
}

/// As [`super::attention`], in a padded rectangle with a `[t, t]` score matrix a head.
pub(crate) fn attention(qkv: Tensor<2>, rows: &Rows, causal: bool, window: Option<usize>, heads: Heads) -> Tensor<2> {
    let device = qkv.device();
    let (b, t) = (rows.rows(), rows.width());
    let Heads { query, kv, dim } = heads;
    let group = query / kv;
    let all = rows.scatter(qkv);
    let part = |first: usize, count: usize| all.clone().narrow(2, first * dim, count * dim).reshape([b, t, count, dim]).swap_dims(1, 2);
    // Heads outside, so that one batched product serves all: query heads that share a key head stand side by side.
    let q = part(0, query).mul_scalar(1.0 / (dim as f64).sqrt()).reshape([b, kv, group * t, dim]);
    let (k, v) = (part(query, kv), part(query + kv, kv));
    let mut scores = q.matmul(k.swap_dims(2, 3)).reshape([b, kv, group, t, t]);
    if let Some(mask) = rows.mask(causal, window, &device.inner()) {
        scores = scores + mask;
    }
    let weights = activation::softmax(scores, 4).reshape([b, kv, group * t, t]);
    rows.gather(weights.matmul(v).reshape([b, query, t, dim]).swap_dims(1, 2).reshape([b, t, query * dim]))
}

/// As [`super::projected_loss`], with all logits at once.
pub(crate) fn projected_loss(x_nd: Tensor<2>, table_vd: Tensor<2>, targets: Tensor<1, Int>) -> (Tensor<1>, Tensor<1, Int>) {
    let table_vd = table_vd.cast(x_nd.dtype());
    cross_entropy(x_nd.matmul(table_vd.transpose()), targets)
}

/// Loss of each row of logits, and its likeliest class.
pub(crate) fn cross_entropy(logits_nv: Tensor<2>, targets: Tensor<1, Int>) -> (Tensor<1>, Tensor<1, Int>) {
    let n = logits_nv.dims()[0];
    let best = logits_nv.clone().inner().argmax(1).reshape([n]);
    let losses = activation::log_softmax(logits_nv, 1).gather(1, targets.reshape([n, 1])).neg().reshape([n]);
    (losses, best)
}

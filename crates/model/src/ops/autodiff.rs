//! The backward of each fused operation: what it keeps of its forward, and the gradients it gives.
//!
//! Frozen weights get none. Burn's autodiff is of first order, so the operations that only a backward uses have no gradient themselves.

use super::{CachePlan, Fused, Groups, Heads, Maybe};
use crate::spec::Activation;
use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{AutodiffBackend, TensorMetadata};
use std::fmt::Debug;

type Plain<B> = FloatTensor<B>;

/// An operation with one input that takes a gradient: `backward(kept, gradient of the output)` is the gradient of the input.
struct Unary<B: Fused, S>(fn(S, Plain<B>) -> Plain<B>);

impl<B: Fused, S> Debug for Unary<B, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unary")
    }
}

impl<B: Fused, S: Clone + Send + Debug + 'static> Backward<B, 1> for Unary<B, S> {
    type State = S;

    fn backward(self, ops: Ops<S, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        unary::<B, _>(ops.parents, ops.node, grads, |grad| (self.0)(ops.state, grad));
    }
}

/// Runs `forward`, which gives the output and what `backward` needs of it.
fn tracked<B: Fused, C: CheckpointStrategy, S: Clone + Send + Debug + 'static>(
    x: FloatTensor<Autodiff<B, C>>,
    forward: impl FnOnce(Plain<B>) -> (Plain<B>, S),
    backward: fn(S, Plain<B>) -> Plain<B>,
) -> FloatTensor<Autodiff<B, C>> {
    let (x, node) = x.into_parts();
    let (out, kept) = forward(x);
    match Unary::<B, S>(backward).prepare::<C>([node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(kept, out),
        OpsKind::UnTracked(prep) => prep.finish(out),
    }
}

/// What `linear` keeps.
#[derive(Clone, Debug)]
struct LinearState<B: Fused> {
    weight: Option<Plain<B>>,
    /// `x`, `x·Aᵀ`, `A` and `up`, and whose rows they are.
    adapter: Option<([Plain<B>; 4], Groups)>,
    has_residual: bool,
}

#[derive(Debug)]
struct Linear;

impl<B: Fused> Backward<B, 4> for Linear {
    type State = LinearState<B>;

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [x_node, residual_node, a_node, up_node] = ops.parents;
        let LinearState { weight, adapter, has_residual } = ops.state;
        let (mut d_low, mut back, mut among) = (Maybe::None, Maybe::None, Groups::default());
        if let Some(([x, low, a, up], groups)) = adapter {
            let slopes = B::shrink(grad.clone(), up, groups.clone());
            if let Some(node) = a_node {
                grads.register::<B>(node.id, B::outer(slopes.clone(), x, groups.clone()));
            }
            if let Some(node) = up_node {
                grads.register::<B>(node.id, B::outer(low, grad.clone(), groups.clone()));
            }
            (d_low, back, among) = (Maybe::Some(slopes), Maybe::Some(a), groups);
        }
        if let Some(node) = x_node {
            let weight = weight.map(B::float_transpose).into();
            grads.register::<B>(node.id, B::affine(grad.clone(), weight, d_low, back, among, Maybe::None, Maybe::None));
        }
        if let (true, Some(node)) = (has_residual, residual_node) {
            grads.register::<B>(node.id, grad);
        }
    }
}

fn split<B: Fused, C: CheckpointStrategy>(x: Maybe<Autodiff<B, C>>) -> Option<FloatTensor<Autodiff<B, C>>> {
    match x {
        Maybe::Some(x) => Some(x),
        Maybe::None => None,
    }
}

const FIRST_ORDER: &str = "a backward has no gradient of its own: burn's autodiff is of first order";

impl<B: Fused, C: CheckpointStrategy> Fused for Autodiff<B, C> {
    fn affine(
        _: FloatTensor<Self>,
        _: Maybe<Self>,
        _: Maybe<Self>,
        _: Maybe<Self>,
        _: Groups,
        _: Maybe<Self>,
        _: Maybe<Self>,
    ) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }

    fn linear(
        x: FloatTensor<Self>,
        weight: Maybe<Self>,
        bias: Maybe<Self>,
        residual: Maybe<Self>,
        a: Maybe<Self>,
        up: Maybe<Self>,
        groups: Groups,
    ) -> FloatTensor<Self> {
        let (residual, a, up) = (split(residual), split(a), split(up));
        // An absent input stands in as `x`: its gradient is never asked for.
        let guard = |input: &Option<FloatTensor<Self>>| input.as_ref().map_or_else(|| x.node(), |input| input.node());
        let nodes = [x.node(), guard(&residual), guard(&a), guard(&up)];
        let plain = |input: Option<FloatTensor<Self>>| input.map(|input| input.into_primitive());
        let bias: Maybe<B> = plain(split(bias)).into();
        let (x, weight) = (x.into_primitive(), plain(split(weight)));
        let has_residual = residual.is_some();
        let residual: Maybe<B> = plain(residual).into();
        let frozen: Maybe<B> = weight.clone().into();
        let (out, adapter) = match plain(a).zip(plain(up)) {
            Some((a, up)) => {
                let low = B::shrink(x.clone(), a.clone(), groups.clone());
                let (between, after) = (Maybe::Some(low.clone()), Maybe::Some(up.clone()));
                let out = B::affine(x.clone(), frozen, between, after, groups.clone(), bias, residual);
                (out, Some(([x, low, a, up], groups)))
            }
            None => (B::affine(x, frozen, Maybe::None, Maybe::None, groups, bias, residual), None),
        };
        match Linear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(LinearState { weight, adapter, has_residual }, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let weight = weight.into_primitive();
        tracked::<B, C, _>(
            x,
            |x| (B::rms_norm(x.clone(), weight.clone(), epsilon), (x, weight, epsilon)),
            |(x, weight, epsilon), grad| B::rms_norm_backward(x, weight, grad, epsilon),
        )
    }

    fn rms_norm_backward(_: FloatTensor<Self>, _: FloatTensor<Self>, _: FloatTensor<Self>, _: f32) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }

    fn layer_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let (weight, bias) = (weight.into_primitive(), bias.into_primitive());
        tracked::<B, C, _>(
            x,
            |x| (<B as Fused>::layer_norm(x.clone(), weight.clone(), bias, epsilon), (x, weight, epsilon)),
            |(x, weight, epsilon), grad| B::layer_norm_backward(x, weight, grad, epsilon),
        )
    }

    fn layer_norm_backward(_: FloatTensor<Self>, _: FloatTensor<Self>, _: FloatTensor<Self>, _: f32) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }

    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        turned: usize,
        head_dim: usize,
        inverse: bool,
    ) -> FloatTensor<Self> {
        let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
        tracked::<B, C, _>(
            x,
            |x| (B::rotary(x, cos.clone(), sin.clone(), turned, head_dim, inverse), (cos, sin, turned, head_dim, inverse)),
            |(cos, sin, turned, head_dim, inverse), grad| B::rotary(grad, cos, sin, turned, head_dim, !inverse),
        )
    }

    fn gated(both: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        tracked::<B, C, _>(
            both,
            |both| (B::gated(both.clone(), activation), (both, activation)),
            |(both, activation), grad| B::gated_backward(both, grad, activation),
        )
    }

    fn gated_backward(_: FloatTensor<Self>, _: FloatTensor<Self>, _: Activation) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }

    fn activate(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        tracked::<B, C, _>(
            x,
            |x| (B::activate(x.clone(), activation), (x, activation)),
            |(x, activation), grad| B::activate_backward(x, grad, activation),
        )
    }

    fn activate_backward(_: FloatTensor<Self>, _: FloatTensor<Self>, _: Activation) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }

    fn attention(qkv: FloatTensor<Self>, spans: IntTensor<Self>, heads: Heads, scale: f32) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let mut log_sums = None;
        let out = tracked::<B, C, _>(
            qkv,
            |qkv| {
                let (out, sums) = <B as Fused>::attention(qkv.clone(), spans.clone(), heads, scale);
                log_sums = Some(sums.clone());
                (out.clone(), (qkv, spans, out, sums, heads, scale))
            },
            |(qkv, spans, out, sums, heads, scale), grad| B::attention_backward(qkv, spans, out, sums, grad, heads, scale),
        );
        (out, Self::from_inner(log_sums.expect("the forward ran")))
    }

    fn attention_backward(
        _: FloatTensor<Self>,
        _: IntTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Heads,
        _: f32,
    ) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }

    fn cached_attention(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: CachePlan,
        _: Heads,
        _: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("a cache holds what no gradient reaches: generate on tensors outside autodiff")
    }

    fn cross_entropy(_: FloatTensor<Self>, _: IntTensor<Self>) -> (FloatTensor<Self>, IntTensor<Self>, FloatTensor<Self>) {
        unreachable!("{FIRST_ORDER}")
    }

    fn projected_loss(
        x: FloatTensor<Self>,
        table: FloatTensor<Self>,
        targets: IntTensor<Self>,
        _: bool,
    ) -> (FloatTensor<Self>, IntTensor<Self>, FloatTensor<Self>) {
        let table = table.into_primitive();
        let mut others = None;
        let losses = tracked::<B, C, _>(
            x,
            |x| {
                // The gradient is taken while the logits stand.
                let (losses, best, d_x) = B::projected_loss(x, table, targets, true);
                others = Some((best, d_x.clone()));
                (losses, d_x)
            },
            |d_x, grad| {
                let rows = grad.shape()[0];
                B::float_mul(d_x, B::float_reshape(grad, [rows, 1].into()))
            },
        );
        let (best, d_x) = others.expect("the forward ran");
        (losses, best, Self::from_inner(d_x))
    }
}

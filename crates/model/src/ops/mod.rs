//! The fused operations of a training step: one trait, routed by burn's dispatch to the backend a tensor lives on.

use crate::spec::Activation;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};

#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod cube;
mod flex;

/// How attention's columns split into heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key/value heads; each serves `query / kv` query heads.
    pub kv: usize,
    /// Features per head.
    pub dim: usize,
}

#[backend_extension(Flex, Cube: cfg(any(feature = "wgpu", feature = "cuda")))]
#[allow(dead_code)]
pub(crate) trait Fused: Backend {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;
    fn rms_norm_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, grad: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;
    fn layer_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;
    fn layer_norm_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, grad: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;
    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        turned: usize,
        head_dim: usize,
        inverse: bool,
    ) -> FloatTensor<Self>;
    fn gated(both: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;
    fn gated_backward(both: FloatTensor<Self>, grad: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;
    fn activate(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;
    fn activate_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;
    fn attention(qkv: FloatTensor<Self>, spans: IntTensor<Self>, heads: Heads, scale: f32) -> (FloatTensor<Self>, FloatTensor<Self>);
    fn attention_backward(
        qkv: FloatTensor<Self>,
        spans: IntTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        heads: Heads,
        scale: f32,
    ) -> FloatTensor<Self>;
    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> (FloatTensor<Self>, IntTensor<Self>, FloatTensor<Self>);
}

//! The fused operations as CubeCL kernels: one source for wgpu and CUDA.
//!
//! Tensors may be f32, or bf16 and f16 where the device has them; sums are always f32. No plane operation and no infinity is
//! used, and no more than WebGPU's 16 KiB of shared memory is needed, so that every WebGPU device runs this.

#![allow(clippy::too_many_arguments, reason = "a kernel's arguments are its bindings; a struct would hide, not save them")]

use super::{Fused, Groups, Heads, Maybe};
use crate::spec::Activation;
use attention_backward::Saved;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn_cubecl::CubeBackend;

#[allow(unsafe_code, reason = "unchecked launches; each call proves its bounds")]
mod attention;
#[allow(unsafe_code, reason = "unchecked launches; each call proves its bounds")]
mod attention_backward;
mod cross_entropy;
mod elementwise;
mod linear;
mod matrix;
mod norms;
mod reduce;
#[cfg(test)]
mod tests;
mod tiles;

impl Fused for CubeBackend {
    fn affine(
        x: FloatTensor<Self>,
        weight: Maybe<Self>,
        low: Maybe<Self>,
        up: Maybe<Self>,
        groups: Groups,
        bias: Maybe<Self>,
        residual: Maybe<Self>,
    ) -> FloatTensor<Self> {
        let [weight, low, up, bias, residual] = [weight, low, up, bias, residual].map(linear::present);
        linear::affine(x, weight, low.zip(up), &groups, bias, residual)
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        norms::norm(x, weight, None, epsilon)
    }

    fn rms_norm_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, grad: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        norms::norm_backward(x, weight, grad, epsilon, false)
    }

    fn layer_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        norms::norm(x, weight, Some(bias), epsilon)
    }

    fn layer_norm_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, grad: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        norms::norm_backward(x, weight, grad, epsilon, true)
    }

    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        turned: usize,
        head_dim: usize,
        inverse: bool,
    ) -> FloatTensor<Self> {
        elementwise::rotary(x, cos, sin, turned, head_dim, inverse)
    }

    fn gated(both: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        elementwise::activate(both, activation, true)
    }

    fn gated_backward(both: FloatTensor<Self>, grad: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        elementwise::activate_backward(both, grad, activation, true)
    }

    fn activate(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        elementwise::activate(x, activation, false)
    }

    fn activate_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        elementwise::activate_backward(x, grad, activation, false)
    }

    fn attention(qkv: FloatTensor<Self>, spans: IntTensor<Self>, heads: Heads, scale: f32) -> (FloatTensor<Self>, FloatTensor<Self>) {
        attention::attention(qkv, spans, heads, scale)
    }

    fn attention_backward(
        qkv: FloatTensor<Self>,
        spans: IntTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        heads: Heads,
        scale: f32,
    ) -> FloatTensor<Self> {
        attention_backward::attention_backward(Saved { qkv, spans, out, lse, grad }, heads, scale)
    }

    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> (FloatTensor<Self>, IntTensor<Self>, FloatTensor<Self>) {
        cross_entropy::cross_entropy(logits, targets)
    }
}

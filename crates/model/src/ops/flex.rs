//! Stub of the CPU's side: the lead's file replaces it.

#![allow(unused_variables)]

use super::{Fused, Heads};
use crate::spec::Activation;
use burn::backend::Flex;
use burn::backend::tensor::{FloatTensor, IntTensor};

impl Fused for Flex {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        unimplemented!()
    }
    fn rms_norm_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, grad: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        unimplemented!()
    }
    fn layer_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        unimplemented!()
    }
    fn layer_norm_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, grad: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        unimplemented!()
    }
    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        turned: usize,
        head_dim: usize,
        inverse: bool,
    ) -> FloatTensor<Self> {
        unimplemented!()
    }
    fn gated(both: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        unimplemented!()
    }
    fn gated_backward(both: FloatTensor<Self>, grad: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        unimplemented!()
    }
    fn activate(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        unimplemented!()
    }
    fn activate_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        unimplemented!()
    }
    fn attention(qkv: FloatTensor<Self>, spans: IntTensor<Self>, heads: Heads, scale: f32) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unimplemented!()
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
        unimplemented!()
    }
    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> (FloatTensor<Self>, IntTensor<Self>, FloatTensor<Self>) {
        unimplemented!()
    }
}

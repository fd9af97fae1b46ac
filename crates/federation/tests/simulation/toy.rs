//! A model small enough to compute by hand: four layers of six numbers, cut anywhere.
//!
//! Each step moves every number by an amount that depends on all that came before it, so that a step lost,
//! doubled or taken in another round shows in the final adapter.

use std::ops::Range;

use cutlayer_wire::{AdapterState, BaseHash, HostTensor};

use crate::random::noise;

/// Layers of the model.
pub const LAYERS: u16 = 4;
/// Width of the activations.
pub const HIDDEN: u32 = 3;
/// The model's fingerprint.
pub const BASE: BaseHash = BaseHash([7; 32]);
/// Shape of each layer's one tensor.
pub const SHAPE: [usize; 2] = [2, 3];
/// Values of a whole adapter.
pub const VALUES: u64 = LAYERS as u64 * 6;

/// Which batch: the place of a client's sampler, which goes on from round to round.
#[derive(Clone, Copy, Debug)]
pub struct At {
    pub seed: u64,
    pub client: u32,
    pub draw: u64,
}

/// What a side keeps beside its adapter from one round to the next, as an optimizer does.
pub type Moment = f32;

impl At {
    /// A batch of the held-out records, for which no sampler moves.
    pub fn held_out(seed: u64, client: u32, index: u32) -> Self {
        Self { seed, client, draw: 1 << 40 | u64::from(index) }
    }
}

/// The name of a layer's tensor.
pub fn key(layer: u16) -> String {
    format!("layers.{layer}.lora_A.weight")
}

/// The names of some layers' tensors.
pub fn keys(layers: Range<u16>) -> Vec<String> {
    layers.map(key).collect()
}

/// The adapter that every run starts from.
pub fn start() -> AdapterState {
    let tensor = |layer| (0..6).map(|place| noise(&[1, u64::from(layer), place])).collect();
    (0..LAYERS).map(|layer| (key(layer), HostTensor { shape: SHAPE.to_vec(), values: tensor(layer) })).collect()
}

/// Some layers of an adapter.
pub fn part(state: &AdapterState, layers: Range<u16>) -> AdapterState {
    keys(layers).into_iter().filter_map(|key| Some((key.clone(), state.get(&key)?.clone()))).collect()
}

/// Sequence lengths of a step's batch.
pub fn lengths(at: At) -> Vec<u32> {
    let word = |place: u64| ((noise(&[at.seed, 2, at.client.into(), at.draw, place]) + 1.0) * 1.5) as u32;
    (0..=u64::from(word(9).min(2))).map(|place| 1 + word(place).min(2)).collect()
}

/// What the client sends up.
pub fn activations(own: &AdapterState, at: At) -> Vec<f32> {
    let tokens: u32 = lengths(at).iter().sum();
    let level = 0.01 * own.values().flat_map(|tensor| &tensor.values).sum::<f32>();
    let place = |place| level + noise(&[at.seed, 3, at.client.into(), at.draw, u64::from(place)]);
    (0..tokens * HIDDEN).map(place).collect()
}

/// What the server sends back for one micro-batch: from its layers as the step before left them.
pub fn gradient(own: &AdapterState, activations: &[f32]) -> Vec<f32> {
    let level = 0.01 * own.values().flat_map(|tensor| &tensor.values).sum::<f32>();
    activations.iter().map(|value| 0.5 * value + level).collect()
}

/// Either side's optimizer: once a step, from what all its micro-batches left, in their order.
pub fn optimize(own: &mut AdapterState, moment: &mut Moment, pulls: &[Vec<f32>]) {
    for towards in pulls {
        *moment = 0.5 * *moment + 0.1 * towards.iter().sum::<f32>() / towards.len() as f32;
        for tensor in own.values_mut() {
            for (value, target) in tensor.values.iter_mut().zip(towards.iter().cycle()) {
                *value = 0.9 * *value + 0.1 * target + 0.01 * *moment;
            }
        }
    }
}

/// The mean of some tensors, in f64 and in the order given; nothing where none is given.
pub fn mean(weighed: &[(f64, &HostTensor)]) -> Option<HostTensor> {
    let weight_sum: f64 = weighed.iter().map(|(weight, _)| weight).sum();
    let (_, first) = weighed.first()?;
    let value = |place: usize| {
        let sum: f64 = weighed.iter().map(|(weight, tensor)| weight * f64::from(tensor.values[place])).sum();
        (sum / weight_sum) as f32
    };
    Some(HostTensor { shape: first.shape.clone(), values: (0..first.values.len()).map(value).collect() })
}

/// An adapter's bits, which unlike its values can always be compared.
pub fn bits(state: &AdapterState) -> Vec<(String, Vec<u32>)> {
    state.iter().map(|(key, tensor)| (key.clone(), tensor.values.iter().map(|value| value.to_bits()).collect())).collect()
}

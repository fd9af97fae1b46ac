//! Training every weight of a small model from scratch: how the repo makes the model it ships.
//!
//! The same blocks, loss and optimizer as everywhere; the weights take the place of an adapter.

use crate::arch::{self, ConfigError};
use crate::block::Surroundings;
use crate::bound::Bounds;
use crate::frozen::{Frozen, LoadError, expected};
use crate::head::Part;
use crate::lora::{Adapter, AdapterError, normal, random_for};
use crate::ops::Kernels;
use crate::optimizer::{self, Gradients};
use crate::rows::Rows;
use crate::spec::ModelSpec;
use burn::tensor::{DType, Device};
use cutlayer_wire::{AdapterState, EvalSums, HostTensor, OptimizerSpec};
use std::collections::BTreeMap;

/// Standard deviation of the starting weights, as GPT-2's and Llama's.
const INITIAL_DEVIATION: f32 = 0.02;

/// A model whose every weight is trained.
pub struct Pretrainer {
    spec: ModelSpec,
    device: Device,
    weights: Adapter,
}

/// Why pretraining cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PretrainError {
    /// The config.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The weights.
    #[error(transparent)]
    Weights(#[from] AdapterError),
}

impl Pretrainer {
    /// Fresh weights for the model of `config` (a parsed `config.json`), from `seed`.
    pub fn new(config: &serde_json::Value, seed: u64, device: &Device) -> Result<Self, PretrainError> {
        let spec = arch::spec(config)?;
        let shapes = expected(&spec, spec.prefix, &format!("{}{}", spec.prefix, spec.embedding.tokens));
        let state = shapes.iter().map(|(name, shape)| (name.clone(), fresh(name, shape, seed))).collect();
        let weights = Adapter::plain(&shapes, &state, device)?;
        Ok(Self { spec, device: device.clone(), weights })
    }

    /// The model's description.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Loss sums of one batch without training.
    pub fn evaluate(&self, ids: &[u32], rows: &Rows, labels: &[i32]) -> Result<EvalSums, PretrainError> {
        Ok(self.run(ids, rows, labels, false)?.0)
    }

    /// One step: forward, backward, update. Labels are one per token, the token after it.
    pub fn step(
        &mut self,
        ids: &[u32],
        rows: &Rows,
        labels: &[i32],
        optimizer: &OptimizerSpec,
        learning_rate: f64,
    ) -> Result<EvalSums, PretrainError> {
        let (sums, gradients) = self.run(ids, rows, labels, true)?;
        optimizer::apply(optimizer, learning_rate, &mut self.weights, gradients);
        Ok(sums)
    }

    /// Every weight, by its name in the checkpoint.
    pub fn weights(&self) -> AdapterState {
        self.weights.state()
    }

    fn run(&self, ids: &[u32], rows: &Rows, labels: &[i32], train: bool) -> Result<(EvalSums, Gradients), PretrainError> {
        let bound = self.weights.bind(train, 0, DType::F32);
        let bounds = Bounds::one(bound.clone(), rows.tokens());
        let model = Frozen::on(&self.spec, &bound.leaves, &self.device)?;
        let around = Surroundings::new(&self.spec.block, rows, Kernels::Composed, DType::F32, &self.device);
        let mut hidden = model.embed(ids, &rows.positions());
        for index in 0..self.spec.blocks {
            hidden = model.block(index).forward(&self.spec.block, hidden, &around, &bounds);
        }
        let loss = model.head().loss(Kernels::Composed, hidden, &[Part { rows, labels: labels.into() }], &bounds);
        let mut gradients: Gradients = BTreeMap::new();
        if let (true, Some(objective)) = (train, loss.objective) {
            let mut taken = objective.backward();
            for (name, leaf) in &bound.leaves {
                gradients.extend(leaf.grad_remove(&mut taken).map(|gradient| (name.clone(), gradient)));
            }
        }
        Ok((loss.sums[0], gradients))
    }
}

/// Matrices normal, norms one, biases zero.
fn fresh(name: &str, shape: &[usize], seed: u64) -> HostTensor {
    let count = shape.iter().product();
    let values = if shape.len() == 2 {
        let mut random = random_for(seed, name);
        (0..count).map(|_| INITIAL_DEVIATION * normal(&mut random)).collect()
    } else {
        vec![if name.ends_with(".bias") { 0.0 } else { 1.0 }; count]
    };
    HostTensor { shape: shape.to_vec(), values }
}

//! What an update must be before it may touch the global adapter. It must never mend one.

use std::collections::BTreeMap;

use cutlayer_wire::{AdapterFrame, AdapterState, BaseHash, HostTensor, RoundId};

/// The global adapter's shape, the model it belongs to, and the most one update may weigh.
#[derive(Clone, Debug, PartialEq)]
pub struct Contract {
    /// Fingerprint of the frozen base model.
    pub base: BaseHash,
    /// Shape of every tensor, by its full PEFT key.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// The largest believable weight: with [`Contract::weight_max_of`] the plan's bound on a round's tokens.
    pub weight_max: f64,
}

/// Why an update does not count. The client is told these words; the round goes on without it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateRefused {
    /// Another round's update.
    #[error("the update is of round {found}, this is round {expected}: train from the newest global adapter")]
    Round {
        /// Its round.
        found: RoundId,
        /// The round being trained.
        expected: RoundId,
    },
    /// An update of another model.
    #[error("the update belongs to base model {found:016x}, this run trains {expected:016x}: use the run's model folder")]
    Base {
        /// Its model's fingerprint, first eight bytes.
        found: u64,
        /// The run's.
        expected: u64,
    },
    /// A weight that is not a believable count.
    #[error("the update weighs {found}: a weight is above 0 and at most {weight_max}, the plan's tokens in a round")]
    Weight {
        /// The weight claimed.
        found: f64,
        /// The bound.
        weight_max: f64,
    },
    /// A tensor that this source does not train.
    #[error("the update holds {key:?}, which this client does not train: send its own layers only")]
    UnknownKey {
        /// The tensor.
        key: String,
    },
    /// A tensor left out.
    #[error("the update lacks {key:?} and {others} others: send every tensor that this client trains")]
    MissingKey {
        /// The first one missing.
        key: String,
        /// How many more are.
        others: usize,
    },
    /// A tensor of another shape: usually another rank.
    #[error("{key:?} has shape {found:?}, the plan's rank and the model make it {expected:?}")]
    Shape {
        /// The tensor.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape agreed.
        expected: Vec<usize>,
    },
    /// A NaN or infinite value.
    #[error("{key:?} holds a NaN or infinite value: lower the learning rate or clip the gradient")]
    NotFinite {
        /// The tensor.
        key: String,
    },
}

impl Contract {
    /// The contract that the starting adapter implies.
    pub fn of(base: BaseHash, global: &AdapterState, weight_max: f64) -> Self {
        let shape = |(key, tensor): (&String, &HostTensor)| (key.clone(), tensor.shape.clone());
        Self { base, shapes: global.iter().map(shape).collect(), weight_max }
    }

    /// The most tokens that a client can have trained on in a round of this plan; no count of examples or
    /// clients is larger.
    pub fn weight_max_of(plan: &cutlayer_wire::Plan) -> f64 {
        f64::from(plan.batch.batch_tokens_max()) * f64::from(plan.local_steps)
    }

    /// The contract of a client that trains only `keys`.
    pub fn restricted_to(&self, keys: &[String]) -> Result<Self, UpdateRefused> {
        let entry = |key: &String| match self.shapes.get(key) {
            Some(shape) => Ok((key.clone(), shape.clone())),
            None => Err(UpdateRefused::UnknownKey { key: key.clone() }),
        };
        let shapes = keys.iter().map(entry).collect::<Result<_, _>>()?;
        Ok(Self { shapes, ..*self })
    }

    /// Checks everything about an update: round, base model, weight, then [`Contract::check_state`].
    pub fn check(&self, round: RoundId, frame: &AdapterFrame) -> Result<(), UpdateRefused> {
        if frame.round != round {
            return Err(UpdateRefused::Round { found: frame.round, expected: round });
        }
        let expected = self.base.prefix();
        if frame.base_prefix != expected {
            return Err(UpdateRefused::Base { found: frame.base_prefix, expected });
        }
        // Not `<= 0.0`: a NaN must fail too.
        if !(frame.weight > 0.0 && frame.weight <= self.weight_max) {
            let weight_max = self.weight_max;
            return Err(UpdateRefused::Weight { found: frame.weight, weight_max });
        }
        self.check_state(&frame.state)
    }

    /// Every tensor of the contract and no other, of its shape, finite.
    pub fn check_state(&self, state: &AdapterState) -> Result<(), UpdateRefused> {
        self.check_part(state)?;
        let mut missing = self.shapes.keys().filter(|key| !state.contains_key(*key));
        match missing.next() {
            None => Ok(()),
            Some(key) => Err(UpdateRefused::MissingKey { key: key.clone(), others: missing.count() }),
        }
    }

    /// Some tensors of the contract and no other, of their shapes, finite.
    pub fn check_part(&self, state: &AdapterState) -> Result<(), UpdateRefused> {
        for (key, tensor) in state {
            let Some(expected) = self.shapes.get(key) else {
                return Err(UpdateRefused::UnknownKey { key: key.clone() });
            };
            let values: usize = expected.iter().product();
            if tensor.shape != *expected || tensor.values.len() != values {
                let (key, found) = (key.clone(), tensor.shape.clone());
                return Err(UpdateRefused::Shape { key, found, expected: expected.clone() });
            }
            if !tensor.is_finite() {
                return Err(UpdateRefused::NotFinite { key: key.clone() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

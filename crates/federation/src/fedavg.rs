//! Federated averaging (McMahan et al., arXiv 1602.05629), layer by layer.

use cutlayer_wire::{AdapterState, HostTensor, RoundId};

use crate::aggregator::{AggregateError, Aggregator, check_updates};
use crate::update::Update;

/// Weighted mean of each factor over the updates that hold it; a key nobody trained keeps its global value.
///
/// mean(A)·mean(B) is not mean(A·B): this is what the literature calls FedAvg of LoRA (FedIT), not the
/// exact mean of the products.
#[derive(Clone, Copy, Debug)]
pub struct FedAvg;

impl Aggregator for FedAvg {
    fn name(&self) -> &'static str {
        "fedavg"
    }

    fn aggregate(&mut self, round: RoundId, global: &AdapterState, updates: &[Update]) -> Result<AdapterState, AggregateError> {
        check_updates(round, global, updates)?;
        let mut next = AdapterState::new();
        for (key, current) in global {
            let mean = weighted_mean(key, current, updates);
            if !mean.is_finite() {
                return Err(AggregateError::NotFinite { key: key.clone(), round });
            }
            next.insert(key.clone(), mean);
        }
        Ok(next)
    }
}

/// The mean of one tensor. In f64, so that one client, or equal clients, come back to the bit.
fn weighted_mean(key: &str, current: &HostTensor, updates: &[Update]) -> HostTensor {
    let mut weight_sum = 0.0_f64;
    let mut sums = Vec::new();
    for update in updates {
        let Some(tensor) = update.tensors.get(key) else { continue };
        weight_sum += update.weight;
        sums.resize(tensor.values.len(), 0.0_f64);
        for (sum, value) in sums.iter_mut().zip(&tensor.values) {
            *sum += update.weight * f64::from(*value);
        }
    }
    if weight_sum == 0.0 {
        return current.clone();
    }
    let values = sums.into_iter().map(|sum| (sum / weight_sum) as f32).collect();
    HostTensor { shape: current.shape.clone(), values }
}

#[cfg(test)]
mod tests;

//! The contract of every aggregation strategy, and the list of them. Each strategy has its own file.

use cutlayer_wire::{AdapterState, RoundId};

use crate::fedavg::FedAvg;
use crate::update::{Source, Update};

/// The names that [`by_name`] knows.
pub const AGGREGATORS: [&str; 1] = ["fedavg"];

/// Folds one round into the next global adapter. Pure: no clock, socket or GPU.
///
/// Updates hold any part of the adapter, each key at most once for a source and part; a key is settled by
/// whoever holds it, whatever the mix of cuts. The result has exactly the keys and shapes of `global`.
/// Updates come in an order that does not depend on arrival: a strategy that keeps to it repeats to the bit.
pub trait Aggregator: Send {
    /// The name in run files and reports.
    fn name(&self) -> &'static str;

    /// The next global adapter.
    fn aggregate(&mut self, round: RoundId, global: &AdapterState, updates: &[Update]) -> Result<AdapterState, AggregateError>;
}

/// Updates that cannot be folded: the round keeps its global adapter.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AggregateError {
    /// Nothing to fold.
    #[error("round {round} has no update: wait for one or skip the round")]
    NoUpdates {
        /// The round.
        round: RoundId,
    },
    /// An update of another round.
    #[error("{from} sent an update of round {found} to round {expected}: drop it")]
    Round {
        /// Whose it is.
        from: Source,
        /// Its round.
        found: RoundId,
        /// The round being folded.
        expected: RoundId,
    },
    /// A weight that no mean can use.
    #[error("{from} weighs {weight} in round {round}: a weight is finite and above 0")]
    Weight {
        /// Whose it is.
        from: Source,
        /// Its weight.
        weight: f64,
        /// The round.
        round: RoundId,
    },
    /// A tensor that the global adapter does not have.
    #[error("{from} holds {key:?}, which the global adapter does not")]
    UnknownKey {
        /// Whose it is.
        from: Source,
        /// The tensor.
        key: String,
    },
    /// A tensor of another shape: usually another rank.
    #[error("{from} holds {key:?} of shape {found:?}, the global adapter's is {expected:?}")]
    Shape {
        /// Whose it is.
        from: Source,
        /// The tensor.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// The global shape.
        expected: Vec<usize>,
    },
    /// A NaN or an infinite value, in an update or out of the strategy itself.
    #[error("{key:?} of round {round} is not finite: lower the learning rate or the weights")]
    NotFinite {
        /// The tensor.
        key: String,
        /// The round.
        round: RoundId,
    },
}

/// A name that no strategy has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no aggregator is called {found:?}: use one of {}", AGGREGATORS.join(", "))]
pub struct UnknownAggregator {
    /// The name given.
    pub found: String,
}

/// The strategy called `name`.
pub fn by_name(name: &str) -> Result<Box<dyn Aggregator>, UnknownAggregator> {
    match name {
        "fedavg" => Ok(Box::new(FedAvg)),
        _ => Err(UnknownAggregator { found: name.into() }),
    }
}

/// What every strategy may take for granted after this: the round, weights, keys, shapes and finite values.
pub(crate) fn check_updates(round: RoundId, global: &AdapterState, updates: &[Update]) -> Result<(), AggregateError> {
    if updates.is_empty() {
        return Err(AggregateError::NoUpdates { round });
    }
    for update in updates {
        let from = update.source;
        if update.round != round {
            return Err(AggregateError::Round { from, found: update.round, expected: round });
        }
        if !update.weight.is_finite() || update.weight <= 0.0 {
            return Err(AggregateError::Weight { from, weight: update.weight, round });
        }
        for (key, tensor) in &update.tensors {
            let key = || key.clone();
            let Some(known) = global.get(&key()) else {
                return Err(AggregateError::UnknownKey { from, key: key() });
            };
            if known.shape != tensor.shape || known.values.len() != tensor.values.len() {
                let (found, expected) = (tensor.shape.clone(), known.shape.clone());
                return Err(AggregateError::Shape { from, key: key(), found, expected });
            }
            if !tensor.is_finite() {
                return Err(AggregateError::NotFinite { key: key(), round });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: run files find every strategy, and a typing error lists them. Method: each name, and a wrong one.
    #[test]
    fn strategies_are_found_by_name() {
        for name in AGGREGATORS {
            assert_eq!(by_name(name).expect("a listed name").name(), name);
        }
        let error = by_name("fedprox").err().expect("an unknown name").to_string();
        assert!(error.contains("fedprox") && error.contains("fedavg"), "{error}");
    }
}

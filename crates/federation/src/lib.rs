//! Rounds: who trains when, which updates count, and what the next global adapter is.
//!
//! Pure mathematics and pure state machines over [`cutlayer_wire`]'s types. This crate must never read a
//! clock, open a socket or a file, or name a tensor library: time and updates come in as arguments,
//! actions go out as values, so every round replays from its events.

#![forbid(unsafe_code)]

mod aggregator;
mod contract;
mod coordinator;
mod fedavg;
mod sample;
mod update;

pub use aggregator::{AGGREGATORS, AggregateError, Aggregator, UnknownAggregator, by_name};
pub use contract::{Contract, UpdateRefused};
pub use coordinator::{Action, ConfigError, Coordinator, CoordinatorConfig, Event, Progress, RoundSummary, SKIPPED_ROUNDS_MAX, Wait};
pub use fedavg::FedAvg;
pub use update::{Source, Update};

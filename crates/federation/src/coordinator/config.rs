//! How a coordinator runs its rounds.

use cutlayer_wire::{Plan, Weighting};
use serde::{Deserialize, Serialize};

/// Everything a coordinator decides by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorConfig {
    /// Clients that must have joined before the run starts.
    pub min_clients: u32,
    /// Clients sampled each round; 0 takes everyone.
    pub clients_per_round: u32,
    /// Updates that are enough when the deadline passes; fewer, and the round is skipped.
    pub min_updates: u32,
    /// Rounds in the run; 0 only evaluates.
    pub rounds: u32,
    /// Rounds between evaluations; 0 evaluates only the starting adapter and the last.
    pub evaluate_every: u32,
    /// How long a round waits for updates, and an evaluation for scores.
    pub round_deadline_ms: u64,
    /// How long the run waits for enough clients, at its start and again when too many have left.
    pub join_deadline_ms: u64,
    /// Where sampling comes from.
    pub seed: u64,
    /// What an update weighs.
    pub weighting: Weighting,
}

/// A field that cannot be used, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("coordinator: {field} is {found}: {remedy}")]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// What it holds.
    pub found: String,
    /// What to do.
    pub remedy: &'static str,
}

impl CoordinatorConfig {
    /// Every client, every round, none of them dispensable, as `plan` has it.
    pub fn of_plan(plan: &Plan, clients: u32, round_deadline_ms: u64, join_deadline_ms: u64) -> Self {
        Self {
            min_clients: clients,
            clients_per_round: 0,
            min_updates: clients,
            rounds: plan.rounds,
            evaluate_every: plan.evaluate_every,
            round_deadline_ms,
            join_deadline_ms,
            seed: plan.seed,
            weighting: plan.weighting,
        }
    }

    /// Checks every field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let require = |holds, field, found: u64, remedy| {
            if holds {
                return Ok(());
            }
            Err(ConfigError { field, found: found.to_string(), remedy })
        };
        let most = if self.clients_per_round == 0 { self.min_clients } else { self.clients_per_round.min(self.min_clients) };
        require(self.min_clients >= 1, "min_clients", self.min_clients.into(), "a run needs at least 1 client")?;
        require(
            (1..=most).contains(&self.min_updates),
            "min_updates",
            self.min_updates.into(),
            "give at least 1 and at most the clients that a round surely has",
        )?;
        require(self.rounds < u32::MAX, "rounds", self.rounds.into(), "give fewer than 2^32 - 1 rounds")?;
        require(
            self.round_deadline_ms >= 1,
            "round_deadline_ms",
            self.round_deadline_ms,
            "give the slowest client's round, with room to spare",
        )?;
        require(self.join_deadline_ms >= 1, "join_deadline_ms", self.join_deadline_ms, "give clients time to start, such as 60000")
    }
}

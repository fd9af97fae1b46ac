//! The plan: everything about a run that both sides must hold identically, dictated at Welcome.
//!
//! The same types are read from a run file (TOML) and sent by bincode, so their serde forms keep to what
//! both can do: externally tagged enums, no skipped and no flattened fields.

use serde::{Deserialize, Serialize};

use crate::ids::STEPS_MAX;
use crate::plan_parts::{LoraSpec, OptimizerSpec, PlanError, first_repeated, require};

/// The most classes a classification head may have.
const LABELS_MAX: usize = 4096;

/// The longest name of a class, in bytes.
const LABEL_BYTES_MAX: usize = 128;

/// The most sequences in one batch.
const SEQUENCES_MAX: u32 = 65_536;

/// The longest sequence, in tokens.
const TOKENS_MAX: u32 = 1 << 20;

/// TOML's integers are signed: a larger seed could not be written down beside the results.
const SEED_MAX: u64 = i64::MAX as u64;

/// What is learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Task {
    /// The next token.
    CausalLm,
    /// One class for a whole sequence.
    Classify {
        /// The classes; a label is an index into this list.
        labels: Vec<String>,
    },
}

/// How sequences share a batch. They are computed one after another, without padding, either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// A fixed number of sequences, which padding would make as long as the longest.
    Padded,
    /// As many sequences as fit in `sequences * tokens_max` tokens.
    Packed,
}

/// What one step trains on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchSpec {
    /// Sequences in a batch.
    pub sequences: u32,
    /// The longest sequence, in tokens; longer examples are split or cut by the reader.
    pub tokens_max: u32,
    /// How many make a batch.
    pub layout: Layout,
    /// Put sequences of similar length together, which pads less and shuffles less.
    pub group_by_length: bool,
}

/// Whose adapters the server side trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerAdapters {
    /// One set for each client, averaged when the round ends (SplitFed V1).
    PerClient,
    /// One set for all, stepped as requests arrive (SplitFed V2).
    Shared,
}

/// How much of a step waits for what: several micro-batches in flight hide the time of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Micro-batches that a step is cut into, each with some of its sequences. Their gradients are added up before either optimizer
    /// steps, so that their number changes what is in flight and not what is computed.
    pub micro_batches: u16,
    /// Steps that a client may run ahead of the gradient that it waits for. 0 is exact: every step starts from what the one before left.
    /// With more, a gradient is applied that many steps late on the client (bounded staleness, as in PipeDream, Harlap et al. 2018).
    pub staleness: u16,
}

impl Pipeline {
    /// One micro-batch at a time, nothing stale.
    pub const SEQUENTIAL: Self = Self { micro_batches: 1, staleness: 0 };
    /// The most micro-batches of one client that may be in flight: what both sides keep of each is memory.
    pub const IN_FLIGHT_MAX: u32 = 32;

    /// The most micro-batches of one client that are under way.
    pub fn in_flight(&self) -> usize {
        usize::from(self.micro_batches) * (usize::from(self.staleness) + 1)
    }

    /// Checks both fields.
    pub fn validate(&self) -> Result<(), PlanError> {
        let Self { micro_batches, staleness } = *self;
        require(micro_batches >= 1, "pipeline.micro_batches", micro_batches, "give at least 1 micro-batch a step")?;
        require(
            u32::from(micro_batches) * (u32::from(staleness) + 1) <= Self::IN_FLIGHT_MAX,
            "pipeline.micro_batches",
            format_args!("{micro_batches} with {staleness} steps ahead"),
            "keep micro-batches x (staleness + 1) at or below 32",
        )
    }
}

/// In what order the server serves steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepOrder {
    /// As they come.
    Arrival,
    /// Step `s` of every client, in client order, before any step `s + 1`: repeatable to the bit.
    Lockstep,
}

/// What a client's update weighs in the mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// The tokens it was scored on in the round.
    Tokens,
    /// The examples it trained on in the round.
    Samples,
    /// The same for everyone.
    Uniform,
}

/// Everything the server dictates to a client that joins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What is learned.
    pub task: Task,
    /// The adapter trained.
    pub adapter: LoraSpec,
    /// The optimizer, the same on both sides.
    pub optimizer: OptimizerSpec,
    /// What one step trains on.
    pub batch: BatchSpec,
    /// Rounds in the run; 0 only evaluates the starting adapter.
    pub rounds: u32,
    /// Steps each client takes in a round.
    pub local_steps: u32,
    /// Where all randomness of the run comes from.
    pub seed: u64,
    /// Whose adapters the server trains.
    pub server_adapters: ServerAdapters,
    /// In what order it serves.
    pub step_order: StepOrder,
    /// What is in flight.
    pub pipeline: Pipeline,
    /// What an update weighs.
    pub weighting: Weighting,
    /// Rounds between evaluations; 0 evaluates only before the first round and after the last.
    pub evaluate_every: u32,
}

impl Task {
    /// Checks every field.
    pub fn validate(&self) -> Result<(), PlanError> {
        let Self::Classify { labels } = self else {
            return Ok(());
        };
        require(
            (2..=LABELS_MAX).contains(&labels.len()),
            "task.classify.labels",
            format_args!("a list of {}", labels.len()),
            "name 2 to 4096 classes",
        )?;
        for label in labels {
            require(
                (1..=LABEL_BYTES_MAX).contains(&label.len()),
                "task.classify.labels",
                format_args!("holding {label:?}"),
                "give each class a name of 1 to 128 bytes",
            )?;
        }
        match first_repeated(labels) {
            None => Ok(()),
            Some(twice) => require(false, "task.classify.labels", format_args!("holding {twice:?} twice"), "name each class once"),
        }
    }
}

impl BatchSpec {
    /// The most tokens in one batch.
    pub fn batch_tokens_max(&self) -> u32 {
        self.sequences.saturating_mul(self.tokens_max)
    }

    /// Checks every field.
    pub fn validate(&self) -> Result<(), PlanError> {
        require((1..=SEQUENCES_MAX).contains(&self.sequences), "batch.sequences", self.sequences, "give 1 to 65536 sequences a batch")?;
        require(
            (2..=TOKENS_MAX).contains(&self.tokens_max),
            "batch.tokens_max",
            self.tokens_max,
            "give the longest sequence as 2 to 1048576 tokens",
        )?;
        require(
            self.sequences.checked_mul(self.tokens_max).is_some(),
            "batch.sequences",
            format_args!("{} of {} tokens", self.sequences, self.tokens_max),
            "lower one of the two until their product is below 2^32",
        )?;
        require(
            self.layout == Layout::Padded || !self.group_by_length,
            "batch.group_by_length",
            "true for packed batches",
            "packed sequences pad nothing; give false, or a padded layout",
        )
    }
}

impl Plan {
    /// Steps of one client over the whole run, were it sampled every round.
    pub fn total_steps(&self) -> u32 {
        self.rounds.saturating_mul(self.local_steps)
    }

    /// Checks every field of every part; the error names the field and says what to write.
    pub fn validate(&self) -> Result<(), PlanError> {
        self.task.validate()?;
        self.adapter.validate()?;
        self.optimizer.validate()?;
        self.batch.validate()?;
        self.pipeline.validate()?;
        require(self.local_steps <= STEPS_MAX, "local_steps", self.local_steps, "take at most 2^23 steps a round, in more rounds")?;
        require(self.local_steps >= 1, "local_steps", self.local_steps, "give at least one step a round, or rounds = 0 to evaluate only")?;
        require(
            self.rounds < u32::MAX && self.rounds.checked_mul(self.local_steps).is_some(),
            "rounds",
            format_args!("{} of {} steps", self.rounds, self.local_steps),
            "lower one of the two until their product is below 2^32",
        )?;
        require(
            self.rounds == 0 || self.optimizer.warmup_steps < self.total_steps(),
            "optimizer.warmup_steps",
            format_args!("{} in a run of {} steps", self.optimizer.warmup_steps, self.total_steps()),
            "shorten the warm-up or lengthen the run, or the rate never arrives",
        )?;
        require(self.seed <= SEED_MAX, "seed", self.seed, "give a seed from 0 to 2^63 - 1")
    }
}

#[cfg(test)]
mod tests;

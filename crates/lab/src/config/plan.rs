//! From the run file's sections to the plan that the server dictates.

use super::{ConfigError, OptimizerName, RunConfig, defaults};
use cutlayer_wire::{BatchSpec, LoraSpec, OptimizerKind, OptimizerSpec, Pipeline, Plan, Task};

impl RunConfig {
    /// The plan for a task whose labels are known; not yet validated.
    pub(crate) fn plan_for(&self, task: Task) -> Result<Plan, ConfigError> {
        Ok(Plan {
            task,
            adapter: self.lora(),
            optimizer: self.optimizer_spec()?,
            batch: self.batch(),
            rounds: self.train.rounds,
            local_steps: self.train.local_steps,
            seed: self.seed,
            server_adapters: self.split.server_adapters,
            step_order: self.split.step_order,
            weighting: self.server.weighting,
            evaluate_every: self.train.evaluate_every,
            pipeline: Pipeline { micro_batches: self.train.micro_batches, staleness: self.train.pipeline.staleness() },
        })
    }

    /// What one step trains on.
    pub fn batch(&self) -> BatchSpec {
        let section = &self.train;
        let (sequences, tokens_max, layout) = (section.sequences, section.tokens_max, section.layout);
        BatchSpec { sequences, tokens_max, layout, group_by_length: section.group_by_length }
    }

    fn lora(&self) -> LoraSpec {
        let section = self.adapter.clone();
        LoraSpec { rank: section.rank, alpha: section.alpha, rslora: section.rslora, dropout: section.dropout, targets: section.targets }
    }

    fn optimizer_spec(&self) -> Result<OptimizerSpec, ConfigError> {
        let section = &self.optimizer;
        let kind = match section.kind {
            OptimizerName::AdamW => OptimizerKind::AdamW {
                beta1: section.beta1.unwrap_or(defaults::BETA1),
                beta2: section.beta2.unwrap_or(defaults::BETA2),
                eps: section.eps.unwrap_or(defaults::EPS),
                weight_decay: section.weight_decay.unwrap_or(defaults::WEIGHT_DECAY),
            },
            OptimizerName::Sgd => {
                self.refuse_adamw_keys()?;
                OptimizerKind::Sgd
            }
        };
        Ok(OptimizerSpec {
            kind,
            learning_rate: section.learning_rate,
            schedule: section.schedule,
            warmup_steps: section.warmup_steps,
            clip_norm: section.clip_norm,
            reset_each_round: section.reset_each_round,
        })
    }

    /// A key that would be read and then ignored is a wrong result waiting to be published.
    fn refuse_adamw_keys(&self) -> Result<(), ConfigError> {
        let section = &self.optimizer;
        let keys = [
            ("optimizer.beta1", section.beta1),
            ("optimizer.beta2", section.beta2),
            ("optimizer.eps", section.eps),
            ("optimizer.weight_decay", section.weight_decay),
        ];
        match keys.into_iter().find_map(|(key, value)| Some((key, value?))) {
            None => Ok(()),
            Some((key, value)) => {
                let remedy = "sgd has no such thing; drop the key, or write kind = \"adamw\"".into();
                Err(ConfigError::Invalid { key, found: value.to_string(), remedy })
            }
        }
    }

    /// Writes out what AdamW's absent keys stand for, so that a saved run keeps its meaning when defaults change.
    pub(super) fn fill_adamw_keys(&mut self) {
        let section = &mut self.optimizer;
        if section.kind == OptimizerName::AdamW {
            section.beta1.get_or_insert(defaults::BETA1);
            section.beta2.get_or_insert(defaults::BETA2);
            section.eps.get_or_insert(defaults::EPS);
            section.weight_decay.get_or_insert(defaults::WEIGHT_DECAY);
        }
    }
}

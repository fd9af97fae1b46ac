//! The parts of a plan that mathematics depends on: the adapter and the optimizer.
//!
//! Every number is checked where it enters, because a NaN learning rate found here costs a sentence and
//! found after an hour of training costs the hour.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The highest rank accepted: above any hidden size in use, so only a typing error exceeds it.
const RANK_MAX: u32 = 65_536;

/// The most projections a plan may name.
const TARGETS_MAX: usize = 64;

/// The longest name of a projection, in bytes.
const TARGET_BYTES_MAX: usize = 128;

/// Which projections carry a LoRA adapter, and of what kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraSpec {
    /// Inner dimension `r` of the factors.
    pub rank: u32,
    /// Numerator of the scale.
    pub alpha: f32,
    /// Divide by the square root of the rank (rank-stabilised LoRA, arXiv 2312.03732), not by the rank.
    pub rslora: bool,
    /// Probability of dropping an input of the adapter while training.
    pub dropout: f32,
    /// Hugging Face names of the projections, such as `q_proj`.
    pub targets: Vec<String>,
}

/// The rule that turns a gradient into an update.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay, bias-corrected, `eps` outside the root (as PyTorch has it).
    #[serde(rename = "adamw")]
    AdamW {
        /// Decay of the mean of gradients.
        beta1: f32,
        /// Decay of the mean of squared gradients.
        beta2: f32,
        /// Added to the root of the second moment.
        eps: f32,
        /// Fraction of a weight removed per unit of learning rate and step.
        weight_decay: f32,
    },
    /// Plain gradient descent, no momentum: what the equivalence tests are written in.
    Sgd,
}

/// How the learning rate moves after warm-up, over the steps of the whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// In a straight line down to zero at the last step.
    Linear,
    /// Along half a cosine down to zero at the last step.
    Cosine,
}

/// The optimizer both sides run over their own adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSpec {
    /// The update rule.
    pub kind: OptimizerKind,
    /// Peak learning rate.
    pub learning_rate: f32,
    /// Its course after warm-up.
    pub schedule: Schedule,
    /// Steps over which the rate rises from zero.
    pub warmup_steps: u32,
    /// Largest norm of a side's gradient; nothing means no clipping.
    pub clip_norm: Option<f32>,
    /// Forget moments and step count when a round starts.
    pub reset_each_round: bool,
}

/// A field of a plan that cannot be used, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("plan: {field} is {found}: {remedy}")]
pub struct PlanError {
    /// The field, as a path from the plan's root.
    pub field: &'static str,
    /// What it holds.
    pub found: String,
    /// What to do.
    pub remedy: &'static str,
}

/// Refuses a field unless `holds`.
pub(crate) fn require(holds: bool, field: &'static str, found: impl fmt::Display, remedy: &'static str) -> Result<(), PlanError> {
    if holds {
        return Ok(());
    }
    let found = found.to_string();
    Err(PlanError { field, found, remedy })
}

/// The first entry that occurs twice.
pub(crate) fn first_repeated(names: &[String]) -> Option<&String> {
    let mut seen = std::collections::BTreeSet::new();
    names.iter().find(|name| !seen.insert(name.as_str()))
}

impl LoraSpec {
    /// What the adapter's output is multiplied by.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// Checks every field.
    pub fn validate(&self) -> Result<(), PlanError> {
        require((1..=RANK_MAX).contains(&self.rank), "adapter.rank", self.rank, "give a rank from 1 to 65536; 8 or 16 are usual")?;
        require(
            self.alpha.is_finite() && self.alpha > 0.0,
            "adapter.alpha",
            self.alpha,
            "give a finite number above 0; once or twice the rank is usual",
        )?;
        require((0.0..1.0).contains(&self.dropout), "adapter.dropout", self.dropout, "give a probability from 0 up to, not including, 1")?;
        require(
            (1..=TARGETS_MAX).contains(&self.targets.len()),
            "adapter.targets",
            format_args!("a list of {}", self.targets.len()),
            "name 1 to 64 projections, such as \"q_proj\" and \"v_proj\"",
        )?;
        for target in &self.targets {
            require(
                (1..=TARGET_BYTES_MAX).contains(&target.len()),
                "adapter.targets",
                format_args!("holding {target:?}"),
                "give each projection a name of 1 to 128 bytes",
            )?;
        }
        if let Some(twice) = first_repeated(&self.targets) {
            require(false, "adapter.targets", format_args!("holding {twice:?} twice"), "name each projection once")?;
        }
        Ok(())
    }
}

impl OptimizerSpec {
    /// The learning rate of step `step` (the first is 0) of a run of `total` steps.
    ///
    /// The schedules are those of `transformers` (`get_linear_schedule_with_warmup` and its siblings),
    /// so that a central run there is comparable; hence the first of several warm-up steps has rate 0.
    pub fn learning_rate_at(&self, step: u32, total: u32) -> f32 {
        let (step, warmup) = (f64::from(step), f64::from(self.warmup_steps));
        let factor = if step < warmup {
            step / warmup
        } else {
            let rest = (f64::from(total) - warmup).max(1.0);
            let progress = ((step - warmup) / rest).min(1.0);
            match self.schedule {
                Schedule::Constant => 1.0,
                Schedule::Linear => 1.0 - progress,
                Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            }
        };
        (f64::from(self.learning_rate) * factor) as f32
    }

    /// Checks every field.
    pub fn validate(&self) -> Result<(), PlanError> {
        require(
            self.learning_rate.is_finite() && self.learning_rate > 0.0,
            "optimizer.learning_rate",
            self.learning_rate,
            "give a finite number above 0, such as 2e-4",
        )?;
        if let Some(norm) = self.clip_norm {
            require(
                norm.is_finite() && norm > 0.0,
                "optimizer.clip_norm",
                norm,
                "give a finite norm above 0, such as 1.0, or leave it out for no clipping",
            )?;
        }
        match self.kind {
            OptimizerKind::Sgd => Ok(()),
            OptimizerKind::AdamW { beta1, beta2, eps, weight_decay } => {
                let betas = "give a number from 0 up to, not including, 1; 0.9 and 0.999 are usual";
                require((0.0..1.0).contains(&beta1), "optimizer.kind.adamw.beta1", beta1, betas)?;
                require((0.0..1.0).contains(&beta2), "optimizer.kind.adamw.beta2", beta2, betas)?;
                require(eps.is_finite() && eps > 0.0, "optimizer.kind.adamw.eps", eps, "give a finite number above 0, such as 1e-8")?;
                require(
                    weight_decay.is_finite() && weight_decay >= 0.0,
                    "optimizer.kind.adamw.weight_decay",
                    weight_decay,
                    "give a finite number of 0 or more",
                )
            }
        }
    }
}

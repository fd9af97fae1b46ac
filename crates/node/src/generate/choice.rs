//! Which of some options a model finds likeliest after a prompt: multiple choice without generating.
//!
//! Likelihoods are read where the head is. An option's is its log-probability over its bytes, so that length does not decide
//! (`acc_norm` of the lm-evaluation-harness).

use super::device::Generator;
use super::path::{About, Path, failed};
use super::sequence::{Prompt, tokens_of};
use crate::error::NodeError;
use cutlayer_generation::offload::{FeatureGauge, Features};
use cutlayer_wire::{FailureCode, SamplingSpec};
use futures_util::{StreamExt, TryStreamExt};
use std::sync::{Arc, Mutex};

/// Most options of a question.
pub const OPTIONS_MAX: usize = 64;
/// Tokens of the prompt whose likelihood is read too: the last ones.
const PROMPT_SCORED: usize = 31;

/// What a model chose.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Place of the likeliest option.
    pub best: usize,
    /// Log-probability of each option, over its bytes.
    pub scores: Vec<f64>,
    /// How sure the model was, with the options as what it chose from.
    pub features: Features,
}

impl Generator {
    /// The likeliest of `options` after `prompt`. The head must be here: in a split, keep it on the device (a tail of 0 blocks or more).
    pub async fn choose(&self, prompt: &str, options: &[String], adapter: Option<&str>) -> Result<Choice, NodeError> {
        if !(2..=OPTIONS_MAX).contains(&options.len()) || options.iter().any(String::is_empty) {
            let reason = format!("{} options; give 2 to {OPTIONS_MAX}, none of them empty", options.len());
            return Err(failed(FailureCode::Malformed, reason));
        }
        let shared = self.shared();
        if shared.line.is_some() && shared.tail.is_none() {
            return Err(NodeError::Task("options are compared where the head is: keep it on the device (--tail 0)".into()));
        }
        let asked = tokens_of(shared, &Prompt::Text(prompt.to_owned()))?;
        // The first alone: the others find the prompt in the caches, and share their passes and their round trip.
        let (before, first) = self.score(prompt, &asked, &options[0], adapter).await?;
        let others = futures_util::stream::iter(&options[1..]).map(|option| self.score(prompt, &asked, option, adapter));
        let others: Vec<(Vec<f64>, f64)> = others.buffered(OPTIONS_MAX).try_collect().await?;
        let scores: Vec<f64> = [first].into_iter().chain(others.into_iter().map(|(_, score)| score)).collect();
        let (best, _) = scores.iter().enumerate().max_by(|(_, one), (_, other)| one.total_cmp(other)).expect("options were counted");
        Ok(Choice { best, features: features(asked.len(), &before, &scores, best), scores })
    }

    /// Log-probabilities of the prompt's last tokens, and that of an option, over its bytes.
    async fn score(&self, prompt: &str, asked: &[u32], option: &str, adapter: Option<&str>) -> Result<(Vec<f64>, f64), NodeError> {
        let ids = tokens_of(self.shared(), &Prompt::Text(format!("{prompt}{option}")))?;
        // Where a token spans both, it is the option's.
        let common = asked.iter().zip(&ids).take_while(|(one, other)| one == other).count();
        let from = common.min(ids.len().saturating_sub(1));
        if from == 0 {
            return Err(failed(FailureCode::Malformed, "the prompt has no tokens; write at least one word".into()));
        }
        let first = from.saturating_sub(PROMPT_SCORED).max(1);
        let mut before = self.logprobs(ids, first, adapter).await?;
        let own = before.split_off(from - first);
        Ok((before, own.iter().sum::<f64>() / option.len() as f64))
    }

    /// Log-probabilities of `ids[from..]`, each after all before it.
    async fn logprobs(&self, ids: Vec<u32>, from: usize, adapter: Option<&str>) -> Result<Vec<f64>, NodeError> {
        let shared = self.shared();
        let positions = shared.spec.positions_max;
        if ids.len() > positions {
            let reason = format!("prompt and option have {} tokens, the model {positions} positions; shorten them", ids.len());
            return Err(failed(FailureCode::TooLong, reason));
        }
        let found = Arc::new(Mutex::new(vec![0.0; ids.len() - from]));
        let (targets, seen) = (ids.clone(), found.clone());
        let watch = Arc::new(move |row: u32, logits: &[f32], _: Option<u32>| {
            let next = row as usize + 1;
            if let (Some(id), Some(place)) = (targets.get(next), next.checked_sub(from)) {
                seen.lock().expect("nobody panics with it")[place] = logprob(logits, *id);
            }
        });
        let about = About {
            adapter: adapter.map(str::to_owned),
            sampling: SamplingSpec::GREEDY,
            tokens_max: ids.len() as u32,
            prompt_tokens: ids.len(),
            watch: Some(watch),
        };
        Path::new(shared, about).step(&ids, from - 1).await?;
        let logprobs = found.lock().expect("nobody panics with it").clone();
        Ok(logprobs)
    }
}

fn logprob(logits: &[f32], id: u32) -> f64 {
    let mut gauge = FeatureGauge::new(1);
    gauge.prompt(logits, id);
    gauge.features().prompt_logprob_mean
}

/// The options are the tokens of an answer of one token.
fn features(prompt_tokens: usize, prompt_logprobs: &[f64], scores: &[f64], best: usize) -> Features {
    let mut gauge = FeatureGauge::new(prompt_tokens as u32);
    gauge.answer(&scores.iter().map(|score| *score as f32).collect::<Vec<_>>(), best as u32);
    let prompt_logprob_mean = prompt_logprobs.iter().sum::<f64>() / prompt_logprobs.len().max(1) as f64;
    Features { prompt_logprob_mean, ..gauge.features() }
}

//! Which token is next: logits and a [`SamplingSpec`] in, a token out.
//!
//! A draw depends on the seed, the position, the logits and the tokens before it, and on nothing else: no generator is carried from
//! token to token. So whoever draws the same position again, after a lost connection or to verify a draft, draws the same token.
//!
//! The order is that of transformers' logits processors: bias, repetition penalty, presence and frequency penalty, temperature, top-k,
//! top-p, min-p. Where logits tie, the lower id is the likelier. Logits that are not a number are never drawn; where none is a
//! number, token 0 is.

use crate::history::History;
use cutlayer_wire::{Drawn, SamplingSpec, TOP_LOGPROBS_MAX};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Most biased tokens of a request.
pub const BIASES_MAX: usize = 1024;
/// The least log-probability that is reported, as vLLM does: JSON has no infinity.
pub const LOGPROB_MIN: f32 = -9999.0;

/// Tokens whose weight is below e to this, beside the likeliest one's: a million of them together are less than one step of the random
/// number, 2^-53.
const LOG_WEIGHT_MIN: f32 = -60.0;
/// How many of the likeliest are sorted first when a nucleus is looked for; eight times as many each time that it was too few.
const NUCLEUS_FIRST: usize = 64;

/// Why a request cannot be sampled.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A number that means nothing there.
    #[error("{name} is {value}; it must be {allowed}")]
    Range {
        /// The field.
        name: &'static str,
        /// What it is.
        value: f32,
        /// What it may be.
        allowed: &'static str,
    },
    /// A bias for a token that the model does not have.
    #[error("logit_bias names token {id}, and the model has tokens 0 to {last}")]
    BiasToken {
        /// The token.
        id: u32,
        /// The model's last.
        last: u32,
    },
    /// Too many biases.
    #[error("logit_bias names {count} tokens; name at most {BIASES_MAX}")]
    Biases {
        /// How many.
        count: usize,
    },
    /// Too many likeliest tokens asked for.
    #[error("{count} of the likeliest tokens were asked for; ask for at most {TOP_LOGPROBS_MAX}")]
    Logprobs {
        /// How many.
        count: u8,
    },
}

/// Whether `spec` can be drawn with from a vocabulary of `vocab` tokens; ranges are OpenAI's, and transformers' where those say nothing.
pub fn check(spec: &SamplingSpec, vocab: u32) -> Result<(), SamplingError> {
    let range = |name, value: f32, ok: bool, allowed| if ok { Ok(()) } else { Err(SamplingError::Range { name, value, allowed }) };
    let within = |value: f32, least: f32, most: f32| (least..=most).contains(&value);
    range("temperature", spec.temperature, within(spec.temperature, 0.0, 100.0), "from 0 to 100")?;
    range("top_p", spec.top_p, spec.top_p > 0.0 && spec.top_p <= 1.0, "above 0 and at most 1")?;
    range("min_p", spec.min_p, within(spec.min_p, 0.0, 1.0), "from 0 to 1")?;
    let penalty = spec.repetition_penalty;
    range("repetition_penalty", penalty, penalty > 0.0 && penalty.is_finite(), "above 0 and finite")?;
    range("presence_penalty", spec.presence_penalty, within(spec.presence_penalty, -2.0, 2.0), "from -2 to 2")?;
    range("frequency_penalty", spec.frequency_penalty, within(spec.frequency_penalty, -2.0, 2.0), "from -2 to 2")?;
    if spec.logit_bias.len() > BIASES_MAX {
        return Err(SamplingError::Biases { count: spec.logit_bias.len() });
    }
    for (id, bias) in &spec.logit_bias {
        if *id >= vocab {
            return Err(SamplingError::BiasToken { id: *id, last: vocab.saturating_sub(1) });
        }
        range("logit_bias", *bias, within(*bias, -100.0, 100.0), "from -100 to 100")?;
    }
    match spec.logprobs {
        Some(count) if count > TOP_LOGPROBS_MAX => Err(SamplingError::Logprobs { count }),
        _ => Ok(()),
    }
}

/// Draws the token at `position` from the model's `logits` after the tokens of `history`. The logits are changed by biases and penalties;
/// log-probabilities are of the model's own, before either and before the temperature, as OpenAI and vLLM give them.
pub fn draw(spec: &SamplingSpec, logits: &mut [f32], position: u32, history: &History) -> Drawn {
    assert!(!logits.is_empty(), "a model has tokens");
    let raw = spec.logprobs.map(|count| (count, logits.to_vec()));
    bias(spec, logits);
    penalise(spec, logits, history);
    let id = if spec.temperature == 0.0 { likeliest(logits) } else { sample(spec, logits, position) };
    let Some((count, raw)) = raw else { return Drawn { id, logprob: None, top: Vec::new() } };
    let total = log_total(&raw);
    let logprob = |id: u32| (f64::from(raw[id as usize]) - total).max(f64::from(LOGPROB_MIN)).min(0.0) as f32;
    Drawn { id, logprob: Some(logprob(id)), top: top(&raw, count.into()).into_iter().map(|id| (id, logprob(id))).collect() }
}

fn bias(spec: &SamplingSpec, logits: &mut [f32]) {
    for (id, bias) in &spec.logit_bias {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit += bias;
        }
    }
}

fn penalise(spec: &SamplingSpec, logits: &mut [f32], history: &History) {
    let SamplingSpec { repetition_penalty, presence_penalty, frequency_penalty, .. } = *spec;
    if repetition_penalty == 1.0 && presence_penalty == 0.0 && frequency_penalty == 0.0 {
        return;
    }
    for (id, seen) in history.seen() {
        let Some(logit) = logits.get_mut(id as usize) else { continue };
        *logit = if *logit < 0.0 { *logit * repetition_penalty } else { *logit / repetition_penalty };
        if seen.generated > 0 {
            *logit -= presence_penalty + frequency_penalty * seen.generated as f32;
        }
    }
}

/// The largest, skipping what is not a number; negative infinity where nothing is.
fn largest(logits: &[f32]) -> f32 {
    // Lanes of their own, and a comparison that is false for NaN, so that the compiler makes one instruction of sixteen comparisons.
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = if *logit > *lane { *logit } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |most, logit| if *logit > most { *logit } else { most })
}

/// The lowest id of the largest logit, as `torch.argmax` on a CPU.
fn likeliest(logits: &[f32]) -> u32 {
    let most = largest(logits);
    logits.iter().position(|logit| *logit == most).unwrap_or(0) as u32
}

/// A token that may be drawn.
#[derive(Clone, Copy)]
struct Candidate {
    /// Orders candidates, the likeliest first and of ties the lower id: one number, because sorting is most of what filters cost.
    key: u64,
    /// Its probability beside the likeliest one's.
    weight: f32,
}

impl Candidate {
    fn new(id: u32, logit: f32, weight: f32) -> Self {
        // The bits of positive numbers rise as they do, those of negative ones fall; -0 becomes 0 first.
        let bits = (logit + 0.0).to_bits();
        let falling = if bits >> 31 == 0 { !bits & 0x7fff_ffff } else { bits };
        Self { key: u64::from(falling) << 32 | u64::from(id), weight }
    }

    fn id(&self) -> u32 {
        self.key as u32
    }
}

/// Inverse of the cumulative distribution over the candidates in the order of their ids, in f64.
fn sample(spec: &SamplingSpec, logits: &[f32], position: u32) -> u32 {
    let kept = candidates(spec, logits);
    let total: f64 = kept.iter().map(|candidate| f64::from(candidate.weight)).sum();
    let target = uniform(spec.seed, position) * total;
    let mut sum = 0.0;
    let drawn = kept.iter().find(|candidate| {
        sum += f64::from(candidate.weight);
        sum > target
    });
    drawn.or(kept.last()).map_or(0, Candidate::id)
}

/// What top-k, top-p and min-p leave, in the order of ids.
fn candidates(spec: &SamplingSpec, logits: &[f32]) -> Vec<Candidate> {
    let most = largest(logits);
    // Infinity less infinity is not a number: the largest weigh 1 whatever they are.
    let log_weight = |logit: f32| if logit == most { 0.0 } else { (logit - most) / spec.temperature };
    let mut kept: Vec<Candidate> = Vec::new();
    for (id, logit) in logits.iter().enumerate() {
        let log_weight = log_weight(*logit);
        if log_weight >= LOG_WEIGHT_MIN {
            kept.push(Candidate::new(id as u32, *logit, log_weight));
        }
    }
    let top_k = spec.top_k as usize;
    if top_k > 0 && top_k < kept.len() {
        kept.select_nth_unstable_by_key(top_k - 1, |candidate| candidate.key);
        kept.truncate(top_k);
        kept.sort_unstable_by_key(Candidate::id);
    }
    kept.iter_mut().for_each(|candidate| candidate.weight = candidate.weight.exp());
    if spec.top_p < 1.0 {
        keep_nucleus(&mut kept, f64::from(spec.top_p));
    }
    if spec.min_p > 0.0 {
        kept.retain(|candidate| candidate.weight >= spec.min_p);
    }
    kept
}

/// Keeps the likeliest that together have `share` of the weight: the one that reaches it too, so that there is always one.
fn keep_nucleus(kept: &mut Vec<Candidate>, share: f64) {
    let total: f64 = kept.iter().map(|candidate| f64::from(candidate.weight)).sum();
    let wanted = share * total;
    // Those below the mean of what may be left out are left out: even all of them together are less than that.
    let least = (1.0 - share) * total / kept.len() as f64;
    kept.retain(|candidate| f64::from(candidate.weight) >= least);
    let (mut sum, mut sorted, mut end) = (0.0, 0, NUCLEUS_FIRST.min(kept.len()));
    while sorted < kept.len() {
        if end < kept.len() {
            kept[sorted..].select_nth_unstable_by_key(end - sorted, |candidate| candidate.key);
        }
        kept[sorted..end].sort_unstable_by_key(|candidate| candidate.key);
        for place in sorted..end {
            sum += f64::from(kept[place].weight);
            if sum >= wanted {
                kept.truncate(place + 1);
                break;
            }
        }
        sorted = end;
        end = (end * 8).min(kept.len());
    }
    kept.sort_unstable_by_key(Candidate::id);
}

/// The random number of a position, in [0, 1): a word of the stream that the seed keys, found without drawing those before it.
fn uniform(seed: u64, position: u32) -> f64 {
    let mut key = *b"........cutlayer draws of tokens";
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_word_pos(u128::from(position) * 2);
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// The logarithm of the sum of what the logits are logarithms of.
fn log_total(logits: &[f32]) -> f64 {
    let most = largest(logits);
    let weights =
        logits.iter().filter(|logit| !logit.is_nan()).map(|logit| if *logit == most { 1.0 } else { f64::from((logit - most).exp()) });
    f64::from(most) + weights.sum::<f64>().ln()
}

/// The ids of the `count` largest, largest first.
fn top(logits: &[f32], count: usize) -> Vec<u32> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (id, logit) in logits.iter().enumerate().filter(|(_, logit)| !logit.is_nan()) {
        // Ids rise, so that a tie with the last of a full list loses.
        if best.len() < count || best.last().is_some_and(|(_, last)| logit > last) {
            let place = best.partition_point(|(_, other)| other >= logit);
            best.insert(place, (id as u32, *logit));
            best.truncate(count);
        }
    }
    best.into_iter().map(|(id, _)| id).collect()
}

#[cfg(test)]
mod tests;

//! What a device sees of its own answer: how flat its distributions were, and what it made of the prompt.

use serde::{Deserialize, Serialize};

/// How many features there are.
pub const FEATURES: usize = 10;

/// How sure a model was of one answer. Logarithms are natural; an answer of no tokens has zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Features {
    /// Mean entropy of the distributions that the tokens were chosen from.
    pub entropy_mean: f64,
    /// That of the first token, which often is the answer.
    pub entropy_first: f64,
    /// The greatest.
    pub entropy_max: f64,
    /// Mean of how much more probable the likeliest token was than the second.
    pub margin_mean: f64,
    /// That of the first token.
    pub margin_first: f64,
    /// Mean log-probability of the chosen tokens.
    pub logprob_mean: f64,
    /// The least.
    pub logprob_min: f64,
    /// Tokens of the answer.
    pub answer_tokens: f64,
    /// Tokens of the prompt.
    pub prompt_tokens: f64,
    /// Mean log-probability of the prompt's tokens: a prompt unlike what the model learnt has little.
    pub prompt_logprob_mean: f64,
}

impl Features {
    /// Names of the features, in the order of a policy's weights.
    pub const NAMES: [&'static str; FEATURES] = [
        "entropy_mean",
        "entropy_first",
        "entropy_max",
        "margin_mean",
        "margin_first",
        "logprob_mean",
        "logprob_min",
        "answer_tokens",
        "prompt_tokens",
        "prompt_logprob_mean",
    ];

    /// As the regression takes them: lengths as logarithms, since ten tokens more are much after ten and nothing after a thousand.
    pub(crate) fn values(&self) -> [f64; FEATURES] {
        [
            self.entropy_mean,
            self.entropy_first,
            self.entropy_max,
            self.margin_mean,
            self.margin_first,
            self.logprob_mean,
            self.logprob_min,
            self.answer_tokens.ln_1p(),
            self.prompt_tokens.ln_1p(),
            self.prompt_logprob_mean,
        ]
    }
}

/// Gathers the features of one answer from the model's logits, token by token.
#[derive(Clone, Debug, Default)]
pub struct FeatureGauge {
    prompt_tokens: u32,
    prompt_scored: u32,
    prompt_logprobs: f64,
    answer_tokens: u32,
    /// Sums, until the features are asked for.
    features: Features,
}

impl FeatureGauge {
    /// Before the answer to a prompt of so many tokens.
    pub fn new(prompt_tokens: u32) -> Self {
        Self { prompt_tokens, ..Self::default() }
    }

    /// A token of the prompt, and the logits that the model had for its place. Those of some tokens will do.
    pub fn prompt(&mut self, logits: &[f32], id: u32) {
        self.prompt_scored += 1;
        self.prompt_logprobs += Sureness::of(logits, id).logprob;
    }

    /// A token of the answer, and the logits that it was drawn from, before penalties.
    pub fn answer(&mut self, logits: &[f32], id: u32) {
        let Sureness { entropy, margin, logprob } = Sureness::of(logits, id);
        let features = &mut self.features;
        if self.answer_tokens == 0 {
            (features.entropy_first, features.margin_first) = (entropy, margin);
        }
        self.answer_tokens += 1;
        features.entropy_mean += entropy;
        features.entropy_max = features.entropy_max.max(entropy);
        features.margin_mean += margin;
        features.logprob_mean += logprob;
        features.logprob_min = features.logprob_min.min(logprob);
    }

    /// Of what was seen so far.
    pub fn features(&self) -> Features {
        let answered = f64::from(self.answer_tokens.max(1));
        Features {
            entropy_mean: self.features.entropy_mean / answered,
            margin_mean: self.features.margin_mean / answered,
            logprob_mean: self.features.logprob_mean / answered,
            answer_tokens: self.answer_tokens.into(),
            prompt_tokens: self.prompt_tokens.into(),
            prompt_logprob_mean: self.prompt_logprobs / f64::from(self.prompt_scored.max(1)),
            ..self.features
        }
    }
}

/// Of one distribution and the token chosen from it.
struct Sureness {
    entropy: f64,
    margin: f64,
    logprob: f64,
}

impl Sureness {
    fn of(logits: &[f32], id: u32) -> Self {
        let (mut most, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for logit in logits {
            if *logit > most {
                (most, second) = (*logit, most);
            } else if *logit > second {
                second = *logit;
            }
        }
        let (mut total, mut weighted) = (0.0, 0.0);
        for logit in logits {
            let log_weight = logit - most;
            let weight = f64::from(log_weight.exp());
            // A weight of 0 has no logarithm, and nothing to add.
            if weight > 0.0 {
                total += weight;
                weighted += weight * f64::from(log_weight);
            }
        }
        let margin = (1.0 - f64::from((second - most).exp())) / total;
        Self { entropy: (total.ln() - weighted / total).max(0.0), margin, logprob: f64::from(logits[id as usize] - most) - total.ln() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(one: f64, other: f64) {
        assert!((one - other).abs() < 1e-6, "{one}, not {other}");
    }

    /// Goal: the features are what they are called. Method: distributions of known entropy, margin and probability.
    #[test]
    fn sureness_is_of_the_softmax() {
        let log = |probability: f32| probability.ln() + 7.0;
        let mut gauge = FeatureGauge::new(40);
        gauge.prompt(&[log(0.25), log(0.75)], 0);
        gauge.prompt(&[log(0.5), log(0.5)], 1);
        gauge.answer(&[log(0.5), log(0.25), log(0.25)], 0);
        gauge.answer(&[0.0, f32::NEG_INFINITY, f32::NEG_INFINITY], 0);
        gauge.answer(&[log(0.2); 5], 3);
        let features = gauge.features();
        let entropy = 1.5 * 2_f64.ln();
        close(features.entropy_first, entropy);
        close(features.entropy_mean, (entropy + 5_f64.ln()) / 3.0);
        close(features.entropy_max, 5_f64.ln());
        close(features.margin_first, 0.25);
        close(features.margin_mean, 1.25 / 3.0);
        close(features.logprob_mean, (0.5_f64.ln() + 0.2_f64.ln()) / 3.0);
        close(features.logprob_min, 0.2_f64.ln());
        close(features.prompt_logprob_mean, (0.25_f64.ln() + 0.5_f64.ln()) / 2.0);
        assert_eq!((features.answer_tokens, features.prompt_tokens), (3.0, 40.0));
    }

    #[test]
    fn no_tokens_are_zeros() {
        assert_eq!(FeatureGauge::new(0).features(), Features::default());
        assert_eq!(Features::default().values(), [0.0; FEATURES]);
    }
}

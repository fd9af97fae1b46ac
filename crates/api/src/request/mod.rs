//! Bodies to questions for the engine: parsing, defaults, ranges, and what is refused. It must never ask the engine.

mod body;
mod chat;
mod embedding;
mod field;
mod sampling;

pub(crate) use body::{Body, parse};
pub(crate) use chat::conversation;
pub(crate) use embedding::{EmbeddingBody, Encoding};
pub(crate) use field::Texts;

use cutlayer_wire::SamplingSpec;

use crate::engine::{Generate, ModelCard, Prompt};
use crate::error::ApiError;
use field::Logprobs;

/// Most answers of one request, over prompts and `n`.
pub(crate) const CHOICES_MAX: usize = 128;
/// Most tokens that are listed beside a chosen one.
const TOP_LOGPROBS_MAX: u64 = cutlayer_wire::TOP_LOGPROBS_MAX as u64;

/// A request for text, ready to be asked.
#[derive(Debug)]
pub(crate) struct Job {
    pub card: ModelCard,
    prompts: Vec<Prompt>,
    /// Choices for each prompt.
    pub n: usize,
    sampling: SamplingSpec,
    stop: Vec<String>,
    tokens_max: Option<u32>,
    echo: bool,
    pub stream: bool,
    /// Whether a stream ends with what was used.
    pub include_usage: bool,
}

impl Job {
    /// A completion: the prompts as they are.
    pub fn completion(card: ModelCard, mut body: Body) -> Result<Self, ApiError> {
        body.refuse_unsupported()?;
        body.refuse_unsupported_in_completions()?;
        let prompts = prompts("prompt", body.prompt.take().ok_or_else(|| ApiError::missing("prompt"))?)?;
        let logprobs = match body.logprobs {
            None | Some(Logprobs::Flag(false)) => None,
            Some(Logprobs::Count(count)) => Some(top("logprobs", count)?),
            Some(Logprobs::Flag(true)) => return Err(ApiError::invalid("logprobs", "'logprobs' is a number here, such as 1.")),
        };
        // OpenAI's default; a completion has no end of its own.
        let tokens_max = Some(body.max_tokens.or(body.max_completion_tokens).unwrap_or(16));
        Self::new(card, &body, prompts, logprobs, tokens_max)
    }

    /// A conversation, whose prompt is yet to be written down. `stops` are those of the model's form, beside the client's.
    pub fn chat(card: ModelCard, body: &Body, stops: &[&str]) -> Result<Self, ApiError> {
        let tokens_max = body.max_completion_tokens.or(body.max_tokens);
        if tokens_max == Some(0) {
            return Err(ApiError::invalid("max_tokens", "A conversation's answer needs at least 1 token."));
        }
        let mut job = Self::new(card, body, vec![Prompt::Tokens(vec![])], body.chat_logprobs()?, tokens_max)?;
        // `echo` is a field of completions.
        job.echo = false;
        job.stop.extend(stops.iter().map(|stop| (*stop).to_owned()));
        Ok(job)
    }

    /// With its prompt.
    pub fn with_prompt(self, prompt: Prompt) -> Self {
        Self { prompts: vec![prompt], ..self }
    }

    fn new(card: ModelCard, body: &Body, prompts: Vec<Prompt>, logprobs: Option<u8>, tokens_max: Option<u32>) -> Result<Self, ApiError> {
        let n = body.n.unwrap_or(1) as usize;
        if n == 0 || n.saturating_mul(prompts.len()) > CHOICES_MAX {
            return Err(ApiError::invalid("n", format!("A request has 1 to {CHOICES_MAX} choices, over all of its prompts.")));
        }
        let stream = body.stream.unwrap_or(false);
        if !stream && body.stream_options.is_some() {
            return Err(ApiError::invalid("stream_options", "'stream_options' is only allowed with 'stream'."));
        }
        let include_usage = body.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false);
        let (stop, sampling, echo) = (body.stops()?, body.sampling(logprobs)?, body.echo.unwrap_or(false));
        Ok(Self { card, prompts, n, sampling, stop, tokens_max, echo, stream, include_usage })
    }

    /// How many answers there will be: those to the first prompt, then those to the second.
    pub fn choices(&self) -> usize {
        self.prompts.len() * self.n
    }

    /// Whether tokens are listed with their log-probabilities.
    pub fn scored(&self) -> bool {
        self.sampling.logprobs.is_some()
    }

    /// What to ask for one of them. Made when its turn comes: a long prompt is not copied for all of them at once.
    pub fn generate(&self, choice: usize) -> Generate {
        Generate {
            model: self.card.id.clone(),
            prompt: self.prompts[choice / self.n].clone(),
            sampling: SamplingSpec { seed: sampling::seed_of(self.sampling.seed, choice % self.n), ..self.sampling.clone() },
            stop: self.stop.clone(),
            tokens_max: self.tokens_max,
            echo: self.echo,
        }
    }
}

/// The prompts of a field, each with something to start from.
pub(crate) fn prompts(param: &'static str, texts: Texts) -> Result<Vec<Prompt>, ApiError> {
    let text = |text: String| Prompt::Text { text, add_special: true };
    let prompts: Vec<Prompt> = match texts {
        Texts::One(one) => vec![text(one)],
        Texts::Many(many) => many.into_iter().map(text).collect(),
        Texts::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
        Texts::ManyTokens(many) => many.into_iter().map(Prompt::Tokens).collect(),
    };
    let empty = |prompt: &Prompt| matches!(prompt, Prompt::Tokens(tokens) if tokens.is_empty());
    if prompts.is_empty() || prompts.iter().any(empty) {
        return Err(ApiError::invalid(param, format!("'{param}' is empty: send text or tokens.")));
    }
    Ok(prompts)
}

/// How many tokens to list, where that many can be.
fn top(param: &'static str, count: u64) -> Result<u8, ApiError> {
    if count > TOP_LOGPROBS_MAX {
        return Err(ApiError::invalid(param, format!("'{param}' is at most {TOP_LOGPROBS_MAX}.")));
    }
    Ok(count as u8)
}

#[cfg(test)]
mod tests;

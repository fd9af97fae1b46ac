//! Who answers: a compact model on the device while it is sure of itself, else the large one, split with a host or at its edge.
//!
//! The compact model's answer is held back until it is whole, because its sureness is that of all its tokens; the large one's is streamed.
//! What was asked before may be remembered ([`Offloader::remembering`]); nothing is unless that was asked for.

use super::choice::Choice;
use super::device::Generator;
use super::embedder::Embedder;
use super::memory::{Memory, MemoryConfig, Question, Remembered};
use super::path::failed;
use super::sequence::{FinishReason, GenerateRequest, Generation, Piece, Pieces, Prompt, Usage, spawn, tokens_of};
use crate::error::NodeError;
use cutlayer_generation::offload::{FeatureGauge, Features, Policy};
use cutlayer_transport::LinkStats;
use cutlayer_wire::{FailureCode, SamplingSpec};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answerer {
    /// A model that is here whole.
    Device,
    /// One of which a host runs a part.
    Host,
    /// Nobody: the question had been answered before.
    Memory,
}

/// Who answered a request, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answered {
    /// Who.
    pub by: Answerer,
    /// The probability that the compact model's answer is right, where it was asked.
    pub confidence: Option<f64>,
    /// How much alike the remembered question is: a cosine.
    pub alike: Option<f32>,
    /// Bytes that the connection to the host carried meanwhile, both ways: with others under way, theirs too.
    pub bytes: u64,
}

/// Answers requests, each by whoever should. Clones share everything.
#[derive(Clone)]
pub struct Offloader {
    who: Who,
    memory: Option<Arc<Memory>>,
}

#[derive(Clone)]
enum Who {
    One(Generator),
    Surer { local: Generator, large: Generator, policy: Arc<Policy> },
}

impl Offloader {
    /// One model answers everything.
    pub fn one(generator: Generator) -> Self {
        Self { who: Who::One(generator), memory: None }
    }

    /// `local` answers while `policy` finds it sure enough, `large` the rest. The first must be here whole.
    pub fn auto(local: Generator, large: Generator, policy: Policy) -> Result<Self, NodeError> {
        if local.has_host() {
            return Err(NodeError::Task("the compact model must be on this device whole; give only the large one a host".into()));
        }
        Ok(Self { who: Who::Surer { local, large, policy: Arc::new(policy) }, memory: None })
    }

    /// Also remembers answers, by what `embedder` makes of their questions.
    pub fn remembering(self, embedder: Embedder, config: MemoryConfig) -> Result<Self, NodeError> {
        Ok(Self { memory: Some(Arc::new(Memory::new(embedder, config)?)), ..self })
    }

    /// The model that answers in the end: the only one, or the large one.
    pub fn generator(&self) -> &Generator {
        match &self.who {
            Who::One(generator) | Who::Surer { large: generator, .. } => generator,
        }
    }

    /// Answers; [`Usage::answered`] says who did. Dropping the stream cancels.
    ///
    /// Needs a tokio runtime.
    pub fn generate(&self, request: GenerateRequest) -> Generation {
        let this = self.clone();
        spawn(async move |pieces| this.answer(request, &pieces).await)
    }

    /// The likeliest of `options`, by whoever should say. For the large model's head see [`Generator::choose`].
    pub async fn choose(&self, prompt: &str, options: &[String], adapter: Option<&str>) -> Result<(Choice, Answered), NodeError> {
        let mut asked = Asked::new(self.generator()).await;
        if let Who::Surer { local, policy, .. } = &self.who {
            let choice = local.choose(prompt, options, own_adapter(local, adapter)).await?;
            asked.confidence = Some(policy.confidence(&choice.features));
            if policy.keeps_local(&choice.features) {
                return Ok((choice, asked.by(Answerer::Device).await));
            }
        }
        let choice = self.generator().choose(prompt, options, adapter).await?;
        let by = asked.last();
        Ok((choice, asked.by(by).await))
    }

    async fn answer(&self, request: GenerateRequest, pieces: &Pieces) -> Result<(), NodeError> {
        let asked = Asked::new(self.generator()).await;
        let Some(memory) = &self.memory else { return self.think(request, pieces, asked, None).await };
        let Some(question) = memory.question(&request).await else { return self.think(request, pieces, asked, None).await };
        let Some((alike, answer)) = memory.recall(&question) else {
            return self.think(request, pieces, asked, Some((memory, question))).await;
        };
        let usage = Usage { prompt_tokens: answer.prompt_tokens, completion_tokens: answer.tokens.len() as u32, ..Usage::default() };
        let answered = Answered { alike: Some(alike), ..asked.by(Answerer::Memory).await };
        asked.replay(answer, usage, answered, pieces).await;
        Ok(())
    }

    /// The answer of a model; it is remembered under `question`.
    async fn think(
        &self,
        request: GenerateRequest,
        pieces: &Pieces,
        mut asked: Asked<'_>,
        question: Option<(&Arc<Memory>, Question)>,
    ) -> Result<(), NodeError> {
        let keep = |answer: &Remembered| {
            if let Some((memory, question)) = question {
                memory.keep(question, answer.clone());
            }
        };
        if let Who::Surer { local, large, policy } = &self.who {
            let own = match own_answer(local, &own_request(local, large, &request)?).await {
                Ok(own) => Some(own),
                // Too long for the compact model, perhaps not for the large one.
                Err(NodeError::Generation { code: FailureCode::TooLong, .. }) => None,
                Err(error) => return Err(error),
            };
            asked.confidence = own.as_ref().map(|own| policy.confidence(&own.features));
            if let Some(own) = own.filter(|own| policy.keeps_local(&own.features)) {
                keep(&own.answer);
                let answered = asked.by(Answerer::Device).await;
                asked.replay(own.answer, own.usage, answered, pieces).await;
                return Ok(());
            }
        }
        let waited_ms = asked.since.elapsed().as_secs_f64() * 1e3;
        let (mut generation, mut tokens) = (self.generator().generate(request), vec![]);
        while let Some(piece) = generation.next().await {
            let piece = match piece? {
                Piece::Token(token) => {
                    tokens.push(Piece::Token(token.clone()));
                    Piece::Token(token)
                }
                Piece::End { text, reason, mut usage } => {
                    usage.first_token_ms += waited_ms;
                    usage.total_ms += waited_ms;
                    usage.answered = Some(asked.by(asked.last()).await);
                    let tokens = std::mem::take(&mut tokens);
                    keep(&Remembered { tokens, rest: text.clone(), reason, prompt_tokens: usage.prompt_tokens });
                    let _ = pieces.send(Ok(Piece::End { text, reason, usage })).await;
                    return Ok(());
                }
            };
            // Whoever reads may have gone: then this ends too.
            let _ = pieces.send(Ok(piece)).await;
        }
        Err(NodeError::Panicked { during: "generating".into() })
    }
}

/// A request under way.
struct Asked<'a> {
    last: &'a Generator,
    since: Instant,
    before: u64,
    confidence: Option<f64>,
}

impl<'a> Asked<'a> {
    async fn new(last: &'a Generator) -> Self {
        Self { last, since: Instant::now(), before: carried(last).await, confidence: None }
    }

    /// Who answers what the compact model does not.
    fn last(&self) -> Answerer {
        if self.last.has_host() { Answerer::Host } else { Answerer::Device }
    }

    async fn by(&self, by: Answerer) -> Answered {
        Answered { by, confidence: self.confidence, alike: None, bytes: carried(self.last).await.saturating_sub(self.before) }
    }

    /// Says an answer that is whole.
    async fn replay(&self, answer: Remembered, usage: Usage, answered: Answered, pieces: &Pieces) {
        let took_ms = self.since.elapsed().as_secs_f64() * 1e3;
        let usage = Usage { first_token_ms: took_ms, total_ms: took_ms, answered: Some(answered), ..usage };
        let end = Piece::End { text: answer.rest, reason: answer.reason, usage };
        for piece in answer.tokens.into_iter().chain([end]) {
            // Whoever reads may have gone.
            let _ = pieces.send(Ok(piece)).await;
        }
    }
}

async fn carried(generator: &Generator) -> u64 {
    let LinkStats { bytes_sent, bytes_received, .. } = generator.link_stats().await.unwrap_or_default();
    bytes_sent + bytes_received
}

/// An answer of the compact model, and what was seen of it.
pub(super) struct OwnAnswer {
    pub answer: Remembered,
    pub usage: Usage,
    pub features: Features,
}

/// Answers on this device, whole, with what a policy decides by.
async fn own_answer(local: &Generator, request: &GenerateRequest) -> Result<OwnAnswer, NodeError> {
    let ids = tokens_of(local.shared(), &request.prompt)?;
    let gauge = Arc::new(Mutex::new(FeatureGauge::new(ids.len() as u32)));
    let seen = gauge.clone();
    let watch = Arc::new(move |row: u32, logits: &[f32], drawn: Option<u32>| {
        let mut gauge = seen.lock().expect("nobody panics with it");
        match (drawn, ids.get(row as usize + 1)) {
            (Some(drawn), _) => gauge.answer(logits, drawn),
            (None, Some(next)) => gauge.prompt(logits, *next),
            (None, None) => {}
        }
    });
    let mut generation = local.generate_watched(request.clone(), watch);
    let mut tokens = vec![];
    while let Some(piece) = generation.next().await {
        match piece? {
            Piece::Token(token) => tokens.push(Piece::Token(token)),
            Piece::End { text, reason, usage } => {
                let features = gauge.lock().expect("nobody panics with it").features();
                let answer = Remembered { tokens, rest: text, reason, prompt_tokens: usage.prompt_tokens };
                return Ok(OwnAnswer { answer, usage, features });
            }
        }
    }
    Err(NodeError::Panicked { during: "generating".into() })
}

impl Generator {
    /// Answers whole, with what an offloading policy decides by: what a policy is fitted on. The model must be here whole.
    pub async fn answer_with_features(&self, request: &GenerateRequest) -> Result<(String, FinishReason, Usage, Features), NodeError> {
        if self.has_host() {
            return Err(NodeError::Task("a policy decides by the compact model's answers; that must be on this device whole".into()));
        }
        let OwnAnswer { answer, usage, features } = own_answer(self, request).await?;
        let words = answer.tokens.iter().map(|piece| if let Piece::Token(token) = piece { token.text.as_str() } else { "" });
        Ok((words.collect::<String>() + &answer.rest, answer.reason, usage, features))
    }
}

/// The large model's adapter, if the compact one has one of that name.
fn own_adapter<'a>(local: &Generator, adapter: Option<&'a str>) -> Option<&'a str> {
    adapter.filter(|name| local.adapters().iter().any(|own| own == name))
}

/// The request as the compact model takes it: what names tokens of the large one does not pass.
fn own_request(local: &Generator, large: &Generator, request: &GenerateRequest) -> Result<GenerateRequest, NodeError> {
    let same = local.spec().vocab == large.spec().vocab;
    if !same && matches!(request.prompt, Prompt::Tokens(_)) {
        let reason = "the two models have other tokens: give the prompt as text, or ask one of them with mode local or split";
        return Err(failed(FailureCode::Malformed, reason.into()));
    }
    let logit_bias = if same { request.sampling.logit_bias.clone() } else { vec![] };
    let adapter = own_adapter(local, request.adapter.as_deref()).map(str::to_owned);
    Ok(GenerateRequest { adapter, sampling: SamplingSpec { logit_bias, ..request.sampling.clone() }, ..request.clone() })
}

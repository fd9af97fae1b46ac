//! What answers `cutlayer api`: a generator, and an encoder for embeddings. It only translates between the endpoint's words and theirs.

use cutlayer_api::{
    BoxFuture, BoxStream, ChatTemplate, Embed, Embeddings, Engine, EngineError, FinishReason, Generate, ModelCard, Piece, Prompt, Scored,
    Token, Usage,
};
use cutlayer_data::Tokenizer;
use cutlayer_generation::{SamplingError, Words};
use cutlayer_node::{Embedder, GenerateRequest, Generator, NodeError};
use cutlayer_wire::FailureCode;
use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// When a request that met a full house may be worth sending again.
const RETRY_AFTER_S: u32 = 1;
/// Prompts that are tokenised at once. A crowd would otherwise have a thread each, which the runtime and the allocator then keep.
const TOKENISED_AT_ONCE_MAX: usize = 4;

/// One base model with its adapters, and perhaps an encoder.
pub(crate) struct ModelEngine {
    generator: Generator,
    embedder: Option<Embedder>,
    cards: Vec<ModelCard>,
    template: Arc<ChatTemplate>,
    tokenising: Arc<Semaphore>,
}

impl ModelEngine {
    /// Answers under these names: the base model's, its adapters', the encoder's.
    pub fn new(generator: Generator, embedder: Option<Embedder>, cards: Vec<ModelCard>, template: Arc<ChatTemplate>) -> Self {
        Self { generator, embedder, cards, template, tokenising: Arc::new(Semaphore::new(TOKENISED_AT_ONCE_MAX)) }
    }

    /// The adapter that answers under `model`; `None` is the base model's own name.
    fn adapter(&self, model: &str) -> Option<String> {
        self.generator.adapters().iter().find(|name| *name == model).cloned()
    }
}

impl Engine for ModelEngine {
    fn models(&self) -> Vec<ModelCard> {
        self.cards.clone()
    }

    fn generate(&self, request: Generate) -> BoxStream<'static, Result<Piece, EngineError>> {
        let (generator, adapter) = (self.generator.clone(), self.adapter(&request.model));
        stream::once(begin(generator, adapter, request, self.tokenising.clone())).try_flatten().boxed()
    }

    fn embed(&self, request: Embed) -> BoxFuture<'static, Result<Embeddings, EngineError>> {
        let (embedder, tokenising) = (self.embedder.clone(), self.tokenising.clone());
        async move {
            match embedder {
                Some(embedder) => embed(embedder, request, &tokenising).await,
                None => Err(EngineError::UnknownModel(request.model)),
            }
        }
        .boxed()
    }

    fn chat_template(&self, _model: &str) -> Option<Arc<ChatTemplate>> {
        Some(self.template.clone())
    }
}

/// The pieces of one answer. Dropping them gives the generation up.
async fn begin(
    generator: Generator,
    adapter: Option<String>,
    request: Generate,
    tokenising: Arc<Semaphore>,
) -> Result<impl Stream<Item = Result<Piece, EngineError>>, EngineError> {
    let context_tokens = generator.spec().positions_max as u32;
    check(&generator, &request)?;
    let ids = {
        let (generator, prompt) = (generator.clone(), request.prompt);
        off_the_network(&tokenising, move || tokens(generator.tokenizer(), generator.spec().vocab, prompt)).await?
    };
    let prompt_tokens = ids.len() as u64;
    let too_long = EngineError::TooLong { tokens: prompt_tokens + u64::from(request.tokens_max.unwrap_or(1)), context_tokens };
    if prompt_tokens >= u64::from(context_tokens) {
        return Err(too_long);
    }
    let echoed = if request.echo { echo(&generator, &ids)? } else { vec![] };
    let scored = request.sampling.logprobs.is_some();
    let asked = GenerateRequest {
        prompt: cutlayer_node::Prompt::Tokens(ids),
        adapter,
        sampling: request.sampling,
        stop: request.stop,
        tokens_max: request.tokens_max,
        ignore_end: false,
    };
    let (model, speller) = (request.model, generator.clone());
    let pieces = generator.generate(asked).map(move |piece| match piece {
        Ok(piece) => Ok(translate(&speller, piece, scored)),
        Err(error) => Err(failure(error, &model, &too_long)),
    });
    Ok(stream::iter(echoed.into_iter().map(Ok)).chain(pieces))
}

/// Refuses what the generator would, with the name of the field.
fn check(generator: &Generator, request: &Generate) -> Result<(), EngineError> {
    if request.echo && request.sampling.logprobs.is_some() {
        return refused("the tokens of a prompt have no log-probabilities here: ask without 'echo' or without 'logprobs'", "echo");
    }
    match cutlayer_generation::check(&request.sampling, generator.spec().vocab as u32) {
        Ok(()) => Ok(()),
        Err(SamplingError::Range { name, value, allowed }) => refused(format!("'{name}' is {value}: it must be {allowed}"), name),
        Err(error @ SamplingError::Logprobs { .. }) => refused(error.to_string(), "logprobs"),
        Err(error) => refused(error.to_string(), "logit_bias"),
    }
}

fn refused<T>(reason: impl Into<String>, param: &str) -> Result<T, EngineError> {
    Err(EngineError::Refused { reason: reason.into(), param: Some(param.into()) })
}

/// A long prompt takes a while, and the threads of the network have none.
async fn off_the_network<T: Send + 'static>(
    places: &Semaphore,
    job: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    let _place = places.acquire().await.expect("nobody closes it");
    tokio::task::spawn_blocking(job).await.map_err(|_| EngineError::Failed("the tokenizer panicked".into()))?
}

fn tokens(tokenizer: Option<&Tokenizer>, vocab: usize, prompt: Prompt) -> Result<Vec<u32>, EngineError> {
    let ids = match (prompt, tokenizer) {
        (Prompt::Tokens(ids), _) => ids,
        (Prompt::Text { text, add_special }, Some(tokenizer)) => {
            tokenizer.encode(&text, add_special).map_err(|error| EngineError::Failed(error.to_string()))?
        }
        (Prompt::Text { .. }, None) => return refused("the model has no tokenizer: send tokens", "prompt"),
    };
    match ids.iter().find(|id| **id as usize >= vocab) {
        Some(id) => refused(format!("the prompt has token {id}, and the model has tokens 0 to {}", vocab - 1), "prompt"),
        None if ids.is_empty() => refused("the prompt has no tokens: write at least one word", "prompt"),
        None => Ok(ids),
    }
}

async fn embed(embedder: Embedder, request: Embed, tokenising: &Semaphore) -> Result<Embeddings, EngineError> {
    let ids = {
        let (embedder, inputs) = (embedder.clone(), request.inputs);
        let one = move |input| tokens(embedder.tokenizer(), embedder.spec().vocab, input);
        off_the_network(tokenising, move || inputs.into_iter().map(one).collect::<Result<Vec<_>, _>>()).await?
    };
    let longest = ids.iter().map(Vec::len).max().unwrap_or(0) as u64;
    let prompt_tokens = ids.iter().map(|ids| ids.len() as u64).sum();
    let too_long = EngineError::TooLong { tokens: longest, context_tokens: embedder.spec().positions_max as u32 };
    let vectors = embedder.embed(ids).await.map_err(|error| failure(error, &request.model, &too_long))?;
    Ok(Embeddings { vectors, prompt_tokens })
}

/// The prompt's tokens as pieces, whose texts together are the prompt.
fn echo(generator: &Generator, ids: &[u32]) -> Result<Vec<Piece>, EngineError> {
    let Some(tokenizer) = generator.tokenizer() else { return refused("the model has no tokenizer: ask without 'echo'", "echo") };
    let decode = |ids: &[u32]| tokenizer.decode(ids).unwrap_or_default();
    let mut words = Words::default();
    let mut texts: Vec<String> = ids.iter().map(|id| words.push(*id, &decode)).collect();
    if let Some(last) = texts.last_mut() {
        last.push_str(&words.finish(&decode));
    }
    let piece = |(id, text): (&u32, String)| Piece::Prompt(Token { id: *id, text, ..Token::default() });
    Ok(ids.iter().zip(texts).map(piece).collect())
}

fn translate(generator: &Generator, piece: cutlayer_node::Piece, scored: bool) -> Piece {
    match piece {
        cutlayer_node::Piece::Token(token) => {
            let cutlayer_node::Token { id, text, logprob, top } = token;
            let own = scored.then(|| Scored { bytes: bytes_of(generator, id), logprob });
            let top = top.into_iter().map(|(id, logprob)| Scored { bytes: shown_bytes(generator, id), logprob: Some(logprob) });
            Piece::Token(Token { id, text, scored: own, top: top.collect() })
        }
        cutlayer_node::Piece::End { text, reason, usage } => {
            let reason = match reason {
                cutlayer_node::FinishReason::Stop => FinishReason::Stop,
                cutlayer_node::FinishReason::Length => FinishReason::Length,
            };
            let usage = Usage {
                prompt_tokens: usage.prompt_tokens.into(),
                completion_tokens: usage.completion_tokens.into(),
                cached_tokens: usage.cached_tokens.into(),
            };
            Piece::End { reason, usage, text }
        }
    }
}

fn bytes_of(generator: &Generator, id: u32) -> Vec<u8> {
    generator.tokenizer().and_then(|tokenizer| tokenizer.token_bytes(id)).unwrap_or_default()
}

/// What a list of likely tokens shows: special tokens by their names, for they have no text.
fn shown_bytes(generator: &Generator, id: u32) -> Vec<u8> {
    let bytes = bytes_of(generator, id);
    if !bytes.is_empty() {
        return bytes;
    }
    generator.tokenizer().and_then(|tokenizer| tokenizer.token_name(id)).unwrap_or_default().into_bytes()
}

/// A node's error in the endpoint's words.
fn failure(error: NodeError, model: &str, too_long: &EngineError) -> EngineError {
    match error {
        NodeError::Generation { code, reason } => match code {
            FailureCode::Adapter => EngineError::UnknownModel(model.into()),
            FailureCode::TooLong => too_long.clone(),
            FailureCode::Busy => EngineError::Busy { retry_after_s: RETRY_AFTER_S },
            FailureCode::Malformed => EngineError::Refused { reason, param: None },
            FailureCode::Internal => EngineError::Failed(reason),
        },
        error @ (NodeError::Gone { .. } | NodeError::Link(_) | NodeError::Refused { .. } | NodeError::Ended { .. }) => {
            EngineError::Gone(error.to_string())
        }
        error => EngineError::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: each way to fail reaches the client as what it is. Method: one error of each kind.
    #[test]
    fn failures_keep_their_meaning() {
        let too_long = EngineError::TooLong { tokens: 900, context_tokens: 512 };
        let of = |code| failure(NodeError::Generation { code, reason: "so".into() }, "tales", &too_long);
        assert_eq!(of(FailureCode::Adapter), EngineError::UnknownModel("tales".into()));
        assert_eq!(of(FailureCode::TooLong), too_long);
        assert_eq!(of(FailureCode::Busy), EngineError::Busy { retry_after_s: RETRY_AFTER_S });
        assert_eq!(of(FailureCode::Malformed), EngineError::Refused { reason: "so".into(), param: None });
        assert_eq!(of(FailureCode::Internal), EngineError::Failed("so".into()));
        let away = NodeError::Gone { addr: ([127, 0, 0, 1], 1).into(), waited_s: 3, reason: "silence".into() };
        assert!(matches!(failure(away, "tales", &too_long), EngineError::Gone(words) if words.contains("silence")));
    }
}

//! What this crate asks of whoever makes the tokens. It must never say how they are made.

use std::sync::Arc;

use cutlayer_wire::SamplingSpec;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::template::ChatTemplate;

/// Whatever turns a prompt into tokens.
///
/// The methods return at once; the work is in what they return. Dropping a stream or a future gives its work up: the engine then
/// frees what it held. One request may open several streams (`n`, several prompts), and polls them by turns.
pub trait Engine: Send + Sync + 'static {
    /// Every name that a request may give as its `model`: adapters and the base model. Asked at every request, so cheap.
    fn models(&self) -> Vec<ModelCard>;
    /// Tokens after a prompt: with `echo` a [`Piece::Prompt`] for each token of the prompt, then [`Piece::Token`]s, then one
    /// [`Piece::End`], after which nothing is read. An error also ends it.
    fn generate(&self, request: Generate) -> BoxStream<'static, Result<Piece, EngineError>>;
    /// A vector for each input, in order.
    fn embed(&self, request: Embed) -> BoxFuture<'static, Result<Embeddings, EngineError>>;
    /// How the model wants a conversation written down. `None` refuses conversations with it; see [`ChatTemplate::plain`].
    fn chat_template(&self, model: &str) -> Option<Arc<ChatTemplate>>;
}

/// What clients are told of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCard {
    /// The name that requests give.
    pub id: String,
    /// When it was made, in seconds since 1970.
    pub created_unix_s: u64,
    /// What it is good for.
    pub kind: ModelKind,
    /// Longest sequence, prompt and answer together.
    pub context_tokens: u32,
    /// Changes with whatever changes the tokens of a seed: weights, adapter, cut, encoding. Told as `system_fingerprint`.
    pub fingerprint: String,
}

/// What a model is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// Completions and conversations.
    Generates,
    /// Embeddings.
    Embeds {
        /// Length of its vectors.
        dimensions: u32,
    },
}

/// What stands before the first token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text, for the engine's tokenizer.
    Text {
        /// The text. Names of special tokens in it become those tokens.
        text: String,
        /// Whether the tokenizer puts its own special tokens around it. Not where a chat template has written them.
        add_special: bool,
    },
    /// Tokens as they are; the engine checks them against its vocabulary.
    Tokens(Vec<u32>),
}

/// One sequence to go on with.
#[derive(Clone, Debug, PartialEq)]
pub struct Generate {
    /// One of [`Engine::models`], of kind [`ModelKind::Generates`].
    pub model: String,
    /// Where it starts.
    pub prompt: Prompt,
    /// How tokens are drawn. Its numbers are within the ranges of the API; tokens of `logit_bias` are not checked.
    pub sampling: SamplingSpec,
    /// Ends the answer before any of these; none is empty.
    pub stop: Vec<String>,
    /// Most tokens of the answer; `None` for what the context has room for. 0 only scores the prompt.
    pub tokens_max: Option<u32>,
    /// Whether the prompt's tokens come first, scored where `sampling.logprobs` asks. Refuse it with [`EngineError::Refused`] where
    /// prompts cannot be scored.
    pub echo: bool,
}

/// The next piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// A token of the prompt, with `echo`.
    Prompt(Token),
    /// A generated token. The token that ends a text is not one.
    Token(Token),
    /// The answer is complete.
    End {
        /// Why.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
        /// Text that was held back and turned out not to begin a stop string.
        text: String,
    },
}

/// A token, with what may be shown since the one before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Token {
    /// Its number.
    pub id: u32,
    /// New text, valid as it stands: nothing of a stop string, no half character. Often empty, and may hold earlier tokens' ends.
    pub text: String,
    /// Its own bytes and log-probability, where `sampling.logprobs` asks. The bytes of all tokens are the text.
    pub scored: Option<Scored>,
    /// The likeliest tokens in its place, best first: as many as asked for.
    pub top: Vec<Scored>,
}

/// A token's bytes and the natural logarithm of its probability.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// What it adds to the text: perhaps half a character.
    pub bytes: Vec<u8>,
    /// At most 0; `None` for the first token of a prompt, which follows nothing.
    pub logprob: Option<f32>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop string did.
    Stop,
    /// `tokens_max`, or the context is full.
    Length,
}

/// What an answer took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Tokens of the prompt that were not computed again.
    pub cached_tokens: u64,
}

/// Texts to turn into vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Embed {
    /// One of [`Engine::models`], of kind [`ModelKind::Embeds`].
    pub model: String,
    /// The texts.
    pub inputs: Vec<Prompt>,
}

/// Their vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    /// One for each input.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all inputs.
    pub prompt_tokens: u64,
}

/// Why there is no answer, or no more of it. The words reach the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A request that makes no sense to this model.
    #[error("{reason}")]
    Refused {
        /// What is wrong, and what would be right.
        reason: String,
        /// The field of the request, such as `logit_bias`.
        param: Option<String>,
    },
    /// A prompt that leaves no room for an answer.
    #[error("the prompt has {tokens} tokens and the model's context {context_tokens}: shorten the prompt or ask for fewer tokens")]
    TooLong {
        /// The prompt's, and those asked for.
        tokens: u64,
        /// The model's longest sequence.
        context_tokens: u32,
    },
    /// The model went away since [`Engine::models`] named it.
    #[error("there is no model {0:?}: see /v1/models")]
    UnknownModel(String),
    /// Too much is under way.
    #[error("the engine is busy: try again in {retry_after_s} s")]
    Busy {
        /// When it may be worth trying again.
        retry_after_s: u32,
    },
    /// The server at the other side of the cut cannot be reached.
    #[error("the engine cannot be reached: {0}")]
    Gone(String),
    /// The engine failed.
    #[error("the engine failed: {0}")]
    Failed(String),
}

//! An OpenAI-compatible HTTP endpoint over an [`Engine`]: whatever turns a prompt into a stream of tokens.
//!
//! It must never know how tokens are made: no model, no socket but HTTP's.

#![forbid(unsafe_code)]

mod answer;
mod choices;
mod config;
mod engine;
mod error;
mod gate;
mod guard;
mod metrics;
mod request;
mod routes;
mod serve;
mod sse;
mod template;

pub use config::{ApiKey, ServeError, ServerConfig};
pub use engine::{
    Embed, Embeddings, Engine, EngineError, FinishReason, Generate, ModelCard, ModelKind, Piece, Prompt, Scored, Token, Usage,
};
pub use futures_util::future::BoxFuture;
pub use futures_util::stream::BoxStream;
pub use serve::{listen, serve};
pub use template::{ChatMessage, ChatTemplate, FolderError, TemplateError};

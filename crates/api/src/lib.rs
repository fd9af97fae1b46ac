//! An OpenAI-compatible HTTP endpoint over an [`Engine`]: whatever turns a prompt into a stream of tokens.
//!
//! It must never know how tokens are made: no model, no socket but HTTP's.

#![forbid(unsafe_code)]

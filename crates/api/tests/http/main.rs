//! Goal: whoever speaks OpenAI's protocol is answered in it, and nobody can take more than the bounds. Method: a server over real
//! sockets and an engine without a model.

#![allow(clippy::unwrap_used)]

mod bounds;
mod client;
mod crowd;
mod engine;
mod refusals;
mod shapes;
mod streams;

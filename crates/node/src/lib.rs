//! The client and the server of a split run: the two loops, nothing clever.
//!
//! [`serve`] and [`join`] do the job over a network, [`central`] does it uncut in one process to measure them against, and
//! [`Scorer`] scores a model with an adapter. What happens is told as [`Event`]s.

#![forbid(unsafe_code)]

mod adapters;
mod answers;
mod auto;
mod central;
mod client;
mod compute;
mod compute_config;
mod edge;
mod error;
mod event;
mod generate;
mod phases;
mod prepare;
mod schedule;
mod server;
mod side;
mod state;
mod stop;
mod turn;
mod visits;

pub use auto::{Auto, Encodings};
pub use central::{CentralConfig, CentralReport, Scorer, central};
pub use client::{JoinConfig, JoinReport, join};
pub use compute_config::ComputeConfig;
pub use error::NodeError;
pub use event::{Event, EventSink, no_events};
pub use generate::{
    Answered, Answerer, Choice, Drafting, Embedder, FinishReason, GenerateRequest, Generation, Generator, GeneratorConfig, HostConfig,
    HostWatch, MemoryConfig, NamedAdapter, OPTIONS_MAX, Offloader, Piece, Prompt, Remote, Token, Usage, Work, host, host_watched,
};
pub use phases::Phases;
pub use prepare::ClientData;
pub use server::{ServeConfig, ServeReport, serve};
pub use stop::Stop;

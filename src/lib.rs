//! Split federated fine-tuning of transformers: a device trains the first layers of a model on data that stays with it, and an
//! edge server the rest.
//!
//! An app trains with [`Client`]. It needs a model folder, the server's address and key, and its own records; the server's plan
//! says how often, how long and with what optimizer.
//!
//! ```no_run
//! # async fn train() -> Result<(), Box<dyn std::error::Error>> {
//! let report = cutlayer::Client::builder()
//!     .server("10.0.0.5:4433", "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c")
//!     .token("single-use-token-from-the-server")
//!     .model("models/smollm")
//!     .identity("keys")
//!     .cut(2)
//!     .data(vec![("Where is the kettle?", "In the kitchen."), ("And the cups?", "Beside it.")])
//!     .on_event(|event| println!("{event:?}"))
//!     .join()
//!     .await?;
//! println!("{} steps over {} rounds", report.steps, report.rounds);
//! # Ok(())
//! # }
//! ```
//!
//! The activations that leave the device tell much about the text: a cut alone is **not** privacy. Labels leave it too, unless the
//! client also runs the end of the model ([`ClientBuilder::tail`]).
//!
//! Each part of the system is a crate of its own, re-exported below; the `cutlayer` command is built from the same parts.

#![forbid(unsafe_code)]

mod client;
mod session;

pub use client::{Client, ClientBuilder, ClientError, TrainingData, identity_at};
pub use cutlayer_data::Record;
pub use cutlayer_model::{DeviceChoice, Precision};
pub use cutlayer_node::{
    Drafting, Event, FinishReason, GenerateRequest, Generation, JoinReport, NodeError, Piece, Prompt, Stop, Token, Usage,
};
pub use cutlayer_transport::LinkConfig;
pub use cutlayer_wire::{Encoding, PeerId, SamplingSpec};
pub use session::{Session, SessionBuilder};

pub use cutlayer_api as api;
pub use cutlayer_data as data;
pub use cutlayer_federation as federation;
pub use cutlayer_generation as generation;
pub use cutlayer_lab as lab;
pub use cutlayer_model as model;
pub use cutlayer_node as node;
pub use cutlayer_transport as transport;
pub use cutlayer_wire as wire;

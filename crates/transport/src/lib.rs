//! Identities, enrolment and the QUIC link: the only crate that names quinn.
//!
//! Every node has an ed25519 key; TLS 1.3 with certificates on both sides, always. A client pins the server's key, the server
//! lets in the keys on its [`AllowList`], and both before any application byte. This crate moves frames and messages of
//! `cutlayer_wire` whole or not at all; it must never interpret a tensor.

#![forbid(unsafe_code)]

mod allow_list;
mod closing;
mod config;
mod congestion;
mod connect;
mod control;
mod emulated;
mod error;
mod generate;
mod identity;
mod line;
mod link;
mod outbox;
mod reset;
mod server;
mod socket;
mod step;
#[cfg(test)]
mod tests;
mod tls;

pub use allow_list::{AllowList, AllowListError, Entry, TOKEN_LIFE};
pub use config::LinkConfig;
pub use connect::connect;
pub use control::{Control, ControlReceiver, ControlSender};
pub use emulated::{
    Changes, Conditions, ConditionsError, Emulator, EmulatorCounts, Lane, LaneCounts, MtuDrop, Outage, PROFILES, Profile, Rate, Share,
    Span, Timetable,
};
pub use error::LinkError;
pub use generate::{DeviceStream, GenerateReceiver, GenerateSender, GenerateStream, ServerStream};
pub use identity::{Identity, IdentityError};
pub use link::{Link, LinkStats, SESSION_STREAMS_MAX};
pub use server::Server;
pub use step::StepStream;

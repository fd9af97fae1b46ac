//! A slow, far or broken network on this machine: a UDP forwarder that delays, drops and reorders by numbers and a seed. No root.
//!
//! `model.rs` decides, `forward.rs` owns sockets and clock. It forwards bytes as they are and must never look into them.
//!
//! A departure is computed to the nanosecond, and sent at tokio's next millisecond: on average a datagram is half a millisecond late
//! each way, and what falls due within one leaves together, at 1 Gbit/s some 125 kB. The next turn on the link is
//! counted from the computed end of the last, not from when the timer rang, so that the rate is right over any longer time.

mod conditions;
mod error;
mod forward;
mod lane;
mod model;
mod profile;
mod socket;
#[cfg(test)]
mod tests;
mod units;

pub use conditions::{Changes, Conditions, Lane, MtuDrop, Outage, Timetable};
pub use error::ConditionsError;
pub use forward::Emulator;
pub use lane::{EmulatorCounts, LaneCounts};
pub use profile::{PROFILES, Profile};
pub use units::{Rate, Share, Span};

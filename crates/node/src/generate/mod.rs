//! Split inference: a device runs the first blocks, a host the rest, and tokens come back one round trip at a time.
//!
//! [`host`] serves devices; [`Generator`] is the device. Both compute in [`worker`]s, which know no socket. Nothing that a side holds of a
//! sequence is needed to go on: the device has the tokens, and whatever was lost is computed again, to the bit.

mod adapters;
mod choice;
mod device;
mod drafter;
mod embedder;
mod host;
mod line;
mod memory;
mod offload;
mod path;
mod prefix;
mod sequence;
mod sequences;
mod worker;

pub use adapters::NamedAdapter;
pub use choice::{Choice, OPTIONS_MAX};
pub use device::{Generator, GeneratorConfig, Remote};
pub use drafter::Drafting;
pub use embedder::Embedder;
pub use host::{HostConfig, HostWatch, host, host_watched};
pub use memory::MemoryConfig;
pub use offload::{Answered, Answerer, Offloader};
pub use sequence::{FinishReason, GenerateRequest, Generation, Piece, Prompt, Token, Usage};
pub use worker::Work;

/// Bytes as a share of a cache: whole pages, at least one.
pub(crate) fn pages_of(bytes: u64, page_bytes: u64) -> u32 {
    u32::try_from((bytes / page_bytes.max(1)).max(1)).unwrap_or(u32::MAX)
}

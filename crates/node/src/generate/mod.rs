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

/// Most pages of a cache, four million tokens: a side without blocks has pages that weigh nothing, but each is an entry in a table.
const PAGES_MAX: u64 = 1 << 18;

/// Bytes as a share of a cache: whole pages, at least one.
pub(crate) fn pages_of(bytes: u64, page_bytes: u64) -> u32 {
    (bytes / page_bytes.max(1)).clamp(1, PAGES_MAX) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that runs no block once asked for half a thousand million pages, and was killed for want of memory.
    #[test]
    fn pages_that_weigh_nothing_are_not_without_number() {
        assert_eq!(u64::from(pages_of(512 << 20, 0)), PAGES_MAX);
        assert_eq!((pages_of(100, 10), pages_of(3, 10), pages_of(0, 0)), (10, 1, 1));
    }
}

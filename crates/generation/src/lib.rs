//! What generation decides: which token is next, when to stop, what to guess, which pages a sequence holds, whose turn it is, and what
//! stays on the device.
//!
//! Pure: numbers and ids come in as arguments, decisions go out as values. It knows no clock, socket, file or tensor library.

#![forbid(unsafe_code)]

mod depth;
mod draft;
mod history;
pub mod offload;
mod pages;
mod sampling;
mod stop;
mod turns;
mod words;

pub use depth::{Depth, RoundCosts};
pub use draft::{Draft, NGRAM_MAX, NgramDraft, NgramError};
pub use history::History;
pub use pages::{OutOfPages, PageError, PagePool, SequenceId};
pub use sampling::{BIASES_MAX, LOGPROB_MIN, SamplingError, check, draw};
pub use stop::{STOP_BYTES_MAX, STOPS_MAX, Shown, StopError, StopStrings};
pub use turns::{PREFILLS_PASSED_MAX, Turns, Work};
pub use words::Words;

//! From files to batches: tokenizers, dataset readers, held-out splits, partitions among clients, batching,
//! and the generator of the quickstart corpus.
//!
//! A leaf: it knows no tensor library, no socket and no other crate of the workspace. Everything here is a
//! function of the files and a seed; nothing reads the environment or the clock.
//!
//! ```no_run
//! use std::path::Path;
//! use cutlayer_data::{BatchShape, Batcher, DataSpec, Layout, Objective, Source, Tokenizer, tokenise};
//!
//! # fn main() -> Result<(), cutlayer_data::DataError> {
//! let spec = DataSpec::new(Source::text("notes.jsonl", "text"));
//! let shares = spec.load(Path::new("."), 1, 7)?;
//! let tokenizer = Tokenizer::open(Path::new("model"))?;
//! let tokenised = tokenise(&tokenizer, &shares.train[0], Objective::CausalLm, 128)?;
//! let shape = BatchShape { sequences: 8, tokens_max: 128, layout: Layout::Padded, group_by_length: false };
//! let mut batcher = Batcher::new(tokenised.examples, shape, 7)?;
//! let batch = batcher.next_batch();
//! # let _ = batch;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod corpus;

mod batch;
mod batcher;
mod dataset;
mod error;
mod example;
mod held_out;
mod partition;
mod reader;
mod record;
mod rng;
mod source;
mod spelling;
mod tokenizer;
mod tokenizer_training;

pub use batch::{Batch, IGNORED};
pub use batcher::{BatchShape, Batcher, BatcherState, Layout, evaluation_batches};
pub use dataset::{DataSpec, Shares};
pub use error::DataError;
pub use example::{Example, Objective, Target, Tokenised, labels_of, tokenise};
pub use held_out::{HeldOut, hold_out};
pub use partition::{Partition, Quantity, partition};
pub use record::{Body, Origin, Record};
pub use source::{Format, Lists, Pieces, Source};
pub use tokenizer::Tokenizer;
pub use tokenizer_training::{VOCAB_SIZE_MIN, train_tokenizer};

//! Files that outlive whoever writes them: whole under their names or not there at all; and checkpoints made of them.
//!
//! Knows what lies on a disk, never what it means: the state in a checkpoint is whatever its owner serializes.

#![forbid(unsafe_code)]

mod checkpoint;
mod error;
mod file;
mod store;

pub use checkpoint::Saved;
pub use error::{BadCheckpoint, CheckpointError, Damage};
pub use file::{DurableFile, remove_leftovers, write_durably};
pub use store::Store;

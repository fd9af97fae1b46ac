//! Why checkpoints cannot be kept or read, in words that name the file and say what to do.

use std::fmt::Write;
use std::io;
use std::path::PathBuf;

/// Why a folder of checkpoints cannot be used, or one not be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The folder itself.
    #[error("cannot keep checkpoints in {}: {source}; give a folder that you can read and write", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{} is in use by another process; end that one, or give each process a folder of its own", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// A checkpoint could not be put on the disk.
    #[error("cannot write {}: {source}; make room on that disk, then start again: the checkpoints before it are whole", file.display())]
    Write {
        /// The checkpoint.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A state that no checkpoint holds.
    #[error("{}: its state takes {bytes} B, more than the {bytes_max} B that a checkpoint holds; keep large parts as tensors", file.display())]
    StateTooLarge {
        /// The checkpoint.
        file: PathBuf,
        /// Bytes of the state and of the names and shapes of the tensors.
        bytes: u64,
        /// The most there may be.
        bytes_max: u64,
    },
    /// There are checkpoints, and all of them are damaged.
    #[error("no checkpoint is whole: {}. Restore one of these files from a copy, or move them away to start anew", list(bad))]
    NoneWhole {
        /// Each of them, newest first.
        bad: Vec<BadCheckpoint>,
    },
}

/// A checkpoint that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{} {damage}", file.display())]
pub struct BadCheckpoint {
    /// The checkpoint.
    pub file: PathBuf,
    /// What is wrong with it.
    #[source]
    pub damage: Damage,
}

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is larger than any real one.
    #[error("is {bytes} B long, more than the {bytes_max} B of any checkpoint")]
    TooLarge {
        /// Its length.
        bytes: u64,
        /// The most that is read.
        bytes_max: u64,
    },
    /// Its bytes are not those that were written: cut short, or changed.
    #[error("does not match its checksum: it was cut short or changed")]
    Checksum,
    /// It is a file of something else, or of another place.
    #[error("is not the checkpoint that its name says: {0}")]
    Foreign(String),
    /// It was written by another version of us.
    #[error("has format {found}, and this program reads {read}: use the version that wrote it")]
    Version {
        /// Its format.
        found: u32,
        /// Ours.
        read: u32,
    },
    /// Its state is not what its owner keeps today.
    #[error("holds a state that this program does not read: {0}; use the version that wrote it")]
    State(serde_json::Error),
}

fn list(bad: &[BadCheckpoint]) -> String {
    bad.iter().fold(String::new(), |mut text, bad| {
        let comma = if text.is_empty() { "" } else { "; " };
        write!(text, "{comma}{bad}").expect("a string takes all");
        text
    })
}

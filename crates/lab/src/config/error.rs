//! What can be wrong with a run file, in words that name the file, the key and what to write instead.

use cutlayer_wire::PlanError;
use std::path::{Path, PathBuf};

/// Why a run cannot be described.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the run file {}: {source}; `experiments/` holds some to start from", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is far larger than a run file.
    #[error("{} is {bytes} B, over the {bytes_max} B of a run file; is it the right file?", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// Its size.
        bytes: u64,
        /// The most that is read.
        bytes_max: u64,
    },
    /// It is no TOML, or has a key that does not exist or holds the wrong kind of value.
    #[error("{}: {reason}", file.display())]
    Parse {
        /// The file.
        file: PathBuf,
        /// Where, what, and which keys there are.
        reason: String,
    },
    /// An override that cannot be applied.
    #[error("--set {text}: {reason}")]
    Override {
        /// The override.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is right and the overrides are not.
    #[error("with --set {}: {reason}", overrides.join(" --set "))]
    Overridden {
        /// The overrides.
        overrides: Vec<String>,
        /// What they break.
        reason: String,
    },
    /// A key whose value cannot be.
    #[error("{key} is {found}: {remedy}")]
    Invalid {
        /// The key, as a path from the root.
        key: &'static str,
        /// What it holds.
        found: String,
        /// What to write instead.
        remedy: String,
    },
    /// A link that cannot be emulated.
    #[error("link.emulate: {0}")]
    Link(cutlayer_transport::ConditionsError),
    /// A number of the plan that cannot be.
    #[error(transparent)]
    Plan(PlanError),
    /// A key without which nothing can be done.
    #[error("{key} is not set: {remedy}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What to write.
        remedy: &'static str,
    },
    /// A client that the run does not have.
    #[error("there is no client {client}: the run has {clients}, counted from 0")]
    NoSuchClient {
        /// The index asked for.
        client: u32,
        /// How many there are.
        clients: u32,
    },
    /// The resolved file could not be written as TOML.
    #[error("the resolved run file cannot be written: {reason}")]
    Write {
        /// Why.
        reason: String,
    },
}

impl ConfigError {
    pub(super) fn parse(file: &Path, error: &toml::de::Error) -> Self {
        Self::Parse { file: file.into(), reason: error.to_string().trim_end().into() }
    }

    pub(super) fn overridden(overrides: &[String], error: &toml::de::Error) -> Self {
        Self::Overridden { overrides: overrides.into(), reason: error.to_string().trim_end().into() }
    }
}

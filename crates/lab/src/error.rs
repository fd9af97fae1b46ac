//! Why a run could not be carried out.

use crate::config::ConfigError;
use cutlayer_data::DataError;
use cutlayer_node::NodeError;
use std::path::{Path, PathBuf};

/// Why a run could not start, or had to end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// The run file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A node in this process.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A key or the allow-list.
    #[error(transparent)]
    Identity(#[from] cutlayer_transport::IdentityError),
    /// The allow-list.
    #[error(transparent)]
    AllowList(#[from] cutlayer_transport::AllowListError),
    /// A file of the run folder.
    #[error("cannot write {}: {source}; check the disk and its permissions, or give another folder with --runs", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Too many runs of one name.
    #[error("{} and its numbered successors up to -{tried} exist; give the run a name with --name, or clear old runs", folder.display())]
    FolderTaken {
        /// The folder wanted.
        folder: PathBuf,
        /// The highest number tried.
        tried: u32,
    },
    /// A process that did not start.
    #[error("{name} did not start: {source}")]
    Spawn {
        /// Which.
        name: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A process that died.
    #[error("{name} died ({status}); its log is {}{}", log.display(), tail_of(tail))]
    Died {
        /// Which.
        name: String,
        /// Its exit status, in words.
        status: String,
        /// Its exit code, if it had one.
        code: Option<i32>,
        /// Its log.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// A process that did not do what was waited for.
    #[error("{name} did not {what} within {waited_s} s; its log is {}{}", log.display(), tail_of(tail))]
    Silent {
        /// Which.
        name: String,
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited_s: u64,
        /// Its log.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// A shape without a name here.
    #[error("no shape is called {found}; the shapes are {}, and any model folder can be given in place of one", crate::bench::SHAPES.join(", "))]
    UnknownShape {
        /// What was asked for.
        found: String,
    },
    /// A model that could not be written.
    #[error(transparent)]
    Export(#[from] cutlayer_model::ExportError),
    /// A measurement that did not see enough.
    #[error("{measured} steps could be measured where {wanted} were wanted: {reason}")]
    NotMeasured {
        /// Steps seen.
        measured: usize,
        /// Steps wanted.
        wanted: usize,
        /// Why.
        reason: String,
    },
    /// A thread of this process panicked.
    #[error("the training thread panicked: {0}; see the message above, and please report it")]
    Panicked(String),
}

impl LabError {
    pub(crate) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Write { path, source }
    }
}

fn tail_of(tail: &str) -> String {
    if tail.is_empty() { " and is empty".into() } else { format!(", which ends:\n{tail}") }
}

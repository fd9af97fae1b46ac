//! Why a list of keys cannot be read or changed: sentences for the server's operator.

use std::path::PathBuf;

/// A list that cannot be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AllowListError {
    /// The file system.
    #[error("{}: {source}; the list of keys must be readable and writable by the server's operator", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a list.
    #[error("{} is no list of keys: {reason}; restore it from a backup", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A name that could not be told from a key, or not be shown.
    #[error(
        "{name:?} cannot name a client: use 1 to {} letters, digits, spaces or punctuation, and not a key",
        super::list::NAME_CHARS_MAX
    )]
    Name {
        /// The name asked for.
        name: String,
    },
    /// Nobody of that name or key.
    #[error("no key or name `{who}` is enrolled; `cutlayer keys list` shows who is")]
    Unknown {
        /// Who was asked for.
        who: String,
    },
    /// A name or a key that is taken.
    #[error("{what} is enrolled already as `{name}`; revoke it first, or choose another name")]
    Taken {
        /// The key or name.
        what: String,
        /// Whose.
        name: String,
    },
}

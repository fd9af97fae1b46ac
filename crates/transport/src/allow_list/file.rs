//! The list's file: read when it changed, replaced whole, by one process at a time.

use super::error::AllowListError;
use super::list::List;
use cutlayer_durable::DurableFile;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The list's file in a server's key folder.
const LIST_FILE: &str = "allowed.json";
/// Largest list read, in bytes: some 100,000 peers.
const LIST_BYTES_MAX: u64 = 32 << 20;

/// What tells one state of the file from the next. Each change is a new file (see [`ListFile::write`]), so that the inode
/// tells where a coarse clock does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: SystemTime,
    bytes: u64,
    inode: u64,
}

#[derive(Debug)]
pub(super) struct ListFile {
    path: PathBuf,
}

impl ListFile {
    pub fn of_folder(folder: &Path) -> Self {
        Self { path: folder.join(LIST_FILE) }
    }

    /// The file's state; `None` where there is none.
    pub fn stamp(&self) -> Result<Option<Stamp>, AllowListError> {
        let data = match fs::metadata(&self.path) {
            Ok(data) => data,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.failed(source)),
        };
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(&data);
        #[cfg(not(unix))]
        let inode = 0;
        let modified = data.modified().map_err(|source| self.failed(source))?;
        Ok(Some(Stamp { modified, bytes: data.len(), inode }))
    }

    /// The list in the file: an empty one where there is no file, since nobody was let in yet.
    pub fn read(&self) -> Result<List, AllowListError> {
        let malformed = |reason| AllowListError::Malformed { file: self.path.clone(), reason };
        match self.stamp()? {
            None => Ok(List::default()),
            Some(stamp) if stamp.bytes > LIST_BYTES_MAX => Err(malformed(format!("{} B is too large", stamp.bytes))),
            Some(_) => List::parse(&fs::read(&self.path).map_err(|source| self.failed(source))?).map_err(malformed),
        }
    }

    /// Changes the list while no other process does. What `change` refuses changes nothing.
    pub fn change<T>(&self, change: impl FnOnce(&mut List) -> Result<T, AllowListError>) -> Result<T, AllowListError> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).map_err(|source| self.failed(source))?;
        }
        // Held until the file is dropped; a process that dies lets go of it.
        let lock = fs::File::create(self.path.with_extension("lock")).map_err(|source| self.failed(source))?;
        lock.lock().map_err(|source| self.failed(source))?;
        let mut list = self.read()?;
        let outcome = change(&mut list)?;
        self.write(&list).map_err(|source| self.failed(source))?;
        Ok(outcome)
    }

    /// Replaces the file whole, and not before the new one is on disk: a revocation survives a power cut.
    fn write(&self, list: &List) -> std::io::Result<()> {
        let mut out = DurableFile::create_private(&self.path)?;
        out.write_all(&list.to_bytes())?;
        out.commit()
    }

    fn failed(&self, source: std::io::Error) -> AllowListError {
        AllowListError::Io { file: self.path.clone(), source }
    }
}

//! A folder of checkpoints, for one process: the newest of each name and two before it.
//!
//! Nothing good is removed before something better is on the disk.

use crate::checkpoint::{HEADER_BYTES_MAX, Saved, header, read, write};
use crate::error::{BadCheckpoint, CheckpointError};
use crate::file::{DurableFile, remove_leftovers, sync_folder_of};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// The file that a process locks while the folder is its own.
const LOCK_FILE: &str = ".lock";
/// How names of checkpoints end.
const SUFFIX: &str = ".safetensors";

/// Checkpoints kept of a name. Two that answer to each other, a server's and a client's, may each lose its newest; what they then go
/// back to has to be there on both sides.
const KEPT: usize = 3;

/// A folder of checkpoints, locked against other processes until this is dropped or its process dies.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    /// Unlocked by the system when it is closed.
    _lock: File,
}

impl Store {
    /// Takes the folder, makes it where there is none, and clears what a killed process left half written.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let failed = |source| CheckpointError::Folder { folder: folder.into(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let lock = File::options().write(true).create(true).truncate(false).open(folder.join(LOCK_FILE)).map_err(failed)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => CheckpointError::InUse { folder: folder.into() },
            TryLockError::Error(source) => failed(source),
        })?;
        remove_leftovers(folder).map_err(failed)?;
        Ok(Self { folder: folder.into(), _lock: lock })
    }

    /// Keeps a checkpoint, on the disk when this returns, and of the others of that name the two before it.
    ///
    /// Those with a higher number are of a future that will not be, since somebody went back to before them: they go first, so
    /// that no crash brings them back. An error leaves every lower one as it was.
    ///
    /// # Panics
    /// If `name` is not of lower-case letters, digits, `-` and `_`, or the tensors are not as [`Saved`] says.
    pub fn save<T: Serialize>(&self, name: &str, number: u64, saved: &Saved<T>) -> Result<(), CheckpointError> {
        let file = self.file(name, number);
        let failed = |source| CheckpointError::Write { file: file.clone(), source };
        let header = header(name, number, saved);
        if header.len() as u64 > HEADER_BYTES_MAX {
            return Err(CheckpointError::StateTooLarge { file, bytes: header.len() as u64, bytes_max: HEADER_BYTES_MAX });
        }
        let numbers = self.numbers(name).map_err(failed)?;
        let (newer, older): (Vec<u64>, Vec<u64>) = numbers.into_iter().filter(|other| *other != number).partition(|other| *other > number);
        if !newer.is_empty() {
            newer.iter().try_for_each(|other| fs::remove_file(self.file(name, *other))).map_err(failed)?;
            sync_folder_of(&file).map_err(failed)?;
        }
        let mut out = DurableFile::create(&file).map_err(failed)?;
        write(&mut out, &header, &saved.tensors).and_then(|()| out.commit()).map_err(failed)?;
        for other in older.iter().skip(KEPT - 1).map(|other| self.file(name, *other)) {
            // What matters is kept. The next one tries again.
            if let Err(error) = fs::remove_file(&other) {
                tracing::warn!("cannot remove the old checkpoint {}: {error}", other.display());
            }
        }
        Ok(())
    }

    /// The newest whole checkpoint of that name among the numbers that `accept` takes; nothing where there is no such number.
    ///
    /// A damaged one is warned of by its file, and the one before it taken.
    pub fn newest<T: DeserializeOwned>(
        &self,
        name: &str,
        accept: impl Fn(u64) -> bool,
    ) -> Result<Option<(u64, Saved<T>)>, CheckpointError> {
        let numbers = self.numbers(name).map_err(|source| CheckpointError::Folder { folder: self.folder.clone(), source })?;
        let mut bad = Vec::new();
        for number in numbers.into_iter().filter(|number| accept(*number)) {
            let file = self.file(name, number);
            match read(&file, name, number) {
                Ok(saved) => return Ok(Some((number, saved))),
                Err(damage) => {
                    let damaged = BadCheckpoint { file, damage };
                    tracing::warn!("the checkpoint {damaged}; looking for the one before it");
                    bad.push(damaged);
                }
            }
        }
        if bad.is_empty() { Ok(None) } else { Err(CheckpointError::NoneWhole { bad }) }
    }

    /// Where a checkpoint lies: `server.12.safetensors`.
    fn file(&self, name: &str, number: u64) -> PathBuf {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
        assert!(!name.is_empty() && name.bytes().all(allowed), "`{name}` cannot name a checkpoint");
        self.folder.join(format!("{name}.{number}{SUFFIX}"))
    }

    /// The numbers there are of that name, highest first.
    fn numbers(&self, name: &str) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let inner = path.file_name().and_then(|file| file.to_str()).and_then(|file| file.strip_suffix(SUFFIX));
            let number = inner.and_then(|inner| inner.strip_prefix(name)?.strip_prefix('.')?.parse().ok());
            // `server.+7` and `server.07` are numbers too, but not names of ours.
            numbers.extend(number.filter(|number| self.file(name, *number) == path));
        }
        numbers.sort_unstable_by(|one, other| other.cmp(one));
        Ok(numbers)
    }
}

//! Whom a server lets in: a file of keys, and of single-use tokens that enrol one more.
//!
//! The file is the truth and may be changed while the server runs: it is read again whenever it changed on disk.

use cutlayer_wire::PeerId;
use rand::RngCore;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The list's file in a server's key folder.
const LIST_FILE: &str = "allowed.json";
/// Largest list read, in bytes: some 100,000 peers.
const LIST_BYTES_MAX: u64 = 32 << 20;
/// Bytes of randomness in a token.
const TOKEN_BYTES: usize = 20;
/// How long a token may be used.
pub const TOKEN_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// A list that cannot be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AllowListError {
    /// The file system.
    #[error("{}: {source}", file.display())]
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

/// One enrolled key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What people call it.
    pub name: String,
    /// The key, 64 hex digits.
    pub key: String,
    /// When it was enrolled, seconds since 1970.
    pub added_s: u64,
    /// Whether it has been thrown out. Its place in the list stays, and so do the others'.
    #[serde(default)]
    pub revoked: bool,
}

/// A token that has not been used. The token itself is not kept: only its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    name: String,
    hash: String,
    expires_s: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    peers: Vec<Entry>,
    #[serde(default)]
    tokens: Vec<Token>,
}

/// What the list says of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Enrolled,
    /// Not enrolled, but with a token that would enrol it.
    WithToken,
    Unknown,
    Revoked,
    /// With a token that was used, never was, or is too old.
    BadToken,
}

/// The file, and what was last read of it.
#[derive(Debug)]
pub struct AllowList {
    file: PathBuf,
    read: Mutex<(Option<(SystemTime, u64)>, List)>,
}

impl AllowList {
    /// The list in `folder`; an empty one where there is none yet.
    pub fn open(folder: &Path) -> Result<Self, AllowListError> {
        let list = Self { file: folder.join(LIST_FILE), read: Mutex::new((None, List::default())) };
        drop(list.refresh()?);
        Ok(list)
    }

    /// Enrols a key under a name that nobody has. A revoked key is let in again under its new name.
    pub fn allow(&self, name: &str, peer: PeerId) -> Result<(), AllowListError> {
        self.change(|list| {
            let key = peer.to_hex();
            let taken = list.peers.iter().find(|entry| !entry.revoked && (entry.name == name || entry.key == key));
            if let Some(entry) = taken {
                let what = if entry.key == key { format!("key {peer}") } else { format!("the name {name}") };
                return Err(AllowListError::Taken { what, name: entry.name.clone() });
            }
            enrol(list, name, key);
            Ok(())
        })
    }

    /// Throws out the peer of this name or key: its sessions end within seconds. Returns the key.
    pub fn revoke(&self, who: &str) -> Result<String, AllowListError> {
        self.change(|list| {
            let entry = list.peers.iter_mut().find(|entry| !entry.revoked && (entry.name == who || entry.key == who));
            let entry = entry.ok_or_else(|| AllowListError::Unknown { who: who.into() })?;
            entry.revoked = true;
            Ok(entry.key.clone())
        })
    }

    /// A token that enrols one key as `name`, once, within [`TOKEN_LIFE`].
    pub fn issue_token(&self, name: &str) -> Result<String, AllowListError> {
        self.issue_token_for(name, TOKEN_LIFE)
    }

    /// A token that lives for `life`.
    pub fn issue_token_for(&self, name: &str, life: Duration) -> Result<String, AllowListError> {
        let mut bytes = [0u8; TOKEN_BYTES];
        rand::rng().fill_bytes(&mut bytes);
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.change(|list| {
            if let Some(entry) = list.peers.iter().find(|entry| !entry.revoked && entry.name == name) {
                return Err(AllowListError::Taken { what: format!("the name {name}"), name: entry.name.clone() });
            }
            list.tokens.retain(|old| old.expires_s > now_s());
            list.tokens.push(Token { name: name.into(), hash: hash(&token), expires_s: now_s() + life.as_secs() });
            Ok(())
        })?;
        Ok(token)
    }

    /// Everyone enrolled, thrown-out ones too, in the order of enrolment.
    pub fn entries(&self) -> Vec<Entry> {
        self.fresh().1.peers.clone()
    }

    /// How many tokens wait to be used.
    pub fn tokens(&self) -> usize {
        self.fresh().1.tokens.iter().filter(|token| token.expires_s > now_s()).count()
    }

    /// A peer's place in the order of enrolment: the same at every start of a run.
    pub fn position(&self, peer: &PeerId) -> Option<u32> {
        let key = peer.to_hex();
        self.fresh().1.peers.iter().position(|entry| entry.key == key).map(|place| place as u32)
    }

    /// Whether the peer may stay.
    pub fn is_allowed(&self, peer: &PeerId) -> bool {
        self.judge(peer, None) == Verdict::Enrolled
    }

    pub(crate) fn judge(&self, peer: &PeerId, token: Option<&str>) -> Verdict {
        let read = self.fresh();
        let key = peer.to_hex();
        match (read.1.peers.iter().find(|entry| entry.key == key), token) {
            (Some(entry), _) if entry.revoked => Verdict::Revoked,
            (Some(_), _) => Verdict::Enrolled,
            (None, None) => Verdict::Unknown,
            (None, Some(token)) if find(&read.1, token).is_some() => Verdict::WithToken,
            (None, Some(_)) => Verdict::BadToken,
        }
    }

    /// Spends a token on a peer that has proved to hold its key. False where the token is spent.
    pub(crate) fn redeem(&self, token: &str, peer: PeerId) -> Result<bool, AllowListError> {
        self.change(|list| {
            let Some(place) = find(list, token) else { return Ok(false) };
            let token = list.tokens.remove(place);
            enrol(list, &token.name, peer.to_hex());
            Ok(true)
        })
    }

    /// Reads the file again if it changed.
    fn refresh(&self) -> Result<MutexGuard<'_, (Option<(SystemTime, u64)>, List)>, AllowListError> {
        let mut read = self.read.lock().expect("no holder of this lock panics");
        let failed = |source| AllowListError::Io { file: self.file.clone(), source };
        let state = match fs::metadata(&self.file) {
            Ok(data) => Some((data.modified().map_err(failed)?, data.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(failed(source)),
        };
        if state != read.0 {
            read.1 = match state {
                None => List::default(),
                Some((_, bytes)) if bytes > LIST_BYTES_MAX => {
                    return Err(AllowListError::Malformed { file: self.file.clone(), reason: format!("{bytes} B is too large") });
                }
                Some(_) => serde_json::from_slice(&fs::read(&self.file).map_err(failed)?)
                    .map_err(|error| AllowListError::Malformed { file: self.file.clone(), reason: error.to_string() })?,
            };
            read.0 = state;
        }
        Ok(read)
    }

    /// What the file says now, or what it last said if it cannot be read: a half-written file lets nobody in or out.
    fn fresh(&self) -> MutexGuard<'_, (Option<(SystemTime, u64)>, List)> {
        self.refresh().unwrap_or_else(|error| {
            tracing::error!("{error}; going on with the list as it was");
            self.read.lock().expect("no holder of this lock panics")
        })
    }

    /// Changes the list and the file, atomically: a temporary file, synced, then renamed. Processes take turns by a lock file.
    fn change<T>(&self, change: impl FnOnce(&mut List) -> Result<T, AllowListError>) -> Result<T, AllowListError> {
        let failed = |source| AllowListError::Io { file: self.file.clone(), source };
        if let Some(folder) = self.file.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let lock = fs::File::create(self.file.with_extension("lock")).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let mut read = self.refresh()?;
        let mut list = read.1.clone();
        let outcome = change(&mut list)?;
        let temporary = self.file.with_extension("json.new");
        let text = serde_json::to_vec_pretty(&list).expect("a list of strings and numbers is JSON");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(&temporary).and_then(|mut out| out.write_all(&text).and_then(|()| out.sync_all())).map_err(failed)?;
        fs::rename(&temporary, &self.file).map_err(failed)?;
        let data = fs::metadata(&self.file).map_err(failed)?;
        *read = (Some((data.modified().map_err(failed)?, data.len())), list);
        Ok(outcome)
    }
}

fn enrol(list: &mut List, name: &str, key: String) {
    match list.peers.iter_mut().find(|entry| entry.key == key) {
        Some(entry) => (entry.revoked, entry.name) = (false, name.into()),
        None => list.peers.push(Entry { name: name.into(), key, added_s: now_s(), revoked: false }),
    }
}

fn find(list: &List, token: &str) -> Option<usize> {
    let hash = hash(token);
    list.tokens.iter().position(|known| known.hash == hash && known.expires_s > now_s())
}

fn hash(token: &str) -> String {
    // Tokens are 160 random bits: a plain hash keeps them, no slow one is needed.
    blake3::hash(token.as_bytes()).to_hex().to_string()
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

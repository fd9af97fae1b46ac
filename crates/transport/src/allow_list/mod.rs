//! Whom a server lets in: a file of keys, and of single-use tokens that enrol one more.
//!
//! The file is the truth and may be changed while the server runs: it is read again whenever it changed on disk.
//! This must never let in a key that the file, as it was last readable, does not name.

mod error;
mod file;
mod list;

pub use error::AllowListError;
pub use list::Entry;
pub(crate) use list::Verdict;

use cutlayer_wire::PeerId;
use file::{ListFile, Stamp};
use list::List;
use rand::RngCore;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of randomness in a token.
const TOKEN_BYTES: usize = 20;
/// How long a token may be used.
pub const TOKEN_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// What was last read, and of which state of the file.
#[derive(Debug, Default)]
struct Known {
    stamp: Option<Stamp>,
    list: List,
}

/// The file, and what was last read of it.
#[derive(Debug)]
pub struct AllowList {
    file: ListFile,
    known: Mutex<Known>,
}

impl AllowList {
    /// The list in `folder`; an empty one where there is none yet.
    pub fn open(folder: &Path) -> Result<Self, AllowListError> {
        let list = Self { file: ListFile::of_folder(folder), known: Mutex::default() };
        list.refresh(&mut list.lock())?;
        Ok(list)
    }

    /// Enrols a key under a name that nobody has. A revoked key is let in again under its new name.
    pub fn allow(&self, name: &str, peer: PeerId) -> Result<(), AllowListError> {
        self.file.change(|list| list.allow(name, peer, now_s()))
    }

    /// Throws out the peer of this name or key: its sessions end within seconds. Returns the key.
    pub fn revoke(&self, who: &str) -> Result<String, AllowListError> {
        self.file.change(|list| list.revoke(who))
    }

    /// A token that enrols one key as `name`, once, within [`TOKEN_LIFE`]. An older one for that name is void.
    pub fn issue_token(&self, name: &str) -> Result<String, AllowListError> {
        self.issue_token_for(name, TOKEN_LIFE)
    }

    /// A token that lives for `life`.
    pub fn issue_token_for(&self, name: &str, life: Duration) -> Result<String, AllowListError> {
        let mut bytes = [0u8; TOKEN_BYTES];
        rand::rng().fill_bytes(&mut bytes);
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.file.change(|list| list.add_token(name, &token, now_s(), life))?;
        Ok(token)
    }

    /// Everyone enrolled, thrown-out ones too, in the order of enrolment.
    pub fn entries(&self) -> Vec<Entry> {
        self.fresh().list.peers().to_vec()
    }

    /// How many tokens wait to be used.
    pub fn tokens(&self) -> usize {
        self.fresh().list.tokens(now_s())
    }

    /// A peer's place in the order of enrolment: the same at every start of a run.
    pub fn position(&self, peer: &PeerId) -> Option<u32> {
        self.fresh().list.position(peer).map(|place| u32::try_from(place).expect("a list file holds fewer than 2^32 peers"))
    }

    /// Whether the peer may stay.
    pub fn is_allowed(&self, peer: &PeerId) -> bool {
        self.judge(peer, None) == Verdict::Enrolled
    }

    /// What the list says of a peer, and of the token that it brings.
    pub(crate) fn judge(&self, peer: &PeerId, token: Option<&str>) -> Verdict {
        self.fresh().list.judge(peer, token, now_s())
    }

    /// Spends a token on a peer that has proved to hold its key. False where the token is spent or void.
    pub(crate) fn redeem(&self, token: &str, peer: PeerId) -> Result<bool, AllowListError> {
        // Nothing is written for a guess: only a token that is good now is worth the lock.
        if self.judge(&peer, Some(token)) != Verdict::WithToken {
            return Ok(false);
        }
        self.file.change(|list| Ok(list.redeem(token, peer, now_s())))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no holder of this lock panics")
    }

    /// Reads the file again if it changed. A bad file is complained of once, not at each look.
    fn refresh(&self, known: &mut Known) -> Result<(), AllowListError> {
        let stamp = self.file.stamp()?;
        if stamp == known.stamp {
            return Ok(());
        }
        match self.file.read() {
            Ok(list) => *known = Known { stamp, list },
            Err(error) => {
                if matches!(error, AllowListError::Malformed { .. }) {
                    known.stamp = stamp;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// What the file says now, or what it last said if it cannot be read: a broken file lets nobody in or out.
    fn fresh(&self) -> MutexGuard<'_, Known> {
        let mut known = self.lock();
        if let Err(error) = self.refresh(&mut known) {
            tracing::error!("{error}; going on with the list as it was");
        }
        known
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: PeerId = PeerId([1; 32]);

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    /// Goal: `keys revoke` works on a running server. Method: two lists of one folder, as two processes have.
    #[test]
    fn a_change_by_another_process_is_seen() {
        let folder = folder();
        let (server, operator) = (AllowList::open(folder.path()), AllowList::open(folder.path()));
        let (server, operator) = (server.expect("an empty list"), operator.expect("an empty list"));
        assert!(!server.is_allowed(&ALICE));
        operator.allow("alice", ALICE).expect("free");
        assert!(server.is_allowed(&ALICE));
        operator.revoke("alice").expect("she is there");
        assert_eq!(server.judge(&ALICE, None), Verdict::Revoked);
        operator.allow("alice", ALICE).expect("she may come back");
        assert!(server.is_allowed(&ALICE));
    }

    /// Goal: no two processes take one token. Method: many threads at once, each with a list of its own.
    #[test]
    fn one_of_many_redeems_a_token() {
        let folder = folder();
        let token = AllowList::open(folder.path()).expect("an empty list").issue_token("one").expect("free");
        let redeem = |index: u8| {
            let (folder, token) = (folder.path().to_owned(), token.clone());
            std::thread::spawn(move || AllowList::open(&folder).expect("a list").redeem(&token, PeerId([index; 32])).expect("a file"))
        };
        let tries: Vec<_> = (0..8).map(redeem).collect();
        let enrolled = tries.into_iter().map(|thread| thread.join().expect("no panic")).filter(|good| *good).count();
        let list = AllowList::open(folder.path()).expect("a list");
        assert_eq!((enrolled, list.entries().len(), list.tokens()), (1, 1, 0));
    }

    /// Goal: a broken file neither lets in, nor throws out, nor is overwritten. Method: break it under a server.
    #[test]
    fn a_broken_file_changes_nothing() {
        let folder = folder();
        let list = AllowList::open(folder.path()).expect("an empty list");
        list.allow("alice", ALICE).expect("free");
        assert!(list.is_allowed(&ALICE));
        let file = folder.path().join("allowed.json");
        std::fs::write(&file, b"{\"peers\": [").expect("writable");
        assert!(list.is_allowed(&ALICE));
        assert!(matches!(list.allow("bob", PeerId([2; 32])), Err(AllowListError::Malformed { .. })));
        assert!(matches!(AllowList::open(folder.path()), Err(AllowListError::Malformed { .. })));
        assert_eq!(std::fs::read(&file).expect("readable"), b"{\"peers\": [");
    }

    /// Goal: the list is for its owner's eyes. Method: look at the mode.
    #[cfg(unix)]
    #[test]
    fn the_file_is_private() {
        let folder = folder();
        AllowList::open(folder.path()).expect("an empty list").allow("alice", ALICE).expect("free");
        let data = std::fs::metadata(folder.path().join("allowed.json")).expect("it is there");
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&data.permissions()) & 0o777, 0o600);
    }
}

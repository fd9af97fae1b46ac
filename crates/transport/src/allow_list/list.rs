//! The list itself: who is enrolled, who was thrown out, which tokens are out. Pure: the time comes in as an argument.

use super::error::AllowListError;
use cutlayer_wire::PeerId;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::time::Duration;

/// Longest name of a client, in characters.
pub(super) const NAME_CHARS_MAX: usize = 64;

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

/// A token that has not been used. The token itself is not kept: who reads the list cannot enrol by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    name: String,
    hash: String,
    expires_s: u64,
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

/// Everything in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct List {
    #[serde(default)]
    peers: Vec<Entry>,
    #[serde(default)]
    tokens: Vec<Token>,
}

impl List {
    /// The list in a file's bytes, or what is wrong with them.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut list: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let mut seen = HashSet::new();
        for entry in &mut list.peers {
            // Keys are compared as text below: one spelling each.
            entry.key = entry.key.parse::<PeerId>().map_err(|error| format!("`{}`: {error}", entry.name))?.to_hex();
            if !seen.insert(entry.key.clone()) {
                return Err(format!("key {} is there twice", entry.key));
            }
        }
        Ok(list)
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a list of strings and numbers is JSON")
    }

    /// Everyone, in the order of enrolment.
    pub fn peers(&self) -> &[Entry] {
        &self.peers
    }

    /// How many tokens may be used still.
    pub fn tokens(&self, now_s: u64) -> usize {
        self.tokens.iter().filter(|token| token.expires_s > now_s).count()
    }

    /// Enrols a key; one that was thrown out is let in again, at its old place.
    pub fn allow(&mut self, name: &str, peer: PeerId, now_s: u64) -> Result<(), AllowListError> {
        check_name(name)?;
        let key = peer.to_hex();
        let taken = self.peers.iter().find(|entry| !entry.revoked && (entry.name == name || entry.key == key));
        if let Some(entry) = taken {
            let what = if entry.key == key { format!("key {peer}") } else { format!("the name {name}") };
            return Err(AllowListError::Taken { what, name: entry.name.clone() });
        }
        // An invitation under that name is answered by this.
        self.tokens.retain(|token| token.name != name);
        match self.peers.iter_mut().find(|entry| entry.key == key) {
            Some(entry) => (entry.revoked, entry.name) = (false, name.into()),
            None => self.peers.push(Entry { name: name.into(), key, added_s: now_s, revoked: false }),
        }
        Ok(())
    }

    /// Throws out the peer of this name or key. Returns the key.
    pub fn revoke(&mut self, who: &str) -> Result<String, AllowListError> {
        let key = who.parse::<PeerId>().map(|peer| peer.to_hex());
        let is_meant = |entry: &Entry| entry.name == who || key.as_ref().is_ok_and(|key| *key == entry.key);
        let entry = self.peers.iter_mut().find(|entry| !entry.revoked && is_meant(entry));
        let entry = entry.ok_or_else(|| AllowListError::Unknown { who: who.into() })?;
        entry.revoked = true;
        Ok(entry.key.clone())
    }

    /// Adds a token; it takes the place of an older one for the same name.
    pub fn add_token(&mut self, name: &str, token: &str, now_s: u64, life: Duration) -> Result<(), AllowListError> {
        check_name(name)?;
        if let Some(entry) = self.peers.iter().find(|entry| !entry.revoked && entry.name == name) {
            return Err(AllowListError::Taken { what: format!("the name {name}"), name: entry.name.clone() });
        }
        self.tokens.retain(|old| old.expires_s > now_s && old.name != name);
        self.tokens.push(Token { name: name.into(), hash: hash(token), expires_s: now_s.saturating_add(life.as_secs()) });
        Ok(())
    }

    /// Spends a token on a key that is not in the list. False where that cannot be.
    pub fn redeem(&mut self, token: &str, peer: PeerId, now_s: u64) -> bool {
        if self.judge(&peer, Some(token), now_s) != Verdict::WithToken {
            return false;
        }
        let Some(place) = self.find_token(token, now_s) else { return false };
        let token = self.tokens.remove(place);
        self.allow(&token.name, peer, now_s).is_ok()
    }

    /// What the list says of a peer, and of the token that it brings.
    pub fn judge(&self, peer: &PeerId, token: Option<&str>, now_s: u64) -> Verdict {
        match (self.position(peer).map(|place| &self.peers[place]), token) {
            (Some(entry), _) if entry.revoked => Verdict::Revoked,
            (Some(_), _) => Verdict::Enrolled,
            (None, None) => Verdict::Unknown,
            (None, Some(token)) if self.find_token(token, now_s).is_some() => Verdict::WithToken,
            (None, Some(_)) => Verdict::BadToken,
        }
    }

    /// A peer's place in the order of enrolment.
    pub fn position(&self, peer: &PeerId) -> Option<usize> {
        let key = peer.to_hex();
        self.peers.iter().position(|entry| entry.key == key)
    }

    fn find_token(&self, token: &str, now_s: u64) -> Option<usize> {
        let hash = hash(token);
        self.tokens.iter().position(|known| known.hash == hash && known.expires_s > now_s)
    }
}

fn check_name(name: &str) -> Result<(), AllowListError> {
    let is_long = name.trim().is_empty() || name.chars().count() > NAME_CHARS_MAX;
    if is_long || name.chars().any(char::is_control) || name.parse::<PeerId>().is_ok() {
        return Err(AllowListError::Name { name: name.chars().take(NAME_CHARS_MAX).collect() });
    }
    Ok(())
}

fn hash(token: &str) -> String {
    // Tokens are 160 random bits: a plain hash keeps them, no slow one is needed.
    blake3::hash(token.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: PeerId = PeerId([1; 32]);
    const BOB: PeerId = PeerId([2; 32]);
    const HOUR: Duration = Duration::from_secs(3600);

    fn with_alice() -> List {
        let mut list = List::default();
        list.allow("alice", ALICE, 7).expect("nobody is there yet");
        list
    }

    /// Goal: a name is one key's and a key has one name. Method: both taken, then free again.
    #[test]
    fn names_and_keys_are_enrolled_once() {
        let mut list = with_alice();
        assert!(matches!(list.allow("alice", BOB, 8), Err(AllowListError::Taken { .. })));
        assert!(matches!(list.allow("al", ALICE, 8), Err(AllowListError::Taken { .. })));
        list.allow("bob", BOB, 8).expect("another name and key");
        assert_eq!(list.revoke("alice").expect("she is there"), ALICE.to_hex());
        list.allow("alicia", ALICE, 9).expect("a thrown-out key may come back");
        assert_eq!(list.position(&ALICE), Some(0), "and keeps its place");
        assert_eq!(list.position(&BOB), Some(1));
    }

    /// Goal: revoking works by name and by key in any case of letter, once. Method: each.
    #[test]
    fn revoking_takes_a_name_or_a_key() {
        for who in ["alice", &ALICE.to_hex(), &PeerId([0xab; 32]).to_hex().to_uppercase()] {
            let mut list = with_alice();
            list.allow("ab", PeerId([0xab; 32]), 7).expect("free");
            list.revoke(who).expect("it is there");
            assert!(matches!(list.revoke(who), Err(AllowListError::Unknown { .. })), "{who} is out already");
        }
    }

    /// Goal: a token enrols one key, once, in time. Method: use, use again, wait too long.
    #[test]
    fn a_token_is_spent_once() {
        let mut list = List::default();
        list.add_token("bob", "secret", 100, HOUR).expect("free");
        assert_eq!(list.judge(&BOB, Some("secret"), 3699), Verdict::WithToken);
        assert_eq!(list.judge(&BOB, Some("secret"), 3700), Verdict::BadToken, "an hour is over");
        assert_eq!(list.judge(&BOB, Some("guess"), 100), Verdict::BadToken);
        assert!(!list.redeem("guess", BOB, 100));
        assert!(list.redeem("secret", BOB, 100));
        assert_eq!(list.judge(&BOB, None, 100), Verdict::Enrolled);
        assert!(!list.redeem("secret", ALICE, 100), "spent");
        assert_eq!(list.judge(&ALICE, Some("secret"), 100), Verdict::BadToken);
    }

    /// Goal: who was thrown out does not come back by an invitation. Method: a good token in a revoked hand.
    #[test]
    fn a_token_does_not_bring_back_a_revoked_key() {
        let mut list = with_alice();
        list.revoke("alice").expect("she is there");
        list.add_token("anyone", "secret", 0, HOUR).expect("free");
        assert_eq!(list.judge(&ALICE, Some("secret"), 1), Verdict::Revoked);
        assert!(!list.redeem("secret", ALICE, 1));
        assert_eq!(list.tokens(1), 1, "the token is for somebody else still");
    }

    /// Goal: one invitation a name. Method: a second token, then the key itself.
    #[test]
    fn the_last_invitation_counts() {
        let mut list = List::default();
        list.add_token("bob", "first", 0, HOUR).expect("free");
        list.add_token("bob", "second", 0, HOUR).expect("free");
        assert_eq!(list.judge(&BOB, Some("first"), 1), Verdict::BadToken);
        list.allow("bob", BOB, 1).expect("free");
        assert_eq!(list.judge(&ALICE, Some("second"), 1), Verdict::BadToken);
        assert!(matches!(list.add_token("bob", "third", 2, HOUR), Err(AllowListError::Taken { .. })));
    }

    /// Goal: no name hides a key or breaks a terminal. Method: the bad ones.
    #[test]
    fn names_are_checked() {
        for name in ["", "  ", "a\u{1b}[2J", &"x".repeat(NAME_CHARS_MAX + 1), &ALICE.to_hex()] {
            assert!(matches!(List::default().allow(name, BOB, 0), Err(AllowListError::Name { .. })), "{name:?}");
            assert!(matches!(List::default().add_token(name, "t", 0, HOUR), Err(AllowListError::Name { .. })), "{name:?}");
        }
    }

    /// Goal: files of any hand are read or refused. Method: through bytes; a bad key, a key twice, a stray field.
    #[test]
    fn files_are_checked() {
        let mut list = with_alice();
        list.add_token("bob", "secret", 0, HOUR).expect("free");
        assert_eq!(List::parse(&list.to_bytes()), Ok(list.clone()));
        let text = String::from_utf8(list.to_bytes()).expect("JSON is text");
        assert!(!text.contains("secret"), "tokens are not kept");
        let key = ALICE.to_hex();
        assert!(List::parse(text.replace(&key, &key[1..]).as_bytes()).expect_err("63 digits").contains("alice"));
        assert!(List::parse(text.replace("added_s", "added").as_bytes()).is_err());
        list.peers.push(list.peers[0].clone());
        assert!(List::parse(&list.to_bytes()).expect_err("a key twice").contains("twice"));
    }
}

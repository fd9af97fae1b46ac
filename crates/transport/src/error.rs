//! Why a link cannot be had, or ended: sentences for the person who must mend it.

use crate::tls::alert;
use cutlayer_wire::{AdapterFrameError, CodecError, FrameError, PeerId, RecordError};
use quinn::{ConnectionError, TransportErrorCode, VarInt};
use std::net::SocketAddr;

/// Longest reason of a peer that is shown, in characters: more would be a flood, not a reason.
const REASON_CHARS_MAX: usize = 1000;

/// Codes by which a side of ours closes a connection.
pub(crate) mod close {
    use super::VarInt;

    /// For the reason given.
    pub const REASON: VarInt = VarInt::from_u32(0);
    /// The key was thrown out while it was in.
    pub const REVOKED: VarInt = VarInt::from_u32(1);
    /// The token was spent by another key at the same moment.
    pub const BAD_TOKEN: VarInt = VarInt::from_u32(2);
    /// The same key connected again.
    pub const REPLACED: VarInt = VarInt::from_u32(3);
    /// This connection is given up, its peer is not.
    pub const BROKEN: VarInt = VarInt::from_u32(4);
    /// Of a stream, not of a connection: its session was given up.
    pub const CANCELLED: VarInt = VarInt::from_u32(5);
}

/// A link that could not be set up, or is lost.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Another program has the port.
    #[error("{addr} is in use: another program listens there; stop it, or listen at another port (port 0 picks a free one)")]
    AddressInUse {
        /// The address.
        addr: SocketAddr,
    },
    /// The address cannot be bound.
    #[error("cannot open a UDP socket at {addr}: {reason}; choose an address of this machine, or 0.0.0.0 for all of them")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// Why.
        reason: String,
    },
    /// TLS could not be set up.
    #[error("TLS could not be set up: {reason}; make a new key with `cutlayer keys new`, and if that does not help, report it")]
    Tls {
        /// Why.
        reason: String,
    },
    /// Nobody answered.
    #[error(
        "nothing answers at {addr} within {seconds} s: check that the server runs, the address, and that UDP passes the firewalls between"
    )]
    Unreachable {
        /// The address.
        addr: SocketAddr,
        /// How long it was tried.
        seconds: f64,
    },
    /// The address cannot be gone to.
    #[error("cannot connect to {addr}: {reason}; give the address that the server prints at its start")]
    Address {
        /// The address.
        addr: SocketAddr,
        /// Why.
        reason: String,
    },
    /// Another server than the one pinned.
    #[error("the server at {addr} has key {}, not {}: use the server id that it prints at its start, and if that is what you did, somebody is in between", found.to_hex(), expected.to_hex())]
    WrongServer {
        /// The address.
        addr: SocketAddr,
        /// Its key.
        found: PeerId,
        /// The key pinned.
        expected: PeerId,
    },
    /// The server does not know this key.
    #[error("the server at {addr} does not know this key {key}: ask its operator to run `cutlayer keys enrol NAME --key {}` or to give you a token", key.to_hex())]
    NotEnrolled {
        /// The server.
        addr: SocketAddr,
        /// Our key.
        key: PeerId,
    },
    /// The server threw this key out.
    #[error("the server at {addr} has revoked this key {key}: ask its operator why, or to enrol it again")]
    Revoked {
        /// The server.
        addr: SocketAddr,
        /// Our key.
        key: PeerId,
    },
    /// Another connection of this key took our place.
    #[error("another process connected to {addr} with this key {key} and took this one's place: give every client a key of its own")]
    Replaced {
        /// The server.
        addr: SocketAddr,
        /// Our key.
        key: PeerId,
    },
    /// The token is no good.
    #[error(
        "the server at {addr} does not take this token: it was used before, is too old, or was never issued; ask its operator for a new one"
    )]
    BadToken {
        /// The server.
        addr: SocketAddr,
    },
    /// The server has as many connections as it takes.
    #[error("the server at {addr} takes no more connections now: try again later")]
    Full {
        /// The server.
        addr: SocketAddr,
    },
    /// A server's own words on a peer that it did not let in.
    #[error("{addr} was not let in: {reason}")]
    Refused {
        /// The peer's address.
        addr: SocketAddr,
        /// Its key, where it showed one.
        key: Option<PeerId>,
        /// Why, and what lets it in.
        reason: String,
    },
    /// The peer speaks something else.
    #[error("{addr} speaks another protocol, or another version of ours: update the older of the two")]
    Protocol {
        /// The address.
        addr: SocketAddr,
    },
    /// The peer left, in its own words.
    #[error("{addr} closed the connection: {reason}")]
    Closed {
        /// The peer.
        addr: SocketAddr,
        /// Its reason.
        reason: String,
    },
    /// The connection went silent or broke.
    #[error("the connection to {addr} is lost while {during}: {reason}")]
    Lost {
        /// The peer.
        addr: SocketAddr,
        /// What was going on.
        during: &'static str,
        /// What broke.
        reason: String,
    },
    /// The peer is there but does not do its part.
    #[error("{addr} kept us waiting for more than {seconds} s while {during}: it hangs, or needs more time than it is given")]
    TimedOut {
        /// The peer.
        addr: SocketAddr,
        /// What was going on.
        during: &'static str,
        /// How long it was waited for.
        seconds: f64,
    },
    /// A stream ended in the middle.
    #[error("{addr} ended its stream after {found} of {expected} B while {during}: it failed or was stopped; its own log says why")]
    Truncated {
        /// The peer.
        addr: SocketAddr,
        /// What was going on.
        during: &'static str,
        /// Bytes read.
        found: usize,
        /// Bytes promised.
        expected: usize,
    },
    /// More came than was promised.
    #[error("{addr} went on after the end of what it sent while {during}: update the older of the two")]
    Overlong {
        /// The peer.
        addr: SocketAddr,
        /// What was going on.
        during: &'static str,
    },
    /// The peer gave one session up; the connection lives.
    #[error("{addr} gave the session up while {during}: open it again if it is still wanted")]
    Cancelled {
        /// The peer.
        addr: SocketAddr,
        /// What was going on.
        during: &'static str,
    },
    /// A session's record out of bounds.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A step frame out of bounds.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// An adapter out of bounds.
    #[error(transparent)]
    Adapter(#[from] AdapterFrameError),
    /// A control message that is none.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl LinkError {
    /// Whether the way to the peer is lost, or the peer itself, and both may come back: connecting again can help. An ending that the
    /// peer chose, and anything that it did wrong, is none.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::TimedOut { .. } | Self::Unreachable { .. } | Self::Truncated { .. } | Self::Full { .. })
    }
}

/// Where an error happened: what its sentence needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub addr: SocketAddr,
    /// Our own key.
    pub own: PeerId,
}

impl Place {
    /// A connection's error, in words.
    pub fn error(&self, error: ConnectionError, during: &'static str) -> LinkError {
        let Self { addr, own: key } = *self;
        let lost = |reason: String| LinkError::Lost { addr, during, reason };
        match error {
            ConnectionError::TimedOut => lost("nothing was heard for too long; the peer or the network is down".into()),
            ConnectionError::ApplicationClosed(closed) => match closed.error_code {
                close::REVOKED => LinkError::Revoked { addr, key },
                close::BAD_TOKEN => LinkError::BadToken { addr },
                close::BROKEN => lost(readable(&closed.reason)),
                close::REPLACED => LinkError::Replaced { addr, key },
                _ => LinkError::Closed { addr, reason: readable(&closed.reason) },
            },
            ConnectionError::ConnectionClosed(closed) => match crypto_alert(closed.error_code.into()) {
                Some(alert::REVOKED) => LinkError::Revoked { addr, key },
                Some(alert::BAD_TOKEN) => LinkError::BadToken { addr },
                Some(alert::UNKNOWN | alert::ABSENT) => LinkError::NotEnrolled { addr, key },
                Some(alert::APPLICATION | alert::VERSION) => LinkError::Protocol { addr },
                None if closed.error_code == TransportErrorCode::CONNECTION_REFUSED => LinkError::Full { addr },
                _ => lost(format!("the peer broke it off: {}", readable(closed.to_string().as_bytes()))),
            },
            ConnectionError::VersionMismatch => LinkError::Protocol { addr },
            ConnectionError::LocallyClosed => lost("this side closed it".into()),
            ConnectionError::Reset => lost("the peer has forgotten it, as after a restart; connect again".into()),
            ConnectionError::TransportError(error) => lost(format!("the peer broke QUIC's rules: {error}")),
            other => lost(other.to_string()),
        }
    }
}

/// A peer's reason, as far as it can be shown: it goes to terminals and logs.
fn readable(reason: &[u8]) -> String {
    let text = String::from_utf8_lossy(reason);
    let shown: String = text.chars().filter(|letter| !letter.is_control()).take(REASON_CHARS_MAX).collect();
    if shown.trim().is_empty() { "it gave no reason".into() } else { shown }
}

/// The TLS alert in a QUIC error code: 0x100 to 0x1ff (RFC 9001, section 4.8).
fn crypto_alert(code: u64) -> Option<u8> {
    (0x100..0x200).contains(&code).then_some((code & 0xff) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a peer's words cannot reach beyond their line. Method: an escape sequence, a flood, silence.
    #[test]
    fn reasons_are_made_readable() {
        assert_eq!(readable(b"bye\x1b[2J\nroot# \xff"), "bye[2Jroot# \u{fffd}");
        assert_eq!(readable(&[b'x'; 5000]).len(), REASON_CHARS_MAX);
        assert_eq!(readable(b" \n"), "it gave no reason");
    }

    /// Goal: only TLS alerts are read as such. Method: the ends of their range.
    #[test]
    fn alerts_are_told_from_other_codes() {
        assert_eq!(crypto_alert(0x100 + 44), Some(alert::REVOKED));
        assert_eq!((crypto_alert(0xff), crypto_alert(0x200)), (None, None));
    }
}

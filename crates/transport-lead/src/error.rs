//! Why a link cannot be had, or ended: sentences for the person who must mend it.

use crate::tls::{WRONG_SERVER, alert};
use cutlayer_wire::{AdapterFrameError, CodecError, FrameError, PeerId};
use quinn::ConnectionError;
use std::net::SocketAddr;

/// A link that could not be set up, or is lost.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Another program has the port.
    #[error("{addr} is in use: another program listens there; stop it, or listen at another port")]
    AddressInUse {
        /// The address.
        addr: SocketAddr,
    },
    /// The address cannot be bound.
    #[error("cannot listen at {addr}: {reason}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// Why.
        reason: String,
    },
    /// TLS could not be set up.
    #[error("TLS could not be set up: {reason}")]
    Tls {
        /// Why.
        reason: String,
    },
    /// Nobody answered.
    #[error("nothing answers at {addr} within {seconds} s: check that the server runs, the address, and that UDP passes the firewalls between")]
    Unreachable {
        /// The address.
        addr: SocketAddr,
        /// How long it was tried.
        seconds: u64,
    },
    /// Another server than the one pinned.
    #[error("the server at {addr} has key {found}, not {expected}: use the server id that it prints at its start, and if that is what you did, somebody is in between")]
    WrongServer {
        /// The address.
        addr: SocketAddr,
        /// Its key, 64 hex digits.
        found: String,
        /// The key pinned.
        expected: String,
    },
    /// The server does not know this key.
    #[error("the server at {addr} does not know this key {key}: ask its operator to run `cutlayer keys enrol NAME --key {}`, or for a token", key.to_hex())]
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
    /// The token is no good.
    #[error("the server at {addr} does not take this token: it was used before, is too old, or was never issued; ask its operator for a new one")]
    BadToken {
        /// The server.
        addr: SocketAddr,
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
    /// The peer is there but does not answer.
    #[error("{addr} did not answer within {seconds} s while {during}")]
    TimedOut {
        /// The peer.
        addr: SocketAddr,
        /// What was going on.
        during: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A stream ended in the middle.
    #[error("a stream from {addr} ended after {found} of {expected} B of {what}")]
    Truncated {
        /// The peer.
        addr: SocketAddr,
        /// What was read.
        what: &'static str,
        /// Bytes read.
        found: usize,
        /// Bytes promised.
        expected: usize,
    },
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

/// Where an error happened: what its sentence needs.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub addr: SocketAddr,
    /// Our own key.
    pub own: PeerId,
    /// The server's key, on a client.
    pub pinned: Option<PeerId>,
}

impl Place {
    /// A connection's error, in words.
    pub fn error(&self, error: ConnectionError, during: &'static str) -> LinkError {
        let (addr, key) = (self.addr, self.own);
        let lost = |reason: String| LinkError::Lost { addr, during, reason };
        match error {
            ConnectionError::TimedOut => lost("nothing was heard for too long; the peer or the network is down".into()),
            ConnectionError::ApplicationClosed(close) => {
                LinkError::Closed { addr, reason: String::from_utf8_lossy(&close.reason).into_owned() }
            }
            ConnectionError::ConnectionClosed(close) => match crypto_alert(close.error_code.into()) {
                Some(alert::REVOKED) => LinkError::Revoked { addr, key },
                Some(alert::BAD_TOKEN) => LinkError::BadToken { addr },
                Some(alert::UNKNOWN | alert::ABSENT) => LinkError::NotEnrolled { addr, key },
                Some(alert::APPLICATION) => LinkError::Protocol { addr },
                _ => lost(close.to_string()),
            },
            ConnectionError::TransportError(error) => {
                let text = error.to_string();
                match (text.split_once(WRONG_SERVER), self.pinned) {
                    (Some((_, rest)), Some(pinned)) => {
                        let found = rest.chars().take_while(char::is_ascii_hexdigit).collect();
                        LinkError::WrongServer { addr, found, expected: pinned.to_hex() }
                    }
                    _ => lost(text),
                }
            }
            ConnectionError::VersionMismatch => LinkError::Protocol { addr },
            ConnectionError::LocallyClosed => lost("this side closed it".into()),
            other => lost(other.to_string()),
        }
    }
}

/// The TLS alert in a QUIC error code: 0x100 to 0x1ff (RFC 9001, section 4.8).
fn crypto_alert(code: u64) -> Option<u8> {
    (0x100..0x200).contains(&code).then_some((code & 0xff) as u8)
}

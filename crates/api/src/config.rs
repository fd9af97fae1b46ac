//! What the endpoint allows, and whom. It must never print a key.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// Everything that bounds the endpoint. Memory for requests is at most `bodies_bytes_max`, several times over while they are read.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Who may ask. None: anyone, which only a listener on loopback allows.
    pub keys: Vec<ApiKey>,
    /// Origins whose pages may read answers, as browsers write them (`https://example.org`). None: no page may.
    pub origins: Vec<String>,
    /// Names besides `localhost` that a listener on loopback is called by: those of a proxy before it. Anything else is taken for
    /// a page that had its own name resolve to this machine.
    pub hosts: Vec<String>,
    /// Most open connections. More wait in the operating system's queue.
    pub connections_max: usize,
    /// Longest body.
    pub body_bytes_max: u32,
    /// Bytes of all bodies that are being read or answered. More wait.
    pub bodies_bytes_max: u32,
    /// Requests that are answered at once.
    pub requests_max: usize,
    /// Requests that wait for their turn. More are refused with status 429.
    pub waiting_max: usize,
    /// Longest wait for a request's head, also between the requests of a connection.
    pub head_time_max: Duration,
    /// Longest wait for a body.
    pub body_time_max: Duration,
    /// Longest wait for a client to take what was written.
    pub write_stall_max: Duration,
    /// From a request's head to its last byte.
    pub request_time_max: Duration,
    /// How long requests under way may go on after shutdown.
    pub drain_time_max: Duration,
}

impl ServerConfig {
    /// For one machine: loopback without keys, bodies of 4 MiB, 64 requests at once and 1,024 waiting, ten minutes each.
    pub fn local() -> Self {
        Self {
            keys: vec![],
            origins: vec![],
            hosts: vec![],
            connections_max: 4096,
            body_bytes_max: 4 << 20,
            bodies_bytes_max: 64 << 20,
            requests_max: 64,
            waiting_max: 1024,
            head_time_max: Duration::from_secs(30),
            body_time_max: Duration::from_secs(30),
            write_stall_max: Duration::from_secs(30),
            request_time_max: Duration::from_secs(600),
            drain_time_max: Duration::from_secs(10),
        }
    }

    /// Whether this configuration may serve at that address. [`crate::serve`] asks too; earlier is kinder.
    pub fn check(&self, address: SocketAddr) -> Result<(), ServeError> {
        if self.keys.is_empty() && !address.ip().is_loopback() {
            return Err(ServeError::KeysNeeded { address });
        }
        for (name, value) in [
            ("connections_max", self.connections_max),
            ("requests_max", self.requests_max),
            ("body_bytes_max", self.body_bytes_max as usize),
        ] {
            if value == 0 {
                return Err(ServeError::Zero { name });
            }
        }
        if self.bodies_bytes_max < self.body_bytes_max {
            return Err(ServeError::Bodies { all: self.bodies_bytes_max, one: self.body_bytes_max });
        }
        // A comma or a path would silently match nothing.
        let sane = |origin: &&String| origin.split_once("://").is_some_and(|(_, host)| !host.is_empty() && !host.contains(['/', ',', '*']));
        match self.origins.iter().find(|origin| !sane(origin)) {
            Some(origin) => Err(ServeError::Origin { origin: origin.clone() }),
            None => Ok(()),
        }
    }
}

/// Why there is no endpoint, or no longer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Anyone could use the model.
    #[error("{address} can be reached from other machines, and no key is needed: give at least one key, or listen on 127.0.0.1")]
    KeysNeeded {
        /// Where it would listen.
        address: SocketAddr,
    },
    /// A key that guards nothing.
    #[error("a key is empty or holds a space or a control character: make one with `openssl rand -hex 32`")]
    Key,
    /// A bound that lets nothing through.
    #[error("{name} is 0: nothing could be answered")]
    Zero {
        /// Which.
        name: &'static str,
    },
    /// A body that could never be read.
    #[error("one body may have {one} B and all together {all} B: raise bodies_bytes_max")]
    Bodies {
        /// `bodies_bytes_max`.
        all: u32,
        /// `body_bytes_max`.
        one: u32,
    },
    /// Not what a browser says.
    #[error("{origin:?} is no origin: write it as https://example.org, one each, without path or wildcard")]
    Origin {
        /// The word.
        origin: String,
    },
    /// The operating system.
    #[error("the listener failed: {0}")]
    Listener(#[from] std::io::Error),
}

/// A bearer key, of which only the hash is kept.
#[derive(Clone)]
pub struct ApiKey(blake3::Hash);

impl ApiKey {
    /// Takes a key as clients will send it.
    pub fn new(key: &str) -> Result<Self, ServeError> {
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ServeError::Key);
        }
        Ok(Self(blake3::hash(key.as_bytes())))
    }

    /// In a time that tells nothing of the key: hashes are compared, and [`blake3::Hash`] in constant time.
    pub(crate) fn any_is(keys: &[Self], sent: &str) -> bool {
        let sent = blake3::hash(sent.as_bytes());
        keys.iter().fold(false, |found, key| found | (key.0 == sent))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 80))
    }

    #[test]
    fn other_machines_need_a_key() {
        let anywhere = SocketAddr::from(([0, 0, 0, 0], 80));
        let mut config = ServerConfig::local();
        assert!(config.check(loopback()).is_ok());
        assert!(matches!(config.check(anywhere), Err(ServeError::KeysNeeded { .. })));
        config.keys.push(ApiKey::new("secret").unwrap());
        assert!(config.check(anywhere).is_ok());
    }

    #[test]
    fn bounds_that_let_nothing_through_are_refused() {
        let check = |change: fn(&mut ServerConfig)| {
            let mut config = ServerConfig::local();
            change(&mut config);
            config.check(loopback()).unwrap_err().to_string()
        };
        assert!(check(|config| config.requests_max = 0).contains("requests_max"));
        assert!(check(|config| config.bodies_bytes_max = 1).contains("bodies_bytes_max"));
        for origin in ["*", "example.org", "https://example.org/", "https://*", "https://"] {
            let config = ServerConfig { origins: vec![origin.to_owned()], ..ServerConfig::local() };
            assert!(matches!(config.check(loopback()), Err(ServeError::Origin { .. })), "{origin}");
        }
    }

    #[test]
    fn a_key_is_found_among_several_and_never_printed() {
        let keys = ["first", "second"].map(|key| ApiKey::new(key).unwrap());
        assert!(ApiKey::any_is(&keys, "first") && ApiKey::any_is(&keys, "second"));
        for wrong in ["", "firs", "first ", "firstsecond"] {
            assert!(!ApiKey::any_is(&keys, wrong), "{wrong}");
        }
        assert_eq!(format!("{:?}", keys[0]), "ApiKey(..)");
        assert!(ApiKey::new("").is_err() && ApiKey::new("two words").is_err());
    }
}

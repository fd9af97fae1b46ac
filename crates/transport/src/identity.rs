//! Who a node is: an ed25519 key pair, and the self-signed certificate that carries it through TLS.
//!
//! The private key must never leave its file but into TLS: nothing here prints or returns it.

use cutlayer_wire::PeerId;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ED25519, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The key's file in an identity folder.
const KEY_FILE: &str = "identity.pem";
/// Certificates name no host: keys are pinned, names are not looked at.
pub(crate) const CERTIFICATE_NAME: &str = "cutlayer";

/// An identity that cannot be made, read or saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// No key there.
    #[error("no identity in {}; make one with `cutlayer keys new {}`", folder.display(), folder.display())]
    Absent {
        /// The folder.
        folder: PathBuf,
    },
    /// A key is there already.
    #[error("{} holds an identity already; choose another folder, or move that one away", folder.display())]
    Present {
        /// The folder.
        folder: PathBuf,
    },
    /// Not an ed25519 key.
    #[error("{} is no ed25519 key: {reason}; restore it from a backup, or make a new one and enrol it", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file system.
    #[error("{}: {source}; give --keys a folder that you can read and write", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The certificate could not be made.
    #[error("the certificate could not be made: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// A node's key pair.
pub struct Identity {
    key: KeyPair,
    peer: PeerId,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Identity({})", self.peer)
    }
}

impl Identity {
    /// A fresh key pair.
    pub fn generate() -> Result<Self, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        Ok(Self { peer: public_key(&key), key })
    }

    /// Reads the key pair in `folder`.
    pub fn load(folder: &Path) -> Result<Self, IdentityError> {
        let file = folder.join(KEY_FILE);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(IdentityError::Absent { folder: folder.into() }),
            Err(source) => return Err(IdentityError::Io { file, source }),
        };
        let key = KeyPair::from_pem(&text).map_err(|error| IdentityError::Malformed { file: file.clone(), reason: error.to_string() })?;
        if key.algorithm() != &PKCS_ED25519 {
            return Err(IdentityError::Malformed { file, reason: "it is a key of another kind".into() });
        }
        warn_of_readers(&file);
        Ok(Self { peer: public_key(&key), key })
    }

    /// Writes the key pair into `folder`, readable by its owner alone. Never overwrites one.
    pub fn save(&self, folder: &Path) -> Result<(), IdentityError> {
        let file = folder.join(KEY_FILE);
        let failed = |source| IdentityError::Io { file: file.clone(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        match options.open(&file) {
            Ok(mut out) => out.write_all(self.key.serialize_pem().as_bytes()).and_then(|()| out.sync_all()).map_err(|source| {
                // Half a key would stand in the way of the next try; if it cannot be removed either, the error says where it is.
                let _ = fs::remove_file(&file);
                failed(source)
            }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(IdentityError::Present { folder: folder.into() }),
            Err(source) => Err(failed(source)),
        }
    }

    /// The public key: who this is.
    pub fn peer_id(&self) -> PeerId {
        self.peer
    }

    /// A key for something else, which only who holds this one can make: the same for the same context, from which nothing is learnt of this
    /// key or of that of another context (BLAKE3's `derive_key`).
    ///
    /// `context` is a constant of the program that no other use has, such as "cutlayer 2026-11 prefix digests".
    pub fn derive(&self, context: &str) -> [u8; 32] {
        blake3::derive_key(context, self.secret())
    }

    /// Bytes that only who holds the key has.
    pub(crate) fn secret(&self) -> &[u8] {
        self.key.serialized_der()
    }

    /// Certificate and key for one connection. A token, where there is one, rides in a name of the certificate: TLS 1.3
    /// encrypts a client's certificate, and sends it only after the server has proved the key that the client pinned. So
    /// nobody but that server reads the token, before any application byte, and the list need hold no more than its hash.
    pub(crate) fn credentials(&self, token: Option<&str>) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), IdentityError> {
        let mut names = vec![CERTIFICATE_NAME.to_string()];
        names.extend(token.map(|token| format!("{}{token}", crate::tls::TOKEN_PREFIX)));
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, CERTIFICATE_NAME);
        let certificate = params.self_signed(&self.key)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        Ok((certificate.der().clone(), key))
    }
}

/// A copied key keeps working, but its owner should know who else can read it.
fn warn_of_readers(file: &Path) {
    #[cfg(unix)]
    if let Ok(data) = fs::metadata(file)
        && std::os::unix::fs::PermissionsExt::mode(&data.permissions()) & 0o077 != 0
    {
        tracing::warn!("{} can be read by other users of this machine: chmod 600 {0}", file.display());
    }
    #[cfg(not(unix))]
    let _ = file;
}

fn public_key(key: &KeyPair) -> PeerId {
    PeerId(key.der_bytes().try_into().expect("an ed25519 public key is 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an identity lasts. Method: save, load, compare; a second key does not take its place.
    #[test]
    fn an_identity_survives_its_folder() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path().join("keys/alice");
        assert!(matches!(Identity::load(&folder), Err(IdentityError::Absent { .. })));
        let alice = Identity::generate().expect("randomness");
        alice.save(&folder).expect("writable");
        assert_eq!(Identity::load(&folder).expect("saved").peer_id(), alice.peer_id());
        let other = Identity::generate().expect("randomness");
        assert_ne!(other.peer_id(), alice.peer_id());
        assert!(matches!(other.save(&folder), Err(IdentityError::Present { .. })));
        assert_eq!(Identity::load(&folder).expect("still there").peer_id(), alice.peer_id());
    }

    /// Goal: the key is its owner's alone. Method: the mode of the file; what Debug prints.
    #[cfg(unix)]
    #[test]
    fn the_private_key_stays_private() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let alice = Identity::generate().expect("randomness");
        alice.save(folder.path()).expect("writable");
        let data = fs::metadata(folder.path().join(KEY_FILE)).expect("it is there");
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&data.permissions()) & 0o777, 0o600);
        assert_eq!(format!("{alice:?}"), format!("Identity({})", alice.peer_id()));
    }

    /// Goal: a derived key lasts as long as the key, and says nothing of others. Method: derive before and after saving, for two
    /// contexts and for two keys.
    #[test]
    fn derived_keys_last_and_differ() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let alice = Identity::generate().expect("randomness");
        alice.save(folder.path()).expect("writable");
        let derived = alice.derive("cutlayer test a");
        assert_eq!(Identity::load(folder.path()).expect("saved").derive("cutlayer test a"), derived);
        assert_ne!(alice.derive("cutlayer test b"), derived);
        assert_ne!(Identity::generate().expect("randomness").derive("cutlayer test a"), derived);
        assert!(!alice.secret().windows(32).any(|bytes| bytes == derived));
    }

    /// Goal: another kind of key, or none, is named as such. Method: a P-256 key and noise.
    #[test]
    fn other_keys_are_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let p256 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("randomness").serialize_pem();
        for text in [p256.as_str(), "", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            fs::write(folder.path().join(KEY_FILE), text).expect("writable");
            let error = Identity::load(folder.path()).expect_err("no ed25519 key");
            assert!(matches!(error, IdentityError::Malformed { .. }), "{error}");
            assert!(error.to_string().contains(KEY_FILE), "{error}");
        }
    }
}

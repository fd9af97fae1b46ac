//! Who a node is: an ed25519 key pair, and the self-signed certificate that carries it through TLS.

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
    #[error("{}: {source}", file.display())]
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
            Ok(mut out) => out.write_all(self.key.serialize_pem().as_bytes()).and_then(|()| out.sync_all()).map_err(failed),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(IdentityError::Present { folder: folder.into() }),
            Err(source) => Err(failed(source)),
        }
    }

    /// The public key: who this is.
    pub fn peer_id(&self) -> PeerId {
        self.peer
    }

    /// Certificate and key for one connection. A token, where there is one, rides in a name of the certificate: TLS 1.3
    /// encrypts it to the server whose key the client has pinned.
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

fn public_key(key: &KeyPair) -> PeerId {
    PeerId(key.der_bytes().try_into().expect("an ed25519 public key is 32 bytes"))
}

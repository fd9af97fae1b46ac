//! TLS 1.3 with keys instead of authorities: each side proves its ed25519 key, and the other knows whether it wants that key.
//!
//! This must never let a byte of the application pass before both have agreed: no resumption, no early data, no TLS 1.2.

use crate::allow_list::{AllowList, Verdict};
use crate::error::LinkError;
use crate::identity::Identity;
use cutlayer_wire::PeerId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::{cipher_suite, default_provider};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use std::sync::{Arc, OnceLock};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What runs inside the connection; another version would be another name.
const APPLICATION: &[u8] = b"cutlayer/1";
/// A certificate name that starts so ends in a token.
pub(crate) const TOKEN_PREFIX: &str = "enrol-";
/// The algorithm of an ed25519 key in a certificate (RFC 8410).
const ED25519_OID: &str = "1.3.101.112";

/// TLS alerts by which a server says why it will not have a client (RFC 8446, section 6).
pub(crate) mod alert {
    /// certificate_revoked: the key was thrown out.
    pub const REVOKED: u8 = 44;
    /// certificate_expired: the token was used, is too old, or never was.
    pub const BAD_TOKEN: u8 = 45;
    /// unknown_ca: the key was never enrolled.
    pub const UNKNOWN: u8 = 48;
    /// protocol_version: no TLS 1.3 there.
    pub const VERSION: u8 = 70;
    /// certificate_required: no certificate at all.
    pub const ABSENT: u8 = 116;
    /// no_application_protocol: not a cutlayer peer, or one of another version.
    pub const APPLICATION: u8 = 120;
}

/// The key of a certificate, and the token in its names. Whether the peer holds the key is for its signature to prove.
pub(crate) fn read_certificate(der: &CertificateDer) -> Option<(PeerId, Option<String>)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let info = certificate.public_key();
    if info.algorithm.algorithm.to_id_string() != ED25519_OID {
        return None;
    }
    let key: [u8; 32] = info.subject_public_key.data.as_ref().try_into().ok()?;
    let names = certificate.subject_alternative_name().ok()?.map(|extension| &extension.value.general_names);
    let token = names.into_iter().flatten().find_map(|name| match name {
        GeneralName::DNSName(name) => name.strip_prefix(TOKEN_PREFIX).map(str::to_owned),
        _ => None,
    });
    Some((PeerId(key), token))
}

fn provider() -> Arc<CryptoProvider> {
    let suites = vec![
        // First, for the client's order decides: a step is megabytes, and AES-256 costs 14 rounds a block in place of 10.
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(CryptoProvider { cipher_suites: suites, ..default_provider() })
}

fn failed(error: impl std::fmt::Display) -> LinkError {
    LinkError::Tls { reason: error.to_string() }
}

/// Where a client's verifier leaves the key that it found in place of the one pinned.
pub(crate) type FoundServer = Arc<OnceLock<PeerId>>;

/// The client's side: `server` and nobody else.
pub(crate) fn client_config(
    identity: &Identity,
    server: PeerId,
    token: Option<&str>,
    found: FoundServer,
) -> Result<quinn::ClientConfig, LinkError> {
    let (certificate, key) = identity.credentials(token).map_err(failed)?;
    let provider = provider();
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { server, found, provider }))
        .with_client_auth_cert(vec![certificate], key)
        .map_err(failed)?;
    config.alpn_protocols = vec![APPLICATION.to_vec()];
    // No resumption, no early data: a replayed step would be a step applied twice.
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    let quic = QuicClientConfig::try_from(config).map_err(failed)?;
    Ok(quinn::ClientConfig::new(Arc::new(quic)))
}

/// What a server's verifier thought of one client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judged {
    pub peer: PeerId,
    pub verdict: Verdict,
}

/// Where a server's verifier leaves what it thought of the client of one connection.
pub(crate) type Judgement = Arc<OnceLock<Judged>>;

/// The server's side: those on the list.
pub(crate) struct ServerTls {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    allow: Arc<AllowList>,
    provider: Arc<CryptoProvider>,
}

impl ServerTls {
    pub fn new(identity: &Identity, allow: Arc<AllowList>) -> Result<Self, LinkError> {
        let (certificate, key) = identity.credentials(None).map_err(failed)?;
        Ok(Self { certificate, key, allow, provider: provider() })
    }

    /// TLS for one connection, which leaves in `judgement` why its client was refused: rustls' own error does not name the key.
    pub fn config(&self, judgement: Judgement) -> Result<Arc<QuicServerConfig>, LinkError> {
        let listed = Listed { allow: self.allow.clone(), judgement, provider: self.provider.clone() };
        let mut config = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?
            .with_client_cert_verifier(Arc::new(listed))
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())
            .map_err(failed)?;
        config.alpn_protocols = vec![APPLICATION.to_vec()];
        config.max_early_data_size = 0;
        config.send_tls13_tickets = 0;
        Ok(Arc::new(QuicServerConfig::try_from(config).map_err(failed)?))
    }
}

/// Believes one key.
#[derive(Debug)]
struct Pinned {
    server: PeerId,
    found: FoundServer,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer,
        _: &[CertificateDer],
        _: &ServerName,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some((found, _)) = read_certificate(certificate) else {
            return Err(CertificateError::BadEncoding.into());
        };
        if found == self.server {
            return Ok(ServerCertVerified::assertion());
        }
        // A verifier serves one handshake, in which a server shows one certificate.
        let _ = self.found.set(found);
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Believes those on a list, and those with a token of it.
#[derive(Debug)]
struct Listed {
    allow: Arc<AllowList>,
    judgement: Judgement,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for Listed {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(&self, certificate: &CertificateDer, _: &[CertificateDer], _: UnixTime) -> Result<ClientCertVerified, Error> {
        let Some((peer, token)) = read_certificate(certificate) else {
            return Err(CertificateError::BadEncoding.into());
        };
        let verdict = self.allow.judge(&peer, token.as_deref());
        // A verifier serves one handshake, in which a client shows one certificate.
        let _ = self.judgement.set(Judged { peer, verdict });
        // rustls turns each of these into the alert of `alert` that the client reads.
        match verdict {
            Verdict::Enrolled | Verdict::WithToken => Ok(ClientCertVerified::assertion()),
            Verdict::Revoked => Err(CertificateError::Revoked.into()),
            Verdict::BadToken => Err(CertificateError::Expired.into()),
            Verdict::Unknown => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

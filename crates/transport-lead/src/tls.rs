//! TLS 1.3 with keys instead of authorities: each side proves its ed25519 key, and the other knows whether it wants that key.

use crate::allow_list::{AllowList, Verdict};
use crate::error::LinkError;
use crate::identity::Identity;
use cutlayer_wire::PeerId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What runs inside the connection; another version would be another name.
const APPLICATION: &[u8] = b"cutlayer/1";
/// A certificate name that starts so ends in a token.
pub(crate) const TOKEN_PREFIX: &str = "enrol-";

/// TLS alerts by which a server says why it will not have a client (RFC 8446, section 6).
pub(crate) mod alert {
    /// certificate_revoked: the key was thrown out.
    pub const REVOKED: u8 = 44;
    /// certificate_expired: the token was used, is too old, or never was.
    pub const BAD_TOKEN: u8 = 45;
    /// unknown_ca: the key was never enrolled.
    pub const UNKNOWN: u8 = 48;
    /// certificate_required: no certificate at all.
    pub const ABSENT: u8 = 116;
    /// no_application_protocol: not a cutlayer peer, or one of another version.
    pub const APPLICATION: u8 = 120;
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The key of a certificate, and the token in its names.
pub(crate) fn read_certificate(der: &CertificateDer) -> Option<(PeerId, Option<String>)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let info = certificate.public_key();
    if info.algorithm.algorithm.to_id_string() != "1.3.101.112" {
        return None; // Not ed25519 (RFC 8410).
    }
    let key: [u8; 32] = info.subject_public_key.data.as_ref().try_into().ok()?;
    let names = certificate.subject_alternative_name().ok()??.value.general_names.clone();
    let token = names.into_iter().find_map(|name| match name {
        GeneralName::DNSName(name) => name.strip_prefix(TOKEN_PREFIX).map(str::to_owned),
        _ => None,
    });
    Some((PeerId(key), token))
}

/// The client's side: `server` and nobody else.
pub(crate) fn client_config(identity: &Identity, server: PeerId, token: Option<&str>) -> Result<quinn::ClientConfig, LinkError> {
    let setup = |error: Error| LinkError::Tls { reason: error.to_string() };
    let (certificate, key) = identity.credentials(token).map_err(|error| LinkError::Tls { reason: error.to_string() })?;
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(setup)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { server, provider: provider() }))
        .with_client_auth_cert(vec![certificate], key)
        .map_err(setup)?;
    config.alpn_protocols = vec![APPLICATION.to_vec()];
    // No resumption, no early data: a replayed step would be a step applied twice.
    config.resumption = rustls::client::Resumption::disabled();
    let quic = QuicClientConfig::try_from(config).map_err(|error| LinkError::Tls { reason: error.to_string() })?;
    Ok(quinn::ClientConfig::new(Arc::new(quic)))
}

/// The server's side: those on the list.
pub(crate) fn server_config(identity: &Identity, allow: Arc<AllowList>) -> Result<quinn::ServerConfig, LinkError> {
    let setup = |error: Error| LinkError::Tls { reason: error.to_string() };
    let (certificate, key) = identity.credentials(None).map_err(|error| LinkError::Tls { reason: error.to_string() })?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(setup)?
        .with_client_cert_verifier(Arc::new(Listed { allow, provider: provider() }))
        .with_single_cert(vec![certificate], key)
        .map_err(setup)?;
    config.alpn_protocols = vec![APPLICATION.to_vec()];
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    let quic = QuicServerConfig::try_from(config).map_err(|error| LinkError::Tls { reason: error.to_string() })?;
    Ok(quinn::ServerConfig::with_crypto(Arc::new(quic)))
}

/// Believes one key.
#[derive(Debug)]
struct Pinned {
    server: PeerId,
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
        match read_certificate(certificate) {
            Some((found, _)) if found == self.server => Ok(ServerCertVerified::assertion()),
            Some((found, _)) => Err(Error::General(format!("{WRONG_SERVER}{}", found.to_hex()))),
            None => Err(Error::InvalidCertificate(CertificateError::BadEncoding)),
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

/// How [`Pinned`] tells the key that it found, through rustls' and quinn's errors, to [`LinkError`].
pub(crate) const WRONG_SERVER: &str = "the server's key is ";

/// Believes those on a list.
#[derive(Debug)]
struct Listed {
    allow: Arc<AllowList>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for Listed {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(&self, certificate: &CertificateDer, _: &[CertificateDer], _: UnixTime) -> Result<ClientCertVerified, Error> {
        let Some((peer, token)) = read_certificate(certificate) else {
            return Err(Error::InvalidCertificate(CertificateError::BadEncoding));
        };
        // rustls turns each of these into the alert of `alert` that the client reads.
        match self.allow.judge(&peer, token.as_deref()) {
            Verdict::Enrolled | Verdict::WithToken => Ok(ClientCertVerified::assertion()),
            Verdict::Revoked => Err(Error::InvalidCertificate(CertificateError::Revoked)),
            Verdict::BadToken => Err(Error::InvalidCertificate(CertificateError::Expired)),
            Verdict::Unknown => Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
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

//! Who gets in, who does not, and what both are told.

use super::*;
use crate::tls::{FoundServer, client_config};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};

/// Goal: both sides know each other by their keys. Method: connect; compare.
#[tokio::test(flavor = "multi_thread")]
async fn each_side_knows_the_others_key() {
    let mut house = House::open();
    let client = house.enrol("alice");
    let link = house.call(&client, None).await.expect("it is enrolled");
    let other = soon(house.server.accept()).await.expect("the same connection");
    assert_eq!((link.peer(), other.peer()), (house.id(), client.peer_id()));
    assert_eq!(link.remote_address(), house.addr);
    assert_eq!(house.allow.position(&client.peer_id()), Some(0));
}

/// Goal: a client talks to no server but the one it was told of. Method: pin another key.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_another_key_is_refused() {
    let mut house = House::open();
    let (client, other) = (house.enrol("alice"), identity().peer_id());
    let error = connect(house.addr, &client, other, None, &config()).await.expect_err("the wrong key");
    assert!(matches!(error, LinkError::WrongServer { found, expected, .. } if found == house.id() && expected == other), "{error}");
    let text = error.to_string();
    assert!(text.contains(&house.id().to_hex()) && text.contains(&other.to_hex()) && text.contains("somebody is in between"), "{text}");
    soon(house.server.accept()).await.expect_err("the client broke it off");
}

/// Goal: an unknown key is told how to get in, and the operator how to let it in. Method: call without being enrolled.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_told_how_to_get_in() {
    let mut house = House::open();
    let client = identity();
    let (told, seen) = house.turned_away(&client, None).await;
    assert!(matches!(told, LinkError::NotEnrolled { .. }), "{told}");
    let (key, hex) = (client.peer_id(), client.peer_id().to_hex());
    let expected = format!(
        "the server at {} does not know this key {key}: ask its operator to run `cutlayer keys enrol NAME --key {hex}` or to give you a token",
        house.addr
    );
    assert_eq!(told.to_string(), expected);
    assert!(seen.contains(&format!("`cutlayer keys enrol NAME --key {hex}` lets it in")), "{seen}");
}

/// Goal: enrolling lets a stranger in without a restart. Method: refuse, enrol from another process, call again.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_is_enrolled_gets_in() {
    let mut house = House::open();
    let client = identity();
    house.turned_away(&client, None).await;
    house.operator().allow("alice", client.peer_id()).expect("a free name");
    house.call(&client, None).await.expect("it is enrolled now");
    assert_eq!(soon(house.server.accept()).await.expect("the same connection").peer(), client.peer_id());
}

/// Believes any server: these tests are about what the server believes.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer,
        _: &[CertificateDer],
        _: &ServerName,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(&self, _: &[u8], _: &CertificateDer, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

type Credentials = Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>;

/// Calls with TLS of the test's making; returns how the connection ended.
async fn call_raw(house: &House, credentials: Credentials, application: &[u8]) -> LinkError {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let mut tls = match credentials {
        Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).expect("a certificate and its key"),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![application.to_vec()];
    let quic = QuicClientConfig::try_from(tls).expect("TLS 1.3");
    let endpoint = quinn::Endpoint::client(LOOPBACK).expect("a free port");
    let connecting = endpoint.connect_with(quinn::ClientConfig::new(Arc::new(quic)), house.addr, "cutlayer").expect("an address");
    let error = match soon(connecting).await {
        Ok(connection) => {
            assert!(soon(connection.accept_uni()).await.is_err(), "not a byte of the application may come");
            soon(connection.closed()).await
        }
        Err(error) => error,
    };
    crate::error::Place { addr: house.addr, own: PeerId([0; 32]) }.error(error, "connecting")
}

/// Goal: no certificate, no connection. Method: TLS without client authentication.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_certificate_is_refused() {
    let mut house = House::open();
    let error = call_raw(&house, None, b"cutlayer/1").await;
    assert!(matches!(error, LinkError::NotEnrolled { .. }), "{error}");
    let seen = soon(house.server.accept()).await.expect_err("no certificate");
    assert!(matches!(seen, LinkError::Refused { key: None, .. }), "{seen}");
}

/// Goal: another application, or another version of ours, is told so. Method: an enrolled key, another ALPN.
#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_is_refused() {
    let house = House::open();
    let client = house.enrol("alice");
    let error = call_raw(&house, Some(client.credentials(None).expect("a certificate")), b"cutlayer/2").await;
    assert!(matches!(error, LinkError::Protocol { .. }), "{error}");
}

/// Goal: knowing a key is not having it. Method: an enrolled peer's certificate, signed for by another key.
#[tokio::test(flavor = "multi_thread")]
async fn a_borrowed_certificate_is_refused() {
    let mut house = House::open();
    let (alice, mallory) = (house.enrol("alice"), identity());
    let (certificate, _) = alice.credentials(None).expect("a certificate");
    let (_, key) = mallory.credentials(None).expect("a key");
    let resolver = rustls::sign::CertifiedKey::new(
        vec![certificate],
        rustls::crypto::ring::sign::any_eddsa_type(&match key {
            PrivateKeyDer::Pkcs8(key) => key,
            other => panic!("an ed25519 key is PKCS 8, not {other:?}"),
        })
        .expect("an ed25519 key"),
    );
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(resolver)));
    tls.alpn_protocols = vec![b"cutlayer/1".to_vec()];
    let quic = QuicClientConfig::try_from(tls).expect("TLS 1.3");
    let endpoint = quinn::Endpoint::client(LOOPBACK).expect("a free port");
    let connecting = endpoint.connect_with(quinn::ClientConfig::new(Arc::new(quic)), house.addr, "cutlayer").expect("an address");
    if let Ok(connection) = soon(connecting).await {
        assert!(soon(connection.accept_uni()).await.is_err(), "not a byte of the application may come");
    }
    let seen = soon(house.server.accept()).await.expect_err("a forged signature");
    assert!(matches!(seen, LinkError::Refused { .. }), "{seen}");
}

/// Goal: only ed25519 keys are looked at. Method: a P-256 certificate.
#[tokio::test(flavor = "multi_thread")]
async fn another_kind_of_key_is_refused() {
    let mut house = House::open();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("randomness");
    let params = rcgen::CertificateParams::new(vec!["cutlayer".into()]).expect("a name");
    let certificate = params.self_signed(&key).expect("a certificate").der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    call_raw(&house, Some((certificate, key)), b"cutlayer/1").await;
    let seen = soon(house.server.accept()).await.expect_err("another kind of key");
    assert!(matches!(seen, LinkError::Refused { key: None, .. }), "{seen}");
}

/// Goal: two servers on one port are told apart at once. Method: bind the port that is taken; drop; bind again.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let house = House::open();
    let error = Server::bind(house.addr, &house.identity, house.allow.clone(), &config()).err().expect("the port is taken");
    assert!(matches!(error, LinkError::AddressInUse { .. }));
    assert!(error.to_string().starts_with(&format!("{} is in use: another program listens there; stop it", house.addr)), "{error}");
    let House { server, addr, allow, identity, folder: _folder } = house;
    drop(server);
    for _ in 0..100 {
        if Server::bind(addr, &identity, allow.clone(), &config()).is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("a dropped server keeps its port");
}

/// Goal: an address of another machine is named. Method: one that this machine does not have.
#[tokio::test]
async fn a_foreign_address_is_named() {
    let house = House::open();
    let foreign = SocketAddr::from(([192, 0, 2, 1], 4433));
    let error = Server::bind(foreign, &house.identity, house.allow.clone(), &config()).err().expect("not ours");
    assert!(matches!(error, LinkError::Bind { .. }) && error.to_string().contains("192.0.2.1:4433"), "{error}");
}

/// Goal: where nobody listens, that is said within the handshake's time. Method: a socket that answers nothing.
#[tokio::test(flavor = "multi_thread")]
async fn silence_is_named() {
    let mute = std::net::UdpSocket::bind(LOOPBACK).expect("a free port");
    let addr = mute.local_addr().expect("bound");
    let hasty = LinkConfig { handshake_wait: Duration::from_millis(400), ..config() };
    let error = soon(connect(addr, &identity(), PeerId([1; 32]), None, &hasty)).await.expect_err("nobody is there");
    assert!(matches!(error, LinkError::Unreachable { .. }), "{error}");
    assert!(error.to_string().starts_with(&format!("nothing answers at {addr} within 0.4 s: check that the server runs")), "{error}");
    let error = connect(SocketAddr::from(([127, 0, 0, 1], 0)), &identity(), PeerId([1; 32]), None, &hasty).await.expect_err("port 0");
    assert!(matches!(error, LinkError::Address { .. }), "{error}");
}

/// Goal: a server outlives noise. Method: datagrams of rubbish, then a client.
#[tokio::test(flavor = "multi_thread")]
async fn noise_does_not_stop_a_server() {
    let mut house = House::open();
    let noisy = std::net::UdpSocket::bind(LOOPBACK).expect("a free port");
    for length in 0..400 {
        let noise: Vec<u8> = (0..length * 5).map(|index| (index * 7 + length) as u8 | 0xc0).collect();
        noisy.send_to(&noise, house.addr).expect("loopback takes it");
    }
    let (client, _server) = house.connected().await;
    assert_eq!(client.peer(), house.id());
}

/// Goal: IPv6 works as IPv4 does. Method: ::1, where this machine has it.
#[tokio::test(flavor = "multi_thread")]
async fn ipv6_works() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (here, there) = (identity(), identity());
    let allow = AllowList::open(folder.path()).expect("an empty list");
    allow.allow("six", there.peer_id()).expect("free");
    let six = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0));
    let Ok(mut server) = Server::bind(six, &here, allow.into(), &config()) else {
        eprintln!("SKIPPED: this machine has no IPv6 loopback");
        return;
    };
    let link = connect(server.local_addr(), &there, here.peer_id(), None, &config()).await.expect("it is enrolled");
    assert_eq!(soon(server.accept()).await.expect("the same connection").peer(), there.peer_id());
    assert!(link.remote_address().is_ipv6());
}

/// Goal: a server that ends says so. Method: close it under a client.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_says_so() {
    let mut house = House::open();
    let (client, _server) = house.connected().await;
    soon(house.server.close()).await;
    let error = soon(client.closed()).await;
    assert!(error.to_string().ends_with("closed the connection: the server has ended"), "{error}");
}

/// Goal: many clients at once get in. Method: 100 handshakes together, more than go without a proof of address.
#[tokio::test(flavor = "multi_thread")]
async fn many_clients_call_at_once() {
    let patient = LinkConfig { handshake_wait: SOON, idle_timeout: SOON, ..config() };
    let mut house = House::open_with(&patient);
    let calls: Vec<_> = (0..100)
        .map(|index| {
            let (client, addr, id, patient) = (house.enrol(&format!("client-{index}")), house.addr, house.id(), patient.clone());
            tokio::spawn(async move { connect(addr, &client, id, None, &patient).await })
        })
        .collect();
    let mut links = Vec::new();
    for call in calls {
        links.push(soon(call).await.expect("no panic").expect("it is enrolled"));
        soon(house.server.accept()).await.expect("one of them");
    }
    assert_eq!(links.len(), 100);
}

/// Goal: the client's TLS refuses to be set up for nonsense, not later. Method: a token that no certificate carries.
#[tokio::test]
async fn an_impossible_token_is_refused_at_home() {
    let house = House::open();
    for token in ["", "  ", "käse", "a b", "x\n"] {
        let outcome = house.call(&identity(), Some(token)).await;
        let is_home = !matches!(outcome, Err(LinkError::BadToken { .. })) && token.trim() != "x";
        assert!(!is_home, "{token:?}");
    }
    assert!(client_config(&identity(), house.id(), None, FoundServer::default()).is_ok());
}

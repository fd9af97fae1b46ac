//! The emulator between real sockets on loopback.

use super::super::*;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const SOON: Duration = Duration::from_secs(20);

async fn socket() -> UdpSocket {
    UdpSocket::bind(LOOPBACK).await.expect("a free port")
}

fn emulator(server: &UdpSocket, changes: &Changes) -> Emulator {
    let to = server.local_addr().expect("it is bound");
    let link = changes.apply(Profile::Loopback).expect("a link");
    Emulator::start(LOOPBACK, to, &link, 7).expect("a free port")
}

async fn read(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = vec![0; 2000];
    let (count, from) = tokio::time::timeout(SOON, socket.recv_from(&mut bytes)).await.expect("soon").expect("a datagram");
    bytes.truncate(count);
    (bytes, from)
}

/// Goal: datagrams pass both ways as they are, each client behind an address of its own, and not before their time. Method: two
/// clients, an echo, 30 ms each way.
#[tokio::test]
async fn datagrams_pass_and_take_their_time() {
    let server = socket().await;
    let emulator = emulator(&server, &Changes { delay: Some(Span::ms(30)), ..Changes::default() });
    let mut seen = Vec::new();
    for name in [b"one".as_slice(), b"two"] {
        let (client, started) = (socket().await, Instant::now());
        client.send_to(name, emulator.local_addr()).await.expect("sent");
        let (bytes, from) = read(&server).await;
        assert_eq!(bytes, name);
        server.send_to(&bytes, from).await.expect("sent");
        assert_eq!(read(&client).await, (name.to_vec(), emulator.local_addr()));
        assert!(started.elapsed() >= Duration::from_millis(60), "{:?}", started.elapsed());
        seen.push(from);
    }
    assert_ne!(seen[0], seen[1]);
    let counts = emulator.counts();
    assert_eq!((counts.peers, counts.up.packets_out, counts.down.bytes_out), (2, 2, 6));
    assert_eq!(counts.up.dropped() + counts.down.dropped(), 0);
}

/// Goal: every datagram is counted once. Method: 2,000 through a link that loses, doubles and reorders.
#[tokio::test]
async fn every_datagram_is_accounted_for() {
    let (server, client) = (socket().await, socket().await);
    let lossy = Changes {
        loss: "10%".parse().ok(),
        duplicate: "5%".parse().ok(),
        reorder: "5%".parse().ok(),
        mtu: Some(1500),
        ..Changes::default()
    };
    let emulator = emulator(&server, &lossy);
    let reading = tokio::spawn(async move {
        let mut bytes = [0; 2000];
        let mut came = 0u64;
        while tokio::time::timeout(Duration::from_millis(500), server.recv_from(&mut bytes)).await.is_ok() {
            came += 1;
        }
        came
    });
    for index in 0..2000u32 {
        client.send_to(&[7; 100], emulator.local_addr()).await.expect("sent");
        if index.is_multiple_of(50) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    client.send_to(&[7; 1473], emulator.local_addr()).await.expect("sent");
    let came = reading.await.expect("no panic");
    let up = emulator.counts().up;
    assert_eq!((up.packets_in, up.packets_out, up.dropped_mtu), (2001, came, 1), "{up:?}");
    assert_eq!(up.packets_in + up.duplicated, up.packets_out + up.dropped(), "{up:?}");
    assert!((100..300).contains(&up.lost) && up.duplicated > 40 && up.reordered > 40, "{up:?}");
}

/// Goal: an address change is seen by the server and not by the client. Method: one datagram before it, one after.
#[tokio::test]
async fn an_address_change_is_seen_by_the_server_alone() {
    let (server, client) = (socket().await, socket().await);
    let emulator = emulator(&server, &Changes { rebind: vec![Span::ms(200)], ..Changes::default() });
    client.send_to(b"before", emulator.local_addr()).await.expect("sent");
    let (_, before) = read(&server).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(emulator.counts().rebinds, 1);
    client.send_to(b"after", emulator.local_addr()).await.expect("sent");
    let (bytes, after) = read(&server).await;
    assert!(bytes == b"after" && after != before, "{before} and {after}");
    server.send_to(b"to the old", before).await.expect("sent");
    server.send_to(b"to the new", after).await.expect("sent");
    assert_eq!(read(&client).await, (b"to the new".to_vec(), emulator.local_addr()));
}

/// Goal: strangers are bounded. Method: more addresses than there is room for; those within go on.
#[tokio::test]
async fn more_addresses_than_there_is_room_for_are_dropped() {
    let server = socket().await;
    let emulator = emulator(&server, &Changes::default());
    let mut clients = Vec::new();
    for _ in 0..70 {
        let client = socket().await;
        client.send_to(b"here", emulator.local_addr()).await.expect("sent");
        clients.push(client);
    }
    let started = Instant::now();
    while emulator.counts().up.packets_in < 70 && started.elapsed() < SOON {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let counts = emulator.counts();
    assert_eq!((counts.peers, counts.up.dropped_here), (64, 6), "{counts:?}");
}

/// Goal: nothing stays behind. Method: drop it; its port is free again.
#[tokio::test]
async fn a_dropped_emulator_frees_its_port() {
    let (server, client) = (socket().await, socket().await);
    let emulator = emulator(&server, &Changes::default());
    let addr = emulator.local_addr();
    client.send_to(b"here", addr).await.expect("sent");
    let _ = read(&server).await;
    drop(emulator);
    let started = Instant::now();
    while UdpSocket::bind(addr).await.is_err() {
        assert!(started.elapsed() < SOON, "{addr} is still taken");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

//! QUIC over emulated links: loss, disorder, silence and a new address are survived, and nothing is changed by them.

use super::*;

/// A link for a test, its seed always the same.
fn link(house: &House, changes: &Changes) -> Emulator {
    let conditions = changes.apply(Profile::Loopback).expect("a link");
    Emulator::start(LOOPBACK, house.addr, &conditions, 7).expect("a free port")
}

/// Patience beyond the silences of these tests.
fn patient() -> LinkConfig {
    LinkConfig { idle_timeout: Duration::from_secs(15), step_wait: Duration::from_secs(15), ..config() }
}

/// 20 Mbit/s and a round trip of 20 ms, as Ethernet frames them.
fn narrow() -> Changes {
    Changes { rate: Some(Rate::mbit(20)), delay: Some(Span::ms(10)), queue: Some(Span::ms(50)), mtu: Some(1500), ..Changes::default() }
}

/// Both ends of a connection through an emulated link.
async fn connected(changes: &Changes) -> (House, Emulator, Link, Link) {
    let mut house = House::open_with(&patient());
    let emulator = link(&house, changes);
    let client = house.enrol("client");
    let client = connect(emulator.local_addr(), &client, house.id(), None, &patient()).await.expect("it is enrolled");
    let server = house.server.accept().await.expect("the same connection");
    (house, emulator, client, server)
}

/// Takes one step of `tokens` tokens there and back, as large each way.
async fn step(client: &Link, server: &Link, tokens: u32) {
    let echo = async {
        let mut stream = server.accept_step().await.expect("a step");
        let came = stream.recv(&limits(tokens)).await.expect("a frame");
        let answer = Frame::gradient(&came.header, Encoding::F32, EvalSums::default(), came.payload.clone());
        stream.send(answer).await.expect("the client reads");
        stream.finish().await.expect("the stream is open");
        came
    };
    let ask = async {
        let mut stream = client.open_step().await.expect("a stream");
        stream.send(frame(tokens)).await.expect("the server reads");
        stream.recv(&limits(tokens).answering(&frame(tokens).header)).await.expect("an answer")
    };
    let (came, answer) = soon(async { tokio::join!(echo, ask) }).await;
    assert!(came == frame(tokens), "the step changed on its way up");
    assert!(answer.payload == came.payload, "or on its way down");
}

/// Goal: loss, disorder and copies change nothing. Method: steps both ways over 2 % of each, and an adapter beside them.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_link_changes_nothing() {
    let share = "2%".parse().ok();
    let bad = Changes { loss: share, reorder: share, duplicate: share, jitter: Some(Span::ms(5)), ..narrow() };
    let (_house, emulator, client, server) = connected(&bad).await;
    client.send_adapter(&adapter(ROUND, 50_000)).await.expect("handed over");
    for _ in 0..4 {
        step(&client, &server, 1024).await;
    }
    assert!(soon(server.recv_adapter(&AdapterLimits::WIDEST)).await.expect("an adapter") == adapter(ROUND, 50_000));
    let counts = emulator.counts();
    for lane in [counts.up, counts.down] {
        assert!(lane.lost > 5 && lane.reordered > 5 && lane.duplicated > 5, "{lane:?}");
    }
}

/// Goal: a silence of 3 s in the middle of a step ends nothing. Method: 2 MiB each way at 20 Mbit/s, and a partition after 0.4 s.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_survived() {
    let started = std::time::Instant::now();
    let cut_off = Changes { partition: vec!["3s@400ms".parse().expect("an outage")], ..narrow() };
    let (_house, emulator, client, server) = connected(&cut_off).await;
    step(&client, &server, 8192).await;
    assert!(started.elapsed() > Duration::from_millis(3400), "it was over before the partition");
    let counts = emulator.counts();
    assert!(counts.up.dropped_partition > 0, "{counts:?}");
    step(&client, &server, 1024).await;
}

/// Goal: a client whose address changes stays who it is, and its step goes on. Method: two changes while 2 MiB go up, and while
/// they come down.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_address_is_survived() {
    let moving = Changes { rebind: vec![Span::ms(500), Span::ms(1300)], ..narrow() };
    let (_house, emulator, client, server) = connected(&moving).await;
    let (before, peer) = (server.remote_address(), server.peer());
    step(&client, &server, 8192).await;
    step(&client, &server, 1024).await;
    assert_eq!(emulator.counts().rebinds, 2);
    assert!(server.remote_address() != before && server.peer() == peer, "{before}");
}

/// Goal: a path that takes smaller packets than it did is found out. Method: 1500 bytes fall to 1300 in the middle of a step.
#[tokio::test(flavor = "multi_thread")]
async fn a_falling_mtu_is_survived() {
    let falling = Changes { mtu_drop: vec!["1300@600ms".parse().expect("an MTU")], ..narrow() };
    let (_house, emulator, client, server) = connected(&falling).await;
    step(&client, &server, 8192).await;
    step(&client, &server, 1024).await;
    assert!(emulator.counts().up.dropped_mtu + emulator.counts().down.dropped_mtu > 0);
    let mtu = client.raw().stats().path.current_mtu;
    assert!(mtu <= 1272, "{mtu}");
}

/// Goal: nobody answers behind a link as nobody answers without one. Method: a partition from the start.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_down_is_unreachable() {
    let house = House::open();
    let emulator = link(&house, &Changes { partition: vec!["1h@0s".parse().expect("an outage")], ..Changes::default() });
    let client = house.enrol("client");
    let error = connect(emulator.local_addr(), &client, house.id(), None, &config()).await.expect_err("nothing passes");
    assert!(matches!(error, LinkError::Unreachable { .. }), "{error}");
}

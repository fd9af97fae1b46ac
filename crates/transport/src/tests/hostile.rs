//! Peers that are enrolled and break the rules all the same: each is an error of its own session, in time, and in words.

use super::*;
use std::time::Instant;

/// Sends `bytes` as the start of a step and ends the stream; returns what the server makes of it.
async fn step_of(house: &mut House, bytes: &[u8]) -> LinkError {
    let (client, server) = house.connected().await;
    let (mut send, _receive) = client.raw().open_bi().await.expect("a stream");
    send.write_all(bytes).await.expect("the server reads");
    send.finish().expect("the stream is open");
    let mut served = soon(server.accept_step()).await.expect("a step");
    soon(served.recv(&limits(256))).await.expect_err("a broken frame")
}

/// Sends `bytes` as an adapter; returns what the server makes of it.
async fn adapter_of(house: &mut House, bytes: &[u8], limits: &AdapterLimits) -> Result<AdapterFrame, LinkError> {
    let (client, server) = house.connected().await;
    let mut send = client.raw().open_uni().await.expect("a stream");
    send.write_all(bytes).await.expect("the server reads");
    send.finish().expect("the stream is open");
    soon(server.recv_adapter(limits)).await
}

/// Goal: a frame that ends early is an error that counts its bytes. Method: cut one everywhere that matters.
#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_frame_is_refused() {
    let mut house = House::open();
    let whole = frame(128).encode();
    let prefix = frame(128).encode_prefix().len();
    for (length, found, expected) in [
        (0, 0, FRAME_HEADER_BYTES),
        (63, 63, FRAME_HEADER_BYTES),
        (FRAME_HEADER_BYTES, 0, prefix - FRAME_HEADER_BYTES),
        (prefix + 5, 5, whole.len() - prefix),
        (whole.len() - 1, whole.len() - prefix - 1, whole.len() - prefix),
    ] {
        // A stream is seen by its first byte or its end, and an empty one has the latter.
        let error = step_of(&mut house, &whole[..length]).await;
        let counted = matches!(error, LinkError::Truncated { found: f, expected: e, .. } if (f, e) == (found, expected));
        assert!(counted, "cut at {length}: {error}");
    }
}

/// Goal: no header is believed beyond the limits. Method: 4 GiB, another round, rubbish.
#[tokio::test(flavor = "multi_thread")]
async fn a_frame_out_of_bounds_is_refused() {
    let mut house = House::open();
    let mut header = frame(128).header;
    header.payload_bytes = 4 << 30;
    let error = step_of(&mut house, &header.encode()).await;
    assert!(matches!(error, LinkError::Frame(FrameError::Payload { .. })), "{error}");
    header.tokens = (4_u64 << 30).div_ceil(u64::from(HIDDEN) * 4) as u32;
    let error = step_of(&mut house, &header.encode()).await;
    assert!(matches!(error, LinkError::Frame(FrameError::Count { field: "tokens", .. })), "{error}");
    let error = step_of(&mut house, &[0x55; 200]).await;
    assert!(matches!(error, LinkError::Frame(FrameError::Magic { .. })), "{error}");
}

/// Goal: the sender of a bad frame learns why. Method: the server closes with its error; the client is still writing.
#[tokio::test(flavor = "multi_thread")]
async fn the_sender_of_a_bad_frame_learns_why() {
    let mut house = House::open();
    let (client, server) = house.connected().await;
    let mut huge = frame(64 << 10);
    huge.payload.resize(64 << 20, 0);
    let serving = tokio::spawn(async move {
        let mut served = server.accept_step().await.expect("a step");
        let error = served.recv(&limits(64)).await.expect_err("too many tokens");
        drop(served);
        server.close(&error.to_string()).await;
    });
    let mut stream = client.open_step().await.expect("a stream");
    let error = soon(stream.send(huge)).await.expect_err("nobody reads 64 MiB").to_string();
    assert!(error.contains("closed the connection: step 0/0.7: Forward frame has tokens 65536"), "{error}");
    serving.await.expect("no panic");
}

/// Goal: adapters are checked as frames are. Method: cut short, too long, over the limit, rubbish.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_adapter_is_refused() {
    let mut house = House::open();
    let whole = adapter(ROUND, 1000).encode();
    let wide = AdapterLimits::WIDEST;
    for length in [0, 39, 40, 45, whole.len() - 1] {
        let error = adapter_of(&mut house, &whole[..length], &wide).await.expect_err("cut short");
        assert!(matches!(error, LinkError::Truncated { .. }), "cut at {length}: {error}");
    }
    let error = adapter_of(&mut house, &[&whole[..], b"more"].concat(), &wide).await.expect_err("too long");
    assert!(matches!(error, LinkError::Overlong { .. }), "{error}");
    let error = adapter_of(&mut house, &whole, &AdapterLimits::for_values(999)).await.expect_err("too large");
    assert!(matches!(error, LinkError::Adapter(AdapterFrameError::TooLarge { part: "payload", .. })), "{error}");
    let error = adapter_of(&mut house, &[0x55; 200], &wide).await.expect_err("rubbish");
    assert!(matches!(error, LinkError::Adapter(AdapterFrameError::Magic { .. })), "{error}");
    assert_eq!(adapter_of(&mut house, &whole, &AdapterLimits::for_values(1000)).await.expect("whole").round, ROUND);
}

/// Goal: a message is bounded and whole. Method: a prefix of 4 GiB, rubbish, a message cut short.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_message_is_refused() {
    let mut house = House::open();
    let bytes = [&u32::MAX.to_le_bytes()[..], &[5, 0, 0, 0, 255, 255, 255, 255, 255], &[9, 0, 0, 0, 1]];
    for (index, bytes) in bytes.into_iter().enumerate() {
        let (client, server) = house.connected().await;
        let (mut send, _receive) = client.raw().open_bi().await.expect("a stream");
        send.write_all(bytes).await.expect("the server reads");
        send.finish().expect("the stream is open");
        let mut control = soon(server.accept_control()).await.expect("the control stream");
        let error = soon(control.recv()).await.expect_err("a broken message");
        let is_right = match index {
            0 => matches!(error, LinkError::Codec(CodecError::TooLarge { .. })),
            1 => matches!(error, LinkError::Codec(CodecError::Malformed { .. })),
            _ => matches!(error, LinkError::Truncated { found: 5, expected: 13, .. }),
        };
        assert!(is_right, "{index}: {error}");
    }
}

/// Goal: a client that dies in the middle of a frame is noticed within the idle timeout. Method: its whole runtime goes, so that
/// no goodbye leaves it.
#[test]
fn a_client_that_vanishes_is_noticed() {
    let (here, there) = (runtime(), runtime());
    let mut house = here.block_on(async { House::open() });
    let (client, addr, id) = (house.enrol("alice"), house.addr, house.id());
    let link = there.block_on(async move { connect(addr, &client, id, None, &config()).await.expect("it is enrolled") });
    let server = here.block_on(house.server.accept()).expect("the same connection");
    let half = frame(128).encode().len() / 2;
    let stream = there.block_on(async {
        let (mut send, receive) = link.raw().open_bi().await.expect("a stream");
        send.write_all(&frame(128).encode()[..half]).await.expect("the server reads");
        (send, receive)
    });
    let (error, waited) = here.block_on(async move {
        let mut served = soon(server.accept_step()).await.expect("a step");
        let reading = tokio::spawn(async move { served.recv(&limits(256)).await.expect_err("half a frame") });
        tokio::time::sleep(Duration::from_millis(100)).await;
        std::mem::forget((stream, link));
        there.shutdown_background();
        let died = Instant::now();
        (soon(reading).await.expect("no panic"), died.elapsed())
    });
    assert!(matches!(error, LinkError::Lost { .. }), "{error}");
    assert!(error.to_string().contains("nothing was heard for too long"), "{error}");
    assert!(waited < 2 * config().idle_timeout, "it took {waited:?}");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// Goal: a server that is there but never answers is given up. Method: a step that nobody serves; the connection stays alive
/// beyond its idle timeout.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_without_an_answer_is_given_up() {
    let mut house = House::open();
    let client = house.enrol("alice");
    let hasty = LinkConfig { step_wait: Duration::from_millis(2500), ..config() };
    let link = connect(house.addr, &client, house.id(), None, &hasty).await.expect("it is enrolled");
    let server = soon(house.server.accept()).await.expect("the same connection");
    let mut stream = link.open_step().await.expect("a stream");
    stream.send(frame(64)).await.expect("there is room");
    let _unserved = soon(server.accept_step()).await.expect("a step");
    let error = soon(stream.recv(&limits(64))).await.expect_err("no answer");
    assert!(matches!(error, LinkError::TimedOut { .. }), "keep-alives held the line: {error}");
    assert!(error.to_string().contains("for more than 2.5 s while waiting for a step"), "{error}");
}

/// Goal: a peer that begins and does not go on is given up, whatever it began. Method: half a header, half a message.
#[tokio::test(flavor = "multi_thread")]
async fn half_a_transfer_is_given_up() {
    let mut house = House::open();
    let (client, server) = house.connected().await;
    let (mut message, _receive) = client.raw().open_bi().await.expect("a stream");
    message.write_all(&[9, 0, 0, 0, 1]).await.expect("the server reads");
    let (mut step, _receive) = client.raw().open_bi().await.expect("a stream");
    step.write_all(&frame(64).encode()[..100]).await.expect("the server reads");
    let mut adapter = client.raw().open_uni().await.expect("a stream");
    adapter.write_all(&super::adapter(ROUND, 10).encode()[..50]).await.expect("the server reads");

    let mut control = soon(server.accept_control()).await.expect("the control stream");
    let mut served = soon(server.accept_step()).await.expect("a step");
    let (allowed, wide) = (limits(64), AdapterLimits::WIDEST);
    let (message, step, adapter) = soon(async { tokio::join!(control.recv(), served.recv(&allowed), server.recv_adapter(&wide)) }).await;
    for error in [message.expect_err("half"), step.expect_err("half"), adapter.expect_err("half")] {
        assert!(matches!(error, LinkError::TimedOut { .. }), "{error}");
    }
}

/// Goal: back-pressure reaches the sender and is bounded. Method: write what nobody reads; then read it after all.
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_waits_for_its_reader() {
    let mut house = House::open();
    let (client, server) = house.connected().await;
    let mut stream = client.open_step().await.expect("a stream");
    let mut sending = tokio::spawn(async move { stream.send(frame(128 << 10)).await.map(|()| stream) });
    let mut served = soon(server.accept_step()).await.expect("a step");
    let early = tokio::time::timeout(Duration::from_millis(500), &mut sending).await;
    assert!(early.is_err(), "32 MiB do not fit the windows");
    assert_eq!(soon(served.recv(&limits(128 << 10))).await.expect("a frame").header.tokens, 128 << 10);
    soon(sending).await.expect("no panic").expect("all was read");
}

/// Goal: no peer opens streams without end. Method: open until one must wait; that ends one's patience, not the connection.
#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_streams_is_bounded() {
    let mut house = House::open();
    let (client, _server) = house.connected().await;
    let mut streams = Vec::new();
    let open = async {
        loop {
            streams.push(client.raw().open_bi().await.expect("a stream"));
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(300), open).await.is_err());
    assert_eq!(streams.len(), 64);
}

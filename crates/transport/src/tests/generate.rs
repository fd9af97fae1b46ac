//! Sessions of a model that generates: records both ways, ends of every kind, and none in the way of another.

use super::*;
use std::fmt::Debug;

const LIMITS: RecordLimits = RecordLimits { hidden: HIDDEN, encoding: Encoding::F32, positions_max: 100_000 };

fn open() -> DeviceRecord {
    let sampling = Some(SamplingSpec::GREEDY);
    DeviceRecord::Open(Open { adapter: None, sampling, tokens_max: 1000, prefix: vec![PageDigest([7; 16])], generated: (0, vec![]) })
}

fn rows(position: u32, rows: u16) -> DeviceRecord {
    let payload = (0..u32::from(rows) * HIDDEN * 4).map(|place| (place ^ position) as u8).collect();
    DeviceRecord::Rows(RowsRecord { position, rows, wanted: Wanted::Last, digests: vec![], payload })
}

fn token(position: u32) -> ServerRecord {
    ServerRecord::Tokens { position, drawn: vec![Drawn { id: position + 7, logprob: Some(-0.5), top: vec![(3, -1.0)] }] }
}

/// Both ends of a session that has opened.
async fn session(client: &Link, server: &Link) -> (DeviceStream, ServerStream) {
    let mut device = client.open_generate().await.expect("a stream");
    device.send(open()).await.expect("the server reads");
    let mut served = soon(server.accept_generate()).await.expect("a session");
    assert_eq!(soon(served.recv(&LIMITS)).await.expect("a record"), Some(open()));
    (device, served)
}

/// What was heard, where a record was.
async fn heard<Says: Record, Hears: Record>(stream: &mut GenerateStream<Says, Hears>) -> Hears {
    soon(stream.recv(&LIMITS)).await.expect("a record").expect("the stream goes on")
}

/// Goal: sessions on one connection are told apart, and their halves live in tasks of their own. Method: two, interleaved, a record of many
/// packets in one of them; then one answers what it heard while the other listens.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_under_way_together_do_not_mix() {
    let mut house = House::open();
    let (client, server) = house.connected().await;
    let (mut first, mut first_served) = session(&client, &server).await;
    let (mut second, mut second_served) = session(&client, &server).await;
    first.send(rows(0, 1000)).await.expect("the server reads");
    for position in 0..20 {
        second.send(rows(position, 1)).await.expect("the server reads");
        assert_eq!(heard(&mut second_served).await, rows(position, 1));
        second_served.send(token(position)).await.expect("the client reads");
        assert_eq!(heard(&mut second).await, token(position));
    }
    assert_eq!(heard(&mut first_served).await, rows(0, 1000));
    let (mut speaks, mut listens) = first_served.split();
    let serving = tokio::spawn(async move {
        while let Some(DeviceRecord::Rows(heard)) = listens.recv(&LIMITS).await.expect("a record") {
            speaks.send(token(heard.position)).await.expect("the client reads");
        }
        speaks.finish();
    });
    let (mut speaks, mut listens) = first.split();
    let speaking = tokio::spawn(async move {
        for position in 0..50 {
            speaks.send(rows(position, 3)).await.expect("the server reads");
        }
        speaks.finish();
    });
    for position in 0..50 {
        assert_eq!(soon(listens.recv(&LIMITS)).await.expect("a record"), Some(token(position)));
    }
    assert_eq!(soon(listens.recv(&LIMITS)).await.expect("a good end"), None);
    soon(serving).await.expect("no panic");
    soon(speaking).await.expect("no panic");
}

/// Goal: last words of a session arrive, whatever is dropped after them. Method: a failure, finish, and drop everything; many times.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_finished_says_its_last_words() {
    let mut house = House::open();
    let (client, server) = house.connected().await;
    for _ in 0..20 {
        let (mut device, served) = session(&client, &server).await;
        let failed = ServerRecord::Failed { code: FailureCode::Busy, reason: "try again".into() };
        let (mut speaks, listens) = served.split();
        speaks.send(failed.clone()).await.expect("the client reads");
        speaks.finish();
        drop(listens);
        assert_eq!(heard(&mut device).await, failed);
        assert_eq!(soon(device.recv(&LIMITS)).await.expect("a good end"), None);
        // Nobody listens to the device any more, and it is told so.
        let error = soon(async {
            loop {
                if let Err(error) = device.send(rows(0, 1)).await {
                    return error;
                }
            }
        });
        assert!(matches!(error.await, LinkError::Cancelled { .. }));
    }
}

async fn check_cancelled<R: Record + Debug>(mut receiver: GenerateReceiver<R>) {
    let error = soon(receiver.recv(&LIMITS)).await.expect_err("it was given up");
    // Not Lost, which is said after a wait for the reason of a close.
    assert!(matches!(error, LinkError::Cancelled { .. }) && !error.is_lost(), "{error}");
}

/// Goal: who gives a session up is understood at once, by either side, and the connection goes on. Method: drop each half of each end, with
/// more on its way than any window holds in one case.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_session_is_cancelled() {
    let mut house = House::open();
    let (client, server) = house.connected().await;
    let (device, served) = session(&client, &server).await;
    drop(device);
    check_cancelled(served.split().1).await;

    let (device, served) = session(&client, &server).await;
    drop(served);
    check_cancelled(device.split().1).await;

    // A prompt that nobody reads, cut off in the middle of a record.
    let (device, served) = session(&client, &server).await;
    let (mut speaks, listens) = device.split();
    let speaking = tokio::spawn(async move {
        while speaks.send(rows(0, 1024)).await.is_ok() {}
        speaks
    });
    drop(served);
    check_cancelled(listens).await;
    drop(soon(speaking).await.expect("no panic"));

    let (mut device, mut served) = session(&client, &server).await;
    device.send(rows(1, 1)).await.expect("the connection lives");
    assert_eq!(heard(&mut served).await, rows(1, 1));
}

/// Goal: what a peer may do wrong is refused by the header, or for what is missing. Method: raw streams: a claim of 1 GiB, the other side's
/// record, rubbish, and a record cut short at every kind of place.
#[tokio::test(flavor = "multi_thread")]
async fn broken_records_are_refused() {
    let mut house = House::open();
    let (client, server) = house.connected().await;
    let whole = rows(5, 2).encode().expect("a record");
    let mut huge = whole.clone();
    huge[8..12].copy_from_slice(&(1_u32 << 30).to_le_bytes());
    let held = ServerRecord::Held(3).encode().expect("a record");
    let beyond = rows(99_999, 2).encode().expect("a record");
    let refused = |bytes: Vec<u8>| {
        let (client, server) = (client.clone(), server.clone());
        async move {
            let (mut send, _receive) = client.raw().open_bi().await.expect("a stream");
            send.write_all(&bytes).await.expect("the server reads");
            send.finish().expect("the stream is open");
            let mut served = soon(server.accept_generate()).await.expect("a session");
            soon(served.recv(&LIMITS)).await
        }
    };
    let error = refused(huge).await.expect_err("1 GiB");
    assert!(matches!(error, LinkError::Record(RecordError::Payload { .. })), "{error}");
    let error = refused(held).await.expect_err("a server's");
    assert!(matches!(error, LinkError::Record(RecordError::Side { kind: RecordKind::Held })), "{error}");
    let error = refused(beyond).await.expect_err("too long");
    assert!(matches!(error, LinkError::Record(RecordError::TooLong { end: 100_001, .. })), "{error}");
    let error = refused(vec![0x55; 100]).await.expect_err("rubbish");
    assert!(matches!(error, LinkError::Record(RecordError::Kind { found: 0x55 })), "{error}");
    for (length, expected) in [(1, 12), (11, 12), (12, 512), (13, 512), (whole.len() - 1, 512)] {
        let error = refused(whole[..length].to_vec()).await.expect_err("cut short");
        assert!(matches!(error, LinkError::Truncated { expected: found, .. } if found == expected), "cut at {length}: {error}");
    }
    assert_eq!(refused(whole).await.expect("a record"), Some(rows(5, 2)));
    assert_eq!(refused(vec![]).await.expect("a good end"), None);
}

/// Goal: a device may think for as long as it likes, but not in the middle of a record. Method: silence of many step waits, a record, and
/// the first bytes of another, on a connection that lives.
#[tokio::test(flavor = "multi_thread")]
async fn idle_sessions_live_and_begun_records_do_not() {
    let config = LinkConfig { step_wait: Duration::from_millis(300), ..config() };
    let mut house = House::open_with(&config);
    let alice = house.enrol("alice");
    let client = connect(house.addr, &alice, house.id(), None, &config).await.expect("it is enrolled");
    let server = house.server.accept().await.expect("the same connection");
    let (mut send, _receive) = client.raw().open_bi().await.expect("a stream");
    send.write_all(&open().encode().expect("a record")).await.expect("the server reads");
    let mut served = soon(server.accept_generate()).await.expect("a session");
    assert_eq!(heard(&mut served).await, open());
    let waiting = tokio::spawn(async move { (served.recv(&LIMITS).await, served) });
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!waiting.is_finished(), "it was given up");
    let bytes = rows(1, 1).encode().expect("a record");
    send.write_all(&bytes).await.expect("the server reads");
    let (record, mut served) = soon(waiting).await.expect("no panic");
    assert_eq!(record.expect("a record"), Some(rows(1, 1)));
    for begun in [&bytes[..5], &bytes[5..100]] {
        send.write_all(begun).await.expect("the server reads");
        let error = soon(served.recv(&LIMITS)).await.expect_err("the rest never came");
        assert!(matches!(error, LinkError::TimedOut { .. }), "{error}");
    }
    send.write_all(&bytes[100..]).await.expect("the server reads");
    assert_eq!(heard(&mut served).await, rows(1, 1), "what had begun was kept");
}

/// Goal: a wait for a record can be given up and taken up again. Method: bytes one by one, a wait given up after each.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_record_can_be_given_up() {
    let mut house = House::open();
    let (client, server) = house.connected().await;
    let (mut send, _receive) = client.raw().open_bi().await.expect("a stream");
    let records = [open(), rows(3, 1)];
    let bytes: Vec<u8> = records.iter().flat_map(|record| record.clone().encode().expect("a record")).collect();
    let (mut served, mut found): (Option<ServerStream>, Vec<DeviceRecord>) = (None, Vec::new());
    for byte in bytes {
        send.write_all(&[byte]).await.expect("the server reads");
        let served = match &mut served {
            Some(served) => served,
            none => none.insert(soon(server.accept_generate()).await.expect("a session")),
        };
        if let Ok(read) = tokio::time::timeout(Duration::from_millis(1), served.recv(&LIMITS)).await {
            found.extend(read.expect("whole"));
        }
    }
    let mut served = served.expect("bytes were sent");
    while found.len() < records.len() {
        found.push(heard(&mut served).await);
    }
    assert_eq!(found, records);
}

/// Goal: a peer has as many sessions as it is allowed, and no more. Method: fill what a connection begins with, one more, then allow more.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_as_many_as_allowed() {
    let mut house = House::open();
    let (client, server) = house.connected().await;
    let mut open_ones = Vec::new();
    for _ in 0..64 {
        open_ones.push(session(&client, &server).await);
    }
    let refused = tokio::time::timeout(Duration::from_millis(200), client.open_generate()).await;
    assert!(refused.is_err(), "a stream beyond what is allowed");
    server.allow_sessions(300);
    while open_ones.len() < 300 {
        open_ones.push(soon(session(&client, &server)).await);
    }
    // The stream of control, and no other.
    soon(client.open_generate()).await.expect("a stream");
    // Each lives.
    for (position, (device, served)) in open_ones.iter_mut().enumerate() {
        device.send(rows(position as u32, 1)).await.expect("the server reads");
        assert_eq!(heard(served).await, rows(position as u32, 1));
    }
}

/// Goal: a token overtakes a prompt. Method: hand over 60 MB of another session's prompt, then one row; the row is there while the prompt
/// is not.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_go_before_prompts() {
    let mut house = House::open();
    let (client, server) = house.connected().await;
    let (mut long, mut long_served) = session(&client, &server).await;
    let (mut short, mut short_served) = session(&client, &server).await;
    let records = 240;
    let speaking = tokio::spawn(async move {
        for _ in 0..records {
            long.send(rows(0, 1024)).await.expect("the server reads");
        }
        long
    });
    assert_eq!(heard(&mut long_served).await, rows(0, 1024), "it is under way");
    let listening = tokio::spawn(async move {
        for _ in 1..records {
            heard(&mut long_served).await;
        }
    });
    short.send(rows(1, 1)).await.expect("the server reads");
    assert_eq!(heard(&mut short_served).await, rows(1, 1));
    assert!(!listening.is_finished(), "60 MB were sent before one row");
    soon(listening).await.expect("no panic");
    soon(speaking).await.expect("no panic");
}

/// Goal: a session knows when its connection is gone, and whether it may come back. Method: the server breaks off; another says goodbye.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_end_with_their_connection() {
    let mut house = House::open();
    let (client, server) = house.connected().await;
    let (mut device, served) = session(&client, &server).await;
    server.break_off();
    let error = soon(device.recv(&LIMITS)).await.expect_err("it is broken");
    assert!(error.is_lost(), "{error}");
    drop(served);
    let (client, server) = house.connected().await;
    let (mut device, _served) = session(&client, &server).await;
    server.close("stopped by its operator").await;
    let error = soon(device.recv(&LIMITS)).await.expect_err("it is closed");
    assert!(matches!(&error, LinkError::Closed { reason, .. } if reason == "stopped by its operator"), "{error}");
}

//! The bytes that deployed peers rely on. Changing any of them means raising `PROTOCOL_VERSION`.

mod common;

use common::*;
use cutlayer_wire::*;

fn check_bytes(bytes: &[u8], golden: &str) {
    let golden: Vec<&str> = golden.split_whitespace().collect();
    assert_eq!(to_hex(bytes), golden.join(" "));
}

/// Goal: every message keeps its bytes. Method: one of each, every field told apart.
#[test]
fn message_bytes_are_frozen() {
    let golden = [
        "00 04 ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab
         ab ab ab ab 1e fb 40 02 04 01 01 02 01 00 fb e8 03 fc 70 11 01 00 05 61 6c 69 63 65
         01 4d 01 01 03",
        "01 01 02 02 6e 6f 03 79 65 73
         08 00 00 80 41 01 00 00 00 3f 01 06 71 5f 70 72 6f 6a
         00 00 00 00 3f 00 00 80 3e 00 00 00 3e 00 00 00 40 00 00 80 3f 02 03 01 00 00 80 40 01
         04 fb 2c 01 00 01 05 06 07 01 01 04 03 01 02
         01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
         18 00 00 00 00 00 00 00 00 00 00 00 02 09
         4d 02 01 01 01 04 01 04",
        "02 02 03 63 75 74",
        "03 03",
        "04 03",
        "05 03 00 00 00 00 00 00 f8 3f fb 2c 01 14",
        "06 03 01 02 6f 6b",
        "07 05 04 64 6f 6e 65",
        "08 03 62 79 65",
        "09 04 ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab
         ab ab ab ab 1e fb 40 02 04 01 01 18 00 00 00 00 00 00 00 00 00 00 00 05 61 6c 69 63 65",
        "0a fd 08 07 06 05 04 03 02 01 02 01 61 02 62 63 fb 00 08 fb 2c 01",
    ];
    let messages = messages();
    assert_eq!(messages.len(), golden.len());
    for (message, golden) in messages.iter().zip(golden) {
        let bytes = encode(message).expect("a valid message");
        check_bytes(&bytes, golden);
        assert_eq!(&decode(&bytes).expect("our own bytes"), message);
    }
}

/// Goal: the frame header keeps its 84 bytes. Method: a Forward and its answer, every field told apart.
#[test]
fn frame_bytes_are_frozen() {
    let frame = forward(vec![1, -100, 3]);
    check_bytes(
        &frame.encode(),
        "43 55 54 4c 04 00 01 00 01 00 00 00 00 00 00 00 00 00 00 00 08 07 06 05 04 03 02 01 09 00 00 00 03 00 03 00
         02 00 00 00 03 00 00 00 02 00 00 00 03 00 00 00 02 00 00 00 06 00 00 00 0c 00 00 00 00 00 00 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
         01 00 00 00 02 00 00 00
         01 00 00 00 9c ff ff ff 03 00 00 00
         0a 00 00 00 00 00 00 00 0b 00 00 00 00 00 00 00
         01 02 03 04 05 06 07 08 09 0a 0b 0c",
    );
    let sums = EvalSums { loss_sum: 1.5, scored: 3, correct: 2 };
    let gradient = Frame::gradient(&frame.header, Encoding::BF16, sums, vec![0; 12]);
    check_bytes(
        &gradient.header.encode(),
        "43 55 54 4c 04 00 03 00 01 00 00 00 00 00 00 00 00 00 00 00 08 07 06 05 04 03 02 01 09 00 00 00 03 00 03 00
         00 00 00 00 03 00 00 00 02 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 0c 00 00 00 00 00 00 00
         00 00 00 00 00 00 f8 3f 03 00 00 00 02 00 00 00",
    );
}

/// Goal: the adapter frame keeps its bytes. Method: two tensors, given out of order, sent in order.
#[test]
fn adapter_bytes_are_frozen() {
    check_bytes(
        &adapter().encode(),
        "43 55 54 41 04 00 00 00 07 00 00 00 0a 00 00 00 14 00 00 00 00 00 00 00
         00 00 00 00 00 00 58 40 00 01 02 03 04 05 06 07
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 05 00 00 00
         02 01 61 01 03 01 62 02 02 01
         00 00 00 3f 00 00 00 00 00 00 80 40 00 00 80 3f 00 00 00 c0",
    );
}

/// Goal: records keep their bytes. Method: one of each, every field told apart.
#[test]
fn record_bytes_are_frozen() {
    let device = [
        "01 00 00 00 00 00 00 00 58 00 00 00
         01 05 74 61 6c 65 73
         01 00 00 00 3f 28 00 00 80 3e 00 00 00 3e 00 00 00 40 00 00 80 bf 00 00 80 40 01 07 00 00 c8 c2 fb 2c 01 01 02
         fb e8 03
         02 11 11 11 11 11 11 11 11 11 11 11 11 11 11 11 11 22 22 22 22 22 22 22 22 22 22 22 22 22 22 22 22
         21 02 05 fc 70 11 01 00",
        "01 00 00 00 00 00 00 00 06 00 00 00 00 00 01 00 00 00",
        "02 0a 02 00 02 01 00 00 2c 00 00 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 01 01 01 01 01 01 01 01 01 01 01 01 01 01 01 01
         01 02 03 04 05 06 07 08 09 0a 0b 0c",
        "02 01 01 00 02 01 00 00 06 00 00 00 01 02 03 04 05 06",
    ];
    let server = [
        "03 00 00 00 02 01 00 00 00 00 00 00",
        "04 00 02 00 05 00 00 00 08 00 00 00 07 00 00 00 70 11 01 00",
        "04 01 02 00 05 00 00 00 22 00 00 00
         07 00 00 00 00 00 00 bf 02 07 00 00 00 00 00 00 bf 09 00 00 00 00 00 00 c0
         08 00 00 00 00 00 00 00 00",
        "05 00 01 00 09 00 00 00 06 00 00 00 01 02 03 04 05 06",
        "06 03 00 00 00 00 00 00 02 00 00 00 c3 a9",
    ];
    check_records(device_records(), &device);
    check_records(server_records(), &server);
}

fn check_records<R: Record + Clone + PartialEq + std::fmt::Debug>(records: Vec<R>, golden: &[&str]) {
    assert_eq!(records.len(), golden.len());
    for (record, golden) in records.into_iter().zip(golden) {
        let bytes = record.clone().encode().expect("a valid record");
        check_bytes(&bytes, golden);
        assert_eq!(R::decode(&bytes, &record_limits()).expect("our own bytes"), record);
    }
}

/// Goal: numbers that travel never move. Method: by hand.
#[test]
fn numbers_are_frozen() {
    assert_eq!(EncodingPart::ALL.map(|part| part as u8), std::array::from_fn(|index| index as u8));
    for (name, bytes) in [
        ("f32", "00 00 00 00 00 00 00 00 00 00 00 00"),
        ("bf16", "01 00 00 00 00 00 00 00 00 00 00 00"),
        ("f16", "02 00 00 00 00 00 00 00 00 00 00 00"),
        ("int8", "18 00 00 00 00 00 00 00 00 00 00 00"),
        ("int4/64+hadamard", "14 01 40 00 00 00 00 00 00 00 00 00"),
        ("int3/576+stochastic", "13 02 40 02 00 00 00 00 00 00 00 00"),
        ("bf16+topk=0.05+zstd", "01 04 00 00 f4 01 00 00 00 00 00 00"),
        ("int8+proj=300", "18 00 00 00 00 00 2c 01 00 00 00 00"),
        ("int4/64+hadamard+delta", "14 09 40 00 00 00 00 00 00 00 00 00"),
        ("int2/32+feedback+zstd", "12 14 20 00 00 00 00 00 00 00 00 00"),
        ("int8+moved=0.05", "18 08 00 00 00 00 00 00 f4 01 00 00"),
    ] {
        check_bytes(&name.parse::<Encoding>().expect("an encoding").to_bytes(), bytes);
    }
    let kinds = [FrameKind::Forward, FrameKind::Hidden, FrameKind::Gradient, FrameKind::Done, FrameKind::Failed];
    assert_eq!(kinds.map(|kind| kind as u8), [1, 2, 3, 4, 5]);
    let kinds = [RecordKind::Open, RecordKind::Rows, RecordKind::Held, RecordKind::Tokens, RecordKind::Hidden, RecordKind::Failed];
    assert_eq!(kinds.map(|kind| kind as u8), [1, 2, 3, 4, 5, 6]);
    let codes = [FailureCode::Adapter, FailureCode::TooLong, FailureCode::Busy, FailureCode::Malformed, FailureCode::Internal];
    assert_eq!(codes.map(|code| code as u8), [1, 2, 3, 4, 5]);
    assert_eq!([Wanted::None, Wanted::Last, Wanted::All].map(|wanted| wanted as u8), [0, 1, 2]);
    let flags = [FrameFlags::TRAIN, FrameFlags::NEEDS_GRADIENT];
    assert_eq!(flags.map(FrameFlags::bits), [1, 2]);
}

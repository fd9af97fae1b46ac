//! Records of a session: whatever is valid survives, whatever is not is refused before its body is read, and a token costs what it must.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use cutlayer_wire::*;
use proptest::collection::vec;
use proptest::prelude::*;

/// What generation may travel in.
const GENERATES: &[&str] =
    &["f32", "bf16", "f16", "int8", "int4/8", "int4/64+hadamard", "int8+topk=0.3", "f32+proj=16", "int8+zstd", "f32+zstd", "int3"];

fn header(kind: RecordKind) -> RecordHeader {
    let whole = match kind {
        RecordKind::Open => DeviceRecord::Open(open()).encode(),
        RecordKind::Rows => DeviceRecord::Rows(rows_record(2)).encode(),
        RecordKind::Held => ServerRecord::Held(9).encode(),
        RecordKind::Tokens => server_records()[2].clone().encode(),
        RecordKind::Hidden => server_records()[3].clone().encode(),
        RecordKind::Failed => server_records()[4].clone().encode(),
    };
    RecordHeader::decode(whole.unwrap().first_chunk().unwrap()).unwrap()
}

fn check_header_refused(kind: RecordKind, says: &str, spoil: impl FnOnce(&mut RecordHeader)) {
    let mut header = header(kind);
    header.check(&record_limits()).unwrap();
    spoil(&mut header);
    let error = header.check(&record_limits()).expect_err(says).to_string();
    assert!(error.contains(says), "{error:?} does not say {says:?}");
    assert_eq!(RecordHeader::decode(&header.encode()).unwrap(), header, "a refused header is still read as it is");
}

/// Goal: a decoded token of int8 takes its hidden size and 16 bytes at most. Method: count, for every hidden size of a real model.
#[test]
fn a_row_takes_little_more_than_its_values() {
    for hidden in [64, 576, 2048, 4096] {
        for (name, spare) in [("int8", 14), ("int8+zstd", 15)] {
            let encoding: Encoding = name.parse().unwrap();
            let values: Vec<f32> = (0..hidden).map(|place: u32| (place.wrapping_mul(2_654_435_761) >> 8) as f32 - 8e6).collect();
            let payload = encoding.encode(&values, hidden as usize, 0).unwrap();
            let record = RowsRecord { position: 1000, rows: 1, wanted: Wanted::Last, digests: vec![], payload };
            let bytes = DeviceRecord::Rows(record.clone()).encode().unwrap();
            assert!(bytes.len() <= hidden as usize + spare, "{name} took {} B at {hidden}", bytes.len());
            let limits = RecordLimits { hidden, encoding, positions_max: 2048 };
            assert_eq!(DeviceRecord::decode(&bytes, &limits).unwrap(), DeviceRecord::Rows(record));
        }
    }
}

/// Goal: a header that lies costs nothing. Method: one field of each kind at a time.
#[test]
fn impossible_headers_are_refused() {
    use RecordKind::*;
    let check = |kind, says, spoil: fn(&mut RecordHeader)| check_header_refused(kind, says, spoil);
    check(Rows, "rows 0, it must be 1 to 1024", |h| h.rows = 0);
    check(Rows, "rows 1025", |h| h.rows = 1025);
    check(Rows, "reaches position 2001, and sequences end at 2000", |h| h.position = 1999);
    check(Rows, "reaches position 4294967295", |h| h.position = u32::MAX);
    check(Rows, "11 B are no [2, 4] tensor in int8", |h| h.body_bytes -= 1);
    check(Rows, "Rows record: 13 B are no", |h| h.body_bytes += 1);
    check(Rows, "0 B are no", |h| h.body_bytes = 31);
    check(Rows, "body_bytes 0, it must be 1 to 1073741824", |h| h.body_bytes = 0);
    check(Rows, "body_bytes 4294967295", |h| h.body_bytes = u32::MAX);
    check(Rows, "unknown flags 0x0b", |h| h.flags |= 3);
    check(Rows, "0 B are no", |h| h.flags |= 0xfc);
    check(Hidden, "unknown flags 0x04", |h| h.flags = 4);
    check(Hidden, "rows 0", |h| h.rows = 0);
    check(Hidden, "7 B are no [1, 4] tensor", |h| h.body_bytes = 7);
    check(Hidden, "reaches position 2001", |h| h.position = 2000);
    check(Held, "position 2001, it must be 0 to 2000", |h| h.position = 2001);
    check(Held, "rows 1, it must be 0 to 0", |h| h.rows = 1);
    check(Held, "body_bytes 1", |h| h.body_bytes = 1);
    check(Held, "unknown flags 0x01", |h| h.flags = 1);
    check(Tokens, "rows 0", |h| h.rows = 0);
    check(Tokens, "rows 65535", |h| h.rows = u16::MAX);
    check(Tokens, "reaches position 2001", |h| h.position = 1999);
    check(Tokens, "unknown flags 0x02", |h| h.flags = 2);
    check(Tokens, "body_bytes 34, it must be 8 to 8", |h| h.flags = 0);
    check(Tokens, "body_bytes 17, it must be 18 to 338", |h| h.body_bytes = 17);
    check(Tokens, "body_bytes 339", |h| h.body_bytes = 339);
    check(Failed, "unknown flags 0x00", |h| h.flags = 0);
    check(Failed, "unknown flags 0x06", |h| h.flags = 6);
    check(Failed, "rows 1", |h| h.rows = 1);
    check(Failed, "position 1", |h| h.position = 1);
    check(Failed, "body_bytes 4097, it must be 0 to 4096", |h| h.body_bytes = 4097);
    check(Open, "body_bytes 0", |h| h.body_bytes = 0);
    check(Open, "body_bytes 1048576", |h| h.body_bytes = 1 << 20);
    check(Open, "rows 1", |h| h.rows = 1);
    check(Open, "position 1", |h| h.position = 1);
    check(Open, "unknown flags 0x80", |h| h.flags = 0x80);
    for kind in [0, 7, 255] {
        let error = RecordHeader::decode(&[kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).expect_err("unknown");
        assert_eq!(error, RecordError::Kind { found: kind });
    }
}

/// Goal: what a server alone says is refused from a device, before its body is read, and the other way round. Method: each to each.
#[test]
fn nobody_says_the_others_records() {
    let limits = record_limits();
    for kind in [RecordKind::Held, RecordKind::Tokens, RecordKind::Hidden, RecordKind::Failed] {
        assert_eq!(DeviceRecord::check(&header(kind), &limits), Err(RecordError::Side { kind }));
        let body = vec![0; header(kind).body_bytes as usize];
        assert_eq!(DeviceRecord::assemble(&header(kind), body, &limits), Err(RecordError::Side { kind }));
        ServerRecord::check(&header(kind), &limits).unwrap();
    }
    for kind in [RecordKind::Open, RecordKind::Rows] {
        assert_eq!(ServerRecord::check(&header(kind), &limits), Err(RecordError::Side { kind }));
        let body = vec![0; header(kind).body_bytes as usize];
        assert_eq!(ServerRecord::assemble(&header(kind), body, &limits), Err(RecordError::Side { kind }));
        DeviceRecord::check(&header(kind), &limits).unwrap();
    }
}

fn check_refused<R: Record + std::fmt::Debug>(bytes: &[u8], says: &str) {
    let error = R::decode(bytes, &record_limits()).expect_err(says).to_string();
    assert!(error.contains(says), "{error:?} does not say {says:?}");
}

/// Goal: a body is what its header says. Method: each record cut at every place, and lengthened.
#[test]
fn truncated_and_overlong_records_are_refused() {
    fn check<R: Record + std::fmt::Debug>(records: Vec<R>) {
        for record in records {
            let mut bytes = record.encode().unwrap();
            for end in 0..bytes.len() {
                assert!(R::decode(&bytes[..end], &record_limits()).is_err(), "cut at {end} of {bytes:02x?}");
            }
            bytes.push(0);
            assert!(matches!(R::decode(&bytes, &record_limits()), Err(RecordError::Body { .. })), "{bytes:02x?}");
            // The header goes along with it.
            bytes[8] += 1;
            assert!(R::decode(&bytes, &record_limits()).is_err() || bytes[0] == RecordKind::Failed as u8, "{bytes:02x?}");
        }
    }
    check(device_records());
    check(server_records());
}

/// Goal: bodies say nothing impossible. Method: spoil a token, its probability, its list, a reason and an Open.
#[test]
fn spoilt_bodies_are_refused() {
    let spoil = |record: &ServerRecord, place: usize, bytes: &[u8]| {
        let mut whole = record.clone().encode().unwrap();
        whole[RECORD_HEADER_BYTES + place..][..bytes.len()].copy_from_slice(bytes);
        whole
    };
    let likely = &server_records()[2];
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        check_refused::<ServerRecord>(&spoil(likely, 4, &bad.to_le_bytes()), "token 7 comes with a logarithm of");
        check_refused::<ServerRecord>(&spoil(likely, 21, &bad.to_le_bytes()), "token 9 comes with a logarithm of");
    }
    check_refused::<ServerRecord>(&spoil(likely, 8, &[21]), "top 21, it must be 0 to 20");
    check_refused::<ServerRecord>(&spoil(likely, 8, &[20]), "ends in the middle of a token");
    let ServerRecord::Tokens { position, drawn } = likely else { panic!("tokens") };
    let one = ServerRecord::Tokens { position: *position, drawn: drawn[..1].to_vec() };
    check_refused::<ServerRecord>(&spoil(&one, 8, &[1]), "8 B follow its tokens");
    check_refused::<ServerRecord>(&spoil(&server_records()[4], 0, &[0xff]), "not UTF-8");
    let mut whole = DeviceRecord::Open(open()).encode().unwrap();
    whole[RECORD_HEADER_BYTES] = 7;
    check_refused::<DeviceRecord>(&whole, "Open record cannot be read");
}

/// Goal: who is about to send nonsense is told, before the other side is. Method: one of each.
#[test]
fn nonsense_is_not_sent() {
    let token = |logprob, top| Drawn { id: 1, logprob, top };
    let tokens = |drawn| ServerRecord::Tokens { position: 0, drawn }.encode();
    let said = |error: Result<Vec<u8>, RecordError>, says: &str| {
        let error = error.expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    };
    said(tokens(vec![token(Some(f32::NAN), vec![])]), "logarithm of NaN");
    said(tokens(vec![token(Some(0.0), vec![(3, f32::NEG_INFINITY)])]), "token 3 comes with a logarithm of -inf");
    said(tokens(vec![token(Some(0.0), vec![(3, 0.0); 21])]), "top 21");
    said(tokens(vec![token(Some(0.0), vec![]), token(None, vec![])]), "others have none");
    said(tokens(vec![token(None, vec![(3, 0.0)])]), "others have none");
    said(tokens(vec![token(None, vec![]); 1025]), "rows 1025");
    said(DeviceRecord::Rows(rows_record(RECORD_DIGESTS_MAX + 1)).encode(), "digests 64, it must be 0 to 63");
    let failed = ServerRecord::Failed { code: FailureCode::Internal, reason: "é".repeat(REASON_BYTES_MAX) }.encode().unwrap();
    assert_eq!(failed.len(), RECORD_HEADER_BYTES + REASON_BYTES_MAX, "a long reason is cut short");
    ServerRecord::decode(&failed, &record_limits()).unwrap();
}

fn check_open_refused(says: &str, spoil: impl FnOnce(&mut Open, &mut SamplingSpec)) {
    let (mut open, mut sampling) = (open(), open().sampling.unwrap());
    open.check(&record_limits()).unwrap();
    spoil(&mut open, &mut sampling);
    open.sampling = Some(sampling);
    let error = open.check(&record_limits()).expect_err(says);
    assert!(matches!(error, RecordError::Open { .. }), "{error}");
    assert!(error.to_string().contains(says), "{error} does not say {says:?}");
    // Only what depends on the model passes the sender, who may not know it.
    let sent = DeviceRecord::Open(open).encode();
    assert!(sent.is_err() || says.starts_with("generated"), "it was sent");
    if let Ok(bytes) = sent {
        check_refused::<DeviceRecord>(&bytes, says);
    }
}

/// Goal: a session opens with nothing that cannot be acted on, on either side. Method: spoil one field at a time.
#[test]
fn impossible_opens_are_refused() {
    check_open_refused("adapter of 0 B", |o, _| o.adapter = Some(String::new()));
    check_open_refused("adapter of 129 B", |o, _| o.adapter = Some("x".repeat(129)));
    check_open_refused("tokens_max 0", |o, _| o.tokens_max = 0);
    check_open_refused("prefix 8193", |o, _| o.prefix = vec![PageDigest([0; 16]); PREFIX_PAGES_MAX + 1]);
    check_open_refused("generated 2 from 2000 on", |o, _| o.generated.0 = 2000);
    check_open_refused("generated 2001 from 0 on", |o, _| o.generated = (0, vec![1; 2001]));
    check_open_refused("generated 2 from 4294967295 on", |o, _| o.generated.0 = u32::MAX);
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        check_open_refused(&format!("temperature {bad}"), |_, s| s.temperature = bad);
        check_open_refused(&format!("top_p {bad}"), |_, s| s.top_p = bad);
        check_open_refused(&format!("min_p {bad}"), |_, s| s.min_p = bad);
        check_open_refused(&format!("repetition_penalty {bad}"), |_, s| s.repetition_penalty = bad);
    }
    check_open_refused("repetition_penalty 0", |_, s| s.repetition_penalty = 0.0);
    check_open_refused("top_p 1.5", |_, s| s.top_p = 1.5);
    check_open_refused("presence_penalty NaN", |_, s| s.presence_penalty = f32::NAN);
    check_open_refused("frequency_penalty inf", |_, s| s.frequency_penalty = f32::INFINITY);
    check_open_refused("logit_bias -inf for token 3", |_, s| s.logit_bias.push((3, f32::NEG_INFINITY)));
    check_open_refused("logit_bias 1025", |_, s| s.logit_bias = vec![(1, 1.0); 1025]);
    check_open_refused("logprobs 21", |_, s| s.logprobs = Some(21));
}

/// Goal: what the bounds allow together fits the bound on bytes. Method: everything at its most, with the longest varints.
#[test]
fn the_largest_open_fits() {
    let sampling = SamplingSpec { logit_bias: vec![(u32::MAX, -1.0); LOGIT_BIASES_MAX], seed: u64::MAX, ..open().sampling.unwrap() };
    let open = Open {
        adapter: Some("x".repeat(NAME_BYTES_MAX)),
        sampling: Some(sampling),
        tokens_max: u32::MAX,
        prefix: vec![PageDigest([255; 16]); PREFIX_PAGES_MAX],
        generated: (0, vec![u32::MAX; POSITIONS_MAX as usize]),
    };
    let limits = RecordLimits { positions_max: u32::MAX, ..record_limits() };
    let record = DeviceRecord::Open(open);
    assert_eq!(DeviceRecord::decode(&record.clone().encode().unwrap(), &limits).unwrap(), record);
    let greedy = Open { sampling: Some(SamplingSpec::GREEDY), ..common::open() };
    greedy.check(&record_limits()).unwrap();
}

fn names() -> impl Strategy<Value = Encoding> {
    proptest::sample::select(GENERATES).prop_map(|name| name.parse().unwrap())
}

prop_compose! {
    fn specs()(
        (temperature, top_p, min_p) in (0.0..9.0_f32, 0.0..=1.0_f32, 0.0..=1.0_f32),
        (repetition_penalty, presence_penalty, frequency_penalty) in (0.1..9.0_f32, -9.0..9.0_f32, -9.0..9.0_f32),
        (top_k, seed) in any::<(u32, u64)>(),
        logit_bias in vec((any::<u32>(), -100.0..100.0_f32), 0..9),
        logprobs in proptest::option::of(0..=TOP_LOGPROBS_MAX),
    ) -> SamplingSpec {
        SamplingSpec {
            temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias, seed, logprobs,
        }
    }
}

fn opens() -> impl Strategy<Value = DeviceRecord> {
    let digests = vec(any::<[u8; 16]>().prop_map(PageDigest), 0..20);
    let generated = (0..100_u32, vec(any::<u32>(), 0..50));
    (proptest::option::of("[a-z é]{1,40}"), proptest::option::of(specs()), 1..u32::MAX, digests, generated).prop_map(
        |(adapter, sampling, tokens_max, prefix, generated)| DeviceRecord::Open(Open { adapter, sampling, tokens_max, prefix, generated }),
    )
}

prop_compose! {
    /// Rows that were really encoded, some of them zero, and the limits that they keep.
    fn rows()(
        encoding in names(),
        rows in 1..20_u16,
        position in 0..1000_u32,
        wanted in proptest::sample::select(&[Wanted::None, Wanted::Last, Wanted::All][..]),
        digests in vec(any::<[u8; 16]>().prop_map(PageDigest), 0..=RECORD_DIGESTS_MAX),
        values in vec(prop_oneof![Just(0.0), -9.0..9.0_f32], 20),
    ) -> (RecordLimits, RowsRecord) {
        let values: Vec<f32> = (0..rows).flat_map(|row| vec![values[usize::from(row)]; 64]).collect();
        let payload = encoding.encode(&values, 64, 0).unwrap();
        let limits = RecordLimits { hidden: 64, encoding, positions_max: position + u32::from(rows) };
        (limits, RowsRecord { position, rows, wanted, digests, payload })
    }
}

fn tokens() -> impl Strategy<Value = ServerRecord> {
    let logprobs = || -100.0..=0.0_f32;
    let top = vec((any::<u32>(), logprobs()), 0..=usize::from(TOP_LOGPROBS_MAX));
    let likely = (any::<u32>(), logprobs(), top).prop_map(|(id, logprob, top)| Drawn { id, logprob: Some(logprob), top });
    let plain = any::<u32>().prop_map(|id| Drawn { id, logprob: None, top: vec![] });
    let drawn = prop_oneof![vec(plain, 1..30), vec(likely, 1..30)];
    (0..1000_u32, drawn).prop_map(|(position, drawn)| ServerRecord::Tokens { position, drawn })
}

fn check_survives<R: Record + Clone + PartialEq + std::fmt::Debug>(record: R, limits: &RecordLimits) {
    let bytes = record.clone().encode().unwrap();
    assert_eq!(R::decode(&bytes, limits).unwrap(), record);
    let (head, payload) = record.into_parts().unwrap();
    assert_eq!([head, payload].concat(), bytes);
}

/// Bytes that are read are the bytes that we would have written, or read as the same again where numbers have several forms.
fn check_any_bytes(bytes: &[u8], limits: &RecordLimits) {
    if let Ok(record) = DeviceRecord::decode(bytes, limits) {
        let again = record.clone().encode().unwrap();
        assert!(again == bytes || matches!(record, DeviceRecord::Open(_)), "{bytes:02x?}");
        assert_eq!(DeviceRecord::decode(&again, limits).unwrap(), record);
    }
    if let Ok(record) = ServerRecord::decode(bytes, limits) {
        assert_eq!(record.encode().unwrap(), bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Goal: every valid record survives. Method: through bytes and back.
    #[test]
    fn records_survive(
        open in opens(),
        (limits, rows) in rows(),
        tokens in tokens(),
        held in 0..=2000_u32,
        code in proptest::sample::select(&[FailureCode::Adapter, FailureCode::TooLong, FailureCode::Malformed][..]),
        reason in ".{0,40}",
    ) {
        check_survives(open, &record_limits());
        check_survives(tokens, &record_limits());
        check_survives(ServerRecord::Held(held), &record_limits());
        check_survives(ServerRecord::Failed { code, reason }, &record_limits());
        let RowsRecord { position, rows: count, payload, .. } = rows.clone();
        check_survives(ServerRecord::Rows { position, rows: count, payload }, &limits);
        check_survives(DeviceRecord::Rows(rows), &limits);
        let short = RecordLimits { positions_max: limits.positions_max - 1, ..limits };
        let header = RecordHeader { kind: RecordKind::Rows, flags: 1, rows: count, position, body_bytes: 9 };
        prop_assert!(matches!(header.check(&short), Err(RecordError::TooLong { .. })), "one position too few");
    }

    /// Goal: no bytes make a reader panic. Method: noise behind each kind, and good bytes, slightly spoilt.
    #[test]
    fn no_bytes_panic(
        kind in 0..8_u8,
        noise in vec(any::<u8>(), 0..80),
        record in prop_oneof![opens(), rows().prop_map(|(_, rows)| DeviceRecord::Rows(rows))],
        tokens in tokens(),
        edits in vec((0..60_usize, any::<u8>()), 0..4),
        length in 0..200_usize,
    ) {
        let limits = record_limits();
        check_any_bytes(&[&[kind][..], &noise].concat(), &limits);
        for mut bytes in [record.encode().unwrap(), tokens.encode().unwrap()] {
            for (place, byte) in &edits {
                let place = place % bytes.len();
                bytes[place] = *byte;
            }
            check_any_bytes(&bytes, &limits);
            bytes.truncate(length);
            check_any_bytes(&bytes, &limits);
        }
    }

    /// Goal: a row is read as the same, whatever is beside it and however often it is sent. Method: rows together and each alone, in each
    /// encoding that generation may travel in, with zeros, outliers and rows unlike each other.
    #[test]
    fn rows_do_not_depend_on_their_neighbours(
        encoding in names(),
        rows in vec((any::<bool>(), -20..20_i32, vec(-1.0..1.0_f32, 64)), 1..6),
        seeds in any::<[u64; 2]>(),
    ) {
        prop_assert_eq!(encoding.check_generates(), Ok(()));
        let rows: Vec<Vec<f32>> = rows.into_iter().map(|(is_zero, exponent, values)| {
            let scale = if is_zero { 0.0 } else { 2_f32.powi(exponent) };
            values.into_iter().map(|value| value * scale).collect()
        }).collect();
        let together = encoding.encode(&rows.concat(), 64, seeds[0]).unwrap();
        let together = encoding.decode(&together, rows.len(), 64).unwrap();
        for (row, beside) in rows.iter().zip(together.chunks_exact(64)) {
            let alone = encoding.decode(&encoding.encode(row, 64, seeds[1]).unwrap(), 1, 64).unwrap();
            prop_assert_eq!(&alone, beside, "{}", encoding);
        }
    }
}

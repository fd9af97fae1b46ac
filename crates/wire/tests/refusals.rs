//! What is refused, and by which error: truncated, oversized, misplaced, repeated, impossible.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use cutlayer_wire::*;

fn check_header_refused(limits: &FrameLimits, says: &str, spoil: impl FnOnce(&mut FrameHeader)) {
    let mut header = forward(vec![1, -100, 3]).header;
    header.check(&common::limits()).unwrap();
    spoil(&mut header);
    let error = header.check(limits).expect_err(says).to_string();
    assert!(error.contains(says), "{error:?} does not say {says:?}");
}

/// Goal: a header that lies about size costs nothing. Method: a 4 GiB payload, and counts at their ends.
#[test]
fn oversized_frames_are_refused_by_their_header() {
    let limits = limits();
    let check = |says, spoil: fn(&mut FrameHeader)| check_header_refused(&limits, says, spoil);
    check("4294967296 B are no [3, 2] tensor in bf16: it takes 12 B", |h| h.payload_bytes = 4 << 30);
    check("18446744073709551615 B are no", |h| h.payload_bytes = u64::MAX);
    check("11 B are no [3, 2] tensor", |h| h.payload_bytes -= 1);
    check("Forward frame: 0 B are no", |h| h.payload_bytes = 0);
    check("int8/64 does not fit a hidden size of 2", |h| h.encoding = "int8/64".parse().unwrap());
    check("tokens 0, it must be 1 to 100", |h| h.tokens = 0);
    check("tokens 101", |h| h.tokens = 101);
    check("hidden 3, it must be 2", |h| h.hidden = 3);
    check("segments 0", |h| h.segments = 0);
    check("segments 4, it must be 1 to 3", |h| h.segments = 4);
    check("labels 1, it must be 0, 3 (one a token) or 2 (one a sequence)", |h| h.labels = 1);
    check("labels 4294967295", |h| h.labels = u32::MAX);
    check("samples 1, it must be 2", |h| h.samples = 1);
    check("micro_batches 0, it must be 1 to 256", |h| h.micro_batches = 0);
}

/// Goal: a frame within every count may still be too large. Method: limits narrower than the frame.
#[test]
fn the_frame_limit_is_the_last_word() {
    let exact = 84 + 8 + 12 + 16 + 12;
    let limits = FrameLimits { frame_bytes_max: exact - 1, ..limits() };
    check_header_refused(&limits, "frame of 132 B exceeds 131 B", |_| ());
    let wide = FrameLimits::new(u32::MAX, u32::MAX, u32::MAX);
    assert_eq!(wide.frame_bytes_max, FRAME_BYTES_MAX);
    check_header_refused(&wide, "exceeds 1073741824 B", |h| {
        (h.tokens, h.hidden, h.labels) = (3, u32::MAX, 0);
        h.payload_bytes = 3 * 2 * u64::from(u32::MAX);
    });
}

/// Goal: the largest frame that limits describe passes them. Method: full counts in f32, and a reason.
#[test]
fn limits_admit_what_they_describe() {
    for (hidden, tokens, segments) in [(576, 2048, 8), (1, 1, 1), (64, 10, 10)] {
        let limits = FrameLimits::new(hidden, tokens, segments);
        let mut lengths = vec![1; segments as usize];
        lengths[0] += tokens - segments;
        let payload = vec![0; (tokens * hidden * 4) as usize];
        let labels = vec![0; tokens as usize];
        let (step, round) = (StepId(1), RoundId(1));
        let frame = Frame::forward(step, round, FrameFlags::NONE, Encoding::F32, hidden, lengths, labels, payload);
        frame.header.check(&limits).unwrap();
        let long = "é".repeat(REASON_BYTES_MAX);
        let failed = Frame::failed(&frame.header, &long);
        assert_eq!(failed.payload.len(), REASON_BYTES_MAX);
        failed.header.check(&limits.answering(&frame.header)).unwrap();
    }
}

/// Goal: an answer belongs to the question. Method: another round, step, size and encoding.
#[test]
fn answers_to_something_else_are_refused() {
    let asked = forward(vec![]).header;
    let limits = limits().encoded(Encoding::BF16, Encoding::F32).answering(&asked);
    let check = |says, spoil: fn(&mut FrameHeader)| check_header_refused(&limits, says, spoil);
    check("is of round 8, we are in round 9", |h| h.round = RoundId(8));
    check("answers step 0/0.1, we asked about step 16909060/329223.8", |h| h.step = StepId(1));
    check("tokens 2, it must be 3", |h| h.tokens = 2);
    check("frame is in f32, bf16 was agreed", |h| h.encoding = Encoding::F32);
    check("frame is in bf16, f32 was agreed", |h| h.kind = FrameKind::Gradient);
}

/// Goal: only Forward has labels, and Done has nothing. Method: a surplus in each kind.
#[test]
fn kinds_carry_only_their_own() {
    let limits = limits();
    for kind in [FrameKind::Hidden, FrameKind::Gradient] {
        check_header_refused(&limits, "labels 3", |h| h.kind = kind);
    }
    for kind in [FrameKind::Done, FrameKind::Failed] {
        check_header_refused(&limits, "tokens 3, it must be 0", |h| h.kind = kind);
    }
    let asked = forward(vec![]).header;
    let mut done = Frame::done(&asked, EvalSums::default()).header;
    done.payload_bytes = 1;
    assert!(done.check(&limits).is_err());
    let mut failed = Frame::failed(&asked, "no").header;
    for bytes in [0, REASON_BYTES_MAX as u64 + 1] {
        failed.payload_bytes = bytes;
        assert!(failed.check(&limits).is_err(), "a reason of {bytes} B passed");
    }
}

/// Goal: no impossible loss enters a sum. Method: NaN, Inf, and more right than scored.
#[test]
fn impossible_sums_are_refused() {
    let limits = limits();
    check_header_refused(&limits, "the loss diverged", |h| h.loss_sum = f64::NAN);
    check_header_refused(&limits, "the loss diverged", |h| h.loss_sum = f64::INFINITY);
    check_header_refused(&limits, "with 1 right", |h| h.correct = 1);
}

fn check_frame_bytes_refused(says: &str, spoil: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = forward(vec![1, -100, 3]).encode();
    receive(&bytes, &limits()).unwrap();
    spoil(&mut bytes);
    let error = receive(&bytes, &limits()).expect_err(says).to_string();
    assert!(error.contains(says), "{error:?} does not say {says:?}");
}

/// Goal: bytes that are not our frame are named as what they are. Method: spoil one place at a time.
#[test]
fn foreign_bytes_are_refused() {
    check_frame_bytes_refused("not a cutlayer frame", |bytes| bytes[0] = b'G');
    check_frame_bytes_refused("frame speaks protocol 1, we speak 4", |bytes| bytes[4] = 1);
    check_frame_bytes_refused("frame kind 6 is unknown", |bytes| bytes[6] = 6);
    check_frame_bytes_refused("frame kind 0 is unknown", |bytes| bytes[6] = 0);
    check_frame_bytes_refused("unknown bits 0x0002", |bytes| bytes[7] = 2);
    check_frame_bytes_refused("no encoding has the bytes [03, 00", |bytes| bytes[8] = 3);
    check_frame_bytes_refused("no encoding has the bytes [01, 01", |bytes| bytes[9] = 1);
    check_frame_bytes_refused("unknown bits 0x000b", |bytes| bytes[32] = 11);
    check_frame_bytes_refused("lengths add up to 2 with 1 empty", |bytes| bytes[84] = 0);
    check_frame_bytes_refused("lengths add up to 4 with 0 empty", |bytes| bytes[84] = 2);
    check_frame_bytes_refused("body has 47 B, the header says 48 B", |bytes| {
        bytes.pop();
    });
    check_frame_bytes_refused("body has 49 B, the header says 48 B", |bytes| bytes.push(0));
}

/// Goal: a split body is checked part by part. Method: a byte moved from one part to the other.
#[test]
fn a_body_split_wrongly_is_refused() {
    let frame = forward(vec![]);
    let prefix = frame.encode_prefix();
    let lists = &prefix[FRAME_HEADER_BYTES..];
    assert_eq!(Frame::assemble(frame.header, lists, frame.payload.clone()).unwrap(), frame);
    let payload = frame.payload[1..].to_vec();
    assert!(Frame::assemble(frame.header, lists, payload).is_err());
    assert!(Frame::assemble(frame.header, &lists[1..], frame.payload.clone()).is_err());
}

/// Goal: a label is never an index out of bounds. Method: just inside, just outside, far outside.
#[test]
fn labels_are_classes_or_ignored() {
    forward(vec![1, -100, 3]).check_labels(4).unwrap();
    for label in [4, -1, i32::MIN, i32::MAX] {
        let error = forward(vec![label, 0]).check_labels(4).expect_err("no class").to_string();
        assert!(error.contains(&format!("label {label} ")), "{error}");
    }
}

/// Goal: a failure's reason is text, and never silent. Method: not UTF-8, and none.
#[test]
fn reasons_are_text() {
    let asked = forward(vec![]).header;
    let failed = Frame::failed(&asked, "out of memory");
    assert_eq!(failed.reason(), Some("out of memory"));
    assert_eq!(receive(&failed.encode(), &limits()).unwrap(), failed);
    let header = Frame::failed(&asked, "").header;
    assert!(header.payload_bytes > 0);
    let broken = vec![0xff; header.payload_bytes as usize];
    assert!(matches!(Frame::assemble(header, &[], broken), Err(FrameError::Reason { .. })));
    assert_eq!(forward(vec![]).reason(), None);
}

fn check_message_refused(message: Message, says: &str) {
    let error = encode(&message).expect_err(says).to_string();
    assert!(error.contains(says), "{error:?} does not say {says:?}");
}

/// Goal: impossible messages are stopped at both ends. Method: spoil one field at a time.
#[test]
fn impossible_messages_are_refused() {
    let spoil = |change: fn(&mut Message)| {
        let mut message = hello();
        change(&mut message);
        message
    };
    let long = spoil(|m| {
        if let Message::Hello { name, .. } = m {
            *name = "x".repeat(NAME_BYTES_MAX + 1);
        }
    });
    check_message_refused(long, "name of 129 B exceeds 128 B");
    let none = spoil(|m| {
        if let Message::Hello { encodings, .. } = m {
            encodings.clear();
        }
    });
    check_message_refused(none, "offers 0 parts of encodings");
    let deep = spoil(|m| {
        if let Message::Hello { tail, .. } = m {
            *tail = Some(27);
        }
    });
    check_message_refused(deep, "cuts at 4 and keeps 27 of 30 blocks");
    let flat = spoil(|m| {
        if let Message::Hello { hidden, .. } = m {
            *hidden = 0;
        }
    });
    check_message_refused(flat, "hidden size of 0");
    let sums = EvalSums { loss_sum: f64::NAN, scored: 1, correct: 0 };
    check_message_refused(Message::Evaluated { round: RoundId(1), sums }, "the loss diverged");
    let reason = "x".repeat(REASON_BYTES_MAX + 1);
    check_message_refused(Message::Finish { adapter: RoundId(1), reason }, "reason of 4097 B exceeds 4096 B");
    let (activations, gradients, adapters) = (Encoding::F32, Encoding::F32, Encoding::F32);
    let mut plan = plan();
    let id = RunId { run: 1, start: 1 };
    let lost = Message::Welcome {
        plan: plan.clone(),
        activations,
        gradients,
        adapters,
        client: 1,
        clients: 1,
        id,
        resumed: false,
        awaits: None,
        updated: None,
    };
    check_message_refused(lost, "client 1 of 1");
    plan.optimizer.learning_rate = f32::NAN;
    let idle =
        Message::Welcome { plan, activations, gradients, adapters, client: 0, clients: 1, id, resumed: false, awaits: None, updated: None };
    check_message_refused(idle, "optimizer.learning_rate is NaN");
}

/// Goal: a session of generation is refused for what is wrong with it. Method: spoil one field of its messages at a time.
#[test]
fn impossible_generation_is_refused() {
    let spoil = |says, change: fn(&mut Spoilt)| {
        let mut spoilt = Spoilt { hidden: 576, cut: 4, tail: Some(1), encoding: "int8", name: "alice".into() };
        change(&mut spoilt);
        let Spoilt { hidden, cut, tail, encoding, name } = spoilt;
        let (version, base, encoding) = (PROTOCOL_VERSION, BaseHash([1; 32]), encoding.parse().unwrap());
        check_message_refused(Message::HelloGenerate { version, base, blocks: 30, hidden, cut: CutPoint(cut), tail, encoding, name }, says);
    };
    spoil("HelloGenerate: name of 129 B exceeds 128 B", |s| s.name = "x".repeat(NAME_BYTES_MAX + 1));
    spoil("HelloGenerate cuts at 30 and keeps 1 of 30 blocks", |s| s.cut = 30);
    spoil("HelloGenerate cuts at 4 and keeps 65535 of 30", |s| s.tail = Some(u16::MAX));
    spoil("HelloGenerate says a hidden size of 0", |s| s.hidden = 0);
    spoil("int8/128 does not fit a hidden size of 576", |s| s.encoding = "int8/128");
    spoil("int4+delta is nothing for generating: a sequence has no earlier visit", |s| s.encoding = "int4+delta");
    spoil("int8+stochastic is nothing for generating", |s| s.encoding = "int8+stochastic");
    let welcome =
        |adapters: Vec<String>, positions_max, sessions_max| Message::WelcomeGenerate { start: 1, adapters, positions_max, sessions_max };
    encode(&welcome(vec!["x".repeat(NAME_BYTES_MAX); ADAPTERS_MAX], POSITIONS_MAX, u32::MAX)).expect("all bounds kept");
    check_message_refused(welcome(vec!["x".repeat(NAME_BYTES_MAX + 1)], 1, 1), "WelcomeGenerate: adapters of 129 B exceeds 128 B");
    check_message_refused(welcome(vec!["x".into(); ADAPTERS_MAX + 1], 1, 1), "adapters 1025, it must be 0 to 1024");
    check_message_refused(welcome(vec![], 0, 1), "positions_max 0, it must be 1 to 131072");
    check_message_refused(welcome(vec![], POSITIONS_MAX + 1, 1), "positions_max 131073");
    check_message_refused(welcome(vec![], 1, 0), "sessions_max 0, it must be 1 to");
}

/// What of HelloGenerate can be wrong.
struct Spoilt {
    hidden: u32,
    cut: u16,
    tail: Option<u16>,
    encoding: &'static str,
    name: String,
}

/// Goal: control bytes are refused by length, version, truncation and surplus. Method: one of each.
#[test]
fn foreign_control_bytes_are_refused() {
    let bytes = encode(&hello()).unwrap();
    for end in 0..bytes.len() {
        let error = decode(&bytes[..end]).expect_err("truncated");
        assert!(matches!(error, CodecError::Malformed { .. }), "{end}: {error}");
    }
    let mut surplus = bytes.clone();
    surplus.push(0);
    assert!(matches!(decode(&surplus), Err(CodecError::Trailing { .. })));
    for hello in [hello(), hello_generate()] {
        let mut past = encode(&hello).unwrap();
        past[1] = 1;
        past.truncate(2);
        let error = decode(&past).expect_err("another version").to_string();
        assert!(error.contains("peer speaks protocol 1, we speak 4"), "{error}");
    }
    // Only of what introduces a peer is the second byte a version.
    assert!(matches!(decode(&[8, 1]), Err(CodecError::Malformed { .. })));
    assert!(decode(&vec![0; CONTROL_BYTES_MAX + 1]).is_err());
    assert!(decode(&[11]).is_err());
    let most = u32::try_from(CONTROL_BYTES_MAX).unwrap();
    assert_eq!(CodecError::check_length(most.to_le_bytes()).unwrap(), CONTROL_BYTES_MAX);
    assert!(CodecError::check_length((most + 1).to_le_bytes()).is_err());
    assert!(CodecError::check_length([0xff; 4]).is_err());
}

fn check_adapter_refused(says: &str, spoil: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = adapter().encode();
    assert_eq!(AdapterFrame::decode(&bytes, &AdapterLimits::WIDEST).unwrap(), adapter());
    spoil(&mut bytes);
    let error = AdapterFrame::decode(&bytes, &AdapterLimits::WIDEST).expect_err(says).to_string();
    assert!(error.contains(says), "{error:?} does not say {says:?}");
}

/// Goal: a spoilt adapter is refused for what is wrong with it. Method: spoil one place at a time.
#[test]
fn spoilt_adapters_are_refused() {
    check_adapter_refused("header has 59 B, the header says 60 B", |b| b.truncate(59));
    check_adapter_refused("manifest has 9 B, the header says 10 B", |b| b.truncate(69));
    check_adapter_refused("payload has 19 B, the header says 20 B", |b| b.truncate(89));
    check_adapter_refused("payload has 21 B, the header says 20 B", |b| b.push(0));
    check_adapter_refused("not a cutlayer adapter", |b| b[3] = b'L');
    check_adapter_refused("adapter speaks protocol 0", |b| b[4] = 0);
    check_adapter_refused("reserved bits 0x0002", |b| b[6] = 2);
    check_adapter_refused("reserved bits 0x0000", |b| b[52] = 2);
    check_adapter_refused("no encoding has the bytes [03", |b| b[40] = 3);
    check_adapter_refused("manifest of 4278190090 B exceeds", |b| b[15] = 0xff);
    check_adapter_refused("payload of 1099511627796 B exceeds", |b| b[21] = 1);
    check_adapter_refused("weighs -96", |b| b[31] |= 0x80);
    check_adapter_refused("weighs NaN", |b| b[24..32].fill(0xff));
    check_adapter_refused("cannot be read", |b| b[60] = 200);
    check_adapter_refused("it ends after 5 B", |b| b[60] = 1);
    check_adapter_refused("holds \"a\" twice", |b| b[66] = b'a');
    check_adapter_refused("its shapes hold 6 values, the header says 5", |b| b[64] = 4);
    check_adapter_refused("its shapes take 128 B, the payload has 20 B", |b| b[40] = 1);
}

/// Goal: shapes whose product overflows are refused. Method: a manifest of 2^32 axes multiplied out.
#[test]
fn overflowing_shapes_are_refused() {
    let axis = [0xfc, 0xff, 0xff, 0xff, 0xff];
    let mut manifest = vec![1, 1, b'a', 3];
    manifest.extend(axis.repeat(3));
    let header = AdapterHeader {
        round: RoundId(1),
        manifest_bytes: manifest.len() as u32,
        payload_bytes: 0,
        weight: 1.0,
        base_prefix: 0,
        encoding: Encoding::F32,
        from: None,
        values: 0,
    };
    let error = AdapterFrame::assemble(&header, &manifest, &[]).expect_err("overflow");
    assert!(matches!(error, AdapterFrameError::Values { found: u64::MAX, .. }), "{error}");
}

/// Goal: a receiver that knows its model takes no larger adapter. Method: limits of one value too few.
#[test]
fn limits_follow_the_model() {
    let bytes = adapter().encode();
    assert!(AdapterFrame::decode(&bytes, &AdapterLimits::for_values(5)).is_ok());
    let error = AdapterFrame::decode(&bytes, &AdapterLimits::for_values(4)).expect_err("too large");
    assert!(error.to_string().contains("payload of 20 B exceeds 16 B"), "{error}");
}

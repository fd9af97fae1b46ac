//! Whatever is valid survives the wire; whatever is not is refused without a panic.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use cutlayer_wire::*;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn encodings() -> impl Strategy<Value = Encoding> {
    const NAMES: &[&str] = &["f32", "bf16", "f16", "int8", "int4", "int3+stochastic", "int8+zstd", "topk=0.3"];
    proptest::sample::select(NAMES).prop_map(|name| name.parse().unwrap())
}

fn texts() -> impl Strategy<Value = String> {
    ".{0,40}"
}

fn tasks() -> impl Strategy<Value = Task> {
    let classes = (2..50_usize).prop_map(|count| Task::Classify { labels: (0..count).map(|class| format!("class {class}")).collect() });
    prop_oneof![Just(Task::CausalLm), classes]
}

fn kinds() -> impl Strategy<Value = OptimizerKind> {
    let adamw = (0.0..1.0_f32, 0.0..1.0_f32, 1e-9..1.0_f32, 0.0..1.0_f32);
    let adamw = adamw.prop_map(|(beta1, beta2, eps, weight_decay)| OptimizerKind::AdamW { beta1, beta2, eps, weight_decay });
    prop_oneof![Just(OptimizerKind::Sgd), adamw]
}

prop_compose! {
    fn plans()(
        task in tasks(),
        kind in kinds(),
        (rank, alpha, dropout) in (1..512_u32, 0.1..64.0_f32, 0.0..1.0_f32),
        (rslora, reset_each_round, shared, lockstep) in any::<(bool, bool, bool, bool)>(),
        (learning_rate, clip_norm) in (1e-7..1.0_f32, proptest::option::of(0.1..9.0_f32)),
        (sequences, tokens_max) in (1..512_u32, 2..4096_u32),
        (rounds, local_steps, evaluate_every) in (1..1000_u32, 1..1000_u32, any::<u32>()),
        seed in 0..=i64::MAX as u64,
    ) -> Plan {
        let specimen = plan();
        Plan {
            task,
            adapter: LoraSpec { rank, alpha, rslora, dropout, ..specimen.adapter },
            optimizer: OptimizerSpec {
                kind, learning_rate, clip_norm, reset_each_round, warmup_steps: 0,
                ..specimen.optimizer
            },
            batch: BatchSpec { sequences, tokens_max, ..specimen.batch },
            rounds,
            local_steps,
            seed,
            server_adapters: if shared { ServerAdapters::Shared } else { ServerAdapters::PerClient },
            step_order: if lockstep { StepOrder::Lockstep } else { StepOrder::Arrival },
            weighting: specimen.weighting,
            evaluate_every,
            pipeline: specimen.pipeline,
        }
    }
}

prop_compose! {
    fn hellos()(
        version in Just(PROTOCOL_VERSION),
        base in any::<[u8; 32]>(),
        (cut, tail, spare) in (0..1000_u16, proptest::option::of(0..1000_u16), 0..1000_u16),
        hidden in 1..u32::MAX,
        encodings in vec(proptest::sample::select(&EncodingPart::ALL[..]), 1..=ENCODINGS_MAX),
        (samples, eval_samples) in any::<(u64, u64)>(),
        resume in proptest::option::of(any::<(u64, u32, Option<u32>)>()),
        name in texts().prop_map(|text| text.chars().take(32).collect()),
    ) -> Message {
        let resume = resume.map(|(run, start, holds)| Resume { id: RunId { run, start }, holds: holds.map(RoundId) });
        let (base, cut, blocks) = (BaseHash(base), CutPoint(cut), cut + tail.unwrap_or(0) + spare);
        Message::Hello {
            version, base, blocks, hidden, cut, tail, encodings, samples, eval_samples, name, resume,
        }
    }
}

prop_compose! {
    fn hellos_generate()(
        base in any::<[u8; 32]>(),
        (cut, tail, spare) in (0..1000_u16, proptest::option::of(0..1000_u16), 0..1000_u16),
        hidden in 1..10_000_u32,
        encoding in proptest::sample::select(&["f32", "bf16", "int8", "int4", "topk=0.3", "int8+zstd"][..]),
        name in texts().prop_map(|text| text.chars().take(32).collect()),
    ) -> Message {
        let (version, encoding) = (PROTOCOL_VERSION, encoding.parse().unwrap());
        let (base, cut, blocks) = (BaseHash(base), CutPoint(cut), cut + tail.unwrap_or(0) + spare);
        Message::HelloGenerate { version, base, blocks, hidden, cut, tail, encoding, name }
    }
}

fn welcomes_generate() -> impl Strategy<Value = Message> {
    let names = vec("[a-zA-Z0-9_ -]{0,40}", 0..5);
    (any::<u64>(), names, 1..=POSITIONS_MAX, 1..u32::MAX).prop_map(|(start, adapters, positions_max, sessions_max)| {
        Message::WelcomeGenerate { start, adapters, positions_max, sessions_max }
    })
}

fn any_message() -> impl Strategy<Value = Message> {
    let rounds = || any::<u32>().prop_map(RoundId);
    let welcome = (plans(), [encodings(), encodings(), encodings()], 0..9_u32, 9..99_u32);
    let welcome = welcome.prop_map(|(plan, [activations, gradients, adapters], client, clients)| Message::Welcome {
        plan,
        activations,
        gradients,
        adapters,
        client,
        clients,
        id: RunId { run: client.into(), start: clients },
        resumed: client == 0,
        awaits: (client > 1).then_some(Ask::Train(RoundId(client))),
        updated: (client > 2).then_some(RoundId(clients)),
    });
    let evaluated = (rounds(), 0.0..1e12_f64, any::<u32>(), any::<u32>()).prop_map(|(round, loss_sum, more, correct)| {
        let (scored, correct) = (u64::from(correct) + u64::from(more), u64::from(correct));
        Message::Evaluated { round, sums: EvalSums { loss_sum, scored, correct } }
    });
    let settled = (rounds(), any::<bool>(), texts()).prop_map(|(round, accepted, reason)| Message::Settled { round, accepted, reason });
    prop_oneof![
        hellos(),
        welcome,
        texts().prop_map(|reason| Message::Refused { code: RefusalCode::Full, reason }),
        rounds().prop_map(|round| Message::Train { round }),
        rounds().prop_map(|round| Message::Evaluate { round }),
        evaluated,
        settled,
        texts().prop_map(|reason| Message::Finish { adapter: RoundId(reason.len() as u32), reason }),
        texts().prop_map(|reason| Message::Goodbye { reason }),
        hellos_generate(),
        welcomes_generate(),
    ]
}

prop_compose! {
    fn frames()(
        lengths in vec(1..20_u32, 1..8),
        hidden in 1..20_u32,
        encoding in encodings(),
        labels in 0..3_u8,
        bits in 0..4_u16,
        (step, round, fill) in any::<(u64, u32, u8)>(),
    ) -> Frame {
        let tokens: u32 = lengths.iter().sum();
        let labels = match labels {
            0 => vec![],
            1 => vec![-100; tokens as usize],
            _ => vec![7; lengths.len()],
        };
        let bytes = encoding.payload_bytes_max(tokens, hidden).unwrap() as usize;
        let flags = FrameFlags::from_bits(bits).unwrap();
        let (step, round, payload) = (StepId(step), RoundId(round), vec![fill; bytes]);
        let samples = if bits < 2 { vec![fill.into(); lengths.len()] } else { vec![] };
        let frame = Frame::forward(step, round, flags, encoding, hidden, lengths, labels, payload).micro(1 + bits, 9);
        if samples.is_empty() { frame } else { frame.numbered(samples) }
    }
}

prop_compose! {
    fn adapters()(
        tensors in btree_map("[a-z._0-9]{1,40}", vec(0..6_usize, 0..4), 0..12),
        (round, weight, base, fill) in
            (any::<u32>(), 0.0..1e15_f64, any::<[u8; 32]>(), -9.0..9.0_f32),
    ) -> AdapterFrame {
        let tensor = |shape: Vec<usize>| {
            let mut tensor = HostTensor::zeros(shape);
            tensor.values.fill(fill);
            tensor
        };
        let state = tensors.into_iter().map(|(name, shape)| (name, tensor(shape))).collect();
        AdapterFrame::new(RoundId(round), weight, &BaseHash(base), state)
    }
}

/// Bytes that are almost right: a good frame with some of them overwritten, then cut or lengthened.
fn spoilt(bytes: Vec<u8>, edits: &[(usize, u8)], length: usize) -> Vec<u8> {
    let mut bytes = bytes;
    for (place, byte) in edits {
        let place = place % bytes.len();
        bytes[place] = *byte;
    }
    bytes.resize(length.min(bytes.len() + 8), 0);
    bytes
}

fn edits() -> impl Strategy<Value = Vec<(usize, u8)>> {
    vec((0..200_usize, any::<u8>()), 0..4)
}

/// Bytes that parse must be the bytes that we would have written, or the format is ambiguous.
fn check_any_bytes(bytes: &[u8]) {
    if let Ok(message) = decode(bytes) {
        assert_eq!(decode(&encode(&message).unwrap()).unwrap(), message);
    }
    if let Ok(frame) = AdapterFrame::decode(bytes, &AdapterLimits::WIDEST) {
        let again = AdapterFrame::decode(&frame.encode(), &AdapterLimits::WIDEST).unwrap();
        // What is rounded once more may round elsewhere.
        assert!(again.encode() == frame.encode() || !frame.encoding.is_lossless());
    }
    if bytes.len() >= FRAME_HEADER_BYTES
        && let Ok(frame) = receive(bytes, &FrameLimits::new(2, 100, 10))
    {
        assert_eq!(frame.encode(), bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Goal: every valid message survives. Method: through bytes and back.
    #[test]
    fn messages_survive(message in any_message()) {
        let bytes = encode(&message).unwrap();
        prop_assert_eq!(decode(&bytes).unwrap(), message);
    }

    /// Goal: every valid frame survives, and so do its answers. Method: through bytes and back.
    #[test]
    fn frames_survive(frame in frames(), reason in texts()) {
        let limits = FrameLimits::new(frame.header.hidden, 200, 8);
        prop_assert_eq!(&receive(&frame.encode(), &limits).unwrap(), &frame);
        let limits = limits.answering(&frame.header);
        let sums = EvalSums { loss_sum: 2.0, scored: 3, correct: 1 };
        let tensor = frame.payload.clone();
        let encoding = frame.header.encoding;
        for answer in [
            Frame::hidden(&frame.header, encoding, tensor.clone()),
            Frame::gradient(&frame.header, encoding, sums, tensor),
            Frame::done(&frame.header, sums),
            Frame::failed(&frame.header, &reason),
        ] {
            prop_assert_eq!(&receive(&answer.encode(), &limits).unwrap(), &answer);
        }
    }

    /// Goal: every valid adapter survives. Method: through bytes and back.
    #[test]
    fn adapters_survive(frame in adapters()) {
        let bytes = frame.encode();
        prop_assert_eq!(AdapterFrame::decode(&bytes, &AdapterLimits::WIDEST).unwrap(), frame);
    }

    /// Goal: no bytes make a decoder panic. Method: noise.
    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..300)) {
        check_any_bytes(&bytes);
    }

    /// Goal: no bytes make a decoder panic. Method: good bytes, slightly spoilt, which get much further.
    #[test]
    fn spoilt_bytes_never_panic(
        message in any_message(),
        frame in adapters(),
        edits in edits(),
        length in 0..400_usize,
    ) {
        for bytes in [encode(&message).unwrap(), frame.encode(), forward(vec![1, 2]).encode()] {
            check_any_bytes(&spoilt(bytes.clone(), &edits, bytes.len()));
            check_any_bytes(&spoilt(bytes, &edits, length));
        }
    }
}

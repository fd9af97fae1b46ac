//! Specimens shared by the tests: one of each message and frame, with every field told apart.

#![allow(dead_code)] // Each test binary uses its own part.

use cutlayer_wire::*;

pub fn plan() -> Plan {
    Plan {
        task: Task::Classify { labels: vec!["no".into(), "yes".into()] },
        adapter: LoraSpec { rank: 8, alpha: 16.0, rslora: true, dropout: 0.5, targets: vec!["q_proj".into()] },
        optimizer: OptimizerSpec {
            kind: OptimizerKind::AdamW { beta1: 0.5, beta2: 0.25, eps: 0.125, weight_decay: 2.0 },
            learning_rate: 1.0,
            schedule: Schedule::Cosine,
            warmup_steps: 3,
            clip_norm: Some(4.0),
            reset_each_round: true,
        },
        batch: BatchSpec { sequences: 4, tokens_max: 300, layout: Layout::Padded, group_by_length: true },
        rounds: 5,
        local_steps: 6,
        seed: 7,
        server_adapters: ServerAdapters::Shared,
        step_order: StepOrder::Lockstep,
        weighting: Weighting::Samples,
        evaluate_every: 2,
        pipeline: Pipeline { micro_batches: 4, staleness: 3 },
    }
}

pub fn hello() -> Message {
    Message::Hello {
        version: PROTOCOL_VERSION,
        base: BaseHash([0xab; 32]),
        blocks: 30,
        hidden: 576,
        cut: CutPoint(4),
        tail: Some(1),
        encodings: vec![EncodingPart::Bf16, EncodingPart::F32],
        samples: 1000,
        eval_samples: 70_000,
        name: "alice".into(),
        resume: Some(Resume { id: RunId { run: 77, start: 1 }, holds: Some(RoundId(3)) }),
    }
}

pub fn messages() -> Vec<Message> {
    let round = RoundId(3);
    vec![
        hello(),
        Message::Welcome {
            plan: plan(),
            activations: Encoding::BF16,
            gradients: Encoding::F32,
            adapters: Encoding::INT8,
            client: 2,
            clients: 9,
            id: RunId { run: 77, start: 2 },
            resumed: true,
            awaits: Some(Ask::Evaluate(RoundId(4))),
            updated: Some(RoundId(4)),
        },
        Message::Refused { code: RefusalCode::Cut, reason: "cut".into() },
        Message::Train { round },
        Message::Evaluate { round },
        Message::Evaluated { round, sums: EvalSums { loss_sum: 1.5, scored: 300, correct: 20 } },
        Message::Settled { round, accepted: true, reason: "ok".into() },
        Message::Finish { adapter: RoundId(5), reason: "done".into() },
        Message::Goodbye { reason: "bye".into() },
        hello_generate(),
        Message::WelcomeGenerate {
            start: 0x0102_0304_0506_0708,
            adapters: vec!["a".into(), "bc".into()],
            positions_max: 2048,
            sessions_max: 300,
        },
    ]
}

pub fn hello_generate() -> Message {
    Message::HelloGenerate {
        version: PROTOCOL_VERSION,
        base: BaseHash([0xab; 32]),
        blocks: 30,
        hidden: 576,
        cut: CutPoint(4),
        tail: Some(1),
        encoding: Encoding::INT8,
        name: "alice".into(),
    }
}

/// Rows of four values, in int8: six bytes each.
pub fn record_limits() -> RecordLimits {
    RecordLimits { hidden: 4, encoding: Encoding::INT8, positions_max: 2000 }
}

pub fn open() -> Open {
    let sampling = SamplingSpec {
        temperature: 0.5,
        top_k: 40,
        top_p: 0.25,
        min_p: 0.125,
        repetition_penalty: 2.0,
        presence_penalty: -1.0,
        frequency_penalty: 4.0,
        logit_bias: vec![(7, -100.0)],
        seed: 300,
        logprobs: Some(2),
    };
    Open {
        adapter: Some("tales".into()),
        sampling: Some(sampling),
        tokens_max: 1000,
        prefix: vec![PageDigest([0x11; 16]), PageDigest([0x22; 16])],
        generated: (33, vec![5, 70_000]),
    }
}

pub fn rows_record(digests: usize) -> RowsRecord {
    let digests = (0..digests).map(|page| PageDigest([page as u8; 16])).collect();
    RowsRecord { position: 0x102, rows: 2, wanted: Wanted::All, digests, payload: (1..=12).collect() }
}

/// One of each that a device says.
pub fn device_records() -> Vec<DeviceRecord> {
    let bare = Open { adapter: None, sampling: None, tokens_max: 1, prefix: vec![], generated: (0, vec![]) };
    let last = RowsRecord { wanted: Wanted::Last, rows: 1, payload: (1..=6).collect(), ..rows_record(0) };
    vec![DeviceRecord::Open(open()), DeviceRecord::Open(bare), DeviceRecord::Rows(rows_record(2)), DeviceRecord::Rows(last)]
}

/// One of each that a server says.
pub fn server_records() -> Vec<ServerRecord> {
    let plain = |id: u32| Drawn { id, logprob: None, top: vec![] };
    let likely = Drawn { id: 7, logprob: Some(-0.5), top: vec![(7, -0.5), (9, -2.0)] };
    let sure = Drawn { id: 8, logprob: Some(0.0), top: vec![] };
    vec![
        ServerRecord::Held(0x102),
        ServerRecord::Tokens { position: 5, drawn: vec![plain(7), plain(70_000)] },
        ServerRecord::Tokens { position: 5, drawn: vec![likely, sure] },
        ServerRecord::Rows { position: 9, rows: 1, payload: (1..=6).collect() },
        ServerRecord::Failed { code: FailureCode::Busy, reason: "é".into() },
    ]
}

/// Two sequences of one and two tokens, at hidden 2.
pub fn forward(labels: Vec<i32>) -> Frame {
    Frame::forward(
        StepId(0x0102_0304_0506_0708),
        RoundId(9),
        FrameFlags::TRAIN.with(FrameFlags::NEEDS_GRADIENT),
        Encoding::BF16,
        2,
        vec![1, 2],
        labels,
        (1..=12).collect(),
    )
    .micro(3, 6)
    .numbered(vec![10, 11])
}

pub fn limits() -> FrameLimits {
    FrameLimits::new(2, 100, 10)
}

/// What a receiver does with bytes: header, check, body.
pub fn receive(bytes: &[u8], limits: &FrameLimits) -> Result<Frame, FrameError> {
    let (header, body) = bytes.split_first_chunk().expect("a whole header");
    let header = FrameHeader::decode(header)?;
    let plan = header.check(limits)?;
    Frame::assemble_whole(header, &plan, body.to_vec())
}

pub fn adapter() -> AdapterFrame {
    let state = [
        ("b", HostTensor::new(vec![2, 1], vec![1.0, -2.0]).expect("two values")),
        ("a", HostTensor::new(vec![3], vec![0.5, 0.0, 4.0]).expect("three values")),
    ];
    let state = state.map(|(name, tensor)| (name.to_string(), tensor)).into();
    AdapterFrame::new(RoundId(7), 96.0, &BaseHash(std::array::from_fn(|i| i as u8)), state)
}

pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

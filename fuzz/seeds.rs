//! Writes the corpora that fuzzing starts from: `seeds FOLDER`, a folder a target. Encoded here, so that a
//! change of the protocol changes them with it; none may be refused by the decoder that it is for.

use std::collections::BTreeMap;
use std::path::Path;

use cutlayer_durable::{Saved, Store};
use cutlayer_wire::*;

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| panic!("usage: seeds FOLDER"));
    let folder = Path::new(&folder);
    for message in messages() {
        let bytes = encode(&message).expect("a message of ours");
        assert_eq!(decode(&bytes).expect("our own bytes"), message);
        write(folder, "control_message", message.name(), &bytes)?;
    }
    for (name, frame) in frames() {
        let bytes = frame.encode();
        write(folder, "frame", name, &bytes)?;
        // Wide limits, none of the optional ones: what follows is refused for itself alone.
        let mut wide = [0; 20];
        wide[0..4].copy_from_slice(&frame.header.hidden.to_le_bytes());
        wide[4..8].copy_from_slice(&1000_u32.to_le_bytes());
        wide[8..12].copy_from_slice(&100_u32.to_le_bytes());
        (wide[17], wide[18]) = (255, 255);
        frame.header.check(&FrameLimits::new(frame.header.hidden, 1000, 100)).expect("a frame of ours");
        write(folder, "frame_header", name, &[&wide[..], &frame.header.encode()].concat())?;
    }
    for (name, frame) in adapters() {
        let bytes = frame.encode();
        AdapterFrame::decode(&bytes, &AdapterLimits::for_values(1 << 16)).expect("an adapter of ours");
        write(folder, "adapter_frame", name, &bytes)?;
    }
    for name in ["f32", "bf16", "f16", "int8", "int4/8", "int4/8+hadamard", "int8+topk=0.5", "bf16+zstd"] {
        let encoding: Encoding = name.parse().expect("an encoding");
        let payload = encoding.encode(&[0.0, 1.0, -1.5, 0.25, 7.0, f32::MIN_POSITIVE, 1e30, 3.0], 8, 1).expect("a row of eight");
        write(folder, "encoding", &name.replace('/', "-"), &[&encoding.to_bytes()[..], &[1, 1], &payload].concat())?;
    }
    for (name, bytes) in records() {
        write(folder, "record", name, &bytes)?;
    }
    for (name, happenings) in sessions() {
        write(folder, "session", name, &happenings.concat())?;
    }
    checkpoints(folder)
}

/// Whole, and without the checksum that the target puts to their end.
fn checkpoints(folder: &Path) -> std::io::Result<()> {
    let scratch = tempfile::tempdir()?;
    let store = Store::open(scratch.path()).expect("a folder of ours");
    let tensor = |shape: &[usize]| HostTensor { shape: shape.to_vec(), values: vec![f32::NAN; shape.iter().product()] };
    let state = BTreeMap::from([("step".to_owned(), "7".to_owned())]);
    for (name, tensors) in [("empty", vec![]), ("two", vec![("a", tensor(&[2, 3])), ("b.c", tensor(&[]))])] {
        let tensors = tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        store.save("read", 1, &Saved { state: state.clone(), tensors }).expect("a checkpoint of ours");
        let bytes = std::fs::read(scratch.path().join("read.1.safetensors"))?;
        write(folder, "checkpoint", name, &bytes)?;
        write(folder, "checkpoint", &format!("{name}_open"), &bytes[..bytes.len() - blake3::OUT_LEN])?;
    }
    Ok(())
}

fn write(folder: &Path, target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let folder = folder.join(target);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(name), bytes)
}

fn plan(task: Task, kind: OptimizerKind) -> Plan {
    Plan {
        task,
        adapter: LoraSpec { rank: 8, alpha: 16.0, rslora: true, dropout: 0.5, targets: vec!["q_proj".into(), "v_proj".into()] },
        optimizer: OptimizerSpec {
            kind,
            learning_rate: 1e-3,
            schedule: Schedule::Cosine,
            warmup_steps: 3,
            clip_norm: Some(1.0),
            reset_each_round: true,
        },
        batch: BatchSpec { sequences: 4, tokens_max: 300, layout: Layout::Padded, group_by_length: true },
        rounds: 5,
        local_steps: 6,
        seed: 7,
        server_adapters: ServerAdapters::PerClient,
        step_order: StepOrder::Lockstep,
        weighting: Weighting::Tokens,
        evaluate_every: 2,
        pipeline: Pipeline { micro_batches: 4, staleness: 1 },
    }
}

/// One of each. Names of files: a message twice in one form would be one file.
fn messages() -> Vec<Message> {
    let round = RoundId(3);
    let task = Task::Classify { labels: vec!["no".into(), "yes".into()] };
    let kind = OptimizerKind::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    vec![
        Message::Hello {
            version: PROTOCOL_VERSION,
            base: BaseHash([0xab; 32]),
            blocks: 30,
            hidden: 576,
            cut: CutPoint(4),
            tail: Some(1),
            encodings: EncodingPart::ALL.to_vec(),
            samples: 1000,
            eval_samples: 70_000,
            name: "alice".into(),
            resume: Some(Resume { id: RunId { run: 9, start: 1 }, holds: Some(round) }),
        },
        Message::Welcome {
            plan: plan(task, kind),
            activations: Encoding::BF16,
            gradients: Encoding::F32,
            adapters: Encoding::F32,
            client: 2,
            clients: 9,
            id: RunId { run: 9, start: 2 },
            resumed: false,
            awaits: Some(Ask::Train(round)),
            updated: Some(RoundId(2)),
        },
        Message::Refused { code: RefusalCode::Cut, reason: "cut".into() },
        Message::Train { round },
        Message::Evaluate { round },
        Message::Evaluated { round, sums: EvalSums { loss_sum: 1.5, scored: 300, correct: 20 } },
        Message::Settled { round, accepted: true, reason: "ok".into() },
        Message::Finish { adapter: round, reason: "done".into() },
        Message::Goodbye { reason: "bye".into() },
        Message::HelloGenerate {
            version: PROTOCOL_VERSION,
            base: BaseHash([0xab; 32]),
            blocks: 30,
            hidden: 576,
            cut: CutPoint(4),
            tail: None,
            encoding: Encoding::INT8,
            name: "alice".into(),
        },
        Message::WelcomeGenerate { start: 9, adapters: vec!["tales".into(), "a b".into()], positions_max: 2048, sessions_max: 256 },
    ]
}

/// One of each, after the bytes that choose int8, a hidden size of 8 and a thousand positions.
fn records() -> Vec<(&'static str, Vec<u8>)> {
    let limits = RecordLimits { hidden: 8, encoding: Encoding::INT8, positions_max: 1000 };
    let chosen = |record: Vec<u8>| [&[0, 1, 0xe8, 3], &record[..]].concat();
    let digest = |page: u8| PageDigest([page; 16]);
    let sampling = SamplingSpec { temperature: 0.7, top_p: 0.9, logit_bias: vec![(5, -100.0)], logprobs: Some(2), ..SamplingSpec::GREEDY };
    let open = Open {
        adapter: Some("tales".into()),
        sampling: Some(sampling),
        tokens_max: 300,
        prefix: vec![digest(1), digest(2)],
        generated: (30, vec![4, 70_000]),
    };
    let u_shaped = Open { adapter: None, sampling: None, tokens_max: 1, prefix: vec![], generated: (0, vec![]) };
    let payload = |rows: usize| Encoding::INT8.encode(&vec![1.5; 8 * rows], 8, 1).expect("rows of eight");
    let prompt = RowsRecord { position: 32, rows: 3, wanted: Wanted::None, digests: vec![digest(3)], payload: payload(3) };
    let row = RowsRecord { position: 35, rows: 1, wanted: Wanted::Last, digests: vec![], payload: payload(1) };
    let likely = Drawn { id: 7, logprob: Some(-0.5), top: vec![(7, -0.5), (9, -2.0)] };
    let plain = Drawn { id: 7, logprob: None, top: vec![] };
    let device = [
        ("open", DeviceRecord::Open(open)),
        ("open_u_shaped", DeviceRecord::Open(u_shaped)),
        ("prompt", DeviceRecord::Rows(prompt)),
        ("row", DeviceRecord::Rows(row)),
    ];
    let server = [
        ("held", ServerRecord::Held(32)),
        ("token", ServerRecord::Tokens { position: 35, drawn: vec![plain] }),
        ("tokens_likely", ServerRecord::Tokens { position: 35, drawn: vec![likely.clone(), likely] }),
        ("hidden", ServerRecord::Rows { position: 35, rows: 2, payload: payload(2) }),
        ("failed", ServerRecord::Failed { code: FailureCode::TooLong, reason: "shorten it".into() }),
    ];
    let mut records = Vec::new();
    for (name, record) in device {
        let bytes = record.clone().encode().expect("a record of ours");
        assert_eq!(DeviceRecord::decode(&bytes, &limits).expect("our own bytes"), record);
        records.push((name, chosen(bytes)));
    }
    for (name, record) in server {
        let bytes = record.clone().encode().expect("a record of ours");
        assert_eq!(ServerRecord::decode(&bytes, &limits).expect("our own bytes"), record);
        records.push((name, chosen(bytes)));
    }
    records
}

fn frames() -> Vec<(&'static str, Frame)> {
    let flags = FrameFlags::TRAIN.with(FrameFlags::NEEDS_GRADIENT);
    let payload = |encoding: Encoding| encoding.encode(&[1.0; 12], 4, 1).expect("rows of four");
    let forward =
        |encoding: Encoding, labels| Frame::forward(StepId(5), RoundId(2), flags, encoding, 4, vec![1, 2], labels, payload(encoding));
    let asked = forward(Encoding::F32, vec![]);
    let sums = EvalSums { loss_sum: 2.5, scored: 3, correct: 1 };
    vec![
        ("forward", asked.clone()),
        ("forward_micro", asked.clone().micro(4, 9).numbered(vec![7, 8])),
        ("forward_token_labels", forward(Encoding::BF16, vec![1, -100, 3])),
        ("forward_sequence_labels", forward(Encoding::F32, vec![1, 2])),
        ("hidden", Frame::hidden(&asked.header, Encoding::F32, payload(Encoding::F32))),
        ("gradient", Frame::gradient(&asked.header, Encoding::BF16, sums, payload(Encoding::BF16))),
        ("done", Frame::done(&asked.header, sums)),
        ("failed", Frame::failed(&asked.header, "out of memory")),
    ]
}

fn adapters() -> Vec<(&'static str, AdapterFrame)> {
    let tensor = |shape: Vec<usize>| HostTensor { values: vec![0.5; shape.iter().product()], shape };
    let key = |part: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.{part}.weight");
    let both = [(key("lora_A"), tensor(vec![2, 8])), (key("lora_B"), tensor(vec![8, 2]))];
    let odd = [("scalar".to_string(), tensor(vec![])), ("none".to_string(), tensor(vec![4, 0]))];
    let frame = |weight, state: AdapterState| AdapterFrame::new(RoundId(7), weight, &BaseHash([7; 32]), state);
    vec![("lora", frame(96.0, both.into())), ("odd_shapes", frame(1.0, odd.into())), ("empty", frame(0.0, AdapterState::new()))]
}

/// Three bytes a happening: see the target.
fn sessions() -> Vec<(&'static str, Vec<[u8; 3]>)> {
    let hello = [[5, 0, 0], [0, 0, 0], [1, 0, 8], [4, 0, 8]];
    let round = [[1, 1, 2], [4, 1, 2], [7, 0, 0], [6 | 8, 1, 0], [2 | 8, 1, 1], [7, 1, 0], [3, 1, 0], [1, 1, 5], [4, 1, 5]];
    let scores = [[1, 1, 3], [4, 1, 3], [6, 1, 0], [2, 1, 2], [5, 1, 4], [0, 1, 4], [1, 0, 6], [4, 0, 6], [5, 0, 7], [0, 0, 7]];
    vec![("hello", hello.to_vec()), ("round", [&hello[..], &round].concat()), ("run", [&hello[..], &round, &scores].concat())]
}

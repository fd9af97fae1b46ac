//! Sessions: any order of words and streams, on both sides. No order may panic, and no step counts twice.
//!
//! The input is a list of three bytes each: what happens, its round, and its step or kind.
#![no_main]

use cutlayer_wire::*;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (mut server, mut client) = (ServerSession::new(), ClientSession::new());
    let mut last_step = None;
    for happening in bytes.chunks_exact(3) {
        let (what, round, step) = (happening[0], RoundId((happening[1] % 8).into()), happening[2] % 32);
        match what % 8 {
            0 => drop(server.handle(&word(happening[2], round))),
            1 => drop(server.sent(&word(happening[2], round))),
            2 => {
                let train = what & 8 != 0;
                let flags = FrameFlags::NONE.with_if(FrameFlags::TRAIN, train);
                let step = StepId::new(round, train, step.into(), 0);
                let frame = Frame::forward(step, round, flags, Encoding::F32, 1, vec![1], vec![], vec![0; 4]);
                if let Ok(SessionEvent::Step { .. }) = server.step(&frame.header) {
                    assert!(last_step < Some(step), "step {step} after {last_step:?}");
                    last_step = Some(step);
                }
            }
            3 => drop(server.update(round)),
            4 => drop(client.handle(&word(happening[2], round))),
            5 => drop(client.sent(&word(happening[2], round))),
            6 => drop(client.open_step(round, what & 8 != 0, step.into(), 0)),
            7 if what & 8 != 0 => {
                server.resume();
                drop(client.resume(server.awaits()));
            }
            _ => drop((client.update(round), client.adapter(round))),
        }
    }
});

/// A word, through the codec: by number, as the wire has them.
fn word(number: u8, round: RoundId) -> Message {
    let reason = String::new();
    let word = match number % 9 {
        // The words of another kind of session, which no order of this one has room for.
        0 if number >= 252 => Message::HelloGenerate {
            version: PROTOCOL_VERSION,
            base: BaseHash([0; 32]),
            blocks: 1,
            hidden: 1,
            cut: CutPoint(1),
            tail: None,
            encoding: Encoding::INT8,
            name: reason,
        },
        8 if number >= 251 => Message::WelcomeGenerate { start: 0, adapters: vec![], positions_max: 1, sessions_max: 1 },
        0 => hello(),
        1 => Message::Refused { code: RefusalCode::Full, reason },
        2 => Message::Train { round },
        3 => Message::Evaluate { round },
        4 => Message::Evaluated { round, sums: EvalSums::default() },
        5 => Message::Settled { round, accepted: number >= 128, reason },
        6 => Message::Finish { adapter: round, reason },
        7 => Message::Goodbye { reason },
        _ => Message::Welcome {
            plan: plan(),
            activations: Encoding::F32,
            gradients: Encoding::F32,
            adapters: Encoding::F32,
            client: 0,
            clients: 1,
            id: RunId { run: 0, start: 1 },
            resumed: number >= 128,
            awaits: [None, Some(Ask::Train(round)), Some(Ask::Evaluate(round))][usize::from(number / 9) % 3],
            updated: None,
        },
    };
    decode(&encode(&word).expect("a word of ours")).expect("our own bytes")
}

fn hello() -> Message {
    Message::Hello {
        version: PROTOCOL_VERSION,
        base: BaseHash([0; 32]),
        blocks: 1,
        hidden: 1,
        cut: CutPoint(1),
        tail: None,
        encodings: vec![EncodingPart::F32],
        samples: 0,
        eval_samples: 0,
        name: String::new(),
        resume: None,
    }
}

fn plan() -> Plan {
    Plan {
        task: Task::CausalLm,
        adapter: LoraSpec { rank: 1, alpha: 1.0, rslora: false, dropout: 0.0, targets: vec!["q".into()] },
        optimizer: OptimizerSpec {
            kind: OptimizerKind::Sgd,
            learning_rate: 1.0,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            clip_norm: None,
            reset_each_round: false,
        },
        batch: BatchSpec { sequences: 1, tokens_max: 2, layout: Layout::Padded, group_by_length: false },
        rounds: 1,
        local_steps: 1,
        seed: 0,
        server_adapters: ServerAdapters::Shared,
        step_order: StepOrder::Arrival,
        weighting: Weighting::Uniform,
        evaluate_every: 0,
        pipeline: Pipeline::SEQUENTIAL,
    }
}

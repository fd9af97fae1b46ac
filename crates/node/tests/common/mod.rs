//! A small model drawn from a seed, what clients know, and a plan for them.
#![allow(clippy::unwrap_used, dead_code)]

use cutlayer_data::{Record, train_tokenizer};
use cutlayer_model::{DeviceChoice, ExportDtype, Pretrainer, write_model};
use cutlayer_node::{ComputeConfig, ServeConfig};
use cutlayer_transport::LinkConfig;
use cutlayer_wire::{
    AdapterState, BatchSpec, Encoding, Layout, LoraSpec, OptimizerKind, OptimizerSpec, Pipeline, Plan, Schedule, ServerAdapters, StepOrder,
    Task, Weighting,
};
use std::time::Duration;
use tempfile::TempDir;

pub const ROUNDS: u32 = 2;
pub const BLOCKS: u16 = 3;

/// A model folder with a tokenizer, and a run's folder.
pub struct Ground {
    pub model: TempDir,
    pub run: TempDir,
}

pub fn texts(client: usize) -> Vec<Record> {
    (0..12).map(|i| Record::text(format!("client {client} counts {i} and then {} sheep by the river", i * 3 + client))).collect()
}

pub fn ground() -> Ground {
    let (model, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let all: Vec<String> = (0..40).map(|i| format!("client {} counts {i} and then sheep by the river {i}", i % 3)).collect();
    train_tokenizer(all.iter().map(String::as_str), 300, model.path()).unwrap();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true
    });
    let weights = Pretrainer::new(&config, 3, &DeviceChoice::Cpu.open().unwrap()).unwrap().weights();
    let scaled = weights.into_iter().map(|(name, mut tensor)| {
        tensor.values.iter_mut().for_each(|value| *value *= if tensor.shape.len() == 2 { 5.0 } else { 1.0 });
        (name, tensor)
    });
    write_model(model.path(), &config, scaled, ExportDtype::F32).unwrap();
    Ground { model, run }
}

pub fn plan() -> Plan {
    Plan {
        task: Task::CausalLm,
        adapter: LoraSpec { rank: 4, alpha: 8.0, rslora: false, dropout: 0.0, targets: vec!["q_proj".into(), "v_proj".into()] },
        optimizer: OptimizerSpec {
            kind: OptimizerKind::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
            learning_rate: 0.02,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            clip_norm: None,
            reset_each_round: false,
        },
        batch: BatchSpec { sequences: 4, tokens_max: 32, layout: Layout::Padded, group_by_length: false },
        rounds: ROUNDS,
        local_steps: 3,
        seed: 9,
        server_adapters: ServerAdapters::PerClient,
        step_order: StepOrder::Arrival,
        weighting: Weighting::Tokens,
        evaluate_every: 1,
        pipeline: Pipeline::SEQUENTIAL,
    }
}

pub fn serve_config(ground: &Ground, plan: &Plan, clients: u32) -> ServeConfig {
    ServeConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        model: ground.model.path().into(),
        compute: ComputeConfig::default(),
        plan: plan.clone(),
        aggregator: "fedavg".into(),
        starting_adapter: None,
        clients_expected: clients,
        clients_per_round: 0,
        updates_min: clients,
        join_deadline: Duration::from_secs(20),
        round_deadline: Duration::from_secs(20),
        reconnect: Duration::from_secs(1),
        state: None,
        activations: Encoding::F32,
        gradients: Encoding::F32,
        adapters: Encoding::F32,
        first_block: 0,
        head: true,
        link: LinkConfig::default(),
        out: ground.run.path().join("adapter"),
        phases: false,
        batch_bytes_max: 1 << 30,
    }
}

pub fn assert_same(found: &AdapterState, expected: &AdapterState, tolerance: f32, what: &str) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (key, tensor) in found {
        let scale = expected[key].values.iter().fold(1e-12f32, |scale, v| scale.max(v.abs()));
        let worst = tensor.values.iter().zip(&expected[key].values).fold(0f32, |worst, (f, e)| worst.max((f - e).abs()));
        assert!(worst <= tolerance * scale, "{what}: {key} is off by {:e} of its scale", worst / scale);
    }
}

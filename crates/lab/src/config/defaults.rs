//! What a run file need not say. One place, so that a change here is seen; a saved run writes every value out.

use super::cuts::Cuts;
use super::sections::{
    AdapterSection, ClientsSection, LinkSection, Mode, ModelSection, OptimizerName, OptimizerSection, PipelineMode, ServerSection,
    SplitSection, TaskName, TrainSection,
};
use cutlayer_model::{DeviceChoice, Precision};
use cutlayer_wire::{Encoding, Layout, Schedule, ServerAdapters, StepOrder, Weighting};
use std::net::{Ipv4Addr, SocketAddr};

/// Decay of AdamW's mean of gradients.
pub(super) const BETA1: f32 = 0.9;
/// Decay of AdamW's mean of squares.
pub(super) const BETA2: f32 = 0.999;
/// Added to AdamW's root.
pub(super) const EPS: f32 = 1e-8;
/// AdamW's decoupled decay.
pub(super) const WEIGHT_DECAY: f32 = 0.01;

pub(super) fn seed() -> u64 {
    1
}

pub(super) fn model() -> ModelSection {
    ModelSection { path: None, adapter: None }
}

pub(super) fn adapter() -> AdapterSection {
    let targets = vec!["q_proj".into(), "v_proj".into()];
    AdapterSection { rank: 8, alpha: 16.0, rslora: false, dropout: 0.0, targets }
}

pub(super) fn split() -> SplitSection {
    SplitSection {
        mode: Mode::Split,
        cut: Cuts::Same(1),
        tail: None,
        server_adapters: ServerAdapters::PerClient,
        step_order: StepOrder::Lockstep,
    }
}

pub(super) fn train() -> TrainSection {
    TrainSection {
        task: TaskName::CausalLm,
        labels: Vec::new(),
        rounds: 5,
        local_steps: 20,
        sequences: 8,
        tokens_max: 256,
        layout: Layout::Padded,
        group_by_length: false,
        evaluate_every: 1,
        micro_batches: 1,
        pipeline: PipelineMode::Exact,
    }
}

pub(super) fn optimizer() -> OptimizerSection {
    OptimizerSection {
        kind: OptimizerName::AdamW,
        learning_rate: 1e-3,
        schedule: Schedule::Constant,
        warmup_steps: 0,
        clip_norm: None,
        reset_each_round: false,
        beta1: None,
        beta2: None,
        eps: None,
        weight_decay: None,
    }
}

pub(super) fn clients() -> ClientsSection {
    ClientsSection { count: 3, per_round: 0, device: DeviceChoice::Cpu, precision: Precision::F32, checkpointing: false }
}

pub(super) fn server() -> ServerSection {
    ServerSection {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        device: DeviceChoice::Cpu,
        precision: Precision::F32,
        checkpointing: false,
        batching: true,
        batch_memory_mib: 1024,
        aggregator: "fedavg".into(),
        weighting: Weighting::Tokens,
        updates_min: 0,
        join_deadline_s: 120,
        round_deadline_s: 600,
        reconnect_s: 120,
    }
}

pub(super) fn link() -> LinkSection {
    LinkSection {
        encoding: None,
        quality_budget: 0.005,
        activations: Encoding::F32,
        gradients: Encoding::F32,
        adapters: Encoding::F32,
        bandwidth_mbit: 1000,
        rtt_ms: 20,
        idle_timeout_s: 30,
        step_timeout_s: 600,
        reconnect_s: 600,
        profile: None,
        emulate: None,
    }
}

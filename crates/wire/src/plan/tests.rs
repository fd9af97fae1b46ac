//! Plans that can be carried out, plans that cannot, and both spellings of them.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::plan_parts::{OptimizerKind, Schedule};

fn plan() -> Plan {
    Plan {
        task: Task::CausalLm,
        adapter: LoraSpec { rank: 8, alpha: 16.0, rslora: false, dropout: 0.0, targets: vec!["q_proj".into(), "v_proj".into()] },
        optimizer: OptimizerSpec {
            kind: OptimizerKind::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
            learning_rate: 1e-3,
            schedule: Schedule::Linear,
            warmup_steps: 10,
            clip_norm: Some(1.0),
            reset_each_round: false,
        },
        batch: BatchSpec { sequences: 4, tokens_max: 128, layout: Layout::Padded, group_by_length: false },
        rounds: 5,
        local_steps: 20,
        seed: 7,
        server_adapters: ServerAdapters::PerClient,
        step_order: StepOrder::Lockstep,
        weighting: Weighting::Tokens,
        evaluate_every: 1,
        pipeline: Pipeline::SEQUENTIAL,
    }
}

fn check_refused(field: &str, spoil: impl FnOnce(&mut Plan)) {
    let mut plan = plan();
    plan.validate().unwrap();
    spoil(&mut plan);
    let error = plan.validate().expect_err(field);
    assert_eq!(error.field, field, "{error}");
    let text = error.to_string();
    assert!(text.contains(field) && text.contains(error.remedy), "{text}");
}

fn classes(labels: &[&str]) -> Task {
    Task::Classify { labels: labels.iter().map(|label| (*label).to_string()).collect() }
}

fn adamw(spoil: impl FnOnce(&mut [f32; 4])) -> OptimizerKind {
    let mut fields = [0.9, 0.999, 1e-8, 0.0];
    spoil(&mut fields);
    let [beta1, beta2, eps, weight_decay] = fields;
    OptimizerKind::AdamW { beta1, beta2, eps, weight_decay }
}

/// Goal: no unusable number starts a run. Method: spoil one field at a time; the error names it.
#[test]
fn every_field_is_checked_by_name() {
    check_refused("adapter.rank", |p| p.adapter.rank = 0);
    check_refused("adapter.rank", |p| p.adapter.rank = u32::MAX);
    check_refused("adapter.alpha", |p| p.adapter.alpha = f32::NAN);
    check_refused("adapter.alpha", |p| p.adapter.alpha = 0.0);
    check_refused("adapter.dropout", |p| p.adapter.dropout = 1.0);
    check_refused("adapter.dropout", |p| p.adapter.dropout = f32::NAN);
    check_refused("adapter.targets", |p| p.adapter.targets.clear());
    check_refused("adapter.targets", |p| p.adapter.targets[0].clear());
    check_refused("adapter.targets", |p| p.adapter.targets[0] = "v_proj".into());
    check_refused("optimizer.learning_rate", |p| p.optimizer.learning_rate = 0.0);
    check_refused("optimizer.learning_rate", |p| p.optimizer.learning_rate = f32::INFINITY);
    check_refused("optimizer.clip_norm", |p| p.optimizer.clip_norm = Some(-1.0));
    check_refused("optimizer.warmup_steps", |p| p.optimizer.warmup_steps = 100);
    check_refused("optimizer.kind.adamw.beta1", |p| p.optimizer.kind = adamw(|a| a[0] = 1.0));
    check_refused("optimizer.kind.adamw.beta2", |p| p.optimizer.kind = adamw(|a| a[1] = -0.1));
    check_refused("optimizer.kind.adamw.eps", |p| p.optimizer.kind = adamw(|a| a[2] = 0.0));
    check_refused("optimizer.kind.adamw.weight_decay", |p| {
        p.optimizer.kind = adamw(|a| a[3] = f32::NAN);
    });
    check_refused("batch.sequences", |p| p.batch.sequences = 0);
    check_refused("batch.sequences", |p| {
        (p.batch.sequences, p.batch.tokens_max) = (65_536, 1 << 20);
    });
    check_refused("batch.group_by_length", |plan| plan.batch = BatchSpec { layout: Layout::Packed, group_by_length: true, ..plan.batch });
    check_refused("batch.tokens_max", |p| p.batch.tokens_max = 1);
    check_refused("local_steps", |p| p.local_steps = 0);
    check_refused("rounds", |p| (p.rounds, p.local_steps) = (1 << 20, 1 << 20));
    check_refused("seed", |p| p.seed = u64::MAX);
    check_refused("task.classify.labels", |p| p.task = classes(&["only one"]));
    check_refused("task.classify.labels", |p| p.task = classes(&["a", "a"]));
    check_refused("task.classify.labels", |p| p.task = classes(&["a", ""]));
}

/// Goal: a run may only evaluate. Method: no rounds, and a warm-up that would otherwise be too long.
#[test]
fn a_run_of_no_rounds_is_valid() {
    Plan { rounds: 0, ..plan() }.validate().unwrap();
}

/// Goal: the scale is PEFT's. Method: `alpha / r` and `alpha / sqrt(r)` by hand.
#[test]
fn scales_are_those_of_peft() {
    let mut spec = LoraSpec { rank: 16, alpha: 8.0, ..plan().adapter };
    assert_eq!(spec.scale(), 0.5);
    spec.rslora = true;
    assert_eq!(spec.scale(), 2.0);
}

fn check_rates(schedule: Schedule, warmup_steps: u32, expected: [f32; 5]) {
    let spec = OptimizerSpec { schedule, warmup_steps, learning_rate: 1.0, ..plan().optimizer };
    for (step, expected) in [0, 1, 2, 6, 10].into_iter().zip(expected) {
        let rate = spec.learning_rate_at(step, 10);
        assert!((rate - expected).abs() < 1e-6, "{schedule:?} step {step}: {rate} not {expected}");
    }
}

/// Goal: schedules are those of transformers. Method: values worked out by hand from its formulas.
#[test]
fn schedules_are_those_of_transformers() {
    check_rates(Schedule::Constant, 0, [1.0; 5]);
    check_rates(Schedule::Constant, 2, [0.0, 0.5, 1.0, 1.0, 1.0]);
    check_rates(Schedule::Linear, 0, [1.0, 0.9, 0.8, 0.4, 0.0]);
    check_rates(Schedule::Linear, 2, [0.0, 0.5, 1.0, 0.5, 0.0]);
    check_rates(Schedule::Cosine, 2, [0.0, 0.5, 1.0, 0.5, 0.0]);
}

/// Goal: a rate never leaves `0..=peak`. Method: steps beyond the end, and a run shorter than its warm-up.
#[test]
fn rates_stay_in_range_past_the_end() {
    for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine] {
        let spec = OptimizerSpec { schedule, warmup_steps: 5, ..plan().optimizer };
        for (step, total) in [(0, 0), (3, 2), (9, 5), (u32::MAX, 10), (u32::MAX, u32::MAX)] {
            let rate = spec.learning_rate_at(step, total);
            assert!((0.0..=spec.learning_rate).contains(&rate), "{schedule:?} {step}/{total}: {rate}");
        }
    }
}

fn check_toml_round_trip(plan: &Plan) {
    let text = toml::to_string(plan).unwrap();
    assert_eq!(&toml::from_str::<Plan>(&text).unwrap(), plan, "{text}");
}

/// Goal: one type serves the run file and the wire. Method: every variant through TOML
/// (`tests/random.rs` sends the same types through bincode).
#[test]
fn plans_survive_toml() {
    check_toml_round_trip(&plan());
    let mut other = plan();
    other.task = classes(&["yes", "no"]);
    other.optimizer.kind = OptimizerKind::Sgd;
    other.optimizer.clip_norm = None;
    other.optimizer.schedule = Schedule::Cosine;
    other.batch.layout = Layout::Packed;
    other.server_adapters = ServerAdapters::Shared;
    other.step_order = StepOrder::Arrival;
    other.weighting = Weighting::Uniform;
    other.seed = SEED_MAX;
    check_toml_round_trip(&other);
}

/// Goal: the run file reads as people would write it. Method: one written by hand.
#[test]
fn plans_are_pleasant_toml() {
    let text = r#"
        task = { classify = { labels = ["a", "b"] } }
        adapter = { rank = 4, alpha = 8.0, rslora = true, dropout = 0.1, targets = ["query"] }
        batch = { sequences = 8, tokens_max = 64, layout = "packed", group_by_length = false }
        rounds = 2
        local_steps = 3
        seed = 1
        server_adapters = "per_client"
        step_order = "arrival"
        weighting = "samples"
        evaluate_every = 1
        pipeline = { micro_batches = 4, staleness = 1 }
        [optimizer]
        kind = { adamw = { beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.0 } }
        learning_rate = 1e-3
        schedule = "constant"
        warmup_steps = 0
        reset_each_round = false
    "#;
    let plan: Plan = toml::from_str(text).unwrap();
    plan.validate().unwrap();
    assert_eq!(plan.optimizer.clip_norm, None);
    let typing_error = text.replace("warmup_steps", "warm_steps");
    assert!(toml::from_str::<Plan>(&typing_error).is_err(), "an unknown field passed");
}

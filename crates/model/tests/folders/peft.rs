//! Reading and writing PEFT folders.

use crate::support::{HIDDEN, check_refused, factors, scratch, shared, tensor};
use cutlayer_model::{PeftConfig, PeftFolder, PeftTask};
use cutlayer_wire::{AdapterState, LoraSpec};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const FIXTURES: [&str; 6] =
    ["llama-nano/lora", "llama-nano/lora-all", "llama-nano/lora-odd", "llama-nano/lora-zero", "llama-tiny/lora", "gpt2-nano/lora"];
const QUERY_A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const QUERY_B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

fn config() -> PeftConfig {
    let targets = vec!["q_proj".into(), "v_proj".into()];
    PeftConfig {
        lora: LoraSpec { rank: 2, alpha: 4.0, rslora: false, dropout: 0.1, targets },
        task: Some(PeftTask::CausalLm),
        base_model: Some("somewhere/tiny".into()),
        fan_in_fan_out: false,
        modules_to_save: Vec::new(),
        labels: Vec::new(),
    }
}

fn state() -> AdapterState {
    factors(2, &[("model.layers.0.self_attn.q_proj", HIDDEN, HIDDEN), ("model.layers.0.self_attn.v_proj", HIDDEN, 4)])
}

fn classifier() -> (PeftConfig, AdapterState) {
    let mut config = config();
    config.lora.targets = vec!["query".into()];
    config.task = Some(PeftTask::SequenceClassification);
    config.modules_to_save = vec!["classifier".into(), "score".into()];
    config.labels = ["red", "green", "blue"].map(str::to_owned).to_vec();
    let mut state = factors(2, &[("bert.encoder.layer.0.attention.self.query", HIDDEN, HIDDEN)]);
    for (name, shape) in [("weight", vec![3, HIDDEN]), ("bias", vec![3])] {
        let key = format!("base_model.model.classifier.{name}");
        state.insert(key.clone(), tensor(&key, &shape));
    }
    (config, state)
}

/// Goal: what PEFT wrote we write back. Method: every adapter folder of the fixtures, weights compared byte for byte.
#[test]
fn fixtures_round_trip_to_the_byte() {
    for fixture in FIXTURES {
        for adapter in ["adapter_init", "adapter_final"] {
            let Some(path) = shared(&format!("fixtures/{fixture}/{adapter}")) else { continue };
            let (config, state) = PeftFolder::read(&path).expect("PEFT's own folder");
            assert_eq!(config.task, Some(PeftTask::CausalLm));
            let dir = scratch();
            PeftFolder::write(dir.path(), &config, &state).expect("a writable folder");
            let read = |dir: &Path| fs::read(dir.join("adapter_model.safetensors")).expect("weights");
            assert!(read(&path) == read(dir.path()), "{fixture} {adapter}");
            assert_eq!(PeftFolder::read(dir.path()).expect("our own folder"), (config, state));
        }
    }
}

/// Goal: everything a config means survives. Method: a language model's and a classifier's, written over each other.
#[test]
fn configs_round_trip() {
    let dir = scratch();
    for (mut config, state) in [classifier(), (config(), state()), classifier()] {
        for (alpha, dropout, rslora) in [(16.0, 0.0, true), (0.3, 0.05, false), (1e-7, 0.999, false)] {
            (config.lora.alpha, config.lora.dropout, config.lora.rslora) = (alpha, dropout, rslora);
            PeftFolder::write(dir.path(), &config, &state).expect("a writable folder");
            assert_eq!(PeftFolder::read(dir.path()).expect("our own folder"), (config.clone(), state.clone()));
        }
    }
}

/// Writes a good folder, then changes fields of its config.
fn with_fields(fields: &Value) -> tempfile::TempDir {
    let dir = scratch();
    PeftFolder::write(dir.path(), &config(), &state()).expect("a writable folder");
    let path = dir.path().join("adapter_config.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).expect("a config")).expect("JSON");
    for (name, value) in fields.as_object().expect("an object") {
        json[name] = value.clone();
    }
    fs::write(&path, json.to_string()).expect("a writable folder");
    dir
}

/// Goal: a feature we lack is refused by name, never ignored. Method: each in turn.
#[test]
fn unsupported_features_are_named() {
    let cases = [
        (json!({ "peft_type": "IA3" }), "peft_type"),
        (json!({ "peft_type": null }), "peft_type"),
        (json!({ "bias": "all" }), "bias"),
        (json!({ "use_dora": true }), "use_dora"),
        (json!({ "lora_bias": true }), "lora_bias"),
        (json!({ "rank_pattern": { "q_proj": 4 } }), "rank_pattern"),
        (json!({ "alpha_pattern": { "q_proj": 4 } }), "alpha_pattern"),
        (json!({ "layers_to_transform": [0] }), "layers_to_transform"),
        (json!({ "target_parameters": ["experts.w"] }), "target_parameters"),
        (json!({ "init_lora_weights": "pissa" }), "init_lora_weights"),
        (json!({ "target_modules": "all-linear" }), "target_modules"),
        (json!({ "target_modules": ".*(q|v)_proj" }), "target_modules"),
        (json!({ "target_modules": [] }), "target_modules"),
        (json!({ "target_modules": ["q_proj", 3] }), "target_modules"),
        (json!({ "task_type": "TOKEN_CLS" }), "task_type"),
        (json!({ "r": 0 }), "`r`"),
        (json!({ "r": -1 }), "`r`"),
        (json!({ "lora_alpha": "16" }), "lora_alpha"),
        (json!({ "lora_alpha": -1 }), "alpha"),
        (json!({ "lora_dropout": 1.0 }), "dropout"),
        (json!({ "use_rslora": "yes" }), "use_rslora"),
    ];
    for (fields, word) in cases {
        check_refused(PeftFolder::read(with_fields(&fields).path()), &["adapter_config.json", word]);
    }
}

/// Goal: harmless spellings are accepted. Method: a single target as a string, fields of other versions, defaults left out.
#[test]
fn other_spellings_are_read() {
    let fields = json!({ "unknown_of_next_year": 3, "init_lora_weights": "gaussian", "lora_alpha": 4, "modules_to_save": null });
    let (read, _) = PeftFolder::read(with_fields(&fields).path()).expect("harmless");
    assert_eq!(read, config());
    let dir = scratch();
    let mut one = config();
    one.lora.targets = vec!["q_proj".into()];
    let state = factors(2, &[("model.layers.0.self_attn.q_proj", HIDDEN, HIDDEN)]);
    PeftFolder::write(dir.path(), &one, &state).expect("a writable folder");
    let path = dir.path().join("adapter_config.json");
    let text = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": "q_proj", "task_type": null}"#;
    fs::write(path, text).expect("a writable folder");
    let (read, _) = PeftFolder::read(dir.path()).expect("a minimal config");
    assert_eq!((read.lora, read.task), (one.lora, None));
}

fn refused(change: impl FnOnce(&mut PeftConfig, &mut AdapterState), words: &[&str]) {
    let (mut config, mut state) = (config(), state());
    change(&mut config, &mut state);
    let dir = scratch();
    check_refused(PeftFolder::write(dir.path(), &config, &state), words);
    assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 0, "nothing is written");
}

/// Goal: no state is written that its config does not describe. Method: each disagreement.
#[test]
fn states_must_fit_their_config() {
    refused(|_, state| drop(state.remove(QUERY_B)), &[QUERY_A, QUERY_B, "partner"]);
    refused(|_, state| drop(state.remove(QUERY_A)), &[QUERY_A, QUERY_B, "partner"]);
    refused(|config, _| config.lora.rank = 3, &["rank 3", "lora_A", "[2, 8]"]);
    refused(|config, _| config.lora.targets = vec!["v_proj".into()], &[QUERY_A, "v_proj"]);
    refused(|config, _| config.lora.targets = vec!["proj".into()], &[QUERY_A]);
    refused(|_, state| drop(state.insert("model.norm.weight".into(), tensor("n", &[2]))), &["model.norm.weight"]);
    refused(|_, state| drop(state.insert("base_model.model.lm_head.weight".into(), tensor("n", &[2]))), &["lm_head.weight"]);
    refused(|_, state| state.get_mut(QUERY_A).expect("there").values[3] = f32::INFINITY, &[QUERY_A, "infinity"]);
    refused(|_, state| state.clear(), &["no LoRA factor"]);
    refused(|config, _| config.lora.alpha = f32::NAN, &["adapter_config.json", "alpha"]);
    let (mut config, state) = classifier();
    config.labels.pop();
    check_refused(PeftFolder::write(scratch().path(), &config, &state), &["labels.json", "2 labels", "3 classes"]);
}

/// Goal: a damaged adapter names its file and tensor. Method: truncate, poison, and take files away.
#[test]
fn damaged_folders_are_refused() {
    let dir = scratch();
    check_refused(PeftFolder::read(&dir.path().join("nowhere")), &["nowhere"]);
    check_refused(PeftFolder::read(dir.path()), &["adapter_config.json", "missing"]);
    PeftFolder::write(dir.path(), &config(), &state()).expect("a writable folder");
    let path = dir.path().join("adapter_model.safetensors");
    let whole = fs::read(&path).expect("weights");
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).expect("a writable file");
        check_refused(PeftFolder::read(dir.path()), &["adapter_model.safetensors", "cut short", &length.to_string()]);
    }
    let mut poisoned = whole.clone();
    let end = poisoned.len();
    poisoned[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, &poisoned).expect("a writable file");
    check_refused(PeftFolder::read(dir.path()), &["adapter_model.safetensors", "v_proj.lora_B", "NaN", "index 7"]);
    fs::remove_file(&path).expect("it was there");
    check_refused(PeftFolder::read(dir.path()), &["adapter_model.safetensors", "missing"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Goal: no config makes us panic. Method: any JSON in any field.
    #[test]
    fn strange_configs_never_panic(field in 0usize..16, value in strange_json()) {
        let dir = scratch();
        PeftFolder::write(dir.path(), &config(), &state()).expect("a writable folder");
        let path = dir.path().join("adapter_config.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&path).expect("a config")).expect("JSON");
        let name = json.as_object().expect("an object").keys().nth(field).cloned();
        if let Some(name) = name {
            json[name] = value;
        }
        fs::write(&path, json.to_string()).expect("a writable folder");
        if let Ok((config, state)) = PeftFolder::read(dir.path()) {
            PeftFolder::write(dir.path(), &config, &state).expect("what is read can be written");
        }
    }
}

fn strange_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,4}", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

//! Folding adapters into model folders.

use crate::support::{HIDDEN, Model, VOCAB, bare_bert, check_refused, factors, gpt2, llama, save_raw, scratch, shared, tensor};
use cutlayer_model::{ExportDtype, ModelFolder, PeftConfig, PeftFolder, PeftTask, merge};
use cutlayer_wire::{AdapterState, HostTensor, LoraSpec};
use half::bf16;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use std::fs;
use std::path::Path;

const RANK: usize = 2;

fn config(targets: &[&str]) -> PeftConfig {
    let targets = targets.iter().map(|&target| target.to_owned()).collect();
    PeftConfig {
        lora: LoraSpec { rank: RANK as u32, alpha: 3.0, rslora: false, dropout: 0.0, targets },
        task: None,
        base_model: None,
        fan_in_fan_out: false,
        modules_to_save: Vec::new(),
        labels: Vec::new(),
    }
}

/// `W + scale · B A` in f64, for a weight `[out, in]`, or `[in, out]` where `conv1d`.
fn folded(weight: &HostTensor, state: &AdapterState, module: &str, scale: f64, conv1d: bool) -> Vec<f64> {
    let factor = |letter: &str| &state[&format!("base_model.model.{module}.lora_{letter}.weight")];
    let (a, b) = (factor("A"), factor("B"));
    let inputs = a.shape[1];
    let columns = weight.shape[1];
    let value = |(index, &value): (usize, &f32)| {
        let (row, column) = (index / columns, index % columns);
        let (output, input) = if conv1d { (column, row) } else { (row, column) };
        let product: f64 = (0..RANK).map(|k| f64::from(b.values[output * RANK + k]) * f64::from(a.values[k * inputs + input])).sum();
        f64::from(value) + scale * product
    };
    weight.values.iter().enumerate().map(value).collect()
}

fn check_close(name: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(found) - expected).abs() <= tolerance * expected.abs().max(1.0),
            "{name}[{index}]: {found}, expected {expected}"
        );
    }
}

fn check_merged(model: &Model, targets: &[&str], modules: &[(&str, usize, usize)], conv1d: bool) {
    let (base_dir, adapter_dir, out_dir) = (scratch(), scratch(), scratch());
    let base = model.save(base_dir.path(), ExportDtype::F32);
    let state = factors(RANK, modules);
    PeftFolder::write(adapter_dir.path(), &config(targets), &state).expect("a writable folder");
    let report = merge(&base, adapter_dir.path(), out_dir.path()).expect("they fit");
    assert_eq!((report.merged, report.replaced.len(), report.tensors), (modules.len(), 0, model.tensors.len()));
    let merged = ModelFolder::open(out_dir.path()).expect("what we wrote opens");
    assert_eq!(merged.config_json(), base.config_json());
    assert!(merged.names().eq(base.names()));
    for (name, weight) in &model.tensors {
        let read = merged.read(name, &weight.shape).expect("a good tensor");
        match modules.iter().find(|(module, ..)| *name == format!("{module}.weight")) {
            Some((module, ..)) => check_close(name, &read.values, &folded(weight, &state, module, 1.5, conv1d), 1e-6),
            None => assert_eq!(&read, weight, "{name}"),
        }
    }
}

/// Goal: a merged weight is `W + scale · B A`, and nothing else moves. Method: against f64, square and oblong weights.
#[test]
fn linear_weights_take_the_product() {
    let modules = [
        ("model.layers.0.self_attn.q_proj", HIDDEN, HIDDEN),
        ("model.layers.1.self_attn.v_proj", HIDDEN, 4),
        ("model.layers.1.mlp.down_proj", 12, HIDDEN),
    ];
    check_merged(&llama(), &["q_proj", "v_proj", "down_proj"], &modules, false);
}

/// Goal: GPT-2's weights, stored `[in, out]`, take the transpose even where they are square. Method: as above.
#[test]
fn transposed_weights_take_the_transpose() {
    let modules = [
        ("transformer.h.0.attn.c_attn", HIDDEN, 3 * HIDDEN),
        ("transformer.h.0.attn.c_proj", HIDDEN, HIDDEN),
        ("transformer.h.0.mlp.c_fc", HIDDEN, 32),
    ];
    check_merged(&gpt2(), &["c_attn", "attn.c_proj", "c_fc"], &modules, true);
}

/// Goal: the result keeps the base's type, and what the adapter leaves alone its bytes. Method: a bf16 base with an integer tensor.
#[test]
fn types_of_the_base_are_kept() {
    let (base_dir, adapter_dir, out_dir) = (scratch(), scratch(), scratch());
    let model = llama();
    model.save(base_dir.path(), ExportDtype::Bf16);
    let bytes = fs::read(base_dir.path().join("model.safetensors")).expect("the weights");
    let stored = SafeTensors::deserialize(&bytes).expect("a good file");
    let owned: Vec<(String, Vec<usize>, Vec<u8>)> =
        stored.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec(), view.data().to_vec())).collect();
    let mut tensors: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> =
        owned.iter().map(|(name, shape, data)| (name.as_str(), Dtype::BF16, shape.clone(), data.clone())).collect();
    tensors.push(("position_ids", Dtype::I64, vec![2], (0..16).collect()));
    save_raw(&base_dir.path().join("model.safetensors"), &tensors);
    let base = ModelFolder::open(base_dir.path()).expect("a good model");
    let module = "model.layers.0.self_attn.q_proj";
    let state = factors(RANK, &[(module, HIDDEN, HIDDEN)]);
    PeftFolder::write(adapter_dir.path(), &config(&["q_proj"]), &state).expect("a writable folder");
    merge(&base, adapter_dir.path(), out_dir.path()).expect("they fit");
    let merged_bytes = fs::read(out_dir.path().join("model.safetensors")).expect("written");
    let merged = SafeTensors::deserialize(&merged_bytes).expect("a good file");
    for (name, dtype, shape, data) in &tensors {
        let view = merged.tensor(name).expect("kept");
        assert_eq!((view.dtype(), view.shape()), (*dtype, shape.as_slice()));
        if *name != format!("{module}.weight") {
            assert_eq!(view.data(), data, "{name}");
        }
    }
    let name = format!("{module}.weight");
    let weight = base.read(&name, &[HIDDEN, HIDDEN]).expect("good");
    let found = ModelFolder::open(out_dir.path()).expect("good").read(&name, &[HIDDEN, HIDDEN]).expect("good");
    check_close(&name, &found.values, &folded(&weight, &state, module, 1.5, false), f64::from(f32::from(bf16::EPSILON)));
}

fn classifier(labels: &[&str]) -> (PeftConfig, AdapterState) {
    let mut config = config(&["query"]);
    config.task = Some(PeftTask::SequenceClassification);
    config.modules_to_save = vec!["classifier".into(), "score".into()];
    config.labels = labels.iter().map(|&label| label.to_owned()).collect();
    let mut state = factors(RANK, &[("bert.encoder.layer.0.attention.self.query", HIDDEN, HIDDEN)]);
    for (name, shape) in [("weight", vec![3, HIDDEN]), ("bias", vec![3])] {
        let key = format!("base_model.model.classifier.{name}");
        state.insert(key.clone(), tensor(&key, &shape));
    }
    (config, state)
}

/// Goal: a merged classifier is one that transformers loads. Method: a bare backbone, its head in the adapter, with and without names.
#[test]
fn classifiers_get_head_prefix_and_labels() {
    for (labels, first) in [(vec!["red", "green", "blue"], "red"), (vec![], "LABEL_0")] {
        let (base_dir, adapter_dir, out_dir) = (scratch(), scratch(), scratch());
        let model = bare_bert();
        let base = model.save(base_dir.path(), ExportDtype::F32);
        for file in ["tokenizer.json", "vocab.txt", "unrelated.bin"] {
            fs::write(base_dir.path().join(file), file).expect("a writable folder");
        }
        let (config, state) = classifier(&labels);
        PeftFolder::write(adapter_dir.path(), &config, &state).expect("a writable folder");
        let report = merge(&base, adapter_dir.path(), out_dir.path()).expect("they fit");
        assert_eq!(report.replaced, ["classifier.bias", "classifier.weight"]);
        assert_eq!(report.copied, ["tokenizer.json", "vocab.txt"]);
        let merged = ModelFolder::open(out_dir.path()).expect("what we wrote opens");
        assert_eq!(merged.names().count(), model.tensors.len() + 2);
        assert!(merged.names().all(|name| name.starts_with("bert.") || name.starts_with("classifier.")));
        let head = merged.read("classifier.weight", &[3, HIDDEN]).expect("there");
        assert_eq!(head, state["base_model.model.classifier.weight"]);
        let config = merged.config_json();
        assert_eq!(config["architectures"], json!(["BertForSequenceClassification"]));
        assert_eq!(config["id2label"]["0"], first);
        assert_eq!(config["label2id"][first], 0);
        assert!(!out_dir.path().join("unrelated.bin").exists());
        assert_eq!(fs::read_to_string(out_dir.path().join("vocab.txt")).expect("copied"), "vocab.txt");
    }
}

fn refused(model: &Model, config: &PeftConfig, state: &AdapterState, words: &[&str]) {
    let (base_dir, adapter_dir, out_dir) = (scratch(), scratch(), scratch());
    let base = model.save(base_dir.path(), ExportDtype::F32);
    PeftFolder::write(adapter_dir.path(), config, state).expect("a writable folder");
    check_refused(merge(&base, adapter_dir.path(), out_dir.path()), words);
    assert_eq!(fs::read_dir(out_dir.path()).expect("a folder").count(), 0, "nothing is written");
}

/// Goal: an adapter of another base is named, not folded. Method: unknown target, wrong shapes, tied head, wrong head.
#[test]
fn foreign_adapters_are_refused() {
    let fit = |module: &str, inputs, outputs| factors(RANK, &[(module, inputs, outputs)]);
    let query = config(&["q_proj"]);
    let layer_9 = "model.layers.9.self_attn.q_proj";
    refused(&llama(), &query, &fit(layer_9, HIDDEN, HIDDEN), &["model.layers.9.self_attn.q_proj.weight", "another base"]);
    let layer_0 = "model.layers.0.self_attn.q_proj";
    refused(&llama(), &query, &fit(layer_0, HIDDEN, 4), &["model.layers.0.self_attn.q_proj.weight", "[4, 8]", "[8, 8]"]);
    let mut tied = llama();
    tied.config["tie_word_embeddings"] = true.into();
    refused(&tied, &config(&["lm_head"]), &fit("lm_head", HIDDEN, VOCAB), &["lm_head.weight", "ties"]);
    refused(&tied, &config(&["embed_tokens"]), &fit("model.embed_tokens", VOCAB, HIDDEN), &["embed_tokens.weight", "ties"]);
    let (config, mut state) = classifier(&[]);
    state.insert("base_model.model.classifier.weight".into(), tensor("head", &[3, HIDDEN + 1]));
    refused(&bare_bert(), &config, &state, &["classifier.weight", "[3, 9]", "[3, 8]"]);
    let mut other = llama();
    other.config["model_type"] = "mamba".into();
    refused(&other, &query, &fit(layer_0, HIDDEN, HIDDEN), &["mamba", "llama"]);
}

/// Goal: a merge never destroys its inputs. Method: name the base or the adapter as the output.
#[test]
fn inputs_are_never_overwritten() {
    let (base_dir, adapter_dir) = (scratch(), scratch());
    let base = llama().save(base_dir.path(), ExportDtype::F32);
    let state = factors(RANK, &[("model.layers.0.self_attn.q_proj", HIDDEN, HIDDEN)]);
    PeftFolder::write(adapter_dir.path(), &config(&["q_proj"]), &state).expect("a writable folder");
    for out in [base_dir.path(), adapter_dir.path()] {
        check_refused(merge(&base, adapter_dir.path(), &out.join(".")), &["also an input"]);
    }
}

/// Goal: the shared fixtures merge. Method: both nano models; the merged weights against f64.
#[test]
fn fixtures_merge() {
    for (model, conv1d) in [("llama-nano", false), ("gpt2-nano", true)] {
        let Some(base_path) = shared(&format!("fixtures/{model}/model")) else { continue };
        let Some(adapter) = shared(&format!("fixtures/{model}/lora/adapter_final")) else { continue };
        check_fixture(&base_path, &adapter, conv1d);
    }
}

fn check_fixture(base_path: &Path, adapter: &Path, conv1d: bool) {
    let base = ModelFolder::open(base_path).expect("a good model");
    let (config, state) = PeftFolder::read(adapter).expect("a good adapter");
    let out_dir = scratch();
    merge(&base, adapter, out_dir.path()).expect("they fit");
    let merged = ModelFolder::open(out_dir.path()).expect("what we wrote opens");
    for name in base.names() {
        let shape = base.shape(name).expect("listed");
        let (before, after) = (base.read(name, shape).expect("good"), merged.read(name, shape).expect("good"));
        let module = name.strip_suffix(".weight").unwrap_or_default();
        let Some(a) = state.get(&format!("base_model.model.{module}.lora_A.weight")) else {
            assert_eq!(before, after, "{name}");
            continue;
        };
        let b = &state[&format!("base_model.model.{module}.lora_B.weight")];
        let (rank, inputs, columns) = (a.shape[0], a.shape[1], shape[1]);
        for (index, (&before, &after)) in before.values.iter().zip(&after.values).enumerate() {
            let (row, column) = (index / columns, index % columns);
            let (output, input) = if conv1d { (column, row) } else { (row, column) };
            let product: f64 = (0..rank).map(|k| f64::from(b.values[output * rank + k]) * f64::from(a.values[k * inputs + input])).sum();
            let expected = f64::from(before) + f64::from(config.lora.scale()) * product;
            assert!((f64::from(after) - expected).abs() < 1e-6, "{name}[{index}]: {after}, expected {expected}");
        }
    }
}

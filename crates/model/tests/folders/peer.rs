//! Our folders as transformers and PEFT see them. Skipped, loudly, where that Python environment is not installed.

use crate::support::{factors, scratch, shared, tensor};
use cutlayer_model::{ModelFolder, PeftConfig, PeftFolder, PeftTask, merge};
use cutlayer_wire::LoraSpec;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A path below `~/.cache/cutlayer`, if it is there.
fn cached(path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("HOME")?).join(".cache/cutlayer").join(path);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is not on this machine; run ../shared/peers/setup.sh and ../shared/bin/get-minilm.sh", path.display());
    None
}

/// Runs a script of `tests/peer` and fails with what it printed if it did.
fn check_script(python: &Path, script: &str, arguments: &[&Path]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peer").join(script);
    let output = Command::new(python).arg(&script).args(arguments).output().expect("Python starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {stdout}\n{stderr}", script.display());
}

/// Goal: PEFT loads what we write, and base + adapter there is what we merge. Method: the script, on a rewritten adapter.
fn check_peer(base: &Path, config: &PeftConfig, state: &cutlayer_wire::AdapterState) {
    let Some(python) = cached("peers-venv/bin/python") else { return };
    let (adapter, merged) = (scratch(), scratch());
    PeftFolder::write(adapter.path(), config, state).expect("a writable folder");
    merge(&ModelFolder::open(base).expect("a good model"), adapter.path(), merged.path()).expect("they fit");
    check_script(&python, "check_peft.py", &[base, adapter.path()]);
    check_script(&python, "check_merge.py", &[merged.path(), Path::new("--base"), base, Path::new("--adapter"), adapter.path()]);
}

fn check_fixture(model: &str, case: &str) {
    let Some(base) = shared(&format!("fixtures/{model}/model")) else { return };
    let Some(adapter) = shared(&format!("fixtures/{model}/{case}/adapter_final")) else { return };
    let (config, state) = PeftFolder::read(&adapter).expect("PEFT's own folder");
    check_peer(&base, &config, &state);
}

#[test]
fn llama_agrees_with_peft() {
    check_fixture("llama-nano", "lora-all");
}

#[test]
fn gpt2_agrees_with_peft() {
    check_fixture("gpt2-nano", "lora");
}

#[test]
fn a_bert_classifier_agrees_with_peft() {
    let Some(base) = cached("models/all-minilm-l6-v2") else { return };
    let (hidden, inner, rank) = (384, 1536, 4);
    let layers: Vec<String> = (0..6).map(|layer| format!("bert.encoder.layer.{layer}")).collect();
    let modules: Vec<(String, usize, usize)> = layers
        .iter()
        .flat_map(|layer| {
            let module = |name: &str, inputs, outputs| (format!("{layer}.{name}"), inputs, outputs);
            [
                module("attention.self.query", hidden, hidden),
                module("attention.self.value", hidden, hidden),
                module("output.dense", inner, hidden),
            ]
        })
        .collect();
    let modules: Vec<(&str, usize, usize)> = modules.iter().map(|(name, inputs, outputs)| (name.as_str(), *inputs, *outputs)).collect();
    let mut state = factors(rank, &modules);
    // Values of that size would drown the base's.
    state.values_mut().flat_map(|factor| &mut factor.values).for_each(|value| *value *= 0.05);
    for (name, shape) in [("weight", vec![3, hidden]), ("bias", vec![3])] {
        let key = format!("base_model.model.classifier.{name}");
        state.insert(key.clone(), tensor(&key, &shape));
    }
    // "output.dense" also names the attention's, which has no factors here: PEFT must be told the layers apart.
    let targets = ["query", "value"].into_iter().map(str::to_owned);
    let dense = (0..6).map(|layer| format!("layer.{layer}.output.dense"));
    let config = PeftConfig {
        lora: LoraSpec { rank: rank as u32, alpha: 8.0, rslora: true, dropout: 0.1, targets: targets.chain(dense).collect() },
        task: Some(PeftTask::SequenceClassification),
        base_model: Some("sentence-transformers/all-MiniLM-L6-v2".into()),
        fan_in_fan_out: false,
        modules_to_save: vec!["classifier".into(), "score".into()],
        labels: ["red", "green", "blue"].map(str::to_owned).to_vec(),
    };
    check_peer(&base, &config, &state);
}

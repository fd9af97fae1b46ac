//! Goal: every family computes what transformers computes.
//! Method: models drawn from a seed, their logits from transformers kept in `architectures/` (made by
//! `tests/peer/make_architectures.sh`), and what a loader must refuse.
#![allow(clippy::unwrap_used)]

mod common;

use common::{assert_close, random, tensors};
use cutlayer_model::{Frozen, Input, LoadError, Mode, ModelFolder, Parts, Rows, Stage};
use cutlayer_wire::{AdapterState, LoraSpec, StepId};
use serde_json::Value;
use std::path::Path;

fn no_lora() -> LoraSpec {
    LoraSpec { rank: 1, alpha: 1.0, rslora: false, dropout: 0.0, targets: vec![] }
}

/// Logits of [`random::ids`] through the model split at `cut`.
fn logits(folder: &Path, name: &str, cut: usize) -> Vec<f32> {
    let frozen = random::load(folder, &common::device());
    let (blocks, hidden) = (frozen.spec().blocks, frozen.spec().hidden);
    let state = if name == "bert" { random::classifier(hidden) } else { AdapterState::new() };
    let mut stage = Stage::new(frozen, 0..blocks, true, &no_lora(), &state).unwrap();
    let (ids, lengths) = random::ids();
    let rows = Rows::new(&lengths, 64).unwrap();
    let hidden = stage.forward(StepId(1), 0..cut, Input::Tokens(&ids), &rows, Mode::Evaluate).unwrap();
    stage.logits(cut..blocks, Input::Hidden(hidden, false), &rows).unwrap()
}

/// Writes every model where the environment asks for them, for the script that makes the golden values.
#[test]
fn every_family_matches_transformers() {
    let wanted = std::env::var_os("CUTLAYER_WRITE_ARCHITECTURES");
    for (name, config) in random::configs() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = wanted.as_ref().map_or(temporary.path().to_path_buf(), |root| Path::new(root).join(name));
        random::write(&config, &folder);
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/architectures/{name}.safetensors"));
        if wanted.is_some() {
            continue;
        }
        let golden = tensors(&golden);
        for cut in 0..=3 {
            assert_close(&logits(&folder, name, cut), &golden["logits"].values, 1e-4, &format!("{name}, cut {cut}"));
        }
    }
}

fn refuse(config: &Value, change: impl FnOnce(&mut Value, &mut AdapterState)) -> String {
    let model = cutlayer_model::Pretrainer::new(config, 11, &cutlayer_model::Device::flex()).unwrap();
    let (mut config, mut weights) = (config.clone(), model.weights());
    change(&mut config, &mut weights);
    let folder = tempfile::tempdir().unwrap();
    cutlayer_model::write_model(folder.path(), &config, weights.into_iter(), cutlayer_model::ExportDtype::F32).unwrap();
    let folder = ModelFolder::open(folder.path()).unwrap();
    let load = || -> Result<Frozen, LoadError> { Frozen::load(&folder, &Parts::whole(3), 0, &cutlayer_model::Device::flex()) };
    load().expect_err("must be refused").to_string()
}

#[test]
fn folders_that_do_not_fit_their_config_are_refused_by_name() {
    let (_, llama) = random::configs().remove(0);
    let name = "model.layers.1.mlp.up_proj.weight";
    let told = refuse(&llama, |_, weights| drop(weights.remove(name)));
    assert!(told.contains(name) && told.contains("missing"), "{told}");
    let told = refuse(&llama, |_, weights| weights.get_mut(name).unwrap().shape.reverse());
    assert!(told.contains(name) && told.contains("[80, 48]"), "{told}");
    let told = refuse(&llama, |_, weights| {
        let copy = weights[name].clone();
        weights.insert("model.layers.7.mlp.up_proj.weight".into(), copy);
    });
    assert!(told.contains("model.layers.7.mlp.up_proj.weight"), "{told}");
    let told = refuse(&llama, |config, _| config["model_type"] = "mamba".into());
    assert!(told.contains("mamba") && told.contains("llama"), "{told}");
    let told = refuse(&llama, |config, _| config["rope_scaling"] = serde_json::json!({"rope_type": "yarn", "factor": 2.0}));
    assert!(told.contains("yarn"), "{told}");
    let told = refuse(&llama, |config, _| drop(config.as_object_mut().unwrap().remove("hidden_size")));
    assert!(told.contains("hidden_size"), "{told}");
    let told = refuse(&llama, |config, _| config["num_attention_heads"] = 3.into());
    assert!(told.contains("num_key_value_heads"), "{told}");
}

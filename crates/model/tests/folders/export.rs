//! Writing model folders.

use crate::support::{check_refused, llama, scratch, tensor};
use cutlayer_model::{ExportDtype, ModelFolder, write_model};
use half::bf16;
use std::fs;
use std::path::Path;

fn files_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a readable folder");
    let mut names: Vec<String> = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Goal: f32 survives to the bit, bf16 to its rounding. Method: write, open, read all.
#[test]
fn written_models_read_back() {
    for (dtype, name) in [(ExportDtype::F32, "float32"), (ExportDtype::Bf16, "bfloat16")] {
        let dir = scratch();
        let model = llama();
        let bytes = write_model(dir.path(), &model.config, model.tensors.iter().cloned(), dtype).expect("a writable folder");
        assert_eq!(bytes, fs::metadata(dir.path().join("model.safetensors")).expect("written").len());
        assert_eq!(files_in(dir.path()), ["config.json", "model.safetensors"]);
        let folder = ModelFolder::open(dir.path()).expect("what we wrote opens");
        assert_eq!(folder.config_json()["torch_dtype"], name);
        for (name, tensor) in &model.tensors {
            let read = folder.read(name, &tensor.shape).expect("a good tensor");
            let stored = |&value: &f32| if dtype == ExportDtype::F32 { value } else { bf16::from_f32(value).to_f32() };
            assert!(read.values.iter().eq(tensor.values.iter().map(stored).collect::<Vec<f32>>().iter()), "{name}");
        }
    }
}

/// Goal: a model that cannot be written leaves the old one as it was. Method: a NaN and a repeated name over a good model.
#[test]
fn a_refused_model_leaves_the_old_one() {
    let dir = scratch();
    let model = llama();
    model.save(dir.path(), ExportDtype::F32);
    let before = fs::read(dir.path().join("model.safetensors")).expect("written");
    let mut bad = model.clone();
    bad.tensors[3].1.values[5] = f32::NAN;
    let result = write_model(dir.path(), &bad.config, bad.tensors.iter().cloned(), ExportDtype::F32);
    check_refused(result, &[&bad.tensors[3].0, "NaN", "index 5", "model.safetensors was not written"]);
    let mut bad = model.clone();
    bad.tensors[3].1.values[5] = f32::MAX;
    check_refused(write_model(dir.path(), &bad.config, bad.tensors.iter().cloned(), ExportDtype::Bf16), &["BF16"]);
    let twice = [("a".to_owned(), tensor("a", &[2])), ("a".to_owned(), tensor("a", &[2]))];
    check_refused(write_model(dir.path(), &model.config, twice.into_iter(), ExportDtype::F32), &["`a`", "twice"]);
    assert_eq!(fs::read(dir.path().join("model.safetensors")).expect("still there"), before);
    assert_eq!(files_in(dir.path()), ["config.json", "model.safetensors"]);
}

//! Writes the corpora that fuzzing starts from: `seeds FOLDER`, a folder a target. Written by the code that
//! writes them in a run, so that a change of a format changes them with it.

use std::path::Path;

use cutlayer_data::{Tokenizer, VOCAB_SIZE_MIN, train_tokenizer};
use cutlayer_lab::RunConfig;
use cutlayer_model::{PeftConfig, PeftFolder, PeftTask};
use cutlayer_wire::{AdapterState, HostTensor, LoraSpec};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let folder = std::env::args().nth(1).unwrap_or_else(|| panic!("usage: seeds FOLDER"));
    let folder = Path::new(&folder);
    adapter_folders(folder)?;
    run_files(folder)?;
    tokenizers(folder)
}

fn write(folder: &Path, target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let folder = folder.join(target);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(name), bytes)
}

fn adapter_folders(folder: &Path) -> Outcome {
    let scratch = tempfile::tempdir()?;
    for (name, task, labels) in
        [("causal_lm", PeftTask::CausalLm, vec![]), ("classifier", PeftTask::SequenceClassification, vec!["no", "yes"])]
    {
        let head = !labels.is_empty();
        let config = PeftConfig {
            lora: LoraSpec { rank: 2, alpha: 4.0, rslora: false, dropout: 0.0, targets: vec!["q_proj".into()] },
            task: Some(task),
            base_model: Some("models/quickstart".into()),
            fan_in_fan_out: false,
            modules_to_save: if head { vec!["score".into()] } else { vec![] },
            labels: labels.into_iter().map(String::from).collect(),
        };
        PeftFolder::write(scratch.path(), &config, &state(head))?;
        let json = std::fs::read(scratch.path().join("adapter_config.json"))?;
        let weights = std::fs::read(scratch.path().join("adapter_model.safetensors"))?;
        let length = u16::try_from(json.len())?.to_le_bytes();
        let bytes = [&[u8::from(head), length[0], length[1]][..], &json, &weights].concat();
        write(folder, "adapter_folder", name, &bytes)?;
    }
    Ok(())
}

fn state(head: bool) -> AdapterState {
    let tensor = |shape: [usize; 2]| HostTensor { shape: shape.to_vec(), values: vec![0.25; shape[0] * shape[1]] };
    let key = |part: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.{part}.weight");
    let mut state = AdapterState::from([(key("lora_A"), tensor([2, 4])), (key("lora_B"), tensor([4, 2]))]);
    if head {
        state.insert("base_model.model.score.weight".into(), tensor([2, 4]));
    }
    state
}

/// The run files of the repository's experiments, each also as it is saved, with every default in it.
fn run_files(folder: &Path) -> Outcome {
    let experiments = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments");
    for entry in std::fs::read_dir(experiments)? {
        let file = entry?.path().join("run.toml");
        if !file.is_file() {
            continue;
        }
        let name = file.parent().and_then(Path::file_name).ok_or("a folder has a name")?.to_string_lossy().into_owned();
        write(folder, "run_file", &name, &std::fs::read(&file)?)?;
        let whole = RunConfig::load(&file, &[])?.to_toml()?;
        write(folder, "run_file", &format!("{name}_whole"), whole.as_bytes())?;
    }
    Ok(())
}

fn tokenizers(folder: &Path) -> Outcome {
    let scratch = tempfile::tempdir()?;
    train_tokenizer(["to be or not to be", "that is the question"].into_iter(), VOCAB_SIZE_MIN, scratch.path())?;
    Tokenizer::open(scratch.path())?;
    let trained = std::fs::read(scratch.path().join("tokenizer.json"))?;
    write(folder, "tokenizer", "trained", &trained)?;
    let words =
        r#"{"model":{"type":"WordLevel","vocab":{"to":0,"be":1,"[UNK]":2},"unk_token":"[UNK]"},"pre_tokenizer":{"type":"Whitespace"}}"#;
    Ok(write(folder, "tokenizer", "words", words.as_bytes())?)
}

//! What a measured run needs: a model folder that can read text, text that fills every batch, and a run file.

use super::step::{StepBench, Subject};
use crate::config::RunConfig;
use crate::error::LabError;
use crate::manifest::peek;
use cutlayer_data::{VOCAB_SIZE_MIN, train_tokenizer};
use cutlayer_model::spec::{HeadSpec, ModelSpec};
use cutlayer_model::{ModelFolder, read_spec};
use cutlayer_node::NodeError;
use serde_json::json;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// Vocabulary of a tokenizer that is only there to turn words into ids.
const VOCAB: usize = 512;
/// Most batches in an epoch of the text; longer runs read it again.
const EPOCH_BATCHES_MAX: u32 = 64;
/// Batches in an epoch that may be short: the last, and the one with the text's last window.
const SHORT_BATCHES: u32 = 2;
/// Rows of a classifier's two classes.
const LABELS: [&str; 2] = ["no", "yes"];

/// A folder with all that one run needs, removed in the end.
pub(super) struct Ground {
    pub folder: TempDir,
    pub spec: ModelSpec,
    pub targets: Vec<String>,
    pub config: RunConfig,
}

/// Makes it.
pub(super) fn prepare(bench: &StepBench) -> Result<Ground, LabError> {
    let folder = tempfile::Builder::new().prefix("cutlayer-bench-").tempdir().map_err(LabError::write(&std::env::temp_dir()))?;
    let model = folder.path().join("model");
    match &bench.subject {
        Subject::Shape(name) => super::write_shape(name, &model)?,
        Subject::Folder(original) => stand_in(original, &model)?,
    }
    let opened = ModelFolder::open(&model).map_err(NodeError::from)?;
    let spec = read_spec(&opened).map_err(NodeError::from)?;
    if let Some(cut) = bench.cut.filter(|cut| usize::from(*cut) > spec.blocks) {
        return Err(NodeError::Cut { cut, tail: 0, blocks: spec.blocks }.into());
    }
    if opened.vocab_of_tokenizer().map_err(NodeError::from)?.is_none() {
        train_tokenizer([words(4096, 0).as_str()].into_iter(), VOCAB.min(spec.vocab).max(VOCAB_SIZE_MIN), &model)?;
    }
    let targets = if bench.targets.is_empty() { usual_targets(&spec) } else { bench.targets.clone() };
    let classify = matches!(spec.head, HeadSpec::Classifier { .. });
    let batches = (bench.warmup + bench.steps).min(EPOCH_BATCHES_MAX) + SHORT_BATCHES;
    let data = folder.path().join("data.jsonl");
    fs::write(&data, records(bench, batches, classify)).map_err(LabError::write(&data))?;
    let file = folder.path().join("bench.toml");
    fs::write(&file, run_file(bench, &model, &targets, classify, &data)).map_err(LabError::write(&file))?;
    Ok(Ground { config: RunConfig::load(&file, &bench.overrides)?, folder, spec, targets })
}

/// Steps to run so that `warmup + steps` of them have a whole batch.
fn local_steps(bench: &StepBench) -> u32 {
    let wanted = bench.warmup + bench.steps;
    wanted + SHORT_BATCHES * (wanted / EPOCH_BATCHES_MAX + 1)
}

/// The same model under another name, to which a tokenizer can be added; the original stays as it is.
fn stand_in(original: &Path, folder: &Path) -> Result<(), LabError> {
    // Says what is wrong with the folder in its own name.
    ModelFolder::open(original).map_err(NodeError::from)?;
    let original = std::path::absolute(original).map_err(LabError::write(original))?;
    fs::create_dir_all(folder).map_err(LabError::write(folder))?;
    let has_tokenizer = original.join("tokenizer.json").exists();
    for entry in fs::read_dir(&original).map_err(LabError::write(&original))? {
        let name = entry.map_err(LabError::write(&original))?.file_name();
        // A tokenizer's settings without the tokenizer would be written over.
        if has_tokenizer || !name.to_string_lossy().starts_with("tokenizer") {
            let link = folder.join(&name);
            link_file(&original.join(&name), &link).map_err(LabError::write(&link))?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn link_file(file: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(file, link)
}

#[cfg(not(unix))]
fn link_file(file: &Path, link: &Path) -> std::io::Result<()> {
    if file.is_file() { fs::copy(file, link).map(|_| ()) } else { Ok(()) }
}

/// What people adapt when they say nothing: PEFT's choice.
pub(super) fn usual_targets(spec: &ModelSpec) -> Vec<String> {
    let targets: &[&str] = match spec.family {
        "gpt2" => &["c_attn"],
        "bert" => &["query", "value"],
        _ => &["q_proj", "v_proj"],
    };
    targets.iter().map(|target| (*target).to_owned()).collect()
}

/// Text of at least so many tokens that every batch but the last is whole: no tokenizer makes one token of two words.
fn records(bench: &StepBench, batches: u32, classify: bool) -> String {
    if !classify {
        let count = batches as usize * bench.sequences as usize * bench.tokens as usize;
        return format!("{}\n", json!({ "text": words(count, 0) }));
    }
    (0..(batches * bench.sequences) as usize).fold(String::new(), |mut lines, index| {
        let label = LABELS[index % LABELS.len()];
        // Writing to a string does not fail.
        let _ = writeln!(lines, "{}", json!({ "text": words(bench.tokens as usize, index), "label": label }));
        lines
    })
}

/// So many words; another `from`, another text.
fn words(count: usize, from: usize) -> String {
    (0..count).map(|i| format!("{} ", ["river", "sheep", "counts", "house", "by", "night"][(i + from) * (i + from) % 97 % 6])).collect()
}

fn run_file(bench: &StepBench, model: &Path, targets: &[String], classify: bool, data: &Path) -> String {
    let quoted = |path: &Path| toml::Value::String(path.display().to_string());
    let targets = toml::Value::Array(targets.iter().map(|target| toml::Value::String(target.clone())).collect());
    let (task, label) = if classify { ("classify", ", label = \"label\"") } else { ("causal_lm", "") };
    let labels = if classify { LABELS.to_vec() } else { vec![] };
    let (mode, cut) = bench.cut.map_or(("central", 0), |cut| ("split", cut));
    format!(
        r#"
name = "bench"
model = {{ path = {model} }}
adapter = {{ rank = {rank}, alpha = {alpha:.1}, targets = {targets} }}
split = {{ mode = "{mode}", cut = {cut} }}
clients = {{ count = 1, device = "{device}", precision = "{precision}", checkpointing = {checkpointing} }}
server = {{ device = "{device}", precision = "{precision}", checkpointing = {checkpointing}, join_deadline_s = 3600, round_deadline_s = 604800 }}
[train]
task = "{task}"
labels = {labels:?}
rounds = 1
local_steps = {local_steps}
sequences = {sequences}
tokens_max = {tokens}
evaluate_every = 0
[data]
source = {{ path = {data}, text = "text"{label} }}
"#,
        model = quoted(model),
        data = quoted(data),
        rank = bench.rank,
        alpha = 2.0 * f64::from(bench.rank),
        device = bench.device,
        precision = bench.precision,
        checkpointing = bench.checkpointing,
        local_steps = local_steps(bench),
        sequences = bench.sequences,
        tokens = bench.tokens,
    )
}

/// The device in the words of whoever made it.
pub(super) fn device_name(device: cutlayer_model::DeviceChoice, cpu: Option<&str>) -> String {
    use cutlayer_model::DeviceChoice::{Auto, Cpu, Cuda, Wgpu};
    match device {
        Cpu => cpu.unwrap_or("a CPU that does not say its name").to_owned(),
        Cuda(_) | Wgpu(_) | Auto => nvidia_name().map_or(device.to_string(), |name| format!("{name} ({device})")),
    }
}

/// The first NVIDIA GPU, as its driver names it.
fn nvidia_name() -> Option<String> {
    let gpu = fs::read_dir("/proc/driver/nvidia/gpus").ok()?.flatten().next()?;
    peek(&gpu.path().join("information"), "Model")
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutlayer_model::DeviceChoice;

    fn bench(subject: Subject) -> StepBench {
        StepBench {
            subject,
            cut: Some(1),
            sequences: 2,
            tokens: 16,
            steps: 3,
            warmup: 1,
            device: DeviceChoice::Cpu,
            precision: cutlayer_model::Precision::F32,
            checkpointing: false,
            rank: 4,
            targets: vec![],
            overrides: vec![],
        }
    }

    /// Goal: the run file is one, for a language model and for a classifier. Method: both, read back.
    #[test]
    fn run_files_are_read() {
        for (shape, targets) in [("llama-tiny", ["q_proj", "v_proj"]), ("minilm", ["query", "value"])] {
            let mut ground = prepare(&bench(Subject::Shape(shape.into()))).expect("a ground");
            assert_eq!(ground.targets, targets);
            crate::resolve_labels(&mut ground.config).expect("labels");
            ground.config.plan().expect("a plan");
            assert_eq!((ground.config.adapter.rank, ground.config.adapter.alpha), (4, 8.0));
        }
    }

    /// Goal: a folder without a tokenizer can be measured and stays as it is. Method: one of a peer's, with settings alone.
    #[test]
    fn a_folder_is_not_written_to() {
        let folder = tempfile::tempdir().expect("a folder");
        super::super::write_shape("llama-tiny", folder.path()).expect("written");
        fs::write(folder.path().join("tokenizer_config.json"), "{}").expect("written");
        let ground = prepare(&bench(Subject::Folder(folder.path().into()))).expect("a ground");
        assert!(ground.folder.path().join("model/tokenizer.json").exists());
        assert!(!folder.path().join("tokenizer.json").exists());
        assert_eq!(fs::read_to_string(folder.path().join("tokenizer_config.json")).expect("read"), "{}");
    }
}

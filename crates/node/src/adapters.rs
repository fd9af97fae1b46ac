//! Adapters of a run: where they start, and the PEFT folders they end in.

use crate::error::NodeError;
use crate::prepare::{check_task, classes};
use cutlayer_model::spec::{HeadSpec, ModelSpec, WeightLayout};
use cutlayer_model::{AdapterError, ModelFolder, PeftConfig, PeftFolder, PeftTask, lora, read_spec};
use cutlayer_wire::{AdapterState, LoraSpec, Plan, Task};
use std::collections::BTreeMap;
use std::path::Path;

/// Names and shapes of every tensor that a run trains.
pub(crate) fn all_shapes(spec: &ModelSpec, task: &Task, adapter: &LoraSpec) -> Result<BTreeMap<String, Vec<usize>>, NodeError> {
    check_task(task, spec)?;
    Ok(lora::shapes(spec, adapter, 0..spec.blocks, true, classes(task))?)
}

/// The adapter a run starts from: that of a PEFT folder, or a fresh one from `seed`.
pub(crate) fn starting(
    spec: &ModelSpec,
    task: &Task,
    adapter: &LoraSpec,
    seed: u64,
    folder: Option<&Path>,
) -> Result<AdapterState, NodeError> {
    let shapes = all_shapes(spec, task, adapter)?;
    let Some(folder) = folder else {
        return Ok(lora::initial(&shapes, seed));
    };
    let (config, state) = PeftFolder::read(folder)?;
    if config.lora.scale() != adapter.scale() {
        return Err(NodeError::Task(format!(
            "the adapter in {} is scaled by {} (alpha / r), the run's by {}; give the run the same rank and alpha",
            folder.display(),
            config.lora.scale(),
            adapter.scale()
        )));
    }
    check(&shapes, &state)?;
    Ok(state)
}

/// `state` is exactly of `shapes`.
pub(crate) fn check(shapes: &BTreeMap<String, Vec<usize>>, state: &AdapterState) -> Result<(), AdapterError> {
    if let Some(key) = state.keys().find(|key| !shapes.contains_key(*key)) {
        return Err(AdapterError::Unexpected { key: key.clone() });
    }
    for (key, expected) in shapes {
        let tensor = state.get(key).ok_or_else(|| AdapterError::Missing { key: key.clone() })?;
        if &tensor.shape != expected {
            return Err(AdapterError::Shape { key: key.clone(), found: tensor.shape.clone(), expected: expected.clone() });
        }
    }
    Ok(())
}

/// What PEFT needs to know of an adapter of this run.
pub(crate) fn peft_config(plan: &Plan, model: &Path) -> Result<PeftConfig, NodeError> {
    let spec = read_spec(&ModelFolder::open(model)?)?;
    let transposed = spec.block.linears().iter().any(|linear| linear.layout == WeightLayout::InOut);
    let (task, labels) = match &plan.task {
        Task::CausalLm => (PeftTask::CausalLm, vec![]),
        Task::Classify { labels } => (PeftTask::SequenceClassification, labels.clone()),
    };
    let modules_to_save = match &spec.head {
        HeadSpec::Classifier { classifier, .. } => vec![(*classifier).to_string()],
        HeadSpec::LanguageModel { .. } => vec![],
    };
    let base_model = Some(std::path::absolute(model).unwrap_or_else(|_| model.into()).display().to_string());
    Ok(PeftConfig { lora: plan.adapter.clone(), task: Some(task), base_model, fan_in_fan_out: transposed, modules_to_save, labels })
}

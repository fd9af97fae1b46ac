//! From a client's records to its batches, once the plan is known.

use crate::error::NodeError;
use cutlayer_data::{Batch, BatchShape, Batcher, Layout, Objective, Record, Tokenizer, evaluation_batches, tokenise};
use cutlayer_model::spec::ModelSpec;
use cutlayer_wire::{ADAPTER_COLUMNS, BatchSpec, Carried, Encoding, Plan, Task};
use std::path::Path;

/// What a client holds; it never leaves the client but as activations, and labels in a vanilla split.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClientData {
    /// Records to train on.
    pub train: Vec<Record>,
    /// Held-out records to score the global adapter on; may be empty.
    pub eval: Vec<Record>,
}

/// A client's batches.
pub(crate) struct Prepared {
    pub batches: Batcher,
    pub evaluation: Vec<Batch>,
    /// Records that hold nothing to score.
    pub skipped: usize,
}

/// Classes of a task; 0 for a language model.
pub(crate) fn classes(task: &Task) -> usize {
    match task {
        Task::CausalLm => 0,
        Task::Classify { labels } => labels.len(),
    }
}

/// The model's kind and the task's go together.
pub(crate) fn check_task(task: &Task, spec: &ModelSpec) -> Result<(), NodeError> {
    let encoder = matches!(spec.head, cutlayer_model::spec::HeadSpec::Classifier { .. });
    match task {
        Task::CausalLm if encoder => {
            Err(NodeError::Task(format!("a {} model classifies and cannot generate; set task = classify, with its labels", spec.family)))
        }
        Task::Classify { .. } if !encoder => {
            Err(NodeError::Task(format!("a {} model has no classification head; set task = causal_lm, or use a bert model", spec.family)))
        }
        _ => Ok(()),
    }
}

/// The encodings of activations and gradients can do the model's width, that of adapters an adapter's rows; none remembers
/// what it has no use for.
pub(crate) fn check_encodings(tensors: [Encoding; 2], adapters: Encoding, spec: &ModelSpec) -> Result<(), NodeError> {
    let hidden = u32::try_from(spec.hidden).unwrap_or(u32::MAX);
    tensors.into_iter().try_for_each(|encoding| encoding.check_columns(hidden))?;
    adapters.check_columns(ADAPTER_COLUMNS)?;
    tensors[0].check_carries(Carried::Activations)?;
    tensors[1].check_carries(Carried::Gradients)?;
    Ok(adapters.check_carries(Carried::Adapters)?)
}

fn shape(batch: &BatchSpec) -> BatchShape {
    let layout = match batch.layout {
        cutlayer_wire::Layout::Padded => Layout::Padded,
        cutlayer_wire::Layout::Packed => Layout::Packed,
    };
    BatchShape { sequences: batch.sequences, tokens_max: batch.tokens_max, layout, group_by_length: batch.group_by_length }
}

/// Tokenises `data` with the tokenizer of `model` and shuffles it with the run's seed and the client's index.
pub(crate) fn prepare(model: &Path, data: &ClientData, plan: &Plan, client: u32) -> Result<Prepared, NodeError> {
    let train = examples(model, &data.train, &plan.task, &plan.batch)?;
    let seed = plan.seed.wrapping_add(u64::from(client));
    let batches = Batcher::new(train.examples, shape(&plan.batch), seed)?;
    Ok(Prepared { batches, evaluation: evaluation(model, &data.eval, &plan.task, &plan.batch)?, skipped: train.skipped })
}

/// Tokens in the rectangle that a batch of these lengths would fill if it were padded: what a tensor of whole rows would compute.
/// Packed sequences lie in one row, and pad nothing.
pub(crate) fn rectangle(batch: &BatchSpec, lengths: &[u32]) -> u32 {
    match batch.layout {
        cutlayer_wire::Layout::Padded => (lengths.len() as u32).saturating_mul(lengths.iter().copied().max().unwrap_or(0)),
        cutlayer_wire::Layout::Packed => lengths.iter().sum(),
    }
}

/// Every held-out record once.
pub(crate) fn evaluation(model: &Path, records: &[Record], task: &Task, batch: &BatchSpec) -> Result<Vec<Batch>, NodeError> {
    let examples = examples(model, records, task, batch)?.examples;
    if examples.is_empty() {
        return Ok(vec![]);
    }
    Ok(evaluation_batches(&examples, &shape(batch))?)
}

fn examples(model: &Path, records: &[Record], task: &Task, batch: &BatchSpec) -> Result<cutlayer_data::Tokenised, NodeError> {
    let tokenizer = Tokenizer::open(model)?;
    let objective = match task {
        Task::CausalLm => Objective::CausalLm,
        Task::Classify { labels } => Objective::Classify { labels },
    };
    Ok(tokenise(&tokenizer, records, objective, batch.tokens_max as usize)?)
}

//! What stands on the last block: logits, the loss, and the classifier.
//!
//! Logits exist only for the tokens that are scored, and of those only a chunk at a time: positions whose label is ignored cost nothing.

use crate::block::{Linear, Norm};
use crate::lora::{Bound, KEY_PREFIX, download};
use crate::ops::{Kernels, composed};
use crate::rows::{Rows, indices};
use crate::stage::Labels;
use burn::tensor::{DType, Tensor};
use cutlayer_wire::EvalSums;

/// Labels below zero are not scored.
pub const IGNORED: i32 = -100;

/// The frozen part of the head.
#[derive(Clone, Debug)]
pub(crate) enum Head {
    /// Final norm and the `[v, d]` table.
    LanguageModel { norm: Norm, table: Tensor<2> },
    /// Pooler; the classifier is trained and so part of the adapter, at `path`.
    Classifier { pooler: Linear, path: String },
}

/// Loss of one batch: what to differentiate, and the sums to report.
pub(crate) struct Loss {
    /// Mean over the scored positions, times the batch's share; `None` where none is scored.
    pub objective: Option<Tensor<1>>,
    pub sums: EvalSums,
}

impl Head {
    /// Logits of every token `[n, v]`, or of every sequence `[sequences, classes]`.
    pub fn logits(&self, kernels: Kernels, hidden_nd: Tensor<2>, rows: &Rows, adapter: &Bound) -> Tensor<2> {
        match self {
            Head::LanguageModel { norm, table } => {
                kernels.linear(norm.forward(kernels, hidden_nd), table.clone().transpose(), None, None, None)
            }
            Head::Classifier { pooler, path } => classify(kernels, pooler, path, pick(hidden_nd, &rows.firsts()), adapter),
        }
    }

    /// Mean cross-entropy over the scored labels: one per token, the token after it; or one per sequence, its class.
    pub fn loss(&self, kernels: Kernels, hidden_nd: Tensor<2>, rows: &Rows, labels: Labels, adapter: &Bound) -> Loss {
        let Labels { values: labels, share } = labels;
        let scored: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] >= 0).collect();
        if scored.is_empty() {
            return Loss { objective: None, sums: EvalSums::default() };
        }
        let targets: Vec<u32> = scored.iter().map(|&i| labels[i] as u32).collect();
        let targets = indices(&targets, &hidden_nd.device().inner());
        let (losses, best) = match self {
            Head::LanguageModel { norm, table } => {
                let wanted: Vec<u32> = scored.iter().map(|&i| i as u32).collect();
                kernels.projected_loss(norm.forward(kernels, pick(hidden_nd, &wanted)), table.clone(), targets.clone())
            }
            Head::Classifier { pooler, path } => {
                let firsts = rows.firsts();
                let wanted: Vec<u32> = scored.iter().map(|&i| firsts[i]).collect();
                composed::cross_entropy(classify(kernels, pooler, path, pick(hidden_nd, &wanted), adapter), targets.clone())
            }
        };
        // The report is summed on the host in f64; the gradient takes the device's sum.
        let loss_sum = download(losses.clone().inner()).into_iter().map(f64::from).sum();
        let correct = best.equal(targets).int().sum().into_scalar::<i64>() as u64;
        let objective = losses.mul_scalar(share / scored.len() as f64).sum();
        Loss { objective: Some(objective), sums: EvalSums { loss_sum, scored: scored.len() as u64, correct } }
    }
}

fn classify(kernels: Kernels, pooler: &Linear, path: &str, x_nd: Tensor<2>, adapter: &Bound) -> Tensor<2> {
    let pooled = pooler.forward(kernels, x_nd, None, adapter).cast(DType::F32).tanh();
    let weight = adapter.leaf(&format!("{KEY_PREFIX}{path}.weight")).expect("a classifier stage trains its classifier");
    let bias = adapter.leaf(&format!("{KEY_PREFIX}{path}.bias")).expect("a classifier stage trains its classifier");
    pooled.matmul(weight.clone().transpose()) + bias.clone()
}

fn pick(hidden_nd: Tensor<2>, tokens: &[u32]) -> Tensor<2> {
    if tokens.len() == hidden_nd.dims()[0] {
        return hidden_nd;
    }
    let device = hidden_nd.device().inner();
    hidden_nd.select(0, indices(tokens, &device))
}

//! What stands on the last block: logits, the loss, and the classifier.
//!
//! Logits exist only for the tokens that are scored: positions whose label is ignored cost nothing.

use crate::block::{Linear, Norm};
use crate::lora::{Bound, KEY_PREFIX, download};
use crate::rows::{Rows, indices};
use burn::tensor::{Int, Tensor, TensorData, activation};
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

/// Loss of one batch: the mean to differentiate, and the sums to report.
pub(crate) struct Loss {
    /// Mean over the scored positions; `None` where none is scored.
    pub mean: Option<Tensor<1>>,
    pub sums: EvalSums,
}

impl Head {
    /// Logits of every real token `[n, v]`, or of every sequence `[sequences, classes]`.
    pub fn logits(&self, hidden_btd: Tensor<3>, rows: &Rows, adapter: &Bound) -> Tensor<2> {
        match self {
            Head::LanguageModel { .. } => self.project(rows.gather(hidden_btd), adapter),
            Head::Classifier { .. } => self.project(firsts(hidden_btd, rows), adapter),
        }
    }

    /// Mean cross-entropy over the scored labels: one per real token, the token after it; or one per sequence, its class.
    pub fn loss(&self, hidden_btd: Tensor<3>, rows: &Rows, labels: &[i32], adapter: &Bound) -> Loss {
        let scored: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] >= 0).collect();
        if scored.is_empty() {
            return Loss { mean: None, sums: EvalSums::default() };
        }
        let targets: Vec<i32> = scored.iter().map(|&i| labels[i]).collect();
        let places = match self {
            Head::LanguageModel { .. } => rows.places(),
            Head::Classifier { .. } => rows.firsts(),
        };
        let wanted: Vec<u32> = scored.iter().map(|&i| places[i]).collect();
        let logits = self.project(pick(hidden_btd, &wanted), adapter);
        cross_entropy(logits, &targets)
    }

    fn project(&self, x_nd: Tensor<2>, adapter: &Bound) -> Tensor<2> {
        match self {
            Head::LanguageModel { norm, table } => norm.forward(x_nd).matmul(table.clone().transpose()),
            Head::Classifier { pooler, path } => {
                let pooled = pooler.forward(x_nd, adapter).tanh();
                let weight = adapter.leaf(&format!("{KEY_PREFIX}{path}.weight")).expect("a classifier stage trains its classifier");
                let bias = adapter.leaf(&format!("{KEY_PREFIX}{path}.bias")).expect("a classifier stage trains its classifier");
                pooled.matmul(weight.clone().transpose()) + bias.clone()
            }
        }
    }
}

fn firsts(hidden_btd: Tensor<3>, rows: &Rows) -> Tensor<2> {
    pick(hidden_btd, &rows.firsts())
}

fn pick(hidden_btd: Tensor<3>, places: &[u32]) -> Tensor<2> {
    let [b, t, d] = hidden_btd.dims();
    let flat = hidden_btd.reshape([b * t, d]);
    if places.len() == b * t {
        return flat;
    }
    let device = flat.device();
    flat.select(0, indices(places, &device))
}

fn cross_entropy(logits_nv: Tensor<2>, targets: &[i32]) -> Loss {
    let n = targets.len();
    let device = logits_nv.device().inner();
    let targets_n1: Tensor<2, Int> = Tensor::from_data(TensorData::new(targets.to_vec(), [n, 1]), &device);
    let best = logits_nv.clone().inner().argmax(1);
    let correct = best.equal(targets_n1.clone()).int().sum().into_scalar::<i64>();
    let losses = activation::log_softmax(logits_nv, 1).gather(1, targets_n1).neg();
    // The report is summed on the host in f64; the gradient takes the device's mean.
    let loss_sum = download(losses.clone().inner()).into_iter().map(f64::from).sum();
    Loss { mean: Some(losses.mean()), sums: EvalSums { loss_sum, scored: n as u64, correct: correct as u64 } }
}

//! What stands on the last block: logits, the loss, and the classifier.
//!
//! Logits exist only for the tokens that are scored, and of those only a chunk at a time: positions whose label is ignored cost nothing.

use crate::block::{Linear, Norm};
use crate::bound::{Bound, Bounds};
use crate::lora::{KEY_PREFIX, download};
use crate::ops::{Kernels, composed};
use crate::rows::{Rows, indices};
use crate::stage::Labels;
use burn::tensor::{DType, Tensor, TensorData};
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

/// What the sequences of one client are scored by.
pub(crate) struct Part<'a> {
    pub rows: &'a Rows,
    pub labels: Labels<'a>,
}

/// Loss of one batch: what to differentiate, and the sums to report.
pub(crate) struct Loss {
    /// The sum, over the clients, of the mean over a client's scored positions times its share; `None` where none is scored.
    pub objective: Option<Tensor<1>>,
    /// Each client's.
    pub sums: Vec<EvalSums>,
}

impl Head {
    /// Logits of every token `[n, v]`, or of every sequence `[sequences, classes]`.
    pub fn logits(&self, kernels: Kernels, hidden_nd: Tensor<2>, rows: &Rows, adapter: &Bounds) -> Tensor<2> {
        match self {
            Head::LanguageModel { norm, table } => {
                kernels.linear(norm.forward(kernels, hidden_nd), Some(table.clone().transpose()), None, None, None)
            }
            Head::Classifier { pooler, path } => {
                let counts = [rows.lengths().len()];
                classify(kernels, pooler, path, pick(hidden_nd, &rows.firsts()), &counts, adapter)
            }
        }
    }

    /// Cross-entropy over the scored labels of each part, which is that of the adapter in its place: one per token, the token after it; or
    /// one per sequence, its class.
    pub fn loss(&self, kernels: Kernels, hidden_nd: Tensor<2>, parts: &[Part], adapters: &Bounds) -> Loss {
        let (mut wanted, mut targets, mut weights, mut counts) = (vec![], vec![], vec![], vec![]);
        for (part, (place, _)) in parts.iter().zip(adapters.iter()) {
            let labels = part.labels.values;
            let scored: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] >= 0).collect();
            let firsts = match self {
                Head::LanguageModel { .. } => None,
                Head::Classifier { .. } => Some(part.rows.firsts()),
            };
            wanted.extend(scored.iter().map(|&i| place.start as u32 + firsts.as_ref().map_or(i as u32, |firsts| firsts[i])));
            targets.extend(scored.iter().map(|&i| labels[i] as u32));
            weights.extend(scored.iter().map(|_| (part.labels.share / scored.len() as f64) as f32));
            counts.push(scored.len());
        }
        if wanted.is_empty() {
            return Loss { objective: None, sums: vec![EvalSums::default(); parts.len()] };
        }
        let device = hidden_nd.device().inner();
        let classes = indices(&targets, &device);
        let (losses, best) = match self {
            Head::LanguageModel { norm, table } => {
                kernels.projected_loss(norm.forward(kernels, pick(hidden_nd, &wanted)), table.clone(), classes)
            }
            Head::Classifier { pooler, path } => {
                composed::cross_entropy(classify(kernels, pooler, path, pick(hidden_nd, &wanted), &counts, adapters), classes)
            }
        };
        // The report is summed on the host in f64; the gradient takes the device's sum.
        let (values, best) = (download(losses.clone().inner()), best.into_data().iter::<i64>().collect::<Vec<_>>());
        let mut from = 0;
        let sums = counts.into_iter().map(|count| {
            let own = from..from + count;
            from = own.end;
            let loss_sum = values[own.clone()].iter().copied().map(f64::from).sum();
            let correct = own.filter(|&i| best[i] == i64::from(targets[i])).count() as u64;
            EvalSums { loss_sum, scored: count as u64, correct }
        });
        let sums = sums.collect();
        let count = weights.len();
        let weights = Tensor::<1>::from_data(TensorData::new(weights, [count]), &device).cast(losses.dtype());
        Loss { objective: Some((losses * weights).sum()), sums }
    }
}

/// Each adapter has a classifier of its own, for its `counts` rows of `x`.
fn classify(kernels: Kernels, pooler: &Linear, path: &str, x_nd: Tensor<2>, counts: &[usize], adapters: &Bounds) -> Tensor<2> {
    let pooled = pooler.project(kernels, x_nd).cast(DType::F32).tanh();
    let leaf = |adapter: &Bound, end: &str| {
        adapter.leaf(&format!("{KEY_PREFIX}{path}.{end}")).expect("a classifier stage trains its classifier").clone()
    };
    let mut from = 0;
    let logits = adapters.iter().zip(counts).filter(|(_, count)| **count > 0).map(|((_, adapter), &count)| {
        let own = pooled.clone().narrow(0, from, count);
        from += count;
        own.matmul(leaf(adapter, "weight").transpose()) + leaf(adapter, "bias")
    });
    Tensor::cat(logits.collect(), 0)
}

fn pick(hidden_nd: Tensor<2>, tokens: &[u32]) -> Tensor<2> {
    if tokens.len() == hidden_nd.dims()[0] {
        return hidden_nd;
    }
    let device = hidden_nd.device().inner();
    hidden_nd.select(0, indices(tokens, &device))
}

//! Adapters during one step: what runs beside the frozen projections, for one client or for several on rows of their own.

use crate::block::Beside;
use crate::lora::{key_a, key_b, random_for};
use crate::ops::{Factors, Groups};
use crate::optimizer::Gradients;
use burn::tensor::{DType, Tensor, TensorData};
use rand::Rng;
use std::collections::BTreeMap;
use std::ops::Range;

/// What a backward pass leaves: the gradients of its leaves.
pub(crate) type BackwardPass = burn::tensor::Gradients;

/// One adapter during one step; holds the leaves whose gradients the step takes.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    scale: f64,
    dropout: f64,
    dropout_seed: u64,
    /// What the factors are cast to where they meet activations.
    activations: DType,
    pub(crate) leaves: BTreeMap<String, Tensor<2>>,
}

impl Bound {
    /// Leaves by key; each projection drops features of its input with probability `dropout`, drawn from `dropout_seed`.
    pub fn new(leaves: BTreeMap<String, Tensor<2>>, scale: f64, dropout: f64, dropout_seed: u64, activations: DType) -> Self {
        Self { scale, dropout, dropout_seed, activations, leaves }
    }

    /// The same without gradients.
    pub fn inner(&self) -> Self {
        let leaves = self.leaves.iter().map(|(key, leaf)| (key.clone(), leaf.clone().inner())).collect();
        Self { leaves, ..*self }
    }

    /// The trained tensor at `key`.
    pub fn leaf(&self, key: &str) -> Option<&Tensor<2>> {
        self.leaves.get(key)
    }

    /// Its gradients, by key, out of a backward pass.
    pub fn take_gradients(&self, taken: &mut BackwardPass) -> Gradients {
        self.leaves.iter().filter_map(|(key, leaf)| Some((key.clone(), leaf.grad_remove(taken)?))).collect()
    }

    /// `A [r, in]` and `up [r, out]`, with the scale in it, of the projection at `path`.
    fn pair(&self, path: &str) -> Option<(Tensor<2>, Tensor<2>)> {
        let (a, b) = (self.leaves.get(&key_a(path))?.clone(), self.leaves.get(&key_b(path))?.clone());
        Some((a.cast(self.activations), b.mul_scalar(self.scale).transpose().cast(self.activations)))
    }

    /// The factors of some of the projections that stand side by side: `A [r, in]` of all stacked, and `up [r, out]`, each in its own columns.
    /// `None` where none has an adapter.
    pub(crate) fn factors(&self, parts: &[(String, usize)], wanted: Range<usize>) -> Option<(Tensor<2>, Tensor<2>)> {
        let outputs: usize = parts.iter().map(|(_, outputs)| outputs).sum();
        let (mut all_a, mut ups, mut column) = (vec![], vec![], 0);
        for (part, (path, own)) in parts.iter().enumerate() {
            if let Some((a, up)) = wanted.contains(&part).then(|| self.pair(path)).flatten() {
                let device = a.device().inner();
                let zeros = |columns: usize| (columns > 0).then(|| Tensor::zeros([a.dims()[0], columns], (&device, self.activations)));
                let row: Vec<Tensor<2>> = [zeros(column), Some(up), zeros(outputs - column - own)].into_iter().flatten().collect();
                ups.push(join(row, 1));
                all_a.push(a);
            }
            column += own;
        }
        (!all_a.is_empty()).then(|| (join(all_a, 0), join(ups, 0)))
    }

    /// Zero with probability `dropout`, else `1 / (1 - dropout)`, `n` rows of `d`: inverted dropout, the same on every device for one seed.
    fn dropout_mask(&self, path: &str, n: usize, d: usize) -> Vec<f32> {
        let mut random = random_for(self.dropout_seed, path);
        let kept = (1.0 / (1.0 - self.dropout)) as f32;
        // A feature is dropped where the random word is below its share of all words.
        let share = (self.dropout * f64::from(u32::MAX)) as u32;
        let mut words = vec![0u32; n * d];
        random.fill(&mut words[..]);
        words.into_iter().map(|word| if word < share { 0.0 } else { kept }).collect()
    }
}

/// The adapters of a batch, each on rows of its own, one client after another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bounds(Vec<(Range<usize>, Bound)>);

impl Bounds {
    /// One adapter for `rows` rows.
    pub fn one(bound: Bound, rows: usize) -> Self {
        Self(vec![(0..rows, bound)])
    }

    /// Another, for the `rows` rows that follow.
    pub fn join(&mut self, bound: Bound, rows: usize) {
        let from = self.rows();
        self.0.push((from..from + rows, bound));
    }

    /// The same without gradients.
    pub fn inner(&self) -> Self {
        Self(self.0.iter().map(|(rows, bound)| (rows.clone(), bound.inner())).collect())
    }

    /// Rows of all.
    pub fn rows(&self) -> usize {
        self.0.last().map_or(0, |(rows, _)| rows.end)
    }

    /// The adapters and their rows, in order.
    pub fn iter(&self) -> impl Iterator<Item = &(Range<usize>, Bound)> {
        self.0.iter()
    }

    fn masked(&self, path: &str, x_nd: &Tensor<2>) -> Tensor<2> {
        let [n, d] = x_nd.dims();
        let each = self.iter().flat_map(|(rows, bound)| match bound.dropout > 0.0 {
            true => bound.dropout_mask(path, rows.len(), d),
            false => vec![0.0; rows.len() * d],
        });
        let mask = Tensor::<2>::from_data(TensorData::new(each.collect::<Vec<f32>>(), [n, d]), &x_nd.device().inner());
        x_nd.clone() * mask.cast(x_nd.dtype())
    }

    fn gather(&self, factors: impl Fn(&Bound) -> Option<(Tensor<2>, Tensor<2>)>) -> Option<Factors> {
        let (mut all_a, mut ups, mut groups) = (vec![], vec![], vec![]);
        for (rows, bound) in self.iter() {
            if let Some((a, up)) = factors(bound) {
                groups.push((rows.clone(), a.dims()[0]));
                all_a.push(a);
                ups.push(up);
            }
        }
        (!all_a.is_empty()).then(|| Factors { a: join(all_a, 0), up: join(ups, 0), groups: Groups::new(groups) })
    }
}

impl Beside for Bounds {
    /// Those of all adapters that drop nothing.
    fn factors(&self, parts: &[(String, usize)]) -> Option<Factors> {
        self.gather(|bound| if bound.dropout > 0.0 { None } else { bound.factors(parts, 0..parts.len()) })
    }

    /// Each projection drops other features, so that each has factors, and the input they are for, of its own.
    fn dropped(&self, parts: &[(String, usize)], x_nd: &Tensor<2>) -> Vec<(Tensor<2>, Factors)> {
        if self.iter().all(|(_, bound)| bound.dropout == 0.0) {
            return vec![];
        }
        let drops = |bound: &Bound| bound.dropout > 0.0;
        let one = |(part, (path, _)): (usize, &(String, usize))| {
            let factors = self.gather(|bound| if drops(bound) { bound.factors(parts, part..part + 1) } else { None })?;
            Some((self.masked(path, x_nd), factors))
        };
        parts.iter().enumerate().filter_map(one).collect()
    }
}

/// Tensors one after another; one alone stays as it is.
pub(crate) fn join(mut parts: Vec<Tensor<2>>, dimension: usize) -> Tensor<2> {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, dimension) }
}

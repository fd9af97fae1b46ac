//! The layout of one batch: sequences one after another, without padding, and who sees whom.
//!
//! Shapes: `n` tokens of all sequences, `d` hidden, `v` vocabulary, `h` heads. Everything is computed ragged, `[n, d]`. Only attention
//! composed from burn's own operations spreads its tokens over a rectangle of `b` rows of `t` tokens, and only this file knows it.

use burn::tensor::{Device, Int, Tensor, TensorData};

/// Added to a score that must not be seen; far below any real score, yet finite, so that a row of padding stays a number.
const HIDDEN_SCORE: f32 = -1e30;

/// The sequences of one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    lengths: Vec<u32>,
}

/// A batch that cannot be run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowsError {
    /// No sequence, or an empty one.
    #[error("a batch needs at least one sequence, each of at least one token")]
    Empty,
    /// Longer than the position encoding.
    #[error("a sequence of {tokens} tokens exceeds the model's {positions_max} positions; lower `tokens_max`")]
    TooLong {
        /// Its length.
        tokens: usize,
        /// The model's bound.
        positions_max: usize,
    },
}

impl Rows {
    /// Sequences of these lengths.
    pub fn new(lengths: &[u32], positions_max: usize) -> Result<Self, RowsError> {
        let longest = lengths.iter().max().copied().unwrap_or(0) as usize;
        if lengths.is_empty() || lengths.contains(&0) {
            return Err(RowsError::Empty);
        }
        if longest > positions_max {
            return Err(RowsError::TooLong { tokens: longest, positions_max });
        }
        Ok(Self { lengths: lengths.to_vec() })
    }

    /// The sequences of several batches, each checked before.
    pub(crate) fn joined(lengths: &[u32]) -> Self {
        Self { lengths: lengths.to_vec() }
    }

    /// Length of each sequence, in tokens.
    pub fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    /// Tokens of all sequences, `n`.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().map(|&length| length as usize).sum()
    }

    /// Position in its sequence of each of the `n` tokens.
    pub fn positions(&self) -> Vec<u32> {
        self.lengths.iter().flat_map(|&length| 0..length).collect()
    }

    /// The first token of each sequence.
    pub fn firsts(&self) -> Vec<u32> {
        self.lengths
            .iter()
            .scan(0, |next, &length| {
                let first = *next;
                *next += length;
                Some(first)
            })
            .collect()
    }

    /// For each token, the run of keys that it sees and the run of queries that may see it: `[first key, end, first query, end]`.
    ///
    /// Whatever the mask, causal or not, with or without a window, what one token sees is one run.
    pub fn spans(&self, causal: bool, window: Option<usize>) -> Vec<[u32; 4]> {
        let window = window.and_then(|w| u32::try_from(w).ok()).unwrap_or(u32::MAX);
        let sequence = |(first, &length): (u32, &u32)| {
            let end = first + length;
            (first..end).map(move |i| {
                let (before, after) = ((i + 1).saturating_sub(window).max(first), i.saturating_add(window).min(end));
                if causal { [before, i + 1, i, after] } else { [before, after, before, after] }
            })
        };
        self.firsts().into_iter().zip(&self.lengths).flat_map(sequence).collect()
    }

    /// Rows of the rectangle.
    pub(crate) fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens a row of the rectangle.
    pub(crate) fn width(&self) -> usize {
        self.lengths.iter().max().copied().unwrap_or(0) as usize
    }

    /// Whether ragged and rectangle are the same memory.
    fn is_dense(&self) -> bool {
        self.tokens() == self.rows() * self.width()
    }

    /// `[n, d]` into the rectangle `[b, t, d]`; padding repeats some token.
    pub(crate) fn scatter(&self, x_nd: Tensor<2>) -> Tensor<3> {
        let (b, t, d) = (self.rows(), self.width(), x_nd.dims()[1]);
        if self.is_dense() {
            return x_nd.reshape([b, t, d]);
        }
        let from: Vec<u32> = self
            .firsts()
            .into_iter()
            .zip(&self.lengths)
            .flat_map(|(first, &length)| (0..t as u32).map(move |i| first + i.min(length - 1)))
            .collect();
        let from = indices(&from, &x_nd.device().inner());
        x_nd.select(0, from).reshape([b, t, d])
    }

    /// The `n` real tokens of the rectangle, `[n, d]`.
    pub(crate) fn gather(&self, x_btd: Tensor<3>) -> Tensor<2> {
        let [b, t, d] = x_btd.dims();
        let flat = x_btd.reshape([b * t, d]);
        if self.is_dense() {
            return flat;
        }
        let places: Vec<u32> = self.lengths.iter().zip(0..).flat_map(|(&length, row)| row * t as u32..row * t as u32 + length).collect();
        let device = flat.device().inner();
        flat.select(0, indices(&places, &device))
    }

    /// What attention adds to its scores `[b or 1, 1, 1, t, t]` so that a token sees what it may; `None` where it may see all.
    pub(crate) fn mask(&self, causal: bool, window: Option<usize>, device: &Device) -> Option<Tensor<5>> {
        let t = self.width();
        let window = window.filter(|&w| w < t).unwrap_or(usize::MAX);
        if !causal && self.is_dense() && window == usize::MAX {
            return None;
        }
        let sees = |query: usize, key: usize| (!causal || key <= query) && query.abs_diff(key) < window;
        let mut masks = 1;
        let scores: Vec<f32> = if causal {
            // Padding stands to the right, so that no real token sees it.
            grid(t, sees)
        } else {
            masks = self.lengths.len();
            self.lengths.iter().flat_map(|&length| grid(t, |query, key| key < length as usize && sees(query, key))).collect()
        };
        Some(Tensor::from_data(TensorData::new(scores, [masks, 1, 1, t, t]), device))
    }
}

fn grid(t: usize, sees: impl Fn(usize, usize) -> bool) -> Vec<f32> {
    let mut scores = Vec::with_capacity(t * t);
    for query in 0..t {
        scores.extend((0..t).map(|key| if sees(query, key) { 0.0 } else { HIDDEN_SCORE }));
    }
    scores
}

/// Indices as a tensor on `device`.
pub(crate) fn indices(values: &[u32], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_sees_its_own_sequence_back_to_the_window() {
        let rows = Rows::new(&[2, 3], 8).expect("fits");
        assert_eq!((rows.tokens(), rows.positions(), rows.firsts()), (5, vec![0, 1, 0, 1, 2], vec![0, 2]));
        assert_eq!(rows.spans(true, None), [[0, 1, 0, 2], [0, 2, 1, 2], [2, 3, 2, 5], [2, 4, 3, 5], [2, 5, 4, 5]]);
        assert_eq!(rows.spans(true, Some(2))[4], [3, 5, 4, 5]);
        assert_eq!(rows.spans(false, None)[2], [2, 5, 2, 5]);
        assert_eq!(rows.spans(false, Some(2))[2], [2, 4, 2, 4]);
    }

    #[test]
    fn empty_and_overlong_batches_are_refused() {
        assert_eq!(Rows::new(&[], 8), Err(RowsError::Empty));
        assert_eq!(Rows::new(&[3, 0], 8), Err(RowsError::Empty));
        assert_eq!(Rows::new(&[9], 8), Err(RowsError::TooLong { tokens: 9, positions_max: 8 }));
    }
}

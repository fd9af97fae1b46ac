//! The layout of one batch: ragged sequences, and the rectangle they are computed in.
//!
//! Shapes: `b` rows, `t` tokens a row, `n` tokens of all sequences, `d` hidden, `v` vocabulary, `h` heads.
//! On the wire and in the data a batch is ragged, `[n, d]`: padding never leaves this file.

use burn::tensor::{Device, Int, Tensor, TensorData};

/// Added to a score that must not be seen; far below any real score, yet finite, so that a row of padding stays a number.
const HIDDEN_SCORE: f32 = -1e30;

/// How ragged sequences are placed in a rectangle `[b, t]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    lengths: Vec<u32>,
    packed: bool,
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
    /// Lays out sequences of these lengths: one a row padded to the longest or, `packed`, all in one row without padding.
    pub fn new(lengths: &[u32], packed: bool, positions_max: usize) -> Result<Self, RowsError> {
        let longest = lengths.iter().max().copied().unwrap_or(0) as usize;
        if lengths.is_empty() || lengths.contains(&0) {
            return Err(RowsError::Empty);
        }
        if longest > positions_max {
            return Err(RowsError::TooLong { tokens: longest, positions_max });
        }
        Ok(Self { lengths: lengths.to_vec(), packed: packed && lengths.len() > 1 })
    }

    /// Length of each sequence, in tokens.
    pub fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    /// Whether the sequences share one row.
    pub fn is_packed(&self) -> bool {
        self.packed
    }

    /// Tokens of all sequences, `n`.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().map(|&length| length as usize).sum()
    }

    /// Rows `b`.
    pub fn rows(&self) -> usize {
        if self.packed { 1 } else { self.lengths.len() }
    }

    /// Tokens a row `t`.
    pub fn width(&self) -> usize {
        if self.packed { self.tokens() } else { self.lengths.iter().max().copied().unwrap_or(0) as usize }
    }

    /// Whether ragged and rectangle are the same memory.
    pub fn is_dense(&self) -> bool {
        self.tokens() == self.rows() * self.width()
    }

    /// Position in its sequence of each of a row's `t` tokens.
    pub fn positions(&self) -> Vec<u32> {
        if self.packed { self.lengths.iter().flat_map(|&length| 0..length).collect() } else { (0..self.width() as u32).collect() }
    }

    /// Place in the rectangle, `row * t + column`, of each of the `n` tokens.
    pub fn places(&self) -> Vec<u32> {
        if self.packed {
            return (0..self.tokens() as u32).collect();
        }
        let width = self.width() as u32;
        self.lengths.iter().zip(0u32..).flat_map(|(&length, row)| row * width..row * width + length).collect()
    }

    /// Place in the rectangle of the first token of each sequence.
    pub fn firsts(&self) -> Vec<u32> {
        let width = self.width() as u32;
        let mut start = 0;
        self.lengths
            .iter()
            .zip(0u32..)
            .map(|(&length, row)| {
                let place = if self.packed { start } else { row * width };
                start += length;
                place
            })
            .collect()
    }

    /// Values of `n` tokens into the rectangle; padding holds `fill`.
    pub fn spread<T: Copy>(&self, ragged: &[T], features: usize, fill: T) -> Vec<T> {
        let mut rectangle = vec![fill; self.rows() * self.width() * features];
        let mut from = 0;
        for (place, &length) in self.firsts().into_iter().zip(&self.lengths) {
            let (to, count) = (place as usize * features, length as usize * features);
            rectangle[to..to + count].copy_from_slice(&ragged[from..from + count]);
            from += count;
        }
        rectangle
    }

    /// The `n` real tokens of `hidden_btd`, as `[n, d]`.
    pub fn gather(&self, hidden_btd: Tensor<3>) -> Tensor<2> {
        let [b, t, d] = hidden_btd.dims();
        let flat = hidden_btd.reshape([b * t, d]);
        if self.is_dense() {
            return flat;
        }
        let device = flat.device();
        flat.select(0, indices(&self.places(), &device))
    }

    /// What attention adds to its scores `[b or 1, 1, 1, t, t]` so that a token sees what it may; `None` where it may see all.
    pub fn mask(&self, causal: bool, window: Option<usize>, device: &Device) -> Option<Tensor<5>> {
        let t = self.width();
        let window = window.filter(|&w| w < t).unwrap_or(usize::MAX);
        if !causal && self.is_dense() && !self.packed && window == usize::MAX {
            return None;
        }
        let sees = |query: usize, key: usize| (!causal || key <= query) && query.abs_diff(key) < window;
        let mut masks = 1;
        let scores: Vec<f32> = if self.packed {
            let segment: Vec<usize> = self.lengths.iter().enumerate().flat_map(|(s, &length)| vec![s; length as usize]).collect();
            grid(t, |query, key| segment[query] == segment[key] && sees(query, key))
        } else if causal {
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
    fn padded_rows_place_each_sequence_at_its_row() {
        let rows = Rows::new(&[2, 3], false, 8).expect("fits");
        assert_eq!((rows.rows(), rows.width(), rows.tokens()), (2, 3, 5));
        assert_eq!(rows.places(), [0, 1, 3, 4, 5]);
        assert_eq!(rows.spread(&[1, 2, 3, 4, 5], 1, 0), [1, 2, 0, 3, 4, 5]);
    }

    #[test]
    fn packed_rows_restart_positions() {
        let rows = Rows::new(&[2, 3], true, 8).expect("fits");
        assert_eq!((rows.rows(), rows.width()), (1, 5));
        assert_eq!(rows.positions(), [0, 1, 0, 1, 2]);
        assert_eq!(rows.firsts(), [0, 2]);
    }

    #[test]
    fn empty_and_overlong_batches_are_refused() {
        assert_eq!(Rows::new(&[], false, 8), Err(RowsError::Empty));
        assert_eq!(Rows::new(&[3, 0], false, 8), Err(RowsError::Empty));
        assert_eq!(Rows::new(&[9], false, 8), Err(RowsError::TooLong { tokens: 9, positions_max: 8 }));
    }
}

//! Which rows of a batch go through which adapter: each group has rows, and low-rank factors, of its own.

use std::ops::Range;
use std::sync::Arc;

/// Rows that share an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Its rows of the batch.
    pub rows: Range<usize>,
    /// Its rows of the factors, which stand one group after another.
    pub ranks: Range<usize>,
}

/// The groups of a projection, in order: rows ascend and may leave some out, ranks ascend without a gap.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups(Arc<[Group]>);

impl Groups {
    /// From the rows and the rank of each.
    pub fn new(each: impl IntoIterator<Item = (Range<usize>, usize)>) -> Self {
        let mut ranks = 0;
        let place = |(rows, rank): (Range<usize>, usize)| {
            let from = ranks;
            ranks += rank;
            Group { rows, ranks: from..ranks }
        };
        let groups: Arc<[Group]> = each.into_iter().map(place).collect();
        assert!(groups.windows(2).all(|pair| pair[0].rows.end <= pair[1].rows.start), "rows ascend");
        Self(groups)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Group> {
        self.0.iter()
    }

    /// Columns of what lies between the factors: the largest rank.
    pub fn width(&self) -> usize {
        self.iter().map(|group| group.ranks.len()).max().unwrap_or(0)
    }

    /// Rows of the factors.
    pub fn ranks(&self) -> usize {
        self.0.last().map_or(0, |group| group.ranks.end)
    }

    /// Whether it is one group of all `n` rows.
    pub fn is_whole(&self, n: usize) -> bool {
        matches!(&self.0[..], [group] if group.rows == (0..n))
    }
}

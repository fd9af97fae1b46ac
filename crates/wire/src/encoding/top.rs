//! The largest entries of a row alone; the others come out as zero.
//!
//! Their places travel as packed indices or as a bitmap of the row, whichever is shorter: both sides know from the shape.
//! Reading refuses places out of order or beyond the row.

use super::bits::{index_bits, pack_indices, unpack_indices};
use super::rows::RowCodec;

/// Bytes of `kept` places among `columns`, and whether they are a bitmap.
pub(super) fn places_bytes(kept: u64, columns: u64) -> (u64, bool) {
    let listed = (kept * index_bits(usize::try_from(columns).unwrap_or(usize::MAX)) as u64).div_ceil(8);
    let bitmap = columns.div_ceil(8);
    (listed.min(bitmap), bitmap < listed)
}

/// Rows of which `inner` writes the largest entries.
pub(super) struct Top {
    inner: Box<dyn RowCodec>,
    columns: usize,
    places_bytes: usize,
    bitmap: bool,
    keys: Vec<u64>,
    places: Vec<u32>,
    kept: Vec<f32>,
}

impl Top {
    /// Rows of `columns`, of which `inner` takes `kept`.
    pub fn new(inner: Box<dyn RowCodec>, columns: usize, kept: usize) -> Self {
        let (bytes, bitmap) = places_bytes(kept as u64, columns as u64);
        Self { inner, columns, places_bytes: bytes as usize, bitmap, keys: Vec::new(), places: vec![0; kept], kept: vec![0.0; kept] }
    }

    /// Finds the places of the largest entries, in order; of equals the first.
    fn select(&mut self, row: &[f32]) {
        // An f32's bits without its sign grow with its size, and a NaN is above all.
        let key = |(place, value): (u32, &f32)| u64::from(value.to_bits() << 1) << 32 | u64::from(u32::MAX - place);
        self.keys.clear();
        self.keys.extend((0_u32..).zip(row).map(key));
        let kept = self.places.len();
        if kept < self.keys.len() {
            self.keys.select_nth_unstable_by(kept, |a, b| b.cmp(a));
        }
        for (place, key) in self.places.iter_mut().zip(&self.keys) {
            *place = u32::MAX - *key as u32;
        }
        self.places.sort_unstable();
    }

    fn write_places(&self, bytes: &mut [u8]) {
        bytes.fill(0);
        if self.bitmap {
            self.places.iter().for_each(|place| bytes[*place as usize / 8] |= 1 << (place % 8));
        } else {
            pack_indices(&self.places, index_bits(self.columns), bytes);
        }
    }

    fn read_places(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        if self.bitmap {
            let set = (0..self.columns as u32).filter(|place| bytes[*place as usize / 8] >> (place % 8) & 1 == 1);
            if set.clone().count() != self.places.len() {
                return Err("a row keeps more or fewer entries than agreed");
            }
            self.places.iter_mut().zip(set).for_each(|(place, set)| *place = set);
            return Ok(());
        }
        unpack_indices(bytes, index_bits(self.columns), &mut self.places);
        let ordered = self.places.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = self.places.last().is_none_or(|last| (*last as usize) < self.columns);
        if ordered && inside { Ok(()) } else { Err("a row's entries are out of order or beyond it") }
    }
}

impl RowCodec for Top {
    fn row_bytes(&self) -> usize {
        self.places_bytes + self.inner.row_bytes()
    }

    fn write(&mut self, index: usize, row: &[f32], bytes: &mut [u8]) {
        self.select(row);
        for (kept, place) in self.kept.iter_mut().zip(&self.places) {
            *kept = row[*place as usize];
        }
        let (places, rest) = bytes.split_at_mut(self.places_bytes);
        self.write_places(places);
        self.inner.write(index, &self.kept, rest);
    }

    fn read(&mut self, bytes: &[u8], row: &mut [f32]) -> Result<(), &'static str> {
        let (places, rest) = bytes.split_at(self.places_bytes);
        self.read_places(places)?;
        self.inner.read(rest, &mut self.kept)?;
        row.fill(0.0);
        for (kept, place) in self.kept.iter().zip(&self.places) {
            row[*place as usize] = *kept;
        }
        Ok(())
    }
}

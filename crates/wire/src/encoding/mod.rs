//! How the values of a tensor become bytes on the wire.
//!
//! An [`Encoding`] is a small value: how a row's values are written, and the stages around that. It knows the width of a row,
//! `[tokens, hidden]`, and does every row alike, in this order: a projection or the choice of the largest entries, a rotation,
//! integers with a scale or floats, the rows that are not zero, and a lossless stage.
//!
//! Host-side reference implementations, with no state and no clock; what a device may do in their place is in `device.rs`. The same values
//! and seed give the same bytes everywhere. Reading is total: any bytes give values or a typed error, and nothing is allocated
//! beyond what the shape allows.

mod bits;
mod device;
mod error;
mod form;
mod hadamard;
mod lossless;
mod part;
mod plain;
mod projection;
mod quantised;
mod random;
mod rows;
mod top;

pub use device::DevicePart;
pub use error::EncodingError;
pub use part::EncodingPart;

use std::borrow::Cow;

use plain::{PlainF32, RoundedBf16, RoundedF16};
use projection::Projected;
use quantised::{Quantised, SCALE_BYTES};
use random::{Stream, mix64};
use rows::RowCodec;
use top::{Top, places_bytes};

/// All of a row, in the parts that a kept share counts.
const TOP_ALL: u16 = 10_000;

/// The largest rotated group that a remedy proposes: more mixes little better and costs more.
const GROUP_PROPOSED_MAX: u64 = 64;

/// The narrowest block that a projection mixes well in.
const PROJECTION_BLOCK_MIN: u64 = 8;

/// How a row's values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Values {
    F32,
    Bf16,
    F16,
    /// Signed integers of so many bits, with a scale.
    Int(u8),
}

/// What travels in an encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// Hidden states, of samples that come by again.
    Activations,
    /// Their gradients.
    Gradients,
    /// Updates of an adapter.
    Adapters,
}

/// Which encoding a tensor travels in.
///
/// Made from its name, `int4/64+hadamard` for one, or from its eight bytes; either way only combinations that can be computed
/// exist. Whether one fits a model's width is asked with [`Encoding::check_columns`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Encoding {
    values: Values,
    /// Features that share a scale; 0 for the whole row.
    group: u16,
    /// Kept share of a row's entries, in parts of `TOP_ALL`; 0 for all, without places.
    top: u16,
    /// Coordinates kept of a rotated row; 0 for the row itself.
    projection: u16,
    hadamard: bool,
    stochastic: bool,
    zstd: bool,
    /// Whether a sample that came by before travels as the difference from then.
    delta: bool,
    /// Of differences: the share of its norm that a token must have moved by to travel, in parts of `TOP_ALL`.
    moved: u16,
    /// Whether the sender adds what it left out of a sample to that sample's next tensor.
    feedback: bool,
}

impl Encoding {
    /// Four bytes a value, little-endian; lossless.
    pub const F32: Self = Self {
        values: Values::F32,
        group: 0,
        top: 0,
        projection: 0,
        hadamard: false,
        stochastic: false,
        zstd: false,
        delta: false,
        moved: 0,
        feedback: false,
    };
    /// Two bytes a value: the upper half of an f32, rounded to nearest even.
    pub const BF16: Self = Self { values: Values::Bf16, ..Self::F32 };
    /// Two bytes a value in IEEE half precision.
    pub const F16: Self = Self { values: Values::F16, ..Self::F32 };
    /// One byte a value and a scale a row.
    pub const INT8: Self = Self { values: Values::Int(8), ..Self::F32 };
    /// Half a byte a value and a scale a row.
    pub const INT4: Self = Self { values: Values::Int(4), ..Self::F32 };

    /// Whether every value comes out as it went in.
    pub fn is_lossless(self) -> bool {
        self.values == Values::F32 && self.top == 0 && self.projection == 0
    }

    /// What each tensor is written in where nothing is remembered: this encoding, or that of its differences.
    pub fn forgetful(self) -> Self {
        Self { delta: false, moved: 0, feedback: false, ..self }
    }

    /// Whether the sender adds what it left out of a sample to that sample's next tensor; the receiver reads it like any other.
    pub fn feeds_back(self) -> bool {
        self.feedback
    }

    /// The share of its norm that a token must have moved by to travel, where samples travel as differences.
    pub fn differences(self) -> Option<f32> {
        self.delta.then_some(f32::from(self.moved) / f32::from(TOP_ALL))
    }

    /// Refuses a memory that does not go with what travels.
    pub fn check_carries(self, what: Carried) -> Result<(), EncodingError> {
        let refuse = |what, remedy| Err(EncodingError::Remembers { encoding: self, what, remedy });
        match what {
            // The last visit's leftovers belong to weights that have moved on; a difference makes up for them.
            Carried::Activations if self.feedback => refuse("activations", "write delta in place of feedback"),
            Carried::Gradients if self.delta => {
                refuse("gradients", "they are unlike at every visit; write feedback in place of delta or moved")
            }
            Carried::Adapters if self.delta || self.feedback => {
                refuse("updates", "they are differences from the global adapter already; drop delta, moved and feedback")
            }
            _ => Ok(()),
        }
    }

    /// Refuses an encoding in which nothing is generated. What is left does each row alike whatever is beside it, so that a sequence that
    /// is sent in other pieces, or again after a lost connection, is read as the same.
    pub fn check_generates(self) -> Result<(), EncodingError> {
        let refuse = |remedy| Err(EncodingError::Remembers { encoding: self, what: "generating", remedy });
        if self.delta || self.feedback {
            return refuse("a sequence has no earlier visit; drop delta, moved and feedback");
        }
        if self.stochastic {
            return refuse("a row that is sent again must be the same; drop stochastic");
        }
        Ok(())
    }

    /// Refuses a width that the encoding cannot do, in words that say which it can.
    pub fn check_columns(self, columns: u32) -> Result<(), EncodingError> {
        let columns = u64::from(columns);
        let refuse = |remedy| Err(EncodingError::Columns { encoding: self, columns, remedy });
        let power_of_two = |width: u64| if width == 0 { 0 } else { 1 << width.trailing_zeros() };
        if columns == 0 {
            return refuse("a model has a width".into());
        }
        if u64::from(self.projection) > columns {
            return refuse(format!("project to {columns} coordinates at most"));
        }
        if self.projection > 0 && power_of_two(columns) < PROJECTION_BLOCK_MIN {
            return refuse("only a multiple of 8 is rotated; drop proj".into());
        }
        let width = self.width(columns);
        let group = u64::from(self.group);
        let block = power_of_two(width).min(GROUP_PROPOSED_MAX);
        if group > 0 && !width.is_multiple_of(group) {
            return refuse(format!("groups divide the {width} features; {block} does"));
        }
        if self.hadamard && group == 0 && !width.is_power_of_two() {
            return refuse(format!("a whole row is rotated only where it is a power of two; rotate groups of {block} instead"));
        }
        Ok(())
    }

    /// The most bytes of a `[rows, columns]` tensor: what it takes without zero rows, or stored where nothing can be packed.
    pub fn payload_bytes_max(self, rows: u32, columns: u32) -> Result<u64, EncodingError> {
        self.check_columns(columns)?;
        let whole = u64::from(rows).saturating_mul(self.row_bytes(columns.into()));
        Ok(whole.saturating_add(u64::from(self.zstd)))
    }

    /// Refuses a number of bytes that no `[rows, columns]` tensor takes, before any of them is read.
    pub fn check_bytes(self, bytes: u64, rows: u32, columns: u32) -> Result<(), EncodingError> {
        let bytes_max = self.payload_bytes_max(rows, columns)?;
        let (row_bytes, bitmap_bytes) = (self.row_bytes(columns.into()), u64::from(rows.div_ceil(8)));
        let by_rows = bytes >= bitmap_bytes && (bytes - bitmap_bytes).is_multiple_of(row_bytes);
        if bytes == bytes_max || (bytes < bytes_max && bytes > 0 && (self.zstd || by_rows)) {
            return Ok(());
        }
        Err(EncodingError::Length { encoding: self, rows: rows.into(), columns: columns.into(), bytes, bytes_max })
    }

    /// The bytes of rows of `columns` values. The same seed gives the same bytes; only stochastic rounding looks at it.
    ///
    /// A NaN or an infinity comes out as one, if not always the same; what is finite comes out finite up to about 1e38.
    pub fn encode(self, values: &[f32], columns: usize, seed: u64) -> Result<Vec<u8>, EncodingError> {
        let mut codec = self.codec(columns, seed)?;
        if !values.len().is_multiple_of(columns) {
            return Err(EncodingError::Shape { values: values.len(), columns });
        }
        Ok(self.pack(rows::write(codec.as_mut(), values, columns)))
    }

    /// The values in `bytes`, which must be `rows` rows of `columns`.
    pub fn decode(self, bytes: &[u8], rows: usize, columns: usize) -> Result<Vec<f32>, EncodingError> {
        // No row is rounded when it is read, so the seed does not matter.
        let mut codec = self.codec(columns, 0)?;
        let payload = self.unpack(bytes, rows.saturating_mul(codec.row_bytes()))?;
        rows::read(self, codec.as_mut(), &payload, (rows, columns))
    }

    /// The lossless stage, where there is one.
    fn pack(self, payload: Vec<u8>) -> Vec<u8> {
        if self.zstd { lossless::pack(&payload, self.value_width()) } else { payload }
    }

    /// Undoes [`Encoding::pack`] for a payload of at most `bytes_max`.
    fn unpack(self, bytes: &[u8], bytes_max: usize) -> Result<Cow<'_, [u8]>, EncodingError> {
        if !self.zstd {
            return Ok(bytes.into());
        }
        let corrupt = |reason| EncodingError::Corrupt { encoding: self, reason };
        Ok(lossless::unpack(bytes, self.value_width(), bytes_max).map_err(corrupt)?.into())
    }

    /// Features of a row after a projection.
    fn width(self, columns: u64) -> u64 {
        if self.projection == 0 { columns } else { self.projection.into() }
    }

    /// Values of a row that travel.
    fn kept(self, columns: u64) -> u64 {
        let width = self.width(columns);
        if self.top == 0 { width } else { (width * u64::from(self.top)).div_ceil(TOP_ALL.into()) }
    }

    /// Bytes of one value, where they are whole: what the lossless stage puts apart.
    fn value_width(self) -> usize {
        match self.values {
            Values::F32 => 4,
            Values::Bf16 | Values::F16 => 2,
            Values::Int(_) => 1,
        }
    }

    /// Bytes of a row of a width that fits.
    fn row_bytes(self, columns: u64) -> u64 {
        let kept = self.kept(columns);
        let values = match self.values {
            Values::F32 => kept * 4,
            Values::Bf16 | Values::F16 => kept * 2,
            Values::Int(bits) => {
                let groups = if self.group == 0 { 1 } else { kept / u64::from(self.group) };
                groups * SCALE_BYTES as u64 + (kept * u64::from(bits)).div_ceil(8)
            }
        };
        if self.top == 0 { values } else { values + places_bytes(kept, columns).0 }
    }

    /// What does the rows: wrappers around wrappers, innermost the values.
    fn codec(self, columns: usize, seed: u64) -> Result<Box<dyn RowCodec>, EncodingError> {
        let too_wide = |_| EncodingError::Columns { encoding: self, columns: columns as u64, remedy: "no model is that wide".into() };
        self.check_columns(u32::try_from(columns).map_err(too_wide)?)?;
        let kept = self.kept(columns as u64) as usize;
        let group = if self.group == 0 { kept } else { self.group.into() };
        let inner: Box<dyn RowCodec> = match self.values {
            Values::F32 => Box::new(PlainF32 { columns: kept }),
            Values::Bf16 => Box::new(RoundedBf16 { columns: kept }),
            Values::F16 => Box::new(RoundedF16::new(kept)),
            Values::Int(bits) => {
                let chance = self.stochastic.then(|| Stream::new(seed));
                Box::new(Quantised::new(kept, bits, group, self.hadamard, chance))
            }
        };
        Ok(match (self.top, self.projection) {
            (0, 0) => inner,
            (0, _) => Box::new(Projected::new(inner, columns, kept)),
            _ => Box::new(Top::new(inner, columns, kept)),
        })
    }
}

/// The seed of a tensor's rounding by chance: `about` tells apart what one step sends, such as the kind of its frame.
pub fn rounding_seed(run: u64, client: u32, step: u64, about: u8) -> u64 {
    [u64::from(client), step, about.into()].into_iter().fold(mix64(run), |seed, part| mix64(seed ^ part))
}

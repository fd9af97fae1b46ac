//! The values of an adapter: how they become bytes, and how an adapter becomes a difference from another one.
//!
//! A round moves an adapter little: the difference from the global adapter that it started from is small, evenly sized, and
//! forgives a coarse encoding where the adapter itself does not.

use crate::adapter_error::AdapterFrameError;
use crate::adapter_frame::{AdapterFrame, AdapterHeader};
use crate::encoding::{Encoding, EncodingError, rounding_seed};
use crate::ids::RoundId;
use crate::tensor::{AdapterState, HostTensor};

/// Bytes of one value in f32.
pub(crate) const VALUE_BYTES: u64 = 4;

/// Values of a row, where an encoding wants rows: factors are of every shape, and scales and groups need one.
pub const ADAPTER_COLUMNS: u32 = 64;

impl AdapterFrame {
    /// The same adapter as a difference from `global` of round `from`, in `encoding`.
    pub fn against(mut self, encoding: Encoding, from: RoundId, global: &AdapterState) -> Result<Self, AdapterFrameError> {
        let round = self.round;
        encoding.check_columns(ADAPTER_COLUMNS).map_err(|source| AdapterFrameError::Encoding { round, source })?;
        self.each_with(global, |value, global| value - global)?;
        (self.encoding, self.from) = (encoding, Some(from));
        Ok(self)
    }

    /// The adapter itself, where it travelled as a difference from the one that the receiver `holds`.
    pub fn restored(mut self, holds: Option<(RoundId, &AdapterState)>) -> Result<Self, AdapterFrameError> {
        let Some(from) = self.from else { return Ok(self) };
        match holds.filter(|(round, _)| *round == from) {
            None => Err(AdapterFrameError::From { round: self.round, from, have: holds.map(|(round, _)| round) }),
            Some((_, global)) => {
                self.each_with(global, |value, global| value + global)?;
                (self.encoding, self.from) = (Encoding::F32, None);
                Ok(self)
            }
        }
    }

    fn each_with(&mut self, global: &AdapterState, join: impl Fn(f32, f32) -> f32) -> Result<(), AdapterFrameError> {
        let round = self.round;
        for (name, tensor) in &mut self.state {
            let foreign = || AdapterFrameError::Foreign { round, name: name.clone() };
            let other: &HostTensor = global.get(name).filter(|other| other.shape == tensor.shape).ok_or_else(foreign)?;
            tensor.values.iter_mut().zip(&other.values).for_each(|(value, other)| *value = join(*value, *other));
        }
        Ok(())
    }
}

/// The most bytes of so many values.
pub(crate) fn payload_bytes_max(values: u64, encoding: Encoding) -> Result<u64, EncodingError> {
    match encoding {
        Encoding::F32 => Ok(values.saturating_mul(VALUE_BYTES)),
        _ => encoding.payload_bytes_max(rows_of(values), ADAPTER_COLUMNS),
    }
}

/// Whether a payload can be so many values: in f32 all of them; else zeros take less and all may be packed.
pub(crate) fn fits(bytes: u64, values: u64, encoding: Encoding) -> bool {
    match encoding {
        Encoding::F32 => bytes == values.saturating_mul(VALUE_BYTES),
        // No rows take no bytes, or the lossless stage's first.
        _ if values == 0 => payload_bytes_max(0, encoding) == Ok(bytes),
        _ => encoding.check_bytes(bytes, rows_of(values), ADAPTER_COLUMNS).is_ok(),
    }
}

/// The bytes of an adapter's values.
///
/// # Panics
/// If the encoding cannot do rows of an adapter: [`AdapterFrame::against`] asks before it sets one.
pub(crate) fn payload_of(frame: &AdapterFrame) -> Vec<u8> {
    let values = frame.state.values().flat_map(|tensor| &tensor.values);
    if frame.encoding == Encoding::F32 {
        return values.flat_map(|value| value.to_le_bytes()).collect();
    }
    let mut values: Vec<f32> = values.copied().collect();
    values.resize(values.len().next_multiple_of(ADAPTER_COLUMNS as usize), 0.0);
    let seed = rounding_seed(frame.base_prefix, 0, frame.round.0.into(), 0);
    frame.encoding.encode(&values, ADAPTER_COLUMNS as usize, seed).expect("an encoding is checked before an adapter is put in it")
}

/// The values in a payload that [`fits`].
pub(crate) fn values_of(header: &AdapterHeader, payload: &[u8]) -> Result<Vec<f32>, AdapterFrameError> {
    let AdapterHeader { round, values, encoding, .. } = *header;
    if encoding == Encoding::F32 {
        return Ok(payload.chunks_exact(4).map(|value| f32::from_le_bytes([value[0], value[1], value[2], value[3]])).collect());
    }
    let found = encoding.decode(payload, rows_of(values.into()) as usize, ADAPTER_COLUMNS as usize);
    let mut found = found.map_err(|source| AdapterFrameError::Encoding { round, source })?;
    found.truncate(values as usize);
    Ok(found)
}

/// Rows that so many values fill.
fn rows_of(values: u64) -> u32 {
    u32::try_from(values.div_ceil(ADAPTER_COLUMNS.into())).unwrap_or(u32::MAX)
}

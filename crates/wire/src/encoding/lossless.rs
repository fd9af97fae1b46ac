//! The lossless stage: zstd over the finished payload, or the payload as it is where that is shorter.
//!
//! Bytes of the same significance are put side by side first: the exponents of neighbours are alike, their mantissas are noise.
//! Reading allocates what the shape allows, whatever the bytes claim.

/// Fast enough for a phone's uplink; higher levels find little more in numbers.
const LEVEL: i32 = 1;

/// The first byte: the payload follows as it is.
const STORED: u8 = 0;
/// The first byte: one zstd frame follows.
const PACKED: u8 = 1;

/// `payload`, of values of `width` bytes, packed.
pub(super) fn pack(payload: &[u8], width: usize) -> Vec<u8> {
    let planes = apart(payload, width);
    // A compressor that fails is no reason not to send: the payload itself will do.
    match zstd::bulk::compress(&planes, LEVEL) {
        Ok(packed) if packed.len() < payload.len() => [&[PACKED], &packed[..]].concat(),
        _ => [&[STORED], payload].concat(),
    }
}

/// Undoes [`pack`] for a payload of at most `bytes_max`.
pub(super) fn unpack(bytes: &[u8], width: usize, bytes_max: usize) -> Result<Vec<u8>, &'static str> {
    match bytes.split_first() {
        Some((&STORED, payload)) if payload.len() <= bytes_max => Ok(payload.to_vec()),
        Some((&STORED, _)) => Err("it is longer than its shape allows"),
        Some((&PACKED, packed)) => {
            let planes = zstd::bulk::decompress(packed, bytes_max).map_err(|_| "zstd cannot unpack it within what its shape allows")?;
            Ok(together(&planes, width))
        }
        _ => Err("it is neither stored nor packed"),
    }
}

/// First bytes of all values, then the second ones, and so on.
fn apart(payload: &[u8], width: usize) -> Vec<u8> {
    (0..width).flat_map(|place| payload.iter().skip(place).step_by(width).copied()).collect()
}

/// Undoes [`apart`].
fn together(planes: &[u8], width: usize) -> Vec<u8> {
    let mut payload = vec![0; planes.len()];
    let mut rest = planes.iter();
    for place in 0..width {
        for (byte, plane) in payload.iter_mut().skip(place).step_by(width).zip(&mut rest) {
            *byte = *plane;
        }
    }
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: nothing is lost, whatever the width and the length. Method: regular bytes and noise.
    #[test]
    fn payloads_survive() {
        for width in [1, 2, 4] {
            for length in [0, 1, 3, 64, 1001] {
                for payload in [vec![7; length], (0..length as u32).map(|i| ((i * i).wrapping_mul(2_654_435_761) >> 7) as u8).collect()] {
                    let packed = pack(&payload, width);
                    assert!(packed.len() <= length + 1);
                    assert_eq!(unpack(&packed, width, length), Ok(payload));
                }
            }
        }
    }

    /// Goal: a small frame does not become a large allocation. Method: a megabyte of zeros, allowed a kilobyte.
    #[test]
    fn more_than_the_shape_allows_is_refused() {
        assert!(unpack(&pack(&vec![0; 1 << 20], 1), 1, 1024).is_err());
        assert!(unpack(&[STORED, 1, 2, 3], 1, 2).is_err());
        assert!(unpack(&[], 1, 2).is_err());
        assert!(unpack(&[9, 1], 1, 2).is_err());
    }
}

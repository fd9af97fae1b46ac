//! Small integers side by side: codes of 2 to 8 bits, and indices of as many as they need.
//!
//! Four and two bits are packed from far-apart parts of a row, not from neighbours: then each step of the loop reads and
//! writes whole stretches, which the compiler turns into vector instructions.

/// Bytes that `codes` codes of `bits` bits take.
pub(super) fn packed_bytes(codes: usize, bits: u8) -> usize {
    (codes * usize::from(bits)).div_ceil(8)
}

/// Packs codes below `2^bits` into `packed_bytes` bytes.
pub(super) fn pack(codes: &[u8], bits: u8, bytes: &mut [u8]) {
    bytes.fill(0);
    if bytes.is_empty() {
        return;
    }
    if 8 % bits == 0 {
        for (lane, part) in codes.chunks(bytes.len()).enumerate() {
            let shift = lane as u8 * bits;
            for (byte, code) in bytes.iter_mut().zip(part) {
                *byte |= *code << shift;
            }
        }
        return;
    }
    for (codes, bytes) in codes.chunks(8).zip(bytes.chunks_mut(bits.into())) {
        let word = codes.iter().rev().fold(0_u64, |word, code| word << bits | u64::from(*code));
        bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
    }
}

/// Undoes [`pack`].
pub(super) fn unpack(bytes: &[u8], bits: u8, codes: &mut [u8]) {
    if bytes.is_empty() {
        return;
    }
    let mask = 0xff >> (8 - bits);
    if 8 % bits == 0 {
        for (lane, part) in codes.chunks_mut(bytes.len()).enumerate() {
            let shift = lane as u8 * bits;
            for (byte, code) in bytes.iter().zip(part) {
                *code = (*byte >> shift) & mask;
            }
        }
        return;
    }
    for (codes, bytes) in codes.chunks_mut(8).zip(bytes.chunks(bits.into())) {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        let mut word = u64::from_le_bytes(word);
        for code in codes {
            *code = word as u8 & mask;
            word >>= bits;
        }
    }
}

/// Bits of an index below `count`.
pub(super) fn index_bits(count: usize) -> usize {
    (usize::BITS - count.saturating_sub(1).leading_zeros()).max(1) as usize
}

/// Packs indices of `bits` bits, at most 32, one after the other.
pub(super) fn pack_indices(indices: &[u32], bits: usize, bytes: &mut [u8]) {
    let (mut word, mut held, mut out) = (0_u64, 0, bytes.iter_mut());
    let mut flush = |word: &mut u64| {
        if let Some(byte) = out.next() {
            *byte = *word as u8;
        }
        *word >>= 8;
    };
    for index in indices {
        word |= u64::from(*index) << held;
        held += bits;
        while held >= 8 {
            flush(&mut word);
            held -= 8;
        }
    }
    if held > 0 {
        flush(&mut word);
    }
}

/// Undoes [`pack_indices`]; indices beyond the bytes are 0.
pub(super) fn unpack_indices(bytes: &[u8], bits: usize, indices: &mut [u32]) {
    let (mut word, mut held, mut rest) = (0_u64, 0, bytes.iter());
    for index in indices {
        while held < bits {
            word |= u64::from(rest.next().copied().unwrap_or(0)) << held;
            held += 8;
        }
        *index = (word & ((1 << bits) - 1)) as u32;
        word >>= bits;
        held -= bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every width keeps its codes. Method: all lengths up to some, every code.
    #[test]
    fn codes_survive_at_every_width_and_length() {
        for bits in 2..=8_u8 {
            for length in 0..70 {
                let codes: Vec<u8> = (0..length).map(|i| (i * 37 + 11) as u8 & (0xff >> (8 - bits))).collect();
                let mut bytes = vec![0xff; packed_bytes(codes.len(), bits)];
                pack(&codes, bits, &mut bytes);
                let mut back = vec![0xee; codes.len()];
                unpack(&bytes, bits, &mut back);
                assert_eq!(back, codes, "{length} of {bits} bits");
            }
        }
    }

    /// Goal: indices of any width survive. Method: counts around powers of two, the largest index among them.
    #[test]
    fn indices_survive_at_every_width() {
        for count in [1, 2, 3, 8, 9, 576, 1024, 65_537] {
            let bits = index_bits(count);
            let indices: Vec<u32> = (0..count as u32).rev().step_by(1 + count / 13).collect();
            let mut bytes = vec![0; (indices.len() * bits).div_ceil(8)];
            pack_indices(&indices, bits, &mut bytes);
            let mut back = vec![9; indices.len()];
            unpack_indices(&bytes, bits, &mut back);
            assert_eq!(back, indices, "{count}");
        }
    }
}

//! The part of an encoding that a GPU does, in operations that every backend has.
//!
//! Integers go in two short trips: down come the extremes of each group, up go the scales that the host made of them, down come
//! the codes, as many to a 32-bit word as fit. Nothing here depends on how a backend stores a float: scales are rounded by the host.

use super::{TensorError, is_cpu};
use burn::tensor::{DType, Device, Int, IntDType, Tensor, TensorData};
use cutlayer_wire::{DevicePart, Encoding};

/// Bits of a word of codes.
const WORD_BITS: usize = 32;

/// What `device` does of an encoding of rows of `columns`; nothing where that is the host's: on a CPU, and of types that it lacks.
pub(super) fn part(encoding: Encoding, columns: usize, device: &Device) -> Option<DevicePart> {
    if is_cpu(device) {
        return None;
    }
    encoding.device_part(columns).filter(|part| type_of(*part).is_none_or(|dtype| device.supports_dtype(dtype)))
}

/// The type that values are rounded to.
fn type_of(part: DevicePart) -> Option<DType> {
    match part {
        DevicePart::Bf16 => Some(DType::BF16),
        DevicePart::F16 => Some(DType::F16),
        DevicePart::Integers { .. } => None,
    }
}

/// The payload of `[n, d]`.
pub(super) fn encode(encoding: Encoding, part: DevicePart, hidden_nd: Tensor<2>) -> Result<Vec<u8>, TensorError> {
    let [tokens, hidden] = hidden_nd.dims();
    if tokens == 0 {
        return Ok(encoding.encode(&[], hidden, 0)?);
    }
    let DevicePart::Integers { bits, group, rotated } = part else {
        let dtype = type_of(part).expect("what is no integer is rounded");
        return Ok(encoding.frame_halves(&halves(hidden_nd, dtype), hidden)?);
    };
    let groups = hidden_nd.reshape([tokens * hidden / group, group]);
    let groups = if rotated { rotate(groups) } else { groups };
    let count = groups.dims()[0];
    let extremes = Tensor::cat(vec![groups.clone().max_dim(1), groups.clone().min_dim(1)], 1);
    let extremes = crate::lora::download(extremes);
    let scales: Vec<f32> = extremes.chunks_exact(2).map(|pair| encoding.scale(pair[0], -pair[1])).collect();
    // A group of zeros, or with a NaN: any code will do, as long as it is one.
    let divisors: Vec<f32> = scales.iter().map(|scale| if *scale == 0.0 || scale.is_nan() { f32::INFINITY } else { *scale }).collect();
    let divisors = Tensor::<2>::from_data(TensorData::new(divisors, [count, 1]), &groups.device());
    let half = DevicePart::half(bits);
    let codes = groups.div(divisors).clamp(-half, half - 1.0).round().add_scalar(half);
    let codes = unwords(&words(codes.reshape([tokens * hidden]), bits), bits, tokens * hidden);
    Ok(encoding.frame_codes(&codes, &scales, hidden)?)
}

/// The `[n, d]` of a payload on `device`.
pub(super) fn decode(
    encoding: Encoding,
    part: DevicePart,
    bytes: &[u8],
    [tokens, hidden]: [usize; 2],
    device: &Device,
) -> Result<Tensor<2>, TensorError> {
    let DevicePart::Integers { bits, group, rotated } = part else {
        let dtype = type_of(part).expect("what is no integer is rounded");
        let halves = encoding.unframe_halves(bytes, tokens, hidden)?;
        // An exponent of ones is an infinity or a NaN.
        let exponent = if dtype == DType::BF16 { 0x7f80 } else { 0x7c00 };
        if halves.chunks_exact(2).any(|half| u16::from_le_bytes([half[0], half[1]]) & exponent == exponent) {
            return Err(TensorError::NotFinite);
        }
        let halves = Tensor::<2>::from_data(TensorData::from_bytes_vec(halves, [tokens, hidden], dtype), (device, dtype));
        return Ok(halves.cast(DType::F32));
    };
    let (codes, scales) = encoding.unframe_codes(bytes, tokens, hidden)?;
    let half = DevicePart::half(bits);
    // What a rotation can add up to at most.
    let reach = half * (group as f32).sqrt();
    if !scales.iter().all(|scale| (scale * reach).is_finite()) {
        return Err(TensorError::NotFinite);
    }
    let count = scales.len();
    let scales = Tensor::<2>::from_data(TensorData::new(scales, [count, 1]), device);
    let values = spread(&codes, bits, device).reshape([count, group]).sub_scalar(half).mul(scales);
    let values = if rotated { rotate(values) } else { values };
    Ok(values.reshape([tokens, hidden]))
}

/// Values as sixteen bits each, little-endian; a finite one beyond f16 is its largest.
fn halves(values_nd: Tensor<2>, dtype: DType) -> Vec<u8> {
    let values_nd = if dtype == DType::F16 {
        let infinite = values_nd.clone().is_inf();
        let largest = f64::from(half::f16::MAX.to_f32());
        values_nd.clone().clamp(-largest, largest).mask_where(infinite, values_nd)
    } else {
        values_nd
    };
    values_nd.cast(dtype).into_data().bytes().to_vec()
}

/// Rotates each row, whose length is a power of two: the stages of the host's rotation, in its order.
fn rotate(mut rows_gd: Tensor<2>) -> Tensor<2> {
    let [count, width] = rows_gd.dims();
    let stages = width.trailing_zeros();
    for stage in 0..stages {
        let (low, high) = (rows_gd.clone().narrow(1, 0, width / 2), rows_gd.narrow(1, width / 2, width / 2));
        let pair: Tensor<3> = Tensor::stack(vec![low.clone() + high.clone(), low - high], 2);
        rows_gd = pair.reshape([count, width]);
        if stage + 1 == stages {
            rows_gd = rows_gd.mul_scalar((width as f32).sqrt().recip());
        }
    }
    rows_gd
}

/// Codes `[n]` in words, the first in the lowest bits.
fn words(codes: Tensor<1>, bits: u8) -> Vec<i32> {
    let (count, device) = (codes.dims()[0], codes.device());
    let each = WORD_BITS / usize::from(bits);
    let missing = count.next_multiple_of(each) - count;
    let codes = if missing == 0 { codes } else { Tensor::cat(vec![codes, Tensor::zeros([missing], &device)], 0) };
    let codes: Tensor<2, Int> = codes.reshape([(count + missing) / each, each]).int().cast(IntDType::I32);
    let place = |at: usize| codes.clone().narrow(1, at, 1).bitwise_left_shift_scalar((at * usize::from(bits)) as i32);
    let words = (1..each).fold(place(0), |words, at| words.bitwise_or(place(at)));
    words.try_into_vec_as::<i32>().expect("words of 32 bits read as such")
}

/// The codes of words, on the host.
fn unwords(words: &[i32], bits: u8, count: usize) -> Vec<u8> {
    let (each, mask) = (WORD_BITS / usize::from(bits), 0xff_u32 >> (8 - bits));
    let mut codes: Vec<u8> =
        words.iter().flat_map(|word| (0..each).map(move |at| (*word as u32 >> (at * usize::from(bits)) & mask) as u8)).collect();
    codes.truncate(count);
    codes
}

/// Codes as floats `[n]` on `device`, uploaded in words.
fn spread(codes: &[u8], bits: u8, device: &Device) -> Tensor<1> {
    let each = WORD_BITS / usize::from(bits);
    let word = |codes: &[u8]| codes.iter().rev().fold(0_u32, |word, code| word << bits | u32::from(*code)) as i32;
    let words: Vec<i32> = codes.chunks(each).map(word).collect();
    let count = words.len();
    let words = Tensor::<2, Int>::from_data(TensorData::new(words, [count, 1]), (device, DType::I32));
    let mask = 0xff_i32 >> (8 - bits);
    let place = |at: usize| words.clone().bitwise_right_shift_scalar((at * usize::from(bits)) as i32).bitwise_and_scalar(mask);
    let codes_f: Tensor<2> = Tensor::cat((0..each).map(place).collect(), 1).float().cast(DType::F32);
    codes_f.reshape([count * each]).narrow(0, 0, codes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceChoice;

    /// Rows over many orders of size, an outlier, a row of zeros, and a tie at every code.
    fn values(rows: usize, columns: usize) -> Vec<f32> {
        let mut state = 7_u32;
        let mut values: Vec<f32> = (0..rows * columns)
            .map(|place| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let size = 2.0_f32.powi((place / columns) as i32 % 9 * 4 - 16);
                ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * size
            })
            .collect();
        values[columns..2 * columns].fill(0.0);
        values[3] = 1000.0;
        (0..columns).for_each(|place| values[2 * columns + place] = (place % 17) as f32 / 2.0 - 4.0);
        values
    }

    /// Goal: the device's bytes are the host's, and it reads them to the host's values. Method: the device's way on the CPU, which
    /// divides and rounds as the host does; every kind of encoding, with rows that are zero and without, and no rows at all.
    #[test]
    fn the_devices_bytes_are_the_hosts() {
        let device = DeviceChoice::Cpu.open().expect("a CPU");
        for name in [
            "bf16",
            "bf16+zstd",
            "f16",
            "int8",
            "int8+zstd",
            "int7",
            "int6/64+hadamard",
            "int5/64+hadamard+zstd",
            "int4",
            "int4/64",
            "int4/64+hadamard",
            "int4/32+hadamard+zstd",
            "int3/64+hadamard",
            "int2/32+hadamard",
            "int2/8",
        ] {
            let encoding: Encoding = name.parse().expect(name);
            for (rows, columns) in [(11, 192), (40, 64), (1, 64), (0, 64)] {
                let values = if rows < 3 { vec![0.5; rows * columns] } else { values(rows, columns) };
                let hidden = Tensor::<2>::from_data(TensorData::new(values.clone(), [rows, columns]), &device);
                let part = encoding.device_part(columns).expect("a device can");
                let bytes = encode(encoding, part, hidden).expect("encoded");
                assert_eq!(bytes, encoding.encode(&values, columns, 0).expect("encoded"), "{name} {rows}");
                if rows > 0 {
                    let found = crate::lora::download(decode(encoding, part, &bytes, [rows, columns], &device).expect("decoded"));
                    let expected = encoding.decode(&bytes, rows, columns).expect("decoded");
                    assert!(found.iter().zip(&expected).all(|(found, expected)| found == expected), "{name} {rows}");
                }
            }
        }
    }

    /// Goal: nothing that is not finite comes in. Method: scales and values that are infinite, NaN, or grow too large when rotated.
    #[test]
    fn what_is_not_finite_is_refused() {
        let device = DeviceChoice::Cpu.open().expect("a CPU");
        for (name, bad) in [("bf16", f32::INFINITY), ("f16", f32::NAN), ("int8", f32::INFINITY), ("int4/64+hadamard", 3e38)] {
            let encoding: Encoding = name.parse().expect(name);
            let mut values = vec![1.0; 128];
            values[5] = bad;
            values[6] = bad;
            let bytes = encoding.encode(&values, 64, 0).expect("encoded");
            let part = encoding.device_part(64).expect("a device can");
            let found = decode(encoding, part, &bytes, [2, 64], &device);
            assert_eq!(found.expect_err(name), TensorError::NotFinite);
        }
    }
}

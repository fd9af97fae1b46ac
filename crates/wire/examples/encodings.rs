//! How much each encoding keeps of a tensor, how few bytes it takes, and how fast it is.
//!
//! `cargo run --release -p cutlayer-wire --example encodings`. Two tensors of 1024 tokens by 576 features: normal values, and
//! normal values with what hidden states of transformers have besides, a few features a hundred times larger and tokens of
//! uneven size. The error is relative: the norm of the difference over the norm of the tensor.

#![allow(clippy::unwrap_used)]

use cutlayer_wire::Encoding;
use std::hint::black_box;
use std::time::Instant;

const ROWS: usize = 1024;
const COLUMNS: usize = 576;
const RUNS: usize = 15;

const NAMES: &[&str] = &[
    "f32",
    "f32+zstd",
    "bf16",
    "bf16+zstd",
    "f16",
    "int8",
    "int8/64",
    "int8+zstd",
    "int8+stochastic",
    "int6/64",
    "int6/64+hadamard",
    "int4",
    "int4/64",
    "int4/32",
    "int4/64+hadamard",
    "int4/64+stochastic",
    "int4/64+hadamard+stochastic",
    "int4/64+hadamard+zstd",
    "int4/64+zstd",
    "int3/64+hadamard",
    "int2/32",
    "int2/64+hadamard",
    "topk=0.05",
    "int8+topk=0.1",
    "int4+topk=0.25",
    "bf16+proj=64",
    "int4/32+proj=288",
    "int8/64+proj=64",
];

/// A SplitMix64 stream of normal values: two uniform numbers a value, after Box and Muller.
fn normal(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    };
    move || ((-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32
}

fn gaussian() -> Vec<f32> {
    let mut next = normal(1);
    (0..ROWS * COLUMNS).map(|_| next()).collect()
}

fn heavy() -> Vec<f32> {
    let (mut next, mut sizes) = (normal(2), normal(3));
    let features: Vec<f32> = (0..COLUMNS).map(|feature| if feature % 144 == 7 { 100.0 } else { (sizes() * 0.7).exp() }).collect();
    let tokens: Vec<f32> = (0..ROWS).map(|_| (sizes() * 0.5).exp()).collect();
    tokens.iter().flat_map(|token| features.iter().map(|feature| token * feature).collect::<Vec<_>>()).map(|size| size * next()).collect()
}

fn error(values: &[f32], found: &[f32]) -> f64 {
    let square = |value: f32| f64::from(value).powi(2);
    let off: f64 = values.iter().zip(found).map(|(value, found)| square(value - found)).sum();
    (off / values.iter().map(|value| square(*value)).sum::<f64>()).sqrt()
}

/// The fastest of some runs, in milliseconds: what the code costs, without what else the machine does.
fn fastest<T>(mut work: impl FnMut() -> T) -> f64 {
    let mut times: Vec<f64> = Vec::new();
    for _ in 0..RUNS {
        let started = Instant::now();
        black_box(work());
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    times.into_iter().fold(f64::INFINITY, f64::min)
}

/// The error of a minimum and a maximum a group, both in bf16: what the signed scale is held against.
fn min_max_error(values: &[f32], bits: u32, group: usize) -> f64 {
    let levels = ((1_u32 << bits) - 1) as f32;
    let coarse = |value: f32| f32::from_bits(value.to_bits() & 0xffff_0000);
    let found = values.chunks(group).flat_map(|group| {
        let (low, high) = group.iter().fold((f32::MAX, f32::MIN), |(low, high), value| (low.min(*value), high.max(*value)));
        let low = coarse(low);
        let step = coarse((high - low) / levels * (1.0 + 1.0 / 256.0));
        group.iter().map(move |value| low + ((value - low) / step).round().clamp(0.0, levels) * step)
    });
    error(values, &found.collect::<Vec<_>>())
}

fn main() {
    let (gaussian, heavy) = (gaussian(), heavy());
    println!("{ROWS} x {COLUMNS}, {:.2} MB as f32; the fastest of {RUNS} runs on one thread", (ROWS * COLUMNS * 4) as f64 / 1e6);
    println!("encoding                      bits/value   error normal   error heavy   encode ms   decode ms   GB/s both");
    for name in NAMES {
        let encoding: Encoding = name.parse().unwrap();
        let bytes = encoding.encode(&gaussian, COLUMNS, 1).unwrap();
        let heavy_bytes = encoding.encode(&heavy, COLUMNS, 1).unwrap();
        let found = encoding.decode(&bytes, ROWS, COLUMNS).unwrap();
        let heavy_found = encoding.decode(&heavy_bytes, ROWS, COLUMNS).unwrap();
        let encode_ms = fastest(|| encoding.encode(black_box(&gaussian), COLUMNS, 1));
        let decode_ms = fastest(|| encoding.decode(black_box(&bytes), ROWS, COLUMNS));
        println!(
            "{name:<28} {:>11.2} {:>13.5} {:>13.5} {encode_ms:>11.2} {decode_ms:>11.2} {:>11.2}",
            bytes.len() as f64 * 8.0 / gaussian.len() as f64,
            error(&gaussian, &found),
            error(&heavy, &heavy_found),
            gaussian.len() as f64 * 4.0 / 1e6 / (encode_ms + decode_ms),
        );
    }
    println!("\na minimum and a maximum a group instead of a signed scale, not offered:");
    for (bits, group) in [(8, 64), (4, 64), (4, 32), (4, 72), (2, 32)] {
        let stored = f64::from(bits) + 32.0 / group as f64;
        let name = format!("int{bits}/{group} min-max");
        let errors = (min_max_error(&gaussian, bits, group), min_max_error(&heavy, bits, group));
        println!("{name:<28} {stored:>11.2} {:>13.5} {:>13.5}", errors.0, errors.1);
    }
}

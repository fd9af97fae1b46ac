//! Goal: what a GPU encodes any host reads, and the other way round. Method: each encoding that a device may do, from the GPU to
//! the host's decoder and from the host's encoder to the GPU, against the host's own way.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used)]

use cutlayer_model::{Device, DeviceChoice, Tensor, TensorData, encoding};
use cutlayer_wire::Encoding;

const NAMES: &[&str] =
    &["bf16", "f16", "int8", "int6/64+hadamard", "int5/64+hadamard+zstd", "int4/64", "int4/64+hadamard", "int2/32+hadamard"];

/// Rows of uneven size with an outlier, and one of zeros.
fn values(rows: usize, columns: usize) -> Vec<f32> {
    let mut state = 7_u32;
    let mut values: Vec<f32> = (0..rows * columns)
        .map(|place| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * 2.0_f32.powi((place / columns) as i32 % 7 - 3)
        })
        .collect();
    values[columns..2 * columns].fill(0.0);
    values[5] = 30.0;
    values
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |value: f64| value * value;
    let off: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(a - b))).sum();
    (off / a.iter().map(|a| square(f64::from(*a))).sum::<f64>()).sqrt()
}

fn check(name: &str, (rows, columns): (usize, usize), gpu: &Device) {
    let encoding: Encoding = name.parse().unwrap();
    let values = values(rows, columns);
    let tensor = Tensor::<2>::from_data(TensorData::new(values.clone(), [rows, columns]), gpu);
    let (bytes, expected) = (encoding::encode(encoding, tensor, 1).unwrap(), encoding.encode(&values, columns, 1).unwrap());
    let same = bytes.iter().zip(&expected).filter(|(found, expected)| found == expected).count();
    let found = encoding.decode(&bytes, rows, columns).unwrap();
    let host = encoding.decode(&expected, rows, columns).unwrap();
    // A GPU divides to within a few units in the last place: only what lay between two codes may come out as the other one.
    let off = (distance(&values, &found), distance(&values, &host));
    eprintln!("{name}: {same} of {} B alike, off by {:.5} from the GPU and {:.5} from the host", expected.len(), off.0, off.1);
    assert!(off.0 <= off.1 * 1.01 + 1e-7, "{name}: {off:?}");
    let back = encoding::values(encoding::decode(encoding, &expected, rows, columns, gpu).unwrap());
    assert!(distance(&host, &back) < 1e-6, "{name}: read on the GPU off by {}", distance(&host, &back));
}

#[test]
fn a_gpu_and_a_host_read_each_other() {
    let gpu = match DeviceChoice::Wgpu(0).open() {
        Ok(gpu) => gpu,
        Err(error) if std::env::var_os("CI").is_none() => return eprintln!("SKIPPED: {error}"),
        Err(error) => panic!("CI has a software Vulkan driver: {error}"),
    };
    NAMES.iter().for_each(|name| check(name, (37, 192), &gpu));
}

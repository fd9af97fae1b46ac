//! What every encoding promises: errors within its bound, the same bytes from the same seed, zero rows for nothing, and no panic.

#![allow(clippy::unwrap_used)]

use cutlayer_wire::{Carried, Encoding, EncodingError, EncodingPart, rounding_seed};
use proptest::collection::vec;
use proptest::prelude::*;

const COLUMNS: usize = 64;

/// One of each stage, and the combinations that meet in code.
const NAMES: &[&str] = &[
    "f32",
    "bf16",
    "f16",
    "int8",
    "int7/16",
    "int6",
    "int5+stochastic",
    "int4",
    "int3/8",
    "int2",
    "int8/32",
    "int4/32+hadamard",
    "int4+hadamard",
    "int8/8+stochastic",
    "int4/64+hadamard+stochastic",
    "topk=0.05",
    "f32+topk=1",
    "f16+topk=0.6",
    "int8+topk=0.1",
    "int4+stochastic+topk=0.5",
    "f32+proj=64",
    "bf16+proj=24",
    "int8/8+proj=16",
    "f32+zstd",
    "bf16+zstd",
    "int4/64+hadamard+zstd",
    "int8+topk=0.1+zstd",
    "int4+proj=30+zstd",
    "int8+delta",
    "int2/64+hadamard+feedback",
    "int4/64+zstd+moved=0.05",
];

fn named(name: &str) -> Encoding {
    name.parse().unwrap()
}

fn encodings() -> impl Strategy<Value = Encoding> {
    proptest::sample::select(NAMES).prop_map(named)
}

/// Rows of normal values, of values over many orders of size, with outliers, and zero.
fn rows() -> impl Strategy<Value = Vec<f32>> {
    let row = prop_oneof![
        4 => vec(-1.0..1.0_f32, COLUMNS),
        2 => vec((-1.0..1.0_f32, -30..30_i32).prop_map(|(value, exponent)| value * 2.0_f32.powi(exponent)), COLUMNS),
        2 => (vec(-1.0..1.0_f32, COLUMNS), 0..COLUMNS, -1e4..1e4_f32).prop_map(|(mut row, place, outlier)| {
            row[place] = outlier;
            row
        }),
        1 => Just(vec![0.0; COLUMNS]),
    ];
    vec(row, 0..12).prop_map(|rows| rows.concat())
}

fn back(encoding: Encoding, values: &[f32], seed: u64) -> Vec<f32> {
    let bytes = encoding.encode(values, COLUMNS, seed).unwrap();
    encoding.decode(&bytes, values.len() / COLUMNS, COLUMNS).unwrap()
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>())
}

/// The scale of a group at most: what its sides need, rounded up to eight bits.
fn scale(group: &[f32], bits: i32, by_chance: bool) -> f32 {
    let slack = if by_chance { 0.0 } else { 0.5 };
    let half = 2.0_f32.powi(bits - 1);
    let (high, low) = group.iter().fold((0.0_f32, 0.0_f32), |(high, low), value| (high.max(*value), low.max(-value)));
    (high.max(low) / (half + slack)).max(high.min(low) / (half - 1.0 + slack)) * (1.0 + 1.0 / 128.0) + 1e-40
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Goal: a value is off by half a scale at most. Method: every width of integer, whole rows and groups.
    #[test]
    fn integers_are_off_by_half_a_scale(values in rows(), bits in 2..=8_i32, group in proptest::sample::select(vec![8, 16, 64])) {
        let found = back(named(&format!("int{bits}/{group}")), &values, 0);
        for (values, found) in values.chunks(group).zip(found.chunks(group)) {
            let scale = scale(values, bits, false);
            for (value, found) in values.iter().zip(found) {
                prop_assert!((value - found).abs() <= scale * 0.50001, "{value} became {found}, scale {scale}");
            }
        }
    }

    /// Goal: rounding by chance is off by less than a scale. Method: every width of integer, any seed.
    #[test]
    fn chance_is_off_by_a_scale(values in rows(), bits in 2..=8_i32, seed in any::<u64>()) {
        let found = back(named(&format!("int{bits}/16+stochastic")), &values, seed);
        for (values, found) in values.chunks(16).zip(found.chunks(16)) {
            let scale = scale(values, bits, true);
            for (value, found) in values.iter().zip(found) {
                prop_assert!((value - found).abs() <= scale * 1.00001, "{value} became {found}, scale {scale}");
            }
        }
    }

    /// Goal: a rotated group is off by half a scale a value, all together. Method: the norms of a group and of its error.
    #[test]
    fn rotated_groups_are_close(values in rows(), bits in 2..=8_i32) {
        let found = back(named(&format!("int{bits}/16+hadamard")), &values, 0);
        for (values, found) in values.chunks(16).zip(found.chunks(16)) {
            // No rotated value exceeds the group's norm.
            let scale = norm(values) / (f64::from(1 << (bits - 1)) - 0.5) * 1.008;
            prop_assert!(distance(values, found) <= 4.0 * scale * 0.501 + 1e-30);
        }
    }

    /// Goal: halves are the nearest halves, and keep what they can hold. Method: relative errors, and twice is once.
    #[test]
    fn halves_are_close_and_idempotent(values in rows()) {
        for (name, relative, absolute) in [("bf16", 1.0 / 256.0, 1e-40), ("f16", 1.0 / 2048.0, 6e-8)] {
            let once = back(named(name), &values, 0);
            for (value, near) in values.iter().zip(&once).filter(|(value, _)| value.abs() < 65504.0) {
                prop_assert!((value - near).abs() <= value.abs() * relative + absolute, "{name}: {value} became {near}");
            }
            prop_assert_eq!(&back(named(name), &once, 0), &once);
        }
    }

    /// Goal: lossless is lossless. Method: f32 with and without zstd, and all coordinates of a rotation, to rounding.
    #[test]
    fn lossless_encodings_lose_nothing(values in rows()) {
        for name in ["f32", "f32+zstd"] {
            prop_assert!(named(name).is_lossless());
            prop_assert_eq!(&back(named(name), &values, 0), &values);
        }
        prop_assert!(distance(&back(named("f32+proj=64"), &values, 0), &values) <= norm(&values) * 1e-5);
    }

    /// Goal: topk keeps the largest entries and nothing else. Method: the same by sorting.
    #[test]
    fn the_largest_entries_are_kept(values in rows(), kept in 1..=COLUMNS) {
        let encoding = named(&format!("f32+topk={}", kept as f64 / COLUMNS as f64));
        let found = back(encoding, &values, 0);
        for (row, found) in values.chunks(COLUMNS).zip(found.chunks(COLUMNS)) {
            let mut sizes: Vec<f32> = row.iter().map(|value| value.abs()).collect();
            sizes.sort_by(|a, b| b.total_cmp(a));
            let share = (kept as f64 / COLUMNS as f64 * 10_000.0).round() / 10_000.0;
            let kept = (share * COLUMNS as f64 - 1e-9).ceil() as usize;
            for (value, found) in row.iter().zip(found) {
                prop_assert!(*found == *value || *found == 0.0 && value.abs() <= sizes[kept - 1]);
                prop_assert!(*found == *value || value.abs() < sizes[0]);
            }
            prop_assert!(found.iter().filter(|value| **value != 0.0).count() <= kept);
        }
    }

    /// Goal: a projection is one. Method: what came back is not changed by another, and is no longer than what went in.
    #[test]
    fn a_projection_is_idempotent(values in rows(), kept in 1..=COLUMNS) {
        let encoding = named(&format!("f32+proj={kept}"));
        let once = back(encoding, &values, 0);
        prop_assert!(norm(&once) <= norm(&values) * 1.00001);
        prop_assert!(distance(&back(encoding, &once, 0), &once) <= norm(&values) * 1e-5);
    }

    /// Goal: bytes are those the limits allow, and depend on nothing but values and seed. Method: every encoding, twice.
    #[test]
    fn bytes_are_bounded_and_repeatable(encoding in encodings(), values in rows(), seed in any::<u64>()) {
        let rows = (values.len() / COLUMNS) as u32;
        let bytes = encoding.encode(&values, COLUMNS, seed).unwrap();
        prop_assert!(bytes.len() as u64 <= encoding.payload_bytes_max(rows, COLUMNS as u32).unwrap());
        if rows > 0 {
            prop_assert_eq!(encoding.check_bytes(bytes.len() as u64, rows, COLUMNS as u32), Ok(()));
        }
        prop_assert_eq!(encoding.encode(&values, COLUMNS, seed).unwrap(), bytes);
    }

    /// Goal: zero rows come back zero and take a bit. Method: every encoding, some rows made zero.
    #[test]
    fn zero_rows_do_not_travel(encoding in encodings(), values in rows(), zero in any::<u16>()) {
        let mut values = values;
        let is_zero = |row: usize| zero >> row & 1 == 1;
        for (row, values) in values.chunks_mut(COLUMNS).enumerate().filter(|(row, _)| is_zero(*row)) {
            values.fill(if row % 2 == 0 { 0.0 } else { -0.0 });
        }
        let found = back(encoding, &values, 7);
        for (_, row) in found.chunks(COLUMNS).enumerate().filter(|(row, _)| is_zero(*row)) {
            prop_assert!(row.iter().all(|value| *value == 0.0));
        }
    }

    /// Goal: no bytes make a decoder panic, or give more than the shape. Method: noise.
    #[test]
    fn noise_never_panics(encoding in encodings(), bytes in vec(any::<u8>(), 0..600), rows in 0..12_usize) {
        if let Ok(values) = encoding.decode(&bytes, rows, COLUMNS) {
            prop_assert_eq!(values.len(), rows * COLUMNS);
        }
    }

    /// Goal: the same of bytes that are almost right. Method: good bytes with some of them overwritten, cut or lengthened.
    #[test]
    fn spoilt_bytes_never_panic(
        encoding in encodings(),
        values in rows(),
        edits in vec((0..5000_usize, any::<u8>()), 0..5),
        length in 0..5000_usize,
        rows in 0..13_usize,
    ) {
        let mut bytes = encoding.encode(&values, COLUMNS, 1).unwrap();
        for (place, byte) in edits {
            if let Some(found) = bytes.get_mut(place) {
                *found = byte;
            }
        }
        let shape = values.len() / COLUMNS;
        let _ = encoding.decode(&bytes, shape, COLUMNS);
        let _ = encoding.decode(&bytes, rows, COLUMNS);
        if length < bytes.len() && !bytes.is_empty() {
            bytes.truncate(length);
            let _ = encoding.decode(&bytes, shape, COLUMNS);
        }
        bytes.push(0);
        let _ = encoding.decode(&bytes, shape, COLUMNS);
    }

    /// Goal: eight bytes are an encoding or an error, and never two. Method: noise that is often right.
    #[test]
    fn binary_names_are_unambiguous(
        values in prop_oneof![0..3_u8, 0x10..0x1a_u8, any::<u8>()],
        stages in prop_oneof![0..16_u8, any::<u8>()],
        numbers in proptest::array::uniform4(prop_oneof![3 => Just(0_u16), 1 => Just(64), 1 => any::<u16>()]),
    ) {
        let mut bytes = [0; Encoding::BYTES];
        bytes[..2].copy_from_slice(&[values, stages]);
        bytes[2..10].copy_from_slice(numbers.map(u16::to_le_bytes).as_flattened());
        if let Ok(encoding) = Encoding::from_bytes(bytes) {
            prop_assert_eq!(encoding.to_bytes(), bytes);
            prop_assert_eq!(encoding.to_string().parse(), Ok(encoding));
            // Whatever it is, no width makes it panic.
            for columns in [1, 8, 24, 64, 576] {
                if let Ok(found) = encoding.encode(&vec![1.5; 2 * columns], columns, 3) {
                    prop_assert!(encoding.decode(&found, 2, columns).is_ok(), "{encoding} at {columns}");
                }
            }
        }
    }
}

/// Goal: rounding by chance is right on average. Method: the mean over many seeds, against the spread that it may have.
#[test]
fn chance_is_unbiased() {
    let values: Vec<f32> = (0..COLUMNS).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0).collect();
    for name in ["int2+stochastic", "int4/16+stochastic", "int8+stochastic", "int4/64+hadamard+stochastic"] {
        let (encoding, seeds) = (named(name), 2000);
        let mut sums = vec![0.0_f64; COLUMNS];
        for seed in 0..seeds {
            let found = back(encoding, &values, rounding_seed(1, 2, seed, 3));
            sums.iter_mut().zip(found).for_each(|(sum, found)| *sum += f64::from(found));
        }
        let bits = encoding.to_bytes()[0] - 0x10;
        let spread = f64::from(scale(&values, bits.into(), true)) / 2.0 / (seeds as f64).sqrt();
        let spread = if name.contains("hadamard") { spread * 4.0 } else { spread };
        for (sum, value) in sums.iter().zip(&values) {
            let mean = sum / seeds as f64;
            assert!((mean - f64::from(*value)).abs() < spread * 5.0, "{name}: {value} is {mean} on average, spread {spread}");
        }
    }
}

/// Goal: seeds matter where rounding is by chance and nowhere else. Method: two seeds, every encoding.
#[test]
fn only_chance_looks_at_the_seed() {
    let values: Vec<f32> = (0..COLUMNS * 3).map(|i| (i as f32 * 0.7).sin()).collect();
    for name in NAMES {
        let encoding = named(name);
        let same = encoding.encode(&values, COLUMNS, 1).unwrap() == encoding.encode(&values, COLUMNS, 2).unwrap();
        assert_eq!(same, !name.contains("stochastic"), "{name}");
    }
    let seeds = [(1, 1, 1, 1), (2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 1), (1, 1, 1, 2)];
    let mut seeds = seeds.map(|(run, client, step, about)| rounding_seed(run, client, step, about));
    seeds.sort_unstable();
    assert!(seeds.windows(2).all(|pair| pair[0] != pair[1]));
}

/// Goal: a divergence is seen by the receiver. Method: one NaN or infinity among many values, every encoding.
#[test]
fn what_is_not_finite_stays_so() {
    for name in NAMES {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values: Vec<f32> = (0..COLUMNS * 3).map(|i| (i as f32 * 0.7).sin()).collect();
            values[COLUMNS + 13] = bad;
            let found = back(named(name), &values, 5);
            assert!(found[COLUMNS..COLUMNS * 2].iter().any(|value| !value.is_finite()), "{name} hid {bad}");
            assert!(found[..COLUMNS].iter().all(|value| value.is_finite()), "{name} spread {bad}");
        }
    }
}

/// Goal: sparse gradients cost what is in them. Method: the bytes of 100 rows of which some are zero.
#[test]
fn zero_rows_cost_a_bit() {
    let check = |name: &str, rows: usize, bytes: usize| {
        let mut values = vec![0.0; 100 * COLUMNS];
        values[..rows * COLUMNS].fill(1.0);
        assert_eq!(named(name).encode(&values, COLUMNS, 0).unwrap().len(), bytes, "{rows} rows in {name}");
    };
    check("f32", 100, 25_600);
    check("f32", 99, 99 * 256 + 13);
    check("bf16", 0, 13);
    check("int8", 1, 66 + 13);
    check("int4/64+hadamard", 100, 3400);
    check("int4/64+hadamard", 50, 1700 + 13);
    // Three kept of 64, at 6 bits a place.
    check("topk=0.04", 10, 10 * (3 * 2 + 3) + 13);
}

/// Goal: only whole rows are admitted. Method: numbers of bytes around the right ones.
#[test]
fn impossible_lengths_are_refused() {
    let int8 = Encoding::INT8;
    for bytes in [660, 2, 2 + 66, 2 + 9 * 66] {
        assert_eq!(int8.check_bytes(bytes, 10, 64), Ok(()), "{bytes}");
    }
    for bytes in [0, 1, 3, 67, 661, 662, 726] {
        assert!(int8.check_bytes(bytes, 10, 64).is_err(), "{bytes}");
    }
    assert!(named("int8+zstd").check_bytes(67, 10, 64).is_ok());
    assert!(named("int8+zstd").check_bytes(662, 10, 64).is_err());
    assert_eq!(Encoding::F32.payload_bytes_max(u32::MAX, u32::MAX), Ok(u64::MAX));
    assert!(matches!(Encoding::F32.encode(&[1.0; 5], 2, 0), Err(EncodingError::Shape { values: 5, columns: 2 })));
    // A bitmap that names a row the tensor does not have.
    let mut bytes = Encoding::F32.encode(&[1.0, 0.0, 0.0, 0.0, 0.0, 0.0], 2, 0).unwrap();
    assert_eq!(Encoding::F32.decode(&bytes, 3, 2).unwrap()[..3], [1.0, 0.0, 0.0]);
    bytes[0] |= 0x40;
    assert!(Encoding::F32.decode(&bytes, 3, 2).unwrap_err().to_string().contains("rows beyond the tensor"));
}

/// Goal: every name reads back, in one spelling. Method: the list, and other ways to write the same.
#[test]
fn names_are_canonical() {
    for name in NAMES {
        let encoding = named(name);
        assert_eq!(encoding.to_string().parse(), Ok(encoding));
        assert_eq!(Encoding::from_bytes(encoding.to_bytes()), Ok(encoding));
        assert!(encoding.parts().iter().all(|part| EncodingPart::ALL.contains(part)));
    }
    for (written, name) in [
        ("topk=0.05", "bf16+topk=0.05"),
        ("int4/64+zstd+hadamard", "int4/64+hadamard+zstd"),
        ("int8+topk=0.050", "int8+topk=0.05"),
        ("bf16+proj=64", "bf16+proj=64"),
    ] {
        assert_eq!(named(written).to_string(), name);
    }
    let parts = named("int4/64+hadamard+zstd").parts();
    assert_eq!(parts, [EncodingPart::Int, EncodingPart::Hadamard, EncodingPart::Zstd]);
}

/// Goal: what cannot be is refused, and the text says what can. Method: names that are none, do not go together, do not fit.
#[test]
fn refusals_say_what_to_write() {
    let check = |name: &str, says: &str| {
        let error = name.parse::<Encoding>().expect_err(name).to_string();
        assert!(error.contains(says), "{name}: {error}");
    };
    for name in ["f64", "", "int", "int4/0", "int4/", "int+4", "int04", "f32+", "f32+zstd+zstd", "int4+topk=0", "int4+topk=x", "zstd"] {
        check(name, "write f32, bf16, f16, int8, int4 or int4/64");
    }
    check("int9", "write int2 to int8");
    check("int1", "write int2 to int8");
    check("bf16/64", "no encoding is called");
    check("bf16+hadamard", "write int4/64+hadamard");
    check("f32+stochastic", "write int8+stochastic");
    check("int4/48+hadamard", "a rotated group is a power of two");
    check("int4/4", "8 features or more");
    check("int8+moved=2", "up to 1");
    check("int8+delta+moved=0.1", "no encoding is called");
    check("int8+delta+feedback", "drop feedback");
    check("f32+zstd+feedback", "leaves nothing out");
    let nothing_for = |name: &str, what: Carried, says: &str| {
        let error = named(name).check_carries(what).expect_err(name).to_string();
        assert!(error.contains(says), "{name}: {error}");
    };
    nothing_for("int4+feedback", Carried::Activations, "write delta");
    nothing_for("int4+moved=0.1", Carried::Gradients, "write feedback");
    nothing_for("int4+feedback", Carried::Adapters, "already");
    nothing_for("int4+delta", Carried::Adapters, "already");
    assert_eq!(named("int4+feedback").check_carries(Carried::Gradients), Ok(()));
    assert_eq!(named("int4+delta").check_carries(Carried::Activations), Ok(()));
    for (name, says) in [
        ("int4+delta", "no earlier visit"),
        ("int8+moved=0.05", "no earlier visit"),
        ("int2/32+feedback", "no earlier visit"),
        ("int8+stochastic", "drop stochastic"),
    ] {
        let error = named(name).check_generates().expect_err(name).to_string();
        assert!(error.contains(says), "{name}: {error}");
    }
    check("int8+topk=1.5", "from 0.0001 to 1");
    check("int8/64+topk=0.1", "drop the group");
    check("int8+proj=64+hadamard", "drop hadamard");
    let fits = |name: &str, columns: u32, says: &str| {
        let error = named(name).check_columns(columns).expect_err(name).to_string();
        assert!(error.contains(says), "{name}: {error}");
    };
    fits("int4+hadamard", 576, "rotate groups of 64 instead");
    fits("int4/128", 576, "groups divide the 576 features; 64 does");
    fits("bf16+proj=600", 576, "project to 576 coordinates at most");
    fits("bf16+proj=4", 12, "drop proj");
    fits("int4/64+proj=100", 576, "groups divide the 100 features; 4 does");
    fits("f32", 0, "a model has a width");
}

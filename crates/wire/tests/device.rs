//! Goal: what a device's host reads of the network is no less careful than the plain decoder. Method: good and spoilt payloads,
//! both ways: what one takes the other takes, with the same values.

#![allow(clippy::unwrap_used)]

use cutlayer_wire::{DevicePart, Encoding};
use proptest::collection::vec;
use proptest::prelude::*;

const ROWS: usize = 9;
const COLUMNS: usize = 64;

/// The values that a device makes of a payload.
fn expanded(encoding: Encoding, bytes: &[u8]) -> Option<Vec<f32>> {
    match encoding.device_part(COLUMNS).unwrap() {
        DevicePart::Integers { bits, group, rotated: false } => {
            let (codes, scales) = encoding.unframe_codes(bytes, ROWS, COLUMNS).ok()?;
            let value = |(place, code): (usize, &u8)| (f32::from(*code) - DevicePart::half(bits)) * scales[place / group];
            Some(codes.iter().enumerate().map(value).collect())
        }
        DevicePart::Bf16 => {
            let halves = encoding.unframe_halves(bytes, ROWS, COLUMNS).ok()?;
            Some(halves.chunks_exact(2).map(|half| f32::from_bits(u32::from_le_bytes([0, 0, half[0], half[1]]))).collect())
        }
        part => panic!("{part:?} is not tested here"),
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    // Zero has two signs, and one value.
    values.iter().map(|value| (value + 0.0).to_bits()).collect()
}

proptest! {
    #[test]
    fn a_device_reads_what_the_host_reads(
        name in proptest::sample::select(vec!["int8", "int5/16", "int4/64+zstd", "int3/8", "bf16", "bf16+zstd"]),
        rows in vec(prop_oneof![Just(vec![0.0_f32; COLUMNS]), vec(-1.0..1.0_f32, COLUMNS)], ROWS),
        edits in vec((0..400_usize, any::<u8>()), 0..3),
        cut in prop_oneof![3 => Just(usize::MAX), 1 => 0..400_usize],
    ) {
        let encoding: Encoding = name.parse().unwrap();
        let mut bytes = encoding.encode(&rows.concat(), COLUMNS, 0).unwrap();
        edits.iter().for_each(|(place, byte)| if let Some(found) = bytes.get_mut(*place) { *found = *byte });
        bytes.truncate(cut);
        let (host, device) = (encoding.decode(&bytes, ROWS, COLUMNS).ok(), expanded(encoding, &bytes));
        prop_assert_eq!(host.is_some(), device.is_some());
        if let (Some(host), Some(device)) = (host, device) {
            let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
            prop_assert!(!finite(&host) || bits(&host) == bits(&device));
        }
    }
}

/// Goal: shapes that do not fit are refused, not cut short. Method: codes and halves of no whole rows, and an encoding without codes.
#[test]
fn other_shapes_are_refused() {
    let encoding: Encoding = "int4/32".parse().unwrap();
    assert!(encoding.frame_codes(&[8; 65], &[1.0; 2], COLUMNS).is_err());
    assert!(encoding.frame_codes(&[8; 64], &[1.0; 1], COLUMNS).is_err());
    assert!(encoding.frame_codes(&[8; 96], &[1.0; 3], 48).is_err());
    assert!(Encoding::BF16.frame_halves(&[0; 130], COLUMNS).is_err());
    assert!(Encoding::BF16.frame_codes(&[8; 64], &[1.0; 1], COLUMNS).is_err());
    assert!("int8+topk=0.1".parse::<Encoding>().unwrap().device_part(COLUMNS).is_none());
    assert!("int8+stochastic".parse::<Encoding>().unwrap().device_part(COLUMNS).is_none());
    let nan = encoding.scale(f32::INFINITY, 0.0);
    assert!(nan.is_nan() && encoding.scale(0.0, 0.0) == 0.0);
}

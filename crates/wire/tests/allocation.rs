//! No length that a peer merely claims is ever allocated for.
//!
//! Counting needs an allocator of our own, hence the one place in this crate with `unsafe`.

#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;

use common::*;
use cutlayer_wire::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// What decoding may hold at once: a manifest of the smallest entries grows most, 24 times, on its way
/// from two bytes each to a name and a list of axes; serde reserves up to 1 MiB for each level of list.
const GROWTH_MAX: usize = 48;
const RESERVE_BYTES_MAX: usize = 3 << 20;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed to the system's allocator unchanged; counting touches no memory of the
// caller's, and its thread-local cells are const-initialised, so they neither allocate nor unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        HELD.set(HELD.get().wrapping_add(memory.size()));
        PEAK.set(PEAK.get().max(HELD.get()));
        // SAFETY: the caller keeps `alloc`'s contract, which is the system's.
        unsafe { System.alloc(memory) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, memory: Memory) {
        HELD.set(HELD.get().saturating_sub(memory.size()));
        // SAFETY: the pointer came from `alloc` above, that is from the system, with this layout.
        unsafe { System.dealloc(pointer, memory) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most memory that `work` holds at once.
fn peak_bytes<T>(work: impl FnOnce() -> T) -> usize {
    HELD.set(0);
    PEAK.set(0);
    drop(work());
    PEAK.get()
}

fn check_bounded(bytes: &[u8]) {
    let bound = bytes.len() * GROWTH_MAX + RESERVE_BYTES_MAX;
    let control = peak_bytes(|| decode(bytes));
    let adapter = peak_bytes(|| AdapterFrame::decode(bytes, &AdapterLimits::WIDEST));
    let limits = RecordLimits { hidden: 4, encoding: Encoding::INT8, positions_max: POSITIONS_MAX };
    let record = peak_bytes(|| (DeviceRecord::decode(bytes, &limits), ServerRecord::decode(bytes, &limits)));
    assert!(record <= bound, "{} B of record took {record} B", bytes.len());
    assert!(control <= bound, "{} B of control took {control} B", bytes.len());
    assert!(adapter <= bound, "{} B of adapter took {adapter} B", bytes.len());
}

/// Goal: a claim costs nothing. Method: a header of 4 GiB, and lists and texts of 2^63 entries.
#[test]
fn claims_are_not_allocated_for() {
    let mut header = forward(vec![]).header;
    header.payload_bytes = 4 << 30;
    header.labels = u32::MAX;
    let took = peak_bytes(|| header.check(&FrameLimits::new(2, 100, 10)));
    assert_eq!(took, 0);
    let huge = [0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    // Goodbye with a long reason; Hello with many encodings; a manifest with many entries.
    check_bounded(&[&[8][..], &huge].concat());
    let mut hello = encode(&hello()).unwrap();
    let encodings_at = 1 + 1 + 32 + 1 + 3 + 1 + 2;
    hello.splice(encodings_at..encodings_at + 1, huge);
    check_bounded(&hello);
    // Open with many pages.
    let mut record = DeviceRecord::Open(open()).encode().unwrap();
    let prefix_at = RECORD_HEADER_BYTES + 7 + 37 + 3;
    assert_eq!(record[prefix_at..prefix_at + 2], [2, 0x11]);
    record.splice(prefix_at..prefix_at + 1, huge);
    record[8] += 8;
    check_bounded(&record);
    let mut adapter = adapter().encode();
    adapter.splice(60..61, huge);
    adapter[12] += 8;
    check_bounded(&adapter);
}

/// Goal: reading a tensor takes what its shape allows. Method: noise in every kind of encoding, and the densest payloads there are:
/// no rows at all, and zeros packed a thousandfold that claim to be more than the shape.
#[test]
fn tensors_take_what_their_shape_allows() {
    let (rows, columns) = (64, 64);
    let bound = rows * columns * 4 * 3 + (64 << 10);
    for name in ["f32", "bf16", "f16", "int4/64+hadamard", "int8+topk=0.1", "int8+proj=16", "int8+zstd", "f32+zstd"] {
        let encoding: Encoding = name.parse().unwrap();
        let zeros = encoding.encode(&vec![0.0; 4 << 20], columns, 0).unwrap();
        let ones = encoding.encode(&vec![1.0; 1 << 20], columns, 0).unwrap();
        let noise: Vec<u8> = (0..5000_u32).map(|place| (place.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        for bytes in
            [&zeros[..], &ones, &noise, &zeros[..zeros.len().min(8)], &[], &[1, 0x28, 0xb5, 0x2f, 0xfd, 0xff, 0xff, 0xff, 0xff, 0xff]]
        {
            let took = peak_bytes(|| encoding.decode(bytes, rows, columns));
            // A payload that is stored is copied once before it is read.
            assert!(took <= bound + bytes.len(), "{name} took {took} B for {} B", bytes.len());
        }
    }
    let took = peak_bytes(|| Encoding::F32.decode(&[0; 16], usize::MAX / 2, 1 << 20));
    assert!(took < 64, "a shape that cannot be took {took} B");
}

/// Goal: the densest manifest stays in bounds. Method: a megabyte of empty names without axes.
#[test]
fn the_densest_manifest_is_bounded() {
    let entries = 500_000_u32;
    let mut manifest = vec![0xfc];
    manifest.extend(entries.to_le_bytes());
    manifest.resize(manifest.len() + entries as usize * 2, 0);
    let mut bytes = AdapterHeader {
        round: RoundId(1),
        manifest_bytes: manifest.len() as u32,
        payload_bytes: 0,
        weight: 1.0,
        base_prefix: 0,
        encoding: Encoding::F32,
        from: None,
        values: 0,
    }
    .encode()
    .to_vec();
    bytes.extend(manifest);
    check_bounded(&bytes);
}

/// Goal: as above, for whatever else may come. Method: noise behind plausible beginnings.
#[test]
fn noise_is_bounded() {
    let config = Config { cases: 2000, failure_persistence: None, ..Config::default() };
    let starts = prop_oneof![
        (0..12_u8).prop_map(|variant| vec![variant]),
        Just(encode(&hello()).unwrap()[..30].to_vec()),
        Just(adapter().encode()[..60].to_vec()),
        Just(DeviceRecord::Open(open()).encode().unwrap()[..RECORD_HEADER_BYTES].to_vec()),
    ];
    let noise = proptest::collection::vec(any::<u8>(), 0..200);
    TestRunner::new(config)
        .run(&(starts, noise), |(start, noise)| {
            check_bounded(&[start, noise].concat());
            Ok(())
        })
        .unwrap();
}

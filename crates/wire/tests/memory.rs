//! What encodings that remember promise: both ends agree whatever comes, nothing is lost for good, and memory is bounded.

#![allow(clippy::unwrap_used)]

use cutlayer_wire::{
    DifferenceReceiver, Differences, Encoding, EvalSums, Feedback, Frame, FrameFlags, FrameLimits, MemoryBound, MemoryError, RoundId,
    Sample, StepId,
};
use proptest::collection::vec;
use proptest::prelude::*;

const COLUMNS: usize = 16;

fn named(name: &str) -> Encoding {
    name.parse().unwrap()
}

fn terms(moved: f32, values_max: usize) -> Differences {
    Differences { whole: Encoding::BF16, difference: named("int4/16+hadamard"), moved, bound: MemoryBound { values_max } }
}

/// A smooth tensor that drifts with `time`, different for each sample.
fn tensor(samples: &[Sample], time: f32) -> Vec<f32> {
    let values = samples.iter().flat_map(|sample| {
        (0..sample.rows as usize * COLUMNS).map(move |place| (place as f32 * 0.37 + sample.id as f32).sin() + time * (place as f32).cos())
    });
    values.collect()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
    let off: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    (square(&off) / square(a)).sqrt()
}

fn rows(samples: &[Sample]) -> Vec<u32> {
    samples.iter().map(|sample| sample.rows).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Goal: the ends stay in agreement. Method: any visits of few samples of changing lengths, in little room; the receiver's
    /// values are those that the sender remembers, or the next difference would be off.
    #[test]
    fn the_ends_stay_in_agreement(
        batches in vec(vec((0..6_u64, 1..4_u32), 1..5), 1..30),
        values_max in 0..400_usize,
        moved in prop_oneof![Just(0.0_f32), Just(0.05)],
    ) {
        let terms = terms(moved, values_max);
        let (mut sender, mut receiver) = terms.ends();
        for (time, batch) in batches.iter().enumerate() {
            let samples: Vec<Sample> = batch.iter().map(|(id, rows)| Sample { id: *id, rows: *rows }).collect();
            let values = tensor(&samples, time as f32 * 0.01);
            let bytes = sender.pack(&samples, &values, COLUMNS, time as u64).unwrap();
            let count = samples.iter().map(|sample| sample.rows).sum();
            prop_assert!(bytes.len() as u64 <= terms.payload_bytes_max(samples.len() as u32, count, COLUMNS as u32).unwrap());
            let found = receiver.unpack(&bytes, &rows(&samples), COLUMNS).unwrap();
            prop_assert!(distance(&values, &found) < 0.08, "{}", distance(&values, &found));
            prop_assert_eq!(sender.values(), receiver.values());
            prop_assert!(sender.values() <= values_max);
        }
    }

    /// Goal: no bytes make the receiver panic, and what it refuses changes nothing. Method: spoilt payloads, then a good one.
    #[test]
    fn spoilt_bytes_never_panic(
        edits in vec((0..200_usize, any::<u8>()), 0..4),
        length in 0..200_usize,
        noise in vec(any::<u8>(), 0..200),
    ) {
        let samples = [Sample { id: 1, rows: 2 }, Sample { id: 2, rows: 1 }];
        let (mut sender, mut receiver) = terms(0.0, 1000).ends();
        let first = sender.pack(&samples, &tensor(&samples, 0.0), COLUMNS, 0).unwrap();
        receiver.unpack(&first, &rows(&samples), COLUMNS).unwrap();
        let second = sender.pack(&samples, &tensor(&samples, 0.1), COLUMNS, 0).unwrap();
        let mut spoilt = second.clone();
        edits.iter().for_each(|(place, byte)| if let Some(found) = spoilt.get_mut(*place) { *found = *byte });
        spoilt.truncate(length);
        for bytes in [spoilt, noise] {
            let mut other = receiver.clone();
            if other.unpack(&bytes, &[2, 1], COLUMNS).is_err() {
                prop_assert!(other.unpack(&second, &[2, 1], COLUMNS).is_ok());
            }
        }
    }
}

/// Goal: later visits cost less and come closer. Method: a sample that hardly changes, four bits a difference.
#[test]
fn differences_are_small_and_close() {
    let samples = [Sample { id: 7, rows: 64 }];
    let (mut sender, mut receiver) = terms(0.0, 1 << 20).ends();
    let mut sizes = Vec::new();
    for visit in 0..4 {
        let values = tensor(&samples, visit as f32 * 0.003);
        let bytes = sender.pack(&samples, &values, COLUMNS, 0).unwrap();
        let found = receiver.unpack(&bytes, &[64], COLUMNS).unwrap();
        let plain = named("int4/16+hadamard");
        let direct = plain.decode(&plain.encode(&values, COLUMNS, 0).unwrap(), 64, COLUMNS).unwrap();
        assert!(distance(&values, &found) < 0.003 && distance(&values, &direct) > 0.03);
        sizes.push(bytes.len());
    }
    assert_eq!(sizes, [16 + 64 * 32, 16 + 64 * 10, 16 + 64 * 10, 16 + 64 * 10]);
}

/// Goal: a token that hardly moved does not travel. Method: half of the tokens change, by more than the share.
#[test]
fn unmoved_tokens_stay() {
    let samples = [Sample { id: 7, rows: 8 }];
    let (mut sender, mut receiver) = terms(0.1, 1 << 20).ends();
    let mut values = tensor(&samples, 0.0);
    receiver.unpack(&sender.pack(&samples, &values, COLUMNS, 0).unwrap(), &[8], COLUMNS).unwrap();
    values[..4 * COLUMNS].iter_mut().for_each(|value| *value *= 1.5);
    values[4 * COLUMNS..].iter_mut().for_each(|value| *value *= 1.01);
    let bytes = sender.pack(&samples, &values, COLUMNS, 0).unwrap();
    assert_eq!(bytes.len(), 12 + 4 + 1 + 4 * 10);
    let found = receiver.unpack(&bytes, &[8], COLUMNS).unwrap();
    assert!(distance(&values, &found) < 0.05);
}

/// Goal: ends that lost each other say so. Method: a frame that never arrives, a receiver that starts anew, a sender that does.
#[test]
fn lost_agreement_is_named() {
    let samples = [Sample { id: 9, rows: 2 }];
    let values = tensor(&samples, 0.0);
    let (mut sender, mut receiver) = terms(0.0, 1000).ends();
    sender.pack(&samples, &values, COLUMNS, 0).unwrap();
    let second = sender.pack(&samples, &values, COLUMNS, 0).unwrap();
    let error = receiver.unpack(&second, &[2], COLUMNS).unwrap_err();
    assert_eq!(error, MemoryError::OutOfStep { sample: 9, theirs: 1, ours: 0 });
    let (mut fresh, _) = terms(0.0, 1000).ends();
    for _ in 0..2 {
        receiver.unpack(&fresh.pack(&samples, &values, COLUMNS, 0).unwrap(), &[2], COLUMNS).unwrap();
    }
    fresh.clear();
    for _ in 0..2 {
        receiver.unpack(&fresh.pack(&samples, &values, COLUMNS, 0).unwrap(), &[2], COLUMNS).unwrap();
    }
}

/// Goal: a divergence is seen and not remembered. Method: a NaN in a first visit and in a later one.
#[test]
fn what_is_not_finite_is_not_remembered() {
    let samples = [Sample { id: 9, rows: 2 }];
    let (mut sender, mut receiver) = terms(0.0, 1000).ends();
    for visit in 0..4 {
        let mut values = tensor(&samples, 0.0);
        values[5] = if visit % 2 == 0 { f32::NAN } else { 1.0 };
        let found = receiver.unpack(&sender.pack(&samples, &values, COLUMNS, 0).unwrap(), &[2], COLUMNS).unwrap();
        assert_eq!(found.iter().all(|value| value.is_finite()), visit % 2 == 1);
        assert_eq!((sender.values(), receiver.values()), if visit % 2 == 1 { (32, 32) } else { (0, 0) });
    }
}

/// Goal: what an encoding leaves out is sent later. Method: the mean of many visits of one gradient, by two bits and by topk,
/// with feedback and without.
#[test]
fn feedback_leaves_nothing_out() {
    let samples = [Sample { id: 3, rows: 4 }, Sample { id: 4, rows: 2 }];
    let values = tensor(&samples, 0.2);
    for name in ["int2", "bf16+topk=0.2"] {
        let encoding = named(name);
        let mut feedback = Feedback::new(encoding, MemoryBound { values_max: 1000 });
        let mut sums = [vec![0.0_f32; values.len()], vec![0.0; values.len()]];
        for visit in 0..200 {
            let fed = feedback.pack(&samples, &values, COLUMNS, visit).unwrap();
            let plain = encoding.encode(&values, COLUMNS, visit).unwrap();
            for (sums, bytes) in sums.iter_mut().zip([fed, plain]) {
                let found = encoding.decode(&bytes, 6, COLUMNS).unwrap();
                sums.iter_mut().zip(found).for_each(|(sum, found)| *sum += found / 200.0);
            }
        }
        let [fed, plain] = sums.map(|sums| distance(&values, &sums));
        assert!(fed < 0.05 && plain > 0.2, "{name}: {fed} with feedback, {plain} without");
        assert_eq!(feedback.values(), values.len());
        feedback.clear();
        assert_eq!(feedback.values(), 0);
    }
}

/// Goal: frames carry differences one way and plain tensors the other, within their bounds. Method: a step's frames, and spoilt headers.
#[test]
fn frames_carry_differences() {
    let encoding = named("int8+moved=0.05");
    let terms = Differences::of(encoding, MemoryBound { values_max: 1000 }).unwrap();
    assert_eq!((terms.difference, terms.moved), (Encoding::INT8, 0.05));
    assert!(Differences::of(Encoding::INT8, terms.bound).is_none());
    let samples = [Sample { id: 1, rows: 2 }, Sample { id: 2, rows: 3 }];
    let payload = terms.ends().0.pack(&samples, &tensor(&samples, 0.0), COLUMNS, 0).unwrap();
    let width = COLUMNS as u32;
    let forward = Frame::forward(StepId(1), RoundId(1), FrameFlags::TRAIN, encoding, width, vec![2, 3], vec![], payload);
    let limits = FrameLimits::new(width, 5, 5).encoded(encoding, Encoding::F16);
    assert!(limits.frame_bytes_max < FrameLimits::new(width, 5, 5).frame_bytes_max.max(5000));
    forward.header.check(&limits).unwrap();
    let mut long = forward.header;
    long.payload_bytes = terms.payload_bytes_max(2, 5, width).unwrap();
    long.check(&limits).unwrap();
    long.payload_bytes += 1;
    assert!(long.check(&limits).unwrap_err().to_string().contains("B are no [5, 16] tensor in int8+moved=0.05"));
    let plain = |encoding: Encoding| encoding.encode(&tensor(&samples, 0.1), COLUMNS, 0).unwrap();
    let answers = limits.answering(&forward.header);
    Frame::hidden(&forward.header, Encoding::INT8, plain(Encoding::INT8)).header.check(&answers).unwrap();
    Frame::gradient(&forward.header, Encoding::F16, EvalSums::default(), plain(Encoding::F16)).header.check(&answers).unwrap();
    let hidden = Frame::hidden(&forward.header, Encoding::BF16, plain(Encoding::BF16)).header.check(&answers).unwrap_err().to_string();
    assert!(hidden.contains("frame is in bf16, int8 was agreed"), "{hidden}");
}

/// Goal: samples that are not the tensor are refused. Method: a row too many, and a receiver of another shape.
#[test]
fn samples_are_the_rows() {
    let samples = [Sample { id: 3, rows: 4 }];
    let (mut sender, _) = terms(0.0, 1000).ends();
    assert!(matches!(sender.pack(&samples, &[0.0; 80], COLUMNS, 0), Err(MemoryError::Samples { rows: 4, values: 80 })));
    let bytes = sender.pack(&samples, &tensor(&samples, 0.0), COLUMNS, 0).unwrap();
    let mut receiver: DifferenceReceiver = terms(0.0, 1000).ends().1;
    assert!(receiver.unpack(&bytes, &[5], COLUMNS).is_err());
    assert!(receiver.unpack(&bytes, &[2, 2], COLUMNS).is_err());
    assert!(receiver.unpack(&bytes[..10], &[4], COLUMNS).is_err());
}

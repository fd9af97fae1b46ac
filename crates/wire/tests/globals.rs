//! Global adapters to one client: both ends hold the same bits, whatever was lost, and little travels.

#![allow(clippy::unwrap_used)]

use cutlayer_wire::*;
use proptest::collection::vec;
use proptest::prelude::*;

const BASE: BaseHash = BaseHash([7; 32]);

/// The global adapter of a round: one that moves less and less, as training does.
fn global(round: u32) -> AdapterState {
    let tensor = |name: &str, shape: Vec<usize>, scale: f32| {
        let moved = |place: usize| (0..=round).map(|past| (place as f32 * 0.7 + past as f32).sin() / (past + 1) as f32).sum::<f32>();
        let values = (0..shape.iter().product()).map(|place| moved(place) * scale).collect();
        (name.to_owned(), HostTensor::new(shape, values).unwrap())
    };
    [tensor("lora_A", vec![8, 96], 0.2), tensor("lora_B", vec![50, 8], 0.01), tensor("bias", vec![3], 1.0)].into()
}

fn bits(state: &AdapterState) -> Vec<u32> {
    state.values().flat_map(|tensor| tensor.values.iter().map(|value| value.to_bits())).collect()
}

fn distance(a: &AdapterState, b: &AdapterState) -> f64 {
    let values = |state: &AdapterState| state.values().flat_map(|tensor| tensor.values.clone()).collect::<Vec<f32>>();
    let (a, b) = (values(a), values(b));
    let square = |value: f32| f64::from(value).powi(2);
    let off: f64 = a.iter().zip(&b).map(|(a, b)| square(a - b)).sum();
    (off / a.iter().map(|a| square(*a)).sum::<f64>()).sqrt()
}

/// Over the wire, within the receiver's limits.
fn carried(frame: &AdapterFrame, receiver: &GlobalReceiver) -> AdapterFrame {
    let values = frame.state.values().map(|tensor| tensor.values.len() as u64).sum();
    AdapterFrame::decode(&frame.encode(), &receiver.limits(values)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Goal: the ends hold the same bits. Method: rounds with gaps, and clients that come back with nothing, in every kind of
    /// encoding; an update of the client means the same at both ends, and errors do not add up.
    #[test]
    fn the_ends_hold_the_same_bits(
        name in proptest::sample::select(vec!["f32", "f32+zstd", "bf16", "f16+zstd", "int8", "int4/64+hadamard", "int8+stochastic+zstd"]),
        rounds in vec((1..3_u32, prop::bool::weighted(0.2)), 1..8),
    ) {
        let encoding: Encoding = name.parse().unwrap();
        let (mut sender, mut receiver, mut round) = (GlobalSender::new(encoding), GlobalReceiver::new(encoding), 0);
        for (step, lost) in rounds {
            round += step;
            if lost {
                sender.returned(None);
                receiver = GlobalReceiver::new(encoding);
            }
            let wanted = global(round);
            let frame = sender.pack(RoundId(round), &BASE, wanted.clone()).unwrap();
            let found = receiver.unpack(carried(&frame, &receiver)).unwrap();
            prop_assert_eq!(found.round, RoundId(round));
            prop_assert!(distance(&wanted, &found.state) < 0.1, "{} off by {}", name, distance(&wanted, &found.state));
            if frame.from.is_none() {
                prop_assert_eq!(bits(&found.state), bits(&wanted));
            }
            let held = |end: Option<(RoundId, &AdapterState)>| end.map(|(round, state)| (round, bits(state)));
            prop_assert_eq!(held(sender.held()), held(receiver.held()));
            if let Some((_, state)) = receiver.held() {
                prop_assert_eq!(bits(state), bits(&found.state));
            }
            let trained = global(round + 1);
            let update = receiver.update(RoundId(round + 1), 2.0, &BASE, trained.clone()).unwrap();
            prop_assert_eq!(update.encoding, encoding);
            let update = AdapterFrame::decode(&update.encode(), &AdapterLimits::WIDEST).unwrap().restored(sender.held()).unwrap();
            prop_assert!(distance(&trained, &update.state) < 0.1);
            if encoding.is_lossless() {
                prop_assert_eq!(bits(&trained), bits(&update.state));
            }
        }
    }
}

/// Goal: after the first, a global adapter is small. Method: the bytes of two rounds.
#[test]
fn only_the_first_travels_whole() {
    let (mut sender, encoding) = (GlobalSender::new("int8".parse().unwrap()), "int8".parse().unwrap());
    let mut receiver = GlobalReceiver::new(encoding);
    let mut sizes = vec![];
    for round in 0..3 {
        let frame = sender.pack(RoundId(round), &BASE, global(round)).unwrap();
        assert_eq!(frame.from, round.checked_sub(1).map(RoundId));
        sizes.push(frame.encode().len());
        receiver.unpack(carried(&frame, &receiver)).unwrap();
    }
    assert!(sizes[1] * 3 < sizes[0] && sizes[2] == sizes[1], "{sizes:?}");
}

/// Goal: what a client cannot read is refused, and it holds what it held. Method: a round missed, and other encodings.
#[test]
fn what_cannot_be_read_changes_nothing() {
    let encoding: Encoding = "int8".parse().unwrap();
    let (mut sender, mut receiver) = (GlobalSender::new(encoding), GlobalReceiver::new(encoding));
    receiver.unpack(sender.pack(RoundId(0), &BASE, global(0)).unwrap()).unwrap();
    let missed = sender.pack(RoundId(1), &BASE, global(1)).unwrap();
    let next = sender.pack(RoundId(2), &BASE, global(2)).unwrap();
    let error = receiver.unpack(next).unwrap_err().to_string();
    assert!(error.contains("a difference from that of round 1; this side holds that of round 0"), "{error}");
    let other = AdapterFrame { encoding: Encoding::BF16, ..missed.clone() };
    let error = receiver.unpack(other).unwrap_err().to_string();
    assert!(error.contains("is in bf16, int8 was agreed"), "{error}");
    let whole = AdapterFrame { from: None, ..missed.clone() };
    assert!(receiver.unpack(whole).unwrap_err().to_string().contains("is in int8, f32 was agreed"));
    sender.returned(Some(RoundId(0)));
    let again = sender.pack(RoundId(2), &BASE, global(2)).unwrap();
    assert_eq!(again.from, None);
    assert_eq!(receiver.unpack(again).unwrap().round, RoundId(2));
    sender.returned(Some(RoundId(2)));
    assert_eq!(sender.pack(RoundId(3), &BASE, global(3)).unwrap().from, Some(RoundId(2)));
}

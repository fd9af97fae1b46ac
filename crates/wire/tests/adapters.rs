//! Adapters as differences: close to what was sent, small, and refused where they cannot be restored.

#![allow(clippy::unwrap_used)]

mod common;

use cutlayer_wire::*;
use proptest::collection::vec;
use proptest::prelude::*;

const BASE: BaseHash = BaseHash([7; 32]);
const FROM: RoundId = RoundId(3);

fn factors(seed: f32) -> AdapterState {
    let tensor = |shape: Vec<usize>, scale: f32| {
        let values = (0..shape.iter().product()).map(|place: usize| (place as f32 * seed).sin() * scale).collect();
        HostTensor::new(shape, values).unwrap()
    };
    [("lora_A", tensor(vec![8, 96], 0.2)), ("lora_B", tensor(vec![50, 8], 0.01)), ("bias", tensor(vec![], 1.0))]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into()
}

/// The global adapter, moved a little.
fn trained(global: &AdapterState) -> AdapterState {
    let mut state = global.clone();
    let values = state.values_mut().flat_map(|tensor| &mut tensor.values);
    (0..).zip(values).for_each(|(place, value)| *value += (place as f32 * 1.7).cos() * 1e-3);
    state
}

fn update(encoding: &str) -> (AdapterFrame, AdapterState, AdapterState) {
    let global = factors(0.3);
    let state = trained(&global);
    let frame = AdapterFrame::new(RoundId(4), 5.0, &BASE, state.clone());
    (frame.against(encoding.parse().unwrap(), FROM, &global).unwrap(), global, state)
}

fn count(state: &AdapterState) -> u64 {
    state.values().map(|tensor| tensor.values.len() as u64).sum()
}

/// Goal: an update survives as a difference. Method: sent and restored, the error against the size of the step.
#[test]
fn differences_are_close_and_small() {
    for (encoding, off_max, bytes_max) in
        [("f16", 1e-6, 2), ("bf16", 5e-6, 2), ("int8", 1e-5, 1), ("int8/32+stochastic+zstd", 2e-5, 1), ("int4/64+hadamard", 4e-4, 1)]
    {
        let (frame, global, state) = update(encoding);
        let bytes = frame.encode();
        let limits = AdapterLimits::encoded(count(&state), frame.encoding);
        let found = AdapterFrame::decode(&bytes, &limits).unwrap();
        assert_eq!((found.round, found.weight, found.from), (RoundId(4), 5.0, Some(FROM)));
        let found = found.restored(Some((FROM, &global))).unwrap();
        assert_eq!((found.encoding, found.from), (Encoding::F32, None));
        assert!(found.state.keys().eq(state.keys()));
        for (found, state) in found.state.values().zip(state.values()) {
            assert_eq!(found.shape, state.shape);
            let off = found.values.iter().zip(&state.values).map(|(found, state)| (found - state).abs());
            assert!(off.clone().fold(0.0, f32::max) <= off_max, "{encoding}: {}", off.fold(0.0, f32::max));
        }
        let whole = AdapterFrame::new(RoundId(4), 5.0, &BASE, state.clone()).encode();
        let manifest = whole.len() as u64 - 4 * count(&state);
        assert!((bytes.len() as u64) < manifest + count(&state) * bytes_max * 11 / 10 + 70, "{encoding}: {} B", bytes.len());
    }
}

/// Goal: a whole adapter needs nothing to be restored from. Method: one in f32, with nothing held.
#[test]
fn whole_adapters_are_what_they_are() {
    let frame = AdapterFrame::new(RoundId(4), 5.0, &BASE, factors(0.1));
    assert_eq!(frame.clone().restored(None).unwrap(), frame);
}

/// Goal: a difference from something else is refused by name. Method: another round, nothing held, other tensors, other widths.
#[test]
fn differences_from_something_else_are_refused() {
    let (frame, global, _) = update("int8");
    let says = |result: Result<AdapterFrame, AdapterFrameError>, text: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(text), "{error:?} does not say {text:?}");
    };
    says(frame.clone().restored(None), "a difference from that of round 3; this side holds none");
    says(frame.clone().restored(Some((RoundId(2), &global))), "this side holds that of round 2");
    let mut other = global.clone();
    other.remove("bias");
    says(frame.clone().restored(Some((FROM, &other))), "\"bias\" is not a tensor of the adapter");
    other.insert("bias".into(), HostTensor::zeros(vec![1]));
    says(frame.restored(Some((FROM, &other))), "or is of another shape");
    let whole = AdapterFrame::new(RoundId(4), 5.0, &BASE, global.clone());
    says(whole.against("int8/48".parse().unwrap(), FROM, &global), "groups divide the 64 features");
}

/// Goal: a receiver takes the encoding agreed, and no more values than its model has. Method: limits off by one thing.
#[test]
fn limits_know_encoding_and_values() {
    let (frame, _, state) = update("int8+zstd");
    let (bytes, values) = (frame.encode(), count(&state));
    let refused = |limits: AdapterLimits| AdapterFrame::decode(&bytes, &limits).unwrap_err().to_string();
    assert!(refused(AdapterLimits::encoded(values, Encoding::INT8)).contains("is in int8+zstd, int8 was agreed"));
    assert!(refused(AdapterLimits::for_values(values)).contains("f32 was agreed"));
    let few = AdapterLimits { values_max: values as u32 - 1, ..AdapterLimits::encoded(values, frame.encoding) };
    assert!(refused(few).contains("values in f32 of"), "{}", refused(few));
    assert!(AdapterFrame::decode(&bytes, &AdapterLimits::WIDEST).is_ok());
    let nothing =
        AdapterFrame::new(RoundId(1), 0.0, &BASE, AdapterState::new()).against(frame.encoding, FROM, &AdapterState::new()).unwrap();
    assert_eq!(AdapterFrame::decode(&nothing.encode(), &AdapterLimits::encoded(0, frame.encoding)).unwrap(), nothing);
}

proptest! {
    /// Goal: no bytes make the decoder panic. Method: good bytes in every kind of encoding, slightly spoilt.
    #[test]
    fn spoilt_bytes_never_panic(
        name in proptest::sample::select(vec!["f16", "int8", "int4/64+hadamard", "int8+zstd", "bf16+topk=0.2", "int8+proj=16"]),
        edits in vec((0..1200_usize, any::<u8>()), 0..4),
        length in 0..1500_usize,
    ) {
        let (frame, global, state) = update(name);
        let mut bytes = frame.encode();
        edits.iter().for_each(|(place, byte)| if let Some(found) = bytes.get_mut(*place) { *found = *byte });
        bytes.truncate(length.max(300));
        let limits = AdapterLimits::encoded(count(&state), frame.encoding);
        if let Ok(found) = AdapterFrame::decode(&bytes, &limits) {
            prop_assert!(count(&found.state) <= count(&state));
            let _ = found.restored(Some((FROM, &global)));
        }
    }
}

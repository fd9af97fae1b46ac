//! Adapter frames: what decodes has as many values as its shapes say, and survives being sent on.
#![no_main]

use cutlayer_wire::{AdapterFrame, AdapterLimits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = AdapterLimits::for_values(1 << 16);
    if let Ok(frame) = AdapterFrame::decode(bytes, &limits) {
        for tensor in frame.state.values() {
            assert_eq!(tensor.shape.iter().product::<usize>(), tensor.values.len());
        }
        let sent = frame.encode();
        let again = AdapterFrame::decode(&sent, &limits).expect("our own bytes");
        // By bytes: a NaN is not equal to itself.
        assert_eq!(again.encode(), sent);
    }
});

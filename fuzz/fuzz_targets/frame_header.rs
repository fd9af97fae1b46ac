//! Frame headers under every kind of limits: 20 bytes choose the limits, 84 are the header.
//!
//! What is let through is within the limits, whatever the header claims, and encodes to the same bytes.
#![no_main]

use cutlayer_wire::{Encoding, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameHeader, FrameLimits, RoundId, StepId};
use libfuzzer_sys::fuzz_target;

/// Bytes that choose the limits.
const LIMITS_BYTES: usize = 20;

fuzz_target!(|bytes: &[u8]| {
    let Some((chosen, rest)) = bytes.split_first_chunk::<LIMITS_BYTES>() else {
        return;
    };
    let Some(header) = rest.first_chunk::<FRAME_HEADER_BYTES>() else {
        return;
    };
    let Ok(decoded) = FrameHeader::decode(header) else {
        return;
    };
    assert_eq!(&decoded.encode(), header);
    let limits = limits(chosen);
    let Ok(plan) = decoded.check(&limits) else {
        return;
    };
    let total = FRAME_HEADER_BYTES as u64 + plan.total_bytes() as u64;
    assert!(total <= limits.frame_bytes_max.min(FRAME_BYTES_MAX), "{total} B");
    assert!(decoded.tokens <= limits.tokens_max && decoded.segments <= limits.segments_max);
    assert!(decoded.sums().is_possible());
    assert!(limits.round.is_none_or(|round| round == decoded.round));
    assert!(limits.step.is_none_or(|step| step == decoded.step));
});

fn limits(chosen: &[u8; LIMITS_BYTES]) -> FrameLimits {
    let word = |at: usize| u32::from_le_bytes([chosen[at], chosen[at + 1], chosen[at + 2], chosen[at + 3]]);
    let bit = |place: u8| chosen[16] & (1 << place) != 0;
    const NAMES: [&str; 5] = ["f32", "bf16", "int8", "int4/8+hadamard", "bf16+topk=0.5+zstd"];
    let encoding = |choice: u8| NAMES.get(usize::from(choice)).map(|name| name.parse::<Encoding>().expect("an encoding"));
    FrameLimits {
        round: bit(0).then(|| RoundId(word(12))),
        step: bit(1).then(|| StepId(word(12).into())),
        tokens: bit(2).then(|| word(4)),
        activations: encoding(chosen[17]),
        gradients: encoding(chosen[18]),
        ..FrameLimits::new(word(0), word(4), word(8))
    }
}

//! Step frames: header, check against limits, body. What passes has one encoding.
#![no_main]

use cutlayer_wire::{FRAME_HEADER_BYTES, Frame, FrameHeader, FrameLimits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((header, body)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return;
    };
    let Ok(header) = FrameHeader::decode(header) else {
        return;
    };
    let limits = FrameLimits::new(header.hidden % 64, 256, 16);
    let Ok(plan) = header.check(&limits) else {
        return;
    };
    assert!(plan.total_bytes() as u64 + FRAME_HEADER_BYTES as u64 <= limits.frame_bytes_max);
    if let Ok(frame) = Frame::assemble_whole(header, &plan, body.to_vec()) {
        assert_eq!(frame.encode(), bytes);
        // Any answer is fine: it must only not panic.
        let _ = frame.check_labels(10);
    }
});

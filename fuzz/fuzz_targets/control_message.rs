//! Control messages: whatever decodes is valid, and survives being sent on.
#![no_main]

use cutlayer_wire::{CONTROL_BYTES_MAX, CONTROL_PREFIX_BYTES, CodecError, decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(prefix) = bytes.first_chunk::<CONTROL_PREFIX_BYTES>()
        && let Ok(length) = CodecError::check_length(*prefix)
    {
        assert!(length <= CONTROL_BYTES_MAX);
    }
    if let Ok(message) = decode(bytes) {
        let sent = encode(&message).expect("what decodes is valid");
        assert_eq!(decode(&sent).expect("our own bytes"), message);
    }
});

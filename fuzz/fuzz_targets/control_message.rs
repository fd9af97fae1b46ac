//! Control messages: whatever decodes is valid, and survives being sent on.
#![no_main]

use cutlayer_wire::{decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = decode(bytes) {
        let sent = encode(&message).expect("what decodes is valid");
        assert_eq!(decode(&sent).expect("our own bytes"), message);
    }
});

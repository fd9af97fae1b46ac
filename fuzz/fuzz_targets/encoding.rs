//! Tensor encodings: one byte names the encoding, the rest is its payload.
//!
//! What decodes has as many values as its bytes say, and those values, encoded again, decode to the same.
#![no_main]

use cutlayer_wire::Encoding;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((id, payload)) = bytes.split_first() else {
        return;
    };
    let Ok(encoding) = Encoding::try_from(*id) else {
        return;
    };
    let Ok(values) = encoding.decode(payload) else {
        return;
    };
    assert_eq!(encoding.codec().payload_bytes(values.len() as u64), Some(payload.len() as u64));
    let again = encoding.decode(&encoding.encode(&values)).expect("our own bytes");
    assert_eq!(again.len(), values.len());
    // A NaN is not equal to itself, and need not keep its payload.
    assert!(again.iter().zip(&values).all(|(one, other)| one == other || (one.is_nan() && other.is_nan())));
});

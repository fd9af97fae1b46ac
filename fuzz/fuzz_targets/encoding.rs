//! A tensor's payload in any encoding: whatever the bytes, values of the shape or an error, and values that can be sent again.
#![no_main]

use cutlayer_wire::Encoding;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((name, rest)) = bytes.split_first_chunk::<{ Encoding::BYTES }>() else { return };
    let Some(([rows, columns], payload)) = rest.split_first_chunk::<2>() else { return };
    let (rows, columns) = (usize::from(*rows), usize::from(*columns) * 8);
    let Ok(encoding) = Encoding::from_bytes(*name) else { return };
    assert_eq!(encoding.to_bytes(), *name);
    assert_eq!(encoding.to_string().parse(), Ok(encoding));
    if let Ok(values) = encoding.decode(payload, rows, columns) {
        assert_eq!(values.len(), rows * columns);
        let again = encoding.encode(&values, columns, 1).expect("a shape that was read");
        let bound = encoding.payload_bytes_max(rows as u32, columns as u32).expect("a shape that was read");
        assert!(again.len() as u64 <= bound);
        encoding.decode(&again, rows, columns).expect("our own bytes");
    }
});

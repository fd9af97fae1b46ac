//! Records of a session, of either side: header, check against limits, body. What passes is within the limits and has one encoding.
//!
//! Four bytes choose the limits; the rest is a record.
#![no_main]

use cutlayer_wire::*;
use libfuzzer_sys::fuzz_target;

/// Bytes that choose the limits.
const LIMITS_BYTES: usize = 4;

fuzz_target!(|bytes: &[u8]| {
    let Some((chosen, rest)) = bytes.split_first_chunk::<LIMITS_BYTES>() else { return };
    let Some((header, body)) = rest.split_first_chunk::<RECORD_HEADER_BYTES>() else { return };
    let Ok(header) = RecordHeader::decode(header) else { return };
    assert_eq!(header.encode(), rest[..RECORD_HEADER_BYTES]);
    let limits = limits(*chosen);
    let Ok(body_bytes) = header.check(&limits) else { return };
    assert!(body_bytes == header.body_bytes as usize && body_bytes as u64 <= FRAME_BYTES_MAX);
    assert!(header.position.checked_add(header.rows.into()).is_some_and(|end| end <= limits.positions_max));
    assert!(header.rows <= RECORD_ROWS_MAX);
    // What one side says the other does not.
    let [device, server] = [DeviceRecord::check(&header, &limits).is_ok(), ServerRecord::check(&header, &limits).is_ok()];
    assert!(device != server);
    if let Ok(record) = DeviceRecord::assemble(&header, body.to_vec(), &limits) {
        let again = record.clone().encode().expect("a record that was read");
        match &record {
            // Its numbers have several forms, of which bincode reads all and writes one.
            DeviceRecord::Open(open) => assert!(open.check(&limits).is_ok() && again.len() <= rest.len()),
            DeviceRecord::Rows(rows) => {
                assert_eq!(again, rest);
                assert!(rows.digests.len() <= RECORD_DIGESTS_MAX);
                assert!(limits.encoding.check_bytes(rows.payload.len() as u64, rows.rows.into(), limits.hidden).is_ok());
            }
        }
        assert_eq!(DeviceRecord::decode(&again, &limits).expect("our own bytes"), record);
    }
    if let Ok(record) = ServerRecord::assemble(&header, body.to_vec(), &limits) {
        assert_eq!(record.encode().expect("a record that was read"), rest);
    }
});

fn limits([encoding, hidden, positions @ ..]: [u8; LIMITS_BYTES]) -> RecordLimits {
    const NAMES: [&str; 6] = ["int8", "f32", "bf16", "int4/8+hadamard", "int8+topk=0.5", "bf16+zstd"];
    RecordLimits {
        hidden: u32::from(hidden) * 8,
        encoding: NAMES[usize::from(encoding) % NAMES.len()].parse().expect("an encoding"),
        positions_max: u16::from_le_bytes(positions).into(),
    }
}

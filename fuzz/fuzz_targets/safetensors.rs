//! Reads the header of a safetensors file.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = ramrs::fuzz::read_bytes("input.safetensors", bytes) else { return };
    let mut reached = header.bytes;
    for entry in &header.entries {
        assert_eq!(entry.offset, reached);
        reached += entry.bytes;
    }
    assert_eq!(reached, bytes.len() as u64);
});

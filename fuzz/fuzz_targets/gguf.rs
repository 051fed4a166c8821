//! Reads the head of a GGUF file, and every value in it.

#![no_main]

use std::hint::black_box;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = ramrs::fuzz::read_bytes("input.gguf", bytes) else { return };
    for entry in &header.entries {
        assert!(entry.offset >= header.bytes && entry.offset + entry.bytes <= bytes.len() as u64);
    }
    for (key, value) in header.key_values.iter() {
        black_box((value.value_type(), value.unsigned(), value.float(), value.boolean(), value.text()));
        black_box((value.elements(), value.unsigned_array(), value.floats(), value.booleans(), value.texts()));
        assert_eq!(header.key_values.get(key), Some(value));
    }
});

//! Damaged files of both containers: whatever is changed or cut off, reading neither panics nor makes much room.

use std::borrow::Cow;
use std::fs;

use crate::container::{Container, Gguf, Header, Metadata, Share, StoredTensor, read_bytes};
use crate::tests::support::{self, Numbers};

/// Reads `bytes` as a file called `name`. Checks what was allocated, and that what was read of a GGUF file can be written.
fn read(name: &str, bytes: &[u8], context: &dyn std::fmt::Debug) -> Option<Header> {
    let mut header = None;
    let allocated = allocation_counter::measure(|| header = read_bytes(name, bytes).ok());
    assert!(allocated.bytes_max <= 16 * bytes.len() as u64 + 4096, "{context:?}: {allocated:?}");
    let header = header?;
    assert!(header.bytes <= bytes.len() as u64, "{context:?}");
    for entry in &header.entries {
        assert!(
            entry.offset >= header.bytes && entry.offset + entry.bytes <= bytes.len() as u64,
            "{context:?}: {entry:?}"
        );
    }
    for (key, value) in header.key_values.iter() {
        let read = (value.unsigned(), value.float(), value.boolean(), value.text(), value.texts(), value.floats());
        let _ = std::hint::black_box((key, read, value.unsigned_array(), value.booleans(), value.elements()));
    }
    Some(header)
}

/// Asserts that a file of the same tensors and key-values is read as they are.
fn assert_survives_writing(header: &Header, context: &dyn std::fmt::Debug) {
    let tensors: Vec<StoredTensor> = (header.entries.iter().cloned())
        .map(|entry| StoredTensor {
            name: entry.name,
            dtype: entry.dtype,
            shape: entry.shape,
            bytes: entry.bytes,
            grows: true,
        })
        .collect();
    let whole = Share { file: 0, files: 1, tensors: tensors.len() };
    let arranged = Gguf.arrange(
        &Metadata::KeyValues(Cow::Borrowed(&header.key_values)),
        whole,
        &tensors.iter().collect::<Vec<&StoredTensor>>(),
    );
    let mut bytes = arranged.head;
    bytes.resize(arranged.bytes as usize, 0);
    let again = read_bytes("again.gguf", &bytes).unwrap();
    assert_eq!(again.key_values, header.key_values, "{context:?}");
    let of = |header: &Header| -> Vec<_> {
        header.entries.iter().map(|entry| (entry.name.clone(), entry.dtype, entry.shape.clone())).collect()
    };
    assert_eq!(of(&again), of(header), "{context:?}");
}

/// The files that are damaged: what they are called, and their bytes.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    [
        ("values.gguf", "gguf_files/values.gguf"),
        ("split.gguf", "gguf_files/split-00001-of-00003.gguf"),
        ("model.safetensors", "mx_quantize_3d.safetensors"),
    ]
    .map(|(name, path)| (name, fs::read(support::data(path)).unwrap()))
    .to_vec()
}

#[test]
fn no_file_cut_off_anywhere_is_taken_for_a_whole_one() {
    for (name, bytes) in files() {
        let head = read(name, &bytes, &"whole").unwrap();
        let end = head.entries.last().map(|entry| (entry.offset + entry.bytes) as usize).unwrap();
        // Behind the head any length is as good as another.
        let lengths = (0..=head.bytes as usize).chain((head.bytes as usize..end).step_by(97)).chain([end - 1]);
        for length in lengths {
            assert!(read(name, &bytes[..length], &length).is_none(), "{name}: {length}");
        }
        assert!(read(name, &bytes[..end], &end).is_some(), "{name}");
    }
}

#[test]
fn no_byte_of_a_head_changed_makes_reading_panic() {
    for (name, bytes) in files() {
        let head = read(name, &bytes, &"whole").unwrap().bytes as usize;
        let mut read_all_the_same = 0;
        for at in 0..head {
            for change in [1, 1 << (at % 8), 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] ^= change;
                if let Some(header) = read(name, &changed, &(at, change)) {
                    read_all_the_same += 1;
                    if name != "model.safetensors"
                        && !header.key_values.iter().any(|(key, _)| key.starts_with("split."))
                    {
                        assert_survives_writing(&header, &(at, change));
                    }
                }
            }
        }
        assert!(read_all_the_same > head / 20 && read_all_the_same < 4 * head, "{name}: {read_all_the_same} of {head}");
    }
}

/// Some numbers that make arithmetic overflow, or look harmless.
const ODD: [u64; 12] =
    [0, 1, 4, 255, 256, 1 << 16, u32::MAX as u64, 1 << 32, 1 << 61, i64::MAX as u64, u64::MAX - 31, u64::MAX];

/// Changes a few things in `bytes`.
fn mutate(bytes: &mut Vec<u8>, head: usize, numbers: &mut Numbers) {
    for _ in 0..=numbers.below(3) {
        let at = numbers.below(head.min(bytes.len()).max(1) as u64) as usize;
        let rest = bytes.len().saturating_sub(at);
        match numbers.below(6) {
            0 => bytes.truncate(at),
            1 => {
                let cut = numbers.below(40) as usize;
                bytes.drain(at..at + cut.min(rest));
            }
            2 => {
                let from = numbers.below(bytes.len().max(1) as u64) as usize;
                let copied = bytes.iter().copied().skip(from).take(numbers.below(40) as usize).collect::<Vec<u8>>();
                bytes.splice(at..at, copied);
            }
            3 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = numbers.bits() as u8),
            kind => {
                let number = ODD[numbers.below(ODD.len() as u64) as usize].to_le_bytes();
                let width = if kind == 4 { 4 } else { 8 };
                bytes.iter_mut().skip(at).zip(&number[..width]).for_each(|(byte, &odd)| *byte = odd);
            }
        }
    }
}

#[test]
fn thousands_of_mutations_neither_panic_nor_make_much_room() {
    let heads =
        files().into_iter().map(|(name, bytes)| (read(name, &bytes, &name).unwrap().bytes as usize, name, bytes));
    let files: Vec<_> = heads.collect();
    let mut numbers = Numbers(20);
    let mut outcomes = [0; 2];
    for case in 0..30_000 {
        let (head, name, bytes) = &files[case % files.len()];
        let mut changed = bytes.clone();
        mutate(&mut changed, *head, &mut numbers);
        outcomes[usize::from(read(name, &changed, &case).is_some())] += 1;
    }
    assert!(outcomes.iter().all(|&count| count > 100), "{outcomes:?}");
}

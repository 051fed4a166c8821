//! Composes the heads of GGUF files, and places the tensors.

use super::key_values::KeyValues;
use super::value::{put_text, put_u32, put_u64};
use super::{MAGIC, MAX_DIMENSIONS, VERSION, type_number};
use crate::container::{ArrangedFile, StoredTensor};

/// Arranges `tensors` in one file, in this order, after `key_values`. Each is padded to the alignment, the last one too, as
/// llama.cpp wants it.
///
/// # Panics
/// If GGUF has no such type, if a tensor has more than 4 dimensions, or if `key_values` state an impossible alignment.
pub(super) fn arrange(key_values: &KeyValues, tensors: &[&StoredTensor]) -> ArrangedFile {
    let alignment = key_values.alignment().unwrap_or_else(|reason| panic!("the alignment {reason}"));
    let mut head = MAGIC.to_vec();
    put_u32(&mut head, VERSION);
    put_u64(&mut head, tensors.len() as u64);
    put_u64(&mut head, key_values.len() as u64);
    head.extend_from_slice(key_values.bytes());
    let mut offsets = Vec::with_capacity(tensors.len());
    let mut reached = 0;
    for tensor in tensors {
        describe(&mut head, tensor, reached);
        offsets.push(reached);
        reached = (reached + tensor.bytes).next_multiple_of(alignment);
    }
    head.resize(head.len().next_multiple_of(alignment as usize), 0);
    let start = head.len() as u64;
    for offset in &mut offsets {
        *offset += start;
    }
    ArrangedFile { head, offsets, bytes: start + reached }
}

/// Appends the description of `tensor`, whose data begin at `offset` of the data section.
fn describe(head: &mut Vec<u8>, tensor: &StoredTensor, offset: u64) {
    let StoredTensor { name, dtype, shape, .. } = tensor;
    assert!(shape.len() <= MAX_DIMENSIONS, "`{name}` has {} dimensions", shape.len());
    let number = type_number(*dtype).unwrap_or_else(|| panic!("GGUF has no type {dtype}, that of `{name}`"));
    put_text(head, name);
    put_u32(head, shape.len() as u32);
    for &dimension in shape.iter().rev() {
        put_u64(head, dimension);
    }
    put_u32(head, number);
    put_u64(head, offset);
}

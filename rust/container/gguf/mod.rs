//! GGUF, the files of llama.cpp: typed key-values, descriptions of tensors, then the data.
//!
//! A file consists of `GGUF`, the version, the numbers of tensors and of key-values, the key-values, a description of each
//! tensor (name, dimensions from the innermost out, number of the type, offset in the data section), and the data. The
//! data section and each tensor in it start at a multiple of the alignment, `general.alignment` or 32. Numbers are
//! little-endian. A text is stored as its length in bytes and its bytes.
//!
//! [`read`] trusts nothing in a file. [`key_values::KeyValues`] keeps the key-values as they are stored, so that a copy has the
//! same bytes. A model may be [split] over several files.

pub(crate) mod key_values;
mod read;
pub(crate) mod split;
pub(crate) mod value;
mod write;

use std::path::Path;

use super::file::Source;
use super::{ArrangedFile, Container, Header, Layout, Metadata, Share, StoredTensor};
use crate::dtype::Dtype;
use crate::error::Result;

/// What each file begins with.
const MAGIC: [u8; 4] = *b"GGUF";

/// The version that is written. Version 2 differs only in that it knows no big-endian files.
const VERSION: u32 = 3;

/// Alignment of the data of each tensor, in bytes, of a file that does not state it.
const ALIGNMENT: u64 = 32;

/// The key of the alignment.
const ALIGNMENT_KEY: &str = "general.alignment";

/// The largest number of dimensions of a tensor.
const MAX_DIMENSIONS: usize = 4;

/// ggml's numbers of the types that files may hold. The numbers in between were types once, or exist only in memory.
const TYPES: [(u32, Dtype); 33] = [
    (0, Dtype::F32),
    (1, Dtype::F16),
    (2, Dtype::Q4_0),
    (3, Dtype::Q4_1),
    (6, Dtype::Q5_0),
    (7, Dtype::Q5_1),
    (8, Dtype::Q8_0),
    (10, Dtype::Q2_K),
    (11, Dtype::Q3_K),
    (12, Dtype::Q4_K),
    (13, Dtype::Q5_K),
    (14, Dtype::Q6_K),
    (16, Dtype::IQ2_XXS),
    (17, Dtype::IQ2_XS),
    (18, Dtype::IQ3_XXS),
    (19, Dtype::IQ1_S),
    (20, Dtype::IQ4_NL),
    (21, Dtype::IQ3_S),
    (22, Dtype::IQ2_S),
    (23, Dtype::IQ4_XS),
    (24, Dtype::I8),
    (25, Dtype::I16),
    (26, Dtype::I32),
    (27, Dtype::I64),
    (28, Dtype::F64),
    (29, Dtype::IQ1_M),
    (30, Dtype::BF16),
    (34, Dtype::TQ1_0),
    (35, Dtype::TQ2_0),
    (39, Dtype::MXFP4),
    (40, Dtype::NVFP4),
    (41, Dtype::Q1_0),
    (42, Dtype::Q2_0),
];

/// The type that has `number` in ggml; `None` if no file holds it.
fn type_of(number: u32) -> Option<Dtype> {
    TYPES.iter().find(|row| row.0 == number).map(|row| row.1)
}

/// ggml's number of `dtype`; `None` if GGUF has no such type.
pub(crate) fn type_number(dtype: Dtype) -> Option<u32> {
    TYPES.iter().find(|row| row.1 == dtype).map(|row| row.0)
}

#[derive(Debug)]
pub(crate) struct Gguf;

impl Container for Gguf {
    fn extension(&self) -> &'static str {
        "gguf"
    }

    fn read(&self, source: &dyn Source, path: &Path, file_bytes: u64) -> Result<Header> {
        read::read(source, path, file_bytes)
    }

    /// Keeps the order of the tensors. The first file of several has all key-values, and each says which it is.
    fn arrange(&self, metadata: &Metadata<'_>, share: Share, tensors: &[&StoredTensor]) -> ArrangedFile {
        write::arrange(&split::stated(&metadata.key_values(), share), tensors)
    }

    fn index(&self, _: &Layout, _: &[Vec<StoredTensor>], _: u64) -> Option<(&'static str, String)> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_type_has_a_number_and_numbers_are_unique() {
        assert!(TYPES.is_sorted_by(|a, b| a.0 < b.0));
        for (number, dtype) in TYPES {
            assert_eq!((type_of(number), type_number(dtype)), (Some(dtype), Some(number)));
        }
        for dead in [4, 5, 9, 15, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(type_of(dead), None);
        }
        assert_eq!(TYPES.iter().filter(|row| row.1 > Dtype::U64).count(), 25);
        assert_eq!(type_number(Dtype::U8), None);
    }
}

//! GGUF, version 3, as far as importance matrices need it: composes files of F32 tensors. It does not read files.
//!
//! A file consists of `GGUF`, the version, the numbers of tensors and of key-values, the key-values, a description of each
//! tensor (name, dimensions from the innermost out, element type, offset of the data), and the data. Numbers are
//! little-endian. A text is stored as its length in bytes and its bytes.

/// Alignment of the data of each tensor, in bytes from the start of the data section.
const ALIGNMENT: usize = 32;

const VERSION: u32 = 3;

/// GGUF's number for elements of type F32.
const F32: u32 = 0;

/// A value of a key-value.
pub(crate) enum Value {
    U32(u32),
    Text(String),
    Texts(Vec<String>),
}

/// A tensor with elements of type F32.
pub(crate) struct FloatTensor<'a> {
    pub(crate) name: String,
    /// Innermost dimension first.
    pub(crate) dimensions: Vec<usize>,
    pub(crate) values: &'a [f32],
}

impl Value {
    const NUMBER: u32 = 4;
    const TEXT: u32 = 8;
    const ARRAY: u32 = 9;

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::U32(number) => {
                put_u32(out, Self::NUMBER);
                put_u32(out, *number);
            }
            Self::Text(text) => {
                put_u32(out, Self::TEXT);
                put_text(out, text);
            }
            Self::Texts(texts) => {
                put_u32(out, Self::ARRAY);
                put_u32(out, Self::TEXT);
                put_u64(out, texts.len());
                for text in texts {
                    put_text(out, text);
                }
            }
        }
    }
}

/// Composes a whole file of `tensors`, with `metadata` as key-values.
#[must_use]
pub(crate) fn compose(metadata: &[(&str, Value)], tensors: &[FloatTensor<'_>]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    put_u32(&mut out, VERSION);
    put_u64(&mut out, tensors.len());
    put_u64(&mut out, metadata.len());
    for (key, value) in metadata {
        put_text(&mut out, key);
        value.put(&mut out);
    }
    let mut data = Vec::new();
    for FloatTensor { name, dimensions, values } in tensors {
        put_text(&mut out, name);
        put_u32(&mut out, dimensions.len() as u32);
        for &dimension in dimensions {
            put_u64(&mut out, dimension);
        }
        put_u32(&mut out, F32);
        put_u64(&mut out, data.len());
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        pad(&mut data);
    }
    pad(&mut out);
    out.extend_from_slice(&data);
    out
}

fn put_u32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(&(number as u64).to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_u64(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

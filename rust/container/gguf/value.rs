//! Typed values: as files store them, and to be stored.

use std::fmt;

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

/// In the order of their numbers: name, and bytes of a value, of texts and arrays at least.
const VALUE_TYPES: [(ValueType, &str, u64); 13] = [
    (ValueType::U8, "u8", 1),
    (ValueType::I8, "i8", 1),
    (ValueType::U16, "u16", 2),
    (ValueType::I16, "i16", 2),
    (ValueType::U32, "u32", 4),
    (ValueType::I32, "i32", 4),
    (ValueType::F32, "f32", 4),
    (ValueType::Bool, "bool", 1),
    (ValueType::Text, "text", 8),
    (ValueType::Array, "array", 12),
    (ValueType::U64, "u64", 8),
    (ValueType::I64, "i64", 8),
    (ValueType::F64, "f64", 8),
];

impl ValueType {
    /// The type with this number.
    pub(super) fn of(number: u32) -> Option<Self> {
        VALUE_TYPES.get(number as usize).map(|row| row.0)
    }

    /// Bytes of a value, of texts and arrays at least.
    pub(super) fn least_bytes(self) -> u64 {
        VALUE_TYPES[self as usize].2
    }

    /// Bytes of a value; `None` if values differ in length.
    pub(super) fn bytes(self) -> Option<u64> {
        Some(self.least_bytes()).filter(|_| !matches!(self, Self::Text | Self::Array))
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(VALUE_TYPES[*self as usize].1)
    }
}

/// A value to be stored.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(not(test), expect(dead_code, reason = "outputs state few types; tests write all"))]
pub(crate) enum Value {
    U16(u16),
    U32(u32),
    U64(u64),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    U32s(Vec<u32>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Bools(Vec<bool>),
    Texts(Vec<String>),
}

impl Value {
    /// The type, and that of the elements of an array.
    fn types(&self) -> (ValueType, Option<ValueType>) {
        match self {
            Self::U16(_) => (ValueType::U16, None),
            Self::U32(_) => (ValueType::U32, None),
            Self::U64(_) => (ValueType::U64, None),
            Self::I32(_) => (ValueType::I32, None),
            Self::F32(_) => (ValueType::F32, None),
            Self::Bool(_) => (ValueType::Bool, None),
            Self::Text(_) => (ValueType::Text, None),
            Self::U32s(_) => (ValueType::Array, Some(ValueType::U32)),
            Self::I32s(_) => (ValueType::Array, Some(ValueType::I32)),
            Self::F32s(_) => (ValueType::Array, Some(ValueType::F32)),
            Self::Bools(_) => (ValueType::Array, Some(ValueType::Bool)),
            Self::Texts(_) => (ValueType::Array, Some(ValueType::Text)),
        }
    }

    /// Appends the type and the value, as files store them.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let (own, elements) = self.types();
        put_u32(out, own as u32);
        if let Some(elements) = elements {
            put_u32(out, elements as u32);
        }
        match self {
            Self::U16(number) => out.extend_from_slice(&number.to_le_bytes()),
            Self::U32(number) => put_u32(out, *number),
            Self::U64(number) => put_u64(out, *number),
            Self::I32(number) => out.extend_from_slice(&number.to_le_bytes()),
            Self::F32(number) => out.extend_from_slice(&number.to_le_bytes()),
            Self::Bool(truth) => out.push(u8::from(*truth)),
            Self::Text(text) => put_text(out, text),
            Self::U32s(numbers) => put_all(out, numbers, |out, number| put_u32(out, *number)),
            Self::I32s(numbers) => put_all(out, numbers, |out, number| out.extend_from_slice(&number.to_le_bytes())),
            Self::F32s(numbers) => put_all(out, numbers, |out, number| out.extend_from_slice(&number.to_le_bytes())),
            Self::Bools(truths) => put_all(out, truths, |out, truth| out.push(u8::from(*truth))),
            Self::Texts(texts) => put_all(out, texts, |out, text| put_text(out, text)),
        }
    }
}

pub(super) fn put_u32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

pub(super) fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_u64(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Appends the number of `elements`, and each by `put`.
fn put_all<T>(out: &mut Vec<u8>, elements: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    put_u64(out, elements.len() as u64);
    for element in elements {
        put(out, element);
    }
}

/// A value as it is stored: the number of its type, and the value. Its bytes were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueRef<'a>(pub(super) &'a [u8]);

impl<'a> ValueRef<'a> {
    /// The type.
    ///
    /// # Panics
    /// Never: it was checked.
    #[must_use]
    pub fn value_type(self) -> ValueType {
        self.parts().0
    }

    /// An integer that is not negative, of any type.
    #[must_use]
    pub fn unsigned(self) -> Option<u64> {
        let (own, bytes) = self.parts();
        integers(own, bytes)?.next()?
    }

    /// A number of a float type.
    #[must_use]
    pub fn float(self) -> Option<f64> {
        let (own, bytes) = self.parts();
        floats(own, bytes)?.next()
    }

    /// A truth value.
    #[must_use]
    pub fn boolean(self) -> Option<bool> {
        self.number::<1>(ValueType::Bool).map(|[byte]| byte != 0)
    }

    /// A text, if it is valid UTF-8.
    #[must_use]
    pub fn text(self) -> Option<&'a str> {
        let (own, bytes) = self.parts();
        let text = bytes.get(size_of::<u64>()..).filter(|_| own == ValueType::Text)?;
        std::str::from_utf8(text).ok()
    }

    /// The integers of an array, if none is negative.
    #[must_use]
    pub fn unsigned_array(self) -> Option<Vec<u64>> {
        let (elements, _, bytes) = self.array()?;
        integers(elements, bytes)?.collect()
    }

    /// The numbers of an array of a float type.
    #[must_use]
    pub fn floats(self) -> Option<Vec<f64>> {
        let (elements, _, bytes) = self.array()?;
        Some(floats(elements, bytes)?.collect())
    }

    /// The truth values of an array.
    #[must_use]
    pub fn booleans(self) -> Option<Vec<bool>> {
        let (elements, _, bytes) = self.array()?;
        Some(bytes.iter().map(|&byte| byte != 0).collect()).filter(|_| elements == ValueType::Bool)
    }

    /// The texts of an array, if all are valid UTF-8.
    #[must_use]
    pub fn texts(self) -> Option<Vec<&'a str>> {
        let (elements, _, mut bytes) = self.array()?;
        let mut texts = Vec::new();
        while elements == ValueType::Text && !bytes.is_empty() {
            let (length, rest) = bytes.split_first_chunk()?;
            let (text, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
            texts.push(std::str::from_utf8(text).ok()?);
            bytes = rest;
        }
        Some(texts).filter(|_| elements == ValueType::Text)
    }

    /// The type of the elements of an array, and their number.
    #[must_use]
    pub fn elements(self) -> Option<(ValueType, u64)> {
        self.array().map(|(elements, count, _)| (elements, count))
    }

    /// The type, and the bytes after it.
    fn parts(self) -> (ValueType, &'a [u8]) {
        match self.0.split_first_chunk() {
            Some((number, bytes)) => match ValueType::of(u32::from_le_bytes(*number)) {
                Some(own) => (own, bytes),
                None => unreachable!("the type of a value was checked"),
            },
            None => unreachable!("the length of a value was checked"),
        }
    }

    /// The bytes of a number of type `wanted`.
    pub(super) fn number<const N: usize>(self, wanted: ValueType) -> Option<[u8; N]> {
        let (own, bytes) = self.parts();
        bytes.try_into().ok().filter(|_| own == wanted)
    }

    /// Type, number and bytes of the elements of an array.
    fn array(self) -> Option<(ValueType, u64, &'a [u8])> {
        let (own, bytes) = self.parts();
        let (elements, bytes) = bytes.split_first_chunk().filter(|_| own == ValueType::Array)?;
        let (count, bytes) = bytes.split_first_chunk()?;
        Some((ValueType::of(u32::from_le_bytes(*elements))?, u64::from_le_bytes(*count), bytes))
    }
}

/// The integers in `bytes`, which are of type `own`; a negative one is `None`. `None` if they are no integers.
fn integers(own: ValueType, bytes: &[u8]) -> Option<impl Iterator<Item = Option<u64>>> {
    let signed = match own {
        ValueType::U8 | ValueType::U16 | ValueType::U32 | ValueType::U64 => false,
        ValueType::I8 | ValueType::I16 | ValueType::I32 | ValueType::I64 => true,
        ValueType::F32 | ValueType::F64 | ValueType::Bool | ValueType::Text | ValueType::Array => return None,
    };
    let integer = move |bytes: &[u8]| {
        let is_negative = signed && bytes.last().is_some_and(|&byte| byte >= 0x80);
        let bits = bytes.iter().rev().fold(0, |bits: u64, &byte| bits << 8 | u64::from(byte));
        (!is_negative).then_some(bits)
    };
    Some(bytes.chunks_exact(own.least_bytes() as usize).map(integer))
}

/// The numbers in `bytes`, which are of type `own`; `None` if that is no float type.
fn floats(own: ValueType, bytes: &[u8]) -> Option<impl Iterator<Item = f64>> {
    if !matches!(own, ValueType::F32 | ValueType::F64) {
        return None;
    }
    let float = |bytes: &[u8]| match *bytes {
        [a, b, c, d] => f64::from(f32::from_le_bytes([a, b, c, d])),
        _ => bytes.try_into().map_or(f64::NAN, f64::from_le_bytes),
    };
    Some(bytes.chunks_exact(own.least_bytes() as usize).map(float))
}

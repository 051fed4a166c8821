//! Key-values in the order of the file, as the file stores them.

use super::value::{Value, ValueRef, ValueType, put_text};
use super::{ALIGNMENT, ALIGNMENT_KEY};

/// The largest alignment that is read, in bytes. Padding makes a file longer by almost as much for each tensor.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// Where a key-value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyValueSpan {
    /// Offset of the length of the key, in bytes.
    pub(super) start: usize,
    /// Offset of the type of the value. The key ends there.
    pub(super) value: usize,
    pub(super) end: usize,
}

impl KeyValueSpan {
    /// Follows bytes that were moved from offset `from` to offset `to`.
    fn shift(&mut self, from: usize, to: usize) {
        for offset in [&mut self.start, &mut self.value, &mut self.end] {
            *offset = *offset - from + to;
        }
    }
}

/// How many key-values there are, how long they are, and the alignment that they state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadSize {
    /// Number of key-values.
    pub key_values: u64,
    /// Length of all of them, in bytes.
    pub bytes: u64,
    /// Alignment of the data of each tensor, in bytes.
    pub alignment: u64,
}

/// Key-values as files store them. No key occurs twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValues {
    bytes: Vec<u8>,
    /// In the order of the bytes, without gaps.
    spans: Vec<KeyValueSpan>,
}

impl KeyValues {
    /// The key-values at `spans` of `bytes`, from offset `start` on, all of which were checked.
    pub(super) fn new(mut bytes: Vec<u8>, start: usize, mut spans: Vec<KeyValueSpan>) -> Self {
        bytes.drain(..start);
        for span in &mut spans {
            span.shift(start, 0);
        }
        Self { bytes, spans }
    }

    pub(crate) fn of_texts(texts: &[(&str, &str)]) -> Self {
        let mut all = Self::default();
        for (key, text) in texts {
            all.set(key, &Value::Text((*text).to_owned()));
        }
        all
    }

    /// Their size.
    #[must_use]
    pub(crate) fn size(&self) -> HeadSize {
        let alignment = self.alignment().unwrap_or(ALIGNMENT);
        HeadSize { key_values: self.len() as u64, bytes: self.bytes.len() as u64, alignment }
    }

    /// Key-values that are as long as others of this size, and state the same alignment.
    pub(crate) fn of_size(size: HeadSize) -> Self {
        let mut all = Self::default();
        if size.alignment != ALIGNMENT {
            all.set(ALIGNMENT_KEY, &Value::U32(size.alignment as u32));
        }
        all.bytes.resize((size.bytes as usize).max(all.bytes.len()), 0);
        all
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// All of them, as files store them.
    #[must_use]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Keys and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, ValueRef<'_>)> {
        self.spans.iter().map(|&span| (self.key(span), ValueRef(&self.bytes[span.value..span.end])))
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<ValueRef<'_>> {
        let span = self.spans[self.position(key)?];
        Some(ValueRef(&self.bytes[span.value..span.end]))
    }

    fn position(&self, key: &str) -> Option<usize> {
        self.spans.iter().position(|&span| self.key(span) == key)
    }

    fn key(&self, span: KeyValueSpan) -> &str {
        std::str::from_utf8(&self.bytes[span.start + size_of::<u64>()..span.value]).unwrap_or_default()
    }

    /// Replaces the value of `key` in its place, or appends the key-value.
    pub(crate) fn set(&mut self, key: &str, value: &Value) {
        let mut stored = Vec::new();
        value.put(&mut stored);
        if let Some(at) = self.position(key) {
            let KeyValueSpan { value, end, .. } = self.spans[at];
            let new_end = value + stored.len();
            self.bytes.splice(value..end, stored);
            self.spans[at].end = new_end;
            for span in &mut self.spans[at + 1..] {
                span.shift(end, new_end);
            }
        } else {
            let start = self.bytes.len();
            put_text(&mut self.bytes, key);
            let value = self.bytes.len();
            self.bytes.extend(stored);
            self.spans.push(KeyValueSpan { start, value, end: self.bytes.len() });
        }
    }

    /// Removes `key` and its value, if they are there.
    pub(crate) fn remove(&mut self, key: &str) {
        let Some(at) = self.position(key) else { return };
        let KeyValueSpan { start, end, .. } = self.spans.remove(at);
        self.bytes.drain(start..end);
        for span in &mut self.spans[at..] {
            span.shift(end, start);
        }
    }

    /// A key that occurs twice.
    pub(super) fn repeated(&self) -> Option<&str> {
        let mut keys: Vec<&str> = self.spans.iter().map(|&span| self.key(span)).collect();
        keys.sort_unstable();
        keys.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
    }

    /// The alignment of the data, in bytes, or what is wrong with it.
    pub(super) fn alignment(&self) -> Result<u64, String> {
        let Some(value) = self.get(ALIGNMENT_KEY) else { return Ok(ALIGNMENT) };
        let alignment = match value.number(ValueType::U32) {
            Some(bytes) => u64::from(u32::from_le_bytes(bytes)),
            None => return Err(format!("is of type {}, and must be u32", value.value_type())),
        };
        if alignment.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&alignment) {
            Ok(alignment)
        } else {
            Err(format!("{alignment} is not a power of two from 8 to {MAX_ALIGNMENT}"))
        }
    }
}

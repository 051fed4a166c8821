//! Reads the heads of GGUF files, and trusts nothing in them.
//!
//! Every number is checked before it is used: against the bytes that are left in the file, in arithmetic that cannot
//! overflow. What is allocated is proportional to the bytes that were read, and never depends on a number alone. Key-values
//! are walked, not decoded, however long their arrays are.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::key_values::{KeyValueSpan, KeyValues};
use super::value::ValueType;
use super::{ALIGNMENT_KEY, MAGIC, MAX_DIMENSIONS, VERSION, type_of};
use crate::container::file::Source;
use crate::container::{DataSection, Header, TensorEntry};
use crate::digest::Digest;
use crate::error::{EntryFault, Error, FileFault, Result};

/// The longest head that is read, in bytes. Those of models with large vocabularies have 10 to 20 MB.
const MAX_HEAD_BYTES: u64 = 100_000_000;

/// Bytes that are read at a time, at least.
const READ_BYTES: u64 = 256 << 10;

/// Length of what precedes the key-values, in bytes.
const START_BYTES: usize = 24;

/// The longest key or name, in bytes: what the format allows for keys.
const MAX_NAME_BYTES: u64 = (1 << 16) - 1;

/// How deep arrays may be nested. llama.cpp reads no nested arrays.
const MAX_DEPTH: usize = 4;

/// The length of the shortest key-value, in bytes.
const LEAST_KEY_VALUE_BYTES: u64 = 14;

/// The length of the shortest description of a tensor, in bytes.
const LEAST_TENSOR_BYTES: u64 = 25;

/// Reads and checks the head of a file.
///
/// # Errors
/// As [`Container::read`](crate::container::Container::read).
pub(super) fn read(source: &dyn Source, path: &Path, file_bytes: u64) -> Result<Header> {
    let mut head = Head { source, path, file_bytes, base: 0, bytes: Vec::new(), at: 0, part: Part::Counts };
    let mut digest = Digest::default();
    let (tensors, key_values) = head.counts()?;
    let spans = head.spans(key_values)?;
    let stored = head.pass_by();
    digest.update(&stored);
    let key_values = KeyValues::new(stored, START_BYTES, spans);
    let fault = |key: &str, reason| Error::file(path, FileFault::KeyValue { key: key.to_owned(), reason });
    if let Some(key) = key_values.repeated() {
        return Err(fault(key, "is listed twice".to_owned()));
    }
    let alignment = key_values.alignment().map_err(|reason| fault(ALIGNMENT_KEY, reason))?;
    let entries = head.entries(tensors)?;
    // A file without tensors may end before the padding does.
    let start = head.position().next_multiple_of(alignment).min(file_bytes);
    let entries = placed(path, entries, DataSection { start, end: file_bytes, alignment })?;
    let padding = (start - head.position()) as usize;
    head.load(padding as u64)?;
    head.at += padding;
    digest.update(&head.pass_by());
    Ok(Header { entries, metadata: BTreeMap::new(), key_values, bytes: start, sha256: digest.finish() })
}

/// Checks the descriptions of tensors, whose offsets are from the start of `section`, and places them in the file.
fn placed(path: &Path, mut entries: Vec<TensorEntry>, section: DataSection) -> Result<Vec<TensorEntry>> {
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    let fault = |tensor: &str, fault| Error::Entry { file: path.to_owned(), tensor: tensor.to_owned(), fault };
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(fault(pair[0], EntryFault::Twice));
    }
    let (alignment, available) = (section.alignment, section.end - section.start);
    for TensorEntry { name, offset, bytes, .. } in &mut entries {
        if !offset.is_multiple_of(alignment) {
            return Err(fault(name, EntryFault::Misaligned { offset: *offset, alignment }));
        }
        let end = offset.saturating_add(*bytes);
        if end > available {
            return Err(fault(name, EntryFault::BeyondEnd { end, available }));
        }
        *offset += section.start;
    }
    section.check(path, entries)
}

/// The part of the head that is being read.
#[derive(Clone)]
enum Part {
    Counts,
    /// A key; its number.
    Key(u64),
    /// A value; the place of its key.
    Value(Range<usize>),
    /// The name of a tensor; the tensor's number.
    Name(u64),
    /// The rest of the description of a tensor; the place of its name.
    Tensor(Range<usize>),
}

/// A head that is being read.
struct Head<'a> {
    source: &'a dyn Source,
    path: &'a Path,
    file_bytes: u64,
    /// Offset of `bytes` in the file.
    base: u64,
    bytes: Vec<u8>,
    /// How many of `bytes` were used.
    at: usize,
    part: Part,
}

impl Head<'_> {
    /// Magic bytes, version, and the numbers of tensors and of key-values.
    fn counts(&mut self) -> Result<(u64, u64)> {
        let fault = |fault| Err(Error::file(self.path, fault));
        if self.file_bytes < START_BYTES as u64 {
            return fault(FileFault::TooShort { bytes: self.file_bytes, format: "GGUF" });
        }
        let magic = self.array()?;
        if magic != MAGIC {
            let rest: [u8; 4] = self.array()?;
            let start = [magic, rest].concat().escape_ascii().to_string();
            return Err(Error::file(self.path, FileFault::NotGguf(start)));
        }
        let version = self.u32()?;
        if version != 0 && version.trailing_zeros() >= 16 {
            return Err(Error::file(self.path, FileFault::BigEndian));
        }
        if !(2..=VERSION).contains(&version) {
            return Err(Error::file(self.path, FileFault::Version(version)));
        }
        let (tensors, key_values) = (self.u64()?, self.u64()?);
        self.require(key_values.saturating_mul(LEAST_KEY_VALUE_BYTES), || {
            format!("a list of {key_values} key-values")
        })?;
        self.require(tensors.saturating_mul(LEAST_TENSOR_BYTES), || format!("a list of {tensors} tensors"))?;
        Ok((tensors, key_values))
    }

    /// Walks `count` key-values.
    fn spans(&mut self, count: u64) -> Result<Vec<KeyValueSpan>> {
        let mut spans = Vec::new();
        for number in 1..=count {
            self.part = Part::Key(number);
            let start = self.at;
            let key = self.name()?;
            let value = self.at;
            self.part = Part::Value(key);
            let own = self.value_type()?;
            self.value(own, 1)?;
            spans.push(KeyValueSpan { start, value, end: self.at });
        }
        Ok(spans)
    }

    fn value_type(&mut self) -> Result<ValueType> {
        let number = self.u32()?;
        ValueType::of(number).ok_or_else(|| self.invalid(format!("its type {number} is unknown")))
    }

    /// Walks a value of type `own`, which `depth` - 1 arrays hold.
    fn value(&mut self, own: ValueType, depth: usize) -> Result<()> {
        match own {
            ValueType::Text => {
                let bytes = self.u64()?;
                self.take(bytes)?;
            }
            ValueType::Array if depth > MAX_DEPTH => {
                return Err(self.invalid(format!("its arrays are nested more than {MAX_DEPTH} deep")));
            }
            ValueType::Array => {
                let elements = self.value_type()?;
                let count = self.u64()?;
                let bytes = count.saturating_mul(elements.least_bytes());
                if elements.bytes().is_some() {
                    let taken = self.take(bytes)?;
                    self.check_truths(elements, taken)?;
                } else {
                    self.require(bytes, || format!("an array of {count} elements of type {elements}"))?;
                    for _ in 0..count {
                        self.value(elements, depth + 1)?;
                    }
                }
            }
            number => {
                let taken = self.take(number.least_bytes())?;
                self.check_truths(number, taken)?;
            }
        }
        Ok(())
    }

    /// Checks that truth values are 0 or 1.
    fn check_truths(&self, own: ValueType, taken: Range<usize>) -> Result<()> {
        match self.bytes[taken].iter().find(|&&byte| own == ValueType::Bool && byte > 1) {
            Some(byte) => Err(self.invalid(format!("a truth value is {byte}, neither 0 nor 1"))),
            None => Ok(()),
        }
    }

    /// Reads the descriptions of `count` tensors. Offsets are from the start of the data section.
    fn entries(&mut self, count: u64) -> Result<Vec<TensorEntry>> {
        let mut entries = Vec::new();
        for number in 1..=count {
            self.part = Part::Name(number);
            let name = self.name()?;
            self.part = Part::Tensor(name);
            entries.push(self.entry()?);
        }
        Ok(entries)
    }

    /// Reads the description of a tensor after its name.
    fn entry(&mut self) -> Result<TensorEntry> {
        let dimensions = self.u32()?;
        if dimensions as usize > MAX_DIMENSIONS {
            let reason = format!("it has {dimensions} dimensions, and at most {MAX_DIMENSIONS} are possible");
            return Err(self.invalid(reason));
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            shape.push(self.u64()?);
        }
        shape.reverse();
        let number = self.u32()?;
        let offset = self.u64()?;
        let Some(dtype) = type_of(number) else {
            return Err(self.entry_fault(EntryFault::UnknownDtype(format!("type {number} of ggml"))));
        };
        if shape.contains(&0) {
            return Err(self.invalid("one of its dimensions is 0".to_owned()));
        }
        let (row, (block, _)) = (shape.last().copied().unwrap_or(1), dtype.block());
        if !row.is_multiple_of(block) {
            return Err(self.entry_fault(EntryFault::Rows { row, dtype: dtype.name(), block }));
        }
        let elements = shape.iter().try_fold(1, |product: u64, &dimension| product.checked_mul(dimension));
        match elements.and_then(|elements| dtype.bytes(elements)) {
            Some(bytes) => Ok(TensorEntry { name: self.read_name(), dtype, shape, offset, bytes }),
            None => Err(self.entry_fault(EntryFault::NoSize { shape, dtype: dtype.name() })),
        }
    }

    /// The place of a key or of a tensor's name.
    fn name(&mut self) -> Result<Range<usize>> {
        let bytes = self.u64()?;
        if bytes == 0 {
            return Err(self.invalid("is empty".to_owned()));
        }
        if bytes > MAX_NAME_BYTES {
            return Err(self.invalid(format!("is {bytes} bytes long, and at most {MAX_NAME_BYTES} are possible")));
        }
        let taken = self.take(bytes)?;
        match std::str::from_utf8(&self.bytes[taken.clone()]) {
            Ok(_) => Ok(taken),
            Err(fault) => Err(self.invalid(format!("is not a text: {fault}"))),
        }
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let taken = self.take(N as u64)?;
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[taken]);
        Ok(array)
    }

    /// The place of the next `count` bytes.
    fn take(&mut self, count: u64) -> Result<Range<usize>> {
        self.require(count, || match &self.part {
            Part::Counts => "what each file starts with".to_owned(),
            Part::Key(number) => format!("key {number}"),
            Part::Value(_) => format!("key-value `{}`", self.read_name()),
            Part::Name(number) => format!("the name of tensor {number}"),
            Part::Tensor(_) => format!("tensor `{}`", self.read_name()),
        })?;
        self.load(count)?;
        // `load` has found room for so many.
        let taken = self.at..self.at + count as usize;
        self.at = taken.end;
        Ok(taken)
    }

    /// Checks that `count` bytes are left, for `what`.
    fn require(&self, count: u64, what: impl Fn() -> String) -> Result<()> {
        let left = self.file_bytes.saturating_sub(self.position());
        if count > left {
            return Err(Error::file(self.path, FileFault::HeaderCut { what: what(), needed: count, left }));
        }
        let claimed = self.position() + count;
        if claimed > MAX_HEAD_BYTES {
            return Err(Error::file(self.path, FileFault::HeaderLength { claimed, limit: MAX_HEAD_BYTES }));
        }
        Ok(())
    }

    /// Loads the next `count` bytes, which the file has.
    fn load(&mut self, count: u64) -> Result<()> {
        let (loaded, wanted) = (self.bytes.len() as u64, self.at as u64 + count);
        if wanted > loaded {
            let end = wanted.max(loaded + READ_BYTES).min(self.file_bytes - self.base);
            let end = usize::try_from(end).map_err(|_| Error::Bug("length of a head".to_owned()))?;
            self.bytes.resize(end, 0);
            self.source.fill(self.path, &mut self.bytes[loaded as usize..], self.base + loaded)?;
        }
        Ok(())
    }

    /// Offset in the file of what is read next.
    fn position(&self) -> u64 {
        self.base + self.at as u64
    }

    /// Gives away what was read.
    fn pass_by(&mut self) -> Vec<u8> {
        let rest = self.bytes.split_off(self.at);
        self.base = self.position();
        self.at = 0;
        std::mem::replace(&mut self.bytes, rest)
    }

    /// The key or the name of the tensor that is being read.
    fn read_name(&self) -> String {
        match &self.part {
            Part::Value(name) | Part::Tensor(name) => String::from_utf8_lossy(&self.bytes[name.clone()]).into_owned(),
            Part::Counts | Part::Key(_) | Part::Name(_) => String::new(),
        }
    }

    /// The error that the part being read is invalid.
    fn invalid(&self, reason: String) -> Error {
        let fault = match self.part {
            Part::Counts => FileFault::Header(reason),
            Part::Key(number) => FileFault::Header(format!("key {number} {reason}")),
            Part::Value(_) => FileFault::KeyValue { key: self.read_name(), reason },
            Part::Name(number) => FileFault::Header(format!("the name of tensor {number} {reason}")),
            Part::Tensor(_) => return self.entry_fault(EntryFault::Malformed(reason)),
        };
        Error::file(self.path, fault)
    }

    fn entry_fault(&self, fault: EntryFault) -> Error {
        Error::Entry { file: self.path.to_owned(), tensor: self.read_name(), fault }
    }
}

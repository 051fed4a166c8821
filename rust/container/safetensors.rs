//! safetensors: a JSON header, then the data. The header is checked before any of it is used.
//!
//! A file consists of the length of the header (8 bytes), the header, and the data. The header is a JSON object of names
//! to `{dtype, shape, data_offsets}`, and `__metadata__`. The format demands that tensors fill the data section without
//! holes or overlaps. This module checks that and every size against the length of the file, in arithmetic that cannot
//! overflow. It allocates nothing by a size that only the header claims.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::file::Source;
use super::{
    ArrangedFile, Container, DataSection, Header, KeyValues, Layout, Metadata, Share, StoredTensor, TensorEntry,
};
use crate::digest::Digest;
use crate::dtype::Dtype;
use crate::error::{EntryFault, Error, FileFault, Result};

/// Name of the index of a sharded checkpoint.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The longest header the format allows, in bytes.
pub(crate) const MAX_HEADER_BYTES: u64 = 100_000_000;

#[derive(Debug)]
pub(crate) struct Safetensors;

impl Container for Safetensors {
    fn extension(&self) -> &'static str {
        "safetensors"
    }

    fn read(&self, source: &dyn Source, path: &Path, file_bytes: u64) -> Result<Header> {
        read(source, path, file_bytes)
    }

    /// Orders tensors by decreasing element size, so that each is aligned without gaps. The order is stable.
    fn arrange(&self, metadata: &Metadata<'_>, _share: Share, tensors: &[&StoredTensor]) -> ArrangedFile {
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|&at| (Reverse(tensors[at].dtype.bits()), at));
        let head = compose(&metadata.texts(), order.iter().map(|&at| tensors[at]).map(StoredTensor::listed));
        let mut offsets = vec![0; tensors.len()];
        let mut bytes = head.len() as u64;
        for at in order {
            offsets[at] = bytes;
            bytes += tensors[at].bytes;
        }
        ArrangedFile { head, offsets, bytes }
    }

    fn index(&self, layout: &Layout, modules: &[Vec<StoredTensor>], parameters: u64) -> Option<(&'static str, String)> {
        let total_size: u64 = modules.iter().flatten().map(|tensor| tensor.bytes).sum();
        let weight_map: BTreeMap<&str, &str> = layout
            .placed(modules)
            .map(|(tensor, at)| (tensor.name.as_str(), layout.files[at.file].name.as_str()))
            .collect();
        let index = serde_json::json!({
            "metadata": { "total_size": total_size, "total_parameters": parameters },
            "weight_map": weight_map,
        });
        Some((INDEX, format!("{index:#}\n")))
    }
}

/// Reads and checks the header of a file.
///
/// # Errors
/// As [`Container::read`].
fn read(source: &dyn Source, path: &Path, file_bytes: u64) -> Result<Header> {
    let mut length = [0; 8];
    if file_bytes < 8 {
        return Err(Error::file(path, FileFault::TooShort { bytes: file_bytes, format: "safetensors" }));
    }
    source.fill(path, &mut length, 0)?;
    let claimed = u64::from_le_bytes(length);
    let limit = MAX_HEADER_BYTES.min(file_bytes - 8);
    if claimed > limit {
        // Only for impossible lengths: a possible length may begin with the magic bytes of another format.
        return Err(Error::file(path, other_format(length).unwrap_or(FileFault::HeaderLength { claimed, limit })));
    }
    let mut text = vec![0; usize::try_from(claimed).map_err(|_| Error::Bug("header length".to_owned()))?];
    source.fill(path, &mut text, 8)?;
    let listed = parse(&text).map_err(|reason| Error::file(path, FileFault::Header(reason)))?;
    let entries = check(path, listed.entries, 8 + claimed, file_bytes - 8 - claimed)?;
    let (metadata, key_values) = (listed.metadata, KeyValues::default());
    Ok(Header { entries, metadata, key_values, bytes: 8 + claimed, sha256: Digest::of(&text) })
}

/// The fields of a header entry: name, element type, shape, length in bytes.
pub(crate) type Listed<'a> = (&'a str, Dtype, &'a [u64], u64);

/// Composes the header of a file that holds `tensors` in this order: the length, then the text, padded to 8 bytes.
#[must_use]
pub(crate) fn compose<'a>(metadata: &[(&str, &str)], tensors: impl Iterator<Item = Listed<'a>>) -> Vec<u8> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let metadata: Vec<String> =
        metadata.iter().map(|(key, value)| format!("{}:{}", quoted(key), quoted(value))).collect();
    let mut entries = vec![format!("\"__metadata__\":{{{}}}", metadata.join(","))];
    let mut begin = 0;
    for (name, dtype, shape, bytes) in tensors {
        let shape = shape.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let end = begin + bytes;
        let name = quoted(name);
        entries.push(format!("{name}:{{\"dtype\":\"{dtype}\",\"shape\":[{shape}],\"data_offsets\":[{begin},{end}]}}"));
        begin = end;
    }
    let mut text = format!("{{{}}}", entries.join(","));
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut head = (text.len() as u64).to_le_bytes().to_vec();
    head.extend_from_slice(text.as_bytes());
    head
}

/// Recognises another format by its first bytes.
fn other_format(start: [u8; 8]) -> Option<FileFault> {
    match start {
        [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..] => Some(FileFault::Pickle),
        [b'G', b'G', b'U', b'F', ..] => Some(FileFault::OtherFormat("GGUF")),
        [0x89, b'H', b'D', b'F', ..] => Some(FileFault::OtherFormat("HDF5")),
        _ if &start[..7] == b"version" => Some(FileFault::OtherFormat("Git LFS pointer")),
        _ => None,
    }
}

/// An entry as the header states it, not checked yet.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The contents of a header, in its order. A malformed entry comes with the reason.
#[derive(Default)]
struct Listing {
    entries: Vec<(String, std::result::Result<RawEntry, String>)>,
    metadata: BTreeMap<String, String>,
}

fn parse(text: &[u8]) -> std::result::Result<Listing, String> {
    if text.first() != Some(&b'{') {
        return Err("it does not start with `{`".to_owned());
    }
    let text = std::str::from_utf8(text).map_err(|fault| fault.to_string())?;
    serde_json::from_str(text).map_err(|fault| fault.to_string())
}

impl<'de> Deserialize<'de> for Listing {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Listing;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a JSON object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Listing, A::Error> {
                let mut listing = Listing::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        listing.metadata.append(&mut map.next_value()?);
                    } else {
                        // Read as a raw value first, so that the error for a malformed entry can name the tensor.
                        let raw = map.next_value::<Box<RawValue>>()?;
                        listing
                            .entries
                            .push((name, serde_json::from_str(raw.get()).map_err(|fault| fault.to_string())));
                    }
                }
                Ok(listing)
            }
        }
        from.deserialize_map(Collect)
    }
}

/// Checks every entry against the data section, `available` bytes from `start` on.
fn check(
    path: &Path,
    listed: Vec<(String, std::result::Result<RawEntry, String>)>,
    start: u64,
    available: u64,
) -> Result<Vec<TensorEntry>> {
    let fault = |tensor: &str, fault| Error::Entry { file: path.to_owned(), tensor: tensor.to_owned(), fault };
    let mut entries = Vec::with_capacity(listed.len());
    let mut names = BTreeSet::new();
    for (name, entry) in listed {
        if !names.insert(name.clone()) {
            return Err(fault(&name, EntryFault::Twice));
        }
        let entry = entry.map_err(|reason| fault(&name, EntryFault::Malformed(reason)))?;
        let [begin, end] = entry.data_offsets;
        let span = end.checked_sub(begin).ok_or_else(|| fault(&name, EntryFault::Backwards { begin, end }))?;
        if end > available {
            return Err(fault(&name, EntryFault::BeyondEnd { end, available }));
        }
        let dtype = Dtype::parse(&entry.dtype).ok_or_else(|| fault(&name, EntryFault::UnknownDtype(entry.dtype)))?;
        let shape = entry.shape;
        let needed = shape.iter().try_fold(1, |product: u64, &n| product.checked_mul(n)).and_then(|n| dtype.bytes(n));
        let Some(needed) = needed else {
            return Err(fault(&name, EntryFault::NoSize { shape, dtype: dtype.name() }));
        };
        if span != needed {
            return Err(fault(&name, EntryFault::Length { span, shape, dtype: dtype.name(), needed }));
        }
        entries.push(TensorEntry { name, dtype, shape, offset: start + begin, bytes: span });
    }
    DataSection { start, end: start + available, alignment: 1 }.check(path, entries)
}

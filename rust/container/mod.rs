//! Containers: kinds of files that hold tensors. Each is a file or folder here and one line of [`CONTAINERS`].
//!
//! A container reads and composes headers. It knows names, types and shapes; the output format knows what they mean.

pub(crate) mod file;
pub(crate) mod gguf;
mod layout;
pub(crate) mod safetensors;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use file::Source;
pub(crate) use gguf::Gguf;
pub(crate) use gguf::key_values::{HeadSize, KeyValues};
pub(crate) use layout::{Layout, Location, SHARD_BYTES, STEM, StoredTensor, lay_out};
pub(crate) use safetensors::Safetensors;

use crate::dtype::Dtype;
use crate::error::{EntryFault, Error, FileFault, Result};

/// All containers.
const CONTAINERS: &[&dyn Container] = &[&Safetensors, &Gguf];

/// A kind of file that holds tensors.
pub(crate) trait Container: Sync {
    /// How the names of its files end, without the dot.
    fn extension(&self) -> &'static str;

    /// Reads and checks the header of the file with the bytes of `source`, which is `file_bytes` long; `path` is for errors.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Entry`] for violations of the container's rules, [`Error::Io`].
    fn read(&self, source: &dyn Source, path: &Path, file_bytes: u64) -> Result<Header>;

    /// Arranges `tensors` in one file, the part `share` of an output that states `metadata`.
    ///
    /// # Panics
    /// If the container has no place for a type or a shape.
    fn arrange(&self, metadata: &Metadata<'_>, share: Share, tensors: &[&StoredTensor]) -> ArrangedFile;

    /// Name and text of the index, which maps the tensors of `modules` to the files of `layout`; `None` if the container
    /// has no index. `parameters` is the number of weights that the tensors encode.
    fn index(&self, layout: &Layout, modules: &[Vec<StoredTensor>], parameters: u64) -> Option<(&'static str, String)>;
}

/// The container that files called `file_name` belong to.
#[must_use]
pub(crate) fn of_file(file_name: &str) -> Option<&'static dyn Container> {
    let (_, extension) = file_name.rsplit_once('.')?;
    CONTAINERS.iter().copied().find(|container| container.extension() == extension)
}

/// Reads and checks the header of a file that is called `file_name` and has these `bytes`.
///
/// # Errors
/// Those of the container that the name belongs to; [`Error::Request`] if there is none.
pub fn read_bytes(file_name: &str, bytes: &[u8]) -> Result<Header> {
    let unknown = || Error::Request(format!("`{file_name}` is of no container"));
    of_file(file_name).ok_or_else(unknown)?.read(&bytes, Path::new(file_name), bytes.len() as u64)
}

/// The part of an output that one file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Index of the file.
    pub file: usize,
    /// Number of files.
    pub files: usize,
    /// Number of tensors in all files.
    pub tensors: usize,
}

/// What an output states besides its tensors.
#[derive(Clone, Debug)]
pub(crate) enum Metadata<'a> {
    Texts(&'a [(&'a str, &'a str)]),
    KeyValues(Cow<'a, KeyValues>),
    /// Key-values of which only the size is known, to lay out files that are not written yet.
    Size(HeadSize),
}

impl<'a> Metadata<'a> {
    /// What a container without types of values states: the texts.
    fn texts(&self) -> Vec<(&str, &str)> {
        match self {
            Self::Texts(texts) => texts.to_vec(),
            Self::KeyValues(all) => all.iter().filter_map(|(key, value)| Some((key, value.text()?))).collect(),
            Self::Size(_) => Vec::new(),
        }
    }

    fn key_values(&self) -> Cow<'a, KeyValues> {
        match self {
            Self::Texts(texts) => Cow::Owned(KeyValues::of_texts(texts)),
            Self::KeyValues(all) => Cow::Owned(all.clone().into_owned()),
            Self::Size(size) => Cow::Owned(KeyValues::of_size(*size)),
        }
    }
}

/// A header's entry for one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    pub name: String,
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
    /// Offset of the data from the start of the file, in bytes.
    pub offset: u64,
    /// Length of the data, in bytes.
    pub bytes: u64,
}

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// In the order of the data.
    pub entries: Vec<TensorEntry>,
    /// Texts by key, of a safetensors file.
    pub metadata: BTreeMap<String, String>,
    /// Typed values by key, of a GGUF file.
    pub key_values: KeyValues,
    /// Offset of the first tensor's data from the start of the file, in bytes.
    pub bytes: u64,
    /// SHA-256 of the header's text; of a GGUF file, of everything before the data.
    pub sha256: String,
}

/// The header and the offsets of a file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ArrangedFile {
    /// Everything before the data.
    pub head: Vec<u8>,
    /// Offset of the data of each tensor from the start of the file, in bytes.
    pub offsets: Vec<u64>,
    /// Length of the file, in bytes.
    pub bytes: u64,
}

/// The bytes of a file that hold the data of its tensors.
#[derive(Clone, Copy, Debug)]
struct DataSection {
    /// Offset from the start of the file, in bytes.
    start: u64,
    /// Its end, which is that of the file.
    end: u64,
    /// Each tensor starts at a multiple of this number of bytes after `start`.
    alignment: u64,
}

impl DataSection {
    /// Sorts `entries`, which end within the section, by offset. Checks that they fill it without overlaps, and without
    /// gaps that the alignment does not explain.
    fn check(self, path: &Path, mut entries: Vec<TensorEntry>) -> Result<Vec<TensorEntry>> {
        let Self { start, end, alignment } = self;
        let fault = |tensor: &str, fault| Error::Entry { file: path.to_owned(), tensor: tensor.to_owned(), fault };
        entries.sort_by(|a, b| (a.offset, a.bytes, &a.name).cmp(&(b.offset, b.bytes, &b.name)));
        let aligned = |reached: u64| start + (reached - start).next_multiple_of(alignment);
        let mut reached = start;
        let mut before = "";
        for entry in &entries {
            if entry.offset < reached {
                return Err(fault(&entry.name, EntryFault::Overlap { with: before.to_owned() }));
            }
            if entry.offset > aligned(reached) {
                return Err(fault(&entry.name, EntryFault::Gap { bytes: entry.offset - reached }));
            }
            reached = entry.offset + entry.bytes;
            before = &entry.name;
        }
        if aligned(reached) < end {
            return Err(Error::file(path, FileFault::Trailing(end - reached)));
        }
        Ok(entries)
    }
}

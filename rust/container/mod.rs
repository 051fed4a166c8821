//! Containers: files of tensors, one file here and one line of [`CONTAINERS`] each.
//!
//! A container reads what a file holds and writes what one is to hold. What the tensors mean is the format's affair.

pub(crate) mod file;
pub(crate) mod gguf;
mod layout;
pub(crate) mod safetensors;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

pub(crate) use layout::{Layout, Location, SHARD_BYTES, StoredTensor, lay_out};
pub(crate) use safetensors::Safetensors;

use crate::dtype::Dtype;
use crate::error::Result;

/// The containers there are.
const CONTAINERS: &[&dyn Container] = &[&Safetensors];

/// A kind of file that holds tensors.
pub(crate) trait Container: Sync {
    /// Whether a file of this name is one.
    fn owns(&self, file_name: &str) -> bool;

    /// Reads and checks the header of `file`, which is `file_bytes` long; `path` is for errors.
    ///
    /// # Errors
    /// [`Error::File`](crate::error::Error::File) and [`Error::Entry`](crate::error::Error::Entry) for whatever is not as the
    /// container demands, [`Error::Io`](crate::error::Error::Io).
    fn read(&self, file: &File, path: &Path, file_bytes: u64) -> Result<Header>;

    /// Name of file `at` of `count` that an output consists of.
    fn shard_name(&self, at: usize, count: usize) -> String;

    /// Arranges `tensors` in one file. `metadata` are texts by key.
    fn arrange(&self, metadata: &[(&str, &str)], tensors: &[&StoredTensor]) -> ArrangedFile;

    /// Name and text of the file that lists which of the files of `layout` holds which tensor of `modules`, if there is
    /// one. The tensors stand for `parameters` weights.
    fn index(&self, layout: &Layout, modules: &[Vec<StoredTensor>], parameters: u64) -> Option<(&'static str, String)>;
}

/// The container of files called `file_name`, if there is one.
#[must_use]
pub(crate) fn of_file(file_name: &str) -> Option<&'static dyn Container> {
    CONTAINERS.iter().copied().find(|container| container.owns(file_name))
}

/// One tensor as a header lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions, outermost first; none for a scalar.
    pub shape: Vec<u64>,
    /// Where its data begin, in bytes from the start of the file.
    pub offset: u64,
    /// How many bytes they are.
    pub bytes: u64,
}

/// A header, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The tensors, in the order of their data.
    pub entries: Vec<TensorEntry>,
    /// Texts by key.
    pub metadata: BTreeMap<String, String>,
    /// Where the data begin, in bytes from the start of the file.
    pub bytes: u64,
    /// SHA-256 of the header's text.
    pub sha256: String,
}

/// A file as a container arranges it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ArrangedFile {
    /// Everything before the data.
    pub head: Vec<u8>,
    /// Where the data of each tensor begin, in bytes from the start of the file.
    pub offsets: Vec<u64>,
    /// Length of the file.
    pub bytes: u64,
}

//! Containers: kinds of files that hold tensors. Each is one file here and one line of [`CONTAINERS`].
//!
//! A container reads and composes headers. It knows names, types and shapes; the output format knows what they mean.

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

/// All containers.
const CONTAINERS: &[&dyn Container] = &[&Safetensors];

/// A kind of file that holds tensors.
pub(crate) trait Container: Sync {
    /// Whether files of this name belong to this container.
    fn owns(&self, file_name: &str) -> bool;

    /// Reads and checks the header of `file`, which is `file_bytes` long; `path` is for errors.
    ///
    /// # Errors
    /// [`Error::File`](crate::error::Error::File) and [`Error::Entry`](crate::error::Error::Entry) for violations of the
    /// container's rules, [`Error::Io`](crate::error::Error::Io).
    fn read(&self, file: &File, path: &Path, file_bytes: u64) -> Result<Header>;

    /// The name of file `at` of the `count` files of an output.
    fn shard_name(&self, at: usize, count: usize) -> String;

    /// Arranges `tensors` in one file, with `metadata` as pairs of key and text.
    fn arrange(&self, metadata: &[(&str, &str)], tensors: &[&StoredTensor]) -> ArrangedFile;

    /// Name and text of the index, which maps the tensors of `modules` to the files of `layout`; `None` if the container
    /// has no index. `parameters` is the number of weights that the tensors encode.
    fn index(&self, layout: &Layout, modules: &[Vec<StoredTensor>], parameters: u64) -> Option<(&'static str, String)>;
}

/// The container that files called `file_name` belong to.
#[must_use]
pub(crate) fn of_file(file_name: &str) -> Option<&'static dyn Container> {
    CONTAINERS.iter().copied().find(|container| container.owns(file_name))
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
    pub metadata: BTreeMap<String, String>,
    /// Offset of the first tensor's data from the start of the file, in bytes.
    pub bytes: u64,
    /// SHA-256 of the header's text.
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

//! A checkpoint on disk: its shards, its tensors, its configuration, its other files.
//!
//! Opening one reads headers and small JSON only, and checks all of it: see [`header`] for a shard and [`directory`]
//! for what may lie where. Weights are streamed, by [`stream`].

pub mod directory;
pub mod header;
pub mod shard;
pub mod stream;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::dtype::{Dtype, Float};
use crate::error::{Error, FileFault, Result};
use directory::Directory;
pub use shard::Shard;

/// A model's configuration, with its keys in the order of the file.
pub type Config = serde_json::Map<String, serde_json::Value>;

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions, outermost first; none for a scalar.
    pub shape: Vec<u64>,
    /// Which shard holds it.
    pub shard: usize,
    /// Where its data begin in the shard's file, in bytes.
    pub offset: u64,
    /// How many bytes they are.
    pub bytes: u64,
}

impl Tensor {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Rows and columns, if it is a matrix of a float type that ramrs decodes.
    #[must_use]
    pub fn matrix(&self) -> Option<Matrix> {
        match (self.shape.as_slice(), Float::of(self.dtype)) {
            (&[rows, cols], Some(float)) if rows > 0 && cols > 0 => Some(Matrix { rows, cols, float }),
            _ => None,
        }
    }
}

/// The shape of a matrix of floats: `rows` outputs of `cols` inputs each, rows contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Output channels.
    pub rows: u64,
    /// Input channels.
    pub cols: u64,
    /// Element type.
    pub float: Float,
}

impl Matrix {
    /// Number of elements.
    #[must_use]
    pub fn elements(self) -> u64 {
        self.rows * self.cols
    }

    /// Bytes of one row.
    #[must_use]
    pub fn row_bytes(self) -> u64 {
        self.cols * self.float.bytes() as u64
    }
}

/// A checkpoint whose headers, index and configuration were read and checked.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Its directory, symbolic links resolved.
    pub dir: PathBuf,
    /// Its shards, by name.
    pub shards: Vec<Shard>,
    /// Its tensors, shard by shard, in the order of their data.
    pub tensors: Vec<Tensor>,
    /// `config.json`, if there is one.
    pub config: Option<Config>,
    /// The other files of the directory, as paths relative to it, sorted.
    pub other_files: Vec<PathBuf>,
    by_name: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Opens the checkpoint in directory `path`, or the single shard at `path`.
    ///
    /// # Errors
    /// Whatever is not sound about it: see [`header`] and [`directory`].
    pub fn open(path: &Path) -> Result<Self> {
        let Directory { dir, shards: names, index, config, other_files } = Directory::open(path)?;
        let mut shards = Vec::with_capacity(names.len());
        let mut tensors: Vec<Tensor> = Vec::new();
        let mut by_name = BTreeMap::new();
        for (name, path) in names {
            let (shard, header) = Shard::open(path, name)?;
            for entry in header.entries {
                if let Some(first) = by_name.insert(entry.name.clone(), tensors.len()) {
                    return Err(Error::DuplicateTensor {
                        tensor: entry.name,
                        first: shards.get(tensors[first].shard).map_or_else(PathBuf::new, |s: &Shard| s.path.clone()),
                        second: shard.path,
                    });
                }
                tensors.push(Tensor {
                    name: entry.name,
                    dtype: entry.dtype,
                    shape: entry.shape,
                    shard: shards.len(),
                    offset: entry.offset,
                    bytes: entry.bytes,
                });
            }
            shards.push(shard);
        }
        let checkpoint = Self { dir, shards, tensors, config, other_files, by_name };
        if let Some((path, weight_map)) = index {
            checkpoint.agrees(&path, &weight_map)?;
        }
        Ok(checkpoint)
    }

    /// Whether the index at `path` and the shards say the same.
    fn agrees(&self, path: &Path, weight_map: &BTreeMap<String, String>) -> Result<()> {
        let fault = |tensor: &str, expected: &str, found| {
            let (tensor, expected) = (tensor.to_owned(), expected.to_owned());
            Err(Error::file(path, FileFault::Disagrees { tensor, expected, found }))
        };
        for (tensor, expected) in weight_map {
            match self.tensor(tensor).map(|tensor| &self.shards[tensor.shard].name) {
                Some(shard) if shard == expected => {}
                Some(shard) => return fault(tensor, expected, format!("`{shard}` holds it")),
                None => return fault(tensor, expected, "no shard holds it".to_owned()),
            }
        }
        for tensor in &self.tensors {
            if !weight_map.contains_key(&tensor.name) {
                let shard = &self.shards[tensor.shard].name;
                return fault(&tensor.name, "no shard", format!("`{shard}` holds it"));
            }
        }
        Ok(())
    }

    /// The path and text of the file `name` of the directory, if it is there.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::File`] for a link that leads out of the directory.
    pub fn text(&self, name: &str) -> Result<Option<(PathBuf, String)>> {
        directory::read_text(&self.dir, name)
    }

    /// The tensor of that name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name).map(|&at| &self.tensors[at])
    }

    /// The file that holds `tensor`.
    #[must_use]
    pub fn file_of(&self, tensor: &Tensor) -> &Path {
        &self.shards[tensor.shard].path
    }

    /// Total length of the shards, headers included, in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }

    /// Value `key` of the configuration, or of its `text_config` (where multimodal models keep the language model's).
    #[must_use]
    pub fn config_value(&self, key: &str) -> Option<&serde_json::Value> {
        let config = self.config.as_ref()?;
        config.get(key).or_else(|| config.get("text_config")?.get(key)).filter(|value| !value.is_null())
    }

    /// A non-negative integer of the configuration.
    #[must_use]
    pub fn config_size(&self, key: &str) -> Option<u64> {
        self.config_value(key)?.as_u64()
    }

    /// `model_type` of the configuration.
    #[must_use]
    pub fn model_type(&self) -> Option<&str> {
        self.config.as_ref()?.get("model_type")?.as_str()
    }

    /// `model_type` of the configuration, then that of its `text_config`.
    pub fn model_types(&self) -> impl Iterator<Item = &str> {
        let inner = || self.config.as_ref()?.get("text_config")?.get("model_type")?.as_str();
        self.model_type().into_iter().chain(inner())
    }

    /// Whether the head shares the embedding's weights, as far as the configuration says.
    #[must_use]
    pub fn is_tied(&self) -> Option<bool> {
        self.config_value("tie_word_embeddings")?.as_bool()
    }
}

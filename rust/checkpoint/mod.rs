//! A checkpoint on disk: its shards, its tensors, its configuration, its other files.
//!
//! Opening one reads headers and small JSON only, and checks all of it: see [`Container::read`](crate::container::Container::read) for a shard and [`directory`]
//! for what may lie where. What a shard holds is a [`Part`]; what it means is a [`Tensor`]: most often the same, but where
//! weights are stored as codes beside scales ([`prequantized`]). Weights are streamed, by [`stream`].

pub(crate) mod directory;
pub(crate) mod prequantized;
pub(crate) mod shard;
pub(crate) mod stream;
pub(crate) mod view;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

pub(crate) use crate::band::Matrix;
use crate::container::file::read_at;
use crate::dtype::{Dtype, Float};
use crate::error::{Error, FileFault, Result};
use directory::Directory;
use prequantized::{Packing, Paired, Use};
pub(crate) use shard::Shard;
pub use view::View;

/// A model's configuration, with its keys in the order of the file.
pub(crate) type Config = serde_json::Map<String, serde_json::Value>;

/// A tensor as a shard holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
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

/// A tensor of a checkpoint: that of a part, or what its codes decode to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The name of the part that holds its elements.
    pub name: String,
    /// Its element type, decoded.
    pub dtype: Dtype,
    /// Its dimensions, outermost first; none for a scalar.
    pub shape: Vec<u64>,
    /// Which part holds its elements.
    pub part: usize,
    /// How many bytes they are, decoded.
    pub bytes: u64,
    /// How they are stored.
    pub packing: Packing,
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

/// A checkpoint whose headers, index and configuration were read and checked.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Its directory, symbolic links resolved.
    pub dir: PathBuf,
    /// Its shards, by name.
    pub shards: Vec<Shard>,
    /// What the shards hold, shard by shard, in the order of the data.
    pub parts: Vec<Part>,
    /// The tensors that the parts make up, in the order of those that hold their elements.
    pub tensors: Vec<Tensor>,
    /// What each part is for.
    pub uses: Vec<Use>,
    /// Parts that do not fit together, and why.
    pub faults: Vec<(usize, String)>,
    /// `config.json`, if there is one.
    pub config: Option<Config>,
    /// Whom its shards are laid out for, as the metadata of the first say: `pt`, `mlx`.
    pub laid_out_for: Option<String>,
    /// The other files of the directory, as paths relative to it, sorted.
    pub other_files: Vec<PathBuf>,
    by_name: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Opens the checkpoint in directory `path`, or the single shard at `path`.
    ///
    /// # Errors
    /// Whatever is not sound about it: see [`Shard::open`] and [`directory`].
    pub fn open(path: &Path) -> Result<Self> {
        let Directory { dir, shards: names, index, config, other_files } = Directory::open(path)?;
        let mut shards = Vec::with_capacity(names.len());
        let mut parts: Vec<Part> = Vec::new();
        let mut by_name = BTreeMap::new();
        let mut laid_out_for = None;
        for (name, path) in names {
            let (shard, mut header) = Shard::open(path, name)?;
            laid_out_for = laid_out_for.or(header.metadata.remove("format"));
            for entry in header.entries {
                if let Some(first) = by_name.insert(entry.name.clone(), parts.len()) {
                    return Err(Error::DuplicateTensor {
                        tensor: entry.name,
                        first: shards.get(parts[first].shard).map_or_else(PathBuf::new, |s: &Shard| s.path.clone()),
                        second: shard.path,
                    });
                }
                parts.push(Part {
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
        let Paired { tensors, uses, mut faults } = prequantized::pair(&parts, config.as_ref());
        faults.extend(misshapen(&shards, &parts, &tensors)?);
        let checkpoint = Self { dir, shards, parts, tensors, uses, faults, config, laid_out_for, other_files, by_name };
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
            match self.by_name.get(tensor).map(|&part| &self.shards[self.parts[part].shard].name) {
                Some(shard) if shard == expected => {}
                Some(shard) => return fault(tensor, expected, format!("`{shard}` holds it")),
                None => return fault(tensor, expected, "no shard holds it".to_owned()),
            }
        }
        for part in &self.parts {
            if !weight_map.contains_key(&part.name) {
                let shard = &self.shards[part.shard].name;
                return fault(&part.name, "no shard", format!("`{shard}` holds it"));
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

    /// Which tensor has that name.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        match self.uses[*self.by_name.get(name)?] {
            Use::Elements(tensor) => Some(tensor),
            Use::Beside(_) | Use::None(_) => None,
        }
    }

    /// The tensor of that name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        Some(&self.tensors[self.position(name)?])
    }

    /// The file that holds `tensor`.
    #[must_use]
    pub fn file_of(&self, tensor: &Tensor) -> &Path {
        &self.shards[self.parts[tensor.part].shard].path
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

/// Tensors that have another shape than a part beside them says.
fn misshapen(shards: &[Shard], parts: &[Part], tensors: &[Tensor]) -> Result<Vec<(usize, String)>> {
    let mut found = Vec::new();
    let mut open: Option<(usize, File)> = None;
    for tensor in tensors {
        let Packing::Int4 { shape: Some(part), .. } = tensor.packing else { continue };
        let Part { shard, offset, bytes, dtype, .. } = parts[part];
        if open.as_ref().is_none_or(|(other, _)| *other != shard) {
            open = Some((shard, shards[shard].file()?));
        }
        let mut said = [0; 32];
        let said = &mut said[..usize::try_from(bytes).unwrap_or(usize::MAX).min(32)];
        if let Some((_, file)) = &open {
            read_at(file, &shards[shard].path, said, offset)?;
        }
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
        let said: Vec<u64> = said.chunks_exact((dtype.bits() / 8) as usize).map(number).collect();
        if said != tensor.shape {
            let reason = format!("its codes are for {:?}, and `{}` says {said:?}", tensor.shape, parts[part].name);
            found.push((tensor.part, reason));
        }
    }
    Ok(found)
}

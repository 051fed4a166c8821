//! A checkpoint on disk: its shards, its tensors, its configuration, its other files.
//!
//! [`Checkpoint::open`] reads and checks headers and small JSON files only. See
//! [`Container::read`](crate::container::Container::read) for the checks of a shard, and [`directory`] for the layout of
//! the directory. A [`Part`] is a tensor as a shard stores it; a [`Tensor`] is what the model uses. The two are the same
//! unless weights are [prequantized]. [`stream`] reads weights.

pub(crate) mod directory;
pub(crate) mod encoded;
pub(crate) mod foreign_codes;
pub(crate) mod prequantized;
pub(crate) mod shard;
pub(crate) mod stream;
pub(crate) mod view;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use crate::band::Matrix;
use crate::container::file::read_at;
use crate::container::{Header, KeyValues};
use crate::dtype::{Dtype, Float};
use crate::error::{Error, FileFault, Result};
use directory::Directory;
use prequantized::{Packing, Paired, PartUse};
pub(crate) use shard::Shard;
pub use view::View;

/// A model's configuration, with its keys in the order of the file.
pub(crate) type Config = serde_json::Map<String, serde_json::Value>;

/// A tensor as a shard stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub name: String,
    /// The name in the file, if `name` is another spelling of it.
    pub stored: Option<String>,
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
    /// Index into [`Checkpoint::shards`].
    pub shard: usize,
    /// Offset of the data in the shard's file, in bytes.
    pub offset: u64,
    /// Length of the data, in bytes.
    pub bytes: u64,
}

impl Part {
    /// The name in the file.
    #[must_use]
    pub fn stored_name(&self) -> &str {
        self.stored.as_deref().unwrap_or(&self.name)
    }
}

/// [`Checkpoint::metadata_format`] of checkpoints that are laid out for MLX.
const MLX: &str = "mlx";

/// [`Checkpoint::metadata_format`] of GGUF files.
const GGUF: &str = "gguf";

/// Bytes of each tensor that are compared at a time.
const COMPARED_BYTES: usize = 1 << 20;

/// How names and configurations are read. By default everything is as it is stored.
pub(crate) trait Reading {
    /// Another spelling of the name of a tensor in a checkpoint with these key-values and this configuration; `None` to
    /// keep the name.
    fn spelled(&self, _name: &str, _key_values: &KeyValues, _config: Option<&Config>) -> Option<String> {
        None
    }

    /// The configuration that the headers of the files state, where there is no `config.json`.
    fn stated(&self, _headers: &[&Header]) -> Option<Config> {
        None
    }
}

/// Reads everything as it is stored.
pub(crate) struct AsStored;

impl Reading for AsStored {}

/// A tensor of a checkpoint: a part, or the decoded form of a prequantized weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The name of the part that holds its elements.
    pub name: String,
    /// The element type after decoding.
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
    /// Index of the part that holds its elements.
    pub part: usize,
    /// Length after decoding, in bytes.
    pub bytes: u64,
    /// How the elements are stored.
    pub packing: Packing,
    /// Why no runtime needs it, if that is known.
    pub unneeded: Option<&'static str>,
}

impl Tensor {
    /// The number of elements.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// The name of the weight that it holds, without the suffix of its packing.
    #[must_use]
    pub fn weight_name(&self) -> &str {
        match self.packing {
            Packing::Int4 { .. } => self.name.strip_suffix("_packed").unwrap_or(&self.name),
            Packing::Plain | Packing::Fp8 { .. } | Packing::Mxfp4 { .. } | Packing::Encoded(_) => &self.name,
        }
    }

    /// The shape as a matrix; `None` unless the tensor has two dimensions and a float type that ramrs decodes.
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
    /// The directory, symbolic links resolved.
    pub dir: PathBuf,
    /// The shards, sorted by name.
    pub shards: Vec<Shard>,
    /// The tensors as they are stored, shard by shard, in the order of their data.
    pub parts: Vec<Part>,
    /// The tensors after decoding, in the order of the parts that hold their elements.
    pub tensors: Vec<Tensor>,
    /// The use of each part.
    pub uses: Vec<PartUse>,
    /// Parts that do not fit together, and why.
    pub faults: Vec<(usize, String)>,
    /// `config.json`, if there is one.
    pub config: Option<Config>,
    /// `format` in the metadata of the first shard that has it: `pt`, `mlx`; of GGUF files `gguf`.
    pub metadata_format: Option<String>,
    /// The key-values of GGUF files; none of others.
    pub key_values: Arc<KeyValues>,
    /// The other files of the directory, as paths relative to it, sorted.
    pub other_files: Vec<PathBuf>,
    /// What was read otherwise than the files say, in sentences for the user.
    pub notes: Vec<String>,
    by_name: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Opens the checkpoint in directory `path`, or the single shard at `path`.
    ///
    /// # Errors
    /// Those of [`Shard::open`] and of [`directory`], and [`Error::DuplicateTensor`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, &AsStored, prequantized::pair)
    }

    /// Opens a checkpoint of which every part is a tensor of its own, as it is stored.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_as_stored(path: &Path) -> Result<Self> {
        Self::open_with(path, &AsStored, |parts, _| Paired::as_stored(parts))
    }

    /// Opens a checkpoint whose names and configuration `reading` reads, and whose parts `pair` groups into tensors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_with(
        path: &Path,
        reading: &dyn Reading,
        pair: impl Fn(&[Part], Option<&Config>) -> Paired,
    ) -> Result<Self> {
        let Directory { dir, shards: names, headers, index, config, other_files, mut notes } = Directory::open(path)?;
        let opened: Vec<(Shard, Header)> = if headers.is_empty() {
            names.into_iter().map(|(name, path)| Shard::open(path, name)).collect::<Result<_>>()?
        } else {
            let with = |((name, path), (bytes, header))| (Shard::with((path, name), bytes, &header), header);
            names.into_iter().zip(headers).map(with).collect()
        };
        let headers: Vec<&Header> = opened.iter().map(|(_, header)| header).collect();
        let key_values = Arc::new(headers.first().map(|header| header.key_values.clone()).unwrap_or_default());
        let config = config.or_else(|| reading.stated(&headers));
        let mut shards = Vec::with_capacity(opened.len());
        let mut parts: Vec<Part> = Vec::new();
        let mut by_name = BTreeMap::new();
        let mut metadata_format = (!key_values.is_empty()).then(|| GGUF.to_owned());
        for (shard, mut header) in opened {
            metadata_format = metadata_format.or(header.metadata.remove("format"));
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
                    stored: None,
                    dtype: entry.dtype,
                    shape: entry.shape,
                    shard: shards.len(),
                    offset: entry.offset,
                    bytes: entry.bytes,
                });
            }
            shards.push(shard);
        }
        if let Some((path, weight_map)) = index {
            notes.extend(check_index(&path, &weight_map, &shards, &parts, &by_name)?);
        }
        // What is laid out for MLX has names of its own.
        if metadata_format.as_deref() != Some(MLX) {
            let spelled = |part: &Part| reading.spelled(&part.name, &key_values, config.as_ref());
            let note = respell(&mut parts, &mut by_name, spelled);
            // All names of a GGUF file are others than those of a release.
            notes.extend(note.filter(|_| metadata_format.as_deref() != Some(GGUF)));
        }
        let Paired { tensors, uses, mut faults } = pair(&parts, config.as_ref());
        faults.extend(check_declared_shapes(&shards, &parts, &tensors)?);
        Ok(Self {
            dir,
            shards,
            parts,
            tensors,
            uses,
            faults,
            config,
            metadata_format,
            key_values,
            other_files,
            notes,
            by_name,
        })
    }

    /// Reads the file `name` of the directory, if there is one: its path and its text.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::File`] for a link that leads out of the directory.
    pub fn text(&self, name: &str) -> Result<Option<(PathBuf, String)>> {
        directory::read_text(&self.dir, name)
    }

    /// The index of the tensor called `name`.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        match self.uses[*self.by_name.get(name)?] {
            PartUse::Elements(tensor) => Some(tensor),
            PartUse::Companion(_) | PartUse::Unused(_) => None,
        }
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        Some(&self.tensors[self.position(name)?])
    }

    /// The path of the shard that holds the elements of `tensor`.
    #[must_use]
    pub fn file_of(&self, tensor: &Tensor) -> &Path {
        &self.shards[self.parts[tensor.part].shard].path
    }

    /// Whether two tensors are stored alike, byte for byte. Tensors of codes are not compared: they count as different.
    ///
    /// # Errors
    /// Those of reading.
    pub(crate) fn has_same_elements(&self, one: &Tensor, other: &Tensor) -> Result<bool> {
        let is_alike = one.shape == other.shape && one.dtype == other.dtype && one.bytes == other.bytes;
        if !is_alike || [one, other].iter().any(|tensor| tensor.packing != Packing::Plain) {
            return Ok(false);
        }
        let parts = [one, other].map(|tensor| &self.parts[tensor.part]);
        let shards = parts.map(|part| &self.shards[part.shard]);
        let files = [shards[0].file()?, shards[1].file()?];
        let mut read = [vec![0; COMPARED_BYTES], vec![0; COMPARED_BYTES]];
        for at in (0..one.bytes).step_by(COMPARED_BYTES) {
            let length = usize::try_from(one.bytes - at).unwrap_or(COMPARED_BYTES).min(COMPARED_BYTES);
            for side in 0..2 {
                read_at(&files[side], &shards[side].path, &mut read[side][..length], parts[side].offset + at)?;
            }
            if read[0][..length] != read[1][..length] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Total length of the shards, headers included, in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }

    /// Value `key` of the configuration, or of its `text_config`, where multimodal models keep that of the language model.
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

    /// Whether its tensors have the names and forms of `mlx-lm`, not those of the release.
    #[must_use]
    pub fn is_laid_out_for_mlx(&self) -> bool {
        self.metadata_format.as_deref() == Some(MLX)
    }

    /// Whether its tensors have the forms of llama.cpp, not those of the release.
    #[must_use]
    pub fn is_gguf(&self) -> bool {
        self.metadata_format.as_deref() == Some(GGUF)
    }

    /// Whether its tensors have the forms of the release.
    #[must_use]
    pub fn is_release(&self) -> bool {
        !self.is_laid_out_for_mlx() && !self.is_gguf()
    }

    /// `tie_word_embeddings` of the configuration: whether the head shares the weights of the embedding.
    #[must_use]
    pub fn is_tied(&self) -> Option<bool> {
        self.config_value("tie_word_embeddings")?.as_bool()
    }
}

/// Checks that the shards hold the tensors that the index at `path` lists. Returns what is wrong about the index, if the
/// shards are complete all the same.
fn check_index(
    path: &Path,
    weight_map: &BTreeMap<String, String>,
    shards: &[Shard],
    parts: &[Part],
    by_name: &BTreeMap<String, usize>,
) -> Result<Option<String>> {
    let mut wrong: Vec<String> = Vec::new();
    for (tensor, expected) in weight_map {
        match by_name.get(tensor).map(|&part| &shards[parts[part].shard].name) {
            Some(shard) if shard == expected => {}
            Some(shard) => wrong.push(format!("`{tensor}` is in `{shard}`, not in `{expected}`")),
            None => {
                let (tensor, expected, found) = (tensor.clone(), expected.clone(), "no shard holds it".to_owned());
                return Err(Error::file(path, FileFault::Disagrees { tensor, expected, found }));
            }
        }
    }
    let unlisted = parts.iter().filter(|part| !weight_map.contains_key(&part.name));
    wrong.extend(unlisted.map(|part| format!("`{}` in `{}` is not listed", part.name, shards[part.shard].name)));
    let Some(first) = wrong.first() else { return Ok(None) };
    let name = path.file_name().unwrap_or_default().display();
    Ok(Some(format!("{name} is wrong about {} tensors, and the shards are used as they are: {first}", wrong.len())))
}

/// Gives parts the names that `spelled` returns for them, unless two would have the same name. Returns a sentence about
/// what was renamed.
fn respell(
    parts: &mut [Part],
    by_name: &mut BTreeMap<String, usize>,
    spelled: impl Fn(&Part) -> Option<String>,
) -> Option<String> {
    let renamed: Vec<(usize, String)> =
        parts.iter().enumerate().filter_map(|(at, part)| Some((at, spelled(part)?))).collect();
    let &(first, ref name) = renamed.first()?;
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut new = renamed.iter().peekable();
    for (at, part) in parts.iter().enumerate() {
        let name = new.next_if(|(renamed, _)| *renamed == at).map_or(&part.name, |(_, name)| name);
        if names.insert(name.clone(), at).is_some() {
            return None;
        }
    }
    let note =
        format!("{} tensors are read under other names, such as `{}` as `{name}`", renamed.len(), parts[first].name);
    *by_name = names;
    for (at, name) in renamed {
        parts[at].stored = Some(std::mem::replace(&mut parts[at].name, name));
    }
    Some(note)
}

/// Finds INT4 tensors whose shape differs from the one that a companion part declares.
fn check_declared_shapes(shards: &[Shard], parts: &[Part], tensors: &[Tensor]) -> Result<Vec<(usize, String)>> {
    let mut found = Vec::new();
    let mut open: Option<(usize, File)> = None;
    for tensor in tensors {
        let Packing::Int4 { shape: Some(part), .. } = tensor.packing else { continue };
        let Part { shard, offset, bytes, dtype, .. } = parts[part];
        if open.as_ref().is_none_or(|(other, _)| *other != shard) {
            open = Some((shard, shards[shard].file()?));
        }
        let mut declared = [0; 32];
        let declared = &mut declared[..usize::try_from(bytes).unwrap_or(usize::MAX).min(32)];
        if let Some((_, file)) = &open {
            read_at(file, &shards[shard].path, declared, offset)?;
        }
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
        let declared: Vec<u64> = declared.chunks_exact((dtype.bits() / 8) as usize).map(number).collect();
        if declared != tensor.shape {
            let reason = format!("its codes are for {:?}, and `{}` says {declared:?}", tensor.shape, parts[part].name);
            found.push((tensor.part, reason));
        }
    }
    Ok(found)
}

//! Sensitivity from a file, and to one.
//!
//! A safetensors file. For each tensor `T` of the checkpoint that it covers:
//!
//! | name | dtype, shape | what |
//! |---|---|---|
//! | `T.k` | F32 `[columns]` | importance of the input channels, each from 0 to 1e20 |
//! | `T.r` | F32 `[rows]`, may be left out | gain of the output channels, so that `½ Σ r k Δw²` is in nats per token |
//!
//! `__metadata__` holds `format` = `ramrs-sensitivity`, `version` = `1`, and whatever else its writer likes. Without
//! `T.r` (all that an importance matrix knows) the gain is the [role prior](super::prior)'s.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::prior::Prior;
use super::{Gain, Measured, Origin, Vectors, layers};
use crate::checkpoint::header::Entry;
use crate::checkpoint::shard::{PageBuffer, Shard, read_at};
use crate::checkpoint::stream::Pass;
use crate::checkpoint::{Matrix, Tensor};
use crate::dtype::{Dtype, Float};
use crate::error::{Error, FileFault, Result};
use crate::name::Name;
use crate::stats::{self, Ask};

/// `format` in the metadata.
pub const FORMAT: &str = "ramrs-sensitivity";

/// `version` in the metadata.
pub const VERSION: &str = "1";

/// The vectors `k` and, where the file has them, `r` of one tensor.
type Read = (Arc<[f32]>, Option<Arc<[f32]>>);

/// The largest element of a vector: sums of products with squared weights stay finite in `f32`.
const LARGEST: f32 = 1e20;

/// A sensitivity file whose header was checked.
#[derive(Debug)]
pub struct SensitivityFile {
    shard: Shard,
    entries: BTreeMap<String, Entry>,
}

impl SensitivityFile {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Entry`] for what is no such file, [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let (shard, header) = Shard::open(path.to_owned(), path.display().to_string())?;
        let is = |key: &str| header.metadata.get(key).map(String::as_str);
        let reason = match (is("format"), is("version")) {
            (Some(FORMAT), Some(VERSION)) => {
                let entries = header.entries.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
                return Ok(Self { shard, entries });
            }
            (Some(FORMAT), version) => format!("its version is {}, not {VERSION}", version.unwrap_or("missing")),
            _ => format!("its metadata do not say `format: {FORMAT}`"),
        };
        Err(Error::file(path, FileFault::Document { what: "sensitivity file", reason }))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &PathBuf {
        &self.shard.path
    }

    /// The vectors of `tensor`, `None` if the file does not cover it.
    fn vectors(&self, tensor: &Tensor, matrix: Matrix) -> Result<Option<Read>> {
        let Some(k) = self.read(tensor, "k", matrix.cols)? else { return Ok(None) };
        Ok(Some((k, self.read(tensor, "r", matrix.rows)?)))
    }

    /// `tensor.which`, which must be `length` floats.
    fn read(&self, tensor: &Tensor, which: &str, length: u64) -> Result<Option<Arc<[f32]>>> {
        let name = format!("{}.{which}", tensor.name);
        let Some(entry) = self.entries.get(&name) else { return Ok(None) };
        let wrong = |reason| Error::Sensitivity { file: self.shard.path.clone(), tensor: name.clone(), reason };
        let Entry { dtype, shape, offset, bytes, .. } = entry;
        if *dtype != Dtype::F32 || *shape != [length] {
            return Err(wrong(format!("is {dtype} {shape:?}, and should be F32 [{length}]")));
        }
        let mut buffer = PageBuffer::default();
        let buffer = buffer.get(usize::try_from(*bytes).map_err(|_| Error::Bug("vector length".to_owned()))?);
        read_at(&self.shard.file()?, &self.shard.path, buffer, *offset)?;
        let mut values = vec![0.0; buffer.len() / 4];
        Float::F32.widen(buffer, &mut values);
        match values.iter().position(|value| !(0.0..=LARGEST).contains(value)) {
            Some(at) => Err(wrong(format!("element {at} is {:e}, and should be from 0 to {LARGEST:e}", values[at]))),
            None => Ok(Some(values.into())),
        }
    }

    /// Measures `matrices` under the vectors of the file.
    ///
    /// # Errors
    /// [`Error::Sensitivity`] for vectors that do not fit, and those of [`stats::energies`].
    pub fn measure(&self, pass: Pass<'_>, matrices: &[(&Tensor, Matrix)], prior: Prior) -> Result<Vec<Measured>> {
        let mut vectors = Vec::with_capacity(matrices.len());
        let mut missing: Vec<&str> = Vec::new();
        for &(tensor, matrix) in matrices {
            let found = self.vectors(tensor, matrix)?;
            let origin = if found.is_some() { Origin::File } else { Origin::Flat };
            if origin == Origin::Flat {
                missing.push(&tensor.name);
            }
            let (k, r) = found.unwrap_or_else(|| (vec![1.0; matrix.cols as usize].into(), None));
            vectors.push((k, r, origin));
        }
        if missing.len() == matrices.len() && !missing.is_empty() {
            let reason = "it has vectors for none of the checkpoint's tensors".to_owned();
            return Err(Error::Sensitivity { file: self.shard.path.clone(), tensor: missing[0].to_owned(), reason });
        }
        if let Some(first) = missing.first() {
            pass.progress.warn(format!(
                "{} has no vectors for {} of {} matrices (first `{first}`): their input channels count alike",
                self.shard.path.display(),
                missing.len(),
                matrices.len(),
            ));
        }
        self.warn_of_strays(pass, matrices);
        let asks: Vec<_> =
            matrices.iter().zip(&vectors).map(|(&(tensor, matrix), (k, _, _))| Ask { tensor, matrix, k }).collect();
        let energies = stats::energies(pass, &asks)?;
        let layers = layers(matrices);
        Ok(matrices
            .iter()
            .zip(vectors)
            .zip(energies)
            .map(|((&(tensor, _), (k, r, origin)), energy)| {
                let (r, signal) = if let Some(r) = r {
                    let signal = energy.rows.iter().zip(r.iter()).map(|(row, &r)| 0.5 * row * f64::from(r)).sum();
                    (Gain::Each(r), signal)
                } else {
                    let name = Name::parse(&tensor.name);
                    let signal = if energy.weighted > 0.0 { prior.of(name.role, name.layer, layers) } else { 0.0 };
                    (Gain::Same(if signal > 0.0 { 2.0 * signal / energy.weighted } else { 0.0 }), signal)
                };
                Measured { vectors: Vectors { k, r }, signal, energy: energy.plain, origin }
            })
            .collect())
    }

    /// Warns of vectors that are of use to none of `matrices`.
    fn warn_of_strays(&self, pass: Pass<'_>, matrices: &[(&Tensor, Matrix)]) {
        let covered: BTreeSet<&str> = matrices
            .iter()
            .map(|(tensor, _)| tensor.name.as_str())
            .filter(|name| self.entries.contains_key(&format!("{name}.k")))
            .collect();
        let is_stray = |name: &&String| {
            name.strip_suffix(".k").or(name.strip_suffix(".r")).is_none_or(|tensor| !covered.contains(tensor))
        };
        let strays = self.entries.keys().filter(is_stray).count();
        if let Some(first) = self.entries.keys().find(is_stray) {
            let path = self.shard.path.display();
            pass.progress.warn(format!(
                "{path} has {strays} vectors that no matrix takes (first `{first}`): wrong names, or an `.r` without its `.k`"
            ));
        }
    }
}

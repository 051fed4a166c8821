//! Sensitivity files: safetensors files that hold, for each tensor `T` of the checkpoint that they cover:
//!
//! | name | dtype, shape | contents |
//! |---|---|---|
//! | `T.k` | F32 `[columns]` | importance of the input channels, each from 0 to 1e20 |
//! | `T.r` | F32 `[rows]`, optional | gain of the output channels, such that `½ Σ r k Δw²` is in nats per token |
//! | `T.x2` | F32 `[inputs]`, optional | mean square of the inputs, for other encoders |
//!
//! For a stack of matrices each has one row per matrix: `[matrices, columns]` and so on. `__metadata__` holds `format` =
//! `ramrs-sensitivity`, `version` = `1`, `probe` = the [`ProbeRecord`] if the probe made the file, and anything else.
//! Without `T.r`, as from an importance matrix, the gain is that of the [role prior](super::prior).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::prior::Prior;
use super::table::{LARGEST, Table, TensorVectors, measure};
use super::{Candidate, MatrixSensitivity, Origin};
use crate::checkpoint::Shard;
use crate::checkpoint::Tensor;
use crate::checkpoint::stream::Pass;
use crate::container::TensorEntry;
use crate::container::file::{PageBuffer, read_at};
use crate::container::safetensors::compose;
use crate::dtype::{Dtype, Float};
use crate::error::{Error, FileFault, Result};
use crate::probe::{Mode, Options};

/// `format` in the metadata.
pub(crate) const FORMAT: &str = "ramrs-sensitivity";

/// `version` in the metadata.
pub(crate) const VERSION: &str = "1";

/// An opened sensitivity file. Its header is checked; vectors are read and checked when they are used.
#[derive(Debug)]
pub(crate) struct SensitivityFile {
    shard: Shard,
    entries: BTreeMap<String, TensorEntry>,
    probed: Option<ProbeRecord>,
}

/// The options of the probe that computed some vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRecord {
    pub version: u32,
    /// Number of tokens that was requested.
    pub tokens: usize,
    /// The source of the tokens.
    pub mode: Mode,
    /// Random gradients for each token.
    pub draws: usize,
    /// Seed of the tokens. Left out where it is the default.
    #[serde(default, skip_serializing_if = "is_default")]
    pub seed: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_default(seed: &u32) -> bool {
    *seed == Options::default().seed
}

impl ProbeRecord {
    /// The record of a probe with these options.
    #[must_use]
    pub fn by(options: Options) -> Self {
        let Options { tokens, mode, draws, seed, .. } = options;
        Self { version: super::from_probe::VERSION, tokens, mode, draws, seed }
    }

    /// The options of the probe.
    #[must_use]
    pub fn options(self) -> Options {
        let Self { tokens, mode, draws, seed, .. } = self;
        Options { tokens, mode, draws, seed, ..Options::default() }
    }
}

/// The contents of the file for `table`, which the probe made.
///
/// # Errors
/// [`Error::Bug`] if the options have no JSON form.
pub(crate) fn bytes(table: &Table, probed: ProbeRecord) -> Result<Vec<u8>> {
    let note = serde_json::to_string(&probed).map_err(|fault| Error::Bug(fault.to_string()))?;
    let mut vectors: Vec<(String, Vec<u64>, &[f32])> = Vec::new();
    for (name, found) in table {
        for (which, values) in [("k", &found.k), ("r", &found.r), ("x2", &found.x2)] {
            if !values.is_empty() {
                let length = values.len() as u64;
                let shape = found.stack.map_or_else(|| vec![length], |count| vec![count, length / count.max(1)]);
                vectors.push((format!("{name}.{which}"), shape, values));
            }
        }
    }
    let metadata = [("format", FORMAT), ("version", VERSION), ("probe", note.as_str())];
    let listed = vectors
        .iter()
        .map(|(name, shape, values)| (name.as_str(), Dtype::F32, shape.as_slice(), size_of_val(*values) as u64));
    let mut bytes = compose(&metadata, listed);
    for (.., values) in &vectors {
        bytes.extend_from_slice(bytemuck::cast_slice(values));
    }
    Ok(bytes)
}

impl SensitivityFile {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Entry`] for any other file, [`Error::Io`].
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (shard, header) = Shard::open(path.to_owned(), path.display().to_string())?;
        let is = |key: &str| header.metadata.get(key).map(String::as_str);
        let reason = match (is("format"), is("version")) {
            (Some(FORMAT), Some(VERSION)) => {
                let entries = header.entries.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
                let probed = header.metadata.get("probe").map(|note| serde_json::from_str(note)).transpose();
                let fault = |fault: serde_json::Error| FileFault::Document {
                    what: "sensitivity file",
                    reason: format!("its note on the probe: {fault}"),
                };
                let probed = probed.map_err(|found| Error::file(path, fault(found)))?;
                return Ok(Self { shard, entries, probed });
            }
            (Some(FORMAT), version) => format!("its version is {}, not {VERSION}", version.unwrap_or("missing")),
            _ => format!("its metadata do not say `format: {FORMAT}`"),
        };
        Err(Error::file(path, FileFault::Document { what: "sensitivity file", reason }))
    }

    /// The options of the probe, if the file is from the probe.
    #[must_use]
    pub(crate) fn probed(&self) -> Option<ProbeRecord> {
        self.probed
    }

    /// The vectors of `tensor`, `None` if the file does not cover it.
    fn vectors(&self, tensor: &Tensor) -> Result<Option<TensorVectors>> {
        let (stack, shape) = match tensor.shape.as_slice() {
            [count, matrix @ ..] if matrix.len() == 2 => (Some(*count), matrix),
            shape => (None, shape),
        };
        let &[rows, cols] = shape else { return Ok(None) };
        let shape = |length| stack.into_iter().chain([length]).collect::<Vec<u64>>();
        let Some(k) = self.read(tensor, "k", &shape(cols))? else { return Ok(None) };
        let r = self.read(tensor, "r", &shape(rows))?.unwrap_or_default();
        Ok(Some(TensorVectors { stack, k, r, x2: Arc::default() }))
    }

    /// Reads `tensor.which`, which must be F32 of that shape.
    fn read(&self, tensor: &Tensor, which: &str, expected: &[u64]) -> Result<Option<Arc<[f32]>>> {
        let name = format!("{}.{which}", tensor.name);
        let Some(entry) = self.entries.get(&name) else { return Ok(None) };
        let wrong = |reason| Error::Sensitivity { file: self.shard.path.clone(), tensor: name.clone(), reason };
        let TensorEntry { dtype, shape, offset, bytes, .. } = entry;
        if *dtype != Dtype::F32 || shape != expected {
            return Err(wrong(format!("is {dtype} {shape:?}, and should be F32 {expected:?}")));
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

    /// The origin of its vectors.
    fn origin(&self) -> Origin {
        if self.probed.is_some() { Origin::Probe } else { Origin::File }
    }

    /// Measures `candidates` under the vectors of the file.
    ///
    /// # Errors
    /// [`Error::Sensitivity`] for vectors that do not fit, and those of [`crate::pass::energy::energies`].
    pub(crate) fn measure(
        &self,
        pass: Pass<'_>,
        candidates: &[Candidate<'_>],
        prior: Prior,
    ) -> Result<Vec<MatrixSensitivity>> {
        let mut names: Vec<&str> =
            candidates.iter().map(|candidate| candidate.tensor(pass.checkpoint).name.as_str()).collect();
        // The candidates of one tensor are consecutive, or alternate with those of another.
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(*name));
        let (covered, missing): (Vec<&str>, Vec<&str>) =
            names.iter().partition(|name| self.entries.contains_key(&format!("{name}.k")));
        if covered.is_empty() && !missing.is_empty() {
            let reason = "it has vectors for none of the checkpoint's tensors".to_owned();
            return Err(Error::Sensitivity { file: self.shard.path.clone(), tensor: missing[0].to_owned(), reason });
        }
        if let Some(first) = missing.first() {
            pass.progress.warn(format!(
                "{} has no vectors for {} of {} matrices (first `{first}`): their input channels count alike",
                self.shard.path.display(),
                missing.len(),
                names.len(),
            ));
        }
        self.warn_of_strays(pass, &covered.into_iter().collect());
        let last: RefCell<Option<(usize, Option<TensorVectors>)>> = RefCell::default();
        measure(pass, candidates, prior, self.origin(), |candidate| {
            let (mut last, view) = (last.borrow_mut(), candidate.view);
            let tensor = candidate.tensor(pass.checkpoint);
            if last.as_ref().is_none_or(|(other, _)| *other != view.tensor) {
                *last = Some((view.tensor, self.vectors(tensor)?));
            }
            Ok(last.as_ref().and_then(|(_, found)| found.as_ref()?.of(tensor, view)))
        })
    }

    /// Warns of vectors that belong to none of the `covered` tensors, and to no other matrix of the checkpoint either: the
    /// output format may read fewer matrices quantized than the file has vectors for.
    fn warn_of_strays(&self, pass: Pass<'_>, covered: &BTreeSet<&str>) {
        let is_matrix = |tensor: &str| {
            let has = |ending: &str| self.entries.contains_key(&format!("{tensor}{ending}"));
            (has(".k") || has(".x2")) && pass.checkpoint.tensor(tensor).is_some_and(|found| found.shape.len() > 1)
        };
        let is_stray = |name: &&String| {
            let tensor = [".k", ".r", ".x2"].iter().find_map(|ending| name.strip_suffix(ending));
            tensor.is_none_or(|tensor| !covered.contains(tensor) && !is_matrix(tensor))
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

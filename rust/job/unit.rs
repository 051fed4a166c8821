//! Units of work: a view of an output tensor is made, written and recorded at a time.
//!
//! A unit's record is data: digests and errors of what was written. Records are folded in unit order, whoever made them.

use std::ops::Range;

use super::encode::{Made, StoreMode};
use crate::band::{Matrix, band_bytes, bands, chunk_bands, cut};
use crate::checkpoint::stream::Pass;
use crate::checkpoint::{Checkpoint, Tensor, View};
use crate::codec::{Extent, PartSpec};
use crate::container::{Location, StoredTensor};
use crate::digest::Digest;
use crate::format::Target;
use crate::rate_distortion::Noise;

/// How one output tensor is written.
pub(crate) struct WriteJob<'a> {
    /// What it is made of.
    pub target: &'a Target,
    /// How it is stored.
    pub mode: StoreMode<'a>,
    /// The tensors it is stored in.
    pub parts: &'a [StoredTensor],
    /// Where they belong.
    pub locations: &'a [Location],
}

impl WriteJob<'_> {
    /// Which parts do not grow with rows, and their data.
    #[must_use]
    pub(crate) fn fixed_parts(&self, checkpoint: &Checkpoint) -> Vec<(usize, Vec<u8>)> {
        let (StoreMode::Encoded(scheme, float, _) | StoreMode::PassedThrough(scheme, float)) = self.mode else {
            return Vec::new();
        };
        let Some(codec) = scheme.codec() else { return Vec::new() };
        let rows = self.target.rows();
        let cols = self.target.views.iter().find_map(|view| Some(view.matrix(checkpoint)?.cols)).unwrap_or(0);
        let matrix = Matrix { rows, cols, float };
        let fixed = |(at, part): (usize, PartSpec)| {
            matches!(part.extent, Extent::Fixed(_)).then(|| (at, codec.fixed(scheme, matrix, part.kind)))
        };
        codec.parts(scheme, matrix).into_iter().enumerate().filter_map(fixed).collect()
    }
}

/// A unit: which output tensor, and which of its views.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UnitId {
    /// Which output.
    pub output: usize,
    /// Which of its views.
    pub view: usize,
}

/// What was found and written of one unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct UnitRecord {
    /// SHA-256 of its share of each part; of one that does not grow with rows, of nothing.
    pub parts_sha256: Vec<String>,
    /// The error of what was written.
    pub noise: Noise,
}

/// Some of a unit: what one thread does at a time.
#[derive(Clone, Debug)]
pub(crate) struct UnitChunk {
    /// Of which unit.
    pub id: UnitId,
    /// What of it.
    pub span: UnitSpan,
    /// Bytes of the source that it stands for.
    pub bytes: u64,
    /// Where these bytes are among those of the tensor, if the view is all of it as it is stored.
    pub source: Range<u64>,
    /// Whether it is the last of the unit.
    pub is_last: bool,
}

/// What of a unit a chunk is.
#[derive(Clone, Debug)]
pub(crate) enum UnitSpan {
    /// Bytes that are copied.
    Bytes(Range<u64>),
    /// Bands that are encoded.
    Bands(Range<u64>),
    /// Rows that are written as numbers, or as the source packs them.
    Rows(Range<u64>),
}

/// The chunks of unit `id`, a view of a tensor that is stored as `job` says, in the order of its rows.
#[must_use]
pub(crate) fn chunks(pass: Pass<'_>, id: UnitId, job: &WriteJob<'_>, view: View, tensor: &Tensor) -> Vec<UnitChunk> {
    let row_bytes = (view.cols * tensor.dtype.bits() / 8).max(1);
    let (length, step, unit) = match (job.mode, view.matrix(pass.checkpoint)) {
        (StoreMode::Copied, _) => (tensor.bytes, whole_elements(pass.chunk_bytes), 1),
        (StoreMode::Encoded(..), Some(matrix)) => {
            (bands(matrix), chunk_bands(matrix, pass.chunk_bytes), band_bytes(matrix))
        }
        _ => (view.rows, (pass.chunk_bytes / row_bytes).max(1), row_bytes),
    };
    let mut ranges: Vec<Range<u64>> = cut(length, step).collect();
    if ranges.is_empty() {
        ranges.push(0..0);
    }
    let count = ranges.len();
    let chunk = |(number, range): (usize, Range<u64>)| UnitChunk {
        id,
        bytes: (range.end - range.start) * unit,
        source: range.start * unit..(range.end * unit).min(tensor.bytes),
        span: match job.mode {
            StoreMode::Copied => UnitSpan::Bytes(range),
            StoreMode::Encoded(..) => UnitSpan::Bands(range),
            StoreMode::Converted | StoreMode::PassedThrough(..) => UnitSpan::Rows(range),
        },
        is_last: number + 1 == count,
    };
    ranges.into_iter().enumerate().map(chunk).collect()
}

/// About so many bytes, and whole elements whatever their type.
#[must_use]
pub(crate) fn whole_elements(bytes: u64) -> u64 {
    (bytes / 8 * 8).max(8)
}

/// Folds what was made of chunks into records, chunk by chunk.
#[derive(Default)]
pub(crate) struct RecordFold {
    parts: Vec<Digest>,
    noise: Noise,
    records: Vec<(UnitId, UnitRecord)>,
}

impl RecordFold {
    /// Takes in what was made of a chunk: those of a unit in the order of its rows.
    pub(crate) fn take(&mut self, chunk: &UnitChunk, made: &Made) {
        self.parts.resize(made.parts.len(), Digest::default());
        for (digest, bytes) in self.parts.iter_mut().zip(&made.parts) {
            digest.update(bytes);
        }
        for noise in &made.noise {
            self.noise.add(*noise);
        }
        if chunk.is_last {
            let parts_sha256 = std::mem::take(&mut self.parts).into_iter().map(Digest::finish).collect();
            self.records.push((chunk.id, UnitRecord { parts_sha256, noise: std::mem::take(&mut self.noise) }));
        }
    }

    /// The records, in the order in which their units were done.
    pub(crate) fn records(self) -> impl Iterator<Item = (UnitId, UnitRecord)> {
        self.records.into_iter()
    }
}

//! Units of work: one view of an output tensor is encoded, written and recorded as a unit.
//!
//! A unit's record is plain data: digests and errors of the written bytes. Records are folded in unit order on any
//! number of threads.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::encode::{StoreMode, WrittenChunk};
use crate::band::{Matrix, band_bytes, bands, chunk_bands, cut};
use crate::checkpoint::stream::Pass;
use crate::checkpoint::{Checkpoint, Tensor, View};
use crate::codec::{Extent, PartSpec};
use crate::container::{Location, StoredTensor};
use crate::digest::Digest;
use crate::format::Target;
use crate::rate_distortion::Noise;

/// Instructions to write one output tensor.
pub(crate) struct WriteJob<'a> {
    pub target: &'a Target,
    pub mode: StoreMode<'a>,
    /// The tensors that store it.
    pub parts: &'a [StoredTensor],
    /// Their locations.
    pub locations: &'a [Location],
}

impl WriteJob<'_> {
    /// The parts whose size does not depend on the rows: index and data.
    #[must_use]
    pub(crate) fn fixed_parts(&self, checkpoint: &Checkpoint) -> Vec<(usize, Vec<u8>)> {
        if let Some(values) = &self.target.computed {
            return vec![(0, bytemuck::cast_slice(values).to_vec())];
        }
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

/// A unit: an output tensor and one of its views.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct UnitId {
    /// Index of the output.
    pub output: usize,
    /// Index of the view.
    pub view: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct UnitRecord {
    /// SHA-256 of the unit's rows of each part; the digest of no bytes for a part of fixed size.
    pub parts_sha256: Vec<String>,
    /// The error of the encoded rows.
    pub noise: Noise,
    /// Whether errors were fed back.
    pub has_feedback: bool,
}

/// A piece of a unit that one thread processes at a time.
#[derive(Clone, Debug)]
pub(crate) struct UnitChunk {
    pub id: UnitId,
    pub span: UnitSpan,
    /// Bytes of the source that the chunk counts for.
    pub bytes: u64,
    /// Whether the unit ends with this chunk.
    pub is_last: bool,
}

/// The range of a chunk within its unit.
#[derive(Clone, Debug)]
pub(crate) enum UnitSpan {
    /// Bytes to copy.
    Bytes(Range<u64>),
    /// Bands to encode.
    Bands(Range<u64>),
    /// Rows to write as plain numbers or to pass through.
    Rows(Range<u64>),
}

/// The chunks of unit `id`, a view of `tensor` that is stored as in `job`, in row order.
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
        span: match job.mode {
            StoreMode::Copied => UnitSpan::Bytes(range),
            StoreMode::Encoded(..) => UnitSpan::Bands(range),
            StoreMode::Converted | StoreMode::PassedThrough(..) => UnitSpan::Rows(range),
        },
        is_last: number + 1 == count,
    };
    ranges.into_iter().enumerate().map(chunk).collect()
}

/// Rounds `bytes` down to whole elements of any type, at least 8 bytes.
#[must_use]
pub(crate) fn whole_elements(bytes: u64) -> u64 {
    (bytes / 8 * 8).max(8)
}

/// Folds the results of chunks into records.
#[derive(Default)]
pub(crate) struct RecordFold {
    parts: Vec<Digest>,
    noise: Noise,
    records: Vec<(UnitId, UnitRecord)>,
}

impl RecordFold {
    /// Adds the result of a chunk, and returns the record of a unit that is complete with it. The chunks of a unit must be
    /// added in row order.
    pub(crate) fn take(&mut self, chunk: &UnitChunk, made: &WrittenChunk) -> Option<&UnitRecord> {
        self.parts.resize(made.parts.len(), Digest::default());
        for (digest, bytes) in self.parts.iter_mut().zip(&made.parts) {
            digest.update(bytes);
        }
        for noise in &made.noise {
            self.noise.add(*noise);
        }
        if !chunk.is_last {
            return None;
        }
        let parts_sha256 = std::mem::take(&mut self.parts).into_iter().map(Digest::finish).collect();
        let noise = std::mem::take(&mut self.noise);
        self.records.push((chunk.id, UnitRecord { parts_sha256, noise, has_feedback: false }));
        self.records.last().map(|(_, record)| record)
    }

    /// The records, in the order in which the units were completed.
    pub(crate) fn records(self) -> impl Iterator<Item = (UnitId, UnitRecord)> {
        self.records.into_iter()
    }
}

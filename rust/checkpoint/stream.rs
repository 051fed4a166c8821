//! Reads tensors in chunks of rows.
//!
//! The unit of computation is the *band*: a transposed tile of [`BAND_ROWS`] rows, counted from the tensor's first row. The
//! unit of reading is the *chunk*: several bands, about as many bytes as the caller asks for. The result of a band does not
//! depend on the size of chunks.

use std::fs::File;
use std::ops::Range;

use super::encoded::DecodeBuffers;
use super::prequantized::{Packing, widen_scales};
use super::{Checkpoint, Part, Tensor, View};
use crate::container::file::{PageBuffer, prefetch, read_at};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::pool::Workers;
use crate::progress::Progress;
use crate::simd::vector::{BAND_ROWS, Column};
use crate::{band, simd::Isa};

/// Default size of a chunk, in bytes of source.
pub const CHUNK_BYTES: u64 = 1 << 20;

/// Default size of the caches of weights and activations, in bytes.
pub const HELD_BYTES: u64 = 320 << 20;

pub(crate) use crate::band::{cut, rows_of};

/// What every pass over a checkpoint needs.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// The source.
    pub checkpoint: &'a Checkpoint,
    /// The thread pool.
    pub workers: &'a Workers,
    /// Progress and cancellation.
    pub progress: &'a Progress,
    /// Records of finished work.
    pub journal: &'a Journal,
    /// The instruction set of the kernels.
    pub isa: Isa,
    /// Approximate size of a chunk, in bytes of source.
    pub chunk_bytes: u64,
    /// Size of the caches, in bytes: weights and activations that are kept instead of being read or computed again.
    pub held_bytes: u64,
}

/// A copy of some bytes of a tensor, decoded.
pub struct Block {
    buffer: PageBuffer,
    bytes: usize,
}

impl Block {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.buffer.held(self.bytes)
    }
}

/// Distance of prefetching: the system is asked for the bytes this far after a read.
const PREFETCH_DISTANCE_BYTES: u64 = 16 << 20;

/// Reads below this size trigger no prefetch: they are not sequential, so they do not predict the next read.
const MIN_PREFETCH_BYTES: u64 = 128 << 10;

/// Files that a reader keeps open: those of a weight and of its scales, and that of the previous weight.
const OPEN_FILES: usize = 3;

/// Reads a checkpoint for one thread. It keeps buffers, and the files it has read last.
#[derive(Default)]
pub struct Reader {
    /// Indices of shards and their files, most recently used first.
    open: Vec<(usize, File)>,
    buffer: PageBuffer,
    codes: PageBuffer,
    scales: Vec<f32>,
    gathered: PageBuffer,
    row: Vec<f32>,
    band: PageBuffer,
    pub(super) decoding: DecodeBuffers,
}

/// Fills `buffer` with the bytes of shard `shard` from `offset` on. Takes the file from `open`, or opens it.
fn fill(
    open: &mut Vec<(usize, File)>,
    checkpoint: &Checkpoint,
    shard: usize,
    offset: u64,
    buffer: &mut [u8],
) -> Result<()> {
    let found = &checkpoint.shards[shard];
    if let Some(at) = open.iter().position(|(other, _)| *other == shard) {
        open[..=at].rotate_right(1);
    } else {
        open.truncate(OPEN_FILES - 1);
        open.insert(0, (shard, found.file()?));
    }
    read_at(&open[0].1, &found.path, buffer, offset)?;
    let bytes = buffer.len() as u64;
    if bytes >= MIN_PREFETCH_BYTES {
        prefetch(&open[0].1, offset + PREFETCH_DISTANCE_BYTES, bytes);
    }
    Ok(())
}

fn length(range: &Range<u64>) -> Result<usize> {
    usize::try_from(range.end - range.start).map_err(|_| Error::Bug("read length".to_owned()))
}

impl Reader {
    /// Reads the bytes `range` of the data of `part`, not decoded.
    ///
    /// # Errors
    /// [`Error::Io`], or [`crate::error::FileFault::Changed`].
    pub fn stored(&mut self, checkpoint: &Checkpoint, part: &Part, range: Range<u64>) -> Result<&[u8]> {
        if range.end > part.bytes {
            return Err(Error::Bug(format!("read beyond the end of `{}`", part.name)));
        }
        let buffer = self.buffer.get(length(&range)?);
        fill(&mut self.open, checkpoint, part.shard, part.offset + range.start, buffer)?;
        Ok(buffer)
    }

    /// Reads the bytes `range` of the data of `tensor`, decoded. If the tensor is prequantized, `range` must cover whole
    /// elements.
    ///
    /// # Errors
    /// [`Error::Io`], or [`crate::error::FileFault::Changed`].
    pub fn bytes(&mut self, checkpoint: &Checkpoint, tensor: &Tensor, range: Range<u64>) -> Result<&[u8]> {
        if range.end > tensor.bytes {
            return Err(Error::Bug(format!("read beyond the end of `{}`", tensor.name)));
        }
        if let Packing::Encoded(encoded) = tensor.packing {
            return self.encoded(checkpoint, (tensor, encoded), &range);
        }
        let bytes = length(&range)?;
        let (Some(scales), Some(float)) = (tensor.packing.scales(), Float::of(tensor.dtype)) else {
            return self.stored(checkpoint, &checkpoint.parts[tensor.part], range);
        };
        if bytes == 0 {
            return Ok(&[]);
        }
        let size = float.bytes() as u64;
        let cols = tensor.shape.last().copied().unwrap_or(1).max(1);
        let needed = tensor.packing.decode_range(cols, &(range.start / size..range.end / size));
        let (part, scale_part) = (&checkpoint.parts[tensor.part], &checkpoint.parts[scales]);
        let scale_bytes = scale_part.dtype.bits() / 8;
        let buffer = self.buffer.get(length(&needed.scales)? * scale_bytes as usize);
        let offset = scale_part.offset + needed.scales.start * scale_bytes;
        fill(&mut self.open, checkpoint, scale_part.shard, offset, buffer)?;
        self.scales.resize(length(&needed.scales)?, 0.0);
        widen_scales(scale_part.dtype, buffer, &mut self.scales);
        let codes = self.codes.get(length(&needed.codes)?);
        fill(&mut self.open, checkpoint, part.shard, part.offset + needed.codes.start, codes)?;
        let whole = needed.elements.start * size..needed.elements.end * size;
        let out = self.buffer.get(length(&whole)?);
        tensor.packing.decode(float, cols, &needed, codes, &self.scales, out);
        Ok(&out[length(&(whole.start..range.start))?..][..bytes])
    }

    /// Reads the same bytes as [`bytes`](Self::bytes), into a buffer of their own.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes).
    pub fn block(&mut self, checkpoint: &Checkpoint, tensor: &Tensor, range: Range<u64>) -> Result<Block> {
        if tensor.packing == Packing::Plain {
            let bytes = self.bytes(checkpoint, tensor, range)?.len();
            return Ok(Block { buffer: std::mem::take(&mut self.buffer), bytes });
        }
        let decoded = self.bytes(checkpoint, tensor, range)?;
        let mut buffer = PageBuffer::default();
        buffer.get(decoded.len()).copy_from_slice(decoded);
        Ok(Block { bytes: decoded.len(), buffer })
    }

    /// Reads the rows `rows` of `view`, row by row, as bytes of the tensor's element type.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes).
    pub fn rows(&mut self, checkpoint: &Checkpoint, view: View, rows: &Range<u64>) -> Result<&[u8]> {
        let tensor = &checkpoint.tensors[view.tensor];
        let size = tensor.dtype.bits() / 8;
        let (count, cols) = (length(rows)?, length(&(0..view.cols))?);
        if view.is_contiguous() || count == 0 {
            let first = view.offset + rows.start * view.row_stride;
            let elements = first..first + (rows.end - rows.start) * view.cols;
            return self.bytes(checkpoint, tensor, elements.start * size..elements.end * size);
        }
        let width = size as usize;
        let mut gathered = std::mem::take(&mut self.gathered);
        let out = gathered.get(count * cols * width);
        if view.col_stride == 1 {
            for (row, out) in rows.clone().zip(out.chunks_exact_mut(cols * width)) {
                let elements = view.row(row);
                out.copy_from_slice(self.bytes(checkpoint, tensor, elements.start * size..elements.end * size)?);
            }
        } else {
            // Transposed: each stored row holds one column of the view.
            let stride = length(&(0..view.row_stride))? * width;
            for column in 0..cols {
                let first = view.offset + rows.start * view.row_stride + column as u64 * view.col_stride;
                let after = first + (count as u64 - 1) * view.row_stride + 1;
                let found = self.bytes(checkpoint, tensor, first * size..after * size)?;
                for row in 0..count {
                    let place = (row * cols + column) * width;
                    out[place..place + width].copy_from_slice(&found[row * stride..row * stride + width]);
                }
            }
        }
        self.gathered = gathered;
        Ok(self.gathered.held(count * cols * width))
    }

    /// Reads the stored codes and scales of the rows `rows` of `view`, row by row, not decoded. The tensor must be
    /// prequantized, and each row must be contiguous and fill whole units of codes.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes).
    pub fn packed_rows(
        &mut self,
        checkpoint: &Checkpoint,
        view: View,
        rows: &Range<u64>,
    ) -> Result<(Vec<u8>, Vec<u8>)> {
        let tensor = &checkpoint.tensors[view.tensor];
        let (Some(scales), 1) = (tensor.packing.scales(), view.col_stride) else {
            return Err(Error::Bug(format!("`{}` has no contiguous rows of codes", tensor.name)));
        };
        let (codes_part, scale_part) = (&checkpoint.parts[tensor.part], &checkpoint.parts[scales]);
        let size = scale_part.dtype.bits() / 8;
        let (mut codes, mut found) = (Vec::new(), Vec::new());
        let rows_per_read = if view.is_contiguous() { length(rows)?.max(1) } else { 1 };
        for first in rows.clone().step_by(rows_per_read) {
            let elements = view.row(first).start..view.row(first + rows_per_read as u64 - 1).end;
            let needed = tensor.packing.decode_range(view.cols, &elements);
            codes.extend_from_slice(self.stored(checkpoint, codes_part, needed.codes)?);
            let bytes = needed.scales.start * size..needed.scales.end * size;
            found.extend_from_slice(self.stored(checkpoint, scale_part, bytes)?);
        }
        Ok((codes, found))
    }

    /// Calls `each` for every one of the `bands` of `view`, with its range of rows, its columns, and the bytes of its rows.
    /// Rows are transposed with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes), and those of `each`.
    pub fn bands(
        &mut self,
        (checkpoint, isa): (&Checkpoint, Isa),
        view: View,
        bands: &Range<u64>,
        mut each: impl FnMut(Range<u64>, &[Column], &[u8]) -> Result<()>,
    ) -> Result<()> {
        let matrix =
            view.matrix(checkpoint).ok_or_else(|| Error::Bug("a view that is not a matrix has no bands".to_owned()))?;
        let rows = rows_of(matrix, bands);
        let (mut row, mut band) = (std::mem::take(&mut self.row), std::mem::take(&mut self.band));
        let columns: &mut [Column] = band.elements(length(&(0..matrix.cols))?);
        let mut first = rows.start;
        let band_bytes = length(&(0..matrix.row_bytes()))? * BAND_ROWS;
        for source in self.rows(checkpoint, view, &rows)?.chunks(band_bytes) {
            band::load(isa, matrix.float, source, &mut row, columns);
            let after = (first + BAND_ROWS as u64).min(rows.end);
            each(first..after, columns, source)?;
            first = after;
        }
        (self.row, self.band) = (row, band);
        Ok(())
    }
}

//! Streaming a tensor's rows, a few at a time.
//!
//! The unit of work is the *band*: [`BAND_ROWS`] rows side by side, counted from the tensor's first row. Bands are read in
//! *chunks* of about as many bytes as the caller likes; what is computed of a band does not depend on that.

use std::fs::File;
use std::ops::Range;

use super::prequantized::{Packing, widen_scales};
use super::{Checkpoint, Part, Tensor, View};
use crate::container::file::{PageBuffer, read_at, read_soon};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::pool::Workers;
use crate::progress::Progress;
use crate::simd::vector::{BAND_ROWS, Column};
use crate::{band, simd::Isa};

/// Bytes of source that are read at a time, unless the caller says otherwise.
pub const CHUNK_BYTES: u64 = 1 << 20;

/// Bytes that may be held to save time, unless the caller says otherwise.
pub const HELD_BYTES: u64 = 320 << 20;

pub(crate) use crate::band::{cut, rows_of};

/// What every pass over a checkpoint needs.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// What is read.
    pub checkpoint: &'a Checkpoint,
    /// Who works.
    pub workers: &'a Workers,
    /// Who watches.
    pub progress: &'a Progress,
    /// With which instructions.
    pub isa: Isa,
    /// About how many bytes are read at a time.
    pub chunk_bytes: u64,
    /// Bytes of weights, or of what layers make of their inputs, that may be held to save reading and computing them again.
    pub held_bytes: u64,
}

/// Bytes of a tensor, held.
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

/// How far ahead of what is read the system is asked to read.
const AHEAD_BYTES: u64 = 16 << 20;

/// Reads of fewer bytes jump about, and say nothing of what comes next.
const LEAST_AHEAD_BYTES: u64 = 128 << 10;

/// Files that a reader keeps open: those of a weight and its scales, and of the weight before.
const OPEN_FILES: usize = 3;

/// One thread's means of reading a checkpoint: buffers, and the files it read last.
#[derive(Default)]
pub struct Reader {
    /// Shards and their files, the last one used first.
    open: Vec<(usize, File)>,
    buffer: PageBuffer,
    codes: PageBuffer,
    scales: Vec<f32>,
    gathered: PageBuffer,
    row: Vec<f32>,
    band: PageBuffer,
}

/// Fills `buffer` from `offset` of shard `shard`, one of `open` or opened for it.
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
    if bytes >= LEAST_AHEAD_BYTES {
        read_soon(&open[0].1, offset + AHEAD_BYTES, bytes);
    }
    Ok(())
}

fn length(range: &Range<u64>) -> Result<usize> {
    usize::try_from(range.end - range.start).map_err(|_| Error::Bug("read length".to_owned()))
}

impl Reader {
    /// The bytes `range` of the data of `part`, as they are stored.
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

    /// The bytes `range` of the data of `tensor`, decoded if it is packed: whole elements, then.
    ///
    /// # Errors
    /// [`Error::Io`], or [`crate::error::FileFault::Changed`].
    pub fn bytes(&mut self, checkpoint: &Checkpoint, tensor: &Tensor, range: Range<u64>) -> Result<&[u8]> {
        if range.end > tensor.bytes {
            return Err(Error::Bug(format!("read beyond the end of `{}`", tensor.name)));
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
        let request = tensor.packing.request(cols, &(range.start / size..range.end / size));
        let (part, scale_part) = (&checkpoint.parts[tensor.part], &checkpoint.parts[scales]);
        let scale_bytes = scale_part.dtype.bits() / 8;
        let buffer = self.buffer.get(length(&request.scales)? * scale_bytes as usize);
        let offset = scale_part.offset + request.scales.start * scale_bytes;
        fill(&mut self.open, checkpoint, scale_part.shard, offset, buffer)?;
        self.scales.resize(length(&request.scales)?, 0.0);
        widen_scales(scale_part.dtype, buffer, &mut self.scales);
        let codes = self.codes.get(length(&request.codes)?);
        fill(&mut self.open, checkpoint, part.shard, part.offset + request.codes.start, codes)?;
        let whole = request.elements.start * size..request.elements.end * size;
        let out = self.buffer.get(length(&whole)?);
        tensor.packing.decode(float, cols, &request, codes, &self.scales, out);
        Ok(&out[length(&(whole.start..range.start))?..][..bytes])
    }

    /// The same bytes, to keep.
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

    /// The elements of the rows `rows` of `view`, row after row, as bytes of the tensor's type.
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
            // Row by row of what is stored: each holds one column.
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

    /// The codes and the scales of the rows `rows` of `view`, as a packed tensor stores them, row after row. Its rows must
    /// follow each other in elements, and fill whole units of codes.
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
            return Err(Error::Bug(format!("`{}` is not packed by rows", tensor.name)));
        };
        let (codes_part, scale_part) = (&checkpoint.parts[tensor.part], &checkpoint.parts[scales]);
        let size = scale_part.dtype.bits() / 8;
        let (mut codes, mut found) = (Vec::new(), Vec::new());
        let at_once = if view.is_contiguous() { length(rows)?.max(1) } else { 1 };
        for first in rows.clone().step_by(at_once) {
            let elements = view.row(first).start..view.row(first + at_once as u64 - 1).end;
            let request = tensor.packing.request(view.cols, &elements);
            codes.extend_from_slice(self.stored(checkpoint, codes_part, request.codes)?);
            let bytes = request.scales.start * size..request.scales.end * size;
            found.extend_from_slice(self.stored(checkpoint, scale_part, bytes)?);
        }
        Ok((codes, found))
    }

    /// Calls `each` with every one of the `bands` of `view`: the range of its rows, the band, and
    /// the rows' bytes. They are laid side by side with the instructions of `isa`.
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
        let matrix = view.matrix(checkpoint).ok_or_else(|| Error::Bug("bands of what is no matrix".to_owned()))?;
        let rows = rows_of(matrix, bands);
        let (mut row, mut band) = (std::mem::take(&mut self.row), std::mem::take(&mut self.band));
        let side_by_side: &mut [Column] = band.elements(length(&(0..matrix.cols))?);
        let mut first = rows.start;
        let band_bytes = length(&(0..matrix.row_bytes()))? * BAND_ROWS;
        for source in self.rows(checkpoint, view, &rows)?.chunks(band_bytes) {
            band::load(isa, matrix.float, source, &mut row, side_by_side);
            let after = (first + BAND_ROWS as u64).min(rows.end);
            each(first..after, side_by_side, source)?;
            first = after;
        }
        (self.row, self.band) = (row, band);
        Ok(())
    }
}

//! Streaming a tensor's rows, a few at a time.
//!
//! The unit of work is the *band*: [`ROWS`] rows side by side, counted from the tensor's first row. Bands are read in
//! *chunks* of about as many bytes as the caller likes; what is computed of a band does not depend on that.

use std::fs::File;
use std::ops::Range;

use super::shard::{PageBuffer, read_at};
use super::{Checkpoint, Matrix, Tensor};
use crate::error::{Error, Result};
use crate::kernel::vector::{Lane, ROWS};
use crate::kernel::{Level, band};
use crate::progress::Progress;
use crate::work::Workers;

/// Bytes of source that are read at a time, unless the caller says otherwise.
pub const CHUNK_BYTES: u64 = 1 << 20;

/// Bands of a matrix, the last perhaps with fewer rows.
#[must_use]
pub fn bands(matrix: Matrix) -> u64 {
    matrix.rows.div_ceil(ROWS as u64)
}

/// Bands of about `chunk_bytes` bytes, at least one.
#[must_use]
pub fn chunk_bands(matrix: Matrix, chunk_bytes: u64) -> u64 {
    (chunk_bytes / (matrix.row_bytes() * ROWS as u64)).max(1)
}

/// Cuts `0..length` into ranges of `step`, the last perhaps shorter.
pub fn cut(length: u64, step: u64) -> impl Iterator<Item = Range<u64>> {
    (0..length.div_ceil(step)).map(move |at| at * step..((at + 1) * step).min(length))
}

/// The rows of a range of bands.
#[must_use]
pub fn rows_of(matrix: Matrix, bands: &Range<u64>) -> Range<u64> {
    bands.start * ROWS as u64..(bands.end * ROWS as u64).min(matrix.rows)
}

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
    pub level: Level,
    /// About how many bytes are read at a time.
    pub chunk_bytes: u64,
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

/// One thread's means of reading a checkpoint: a buffer, and the file it read last.
#[derive(Default)]
pub struct Reader {
    open: Option<(usize, File)>,
    buffer: PageBuffer,
    row: Vec<f32>,
    band: Vec<Lane>,
}

impl Reader {
    /// The bytes `range` of the data of `tensor`.
    ///
    /// # Errors
    /// [`Error::Io`], or [`crate::error::FileFault::Changed`].
    pub fn bytes(&mut self, checkpoint: &Checkpoint, tensor: &Tensor, range: Range<u64>) -> Result<&[u8]> {
        if range.end > tensor.bytes {
            return Err(Error::Bug(format!("read beyond the end of `{}`", tensor.name)));
        }
        let shard = &checkpoint.shards[tensor.shard];
        if self.open.as_ref().is_none_or(|(open, _)| *open != tensor.shard) {
            self.open = Some((tensor.shard, shard.file()?));
        }
        let Some((_, file)) = &self.open else { return Err(Error::Bug("no file is open".to_owned())) };
        let length = usize::try_from(range.end - range.start).map_err(|_| Error::Bug("read length".to_owned()))?;
        let buffer = self.buffer.get(length);
        read_at(file, &shard.path, buffer, tensor.offset + range.start)?;
        Ok(buffer)
    }

    /// The same bytes, to keep.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes).
    pub fn block(&mut self, checkpoint: &Checkpoint, tensor: &Tensor, range: Range<u64>) -> Result<Block> {
        let bytes = self.bytes(checkpoint, tensor, range)?.len();
        Ok(Block { buffer: std::mem::take(&mut self.buffer), bytes })
    }

    /// Calls `each` with every one of the `bands` of `tensor`: the range of its rows, the band, and the rows' bytes.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes), and those of `each`.
    pub fn bands(
        &mut self,
        checkpoint: &Checkpoint,
        tensor: &Tensor,
        matrix: Matrix,
        bands: &Range<u64>,
        mut each: impl FnMut(Range<u64>, &[Lane], &[u8]) -> Result<()>,
    ) -> Result<()> {
        let row_bytes = matrix.row_bytes();
        let rows = rows_of(matrix, bands);
        self.bytes(checkpoint, tensor, rows.start * row_bytes..rows.end * row_bytes)?;
        let cols = usize::try_from(matrix.cols).map_err(|_| Error::Bug("columns".to_owned()))?;
        let length = usize::try_from((rows.end - rows.start) * row_bytes).map_err(|_| Error::Bug("rows".to_owned()))?;
        let mut first = rows.start;
        let band_bytes = usize::try_from(row_bytes).map_err(|_| Error::Bug("row".to_owned()))? * ROWS;
        for source in self.buffer.get(length).chunks(band_bytes) {
            band::load(matrix.float, source, cols, &mut self.row, &mut self.band);
            let after = (first + ROWS as u64).min(rows.end);
            each(first..after, &self.band, source)?;
            first = after;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Float;

    #[test]
    fn bands_and_chunks_cover_every_row_once() {
        for rows in [1, 7, 8, 9, 64, 1_001] {
            let matrix = Matrix { rows, cols: 96, float: Float::BF16 };
            for chunk_bytes in [1, 1_536, 5_000, 1 << 30] {
                let mut reached = 0;
                for range in cut(bands(matrix), chunk_bands(matrix, chunk_bytes)) {
                    let rows = rows_of(matrix, &range);
                    assert_eq!(rows.start, reached);
                    reached = rows.end;
                }
                assert_eq!(reached, rows);
            }
        }
    }
}

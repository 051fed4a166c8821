//! The shape of a matrix, and the division of its rows into bands and chunks.

use std::ops::Range;

use crate::dtype::Float;
use crate::simd::vector::BAND_ROWS;

/// The shape of a matrix of floats.
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
    /// The number of elements.
    #[must_use]
    pub fn elements(self) -> u64 {
        self.rows * self.cols
    }

    /// The size of a row, in bytes.
    #[must_use]
    pub fn row_bytes(self) -> u64 {
        self.cols * self.float.bytes() as u64
    }
}

/// The number of bands of a matrix. The last band may have fewer rows.
#[must_use]
pub fn bands(matrix: Matrix) -> u64 {
    matrix.rows.div_ceil(BAND_ROWS as u64)
}

/// The size of a full band, in bytes of source.
#[must_use]
pub(crate) fn band_bytes(matrix: Matrix) -> u64 {
    matrix.row_bytes() * BAND_ROWS as u64
}

/// The number of bands per chunk of about `chunk_bytes` bytes; at least 1.
#[must_use]
pub fn chunk_bands(matrix: Matrix, chunk_bytes: u64) -> u64 {
    (chunk_bytes / band_bytes(matrix)).max(1)
}

/// Cuts `0..length` into ranges of length `step`. The last may be shorter.
pub fn cut(length: u64, step: u64) -> impl Iterator<Item = Range<u64>> {
    (0..length.div_ceil(step)).map(move |at| at * step..((at + 1) * step).min(length))
}

/// The rows of a range of bands.
#[must_use]
pub fn rows_of(matrix: Matrix, bands: &Range<u64>) -> Range<u64> {
    bands.start * BAND_ROWS as u64..(bands.end * BAND_ROWS as u64).min(matrix.rows)
}

#[cfg(test)]
mod tests {
    use super::*;

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

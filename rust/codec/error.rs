//! The squared error of stored rows.

use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column};

/// Squared error of one row as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowError {
    /// `Σ_j k_j (ŵ_j − w_j)²`
    pub weighted: f64,
    /// `Σ_j (ŵ_j − w_j)²`
    pub plain: f64,
}

/// Columns of which codecs without shorter groups sum squares in `f32`, before the sums continue in `f64`.
pub(crate) const SUM_COLUMNS: usize = 128;

kernel! {
    /// Error of each row of a band against `decoded`, in row order. Missing rows have none.
    ///
    /// Sums squares in `f32` over `block` columns and then in `f64`, like a codec that measures block by block.
    pub(crate) fn errors_of<V: Simd>(
        band: &[Column],
        k: &[f32],
        decoded: &[f32],
        block: usize,
    ) -> [RowError; BAND_ROWS] {
        let mut errors = [RowError::default(); BAND_ROWS];
        let cols = band.len();
        for (row, (error, decoded)) in errors.iter_mut().zip(decoded.chunks_exact(cols)).enumerate() {
            for ((columns, k), decoded) in band.chunks(block).zip(k.chunks(block)).zip(decoded.chunks(block)) {
                let (mut weighted, mut plain) = (0.0, 0.0);
                for ((w, k), decoded) in columns.iter().zip(k).zip(decoded) {
                    let off = decoded - w[row];
                    let square = off * off;
                    weighted += k * square;
                    plain += square;
                }
                error.weighted += f64::from(weighted);
                error.plain += f64::from(plain);
            }
        }
        errors
    }
}

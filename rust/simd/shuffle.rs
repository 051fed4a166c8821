//! Operations across lanes: transposes and reductions.
//!
//! All have a body in plain Rust. An instruction set overrides those that it is faster at.

use super::vector::{BAND_ROWS, Column, Vector};

/// `matrix`, transposed by one load and store per element.
#[inline(always)]
fn transpose<T: Copy + Default>(matrix: [[T; BAND_ROWS]; BAND_ROWS]) -> [[T; BAND_ROWS]; BAND_ROWS] {
    let mut transposed = [[T::default(); BAND_ROWS]; BAND_ROWS];
    for (row, elements) in matrix.iter().enumerate() {
        for (column, &element) in elements.iter().enumerate() {
            transposed[column][row] = element;
        }
    }
    transposed
}

/// Moves and compares elements across the lanes of vectors.
pub(crate) trait Shuffle: Vector {
    /// Lane `i` is the least lane of vector `i`. No lane may be NaN; which zero (±0) is returned is unspecified.
    #[must_use]
    #[inline(always)]
    fn reduce_min(vectors: [Self; BAND_ROWS]) -> Self {
        Self::load(vectors.map(|vector| {
            vector.store().into_iter().fold(f32::INFINITY, |least, lane| if lane < least { lane } else { least })
        }))
    }

    /// Lane `i` is the greatest lane of vector `i`. No lane may be NaN; which zero (±0) is returned is unspecified.
    #[must_use]
    #[inline(always)]
    fn reduce_max(vectors: [Self; BAND_ROWS]) -> Self {
        Self::load(vectors.map(|vector| {
            vector.store().into_iter().fold(f32::NEG_INFINITY, |most, lane| if lane > most { lane } else { most })
        }))
    }

    /// Transposes 8 × 8 bytes.
    #[must_use]
    #[inline(always)]
    fn transpose_u8(rows: [[u8; BAND_ROWS]; BAND_ROWS]) -> [[u8; BAND_ROWS]; BAND_ROWS] {
        transpose(rows)
    }

    /// Transposes 8 × 8 numbers.
    #[must_use]
    #[inline(always)]
    fn transpose_f32(rows: [Column; BAND_ROWS]) -> [Column; BAND_ROWS] {
        transpose(rows)
    }

    /// Transposes 8 × 8 numbers given as bits of bfloat16.
    #[must_use]
    #[inline(always)]
    fn transpose_bf16(rows: [[u16; BAND_ROWS]; BAND_ROWS]) -> [Column; BAND_ROWS] {
        std::array::from_fn(|column| std::array::from_fn(|row| f32::from_bits(u32::from(rows[row][column]) << 16)))
    }
}

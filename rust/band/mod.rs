//! Bands: transposed tiles of eight rows. Loads rows into a band, and sums over a band.

mod matrix;

pub(crate) use matrix::band_bytes;
pub use matrix::{Matrix, bands, chunk_bands, cut, rows_of};

use half::{bf16, f16};

use crate::dtype::{Float, bf16_bits};
use crate::simd::vector::{BAND_ROWS, Column};
use crate::simd::{Isa, kernel};

/// Number of columns whose squares are summed in `f32` before the sum is added to an `f64`. Part of the definition of an
/// energy: another number changes its bits.
const SUM_COLUMNS: usize = 64;

kernel! {
    /// Widens bfloat16 to `f32`: its bits are the upper half of the result.
    fn widen_bf16<V: Simd>(source: &[u16], out: &mut [f32]) {
        for (wide, &bits) in out.iter_mut().zip(source) {
            *wide = f32::from_bits(u32::from(bits) << 16);
        }
    }
}

/// As [`Float::widen`], with the instructions of `isa`.
///
/// # Panics
/// If `source` is not `out.len()` elements long or not aligned to the element.
pub(crate) fn widen(isa: Isa, float: Float, source: &[u8], out: &mut [f32]) {
    if float == Float::BF16 && !source.is_empty() {
        assert_eq!(source.len(), out.len() * float.bytes(), "widen: lengths differ");
        widen_bf16(isa, bytemuck::cast_slice(source), out);
    } else {
        float.widen(source, out);
    }
}

kernel! {
    fn append_bf16<V: Simd>(values: &[f32], out: &mut Vec<u8>) {
        let from = out.len();
        out.resize(from + values.len() * size_of::<bf16>(), 0);
        for (bytes, &value) in out[from..].as_chunks_mut().0.iter_mut().zip(values) {
            *bytes = bf16_bits(value).to_le_bytes();
        }
    }
}

/// As [`Float::append`], with the instructions of `isa`.
pub fn append(isa: Isa, float: Float, values: &[f32], out: &mut Vec<u8>) {
    if float == Float::BF16 {
        append_bf16(isa, values, out);
    } else {
        float.append(values, out);
    }
}

kernel! {
    /// Transposes eight contiguous rows.
    fn load_whole<V: Simd; T: Element>(source: &[T], band: &mut [Column]) {
        let cols = band.len();
        let rows: [&[T]; BAND_ROWS] = std::array::from_fn(|row| &source[row * cols..][..cols]);
        for (at, columns) in band.as_chunks_mut::<BAND_ROWS>().0.iter_mut().enumerate() {
            let row = |row: usize| rows[row].as_chunks().0[at];
            *columns = T::transpose::<V>([row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)]);
        }
    }
}

/// Loads up to [`BAND_ROWS`] rows into a band. `source` holds contiguous rows, each with as many elements as `band` has
/// columns. Missing rows become zero. `row` is scratch space.
///
/// Kernels are faster if no column of the band crosses a cache line.
///
/// # Panics
/// If `source` does not hold whole rows, holds more than [`BAND_ROWS`] of them, or is not aligned to the element.
pub fn load(isa: Isa, float: Float, source: &[u8], row: &mut Vec<f32>, band: &mut [Column]) {
    let cols = band.len();
    let row_bytes = cols * float.bytes();
    assert!(source.len().is_multiple_of(row_bytes) && source.len() <= BAND_ROWS * row_bytes, "band: not whole rows");
    if source.len() == BAND_ROWS * row_bytes && cols.is_multiple_of(BAND_ROWS) {
        match float {
            Float::F32 => load_whole::<f32>(isa, bytemuck::cast_slice(source), band),
            Float::F16 => load_whole::<f16>(isa, bytemuck::cast_slice(source), band),
            Float::BF16 => load_whole::<bf16>(isa, bytemuck::cast_slice(source), band),
        }
        return;
    }
    band.fill([0.0; BAND_ROWS]);
    row.resize(cols, 0.0);
    for (at, source) in source.chunks_exact(row_bytes).enumerate() {
        float.widen(source, row);
        for (lanes, &value) in band.iter_mut().zip(row.iter()) {
            lanes[at] = value;
        }
    }
}

/// Energy of one row: sums of squares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowEnergy {
    /// `Σ_j k_j w_j²`
    pub weighted: f64,
    /// `Σ_j w_j²`; non-finite if an element or its square is.
    pub plain: f64,
}

kernel! {
    /// Computes the energy of each row of a band, with the weights `k` of the columns.
    pub fn energy<V: Simd>(band: &[Column], k: &[f32]) -> [RowEnergy; BAND_ROWS] {
        let mut rows = [RowEnergy::default(); BAND_ROWS];
        for (band, k) in band.chunks(SUM_COLUMNS).zip(k.chunks(SUM_COLUMNS)) {
            let (mut weighted, mut plain) = (V::splat(0.0), V::splat(0.0));
            for (&w, &k) in band.iter().zip(k) {
                let w = V::load(w);
                let square = w.mul(w);
                plain = plain.add(square);
                weighted = weighted.add(V::splat(k).mul(square));
            }
            let (weighted, plain) = (weighted.store(), plain.store());
            for (row, sum) in rows.iter_mut().enumerate() {
                sum.weighted += f64::from(weighted[row]);
                sum.plain += f64::from(plain[row]);
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_isa_appends_what_float_append_does() {
        let high = [0, 0x8000, 0x3f80, 0xbf81, 0x7f7f, 0x7f80, 0xff80, 0x7fc0, 1, 0x0080];
        let low = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        let values: Vec<f32> = high.iter().flat_map(|&high| low.map(|low| f32::from_bits(high << 16 | low))).collect();
        for float in [Float::BF16, Float::F16, Float::F32] {
            for length in [0, 1, 7, 32, values.len()] {
                let mut expected = vec![7];
                float.append(&values[..length], &mut expected);
                for isa in Isa::available() {
                    let mut found = vec![7];
                    append(isa, float, &values[..length], &mut found);
                    assert_eq!(found, expected, "{float:?}, {length}, {isa:?}");
                }
            }
        }
    }

    #[test]
    fn bands_hold_the_transposed_rows_on_every_path() {
        for (rows, cols) in [(8, 64), (8, 24), (8, 12), (5, 64), (1, 8)] {
            for float in [Float::BF16, Float::F16, Float::F32] {
                let values: Vec<f32> = (0..rows * cols).map(|at| (at * 2_654 % 4_093) as f32 - 2_047.0).collect();
                let mut source = Vec::new();
                float.append(&values, &mut source);
                for isa in Isa::available() {
                    // Previous contents must not show.
                    let (mut row, mut band) = (vec![7.0; 99], vec![[7.0; BAND_ROWS]; cols]);
                    load(isa, float, &source, &mut row, &mut band);
                    for (column, lanes) in band.iter().enumerate() {
                        for (row, &value) in lanes.iter().enumerate() {
                            let expected = if row < rows { float.round(values[row * cols + column]) } else { 0.0 };
                            assert_eq!(value, expected, "{float:?}, {rows} x {cols}, {isa:?}: [{row}, {column}]");
                        }
                    }
                }
            }
        }
    }
}

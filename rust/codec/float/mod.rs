//! Codes that are floats of 4 or 8 bits, with a scale per row or per group: the layouts of compressed-tensors.
//!
//! | module | codes | scales |
//! |---|---|---|
//! | [`fp8`] | E4M3 | one per row, in the weights' element type |
//! | [`mxfp4`] | E2M1 | one per 32 codes: a power of two |
//! | [`nvfp4`] | E2M1 | one per 16 codes: E4M3, divided by a constant of the matrix |
//! | [`groups`] | | the encoder of MXFP4 and NVFP4 |
//! | [`minifloat`] | | rounding to E4M3 and E2M1 |
//!
//! `fast` takes the scale of the format's own rule, and `normal` the one with the least weighted error among stored scales
//! near it. Codes are the nearest to the weights, ties to the even code, so the rule's scale is plain rounding to nearest.
//! It is among the scales of `normal`, which is therefore never worse.

pub(crate) mod fp8;
pub(super) mod groups;
mod minifloat;
pub(crate) mod mxfp4;
pub(crate) mod nvfp4;

use minifloat::Minifloat;

use crate::simd::vector::{BAND_ROWS, Column, Simd};

/// The stored form of the rows of a band, row after row. Buffers that a thread reuses between bands.
#[derive(Default)]
struct FloatRows {
    /// One code per weight.
    codes: Vec<u8>,
    /// The scales, as this codec stores them.
    scales: Vec<u8>,
}

/// The codes of eight columns, which are the nearest multiples of `scale`, transposed to rows.
#[inline(always)]
fn codes_of<V: Simd>(format: Minifloat, w: &[Column; BAND_ROWS], scale: V) -> [[u8; BAND_ROWS]; BAND_ROWS] {
    let mut columns = [[0; BAND_ROWS]; BAND_ROWS];
    for (&w, codes) in w.iter().zip(&mut columns) {
        *codes = format.codes(format.round(V::load(w).abs().div(scale)), w);
    }
    V::transpose_u8(columns)
}

/// Writes the codes of the columns `w` to `out`, from column `first` on. Rows have `cols` columns.
#[inline(always)]
fn put_codes<V: Simd>(format: Minifloat, w: &[Column], scale: V, out: &mut [u8], (first, cols): (usize, usize)) {
    let (eights, rest) = w.as_chunks();
    for (at, w) in eights.iter().enumerate() {
        let rows = codes_of(format, w, scale);
        for (row, codes) in rows.iter().enumerate() {
            out[row * cols + first + at * BAND_ROWS..][..BAND_ROWS].copy_from_slice(codes);
        }
    }
    if !rest.is_empty() {
        let mut last = [[0.0; BAND_ROWS]; BAND_ROWS];
        last[..rest.len()].copy_from_slice(rest);
        let rows = codes_of(format, &last, scale);
        for (row, codes) in rows.iter().enumerate() {
            let to = row * cols + first + eights.len() * BAND_ROWS;
            out[to..][..rest.len()].copy_from_slice(&codes[..rest.len()]);
        }
    }
}

//! MXFP4: E2M1 codes in groups of 32 with a scale that is a power of two. `w = e2m1 · 2^(scale − 127)`.
//!
//! A matrix has two parts: `codes`, U32 `[rows, cols / 8]`, the first code in the lowest bits; and `scales`, U8
//! `[rows, cols / 32]`, of type E8M0. The codes are the same bytes as U8 `[rows, cols / 2]`, which other formats call them.

use super::groups::{self, EncodedGroups, GroupScale};
use crate::band::Matrix;
use crate::codec::{
    Band, Bits, Codec, Context, Effort, Encode, Extent, Metric, PartSpec, PassedRows, RowError, Rows, Scheme,
};
use crate::dtype::{Dtype, Float, e8m0};
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column, Simd};

#[derive(Debug)]
pub(in crate::codec) struct Mxfp4;

/// The only scheme, with the position in the registry [`CODECS`](crate::codec::CODECS).
pub(crate) const MXFP4_SCHEME: Scheme = Scheme::new(2, 0);

/// Codes per scale.
const GROUP: usize = 32;

/// Scales of type E8M0.
struct PowerOfTwo;

impl GroupScale for PowerOfTwo {
    /// From `2^−126`, the least normal `f32`, to `2^125`, with which 6 is still finite.
    const CODES: std::ops::RangeInclusive<u8> = 1..=252;

    /// Half of the rule's scale clips the largest weights, which pays if the others matter more. Twice that scale never does:
    /// among the magnitudes up to 7 times the rule's scale, all its values are values of the rule's.
    const NEAR: &'static [i8] = &[0, -1];

    /// The rule of compressed-tensors: the largest magnitude becomes at least 3.5 and less than 7, of which 6 is the
    /// largest value. This is the power of two below the largest magnitude, above if that is at least 1.75 of it, less 2 in
    /// the exponent.
    #[inline(always)]
    fn rule<V: Simd>(largest: V) -> [u8; BAND_ROWS] {
        let (largest, mut codes) = (largest.store(), [0; BAND_ROWS]);
        for row in 0..BAND_ROWS {
            // The carry out of the mantissa increments the exponent. The sign bit is clear.
            let exponent = (largest[row].to_bits() + (1 << 21)) >> 23;
            codes[row] = exponent.saturating_sub(2) as u8;
        }
        codes
    }

    #[inline(always)]
    fn scale(code: u8) -> f32 {
        f32::from_bits(u32::from(code) << 23)
    }
}

kernel! {
    fn encode_mxfp4<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<EncodedGroups<'_>>,
    ) -> [RowError; BAND_ROWS] {
        groups::encode::<W, PowerOfTwo, GROUP>(band, k, effort, out)
    }
}

impl Codec for Mxfp4 {
    fn schemes(&self) -> &'static [Scheme] {
        &[MXFP4_SCHEME]
    }

    fn spell(&self, _scheme: Scheme) -> String {
        "mxfp4".to_owned()
    }

    fn parse(&self, text: &str) -> Option<Scheme> {
        (text == "mxfp4").then_some(MXFP4_SCHEME)
    }

    fn block(&self, _scheme: Scheme, _cols: u64) -> u64 {
        GROUP as u64
    }

    fn blocks(&self) -> &'static str {
        "groups of 32"
    }

    fn code_bits(&self, _scheme: Scheme) -> Bits {
        Bits::whole(4)
    }

    fn parts(&self, _scheme: Scheme, matrix: Matrix) -> Vec<PartSpec> {
        let per_row = |kind, dtype, width| PartSpec { kind, dtype, extent: Extent::PerRow(width) };
        vec![per_row("codes", Dtype::U32, matrix.cols / 8), per_row("scales", Dtype::U8, matrix.cols / GROUP as u64)]
    }

    fn row_of(&self, _scheme: Scheme, part: &dyn Fn(&str) -> Option<(Dtype, u64)>) -> Option<(u64, Float)> {
        groups::row_of(part)
    }

    fn decode(&self, _scheme: Scheme, _of: Rows, parts: &[&[u8]], out: &mut [f32]) {
        let [codes, scales] = parts else { unreachable!("a matrix has two parts") };
        groups::decode(GROUP, (codes, scales), e8m0, out);
    }

    fn encoder(&self) -> Option<&dyn Encode> {
        Some(self)
    }

    fn pass_through(&self, _scheme: Scheme, _float: Float, rows: PassedRows<'_>, parts: &mut [Vec<u8>]) {
        parts[0].extend_from_slice(rows.codes);
        parts[1].extend_from_slice(rows.scales);
    }
}

impl Encode for Mxfp4 {
    fn encode(
        &self,
        _scheme: Scheme,
        context: &mut Context<'_>,
        band: Band<'_>,
        metric: &Metric<'_>,
        parts: &mut [Vec<u8>],
    ) -> [RowError; BAND_ROWS] {
        groups::append((encode_mxfp4, GROUP), context, band, metric, parts)
    }

    fn errors(
        &self,
        schemes: &[Scheme],
        context: &mut Context<'_>,
        band: Band<'_>,
        metric: &Metric<'_>,
    ) -> Vec<[RowError; BAND_ROWS]> {
        vec![groups::errors_only((encode_mxfp4, GROUP), context, band, metric); schemes.len()]
    }
}

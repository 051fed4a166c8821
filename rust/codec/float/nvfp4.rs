//! NVFP4: E2M1 codes in groups of 16 with scales of type E4M3. `w = e2m1 · scale / global_scale`.
//!
//! A matrix has three parts: `codes`, U8 `[rows, cols / 2]`, the even column in the lower half of a byte; `scales`,
//! `F8_E4M3` `[rows, cols / 16]`; and `global_scale`, F32 `[1]`.

use super::groups::{self, EncodedGroups, GroupScale};
use super::minifloat::E4M3;
use crate::band::Matrix;
use crate::codec::{Band, Bits, Codec, Context, Effort, Encode, Extent, Metric, PartSpec, RowError, Rows, Scheme};
use crate::dtype::{Dtype, Float, Float8};
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column, Simd};

#[derive(Debug)]
pub(in crate::codec) struct Nvfp4;

/// The only scheme, with the position in the registry [`CODECS`](crate::codec::CODECS).
pub(crate) const NVFP4_SCHEME: Scheme = Scheme::new(3, 0);

/// Codes per scale.
const GROUP: usize = 16;

/// The global scale of every matrix.
///
/// It is a constant rather than a function of the largest weight: tensors that a runtime fuses must have the same one, and
/// bands are encoded before the other weights are known. With 256, groups whose largest magnitude lies between 4 · 10⁻⁴ and
/// 10.5 have scales that are normal in E4M3. Larger weights are clipped, and smaller ones have coarser scales; the measured
/// errors include both.
const GLOBAL_SCALE: u32 = 256;

/// Scales of type E4M3, divided by `BY`.
pub(in crate::codec) struct E4m3Scale<const BY: u32>;

impl<const BY: u32> GroupScale for E4m3Scale<BY> {
    /// All positive numbers: the next code is NaN.
    const CODES: std::ops::RangeInclusive<u8> = 1..=0x7e;

    /// Eight codes are a factor of 2, so these scales lie between 0.7 and 1.8 of the rule's. With 1.5 of it, the largest
    /// weight becomes 4 rather than 6, and the values next to it are closer.
    const NEAR: &'static [i8] = &[0, 1, 2, 3, 4, 5, 6, -1, -2, -3];

    /// The largest magnitude becomes 6.
    #[inline(always)]
    fn rule<V: Simd>(largest: V) -> [u8; BAND_ROWS] {
        let scale = largest.div(V::splat(6.0)).mul(V::splat(BY as f32));
        E4M3.codes(E4M3.round(scale), [0.0; BAND_ROWS])
    }

    #[inline(always)]
    fn scale(code: u8) -> f32 {
        // Exponent and mantissa are those of an `f32`, except for the bias of the exponent.
        const OF_BITS: f32 = f32::from_bits((127 + 127 - 7) << 23);
        f32::from_bits(u32::from(code) << 20) * (OF_BITS / BY as f32)
    }
}

kernel! {
    fn encode_nvfp4<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<EncodedGroups<'_>>,
    ) -> [RowError; BAND_ROWS] {
        groups::encode::<W, E4m3Scale<GLOBAL_SCALE>, GROUP>(band, k, effort, out)
    }
}

impl Codec for Nvfp4 {
    fn schemes(&self) -> &'static [Scheme] {
        &[NVFP4_SCHEME]
    }

    fn spell(&self, _scheme: Scheme) -> String {
        "nvfp4".to_owned()
    }

    fn parse(&self, text: &str) -> Option<Scheme> {
        (text == "nvfp4").then_some(NVFP4_SCHEME)
    }

    fn block(&self, _scheme: Scheme, _cols: u64) -> u64 {
        GROUP as u64
    }

    fn blocks(&self) -> &'static str {
        "groups of 16"
    }

    fn code_bits(&self, _scheme: Scheme) -> Bits {
        Bits::whole(4)
    }

    fn parts(&self, _scheme: Scheme, matrix: Matrix) -> Vec<PartSpec> {
        let per_row = |kind, dtype, width| PartSpec { kind, dtype, extent: Extent::PerRow(width) };
        vec![
            per_row("codes", Dtype::U8, matrix.cols / 2),
            per_row("scales", Dtype::F8_E4M3, matrix.cols / GROUP as u64),
            PartSpec { kind: "global_scale", dtype: Dtype::F32, extent: Extent::Fixed(vec![1]) },
        ]
    }

    fn row_of(&self, _scheme: Scheme, part: &dyn Fn(&str) -> Option<(Dtype, u64)>) -> Option<(u64, Float)> {
        groups::row_of(part)
    }

    fn fixed(&self, _scheme: Scheme, _matrix: Matrix, _part: &str) -> Vec<u8> {
        (GLOBAL_SCALE as f32).to_le_bytes().to_vec()
    }

    fn decode(&self, _scheme: Scheme, _of: Rows, parts: &[&[u8]], out: &mut [f32]) {
        let [codes, scales, global] = parts else { unreachable!("a matrix has three parts") };
        let global = f32::from_le_bytes(*global.first_chunk().expect("a number"));
        let values = Float8::E4M3.values();
        groups::decode(GROUP, (codes, scales), |code| values[usize::from(code)] / global, out);
    }

    fn encoder(&self) -> Option<&dyn Encode> {
        Some(self)
    }
}

impl Encode for Nvfp4 {
    fn encode(
        &self,
        _scheme: Scheme,
        context: &mut Context<'_>,
        band: Band<'_>,
        metric: &Metric<'_>,
        parts: &mut [Vec<u8>],
    ) -> [RowError; BAND_ROWS] {
        groups::append((encode_nvfp4, GROUP), context, band, metric, parts)
    }

    fn errors(
        &self,
        schemes: &[Scheme],
        context: &mut Context<'_>,
        band: Band<'_>,
        metric: &Metric<'_>,
    ) -> Vec<[RowError; BAND_ROWS]> {
        vec![groups::errors_only((encode_nvfp4, GROUP), context, band, metric); schemes.len()]
    }
}

//! FP8 with a scale per row: `w = e4m3 · scale`.
//!
//! A matrix has two parts: `codes`, `F8_E4M3` `[rows, cols]`, and `scales` `[rows, 1]`, in the weights' element type.

use super::minifloat::E4M3;
use super::{FloatRows, put_codes};
use crate::band::{Matrix, append};
use crate::codec::affine::grid::RowSums;
use crate::codec::{
    Band, Bits, Codec, Context, Effort, Encode, Extent, Metric, PartSpec, PassedRows, RowError, Rows, SUM_COLUMNS,
    Scheme,
};
use crate::dtype::{Dtype, Float, Float8};
use crate::simd::batch::Batch;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column, Simd};

#[derive(Debug)]
pub(in crate::codec) struct Fp8;

/// The only scheme, with the position in the registry [`CODECS`](crate::codec::CODECS).
pub(crate) const FP8_SCHEME: Scheme = Scheme::new(4, 0);

/// The scales to try, in units of the rule's. The first is the rule.
///
/// The spacing of codes doubles with each power of two, so twice a scale has nearly the same codes: all that matters is
/// where in the factor of 2 the scale lies, and whether the largest weights are clipped.
const RATIOS: [f32; 10] = [1.0, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875, 0.9375, 0.96875];

/// The scales of a row of the weights' largest magnitude `largest`, as stored: the largest weight becomes 448 by the rule.
/// They are positive; 1 if all weights are zero.
#[inline(always)]
fn scales<V: Simd>(largest: V, store: Float) -> [V; RATIOS.len()] {
    let zero = V::splat(0.0);
    let (by_rule, least) = (largest.div(V::splat(E4M3.max)), V::splat(store.outward(0.0)));
    let mut scales = [zero; RATIOS.len()];
    for (scale, &ratio) in scales.iter_mut().zip(&RATIOS) {
        let stored = by_rule.mul(V::splat(ratio)).round_to(store).max(least);
        *scale = stored.select(zero.lt(largest), V::splat(1.0));
    }
    scales
}

/// The sums of errors of the codes nearest to `band` on each of `scales`.
#[inline(always)]
fn errors<W: Batch>(band: &[Column], k: &[f32], scales: &[W::Part]) -> [RowSums; RATIOS.len()] {
    let mut sums = [RowSums::ZERO; RATIOS.len()];
    for (w, k) in band.chunks(SUM_COLUMNS).zip(k.chunks(SUM_COLUMNS)) {
        for (scales, sums) in scales.chunks(W::PARTS).zip(sums.chunks_mut(W::PARTS)) {
            let scale = W::concat(scales);
            let (mut weighted, mut plain) = (W::splat(0.0), W::splat(0.0));
            for (&w, &k) in w.iter().zip(k) {
                let w = W::broadcast(w);
                let w = w.max(W::splat(0.0).sub(w));
                let off = E4M3.round(w.div(scale)).mul(scale).sub(w);
                let square = off.mul(off);
                weighted = weighted.add(W::splat(k).mul(square));
                plain = plain.add(square);
            }
            for (at, sums) in sums.iter_mut().enumerate() {
                sums.add((weighted.extract(at), plain.extract(at)));
            }
        }
    }
    sums
}

kernel! {
    /// Encodes a band: the scale and the error of each row. Writes the codes of [`BAND_ROWS`] rows to `codes`, if any.
    ///
    /// `k` weighs the columns; none may be negative.
    fn encode_fp8<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], store: Float, effort: Effort, codes: Option<&mut [u8]>,
    ) -> (Column, [RowError; BAND_ROWS]) {
        let mut largest = V::splat(0.0);
        for &w in band {
            largest = V::load(w).abs().max(largest);
        }
        let scales = scales(largest, store);
        let count = match effort {
            Effort::Fast => 1,
            Effort::Normal | Effort::High => scales.len(),
        };
        let sums = errors::<W>(band, k, &scales[..count]);
        let (mut best_scales, mut best_errors) = (scales[0].store(), sums[0].rows());
        for (scale, sums) in scales[..count].iter().zip(&sums).skip(1) {
            let (scale, errors) = (scale.store(), sums.rows());
            for row in 0..BAND_ROWS {
                if errors[row].weighted < best_errors[row].weighted {
                    (best_scales[row], best_errors[row]) = (scale[row], errors[row]);
                }
            }
        }
        if let Some(codes) = codes {
            put_codes(E4M3, band, V::load(best_scales), codes, (0, band.len()));
        }
        (best_scales, best_errors)
    }
}

impl Codec for Fp8 {
    fn schemes(&self) -> &'static [Scheme] {
        &[FP8_SCHEME]
    }

    fn spell(&self, _scheme: Scheme) -> String {
        "fp8".to_owned()
    }

    fn parse(&self, text: &str) -> Option<Scheme> {
        (text == "fp8").then_some(FP8_SCHEME)
    }

    fn block(&self, _scheme: Scheme, _cols: u64) -> u64 {
        SUM_COLUMNS as u64
    }

    fn blocks(&self) -> &'static str {
        "rows of any length"
    }

    fn fits(&self, _scheme: Scheme, cols: u64) -> bool {
        cols > 0
    }

    fn code_bits(&self, _scheme: Scheme) -> Bits {
        Bits::whole(8)
    }

    fn parts(&self, _scheme: Scheme, matrix: Matrix) -> Vec<PartSpec> {
        let per_row = |kind, dtype, width| PartSpec { kind, dtype, extent: Extent::PerRow(width) };
        vec![per_row("codes", Dtype::F8_E4M3, matrix.cols), per_row("scales", matrix.float.dtype(), 1)]
    }

    fn row_of(&self, _scheme: Scheme, part: &dyn Fn(&str) -> Option<(Dtype, u64)>) -> Option<(u64, Float)> {
        Some((part("codes")?.1, Float::of(part("scales")?.0)?))
    }

    fn decode(&self, _scheme: Scheme, of: Rows, parts: &[&[u8]], out: &mut [f32]) {
        let [codes, stored] = parts else { unreachable!("a matrix has two parts") };
        let mut scales = vec![0.0; out.len() / of.cols];
        of.float.widen(stored, &mut scales);
        let values = Float8::E4M3.values();
        for ((out, codes), scale) in out.chunks_exact_mut(of.cols).zip(codes.chunks_exact(of.cols)).zip(scales) {
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = values[usize::from(code)] * scale;
            }
        }
    }

    fn encoder(&self) -> Option<&dyn Encode> {
        Some(self)
    }

    /// Codes are E4M3, with one scale per row or one for all rows.
    fn pass_through(&self, _scheme: Scheme, float: Float, rows: PassedRows<'_>, parts: &mut [Vec<u8>]) {
        parts[0].extend_from_slice(rows.codes);
        let repeats = rows.rows * float.bytes() / rows.scales.len().max(1);
        parts[1].extend(rows.scales.repeat(repeats));
    }
}

impl Encode for Fp8 {
    fn encode(
        &self,
        _scheme: Scheme,
        context: &mut Context<'_>,
        band: Band<'_>,
        metric: &Metric<'_>,
        parts: &mut [Vec<u8>],
    ) -> [RowError; BAND_ROWS] {
        let (cols, k) = (band.columns.len(), metric.importance());
        assert!(cols > 0 && k.len() == cols, "encode: shapes");
        let &mut Context { isa, effort, float, .. } = context;
        let rows: &mut FloatRows = context.scratch.of();
        rows.codes.resize(BAND_ROWS * cols, 0);
        let (scales, errors) = encode_fp8(isa, band.columns, k, float, effort, Some(&mut rows.codes));
        parts[0].extend_from_slice(&rows.codes[..band.rows * cols]);
        append(isa, float, &scales[..band.rows], &mut parts[1]);
        errors
    }

    fn errors(
        &self,
        schemes: &[Scheme],
        context: &mut Context<'_>,
        band: Band<'_>,
        metric: &Metric<'_>,
    ) -> Vec<[RowError; BAND_ROWS]> {
        let (cols, k) = (band.columns.len(), metric.importance());
        assert!(cols > 0 && k.len() == cols, "errors: shapes");
        let (_, errors) = encode_fp8(context.isa, band.columns, k, context.float, context.effort, None);
        vec![errors; schemes.len()]
    }
}

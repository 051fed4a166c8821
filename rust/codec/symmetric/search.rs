//! The scale of a group, and its codes.
//!
//! A group is stored as a scale `s` and codes `q` from `−Q` to `Q − 1`, `Q = 2^(bits − 1)`. A code decodes to `q · s`. There is
//! one code more below zero than above, so the sign of `s` matters: with a negative scale the additional code lies above zero.
//!
//! The search minimises the weighted error `Σ_j k_j (q_j s − w_j)²`. It starts from scales of both signs that cover the group's
//! range, or clip it by the shares of [`CLIPS`]. The codes of each give the least-squares scale in closed form: with `t = w / s`
//! and residual `e = t − q`,
//!
//! ```text
//! s' = s (1 + β),   β = Σ k q e / Σ k q²,   error' = s² (Σ k e² − β Σ k q e)
//! ```
//!
//! The sums are over residuals, so nothing cancels in `f32`. The best two scales are fitted once more, rounded to both stored
//! neighbours, and measured as stored. The scale of round-to-nearest is one of the candidates, so the result is never worse.

use crate::codec::affine::grid::RowSums;
use crate::codec::{RowError, SUM_COLUMNS};
use crate::dtype::Float;
use crate::simd::batch::{Batch, MAX_PARTS};
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column, Lanes, Simd, Vector};

/// The initial scales of the search, as shares of the scale that covers the whole group, in units of 10⁻³: one list per code
/// width, in the order of [`super::BITS`].
///
/// They cover the shares at which a search over all scales found the best ones, in groups of SmolLM2-135M's weights.
const CLIPS: [&[u16]; 6] = [
    &[260, 310, 360, 410, 470, 540, 640, 800],
    &[480, 550, 620, 690, 770, 860, 1000],
    &[660, 730, 800, 870, 940, 1000],
    &[800, 860, 920, 960, 1000],
    &[870, 910, 940, 970, 1000, 1020],
    &[960, 975, 987, 1000, 1012, 1025],
];

/// Encoded rows of a band, row after row.
pub(super) struct EncodedRows<'a> {
    /// One code per weight, plus `Q`.
    pub codes: &'a mut [u8],
    /// One scale per group.
    pub scales: &'a mut [f32],
}

/// The codes of a group, and how to find its scale.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    /// Weights per scale.
    pub group: usize,
    /// `Q`, half of the number of codes.
    pub half: u8,
    /// Element type of the stored scale.
    pub store: Float,
    /// The initial scales of the search; empty for round-to-nearest.
    pub clips: &'static [u16],
}

/// The initial scales of the search for codes of the width at position `at` of [`super::BITS`].
pub(super) fn clips(at: usize) -> &'static [u16] {
    CLIPS[at]
}

/// A scale of each row, and its weighted error.
#[derive(Clone, Copy)]
struct CandidateScale<V> {
    error: V,
    scale: V,
}

impl<V: Simd> CandidateScale<V> {
    #[inline(always)]
    fn none() -> Self {
        Self { error: V::splat(f32::INFINITY), scale: V::splat(1.0) }
    }

    #[inline(always)]
    fn select(self, mask: V::Mask, other: Self) -> Self {
        Self { error: self.error.select(mask, other.error), scale: self.scale.select(mask, other.scale) }
    }

    #[inline(always)]
    fn or_better(self, other: Self) -> Self {
        other.select(other.error.lt(self.error), self)
    }
}

/// A value for each scale of a batch. Only the first [`Batch::PARTS`] are used.
type PerPart<T> = [T; MAX_PARTS];

/// The codes of weights on scales of which it has the reciprocals.
#[derive(Clone, Copy)]
pub(super) struct Codes<W> {
    reciprocal: W,
    half: W,
    max_code: W,
}

impl<W: Batch> Codes<W> {
    #[inline(always)]
    pub(super) fn new(scale: W, half: u8) -> Self {
        let half = f32::from(half);
        let reciprocal = W::splat(1.0).div(scale);
        Self { reciprocal, half: W::splat(half), max_code: W::splat(2.0 * half - 1.0) }
    }

    /// The weight in steps of the scale, and its code.
    #[inline(always)]
    pub(super) fn of(self, w: W) -> (W, W) {
        let steps = w.mul(self.reciprocal);
        (steps, steps.add(self.half).code(self.max_code).sub(self.half))
    }
}

#[inline(always)]
fn concat<W: Batch>(scales: &PerPart<W::Part>) -> W {
    W::concat(&scales[..W::PARTS])
}

/// The least-squares scales for the codes on each of `scales`, and their errors.
#[inline(always)]
fn fit<W: Batch>(w: &[Column], k: &[f32], scales: &PerPart<W::Part>, half: u8) -> PerPart<CandidateScale<W::Part>> {
    let codes = Codes::new(concat::<W>(scales), half);
    let [mut q2, mut eq, mut e2] = [W::splat(0.0); 3];
    for (&w, &k) in w.iter().zip(k) {
        let (steps, q) = codes.of(W::broadcast(w));
        let (k, e) = (W::splat(k), steps.sub(q));
        let kq = k.mul(q);
        q2 = q2.add(kq.mul(q));
        eq = eq.add(kq.mul(e));
        e2 = e2.add(k.mul(e).mul(e));
    }
    let mut fitted = [CandidateScale::none(); MAX_PARTS];
    for at in 0..W::PARTS {
        let (q2, eq, e2, scale) = (q2.extract(at), eq.extract(at), e2.extract(at), scales[at]);
        let (zero, one) = (W::Part::splat(0.0), W::Part::splat(1.0));
        let beta = eq.div(q2).select(zero.lt(q2), zero);
        let residual = e2.sub(beta.mul(eq)).max(zero);
        // The square of a scale may underflow where the error does not.
        let error = residual.mul(scale).mul(scale);
        let fitted_scale = scale.mul(one.add(beta));
        let is_valid = zero.lt(one.add(beta));
        fitted[at] = CandidateScale { error, scale: fitted_scale }.select(is_valid, CandidateScale::none());
    }
    fitted
}

/// `candidate` where weights can be divided by its scale.
#[inline(always)]
fn or_none<V: Simd>(candidate: CandidateScale<V>) -> CandidateScale<V> {
    let reciprocal = V::splat(1.0).div(candidate.scale).abs();
    candidate.select(reciprocal.lt(V::splat(f32::INFINITY)), CandidateScale::none())
}

/// The errors of the stored `scales`.
#[inline(always)]
fn measure<W: Batch>(w: &[Column], k: &[f32], scales: &PerPart<W::Part>, half: u8) -> PerPart<CandidateScale<W::Part>> {
    let scale = concat::<W>(scales);
    let codes = Codes::new(scale, half);
    let mut error = W::splat(0.0);
    for (&w, &k) in w.iter().zip(k) {
        let w = W::broadcast(w);
        let off = codes.of(w).1.mul(scale).sub(w);
        error = error.add(W::splat(k).mul(off.mul(off)));
    }
    let mut measured = [CandidateScale::none(); MAX_PARTS];
    for at in 0..W::PARTS {
        // The error of an infinite scale is NaN or infinite, and less than no other.
        measured[at] = or_none(CandidateScale { error: error.extract(at), scale: scales[at] });
    }
    measured
}

/// The least and the greatest element of each row.
#[inline(always)]
fn range<V: Vector>(w: &[Column]) -> (V, V) {
    let mut range = (V::splat(0.0), V::splat(0.0));
    for &w in w {
        let w = V::load(w);
        range = (w.min(range.0), w.max(range.1));
    }
    range
}

/// The scale of round-to-nearest: the largest magnitude lies half a step beyond the largest code, as in compressed-tensors.
/// Where the stored type cannot hold it, the scale is 1 and the codes are those of (nearly) zero.
#[inline(always)]
fn plain_scale<V: Simd>((low, high): (V, V), grid: Grid) -> V {
    let largest = high.max(low.abs());
    let scale = largest.div(V::splat(f32::from(grid.half) - 0.5)).round_to(grid.store);
    or_none(CandidateScale { error: V::splat(0.0), scale }).scale
}

/// The stored scale with the least weighted error that the search finds.
#[inline(always)]
pub(super) fn scale_of<V: Simd, W: Batch<Part = V>>(w: &[Column], k: &[f32], grid: Grid) -> V {
    let Grid { half, store, clips, .. } = grid;
    let (low, high) = range::<V>(w);
    let plain = plain_scale((low, high), grid);
    if clips.is_empty() {
        return plain;
    }
    let zero = V::splat(0.0);
    let [below, above] = [V::splat(f32::from(half)), V::splat(f32::from(half) - 1.0)];
    // The scales that cover the group: with the additional code below zero, and above.
    let covering = |low: V, high: V| low.div(below).max(high.div(above));
    let covers = [covering(zero.sub(low), high), zero.sub(covering(high, zero.sub(low)))];

    let [mut first, mut second] = [CandidateScale::none(); 2];
    for starts in (0..2 * clips.len()).step_by(W::PARTS) {
        let mut scales = [zero; MAX_PARTS];
        for (at, scale) in scales[..W::PARTS].iter_mut().enumerate() {
            // With two parts, both signs of one share.
            let start = starts + at;
            let share = f32::from(clips[start / 2]) * 1e-3;
            *scale = covers[start % 2].mul(V::splat(share));
        }
        let fitted = fit::<W>(w, k, &scales, half);
        for &found in &fitted[..W::PARTS] {
            let ahead = found.error.lt(first.error);
            second = second.or_better(first.select(ahead, found));
            first = found.select(ahead, first);
        }
    }

    let mut best = measure::<W>(w, k, &[plain; MAX_PARTS], half)[0];
    // Both in one batch, or one after the other.
    for from in (0..MAX_PARTS).step_by(W::PARTS) {
        let finalists = if from == 0 { [first, second] } else { [second; MAX_PARTS] };
        let again = fit::<W>(w, k, &finalists.map(|of| of.scale), half);
        let mut scales = [zero; MAX_PARTS];
        for at in 0..W::PARTS {
            scales[at] = finalists[at].or_better(again[at]).scale;
        }
        // The best of each finalist first, so that of equal errors the same one is taken with any number of parts.
        let mut refined = [CandidateScale::none(); MAX_PARTS];
        for is_other in [false, true] {
            let stored =
                scales.map(|scale| if is_other { scale.other_neighbour(store) } else { scale.round_to(store) });
            let measured = measure::<W>(w, k, &stored, half);
            for at in 0..W::PARTS {
                refined[at] = refined[at].or_better(measured[at]);
            }
        }
        for &refined in &refined[..W::PARTS] {
            best = best.or_better(refined);
        }
    }
    best.scale
}

/// Codes a group of each row on the stored `scale`, from column `first` of the band on; adds the errors to `sums`, block by
/// block, and writes the codes of the rows to `out`. Rows have `cols` columns.
#[inline(always)]
fn encode_group<V: Simd>(
    (w, k): (&[Column], &[f32]),
    (scale, half): (V, u8),
    sums: &mut RowSums,
    mut out: Option<&mut [u8]>,
    (first, cols): (usize, usize),
) {
    let codes = Codes::<V>::new(scale, half);
    for (block, (w, k)) in w.chunks(SUM_COLUMNS).zip(k.chunks(SUM_COLUMNS)).enumerate() {
        let (mut weighted, mut plain) = (V::splat(0.0), V::splat(0.0));
        for (eight, (w, k)) in w.chunks_exact(BAND_ROWS).zip(k.chunks_exact(BAND_ROWS)).enumerate() {
            let mut columns = [[0; BAND_ROWS]; BAND_ROWS];
            for ((&w, &k), bytes) in w.iter().zip(k).zip(&mut columns) {
                let w = V::load(w);
                let q = codes.of(w).1;
                let off = q.mul(scale).sub(w);
                let square = off.mul(off);
                weighted = weighted.add(V::splat(k).mul(square));
                plain = plain.add(square);
                *bytes = q.add(codes.half).to_bytes();
            }
            if let Some(out) = &mut out {
                let at = first + block * SUM_COLUMNS + eight * BAND_ROWS;
                for (row, codes) in V::transpose_u8(columns).into_iter().enumerate() {
                    out[row * cols + at..][..BAND_ROWS].copy_from_slice(&codes);
                }
            }
        }
        sums.add((weighted, plain));
    }
}

kernel! {
    /// Encodes the rows of a band, whose columns are a multiple of the group and of eight. Returns their errors as stored.
    /// Without `out`, only the errors are computed.
    pub(super) fn encode<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], grid: Grid, out: Option<EncodedRows<'_>>,
    ) -> [RowError; BAND_ROWS] {
        let (cols, groups) = (band.len(), band.len() / grid.group);
        let mut sums = RowSums::ZERO;
        let (mut codes, mut scales) = match out {
            Some(EncodedRows { codes, scales }) => (Some(codes), Some(scales)),
            None => (None, None),
        };
        for (at, (w, k)) in band.chunks_exact(grid.group).zip(k.chunks_exact(grid.group)).enumerate() {
            let scale = scale_of::<V, W>(w, k, grid);
            let place = (at * grid.group, cols);
            encode_group((w, k), (scale, grid.half), &mut sums, codes.as_deref_mut(), place);
            if let Some(scales) = &mut scales {
                for (row, scale) in scale.store().into_iter().enumerate() {
                    scales[row * groups + at] = scale;
                }
            }
        }
        sums.rows()
    }
}

//! The least weighted error `Σ_j k_j (ŵ_j − w_j)²`, the part of the error that reaches the layer's output.
//!
//! The search starts from grids clipped by [`CLIP_GRID`](super::CLIP_GRID). The codes `q` of each give the weighted least-squares scale and bias
//! in closed form: with `t = (w − bias) / scale` and residual `e = t − q`, solve
//!
//! ```text
//! | Σk    Σkq  | |α|   | Σke  |
//! | Σkq   Σkq² | |β| = | Σkqe |      scale' = scale (1 + β),  bias' = bias + scale α
//! ```
//!
//! and the error falls from `scale² Σke²` to `scale² (Σke² − α Σke − β Σkqe)`. (The sums are over residuals instead of weights,
//! because residuals are small: no cancellation in `f32`.) The best two grids are fitted once more, rounded to what is stored,
//! and measured as stored. MLX's grid is one of the candidates, so the result is never worse.

use super::grid::{GroupBuffers, GroupCodes, MAX_SCHEMES, RowSums, group, group_errors, range};
use super::mlx_rule::MlxGrid;
use crate::codec::RowError;
use crate::dtype::Float;
use crate::simd::batch::{Batch, MAX_PARTS};
use crate::simd::convert::Convert;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column, Lanes, Simd, Vector};

/// A least-squares fit is rejected if nearly all codes are the same: if the determinant is below this fraction of its first term.
const MIN_DETERMINANT: f32 = 1e-6;

/// Codes on stored grids, by products with the reciprocals of their scales.
struct StoredCodes<'a, W, const G: usize> {
    reciprocal: W,
    bias: W,
    max_code: W,
    w: &'a [Column; G],
}

impl<W: Batch, const G: usize> GroupCodes<W> for StoredCodes<'_, W, G> {
    #[inline(always)]
    fn column(&self, column: usize) -> W {
        W::broadcast(self.w[column]).sub(self.bias).mul(self.reciprocal).code(self.max_code)
    }
}

/// A grid of each row, its weighted error and, if it is a stored grid, its plain error.
#[derive(Clone, Copy)]
struct CandidateGrid<V> {
    error: V,
    plain: V,
    scale: V,
    bias: V,
}

impl<V: Simd> CandidateGrid<V> {
    #[inline(always)]
    fn none() -> Self {
        Self { error: V::splat(f32::INFINITY), plain: V::splat(0.0), scale: V::splat(1.0), bias: V::splat(0.0) }
    }

    /// [`Vector::select`], of grids.
    #[inline(always)]
    fn select(self, mask: V::Mask, other: Self) -> Self {
        Self {
            error: self.error.select(mask, other.error),
            plain: self.plain.select(mask, other.plain),
            scale: self.scale.select(mask, other.scale),
            bias: self.bias.select(mask, other.bias),
        }
    }

    /// `other` where its error is smaller, else `self`.
    #[inline(always)]
    fn or_better(self, other: Self) -> Self {
        other.select(other.error.lt(self.error), self)
    }
}

/// A grid: scale and bias.
type Grid<V> = (V, V);

/// A value for each grid of a batch. Only the first [`Batch::PARTS`] are used.
type PerPart<T> = [T; MAX_PARTS];

/// The grids of `candidates`.
#[inline(always)]
fn grids_of<W: Batch>(candidates: &PerPart<CandidateGrid<W::Part>>) -> PerPart<Grid<W::Part>> {
    let mut grids = [(candidates[0].scale, candidates[0].bias); MAX_PARTS];
    for (grid, of) in grids.iter_mut().zip(candidates) {
        *grid = (of.scale, of.bias);
    }
    grids
}

/// `grids` as a batch.
#[inline(always)]
fn concat_grids<W: Batch>(grids: &PerPart<Grid<W::Part>>) -> Grid<W> {
    let [mut scales, mut biases] = [[grids[0].0; MAX_PARTS]; 2];
    for (at, &grid) in grids[..W::PARTS].iter().enumerate() {
        (scales[at], biases[at]) = grid;
    }
    (W::concat(&scales[..W::PARTS]), W::concat(&biases[..W::PARTS]))
}

/// The weighted least-squares grids for the codes on each of `grids`, and their errors.
#[inline(always)]
#[expect(clippy::many_single_char_names, reason = "the names of the formula, see the module")]
fn fit<W: Batch, const G: usize>(
    w: &[Column; G],
    k: &[f32; G],
    k_sum: f32,
    grids: &PerPart<Grid<W::Part>>,
    max_code: f32,
) -> PerPart<CandidateGrid<W::Part>> {
    let max_code = W::splat(max_code);
    let (scale, bias) = concat_grids::<W>(grids);
    let reciprocal = W::splat(1.0).div(scale);
    let [mut q1, mut q2, mut e1, mut eq, mut e2] = [W::splat(0.0); 5];
    for column in 0..G {
        let k = W::splat(k[column]);
        let t = W::broadcast(w[column]).sub(bias).mul(reciprocal);
        let q = t.code(max_code);
        let e = t.sub(q);
        let (kq, ke) = (k.mul(q), k.mul(e));
        q1 = q1.add(kq);
        e1 = e1.add(ke);
        q2 = q2.add(kq.mul(q));
        eq = eq.add(ke.mul(q));
        e2 = e2.add(ke.mul(e));
    }
    let mut fitted = [CandidateGrid::none(); MAX_PARTS];
    for at in 0..W::PARTS {
        let sums = FitSums {
            q1: q1.extract(at),
            q2: q2.extract(at),
            e1: e1.extract(at),
            eq: eq.extract(at),
            e2: e2.extract(at),
        };
        fitted[at] = sums.solve(k_sum, grids[at]);
    }
    fitted
}

/// The sums of a fit, see the [module](self).
struct FitSums<V> {
    /// `Σkq`
    q1: V,
    /// `Σkq²`
    q2: V,
    /// `Σke`
    e1: V,
    /// `Σkqe`
    eq: V,
    /// `Σke²`
    e2: V,
}

impl<V: Simd> FitSums<V> {
    /// The least-squares grid for codes on the grid `(scale, bias)`.
    #[inline(always)]
    fn solve(self, k_sum: f32, (scale, bias): Grid<V>) -> CandidateGrid<V> {
        let Self { q1, q2, e1, eq, e2 } = self;
        let (zero, one) = (V::splat(0.0), V::splat(1.0));
        let k_sum = V::splat(k_sum);
        let product = k_sum.mul(q2);
        let determinant = product.sub(q1.mul(q1));
        let solvable = V::splat(MIN_DETERMINANT).mul(product).lt(determinant);
        let alpha = e1.mul(q2).sub(eq.mul(q1)).div(determinant).select(solvable, zero);
        let beta = eq.mul(k_sum).sub(e1.mul(q1)).div(determinant).select(solvable, zero);
        let residual = e2.sub(alpha.mul(e1)).sub(beta.mul(eq)).max(zero);
        let fitted = scale.mul(one.add(beta));
        let (error, bias) = (residual.mul(scale.mul(scale)), bias.add(scale.mul(alpha)));
        let found = CandidateGrid { error, plain: zero, scale: fitted, bias };
        // This rejects NaN, too.
        found.select(zero.lt(fitted), CandidateGrid::none())
    }
}

/// The least-squares scales for the codes on each of `grids`, with fixed biases.
#[inline(always)]
fn fit_scale<W: Batch, const G: usize>(
    w: &[Column; G],
    k: &[f32; G],
    grids: &PerPart<Grid<W::Part>>,
    max_code: f32,
) -> PerPart<W::Part> {
    let max_code = W::splat(max_code);
    let (scale, bias) = concat_grids::<W>(grids);
    let reciprocal = W::splat(1.0).div(scale);
    let [mut q2, mut qw] = [W::splat(0.0); 2];
    for column in 0..G {
        let offset = W::broadcast(w[column]).sub(bias);
        let q = offset.mul(reciprocal).code(max_code);
        let kq = W::splat(k[column]).mul(q);
        q2 = q2.add(kq.mul(q));
        qw = qw.add(kq.mul(offset));
    }
    let fitted = qw.div(q2);
    let zero = W::Part::splat(0.0);
    let mut scales = [zero; MAX_PARTS];
    for at in 0..W::PARTS {
        let fitted = fitted.extract(at);
        scales[at] = fitted.select(zero.lt(fitted), grids[at].0);
    }
    scales
}

/// The stored `grids` and their errors; infinite where a scale is not positive.
#[inline(always)]
fn measure<W: Batch, const G: usize>(
    w: &[Column; G],
    k: &[f32; G],
    grids: &PerPart<Grid<W::Part>>,
    max_code: f32,
) -> PerPart<CandidateGrid<W::Part>> {
    let (scale, bias) = concat_grids::<W>(grids);
    let codes = StoredCodes { reciprocal: W::splat(1.0).div(scale), bias, max_code: W::splat(max_code), w };
    let (error, plain) = group_errors(w, k, (scale, bias), &codes);
    let mut measured = [CandidateGrid::none(); MAX_PARTS];
    for at in 0..W::PARTS {
        let (scale, bias) = grids[at];
        let is_valid = W::Part::splat(0.0).lt(scale);
        // The error of an infinite scale is NaN or infinite, and less than no other.
        let found = CandidateGrid { error: error.extract(at), plain: plain.extract(at), scale, bias };
        measured[at] = found.select(is_valid, CandidateGrid::none());
    }
    measured
}

/// The best stored grids next to each of the real-valued grids `from`: the scale is fitted again for the `biases` nearest stored
/// biases (1 or 2), and rounded to both sides.
#[inline(always)]
fn refine_on_stored<W: Batch, const G: usize>(
    w: &[Column; G],
    k: &[f32; G],
    from: &PerPart<CandidateGrid<W::Part>>,
    max_code: f32,
    store: Float,
    biases: usize,
) -> PerPart<CandidateGrid<W::Part>> {
    let mut best = [CandidateGrid::none(); MAX_PARTS];
    for which in 0..biases {
        let mut grids = grids_of::<W>(from);
        for grid in &mut grids[..W::PARTS] {
            grid.1 = if which == 0 { grid.1.round_to(store) } else { grid.1.other_neighbour(store) };
        }
        let scales = fit_scale::<W, G>(w, k, &grids, max_code);
        for side in 0..2 {
            for at in 0..W::PARTS {
                grids[at].0 = if side == 0 { scales[at].round_to(store) } else { scales[at].other_neighbour(store) };
            }
            let measured = measure::<W, G>(w, k, &grids, max_code);
            for at in 0..W::PARTS {
                best[at] = best[at].or_better(measured[at]);
            }
        }
    }
    best
}

/// The result of a search for a group.
pub(super) struct BestGrid<V: Simd> {
    /// The stored grid.
    best: CandidateGrid<V>,
    /// The best stored grids next to the best two real-valued ones.
    refined: PerPart<CandidateGrid<V>>,
    /// Where it is better than MLX's grid.
    is_searched: V::Mask,
    /// MLX's grid, which gives the codes elsewhere.
    mlx: MlxGrid<V>,
}

impl<V: Simd> BestGrid<V> {
    /// The least weighted error: see the [module](self).
    #[inline(always)]
    pub(super) fn search<W: Batch<Part = V>, const G: usize>(
        w: &[Column; G],
        k: &[f32; G],
        clips: &[[u16; 2]],
        max_code: u8,
        store: Float,
    ) -> Self {
        // At few bits a step is far wider than the spacing of stored biases: the nearest bias is enough.
        let biases = if max_code > 15 { 2 } else { 1 };
        let (low, high) = range::<V, G>(w);
        let mlx = MlxGrid::<V>::new((low, high), max_code, store);
        let max_code = f32::from(max_code);
        let k_sum = k.iter().fold(0.0, |sum, k| sum + k);
        let width = high.sub(low);

        let [mut first, mut second] = [CandidateGrid::none(); 2];
        for clips in clips.chunks(W::PARTS) {
            let mut grids = [(low, low); MAX_PARTS];
            for (at, grid) in grids[..W::PARTS].iter_mut().enumerate() {
                // The last one again to fill the register.
                let [from_low, from_high] = clips[at.min(clips.len() - 1)].map(|share| f32::from(share) * 1e-4);
                let start = low.add(width.mul(V::splat(from_low)));
                let step = width.mul(V::splat((1.0 - from_low) - from_high)).div(V::splat(max_code));
                *grid = (step, start);
            }
            let fitted = fit::<W, G>(w, k, k_sum, &grids, max_code);
            for (at, &found) in fitted[..W::PARTS].iter().enumerate() {
                if at < clips.len() {
                    let ahead = found.error.lt(first.error);
                    second = second.or_better(first.select(ahead, found));
                    first = found.select(ahead, first);
                }
            }
        }

        let ((error, plain_error), (scale, bias)) = (mlx.errors(w, k), mlx.stored);
        let mut best = CandidateGrid { error, plain: plain_error, scale, bias };
        let mut all_refined = [CandidateGrid::none(); MAX_PARTS];
        // Both in one batch, or one after the other.
        for from in (0..MAX_PARTS).step_by(W::PARTS) {
            let mut finalists = if from == 0 { [first, second] } else { [second; MAX_PARTS] };
            let again = fit::<W, G>(w, k, k_sum, &grids_of::<W>(&finalists), max_code);
            for at in 0..W::PARTS {
                finalists[at] = finalists[at].or_better(again[at]);
            }
            let refined = refine_on_stored::<W, G>(w, k, &finalists, max_code, store, biases);
            for (at, &refined) in refined[..W::PARTS].iter().enumerate() {
                best = best.or_better(refined);
                all_refined[from + at] = refined;
            }
        }
        Self { best, refined: all_refined, is_searched: best.error.lt(error), mlx }
    }

    /// The stored grid.
    #[inline(always)]
    pub(super) fn stored(&self) -> Grid<V> {
        (self.best.scale, self.best.bias)
    }

    /// Stored grids to start error feedback from: the best one, and that next to the other of the best two real-valued ones.
    #[inline(always)]
    pub(super) fn starts(&self) -> [Grid<V>; 2] {
        let [first, second] = self.refined;
        let other = second.select(first.error.lt(second.error), first);
        let is_valid = other.error.lt(V::splat(f32::INFINITY));
        let other = other.select(is_valid, self.best);
        [self.stored(), (other.scale, other.bias)]
    }

    /// The codes of the group's columns.
    #[inline(always)]
    fn codes<'a, const G: usize>(&'a self, w: &'a [Column; G], max_code: u8) -> BestCodes<'a, V, G> {
        let reciprocal = V::splat(1.0).div(self.best.scale);
        let by_search = StoredCodes { reciprocal, bias: self.best.bias, max_code: V::splat(f32::from(max_code)), w };
        BestCodes { best: self, by_search }
    }
}

/// Codes on the best grid.
struct BestCodes<'a, V: Simd, const G: usize> {
    best: &'a BestGrid<V>,
    by_search: StoredCodes<'a, V, G>,
}

impl<V: Simd, const G: usize> GroupCodes<V> for BestCodes<'_, V, G> {
    #[inline(always)]
    fn column(&self, column: usize) -> V {
        let by_rule = self.best.mlx.code(V::load(self.by_search.w[column]));
        self.by_search.column(column).select(self.best.is_searched, by_rule)
    }
}

/// Writes the codes of a group of each row to `out`, from column `first` on. Rows have `cols` columns.
#[inline(always)]
fn put_codes<V: Simd, const G: usize>(codes: &impl GroupCodes<V>, out: &mut [u8], (first, cols): (usize, usize)) {
    for eight in (0..G).step_by(BAND_ROWS) {
        let mut columns = [[0; BAND_ROWS]; BAND_ROWS];
        for (column, bytes) in (eight..).zip(&mut columns) {
            *bytes = codes.column(column).to_bytes();
        }
        let rows = V::transpose_u8(columns);
        for row in 0..BAND_ROWS {
            out[row * cols + first + eight..][..BAND_ROWS].copy_from_slice(&rows[row]);
        }
    }
}

kernel! {
    /// Encodes a band with the least weighted error, see the [module](self).
    ///
    /// `k` weighs the columns; none may be negative. `clips` is the list of [`CLIP_GRID`](super::CLIP_GRID) for the code width. `out` has room for
    /// [`BAND_ROWS`] rows.
    pub(crate) fn encode_search<V: Simd in W: Batch, const G: usize>(
        band: &[Column], k: &[f32], clips: &[[u16; 2]], max_code: u8, store: Float, out: &mut GroupBuffers<'_>,
    ) {
        let (cols, groups) = (band.len(), band.len() / G);
        for at in 0..groups {
            let (w, k) = (group::<G, _>(band, at), group::<G, f32>(k, at));
            let found = BestGrid::<V>::search::<W, G>(w, k, clips, max_code, store);
            let (codes, place) = (found.codes(w, max_code), (at * G, cols));
            if V::all(found.is_searched) {
                put_codes::<V, G>(&codes.by_search, out.codes, place);
            } else {
                put_codes::<V, G>(&codes, out.codes, place);
            }
            out.put(at, groups, (found.best.scale, found.best.bias));
        }
    }
}

kernel! {
    /// The errors of [`encode_search`] with each of `max_codes`. Each has its list of `clips`.
    pub(crate) fn search_errors<V: Simd in W: Batch, const G: usize>(
        band: &[Column], k: &[f32], clips: &[&[[u16; 2]]], max_codes: &[u8], store: Float, out: &mut [[RowError; BAND_ROWS]],
    ) {
        let mut sums = [RowSums::ZERO; MAX_SCHEMES];
        for at in 0..band.len() / G {
            let (w, k) = (group::<G, _>(band, at), group::<G, f32>(k, at));
            for ((&max_code, clips), sums) in max_codes.iter().zip(clips).zip(&mut sums) {
                let best = BestGrid::<V>::search::<W, G>(w, k, clips, max_code, store).best;
                sums.add((best.error, best.plain));
            }
        }
        out.iter_mut().zip(&sums).for_each(|(out, sums)| *out = sums.rows());
    }
}

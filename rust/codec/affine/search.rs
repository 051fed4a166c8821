//! The least weighted error: `Σ_j k_j (ŵ_j − w_j)²`, what the layer's output feels of the error.
//!
//! A set of grids clipped by [`TRIALS`] is tried. The codes `q` of each give the weighted least-squares scale and bias in
//! closed form: with `t = (w − bias) / scale` and residual `e = t − q`, solve
//!
//! ```text
//! | Σk    Σkq  | |α|   | Σke  |
//! | Σkq   Σkq² | |β| = | Σkqe |      scale' = scale (1 + β),  bias' = bias + scale α
//! ```
//!
//! and the error falls from `scale² Σke²` to `scale² (Σke² − α Σke − β Σkqe)`. (Residuals and not the weights are summed,
//! because they are small: no cancellation in `f32`.) The best two are fitted once more, rounded to what is stored and
//! measured as stored; the plain rule's grid is one of the candidates, so the result is never worse.

use super::grid::{Codes, MAX_SCHEMES, RowSums, Rows, group, group_errors, range};
use super::mlx_rule::Plain;
use crate::codec::RowError;
use crate::dtype::Float;
use crate::simd::kernel;
use crate::simd::paired::{MOST_PARTS, Wide};
use crate::simd::vector::{BAND_ROWS, Column, Lanes, Vector};

/// The grids [`encode_search`] starts from: how much of a group's range to clip at its low end and at its high end,
/// in hundredths of a per cent of the range. One list per code width, in the order of [`super::BITS`].
///
/// Chosen by greedy selection from a 9 × 9 lattice for the least mean weighted error over groups of real weights
/// (see `docs/method.md`), then made symmetric.
pub const TRIALS: [&[[u16; 2]]; 6] = [
    &[
        [1800, 1800],
        [2400, 2400],
        [1200, 3000],
        [3000, 1200],
        [600, 1800],
        [1800, 600],
        [600, 3600],
        [3600, 600],
        [1800, 2700],
        [2700, 1800],
        [600, 4800],
        [4800, 600],
    ],
    &[
        [450, 450],
        [900, 900],
        [1350, 1350],
        [450, 1350],
        [1350, 450],
        [450, 2250],
        [2250, 450],
        [900, 1800],
        [1800, 900],
        [0, 900],
        [900, 0],
        [450, 3150],
        [3150, 450],
    ],
    &[
        [0, 0],
        [300, 300],
        [600, 600],
        [0, 300],
        [300, 0],
        [0, 600],
        [600, 0],
        [300, 900],
        [900, 300],
        [300, 1500],
        [1500, 300],
    ],
    &[[0, 0], [200, 200], [0, 200], [200, 0], [0, 400], [400, 0], [200, 400], [400, 200], [200, 800], [800, 200]],
    &[[0, 0], [100, 100], [0, 100], [100, 0], [0, 200], [200, 0]],
    &[[0, 0], [33, 33], [0, 33], [33, 0]],
];

/// A least-squares fit is refused where the codes are (nearly) all the same: determinant below this share of its terms.
const FLAT: f32 = 1e-6;

/// Codes on stored grids, by the reciprocals of their scales.
struct StoredCodes<'a, W, const G: usize> {
    reciprocal: W,
    bias: W,
    max_code: W,
    w: &'a [Column; G],
}

impl<W: Wide, const G: usize> Codes<W> for StoredCodes<'_, W, G> {
    #[inline(always)]
    fn of(&self, column: usize) -> W {
        W::each(self.w[column]).sub(self.bias).mul(self.reciprocal).code(self.max_code)
    }
}

/// A grid of each row, its weighted error and, of a stored grid, its plain error.
#[derive(Clone, Copy)]
struct Candidate<V> {
    error: V,
    plain: V,
    scale: V,
    bias: V,
}

impl<V: Vector> Candidate<V> {
    #[inline(always)]
    fn none() -> Self {
        Self { error: V::splat(f32::INFINITY), plain: V::splat(0.0), scale: V::splat(1.0), bias: V::splat(0.0) }
    }

    /// In each row `self` where `mask`, else `other`.
    #[inline(always)]
    fn where_or(self, mask: V::Mask, other: Self) -> Self {
        Self {
            error: self.error.where_or(mask, other.error),
            plain: self.plain.where_or(mask, other.plain),
            scale: self.scale.where_or(mask, other.scale),
            bias: self.bias.where_or(mask, other.bias),
        }
    }

    /// In each row `self`, or `other` where its error is smaller.
    #[inline(always)]
    fn or_better(self, other: Self) -> Self {
        other.where_or(other.error.less(self.error), self)
    }
}

/// A grid: scale and bias.
type Grid<V> = (V, V);

/// What is done for as many grids at once as a register has room for, for each of them: the first [`Wide::PARTS`].
type Each<T> = [T; MOST_PARTS];

/// The grids of `candidates`.
#[inline(always)]
fn grids_of<W: Wide>(candidates: &Each<Candidate<W::Part>>) -> Each<Grid<W::Part>> {
    let mut grids = [(candidates[0].scale, candidates[0].bias); MOST_PARTS];
    for (grid, of) in grids.iter_mut().zip(candidates) {
        *grid = (of.scale, of.bias);
    }
    grids
}

/// `grids`, side by side.
#[inline(always)]
fn beside<W: Wide>(grids: &Each<Grid<W::Part>>) -> Grid<W> {
    let [mut scales, mut biases] = [[grids[0].0; MOST_PARTS]; 2];
    for (at, &grid) in grids[..W::PARTS].iter().enumerate() {
        (scales[at], biases[at]) = grid;
    }
    (W::beside(&scales[..W::PARTS]), W::beside(&biases[..W::PARTS]))
}

/// The weighted least-squares grids for the codes that each of `grids` gives, and their errors.
#[inline(always)]
#[expect(clippy::many_single_char_names, reason = "they are the formula's, see the module")]
fn fit<W: Wide, const G: usize>(
    w: &[Column; G],
    k: &[f32; G],
    k_sum: f32,
    grids: &Each<Grid<W::Part>>,
    max_code: f32,
) -> Each<Candidate<W::Part>> {
    let max_code = W::splat(max_code);
    let (scale, bias) = beside::<W>(grids);
    let reciprocal = W::splat(1.0).div(scale);
    let [mut q1, mut q2, mut e1, mut eq, mut e2] = [W::splat(0.0); 5];
    for column in 0..G {
        let k = W::splat(k[column]);
        let t = W::each(w[column]).sub(bias).mul(reciprocal);
        let q = t.code(max_code);
        let e = t.sub(q);
        let (kq, ke) = (k.mul(q), k.mul(e));
        q1 = q1.add(kq);
        e1 = e1.add(ke);
        q2 = q2.add(kq.mul(q));
        eq = eq.add(ke.mul(q));
        e2 = e2.add(ke.mul(e));
    }
    let mut fitted = [Candidate::none(); MOST_PARTS];
    for at in 0..W::PARTS {
        let sums = Sums { q1: q1.part(at), q2: q2.part(at), e1: e1.part(at), eq: eq.part(at), e2: e2.part(at) };
        fitted[at] = sums.fitted(k_sum, grids[at]);
    }
    fitted
}

/// The sums of a fit, see the [module](self).
struct Sums<V> {
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

impl<V: Vector> Sums<V> {
    /// The grid, where `(scale, bias)` gave the codes.
    #[inline(always)]
    fn fitted(self, k_sum: f32, (scale, bias): Grid<V>) -> Candidate<V> {
        let Self { q1, q2, e1, eq, e2 } = self;
        let (zero, one) = (V::splat(0.0), V::splat(1.0));
        let k_sum = V::splat(k_sum);
        let product = k_sum.mul(q2);
        let determinant = product.sub(q1.mul(q1));
        let solvable = V::splat(FLAT).mul(product).less(determinant);
        let alpha = e1.mul(q2).sub(eq.mul(q1)).div(determinant).where_or(solvable, zero);
        let beta = eq.mul(k_sum).sub(e1.mul(q1)).div(determinant).where_or(solvable, zero);
        let residual = e2.sub(alpha.mul(e1)).sub(beta.mul(eq)).max(zero);
        let fitted = scale.mul(one.add(beta));
        let (error, bias) = (residual.mul(scale.mul(scale)), bias.add(scale.mul(alpha)));
        let found = Candidate { error, plain: zero, scale: fitted, bias };
        // Not so for NaN, either: such a fit is no candidate.
        found.where_or(zero.less(fitted), Candidate::none())
    }
}

/// The least-squares scales for the codes that each of `grids` gives, the biases held.
#[inline(always)]
fn fit_scale<W: Wide, const G: usize>(
    w: &[Column; G],
    k: &[f32; G],
    grids: &Each<Grid<W::Part>>,
    max_code: f32,
) -> Each<W::Part> {
    let max_code = W::splat(max_code);
    let (scale, bias) = beside::<W>(grids);
    let reciprocal = W::splat(1.0).div(scale);
    let [mut q2, mut qw] = [W::splat(0.0); 2];
    for column in 0..G {
        let offset = W::each(w[column]).sub(bias);
        let q = offset.mul(reciprocal).code(max_code);
        let kq = W::splat(k[column]).mul(q);
        q2 = q2.add(kq.mul(q));
        qw = qw.add(kq.mul(offset));
    }
    let fitted = qw.div(q2);
    let zero = W::Part::splat(0.0);
    let mut scales = [zero; MOST_PARTS];
    for at in 0..W::PARTS {
        let fitted = fitted.part(at);
        scales[at] = fitted.where_or(zero.less(fitted), grids[at].0);
    }
    scales
}

/// The stored `grids` and the errors they have; infinite where one is no grid.
#[inline(always)]
fn measure<W: Wide, const G: usize>(
    w: &[Column; G],
    k: &[f32; G],
    grids: &Each<Grid<W::Part>>,
    max_code: f32,
) -> Each<Candidate<W::Part>> {
    let (scale, bias) = beside::<W>(grids);
    let codes = StoredCodes { reciprocal: W::splat(1.0).div(scale), bias, max_code: W::splat(max_code), w };
    let (error, plain) = group_errors(w, k, (scale, bias), &codes);
    let mut measured = [Candidate::none(); MOST_PARTS];
    for at in 0..W::PARTS {
        let (scale, bias) = grids[at];
        let sound = W::Part::splat(0.0).less(scale);
        // A scale of 0 or an infinite one gives NaN or infinity: less than nothing.
        let found = Candidate { error: error.part(at), plain: plain.part(at), scale, bias };
        measured[at] = found.where_or(sound, Candidate::none());
    }
    measured
}

/// The best stored grids next to each of the real-valued `from`.
#[inline(always)]
fn settle<W: Wide, const G: usize>(
    w: &[Column; G],
    k: &[f32; G],
    from: &Each<Candidate<W::Part>>,
    max_code: f32,
    store: Float,
    biases: usize,
) -> Each<Candidate<W::Part>> {
    let mut best = [Candidate::none(); MOST_PARTS];
    for which in 0..biases {
        let mut grids = grids_of::<W>(from);
        for grid in &mut grids[..W::PARTS] {
            grid.1 = if which == 0 { grid.1.nearest(store) } else { grid.1.other_side(store) };
        }
        let scales = fit_scale::<W, G>(w, k, &grids, max_code);
        for side in 0..2 {
            for at in 0..W::PARTS {
                grids[at].0 = if side == 0 { scales[at].nearest(store) } else { scales[at].other_side(store) };
            }
            let measured = measure::<W, G>(w, k, &grids, max_code);
            for at in 0..W::PARTS {
                best[at] = best[at].or_better(measured[at]);
            }
        }
    }
    best
}

/// What a search found for a group: a stored grid, and where that is better than the plain rule's, whose unrounded grid is
/// beside it.
struct Found<V: Vector> {
    best: Candidate<V>,
    searched: V::Mask,
    plain: Plain<V>,
}

impl<V: Vector> Found<V> {
    /// The least weighted error: see the [module](self).
    #[inline(always)]
    fn search<W: Wide<Part = V>, const G: usize>(
        w: &[Column; G],
        k: &[f32; G],
        trials: &[[u16; 2]],
        max_code: u8,
        store: Float,
    ) -> Self {
        // At few bits a step is far wider than the spacing of stored biases: the nearest one will do.
        let biases = if max_code > 15 { 2 } else { 1 };
        let (low, high) = range::<V, G>(w);
        let plain = Plain::<V>::new((low, high), max_code, store);
        let max_code = f32::from(max_code);
        let k_sum = k.iter().fold(0.0, |sum, k| sum + k);
        let width = high.sub(low);

        let [mut first, mut second] = [Candidate::none(); 2];
        for trials in trials.chunks(W::PARTS) {
            let mut grids = [(low, low); MOST_PARTS];
            for (at, grid) in grids[..W::PARTS].iter_mut().enumerate() {
                // The last one again where none is left, to fill the register.
                let [from_low, from_high] = trials[at.min(trials.len() - 1)].map(|share| f32::from(share) * 1e-4);
                let start = low.add(width.mul(V::splat(from_low)));
                let step = width.mul(V::splat((1.0 - from_low) - from_high)).div(V::splat(max_code));
                *grid = (step, start);
            }
            let fitted = fit::<W, G>(w, k, k_sum, &grids, max_code);
            for (at, &found) in fitted[..W::PARTS].iter().enumerate() {
                if at < trials.len() {
                    let ahead = found.error.less(first.error);
                    second = second.or_better(first.where_or(ahead, found));
                    first = found.where_or(ahead, first);
                }
            }
        }

        let ((error, plain_error), (scale, bias)) = (plain.errors(w, k), plain.stored);
        let mut best = Candidate { error, plain: plain_error, scale, bias };
        // Both at once, or one after the other.
        for from in (0..MOST_PARTS).step_by(W::PARTS) {
            let mut finalists = if from == 0 { [first, second] } else { [second; MOST_PARTS] };
            let again = fit::<W, G>(w, k, k_sum, &grids_of::<W>(&finalists), max_code);
            for at in 0..W::PARTS {
                finalists[at] = finalists[at].or_better(again[at]);
            }
            let settled = settle::<W, G>(w, k, &finalists, max_code, store, biases);
            for &settled in &settled[..W::PARTS] {
                best = best.or_better(settled);
            }
        }
        Self { best, searched: best.error.less(error), plain }
    }

    /// The codes of the group's columns.
    #[inline(always)]
    fn codes<'a, const G: usize>(&'a self, w: &'a [Column; G], max_code: u8) -> FoundCodes<'a, V, G> {
        let reciprocal = V::splat(1.0).div(self.best.scale);
        let by_search = StoredCodes { reciprocal, bias: self.best.bias, max_code: V::splat(f32::from(max_code)), w };
        FoundCodes { found: self, by_search }
    }
}

/// Codes on the grid that was found.
struct FoundCodes<'a, V: Vector, const G: usize> {
    found: &'a Found<V>,
    by_search: StoredCodes<'a, V, G>,
}

impl<V: Vector, const G: usize> Codes<V> for FoundCodes<'_, V, G> {
    #[inline(always)]
    fn of(&self, column: usize) -> V {
        let by_rule = self.found.plain.code(V::load(self.by_search.w[column]));
        self.by_search.of(column).where_or(self.found.searched, by_rule)
    }
}

/// Puts the codes of a group of each row where they belong: from column `first` on, rows of `cols` columns.
#[inline(always)]
fn put_codes<V: Vector, const G: usize>(of: &impl Codes<V>, out: &mut [u8], (first, cols): (usize, usize)) {
    for eight in (0..G).step_by(BAND_ROWS) {
        let mut columns = [[0; BAND_ROWS]; BAND_ROWS];
        for (column, bytes) in (eight..).zip(&mut columns) {
            *bytes = of.of(column).bytes();
        }
        let rows = V::transposed(columns);
        for row in 0..BAND_ROWS {
            out[row * cols + first + eight..][..BAND_ROWS].copy_from_slice(&rows[row]);
        }
    }
}

kernel! {
    /// The least weighted error: see the [module](self).
    ///
    /// `band` holds the rows side by side; one weight `k` per column, none negative, and the `trials` for the code width.
    /// `out` has room for [`BAND_ROWS`] rows.
    pub fn encode_search<V: Vector in W: Wide, const G: usize>(
        band: &[Column], k: &[f32], trials: &[[u16; 2]], max_code: u8, store: Float, out: &mut Rows<'_>,
    ) {
        let (cols, groups) = (band.len(), band.len() / G);
        for at in 0..groups {
            let (w, k) = (group::<G, _>(band, at), group::<G, f32>(k, at));
            let found = Found::<V>::search::<W, G>(w, k, trials, max_code, store);
            let (codes, place) = (found.codes(w, max_code), (at * G, cols));
            if V::all(found.searched) {
                put_codes::<V, G>(&codes.by_search, out.codes, place);
            } else {
                put_codes::<V, G>(&codes, out.codes, place);
            }
            out.put(at, groups, (found.best.scale, found.best.bias));
        }
    }
}

kernel! {
    /// The errors of [`encode_search`] with each of `max_codes`, which have `trials` of their own.
    pub fn search_errors<V: Vector in W: Wide, const G: usize>(
        band: &[Column], k: &[f32], trials: &[&[[u16; 2]]], max_codes: &[u8], store: Float, out: &mut [[RowError; BAND_ROWS]],
    ) {
        let mut sums = [RowSums::NONE; MAX_SCHEMES];
        for at in 0..band.len() / G {
            let (w, k) = (group::<G, _>(band, at), group::<G, f32>(k, at));
            for ((&max_code, trials), sums) in max_codes.iter().zip(trials).zip(&mut sums) {
                let best = Found::<V>::search::<W, G>(w, k, trials, max_code, store).best;
                sums.add((best.error, best.plain));
            }
        }
        out.iter_mut().zip(&sums).for_each(|(out, sums)| *out = sums.rows());
    }
}

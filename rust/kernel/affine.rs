//! Scale, bias and codes of groups, for one band of rows.
//!
//! A group of `G` weights is stored as a scale, a bias and `G` codes, and decodes to `code * scale + bias`, a product
//! and a sum rounded to `f32` each. Two encoders choose them:
//!
//! - [`encode_plain`]: MLX's own rule, bit for bit that of `mx.quantize` on a CPU. The grid is anchored at the group's
//!   element of largest magnitude, and stretched so that zero lies on it.
//! - [`encode_search`]: minimises `Σ_j k_j (ŵ_j − w_j)²`, what the layer's output feels of the error. A set of grids
//!   clipped by [`TRIALS`] is tried. The codes `q` of each give the weighted least-squares scale and bias in closed
//!   form: with `t = (w − bias) / scale` and residual `e = t − q`, solve
//!
//!   ```text
//!   | Σk    Σkq  | |α|   | Σke  |
//!   | Σkq   Σkq² | |β| = | Σkqe |      scale' = scale (1 + β),  bias' = bias + scale α
//!   ```
//!
//!   and the error falls from `scale² Σke²` to `scale² (Σke² − α Σke − β Σkqe)`. (Residuals and not the weights are
//!   summed, because they are small: no cancellation in `f32`.) The best two are fitted once more, rounded to what is
//!   stored and measured as stored; the plain rule's grid is one of the candidates, so the result is never worse.

use super::kernel;
use super::vector::{Lane, ROWS, Vector};
use crate::dtype::Float;

/// What is stored for one group beside its codes, as the values that are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Grid {
    /// Weight per step of the code.
    pub scale: f32,
    /// Weight of code 0.
    pub bias: f32,
}

/// Squared error of one row as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowError {
    /// `Σ_j k_j (ŵ_j − w_j)²`
    pub weighted: f64,
    /// `Σ_j (ŵ_j − w_j)²`
    pub plain: f64,
}

/// The grids [`encode_search`] starts from: how much of a group's range to clip at its low end and at its high end,
/// in hundredths of a per cent of the range. One list per code width, in the order of [`crate::scheme::BITS`].
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

/// The least scale the plain rule gives (MLX's constant).
const PLAIN_EPSILON: f32 = 1e-7;

/// A least-squares fit is refused where the codes are (nearly) all the same: determinant below this share of its terms.
const FLAT: f32 = 1e-6;

/// The least and the greatest element of each row's group.
#[inline(always)]
fn range<V: Vector, const G: usize>(w: &[Lane; G]) -> (V, V) {
    let first = V::load(w[0]);
    w[1..].iter().fold((first, first), |(low, high), &w| (V::load(w).min(low), V::load(w).max(high)))
}

/// The plain rule's grid of each row, before rounding to what is stored.
#[inline(always)]
fn plain_grid<V: Vector>(low: V, high: V, max_code: V) -> (V, V) {
    let zero = V::splat(0.0);
    let from_low = high.abs().less(low.abs());
    let step = high.sub(low).div(max_code).max(V::splat(PLAIN_EPSILON));
    let step = step.where_or(from_low, zero.sub(step));
    let edge = low.where_or(from_low, high);
    // Codes from the edge to zero: a whole number of them puts zero on the grid.
    let to_zero = edge.div(step).each(f32::round_ties_even);
    let anchored = zero.less(to_zero.abs());
    (edge.div(to_zero).where_or(anchored, step), edge.where_or(anchored, zero))
}

/// Codes of column `w` on an unrounded grid, by division, as `mx.quantize` takes them.
#[inline(always)]
fn plain_codes<V: Vector>(w: Lane, (scale, bias): (V, V), max_code: V) -> V {
    V::load(w).sub(bias).div(scale).code(max_code)
}

/// Codes of column `w` on a stored grid, by the reciprocal of its scale.
#[inline(always)]
fn search_codes<V: Vector>(w: Lane, reciprocal: V, bias: V, max_code: V) -> V {
    V::load(w).sub(bias).mul(reciprocal).code(max_code)
}

/// Weighted and plain squared error of each row's group: the codes of each column, decoded by the stored grid.
///
/// The one measure of error there is: whatever chooses codes and whatever reports on them calls this.
#[inline(always)]
fn group_error<V: Vector, const G: usize>(
    w: &[Lane; G],
    k: &[f32; G],
    (scale, bias): (V, V),
    codes: impl Fn(usize) -> V,
) -> (V, V) {
    let mut sums = (V::splat(0.0), V::splat(0.0));
    for column in 0..G {
        let off = codes(column).mul(scale).add(bias).sub(V::load(w[column]));
        let square = off.mul(off);
        sums = (sums.0.add(V::splat(k[column]).mul(square)), sums.1.add(square));
    }
    sums
}

/// A grid of each row and its weighted error.
#[derive(Clone, Copy)]
struct Candidate<V> {
    error: V,
    scale: V,
    bias: V,
}

impl<V: Vector> Candidate<V> {
    #[inline(always)]
    fn none() -> Self {
        Self { error: V::splat(f32::INFINITY), scale: V::splat(1.0), bias: V::splat(0.0) }
    }

    /// In each row `self` where `mask`, else `other`.
    #[inline(always)]
    fn where_or(self, mask: V::Mask, other: Self) -> Self {
        Self {
            error: self.error.where_or(mask, other.error),
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

/// The weighted least-squares grid for the codes that `(scale, bias)` gives, and its error.
#[inline(always)]
#[expect(clippy::many_single_char_names, reason = "they are the formula's, see the module")]
fn fit<V: Vector, const G: usize>(
    w: &[Lane; G],
    k: &[f32; G],
    k_sum: f32,
    (scale, bias): (V, V),
    max_code: V,
) -> Candidate<V> {
    let zero = V::splat(0.0);
    let one = V::splat(1.0);
    let reciprocal = one.div(scale);
    let [mut q1, mut q2, mut e1, mut eq, mut e2] = [zero; 5];
    for column in 0..G {
        let k = V::splat(k[column]);
        let t = V::load(w[column]).sub(bias).mul(reciprocal);
        let q = t.code(max_code);
        let e = t.sub(q);
        let (kq, ke) = (k.mul(q), k.mul(e));
        q1 = q1.add(kq);
        e1 = e1.add(ke);
        q2 = q2.add(kq.mul(q));
        eq = eq.add(ke.mul(q));
        e2 = e2.add(ke.mul(e));
    }
    let k_sum = V::splat(k_sum);
    let product = k_sum.mul(q2);
    let determinant = product.sub(q1.mul(q1));
    let solvable = V::splat(FLAT).mul(product).less(determinant);
    let alpha = e1.mul(q2).sub(eq.mul(q1)).div(determinant).where_or(solvable, zero);
    let beta = eq.mul(k_sum).sub(e1.mul(q1)).div(determinant).where_or(solvable, zero);
    let residual = e2.sub(alpha.mul(e1)).sub(beta.mul(eq)).max(zero);
    let fitted = scale.mul(one.add(beta));
    let found = Candidate { error: residual.mul(scale.mul(scale)), scale: fitted, bias: bias.add(scale.mul(alpha)) };
    // Not so for NaN, either: such a fit is no candidate.
    found.where_or(zero.less(fitted), Candidate::none())
}

/// The least-squares scale for the codes that `(scale, bias)` gives, the bias held.
#[inline(always)]
fn fit_scale<V: Vector, const G: usize>(w: &[Lane; G], k: &[f32; G], (scale, bias): (V, V), max_code: V) -> V {
    let zero = V::splat(0.0);
    let reciprocal = V::splat(1.0).div(scale);
    let [mut q2, mut qw] = [zero; 2];
    for column in 0..G {
        let offset = V::load(w[column]).sub(bias);
        let q = offset.mul(reciprocal).code(max_code);
        let kq = V::splat(k[column]).mul(q);
        q2 = q2.add(kq.mul(q));
        qw = qw.add(kq.mul(offset));
    }
    let fitted = qw.div(q2);
    fitted.where_or(zero.less(fitted), scale)
}

/// The nearest bfloat16, ties to even.
#[inline(always)]
fn nearest_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    f32::from_bits(if value.is_nan() { bits } else { rounded })
}

/// `value` as it is stored.
#[inline(always)]
fn nearest<V: Vector>(value: V, store: Float) -> V {
    match store {
        Float::BF16 => value.each(nearest_bf16),
        Float::F16 | Float::F32 => value.each(|value| store.round(value)),
    }
}

/// Of the two values of `store` on either side of `value`, the one further away; the same, if it is one of them.
#[inline(always)]
fn other_side<V: Vector>(value: V, store: Float) -> V {
    match store {
        // One step of the bits, outward or inward.
        Float::BF16 => value.each(|value| {
            let nearest = nearest_bf16(value);
            let bits = nearest.copysign(value).to_bits();
            let step =
                if nearest.abs() < value.abs() { bits.wrapping_add(0x1_0000) } else { bits.wrapping_sub(0x1_0000) };
            if nearest == value { nearest } else { f32::from_bits(step) }
        }),
        Float::F16 | Float::F32 => value.each(|value| {
            let nearest = store.round(value);
            if nearest == value {
                nearest
            } else if nearest.abs() < value.abs() {
                store.outward(nearest.copysign(value))
            } else {
                store.inward(nearest)
            }
        }),
    }
}

/// The stored grid `(scale, bias)` and the error it has; infinite if it is no grid.
#[inline(always)]
fn measure<V: Vector, const G: usize>(w: &[Lane; G], k: &[f32; G], (scale, bias): (V, V), max_code: V) -> Candidate<V> {
    let reciprocal = V::splat(1.0).div(scale);
    let (error, _) = group_error(w, k, (scale, bias), |column| search_codes(w[column], reciprocal, bias, max_code));
    let sound = V::splat(0.0).less(scale);
    // A scale of 0 or an infinite one gives NaN or infinity: less than nothing.
    Candidate { error, scale, bias }.where_or(sound, Candidate::none())
}

/// The best stored grids next to the real-valued `from`.
#[inline(always)]
fn settle<V: Vector, const G: usize>(
    w: &[Lane; G],
    k: &[f32; G],
    from: Candidate<V>,
    max_code: V,
    store: Float,
    biases: usize,
) -> Candidate<V> {
    let mut best = Candidate::none();
    for which in 0..biases {
        let bias = if which == 0 { nearest(from.bias, store) } else { other_side(from.bias, store) };
        let scale = fit_scale(w, k, (from.scale, bias), max_code);
        best = best.or_better(measure(w, k, (nearest(scale, store), bias), max_code));
        best = best.or_better(measure(w, k, (other_side(scale, store), bias), max_code));
    }
    best
}

/// Group `at` of a band or of a vector as an array of a length known when compiling.
#[inline(always)]
fn group<const G: usize, T>(of: &[T], at: usize) -> &[T; G] {
    of[at * G..].first_chunk().expect("a band holds whole groups")
}

/// Scales and biases of each row as grids.
#[inline(always)]
fn grids<V: Vector>(scale: V, bias: V) -> [Grid; ROWS] {
    let (scale, bias) = (scale.store(), bias.store());
    std::array::from_fn(|row| Grid { scale: scale[row], bias: bias[row] })
}

kernel! {
    /// MLX's rule: see the [module](self).
    ///
    /// `band` holds `cols` columns, a multiple of `G`; `codes` takes as many, `out` one entry per group.
    pub fn encode_plain<V: Vector, const G: usize>(
        band: &[Lane], max_code: u8, store: Float, codes: &mut [[u8; ROWS]], out: &mut [[Grid; ROWS]],
    ) {
        let max_code = V::splat(f32::from(max_code));
        for (at, out) in out.iter_mut().enumerate() {
            let w = group::<G, _>(band, at);
            let (low, high) = range(w);
            let (scale, bias) = plain_grid::<V>(low, high, max_code);
            for (codes, &w) in codes[at * G..][..G].iter_mut().zip(w) {
                *codes = plain_codes(w, (scale, bias), max_code).bytes();
            }
            *out = grids(nearest(scale, store), nearest(bias, store));
        }
    }
}

/// What a search found for a group: a stored grid, and where that is better than the plain rule's, whose unrounded grid is
/// beside it.
struct Found<V: Vector> {
    best: Candidate<V>,
    searched: V::Mask,
    plain: (V, V),
}

impl<V: Vector> Found<V> {
    /// The least weighted error: see the [module](self).
    #[inline(always)]
    fn search<const G: usize>(w: &[Lane; G], k: &[f32; G], trials: &[[u16; 2]], max_code: u8, store: Float) -> Self {
        // At few bits a step is far wider than the spacing of stored biases: the nearest one will do.
        let biases = if max_code > 15 { 2 } else { 1 };
        let max_code = V::splat(f32::from(max_code));
        let k_sum = k.iter().fold(0.0, |sum, k| sum + k);
        let (low, high) = range::<V, G>(w);
        let width = high.sub(low);

        let [mut first, mut second] = [Candidate::none(); 2];
        for &[from_low, from_high] in trials {
            let [from_low, from_high] = [from_low, from_high].map(|share| f32::from(share) * 1e-4);
            let start = low.add(width.mul(V::splat(from_low)));
            let step = width.mul(V::splat((1.0 - from_low) - from_high)).div(max_code);
            let found = fit(w, k, k_sum, (step, start), max_code);
            let ahead = found.error.less(first.error);
            second = second.or_better(first.where_or(ahead, found));
            first = found.where_or(ahead, first);
        }

        let plain = plain_grid::<V>(low, high, max_code);
        let (scale, bias) = (nearest(plain.0, store), nearest(plain.1, store));
        let (error, _) = group_error(w, k, (scale, bias), |column| plain_codes(w[column], plain, max_code));
        let mut best = Candidate { error, scale, bias };
        for finalist in [first, second] {
            let again = fit(w, k, k_sum, (finalist.scale, finalist.bias), max_code);
            best = best.or_better(settle(w, k, finalist.or_better(again), max_code, store, biases));
        }
        Self { best, searched: best.error.less(error), plain }
    }

    /// The codes of column `w` of the group, with the reciprocal of the scale.
    #[inline(always)]
    fn codes(&self, w: Lane, reciprocal: V, max_code: V) -> V {
        let by_search = search_codes(w, reciprocal, self.best.bias, max_code);
        by_search.where_or(self.searched, plain_codes(w, self.plain, max_code))
    }
}

kernel! {
    /// The least weighted error: see the [module](self).
    ///
    /// As [`encode_plain`], with one weight `k` per column, none negative, and the `trials` for the code width.
    #[expect(clippy::too_many_arguments, reason = "a kernel takes slices and numbers; `Encoder` is its only caller")]
    pub fn encode_search<V: Vector, const G: usize>(
        band: &[Lane], k: &[f32], trials: &[[u16; 2]], max_code: u8, store: Float,
        codes: &mut [[u8; ROWS]], out: &mut [[Grid; ROWS]],
    ) {
        for (at, out) in out.iter_mut().enumerate() {
            let (w, k) = (group::<G, _>(band, at), group::<G, f32>(k, at));
            let found = Found::<V>::search(w, k, trials, max_code, store);
            let (reciprocal, max_code) = (V::splat(1.0).div(found.best.scale), V::splat(f32::from(max_code)));
            for (codes, &w) in codes[at * G..][..G].iter_mut().zip(w) {
                *codes = found.codes(w, reciprocal, max_code).bytes();
            }
            *out = grids(found.best.scale, found.best.bias);
        }
    }
}

/// Adds the errors of a group to those of the rows.
#[inline(always)]
fn take_in<V: Vector>(rows: &mut [RowError; ROWS], (weighted, plain): (V, V)) {
    let (weighted, plain) = (weighted.store(), plain.store());
    for (row, sum) in rows.iter_mut().enumerate() {
        sum.weighted += f64::from(weighted[row]);
        sum.plain += f64::from(plain[row]);
    }
}

kernel! {
    /// The errors of [`encode_plain`] with each of `max_codes`: those of what it would store, without storing it.
    pub fn plain_errors<V: Vector, const G: usize>(
        band: &[Lane], k: &[f32], max_codes: &[u8], store: Float, out: &mut [[RowError; ROWS]],
    ) {
        out.fill([RowError::default(); ROWS]);
        for at in 0..band.len() / G {
            let (w, k) = (group::<G, _>(band, at), group::<G, f32>(k, at));
            let (low, high) = range::<V, G>(w);
            for (&max_code, rows) in max_codes.iter().zip(out.iter_mut()) {
                let max_code = V::splat(f32::from(max_code));
                let plain = plain_grid::<V>(low, high, max_code);
                let stored = (nearest(plain.0, store), nearest(plain.1, store));
                take_in(rows, group_error(w, k, stored, |column| plain_codes(w[column], plain, max_code)));
            }
        }
    }
}

kernel! {
    /// The errors of [`encode_search`] with each of `max_codes`, which have `trials` of their own.
    pub fn search_errors<V: Vector, const G: usize>(
        band: &[Lane], k: &[f32], trials: &[&[[u16; 2]]], max_codes: &[u8], store: Float, out: &mut [[RowError; ROWS]],
    ) {
        out.fill([RowError::default(); ROWS]);
        for at in 0..band.len() / G {
            let (w, k) = (group::<G, _>(band, at), group::<G, f32>(k, at));
            for ((&max_code, trials), rows) in max_codes.iter().zip(trials).zip(out.iter_mut()) {
                let found = Found::<V>::search(w, k, trials, max_code, store);
                let stored = (found.best.scale, found.best.bias);
                let (reciprocal, max_code) = (V::splat(1.0).div(found.best.scale), V::splat(f32::from(max_code)));
                take_in(rows, group_error(w, k, stored, |column| found.codes(w[column], reciprocal, max_code)));
            }
        }
    }
}

kernel! {
    /// Error of each row of a band as `codes` and `stored` decode, weighted by `k` and plain.
    pub fn error<V: Vector, const G: usize>(
        band: &[Lane], k: &[f32], codes: &[[u8; ROWS]], stored: &[[Grid; ROWS]],
    ) -> [RowError; ROWS] {
        let mut rows = [RowError::default(); ROWS];
        for (at, grid) in stored.iter().enumerate() {
            let codes = group::<G, _>(codes, at);
            let grid = (V::load(grid.map(|grid| grid.scale)), V::load(grid.map(|grid| grid.bias)));
            let code = |at: usize| V::from_bytes(codes[at]);
            take_in(&mut rows, group_error(group::<G, _>(band, at), group::<G, f32>(k, at), grid, code));
        }
        rows
    }
}

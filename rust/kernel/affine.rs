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
use super::vector::{BYTES, Element, Lane, ROWS, Vector};
use crate::dtype::Float;
use crate::scheme::BITS;

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

/// The most schemes whose errors are measured at once: one for each code width.
pub const MAX_SCHEMES: usize = BITS.len();

/// Schemes whose errors are summed side by side: as many as the registers hold.
const SIDE_BY_SIDE: usize = 3;

/// Magnitudes of scales from which on a quotient is taken by division. (Those of the plain rule are above 2^−60.)
const ORDINARY: f32 = 1.0e18;

/// A least-squares fit is refused where the codes are (nearly) all the same: determinant below this share of its terms.
const FLAT: f32 = 1e-6;

/// The least and the greatest element of each row's group.
#[inline(always)]
fn range<V: Vector, const G: usize>(w: &[Lane; G]) -> (V, V) {
    let first = V::load(w[0]);
    w[1..].iter().fold((first, first), |(low, high), &w| (V::load(w).min(low), V::load(w).max(high)))
}

/// The plain rule's grids for `N` code widths of the same group of each row.
#[derive(Clone, Copy)]
struct Plain<V: Vector, const N: usize> {
    /// The element of largest magnitude.
    edge: V,
    /// Grids as codes are taken by them, unrounded.
    scale: [V; N],
    bias: [V; N],
    /// And as they are stored.
    stored: [(V, V); N],
    divisor: [V::Divisor; N],
    max_code: [V; N],
    /// Whether all grids begin at the edge, and their scales are such that [`Vector::quotient`] may stand for a division.
    is_ordinary: bool,
}

impl<V: Vector, const N: usize> Plain<V, N> {
    #[inline(always)]
    fn new((low, high): (V, V), max_codes: &[u8; N], store: Float) -> Self {
        let zero = V::splat(0.0);
        let from_low = high.abs().less(low.abs());
        let (edge, width) = (low.where_or(from_low, high), high.sub(low));
        let mut new = Self {
            edge,
            scale: [zero; N],
            bias: [zero; N],
            stored: [(zero, zero); N],
            divisor: [zero.divisor(); N],
            max_code: [zero; N],
            is_ordinary: true,
        };
        for (at, &max_code) in max_codes.iter().enumerate() {
            let max_code = V::splat(f32::from(max_code));
            let step = width.div(max_code).max(V::splat(PLAIN_EPSILON));
            let step = step.where_or(from_low, zero.sub(step));
            // Codes from the edge to zero: a whole number of them puts zero on the grid.
            let to_zero = edge.div(step).nearest_integer();
            let anchored = zero.less(to_zero.abs());
            let scale = edge.div(to_zero).where_or(anchored, step);
            let bias = edge.where_or(anchored, zero);
            new.is_ordinary &= V::all(anchored) && V::all(scale.abs().less(V::splat(ORDINARY)));
            new.scale[at] = scale;
            new.bias[at] = bias;
            new.stored[at] = (scale.nearest(store), bias.nearest(store));
            new.divisor[at] = scale.divisor();
            new.max_code[at] = max_code;
        }
        new
    }

    /// Codes of `w` on grid `at`, by division.
    #[inline(always)]
    fn code(&self, at: usize, w: V) -> V {
        w.sub(self.bias[at]).div(self.scale[at]).code(self.max_code[at])
    }

    /// The errors of `M` of the grids, from `first` on.
    #[inline(always)]
    fn errors<const G: usize, const M: usize>(&self, first: usize, w: &[Lane; G], k: &[f32; G]) -> [(V, V); M] {
        let mut stored = *self.stored[first..].first_chunk().expect("as many grids");
        if !self.is_ordinary {
            return group_errors(w, k, stored, &PlainCodes { plain: self, first, w });
        }
        // They all begin at the edge: one register will do.
        let (_, edge) = stored[0];
        for (_, bias) in &mut stored {
            *bias = edge;
        }
        group_errors(w, k, stored, &OrdinaryCodes { plain: self, first, w })
    }
}

/// Codes as `mx.quantize` takes them by division, on ordinary grids from `first` on.
struct OrdinaryCodes<'a, V: Vector, const N: usize, const G: usize> {
    plain: &'a Plain<V, N>,
    first: usize,
    w: &'a [Lane; G],
}

impl<V: Vector, const N: usize, const G: usize, const M: usize> Codes<V, M> for OrdinaryCodes<'_, V, N, G> {
    /// The distance from the edge has the sign of the scale, or is 0: no code is negative.
    #[inline(always)]
    fn of(&self, column: usize) -> [V; M] {
        let plain = self.plain;
        let mut codes = [V::load(self.w[column]).sub(plain.edge); M];
        for (at, codes) in (self.first..).zip(&mut codes) {
            *codes = codes.quotient(plain.divisor[at]).capped_code(plain.max_code[at]);
        }
        codes
    }
}

/// As [`OrdinaryCodes`], whatever the grids are.
struct PlainCodes<'a, V: Vector, const N: usize, const G: usize> {
    plain: &'a Plain<V, N>,
    first: usize,
    w: &'a [Lane; G],
}

impl<V: Vector, const N: usize, const G: usize, const M: usize> Codes<V, M> for PlainCodes<'_, V, N, G> {
    #[inline(always)]
    fn of(&self, column: usize) -> [V; M] {
        let mut codes = [V::load(self.w[column]); M];
        for (at, codes) in codes.iter_mut().enumerate() {
            *codes = self.plain.code(self.first + at, *codes);
        }
        codes
    }
}

/// Codes on a stored grid, by the reciprocal of its scale.
struct StoredCodes<'a, V, const G: usize> {
    reciprocal: V,
    bias: V,
    max_code: V,
    w: &'a [Lane; G],
}

impl<V: Vector, const G: usize> Codes<V, 1> for StoredCodes<'_, V, G> {
    #[inline(always)]
    fn of(&self, column: usize) -> [V; 1] {
        [V::load(self.w[column]).sub(self.bias).mul(self.reciprocal).code(self.max_code)]
    }
}

/// The codes of a group's columns on `N` grids.
///
/// A trait and no closure: what is not inlined into the kernel is compiled without its instructions, and of a closure that
/// cannot be asked.
trait Codes<V, const N: usize> {
    /// Those of column `column`.
    fn of(&self, column: usize) -> [V; N];
}

/// Weighted and plain squared error of each row's group, for each of `N` stored grids `(scale, bias)`: the codes of each
/// column, decoded.
///
/// The one measure of error there is: whatever chooses codes and whatever reports on them calls this. Grids are taken
/// side by side so that the one's sums need not wait for the other's.
#[inline(always)]
fn group_errors<V: Vector, const G: usize, const N: usize>(
    w: &[Lane; G],
    k: &[f32; G],
    stored: [(V, V); N],
    codes: &impl Codes<V, N>,
) -> [(V, V); N] {
    let mut sums = [(V::splat(0.0), V::splat(0.0)); N];
    for column in 0..G {
        let (w, k) = (V::load(w[column]), V::splat(k[column]));
        let codes = codes.of(column);
        for at in 0..N {
            let (scale, bias) = stored[at];
            let off = codes[at].mul(scale).add(bias).sub(w);
            let square = off.mul(off);
            sums[at] = (sums[at].0.add(k.mul(square)), sums[at].1.add(square));
        }
    }
    sums
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
    let (error, bias) = (residual.mul(scale.mul(scale)), bias.add(scale.mul(alpha)));
    let found = Candidate { error, plain: zero, scale: fitted, bias };
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

/// The stored grid `(scale, bias)` and the error it has; infinite if it is no grid.
#[inline(always)]
fn measure<V: Vector, const G: usize>(w: &[Lane; G], k: &[f32; G], (scale, bias): (V, V), max_code: V) -> Candidate<V> {
    let reciprocal = V::splat(1.0).div(scale);
    let [(error, plain)] = group_errors(w, k, [(scale, bias)], &StoredCodes { reciprocal, bias, max_code, w });
    let sound = V::splat(0.0).less(scale);
    // A scale of 0 or an infinite one gives NaN or infinity: less than nothing.
    Candidate { error, plain, scale, bias }.where_or(sound, Candidate::none())
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
        let bias = if which == 0 { from.bias.nearest(store) } else { from.bias.other_side(store) };
        let scale = fit_scale(w, k, (from.scale, bias), max_code);
        best = best.or_better(measure(w, k, (scale.nearest(store), bias), max_code));
        best = best.or_better(measure(w, k, (scale.other_side(store), bias), max_code));
    }
    best
}

/// Group `at` of a band or of a vector as an array of a length known when compiling.
#[inline(always)]
fn group<const G: usize, T>(of: &[T], at: usize) -> &[T; G] {
    of[at * G..].first_chunk().expect("a band holds whole groups")
}

/// Where the codes and grids of a band go: row after row.
pub struct Rows<'a> {
    /// A code for each weight.
    pub codes: &'a mut [u8],
    /// Weight per step of the code, for each group.
    pub scales: &'a mut [f32],
    /// Weight of code 0, for each group.
    pub biases: &'a mut [f32],
}

impl Rows<'_> {
    /// Puts the grid of group `at` of each row, of `groups`.
    #[inline(always)]
    fn put<V: Vector>(&mut self, at: usize, groups: usize, (scale, bias): (V, V)) {
        let (scale, bias) = (scale.store(), bias.store());
        for row in 0..ROWS {
            self.scales[row * groups + at] = scale[row];
            self.biases[row * groups + at] = bias[row];
        }
    }
}

/// The least and the greatest element of a group of one row, each in some lane.
#[inline(always)]
fn range_of_row<V: Vector, T: Element, const G: usize>(w: &[T; G]) -> (V, V) {
    let chunks = w.as_chunks::<BYTES>().0;
    let first = T::widened::<V>(&chunks[0]);
    let mut range = (first[0], first[0]);
    for chunk in chunks {
        for w in T::widened::<V>(chunk) {
            range = (w.min(range.0), w.max(range.1));
        }
    }
    range
}

kernel! {
    /// MLX's rule: see the [module](self).
    ///
    /// `source` holds whole groups, row after row, and `out` has room for them: eight groups at a time, whatever row they
    /// are of. (Codes need no sums, so nothing asks for a row a lane; and eight rows a power of two apart fight for the same
    /// lines of the cache.)
    pub fn encode_plain<V: Vector, const G: usize; T: Element>(
        source: &[T], max_code: u8, store: Float, out: &mut Rows<'_>,
    ) {
        let (zero, max) = (V::splat(0.0), V::splat(f32::from(max_code)));
        let groups = source.as_chunks::<G>().0;
        for (at, groups) in groups.chunks(ROWS).enumerate() {
            let [mut low, mut high] = [[zero; ROWS]; 2];
            for (at, w) in groups.iter().enumerate() {
                (low[at], high[at]) = range_of_row(w);
            }
            let grid = Plain::<V, 1>::new((V::least(low), V::greatest(high)), &[max_code], store);
            let [(scales, biases)] = grid.stored;
            let (first, count) = (at * ROWS, groups.len());
            out.scales[first..][..count].copy_from_slice(&scales.store()[..count]);
            out.biases[first..][..count].copy_from_slice(&biases.store()[..count]);

            let (edge, divisors) = (grid.edge.store(), grid.scale[0].divisors());
            let (scale, bias) = (grid.scale[0].store(), grid.bias[0].store());
            let codes = out.codes[first * G..][..count * G].as_chunks_mut::<G>().0;
            for (at, (codes, w)) in codes.iter_mut().zip(groups).enumerate() {
                for (codes, w) in codes.as_chunks_mut::<BYTES>().0.iter_mut().zip(w.as_chunks::<BYTES>().0) {
                    let mut steps = T::widened::<V>(w);
                    for steps in &mut steps {
                        *steps = if grid.is_ordinary {
                            steps.sub(V::splat(edge[at])).quotient(divisors[at]).min(max)
                        } else {
                            steps.sub(V::splat(bias[at])).div(V::splat(scale[at])).clamp(max)
                        };
                    }
                    *codes = V::nearest_bytes(steps);
                }
            }
        }
    }
}

/// What a search found for a group: a stored grid, and where that is better than the plain rule's, whose unrounded grid is
/// beside it.
struct Found<V: Vector> {
    best: Candidate<V>,
    searched: V::Mask,
    plain: Plain<V, 1>,
}

impl<V: Vector> Found<V> {
    /// The least weighted error: see the [module](self).
    #[inline(always)]
    fn search<const G: usize>(w: &[Lane; G], k: &[f32; G], trials: &[[u16; 2]], max_code: u8, store: Float) -> Self {
        // At few bits a step is far wider than the spacing of stored biases: the nearest one will do.
        let biases = if max_code > 15 { 2 } else { 1 };
        let (low, high) = range::<V, G>(w);
        let plain = Plain::<V, 1>::new((low, high), &[max_code], store);
        let max_code = V::splat(f32::from(max_code));
        let k_sum = k.iter().fold(0.0, |sum, k| sum + k);
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

        let ([(error, plain_error)], [(scale, bias)]) = (plain.errors(0, w, k), plain.stored);
        let mut best = Candidate { error, plain: plain_error, scale, bias };
        for finalist in [first, second] {
            let again = fit(w, k, k_sum, (finalist.scale, finalist.bias), max_code);
            best = best.or_better(settle(w, k, finalist.or_better(again), max_code, store, biases));
        }
        Self { best, searched: best.error.less(error), plain }
    }

    /// The codes of the group's columns.
    #[inline(always)]
    fn codes<'a, const G: usize>(&'a self, w: &'a [Lane; G], max_code: u8) -> FoundCodes<'a, V, G> {
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

impl<V: Vector, const G: usize> Codes<V, 1> for FoundCodes<'_, V, G> {
    #[inline(always)]
    fn of(&self, column: usize) -> [V; 1] {
        let [by_search] = self.by_search.of(column);
        let by_rule = self.found.plain.code(0, V::load(self.by_search.w[column]));
        [by_search.where_or(self.found.searched, by_rule)]
    }
}

/// Puts the codes of a group of each row where they belong: from column `first` on, rows of `cols` columns.
#[inline(always)]
fn put_codes<V: Vector, const G: usize>(of: &impl Codes<V, 1>, out: &mut [u8], (first, cols): (usize, usize)) {
    for eight in (0..G).step_by(ROWS) {
        let mut columns = [[0; ROWS]; ROWS];
        for (column, bytes) in (eight..).zip(&mut columns) {
            let [codes] = of.of(column);
            *bytes = codes.bytes();
        }
        let rows = V::transposed(columns);
        for row in 0..ROWS {
            out[row * cols + first + eight..][..ROWS].copy_from_slice(&rows[row]);
        }
    }
}

kernel! {
    /// The least weighted error: see the [module](self).
    ///
    /// As [`encode_plain`], with one weight `k` per column, none negative, and the `trials` for the code width.
    pub fn encode_search<V: Vector, const G: usize>(
        band: &[Lane], k: &[f32], trials: &[[u16; 2]], max_code: u8, store: Float, out: &mut Rows<'_>,
    ) {
        let (cols, groups) = (band.len(), band.len() / G);
        for at in 0..groups {
            let (w, k) = (group::<G, _>(band, at), group::<G, f32>(k, at));
            let found = Found::<V>::search(w, k, trials, max_code, store);
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

/// Errors of the rows of a band, summed group by group.
#[derive(Clone, Copy)]
struct RowSums {
    weighted: [f64; ROWS],
    plain: [f64; ROWS],
}

impl RowSums {
    const NONE: Self = Self { weighted: [0.0; ROWS], plain: [0.0; ROWS] };

    /// Adds those of a group.
    #[inline(always)]
    fn add<V: Vector>(&mut self, (weighted, plain): (V, V)) {
        self.weighted.iter_mut().zip(weighted.store()).for_each(|(sum, row)| *sum += f64::from(row));
        self.plain.iter_mut().zip(plain.store()).for_each(|(sum, row)| *sum += f64::from(row));
    }

    fn rows(&self) -> [RowError; ROWS] {
        std::array::from_fn(|row| RowError { weighted: self.weighted[row], plain: self.plain[row] })
    }
}

/// Adds the errors of a group by the plain rule with `N` code widths, `M` of them side by side.
#[inline(always)]
fn add_plain<V: Vector, const G: usize, const N: usize, const M: usize>(
    (w, k): (&[Lane; G], &[f32; G]),
    range: (V, V),
    max_codes: &[u8; N],
    store: Float,
    sums: &mut [RowSums],
) {
    let plain = Plain::<V, N>::new(range, max_codes, store);
    for first in (0..N).step_by(M) {
        let errors: [(V, V); M] = plain.errors(first, w, k);
        for at in 0..M {
            sums[first + at].add(errors[at]);
        }
    }
}

kernel! {
    /// The errors of [`encode_plain`] with each of `max_codes`: those of what it would store, without storing it.
    pub fn plain_errors<V: Vector, const G: usize>(
        band: &[Lane], k: &[f32], max_codes: &[u8], store: Float, out: &mut [[RowError; ROWS]],
    ) {
        let mut sums = [RowSums::NONE; MAX_SCHEMES];
        for at in 0..band.len() / G {
            let group = (group::<G, _>(band, at), group::<G, f32>(k, at));
            let range = range::<V, G>(group.0);
            if let Ok(all) = max_codes.try_into() {
                add_plain::<V, G, MAX_SCHEMES, SIDE_BY_SIDE>(group, range, all, store, &mut sums);
            } else {
                for (max_code, sums) in max_codes.iter().zip(&mut sums) {
                    add_plain::<V, G, 1, 1>(group, range, &[*max_code], store, std::slice::from_mut(sums));
                }
            }
        }
        out.iter_mut().zip(&sums).for_each(|(out, sums)| *out = sums.rows());
    }
}

kernel! {
    /// The errors of [`encode_search`] with each of `max_codes`, which have `trials` of their own.
    pub fn search_errors<V: Vector, const G: usize>(
        band: &[Lane], k: &[f32], trials: &[&[[u16; 2]]], max_codes: &[u8], store: Float, out: &mut [[RowError; ROWS]],
    ) {
        let mut sums = [RowSums::NONE; MAX_SCHEMES];
        for at in 0..band.len() / G {
            let (w, k) = (group::<G, _>(band, at), group::<G, f32>(k, at));
            for ((&max_code, trials), sums) in max_codes.iter().zip(trials).zip(&mut sums) {
                let best = Found::<V>::search(w, k, trials, max_code, store).best;
                sums.add((best.error, best.plain));
            }
        }
        out.iter_mut().zip(&sums).for_each(|(out, sums)| *out = sums.rows());
    }
}

/// Codes that are given, column by column.
struct GivenCodes<'a, const G: usize>(&'a [[u8; ROWS]; G]);

impl<V: Vector, const G: usize> Codes<V, 1> for GivenCodes<'_, G> {
    #[inline(always)]
    fn of(&self, column: usize) -> [V; 1] {
        [V::from_bytes(self.0[column])]
    }
}

kernel! {
    /// Error of each row of a band as `codes`, `scales` and `biases` decode, row after row, weighted by `k` and plain.
    pub fn error<V: Vector, const G: usize>(
        band: &[Lane], k: &[f32], codes: &[u8], scales: &[f32], biases: &[f32],
    ) -> [RowError; ROWS] {
        let (cols, groups) = (band.len(), band.len() / G);
        let mut sums = RowSums::NONE;
        for at in 0..groups {
            let mut columns = [[0; ROWS]; G];
            for (eight, columns) in columns.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
                let mut rows = [[0; ROWS]; ROWS];
                for (row, eight_codes) in rows.iter_mut().enumerate() {
                    *eight_codes = *codes[row * cols + at * G + eight * ROWS..].first_chunk().expect("whole eights");
                }
                *columns = V::transposed(rows);
            }
            let [mut scale, mut bias] = [[0.0; ROWS]; 2];
            for row in 0..ROWS {
                scale[row] = scales[row * groups + at];
                bias[row] = biases[row * groups + at];
            }
            let stored = [(V::load(scale), V::load(bias))];
            let [errors] = group_errors(group::<G, _>(band, at), group::<G, f32>(k, at), stored, &GivenCodes(&columns));
            sums.add(errors);
        }
        sums.rows()
    }
}

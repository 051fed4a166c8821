//! MLX's own rule, bit for bit that of `mx.quantize` on a CPU: the grid starts at the group's element of largest magnitude (the
//! *edge*), and its step is adjusted so that zero lies on the grid.

use super::Channels;
use super::grid::{
    ColumnRange, GroupBuffers, GroupCodes, LEAST_GROUP, MAX_SCHEMES, RowSums, group, group_errors, merge_ranges,
};
use crate::codec::RowError;
use crate::dtype::Float;
use crate::simd::batch::Batch;
use crate::simd::convert::{CHUNK, Element};
use crate::simd::divide::Divide;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column, Lanes, Simd, Vector};

/// The smallest step before it is adjusted (MLX's constant).
const MLX_EPSILON: f32 = 1e-7;

/// Scales of this magnitude and above take quotients by division, see [`Divide::quotient`]. (All scales of this
/// rule are above 2^−60.)
const MAX_ORDINARY_SCALE: f32 = 1.0e18;

/// Groups wider than this have a step above the smallest one, whatever the code width: 255 of those are narrower.
const LEAST_WIDTH: f32 = 256.0 * MLX_EPSILON;

/// The element of largest magnitude, the width of the group, and whether that element is the least one.
#[inline(always)]
fn edge_and_width<V: Simd>((low, high): (V, V)) -> (V, V, V::Mask) {
    let from_low = high.abs().lt(low.abs());
    (low.select(from_low, high), high.sub(low), from_low)
}

/// The scale nearest to `step` that puts zero on a grid that starts at `edge`, and the number of steps from the edge to zero, an
/// integer. If that is 0, there is no such scale.
#[inline(always)]
fn anchor_zero<W: Lanes>(edge: W, step: W) -> (W, W) {
    let to_zero = edge.div(step).round_ties_even();
    (edge.div(to_zero), to_zero)
}

/// MLX's grid for a group of each row.
#[derive(Clone, Copy)]
pub(super) struct MlxGrid<V: Simd> {
    /// The unrounded grid, which gives the codes.
    scale: V,
    bias: V,
    /// The stored grid: scale and bias, rounded.
    pub(super) stored: (V, V),
    divisor: V::Divisor,
    max_code: V,
    /// Whether all grids start at the edge, and [`Divide::quotient`] by their scales gives the codes of a division.
    is_ordinary: bool,
}

impl<V: Simd> MlxGrid<V> {
    #[inline(always)]
    pub(super) fn new(range: (V, V), max_code: u8, store: Float) -> Self {
        let zero = V::splat(0.0);
        let (edge, width, from_low) = edge_and_width(range);
        let max_code = V::splat(f32::from(max_code));
        let step = width.div(max_code).max(V::splat(MLX_EPSILON));
        let step = step.select(from_low, zero.sub(step));
        let (scale, to_zero) = anchor_zero(edge, step);
        let is_anchored = zero.lt(to_zero.abs());
        let (scale, bias) = (scale.select(is_anchored, step), edge.select(is_anchored, zero));
        Self {
            scale,
            bias,
            stored: (scale.round_to(store), bias.round_to(store)),
            divisor: scale.divisor(),
            max_code,
            is_ordinary: V::all(is_anchored) && V::all(scale.abs().lt(V::splat(MAX_ORDINARY_SCALE))),
        }
    }

    /// The codes of `w`, by division.
    #[inline(always)]
    pub(super) fn code(&self, w: V) -> V {
        w.sub(self.bias).div(self.scale).code(self.max_code)
    }

    /// The errors of the stored grid.
    #[inline(always)]
    pub(super) fn errors<const G: usize>(&self, w: &[Column; G], k: &[f32; G]) -> (V, V) {
        if self.is_ordinary {
            group_errors(w, k, self.stored, &MlxCodes::<_, G, true> { grid: self, w })
        } else {
            group_errors(w, k, self.stored, &MlxCodes::<_, G, false> { grid: self, w })
        }
    }
}

/// The codes of `mx.quantize`. With `ORDINARY`, the grid must be.
struct MlxCodes<'a, V: Simd, const G: usize, const ORDINARY: bool> {
    grid: &'a MlxGrid<V>,
    w: &'a [Column; G],
}

impl<V: Simd, const G: usize, const ORDINARY: bool> GroupCodes<V> for MlxCodes<'_, V, G, ORDINARY> {
    #[inline(always)]
    fn column(&self, column: usize) -> V {
        let (w, MlxGrid { bias, divisor, max_code, .. }) = (V::load(self.w[column]), *self.grid);
        // The distance from the edge is 0 or has the sign of the scale, so no code is negative.
        if ORDINARY { w.sub(bias).quotient(divisor).code_nonneg(max_code) } else { self.grid.code(w) }
    }
}

/// Precomputed constants of `N` code widths.
struct Widths<W: Batch, const N: usize> {
    /// Limits for [`Quantize::fused_code`](crate::simd::quantize::Quantize::fused_code), `W::PARTS` in each of the first
    /// [`BATCHES`](Self::BATCHES).
    limit: [W; N],
    /// The largest codes, as divisors.
    divisor: [<W::Part as Divide>::Divisor; N],
}

impl<W: Batch, const N: usize> Widths<W, N> {
    /// Batches that hold a number per width.
    const BATCHES: usize = N.div_ceil(W::PARTS);

    #[inline(always)]
    fn new(max_codes: [u8; N]) -> Self {
        let zero = W::Part::splat(0.0);
        let mut max_code = [zero; N];
        let mut new = Self { limit: [W::splat(0.0); N], divisor: [zero.divisor(); N] };
        for at in 0..N {
            max_code[at] = W::Part::splat(f32::from(max_codes[at]));
            new.divisor[at] = max_code[at].divisor();
        }
        for (limit, parts) in new.limit.iter_mut().zip(max_code.chunks(W::PARTS)) {
            *limit = W::concat(parts).code_limit();
        }
        new
    }
}

/// MLX's grids for `N` code widths of the same group of each row, all of them ordinary: they start at the edge, which is a
/// weight and therefore stored exactly.
struct OrdinaryGrids<W: Batch, const N: usize> {
    edge: W,
    /// Codes per unit of weight: the reciprocals of the unrounded scales, laid out as [`Widths::limit`].
    steps: [W; N],
    /// The stored scales, negated.
    minus_scale: [W; N],
}

impl<W: Batch, const N: usize> OrdinaryGrids<W, N> {
    /// The grids, if all are ordinary.
    #[inline(always)]
    fn new(range: (W::Part, W::Part), widths: &Widths<W, N>, store: Float) -> Option<Self> {
        let zero = W::Part::splat(0.0);
        let (edge, width, from_low) = edge_and_width(range);
        // Then no step is the smallest one, and at least half of the codes lie between the edge and zero.
        let (least, most) = (W::Part::splat(LEAST_WIDTH), W::Part::splat(MAX_ORDINARY_SCALE));
        if !(W::Part::all(least.lt(width)) && W::Part::all(width.lt(most))) {
            return None;
        }
        let width = width.select(from_low, zero.sub(width));
        let mut steps = [zero; N];
        for (step, &divisor) in steps.iter_mut().zip(&widths.divisor) {
            *step = width.exact_quotient(divisor);
        }
        let by_edge = W::concat(&[W::Part::splat(1.0).div(edge)]);
        let (edge, zero) = (W::concat(&[edge]), W::splat(0.0));
        let mut new = Self { edge, steps: [zero; N], minus_scale: [zero; N] };
        for (at, steps) in steps.chunks(W::PARTS).enumerate() {
            let (scale, to_zero) = anchor_zero(edge, W::concat(steps));
            new.steps[at] = to_zero.mul(by_edge);
            new.minus_scale[at] = zero.sub(scale.round_to(store));
        }
        Some(new)
    }

    /// Adds the errors of the stored grids to `sums`, for a group whose channels have the given order.
    ///
    /// They are those of [`encode_plain`], with two differences. A product replaces the division that gives a code, so a weight
    /// halfway between two codes may get the other one: that is equally far by the unrounded scale, but not by the stored one.
    /// And with `HALVES`, scales have so few digits that a code times a scale is exact: the distance to the edge less that
    /// product is the error, except for the rounding of decoding in `f32`.
    #[inline(always)]
    fn add_errors<const G: usize, const HALVES: bool>(
        &self,
        widths: &Widths<W, N>,
        w: &[Column; G],
        (channels, drops): (&[u8; G], &[f32; G]),
        sums: &mut [(W, W); N],
    ) {
        let zero = W::splat(0.0);
        let mut of_group = [(zero, zero); N];
        for (&channel, &drop) in channels.iter().zip(drops) {
            // The remainder tells the compiler that the index is in bounds.
            let (w, drop) = (W::broadcast(w[usize::from(channel) % G]), W::splat(drop));
            let from_edge = w.sub(self.edge);
            for (at, (weighted, plain)) in of_group[..Widths::<W, N>::BATCHES].iter_mut().enumerate() {
                let code = from_edge.fused_code(self.steps[at], widths.limit[at]);
                let off = if HALVES {
                    code.mul_add(self.minus_scale[at], from_edge)
                } else {
                    self.edge.sub(code.mul(self.minus_scale[at])).sub(w)
                };
                *plain = off.mul_add(off, *plain);
                *weighted = drop.mul_add(*plain, *weighted);
            }
        }
        for (sums, of_group) in sums[..Widths::<W, N>::BATCHES].iter_mut().zip(of_group) {
            *sums = (sums.0.add(of_group.0), sums.1.add(of_group.1));
        }
    }
}

/// Eights of groups whose grids are computed before any of their codes: enough to hide the latency of divisions, and few enough
/// that the weights stay in the L1 cache.
const EIGHTS_AHEAD: usize = 8;

/// Eight groups, which may be of different rows.
type Eight<T, const G: usize> = [[T; G]; BAND_ROWS];

/// The unrounded grids of eight groups, one per lane.
#[derive(Clone, Copy)]
struct EightGrids<V: Simd> {
    scale: Column,
    bias: Column,
    divisors: V::Divisors,
}

/// Writes the codes of eight groups. With `ORDINARY`, all `grids` must be.
#[inline(always)]
fn put_eight<V: Simd, T: Element, const G: usize, const ORDINARY: bool>(
    grids: &EightGrids<V>,
    groups: &Eight<T, G>,
    max_code: u8,
    codes: &mut Eight<u8, G>,
) {
    for at in 0..BAND_ROWS {
        let (scale, bias) = (V::splat(grids.scale[at]), V::splat(grids.bias[at]));
        let divisor = V::splat_divisor(&grids.divisors, at);
        for (codes, w) in codes[at].as_chunks_mut::<CHUNK>().0.iter_mut().zip(groups[at].as_chunks::<CHUNK>().0) {
            let mut steps = T::widen::<V>(w);
            for steps in &mut steps {
                let from_bias = steps.sub(bias);
                *steps = if ORDINARY {
                    from_bias.quotient(divisor)
                } else {
                    from_bias.div(scale).clamp(V::splat(f32::from(max_code)))
                };
            }
            *codes = V::round_to_bytes(steps, max_code);
        }
    }
}

/// Output of eights of groups: codes, scales, biases.
type EightBuffers<'a, const G: usize> = (&'a mut [Eight<u8, G>], &'a mut [Column], &'a mut [Column]);

/// Encodes at most [`EIGHTS_AHEAD`] eights of groups. `ranges` and `grids` are scratch space.
#[inline(always)]
fn encode_eights<V: Simd, T: Element, const G: usize>(
    eights: &[Eight<T, G>],
    max_code: u8,
    store: Float,
    ranges: &mut [(V, V); EIGHTS_AHEAD],
    grids: &mut [EightGrids<V>; EIGHTS_AHEAD],
    (codes, scales, biases): EightBuffers<'_, G>,
) {
    for (range, groups) in ranges.iter_mut().zip(eights) {
        *range = T::ranges::<V, G>(groups);
    }
    let mut ordinary = true;
    for (((grids, range), scales), biases) in grids.iter_mut().zip(&*ranges).zip(scales).zip(biases) {
        let grid = MlxGrid::<V>::new(*range, max_code, store);
        (*scales, *biases) = (grid.stored.0.store(), grid.stored.1.store());
        let divisors = V::store_divisor(grid.divisor);
        *grids = EightGrids { scale: grid.scale.store(), bias: grid.bias.store(), divisors };
        ordinary &= grid.is_ordinary;
    }
    let each = grids.iter().zip(eights).zip(codes);
    if ordinary {
        for ((grids, groups), codes) in each {
            put_eight::<V, T, G, true>(grids, groups, max_code, codes);
        }
    } else {
        for ((grids, groups), codes) in each {
            put_eight::<V, T, G, false>(grids, groups, max_code, codes);
        }
    }
}

kernel! {
    /// Encodes by MLX's rule, see the [module](self).
    ///
    /// `source` holds whole groups, row after row, and `out` has room for them. Eight groups are encoded at a time, in the order
    /// of the file. (Nothing is summed over a row, so lanes need not be rows; and eight rows that are a power of two apart
    /// compete for the same cache lines.)
    pub(crate) fn encode_plain<V: Simd, const G: usize; T: Element>(
        source: &[T], max_code: u8, store: Float, out: &mut GroupBuffers<'_>,
    ) {
        let zero = V::splat(0.0);
        let none = EightGrids::<V> { scale: zero.store(), bias: zero.store(), divisors: V::store_divisor(zero.divisor()) };
        let (mut ranges, mut grids) = ([(zero, zero); EIGHTS_AHEAD], [none; EIGHTS_AHEAD]);
        let (eights, rest) = source.as_chunks::<G>().0.as_chunks::<BAND_ROWS>();
        let (whole, last) = out.codes.as_chunks_mut::<G>().0.split_at_mut(eights.len() * BAND_ROWS);
        let codes = whole.as_chunks_mut::<BAND_ROWS>().0.chunks_mut(EIGHTS_AHEAD);
        let scales = out.scales.as_chunks_mut::<BAND_ROWS>().0.chunks_mut(EIGHTS_AHEAD);
        let biases = out.biases.as_chunks_mut::<BAND_ROWS>().0.chunks_mut(EIGHTS_AHEAD);
        for (((eights, codes), scales), biases) in eights.chunks(EIGHTS_AHEAD).zip(codes).zip(scales).zip(biases) {
            let out = (codes, scales, biases);
            encode_eights::<V, T, G>(eights, max_code, store, &mut ranges, &mut grids, out);
        }
        if let [first, ..] = rest {
            let (mut groups, mut codes) = ([*first; BAND_ROWS], [[[0; G]; BAND_ROWS]]);
            groups[..rest.len()].copy_from_slice(rest);
            let [mut scales, mut biases] = [[[0.0; BAND_ROWS]]; 2];
            let eight = (&mut codes[..], &mut scales[..], &mut biases[..]);
            encode_eights::<V, T, G>(&[groups], max_code, store, &mut ranges, &mut grids, eight);
            let done = eights.len() * BAND_ROWS;
            last[..rest.len()].copy_from_slice(&codes[0][..rest.len()]);
            out.scales[done..][..rest.len()].copy_from_slice(&scales[0][..rest.len()]);
            out.biases[done..][..rest.len()].copy_from_slice(&biases[0][..rest.len()]);
        }
    }
}

/// Columns whose errors are summed in `f32` before the sums continue in `f64`.
const SUM_COLUMNS: usize = 128;

/// Adds the errors of each row by MLX's rule with `N` code widths to `sums`.
#[inline(always)]
fn add_plain<W: Batch, const G: usize, const N: usize>(
    band: &[Column],
    ranges: &[ColumnRange],
    channels: &Channels<'_>,
    max_codes: [u8; N],
    store: Float,
    sums: &mut [RowSums],
) {
    let (widths, ordered) = (Widths::<W, N>::new(max_codes), channels.by_importance::<G>());
    let none = [(W::splat(0.0), W::splat(0.0)); N];
    let mut errors = none;
    let groups = band.len() / G;
    for at in 0..groups {
        let (w, ordered) = (group::<G, _>(band, at), ordered.group::<G>(at));
        let range = merge_ranges(&ranges[at * G / LEAST_GROUP..][..G / LEAST_GROUP]);
        if let Some(grids) = OrdinaryGrids::new(range, &widths, store) {
            if store == Float::F32 {
                grids.add_errors::<G, false>(&widths, w, ordered, &mut errors);
            } else {
                grids.add_errors::<G, true>(&widths, w, ordered, &mut errors);
            }
        } else {
            let k = group::<G, f32>(channels.k, at);
            for (max_code, sums) in max_codes.into_iter().zip(&mut *sums) {
                sums.add(MlxGrid::<W::Part>::new(range, max_code, store).errors(w, k));
            }
        }
        if (at + 1) % (SUM_COLUMNS / G) == 0 || at + 1 == groups {
            for (at, sums) in sums.iter_mut().enumerate() {
                let (weighted, plain) = errors[at / W::PARTS];
                sums.add((weighted.extract(at % W::PARTS), plain.extract(at % W::PARTS)));
            }
            errors = none;
        }
    }
}

kernel! {
    /// The errors of [`encode_plain`] with each of `max_codes`, without its output; a weight halfway between two codes may get
    /// either. The weights must be values of type `store`. `ranges` are the band's [`ranges`](super::ranges).
    pub(crate) fn plain_errors<V: Simd in W: Batch, const G: usize>(
        band: &[Column], ranges: &[ColumnRange], channels: &Channels<'_>, max_codes: &[u8], store: Float, out: &mut [[RowError; BAND_ROWS]],
    ) {
        let mut sums = [RowSums::ZERO; MAX_SCHEMES];
        if let Ok(all) = max_codes.try_into() {
            add_plain::<W, G, MAX_SCHEMES>(band, ranges, channels, all, store, &mut sums);
        } else {
            for (&max_code, sums) in max_codes.iter().zip(&mut sums) {
                add_plain::<W, G, 1>(band, ranges, channels, [max_code], store, std::slice::from_mut(sums));
            }
        }
        out.iter_mut().zip(&sums).for_each(|(out, sums)| *out = sums.rows());
    }
}

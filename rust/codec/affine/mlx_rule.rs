//! MLX's own rule, bit for bit that of `mx.quantize` on a CPU: the grid is anchored at the group's element of largest
//! magnitude, and stretched so that zero lies on it.

use super::Channels;
use super::grid::{Codes, LEAST_GROUP, MAX_SCHEMES, Range, RowSums, Rows, group, group_errors, joined};
use crate::codec::RowError;
use crate::dtype::Float;
use crate::simd::kernel;
use crate::simd::paired::Wide;
use crate::simd::vector::{BAND_ROWS, BYTES, Column, Element, Lanes, Vector};

/// The least scale the plain rule gives (MLX's constant).
const PLAIN_EPSILON: f32 = 1e-7;

/// Magnitudes of scales from which on a quotient is taken by division. (Those of the plain rule are above 2^−60.)
const ORDINARY: f32 = 1.0e18;

/// Widths of groups above which no grid has the least scale: 255 such steps are narrower.
const LEAST_WIDTH: f32 = 256.0 * PLAIN_EPSILON;

/// The element of largest magnitude, the distance from it to the other end of the group, and whether it is the least.
#[inline(always)]
fn edge_and_width<V: Vector>((low, high): (V, V)) -> (V, V, V::Mask) {
    let from_low = high.abs().less(low.abs());
    (low.where_or(from_low, high), high.sub(low), from_low)
}

/// The scale that puts zero on a grid from `edge` in steps of `step`, and the steps from the edge to zero: a whole number
/// of them. If that is 0, no scale does.
#[inline(always)]
fn anchored<W: Lanes>(edge: W, step: W) -> (W, W) {
    let to_zero = edge.div(step).nearest_integer();
    (edge.div(to_zero), to_zero)
}

/// The plain rule's grid for a group of each row.
#[derive(Clone, Copy)]
pub(super) struct Plain<V: Vector> {
    /// The grid as codes are taken by it, unrounded.
    scale: V,
    bias: V,
    /// And as it is stored.
    pub(super) stored: (V, V),
    divisor: V::Divisor,
    max_code: V,
    /// Whether it begins at the element of largest magnitude, and its scale is such that [`Vector::quotient`] may stand for a division.
    is_ordinary: bool,
}

impl<V: Vector> Plain<V> {
    #[inline(always)]
    pub(super) fn new(range: (V, V), max_code: u8, store: Float) -> Self {
        let zero = V::splat(0.0);
        let (edge, width, from_low) = edge_and_width(range);
        let max_code = V::splat(f32::from(max_code));
        let step = width.div(max_code).max(V::splat(PLAIN_EPSILON));
        let step = step.where_or(from_low, zero.sub(step));
        let (scale, to_zero) = anchored(edge, step);
        let is_anchored = zero.less(to_zero.abs());
        let (scale, bias) = (scale.where_or(is_anchored, step), edge.where_or(is_anchored, zero));
        Self {
            scale,
            bias,
            stored: (scale.nearest(store), bias.nearest(store)),
            divisor: scale.divisor(),
            max_code,
            is_ordinary: V::all(is_anchored) && V::all(scale.abs().less(V::splat(ORDINARY))),
        }
    }

    /// Codes of `w`, by division.
    #[inline(always)]
    pub(super) fn code(&self, w: V) -> V {
        w.sub(self.bias).div(self.scale).code(self.max_code)
    }

    /// The errors as stored.
    #[inline(always)]
    pub(super) fn errors<const G: usize>(&self, w: &[Column; G], k: &[f32; G]) -> (V, V) {
        if self.is_ordinary {
            group_errors(w, k, self.stored, &PlainCodes::<_, G, true> { plain: self, w })
        } else {
            group_errors(w, k, self.stored, &PlainCodes::<_, G, false> { plain: self, w })
        }
    }
}

/// Codes as `mx.quantize` takes them, on a grid that is ordinary if it says so.
struct PlainCodes<'a, V: Vector, const G: usize, const ORDINARY: bool> {
    plain: &'a Plain<V>,
    w: &'a [Column; G],
}

impl<V: Vector, const G: usize, const ORDINARY: bool> Codes<V> for PlainCodes<'_, V, G, ORDINARY> {
    #[inline(always)]
    fn of(&self, column: usize) -> V {
        let (w, Plain { bias, divisor, max_code, .. }) = (V::load(self.w[column]), *self.plain);
        // The distance from the edge has the sign of the scale, or is 0: no code is negative.
        if ORDINARY { w.sub(bias).quotient(divisor).capped_code(max_code) } else { self.plain.code(w) }
    }
}

/// `N` code widths, made ready.
struct Widths<W: Wide, const N: usize> {
    /// What holds codes to the largest ones, as many as there are parts side by side: the first `N / W::PARTS`, rounded up.
    cap: [W; N],
    divisor: [<W::Part as Vector>::Divisor; N],
}

impl<W: Wide, const N: usize> Widths<W, N> {
    /// How many it takes of what is wide.
    const WIDE: usize = N.div_ceil(W::PARTS);

    #[inline(always)]
    fn new(max_codes: [u8; N]) -> Self {
        let zero = W::Part::splat(0.0);
        let mut max_code = [zero; N];
        let mut new = Self { cap: [W::splat(0.0); N], divisor: [zero.divisor(); N] };
        for at in 0..N {
            max_code[at] = W::Part::splat(f32::from(max_codes[at]));
            new.divisor[at] = max_code[at].divisor();
        }
        for (wide, parts) in new.cap.iter_mut().zip(max_code.chunks(W::PARTS)) {
            *wide = W::beside(parts).cap();
        }
        new
    }
}

/// The plain rule's grids for `N` code widths of the same group of each row, all of them ordinary: they begin at the edge,
/// which is stored as it is, being a weight.
struct Ordinary<W: Wide, const N: usize> {
    edge: W,
    /// Steps of the scale, unrounded, for each unit of a weight; as many as [`Widths::cap`].
    steps: [W; N],
    /// The scale as it is stored, with the sign changed.
    minus_scale: [W; N],
}

impl<W: Wide, const N: usize> Ordinary<W, N> {
    /// If all are.
    #[inline(always)]
    fn new(range: (W::Part, W::Part), widths: &Widths<W, N>, store: Float) -> Option<Self> {
        let zero = W::Part::splat(0.0);
        let (edge, width, from_low) = edge_and_width(range);
        // No step is the least one, then, and half the codes or more lie between the edge and zero.
        let (least, most) = (W::Part::splat(LEAST_WIDTH), W::Part::splat(ORDINARY));
        if !(W::Part::all(least.less(width)) && W::Part::all(width.less(most))) {
            return None;
        }
        let width = width.where_or(from_low, zero.sub(width));
        let mut steps = [zero; N];
        for (step, &divisor) in steps.iter_mut().zip(&widths.divisor) {
            *step = width.exact_quotient(divisor);
        }
        let by_edge = W::beside(&[W::Part::splat(1.0).div(edge)]);
        let (edge, zero) = (W::beside(&[edge]), W::splat(0.0));
        let mut new = Self { edge, steps: [zero; N], minus_scale: [zero; N] };
        for (at, steps) in steps.chunks(W::PARTS).enumerate() {
            let (scale, to_zero) = anchored(edge, W::beside(steps));
            new.steps[at] = to_zero.mul(by_edge);
            new.minus_scale[at] = zero.sub(scale.nearest(store));
        }
        Some(new)
    }

    /// Adds the errors of the grids as stored to `sums`, of a group whose channels fall as these do.
    ///
    /// They are those of [`encode_plain`], but for two things. A code is taken by a product where that divides, so of a
    /// weight in the middle between two codes it may be the other one: equally far by the scale it is taken by, and not by
    /// the one that is stored. And if `HALVES`, the store has so few digits that a code by a scale is exact: the distance to
    /// the edge without it is what a weight is off, but for what decoding in `f32` rounds.
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
            // The remainder says to the compiler that there is such a channel.
            let (w, drop) = (W::each(w[usize::from(channel) % G]), W::splat(drop));
            let from_edge = w.sub(self.edge);
            for (at, (weighted, plain)) in of_group[..Widths::<W, N>::WIDE].iter_mut().enumerate() {
                let code = from_edge.product_code(self.steps[at], widths.cap[at]);
                let off = if HALVES {
                    code.mul_add(self.minus_scale[at], from_edge)
                } else {
                    self.edge.sub(code.mul(self.minus_scale[at])).sub(w)
                };
                *plain = off.mul_add(off, *plain);
                *weighted = drop.mul_add(*plain, *weighted);
            }
        }
        for (sums, of_group) in sums[..Widths::<W, N>::WIDE].iter_mut().zip(of_group) {
            *sums = (sums.0.add(of_group.0), sums.1.add(of_group.1));
        }
    }
}

/// Eights of groups whose grids are made before any of their codes: enough that no grid waits for the divisions of another,
/// and few enough that the weights are still in the first cache.
const AHEAD: usize = 8;

/// Eight groups, of whatever rows.
type Eight<T, const G: usize> = [[T; G]; BAND_ROWS];

/// The grids of eight groups, and what codes are taken by.
#[derive(Clone, Copy)]
struct Grids<V: Vector> {
    scale: Column,
    bias: Column,
    divisors: V::Divisors,
}

/// Puts the codes of eight groups on `grids`, which are ordinary if it says so.
#[inline(always)]
fn put_eight<V: Vector, T: Element, const G: usize, const ORDINARY: bool>(
    grids: &Grids<V>,
    groups: &Eight<T, G>,
    max_code: u8,
    codes: &mut Eight<u8, G>,
) {
    for at in 0..BAND_ROWS {
        let (scale, bias) = (V::splat(grids.scale[at]), V::splat(grids.bias[at]));
        let divisor = V::splat_divisor(&grids.divisors, at);
        for (codes, w) in codes[at].as_chunks_mut::<BYTES>().0.iter_mut().zip(groups[at].as_chunks::<BYTES>().0) {
            let mut steps = T::widened::<V>(w);
            for steps in &mut steps {
                let from_bias = steps.sub(bias);
                *steps = if ORDINARY {
                    from_bias.quotient(divisor)
                } else {
                    from_bias.div(scale).clamp(V::splat(f32::from(max_code)))
                };
            }
            *codes = V::nearest_bytes(steps, max_code);
        }
    }
}

/// Where eights of groups go: codes, scales, biases.
type Out<'a, const G: usize> = (&'a mut [Eight<u8, G>], &'a mut [Column], &'a mut [Column]);

/// Encodes as many eights of groups as there are `grids` to note, or fewer.
#[inline(always)]
fn encode_eights<V: Vector, T: Element, const G: usize>(
    eights: &[Eight<T, G>],
    max_code: u8,
    store: Float,
    ranges: &mut [(V, V); AHEAD],
    grids: &mut [Grids<V>; AHEAD],
    (codes, scales, biases): Out<'_, G>,
) {
    for (range, groups) in ranges.iter_mut().zip(eights) {
        *range = T::ranges::<V, G>(groups);
    }
    let mut ordinary = true;
    for (((grids, range), scales), biases) in grids.iter_mut().zip(&*ranges).zip(scales).zip(biases) {
        let grid = Plain::<V>::new(*range, max_code, store);
        (*scales, *biases) = (grid.stored.0.store(), grid.stored.1.store());
        let divisors = V::store_divisor(grid.divisor);
        *grids = Grids { scale: grid.scale.store(), bias: grid.bias.store(), divisors };
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
    /// MLX's rule: see the [module](self).
    ///
    /// `source` holds whole groups, row after row, and `out` has room for them: eight groups at a time, whatever row they
    /// are of. (Codes need no sums, so nothing asks for a row a lane; and eight rows a power of two apart fight for the same
    /// lines of the cache.)
    pub fn encode_plain<V: Vector, const G: usize; T: Element>(
        source: &[T], max_code: u8, store: Float, out: &mut Rows<'_>,
    ) {
        let zero = V::splat(0.0);
        let none = Grids::<V> { scale: zero.store(), bias: zero.store(), divisors: V::store_divisor(zero.divisor()) };
        let (mut ranges, mut grids) = ([(zero, zero); AHEAD], [none; AHEAD]);
        let (eights, rest) = source.as_chunks::<G>().0.as_chunks::<BAND_ROWS>();
        let (whole, last) = out.codes.as_chunks_mut::<G>().0.split_at_mut(eights.len() * BAND_ROWS);
        let codes = whole.as_chunks_mut::<BAND_ROWS>().0.chunks_mut(AHEAD);
        let scales = out.scales.as_chunks_mut::<BAND_ROWS>().0.chunks_mut(AHEAD);
        let biases = out.biases.as_chunks_mut::<BAND_ROWS>().0.chunks_mut(AHEAD);
        for (((eights, codes), scales), biases) in eights.chunks(AHEAD).zip(codes).zip(scales).zip(biases) {
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

/// Columns whose errors are summed in `f32` before the sums go on in `f64`.
const SUM_COLUMNS: usize = 128;

/// Adds the errors of each row by the plain rule with `N` code widths to `sums`.
#[inline(always)]
fn add_plain<W: Wide, const G: usize, const N: usize>(
    band: &[Column],
    ranges: &[Range],
    channels: &Channels<'_>,
    max_codes: [u8; N],
    store: Float,
    sums: &mut [RowSums],
) {
    let (widths, falling) = (Widths::<W, N>::new(max_codes), channels.falling::<G>());
    let none = [(W::splat(0.0), W::splat(0.0)); N];
    let mut errors = none;
    let groups = band.len() / G;
    for at in 0..groups {
        let (w, falling) = (group::<G, _>(band, at), falling.of::<G>(at));
        let range = joined(&ranges[at * G / LEAST_GROUP..][..G / LEAST_GROUP]);
        if let Some(grids) = Ordinary::new(range, &widths, store) {
            if store == Float::F32 {
                grids.add_errors::<G, false>(&widths, w, falling, &mut errors);
            } else {
                grids.add_errors::<G, true>(&widths, w, falling, &mut errors);
            }
        } else {
            let k = group::<G, f32>(channels.k, at);
            for (max_code, sums) in max_codes.into_iter().zip(&mut *sums) {
                sums.add(Plain::<W::Part>::new(range, max_code, store).errors(w, k));
            }
        }
        if (at + 1) % (SUM_COLUMNS / G) == 0 || at + 1 == groups {
            for (at, sums) in sums.iter_mut().enumerate() {
                let (weighted, plain) = errors[at / W::PARTS];
                sums.add((weighted.part(at % W::PARTS), plain.part(at % W::PARTS)));
            }
            errors = none;
        }
    }
}

kernel! {
    /// The errors of [`encode_plain`] with each of `max_codes`, without storing what it stores; of a weight in the middle
    /// between two codes, with either. The weights must be such as `store` has. `ranges` are the band's [`ranges`](super::ranges).
    pub fn plain_errors<V: Vector in W: Wide, const G: usize>(
        band: &[Column], ranges: &[Range], channels: &Channels<'_>, max_codes: &[u8], store: Float, out: &mut [[RowError; BAND_ROWS]],
    ) {
        let mut sums = [RowSums::NONE; MAX_SCHEMES];
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

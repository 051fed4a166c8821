//! The encoder of E2M1 codes with a scale per group, for any type of scale.

use super::minifloat::E2M1;
use super::{FloatRows, put_codes};
use crate::codec::affine::grid::{RowSums, group};
use crate::codec::affine::pack::pack;
use crate::codec::{Band, Context, Effort, Metric, RowError};
use crate::dtype::{Dtype, Float, e2m1_values};
use crate::simd::Isa;
use crate::simd::batch::{Batch, MAX_PARTS};
use crate::simd::convert::Convert;
use crate::simd::vector::{BAND_ROWS, Column, Simd};

/// How the scale of a group is stored: a code of one byte.
///
/// Larger codes are larger scales.
pub(in crate::codec) trait GroupScale {
    /// The codes that the encoder uses. Their scales are positive.
    const CODES: std::ops::RangeInclusive<u8>;

    /// The codes to try, relative to that of the rule. The first is 0.
    const NEAR: &'static [i8];

    /// The code of the format's own rule, if the largest magnitude in the group of each row is `largest`. It may lie
    /// outside of [`CODES`](Self::CODES).
    fn rule<V: Simd>(largest: V) -> [u8; BAND_ROWS];

    /// The scale: the weight that the code of 1 stands for.
    fn scale(code: u8) -> f32;
}

/// The scales of a group of each row, with the errors of the nearest codes.
#[derive(Clone, Copy)]
struct GroupGrid<V> {
    error: V,
    plain: V,
    /// The stored code of the scale.
    code: V,
    scale: V,
}

impl<V: Simd> GroupGrid<V> {
    /// `other` where its error is smaller, else `self`.
    #[inline(always)]
    fn or_better(self, other: Self) -> Self {
        let is_better = other.error.lt(self.error);
        Self {
            error: other.error.select(is_better, self.error),
            plain: other.plain.select(is_better, self.plain),
            code: other.code.select(is_better, self.code),
            scale: other.scale.select(is_better, self.scale),
        }
    }

    /// The scales with the least weighted error, among those of the rule and `near` it.
    #[inline(always)]
    fn search<W: Batch<Part = V>, S: GroupScale, const G: usize>(w: &[Column; G], k: &[f32; G], near: &[i8]) -> Self {
        let (magnitudes, largest) = magnitudes::<V, G>(w);
        let by_rule = S::rule(largest);
        let mut best: Option<Self> = None;
        for near in near.chunks(W::PARTS) {
            let [mut codes, mut scales] = [[largest; MAX_PARTS]; 2];
            for at in 0..W::PARTS {
                // The last one again to fill the register.
                let from_rule = near[at.min(near.len() - 1)];
                let (mut code, mut scale) = ([0; BAND_ROWS], [0.0; BAND_ROWS]);
                for row in 0..BAND_ROWS {
                    let shifted = by_rule[row].saturating_add_signed(from_rule);
                    code[row] = shifted.clamp(*S::CODES.start(), *S::CODES.end());
                    scale[row] = S::scale(code[row]);
                }
                (codes[at], scales[at]) = (V::from_bytes(code), V::load(scale));
            }
            let (error, plain) = errors(&magnitudes, k, W::concat(&scales[..W::PARTS]));
            for at in 0..W::PARTS.min(near.len()) {
                let (error, plain) = (error.extract(at), plain.extract(at));
                let found = Self { error, plain, code: codes[at], scale: scales[at] };
                best = Some(match best {
                    Some(best) => best.or_better(found),
                    None => found,
                });
            }
        }
        best.expect("the rule's scale is one of them")
    }
}

/// The magnitudes of the weights of a group, and the largest of each row.
#[inline(always)]
fn magnitudes<V: Simd, const G: usize>(w: &[Column; G]) -> ([Column; G], V) {
    let (mut magnitudes, mut largest) = ([[0.0; BAND_ROWS]; G], V::splat(0.0));
    for (&w, magnitude) in w.iter().zip(&mut magnitudes) {
        let w = V::load(w).abs();
        largest = w.max(largest);
        *magnitude = w.store();
    }
    (magnitudes, largest)
}

/// Weighted and plain squared error of each row's group with the codes nearest to its weights.
///
/// Signs do not matter: a code and its negative stand for a number and its negative.
#[inline(always)]
fn errors<W: Batch, const G: usize>(magnitudes: &[Column; G], k: &[f32; G], scale: W) -> (W, W) {
    let (mut weighted, mut plain) = (W::splat(0.0), W::splat(0.0));
    for column in 0..G {
        let w = W::broadcast(magnitudes[column]);
        let off = E2M1.round(w.div(scale)).mul(scale).sub(w);
        let square = off.mul(off);
        weighted = weighted.add(W::splat(k[column]).mul(square));
        plain = plain.add(square);
    }
    (weighted, plain)
}

/// The codes and scales of the rows of a band, one of each a byte. They hold [`BAND_ROWS`] rows.
pub(in crate::codec) struct EncodedGroups<'a> {
    pub(in crate::codec) codes: &'a mut [u8],
    pub(in crate::codec) scales: &'a mut [u8],
}

/// Encodes a band, and returns the errors of its rows. Writes codes and scales to `out`, if any.
///
/// `k` weighs the columns; none may be negative.
#[inline(always)]
pub(in crate::codec) fn encode<W: Batch, S: GroupScale, const G: usize>(
    band: &[Column],
    k: &[f32],
    effort: Effort,
    mut out: Option<EncodedGroups<'_>>,
) -> [RowError; BAND_ROWS] {
    let (cols, groups) = (band.len(), band.len() / G);
    let near = match effort {
        Effort::Fast => &S::NEAR[..1],
        Effort::Normal | Effort::High => S::NEAR,
    };
    let mut sums = RowSums::ZERO;
    for at in 0..groups {
        let (w, k) = (group::<G, _>(band, at), group::<G, f32>(k, at));
        let best = GroupGrid::<W::Part>::search::<W, S, G>(w, k, near);
        sums.add((best.error, best.plain));
        if let Some(out) = &mut out {
            put_codes(E2M1, w, best.scale, out.codes, (at * G, cols));
            for (row, scale) in best.code.to_bytes().into_iter().enumerate() {
                out.scales[row * groups + at] = scale;
            }
        }
    }
    sums.rows()
}

/// The columns of a matrix whose part `codes` has this element type and last dimension. The element type of the weights is
/// not stored.
pub(super) fn row_of(part: &dyn Fn(&str) -> Option<(Dtype, u64)>) -> Option<(u64, Float)> {
    let (dtype, width) = part("codes")?;
    Some((width.checked_mul(dtype.bits())? / 4, Float::BF16))
}

/// The kernel of a codec: [`encode`] with its scales.
pub(super) type GroupKernel = fn(Isa, &[Column], &[f32], Effort, Option<EncodedGroups<'_>>) -> [RowError; BAND_ROWS];

/// Encodes `band` in groups of `group`, and appends codes and scales to `parts`.
///
/// # Panics
/// If the rows are not whole groups, or `metric` has another number of columns.
pub(super) fn append(
    (kernel, group): (GroupKernel, usize),
    context: &mut Context<'_>,
    band: Band<'_>,
    metric: &Metric<'_>,
    parts: &mut [Vec<u8>],
) -> [RowError; BAND_ROWS] {
    let (cols, k) = (band.columns.len(), metric.importance());
    assert!(cols.is_multiple_of(group) && k.len() == cols, "encode: shapes");
    let rows: &mut FloatRows = context.scratch.of();
    rows.codes.resize(BAND_ROWS * cols, 0);
    rows.scales.resize(BAND_ROWS * cols / group, 0);
    let out = EncodedGroups { codes: &mut rows.codes, scales: &mut rows.scales };
    let errors = kernel(context.isa, band.columns, k, context.effort, Some(out));
    pack(context.isa, 4, &rows.codes[..band.rows * cols], &mut parts[0]);
    parts[1].extend_from_slice(&rows.scales[..band.rows * cols / group]);
    errors
}

/// The errors that [`append`] returns.
///
/// # Panics
/// As [`append`].
pub(super) fn errors_only(
    (kernel, group): (GroupKernel, usize),
    context: &Context<'_>,
    band: Band<'_>,
    metric: &Metric<'_>,
) -> [RowError; BAND_ROWS] {
    let (cols, k) = (band.columns.len(), metric.importance());
    assert!(cols.is_multiple_of(group) && k.len() == cols, "errors: shapes");
    kernel(context.isa, band.columns, k, context.effort, None)
}

/// Decodes groups of `G` codes, two to a byte, the lower half first. `scale` gives the scales of `scales`.
pub(super) fn decode(group: usize, (codes, scales): (&[u8], &[u8]), scale: impl Fn(u8) -> f32, out: &mut [f32]) {
    let values = e2m1_values();
    let groups = out.chunks_exact_mut(group).zip(codes.chunks_exact(group / 2));
    for ((out, codes), &stored) in groups.zip(scales) {
        let scale = scale(stored);
        for (out, &both) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
            *out = [both & 15, both >> 4].map(|code| values[usize::from(code)] * scale);
        }
    }
}

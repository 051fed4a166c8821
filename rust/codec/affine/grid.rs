//! Scale, bias and codes of groups.
//!
//! A group of `G` weights is stored as a scale, a bias and `G` codes. A code decodes to `code * scale + bias`, a product and a
//! sum, each rounded to `f32`. Two encoders choose them: [`mlx_rule`](super::mlx_rule) by MLX's rule, [`search`](super::search)
//! by the least weighted error. This module measures the error of both.

use super::{BITS, GROUP_SIZES};
use crate::codec::RowError;
use crate::simd::batch::Batch;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column, Simd, Vector};

/// The largest number of schemes whose errors are measured at once: one per code width.
pub(crate) const MAX_SCHEMES: usize = BITS.len();

/// Output buffers for the codes and grids of a band, row after row.
pub(crate) struct GroupBuffers<'a> {
    /// One code per weight.
    pub codes: &'a mut [u8],
    /// The difference of two adjacent codes' weights, per group.
    pub scales: &'a mut [f32],
    /// The weight of code 0, per group.
    pub biases: &'a mut [f32],
}

impl GroupBuffers<'_> {
    /// Writes the grid of group `at` of each row. A row has `groups` groups.
    #[inline(always)]
    pub(super) fn put<V: Simd>(&mut self, at: usize, groups: usize, (scale, bias): (V, V)) {
        let (scale, bias) = (scale.store(), bias.store());
        for row in 0..BAND_ROWS {
            self.scales[row * groups + at] = scale[row];
            self.biases[row * groups + at] = bias[row];
        }
    }
}

/// The codes of a group, column by column.
///
/// A trait rather than a closure: a function that is not inlined into the kernel is compiled without its instructions, and a
/// closure cannot be forced inline.
pub(super) trait GroupCodes<W> {
    fn column(&self, column: usize) -> W;
}

/// Weighted and plain squared error of each row's group: its decoded codes on the stored grids `(scale, bias)`, compared with
/// the weights.
///
/// This measure chooses between grids, and reports the error of an encoding. (Where there is nothing to choose,
/// [`plain_errors`](super::plain_errors) computes nearly the same sums in fewer steps.)
#[inline(always)]
pub(super) fn group_errors<W: Batch, const G: usize>(
    w: &[Column; G],
    k: &[f32; G],
    (scale, bias): (W, W),
    codes: &impl GroupCodes<W>,
) -> (W, W) {
    let (mut weighted, mut plain) = (W::splat(0.0), W::splat(0.0));
    for column in 0..G {
        let off = codes.column(column).mul(scale).add(bias).sub(W::broadcast(w[column]));
        let square = off.mul(off);
        weighted = weighted.add(W::splat(k[column]).mul(square));
        plain = plain.add(square);
    }
    (weighted, plain)
}

/// Sums of the errors of the rows of a band, group by group.
#[derive(Clone, Copy)]
pub(in crate::codec) struct RowSums {
    weighted: [f64; BAND_ROWS],
    plain: [f64; BAND_ROWS],
}

impl RowSums {
    pub(in crate::codec) const ZERO: Self = Self { weighted: [0.0; BAND_ROWS], plain: [0.0; BAND_ROWS] };

    /// Adds the errors of a group.
    #[inline(always)]
    pub(in crate::codec) fn add<V: Simd>(&mut self, (weighted, plain): (V, V)) {
        self.weighted.iter_mut().zip(weighted.store()).for_each(|(sum, row)| *sum += f64::from(row));
        self.plain.iter_mut().zip(plain.store()).for_each(|(sum, row)| *sum += f64::from(row));
    }

    pub(in crate::codec) fn rows(&self) -> [RowError; BAND_ROWS] {
        std::array::from_fn(|row| RowError { weighted: self.weighted[row], plain: self.plain[row] })
    }
}

/// The least and the greatest element of each row's group; which zero (±0) is returned is unspecified.
#[inline(always)]
pub(super) fn range<V: Vector, const G: usize>(w: &[Column; G]) -> (V, V) {
    // Four independent chains: a minimum waits for the one before it.
    let mut ranges = [(V::load(w[0]), V::load(w[0])); 4];
    for columns in w.as_chunks::<4>().0 {
        for (range, &w) in ranges.iter_mut().zip(columns) {
            *range = (V::load(w).min(range.0), V::load(w).max(range.1));
        }
    }
    let [mut range, others @ ..] = ranges;
    for (low, high) in others {
        range = (low.min(range.0), high.max(range.1));
    }
    range
}

/// Columns of the smallest groups. Other groups are several of these.
pub(super) const LEAST_GROUP: usize = GROUP_SIZES[0] as usize;

/// The least and the greatest element of some columns of each row; which zero (±0) is unspecified.
pub(crate) type ColumnRange = (Column, Column);

kernel! {
    /// The ranges of groups of 32. Those of larger groups can be merged from them.
    pub(crate) fn ranges<V: Simd>(band: &[Column]) -> Vec<ColumnRange> {
        let mut ranges = Vec::with_capacity(band.len() / LEAST_GROUP);
        for w in band.as_chunks::<LEAST_GROUP>().0 {
            let (low, high) = range::<V, LEAST_GROUP>(w);
            ranges.push((low.store(), high.store()));
        }
        ranges
    }
}

/// The range of all columns of `ranges`.
#[inline(always)]
pub(super) fn merge_ranges<V: Vector>(ranges: &[ColumnRange]) -> (V, V) {
    let mut merged = (V::load(ranges[0].0), V::load(ranges[0].1));
    for &(low, high) in &ranges[1..] {
        merged = (V::load(low).min(merged.0), V::load(high).max(merged.1));
    }
    merged
}

/// Group `at` of a band or of a vector, as an array.
#[inline(always)]
pub(in crate::codec) fn group<const G: usize, T>(of: &[T], at: usize) -> &[T; G] {
    of[at * G..].first_chunk().expect("a band holds whole groups")
}

/// Codes in memory, column by column.
struct GivenCodes<'a, const G: usize>(&'a [[u8; BAND_ROWS]; G]);

impl<V: Simd, const G: usize> GroupCodes<V> for GivenCodes<'_, G> {
    #[inline(always)]
    fn column(&self, column: usize) -> V {
        V::from_bytes(self.0[column])
    }
}

kernel! {
    /// The errors of the rows of a band, weighted by `k` and plain, as `codes`, `scales` and `biases` decode. These hold row
    /// after row.
    pub(crate) fn error<V: Simd, const G: usize>(
        band: &[Column], k: &[f32], codes: &[u8], scales: &[f32], biases: &[f32],
    ) -> [RowError; BAND_ROWS] {
        let (cols, groups) = (band.len(), band.len() / G);
        let rows: [&[[u8; G]]; BAND_ROWS] = std::array::from_fn(|row| codes[row * cols..][..cols].as_chunks().0);
        let mut sums = RowSums::ZERO;
        for at in 0..groups {
            let mut columns = [[0; BAND_ROWS]; G];
            for (eight, columns) in columns.as_chunks_mut::<BAND_ROWS>().0.iter_mut().enumerate() {
                let mut tile = [[0; BAND_ROWS]; BAND_ROWS];
                for (codes, row) in tile.iter_mut().zip(rows) {
                    *codes = row[at].as_chunks().0[eight];
                }
                *columns = V::transpose_u8(tile);
            }
            let [mut scale, mut bias] = [[0.0; BAND_ROWS]; 2];
            for row in 0..BAND_ROWS {
                scale[row] = scales[row * groups + at];
                bias[row] = biases[row * groups + at];
            }
            let stored = (V::load(scale), V::load(bias));
            let errors = group_errors(group::<G, _>(band, at), group::<G, f32>(k, at), stored, &GivenCodes(&columns));
            sums.add(errors);
        }
        sums.rows()
    }
}

//! Scale, bias and codes of groups.
//!
//! A group of `G` weights is stored as a scale, a bias and `G` codes, and decodes to `code * scale + bias`, a product
//! and a sum rounded to `f32` each. Two encoders choose them, [`mlx_rule`](super::mlx_rule) by MLX's rule and [`search`](super::search) by the
//! least weighted error; what they make of a band is measured here, for both.

use super::{BITS, GROUP_SIZES};
use crate::codec::RowError;
use crate::simd::kernel;
use crate::simd::paired::Wide;
use crate::simd::vector::{BAND_ROWS, Column, Vector};

/// The most schemes whose errors are measured at once: one for each code width.
pub const MAX_SCHEMES: usize = BITS.len();

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
    pub(super) fn put<V: Vector>(&mut self, at: usize, groups: usize, (scale, bias): (V, V)) {
        let (scale, bias) = (scale.store(), bias.store());
        for row in 0..BAND_ROWS {
            self.scales[row * groups + at] = scale[row];
            self.biases[row * groups + at] = bias[row];
        }
    }
}

/// The codes of a group's columns.
///
/// A trait and no closure: what is not inlined into the kernel is compiled without its instructions, and of a closure that
/// cannot be asked.
pub(super) trait Codes<W> {
    /// Those of column `column`.
    fn of(&self, column: usize) -> W;
}

/// Weighted and plain squared error of each row's group on the stored grids `(scale, bias)`: the codes of each column,
/// decoded.
///
/// The measure that chooses between grids and reports on what was encoded. (Where nothing is chosen,
/// [`plain_errors`](super::plain_errors) sums what is nearly the same in fewer steps.)
#[inline(always)]
pub(super) fn group_errors<W: Wide, const G: usize>(
    w: &[Column; G],
    k: &[f32; G],
    (scale, bias): (W, W),
    codes: &impl Codes<W>,
) -> (W, W) {
    let (mut weighted, mut plain) = (W::splat(0.0), W::splat(0.0));
    for column in 0..G {
        let off = codes.of(column).mul(scale).add(bias).sub(W::each(w[column]));
        let square = off.mul(off);
        weighted = weighted.add(W::splat(k[column]).mul(square));
        plain = plain.add(square);
    }
    (weighted, plain)
}

/// Errors of the rows of a band, summed group by group.
#[derive(Clone, Copy)]
pub(super) struct RowSums {
    weighted: [f64; BAND_ROWS],
    plain: [f64; BAND_ROWS],
}

impl RowSums {
    pub(super) const NONE: Self = Self { weighted: [0.0; BAND_ROWS], plain: [0.0; BAND_ROWS] };

    /// Adds those of a group.
    #[inline(always)]
    pub(super) fn add<V: Vector>(&mut self, (weighted, plain): (V, V)) {
        self.weighted.iter_mut().zip(weighted.store()).for_each(|(sum, row)| *sum += f64::from(row));
        self.plain.iter_mut().zip(plain.store()).for_each(|(sum, row)| *sum += f64::from(row));
    }

    pub(super) fn rows(&self) -> [RowError; BAND_ROWS] {
        std::array::from_fn(|row| RowError { weighted: self.weighted[row], plain: self.plain[row] })
    }
}

/// The least and the greatest element of each row's group; of zeros any.
#[inline(always)]
pub(super) fn range<V: Vector, const G: usize>(w: &[Column; G]) -> (V, V) {
    // Of every fourth column, as long as it can be: a minimum waits for the one before it.
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

/// Columns of the smallest groups. Other groups are some of these side by side.
pub(super) const LEAST_GROUP: usize = GROUP_SIZES[0] as usize;

/// The least and the greatest element of some columns of each row; of zeros any.
pub type Range = (Column, Column);

kernel! {
    /// The ranges of groups of 32, which those of all sizes can be joined from.
    pub fn ranges<V: Vector>(band: &[Column]) -> Vec<Range> {
        let mut ranges = Vec::with_capacity(band.len() / LEAST_GROUP);
        for w in band.as_chunks::<LEAST_GROUP>().0 {
            let (low, high) = range::<V, LEAST_GROUP>(w);
            ranges.push((low.store(), high.store()));
        }
        ranges
    }
}

/// The range of all columns that `ranges` are of.
#[inline(always)]
pub(super) fn joined<V: Vector>(ranges: &[Range]) -> (V, V) {
    let mut joined = (V::load(ranges[0].0), V::load(ranges[0].1));
    for &(low, high) in &ranges[1..] {
        joined = (V::load(low).min(joined.0), V::load(high).max(joined.1));
    }
    joined
}

/// Group `at` of a band or of a vector as an array of a length known when compiling.
#[inline(always)]
pub(super) fn group<const G: usize, T>(of: &[T], at: usize) -> &[T; G] {
    of[at * G..].first_chunk().expect("a band holds whole groups")
}

/// Codes that are given, column by column.
struct GivenCodes<'a, const G: usize>(&'a [[u8; BAND_ROWS]; G]);

impl<V: Vector, const G: usize> Codes<V> for GivenCodes<'_, G> {
    #[inline(always)]
    fn of(&self, column: usize) -> V {
        V::from_bytes(self.0[column])
    }
}

kernel! {
    /// Error of each row of a band as `codes`, `scales` and `biases` decode, row after row, weighted by `k` and plain.
    pub fn error<V: Vector, const G: usize>(
        band: &[Column], k: &[f32], codes: &[u8], scales: &[f32], biases: &[f32],
    ) -> [RowError; BAND_ROWS] {
        let (cols, groups) = (band.len(), band.len() / G);
        let mut sums = RowSums::NONE;
        for at in 0..groups {
            let mut columns = [[0; BAND_ROWS]; G];
            for (eight, columns) in columns.as_chunks_mut::<BAND_ROWS>().0.iter_mut().enumerate() {
                let mut rows = [[0; BAND_ROWS]; BAND_ROWS];
                for (row, eight_codes) in rows.iter_mut().enumerate() {
                    *eight_codes = *codes[row * cols + at * G + eight * BAND_ROWS..].first_chunk().expect("whole eights");
                }
                *columns = V::transposed(rows);
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

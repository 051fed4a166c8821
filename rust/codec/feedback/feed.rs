//! Feedback within a group.

use std::ops::Range;

use super::Factor;
use crate::simd::vector::{BAND_ROWS, Column, Simd};

/// The part of a factor for the columns of one group.
pub(crate) struct GroupFactor {
    /// `l_ji` as `[i][j]`.
    pub(in crate::codec) unit: Vec<f32>,
    pub(in crate::codec) importance: Vec<f32>,
    /// `c_j = Σ_i l_ji`, the errors at all columns if every weight is off by one.
    pub(in crate::codec) ones: Vec<f32>,
    /// `Σ_j k_j c_j²`
    pub(in crate::codec) ones_square: f32,
}

impl GroupFactor {
    pub(super) fn new(factor: &Factor, columns: Range<usize>) -> Self {
        let size = columns.len();
        let (mut unit, mut ones) = (vec![0.0; size * size], vec![0.0; size]);
        for (j, column) in columns.clone().enumerate() {
            for (i, value) in factor.row(column)[columns.start..].iter().enumerate() {
                unit[i * size + j] = *value;
                ones[j] += value;
            }
        }
        let importance = factor.importance()[columns].to_vec();
        let ones_square = importance.iter().zip(&ones).map(|(k, c)| k * (c * c)).sum();
        Self { unit, importance, ones, ones_square }
    }
}

/// The result for the group of a band.
#[derive(Clone, Debug)]
pub struct Fed {
    /// `Σ_j k_j e_j²` of each row.
    pub(super) weighted: Column,
    /// `Δ` of each column.
    pub(super) off: Vec<Column>,
}

/// The codes of weights, and what they decode to.
pub(in crate::codec) trait CodeGrid<V> {
    fn code(&self, w: V) -> V;
    /// The stored weight, to the bit.
    fn decode(&self, code: V) -> V;
}

/// The least change of a group's weights that makes up for the errors of earlier columns: `d` with
/// `Σ_{i ≤ j} d_i l_ji = sums_j`, in place of the sums.
#[inline(always)]
fn compensate<V: Simd>(sums: &mut [V], factor: &GroupFactor) {
    let (size, zero) = (sums.len(), V::splat(0.0));
    for i in 0..size {
        let by = zero.sub(sums[i]);
        let unit = &factor.unit[i * size..(i + 1) * size];
        for j in i + 1..size {
            sums[j] = V::splat(unit[j]).mul_add(by, sums[j]);
        }
    }
}

/// Working memory for a group of `G` columns.
pub(in crate::codec) struct Feed<V, const G: usize> {
    /// The weights when the group is entered: with the errors of earlier groups spread over all its columns.
    entered: [V; G],
    pub(in crate::codec) codes: [V; G],
    /// `e_j`
    errors: [V; G],
    /// `Σ_{i ≤ j} q_i l_ji` of the codes `q`.
    coded: [V; G],
}

/// Sums for the least-squares correction of a grid, over the columns of a group: see [`Feed::sums`].
pub(in crate::codec) struct FeedSums<V> {
    /// `Σ k b²`, `b` the codes' errors at the columns.
    pub(in crate::codec) codes_square: V,
    /// `Σ k b c`
    pub(in crate::codec) codes_ones: V,
    /// `Σ k e b`
    pub(in crate::codec) error_codes: V,
    /// `Σ k e c`
    pub(in crate::codec) error_ones: V,
}

impl<V: Simd, const G: usize> Feed<V, G> {
    /// Enters a group: `w` and the `sums` over earlier columns.
    #[inline(always)]
    pub(in crate::codec) fn enter(w: &[Column; G], sums: &[Column], factor: &GroupFactor) -> Self {
        let zero = V::splat(0.0);
        let mut moved = [zero; G];
        for (moved, &sum) in moved.iter_mut().zip(sums) {
            *moved = V::load(sum);
        }
        compensate(&mut moved, factor);
        let mut entered = moved;
        for (entered, &w) in entered.iter_mut().zip(w) {
            *entered = V::load(w).add(*entered);
        }
        Self { entered, codes: [zero; G], errors: [zero; G], coded: [zero; G] }
    }

    #[inline(always)]
    pub(in crate::codec) fn entered_columns(&self) -> [Column; G] {
        let mut columns = [[0.0; BAND_ROWS]; G];
        for (column, lanes) in columns.iter_mut().zip(&self.entered) {
            *column = lanes.store();
        }
        columns
    }

    /// Codes the group on `grid`, each error fed back to the columns after it. Returns `Σ_j k_j e_j²`; infinite for NaN.
    #[inline(always)]
    pub(in crate::codec) fn run(&mut self, grid: &impl CodeGrid<V>, factor: &GroupFactor) -> V {
        let zero = V::splat(0.0);
        self.errors = self.entered;
        self.coded = [zero; G];
        let mut loss = zero;
        for i in 0..G {
            let t = self.errors[i];
            let code = grid.code(t);
            let stored = grid.decode(code);
            let error = t.sub(stored);
            let off = self.entered[i].sub(stored);
            loss = V::splat(factor.importance[i]).mul(error.mul(error)).add(loss);
            self.errors[i] = error;
            self.coded[i] = self.coded[i].add(code);
            self.codes[i] = code;
            let unit = &factor.unit[i * G..(i + 1) * G];
            let later = self.errors[i + 1..].iter_mut().zip(&mut self.coded[i + 1..]);
            for ((error, coded), &by) in later.zip(&unit[i + 1..]) {
                let by = V::splat(by);
                *error = by.mul_add(off, *error);
                *coded = by.mul_add(code, *coded);
            }
        }
        let infinite = V::splat(f32::INFINITY);
        loss.select(loss.lt(infinite), infinite)
    }

    /// The sums after a run. A scale larger by `α` and a bias larger by `β`, with the same codes, have the errors
    /// `e − α b − β c`.
    #[inline(always)]
    pub(in crate::codec) fn sums(&self, factor: &GroupFactor) -> FeedSums<V> {
        let zero = V::splat(0.0);
        let [mut codes_square, mut codes_ones, mut error_codes, mut error_ones] = [zero; 4];
        for j in 0..G {
            let (b, e) = (self.coded[j], self.errors[j]);
            let (k, c) = (factor.importance[j], factor.ones[j]);
            let (kb, kc) = (V::splat(k).mul(b), V::splat(k * c));
            codes_square = kb.mul_add(b, codes_square);
            codes_ones = kc.mul_add(b, codes_ones);
            error_codes = kb.mul_add(e, error_codes);
            error_ones = kc.mul_add(e, error_ones);
        }
        FeedSums { codes_square, codes_ones, error_codes, error_ones }
    }

    /// The result of the last run, whose loss was `weighted`.
    #[inline(always)]
    pub(in crate::codec) fn finish(&self, weighted: V, w: &[Column; G], grid: &impl CodeGrid<V>) -> Fed {
        let off = w.iter().zip(&self.codes).map(|(&w, &code)| V::load(w).sub(grid.decode(code)).store());
        Fed { weighted: weighted.store(), off: off.collect() }
    }
}

/// Bytes of the codes of `G` columns.
#[inline(always)]
pub(in crate::codec) fn bytes<V: Simd, const G: usize>(codes: &[V; G]) -> [[u8; BAND_ROWS]; G] {
    let mut out = [[0; BAND_ROWS]; G];
    for (out, code) in out.iter_mut().zip(codes) {
        *out = code.to_bytes();
    }
    out
}

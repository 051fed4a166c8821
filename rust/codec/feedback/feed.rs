//! Feedback within a group.
//!
//! Columns are coded in blocks of [`BLOCK`], whose errors stay in registers: first the errors of the columns before the block
//! are added, which do not wait for each other, then the block is coded column by column. Several grids are tried at once
//! where registers have room for them ([`Batch`]).

use std::ops::Range;

use super::Factor;
use crate::simd::batch::Batch;
use crate::simd::vector::{BAND_ROWS, Column, Lanes, Simd, Vector};

/// Columns whose errors are held in registers. Groups are several of these.
const BLOCK: usize = 8;

/// The part of a factor for the columns of one group.
pub(crate) struct GroupFactor {
    /// `l_ji` of the columns `j` of a block, for each `i` up to its last column: block after block.
    unit: Vec<[f32; BLOCK]>,
    pub(in crate::codec) importance: Vec<f32>,
    /// `c_j = Σ_i l_ji`, the errors at all columns if every weight is off by one.
    ones: Vec<f32>,
    /// `Σ_j k_j c_j²`
    pub(in crate::codec) ones_square: f32,
}

impl GroupFactor {
    pub(super) fn new(factor: &Factor, columns: Range<usize>) -> Self {
        let (size, first) = (columns.len(), columns.start);
        let mut unit = vec![[0.0; BLOCK]; block_start(size / BLOCK)];
        let mut ones = vec![0.0; size];
        for (j, column) in columns.clone().enumerate() {
            let block = &mut unit[block_start(j / BLOCK)..];
            for (place, value) in block.iter_mut().zip(&factor.row(column)[first..]) {
                place[j % BLOCK] = *value;
                ones[j] += value;
            }
        }
        let importance = factor.importance()[columns].to_vec();
        let ones_square = importance.iter().zip(&ones).map(|(k, c)| k * (c * c)).sum();
        Self { unit, importance, ones, ones_square }
    }

    /// `l_ji` of the columns `j` of block `at`: for each `i` before the block, and for each within.
    #[inline(always)]
    fn block(&self, at: usize) -> (&[[f32; BLOCK]], &[[f32; BLOCK]; BLOCK]) {
        let (before, within) = self.unit[block_start(at)..block_start(at + 1)].split_at(at * BLOCK);
        (before, within.first_chunk().expect("a block holds its own columns"))
    }
}

/// Where block `at` begins: block `b` has `b + 1` blocks of columns up to its last one.
#[inline(always)]
fn block_start(at: usize) -> usize {
    BLOCK * (at * (at + 1) / 2)
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
pub(in crate::codec) trait CodeGrid<W> {
    fn code(&self, w: W) -> W;
    /// The stored weight, to the bit.
    fn decode(&self, code: W) -> W;
}

/// Adds `Σ_i by_i l_ji` to the sums of the columns `j` of a block, in the order of `i`.
#[inline(always)]
fn add_products<W: Batch>(sums: &mut [W; BLOCK], by: &[W], unit: &[[f32; BLOCK]]) {
    for (&by, unit) in by.iter().zip(unit) {
        for (sum, &unit) in sums.iter_mut().zip(unit) {
            *sum = W::splat(unit).mul_add(by, *sum);
        }
    }
}

/// Adds `by · l_ji` to the sums of the columns `j` of a block after its column `i = at`.
#[inline(always)]
fn add_to_later<V: Lanes>(sums: &mut [V; BLOCK], by: V, within: &[[f32; BLOCK]; BLOCK], at: usize) {
    for later in at + 1..BLOCK {
        sums[later] = V::splat(within[at][later]).mul_add(by, sums[later]);
    }
}

/// The weights `w` after the least change that makes up for the errors of earlier columns: `w_j + d_j` with
/// `Σ_{i ≤ j} d_i l_ji = sums_j`.
#[inline(always)]
pub(in crate::codec) fn entered<V: Simd, const G: usize>(
    w: &[Column; G],
    sums: &[Column],
    factor: &GroupFactor,
) -> [Column; G] {
    let zero = V::splat(0.0);
    let (mut negated, mut entered) = ([zero; G], [[0.0; BAND_ROWS]; G]);
    for block in 0..G / BLOCK {
        let first = block * BLOCK;
        let (before, within) = factor.block(block);
        let mut left = [zero; BLOCK];
        for (left, &sum) in left.iter_mut().zip(&sums[first..]) {
            *left = V::load(sum);
        }
        add_products(&mut left, &negated[..first], before);
        for at in 0..BLOCK {
            let d = left[at];
            let by = zero.sub(d);
            add_to_later(&mut left, by, within, at);
            negated[first + at] = by;
            entered[first + at] = V::load(w[first + at]).add(d).store();
        }
    }
    entered
}

/// A group after it was coded on a grid, each error fed back to the columns after it.
pub(in crate::codec) struct Run<W, const G: usize> {
    pub(in crate::codec) codes: [W; G],
    /// `e_j`
    errors: [W; G],
    /// `Σ_j k_j e_j²`; may be NaN.
    loss: W,
}

/// Sums for the least-squares correction of a grid, over the columns of a group: see [`Run::sums`].
pub(in crate::codec) struct FeedSums<W> {
    /// `Σ k b²`, `b` the codes' errors at the columns.
    pub(in crate::codec) codes_square: W,
    /// `Σ k b c`
    pub(in crate::codec) codes_ones: W,
    /// `Σ k e b`
    pub(in crate::codec) error_codes: W,
    /// `Σ k e c`
    pub(in crate::codec) error_ones: W,
}

impl<W: Batch> FeedSums<W> {
    /// Those of part `at`.
    #[inline(always)]
    pub(in crate::codec) fn part(&self, at: usize) -> FeedSums<W::Part> {
        FeedSums {
            codes_square: self.codes_square.extract(at),
            codes_ones: self.codes_ones.extract(at),
            error_codes: self.error_codes.extract(at),
            error_ones: self.error_ones.extract(at),
        }
    }
}

impl<W: Batch, const G: usize> Run<W, G> {
    /// Codes the `entered` weights of a group on `grid`.
    #[inline(always)]
    pub(in crate::codec) fn new(entered: &[Column; G], grid: &impl CodeGrid<W>, factor: &GroupFactor) -> Self {
        let zero = W::splat(0.0);
        let mut run = Self { codes: [zero; G], errors: [zero; G], loss: zero };
        let mut off = [zero; G];
        for block in 0..G / BLOCK {
            let first = block * BLOCK;
            let (before, within) = factor.block(block);
            let mut errors = [zero; BLOCK];
            for (error, &w) in errors.iter_mut().zip(&entered[first..]) {
                *error = W::broadcast(w);
            }
            add_products(&mut errors, &off[..first], before);
            for at in 0..BLOCK {
                let column = first + at;
                let code = grid.code(errors[at]);
                let stored = grid.decode(code);
                let error = errors[at].sub(stored);
                let by = W::broadcast(entered[column]).sub(stored);
                add_to_later(&mut errors, by, within, at);
                run.loss = W::splat(factor.importance[column]).mul(error.mul(error)).add(run.loss);
                (run.codes[column], run.errors[column], off[column]) = (code, error, by);
            }
        }
        run
    }

    /// `Σ_j k_j e_j²` of part `at`; infinite for NaN.
    #[inline(always)]
    pub(in crate::codec) fn loss(&self, at: usize) -> W::Part {
        let (loss, infinite) = (self.loss.extract(at), W::Part::splat(f32::INFINITY));
        loss.select(loss.lt(infinite), infinite)
    }

    /// The sums of the run. A scale larger by `α` and a bias larger by `β`, with the same codes, have the errors
    /// `e − α b − β c`.
    #[inline(always)]
    pub(in crate::codec) fn sums(&self, factor: &GroupFactor) -> FeedSums<W> {
        let zero = W::splat(0.0);
        let [mut codes_square, mut codes_ones, mut error_codes, mut error_ones] = [zero; 4];
        for block in 0..G / BLOCK {
            let first = block * BLOCK;
            let (before, within) = factor.block(block);
            let mut coded = [zero; BLOCK];
            add_products(&mut coded, &self.codes[..first], before);
            for at in 0..BLOCK {
                let code = self.codes[first + at];
                add_to_later(&mut coded, code, within, at);
                let (b, e) = (coded[at].add(code), self.errors[first + at]);
                let (k, c) = (factor.importance[first + at], factor.ones[first + at]);
                let (kb, kc) = (W::splat(k).mul(b), W::splat(k * c));
                codes_square = kb.mul_add(b, codes_square);
                codes_ones = kc.mul_add(b, codes_ones);
                error_codes = kb.mul_add(e, error_codes);
                error_ones = kc.mul_add(e, error_ones);
            }
        }
        FeedSums { codes_square, codes_ones, error_codes, error_ones }
    }
}

/// The result for a group with `codes` on `grid`, whose loss is `weighted`.
#[inline(always)]
pub(in crate::codec) fn finish<V: Simd, const G: usize>(
    weighted: V,
    (w, codes): (&[Column; G], &[V; G]),
    grid: &impl CodeGrid<V>,
) -> Fed {
    let off = w.iter().zip(codes).map(|(&w, &code)| V::load(w).sub(grid.decode(code)).store());
    Fed { weighted: weighted.store(), off: off.collect() }
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

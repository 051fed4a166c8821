//! Encodes bands of rows: chooses `d`, the scales and the vectors of each block, and sums the errors.
//!
//! The error has many local minima as a function of a scale, since vectors change with it. So only scales that can be stored
//! are tried, and each with its nearest vectors: for several `d`, those next to the scale that is expected of the group. The
//! `d` and the scales with the least sum of errors win. At last `d` is fitted to the vectors.

use super::nearest::{AT_ONCE, Gains, WeightVector};
use super::signs::Oriented;
use super::tries::{Scales, Tries, lowest, multiple};
use super::{CodebookBlock, MAX_SCALE, NEGATIVE};
use crate::codec::affine::grid::RowSums;
use crate::codec::ggml::block::{MAX_SCALES, MAX_WEIGHTS};
use crate::codec::ggml::encode::EncodedBlocks;
use crate::codec::ggml::stored::{reciprocal, to_f16};
use crate::codec::{Effort, RowError};
use crate::simd::batch::Batch;
use crate::simd::vector::{BAND_ROWS, Column, Simd};

/// A block of each row.
struct Coded<V> {
    scales: Scales<V>,
    /// The magnitudes with their signs.
    numbers: [Column; MAX_WEIGHTS],
}

/// The error of a block of each row, and sums over its groups for the residuals `e = w − a q`.
struct Measured<V> {
    weighted: V,
    plain: V,
    /// `Σkq²`
    q2: [V; MAX_SCALES],
    /// `Σkqe`
    eq: [V; MAX_SCALES],
}

/// Buffers of a band.
struct Work<V, W> {
    oriented: Oriented,
    gains: Gains<V>,
    batch: Gains<W>,
    best: Coded<V>,
    tried: Coded<V>,
}

impl<V: Simd> Coded<V> {
    #[inline(always)]
    fn new() -> Self {
        Self { scales: Scales::new(), numbers: [[0.0; BAND_ROWS]; MAX_WEIGHTS] }
    }

    /// Takes the numbers of `other` where the mask says so.
    #[inline(always)]
    fn replace(&mut self, mask: V::Mask, other: &Self) {
        self.scales = other.scales.select(mask, &self.scales);
        for (number, &other) in self.numbers.iter_mut().zip(&other.numbers) {
            *number = V::load(other).select(mask, V::load(*number)).store();
        }
    }

    #[inline(always)]
    fn measure<B: CodebookBlock>(&self, (w, k): (&[Column], &[f32])) -> Measured<V> {
        let zero = V::splat(0.0);
        let mut of = Measured { weighted: zero, plain: zero, q2: [zero; MAX_SCALES], eq: [zero; MAX_SCALES] };
        let numbers = self.numbers.chunks_exact(B::GROUP);
        for (group, ((w, k), q)) in w.chunks_exact(B::GROUP).zip(k.chunks_exact(B::GROUP)).zip(numbers).enumerate() {
            let scale = self.scales.of::<B>(group);
            let (mut q2, mut minus_eq) = (zero, zero);
            for ((&w, &k), &q) in w.iter().zip(k).zip(q) {
                let (q, k) = (V::load(q), V::splat(k));
                let off = q.mul(scale).sub(V::load(w));
                let square = off.mul(off);
                of.weighted = of.weighted.add(k.mul(square));
                of.plain = of.plain.add(square);
                let kq = k.mul(q);
                q2 = kq.mul_add(q, q2);
                minus_eq = kq.mul_add(off, minus_eq);
            }
            (of.q2[group], of.eq[group]) = (q2, zero.sub(minus_eq));
        }
        of
    }

    /// Writes the fields of the blocks to `out`, whose rows have `blocks` blocks, at position `at`.
    #[inline(always)]
    fn put<B: CodebookBlock>(&self, out: &mut EncodedBlocks, (at, blocks): (usize, usize)) {
        let (least, zero) = (B::MAGNITUDES[0], V::splat(0.0));
        let by = V::splat(1.0 / (B::MAGNITUDES[1] - least));
        for (eight, numbers) in self.numbers.chunks_exact(BAND_ROWS).enumerate() {
            let mut columns = [[0; BAND_ROWS]; BAND_ROWS];
            for (column, &number) in columns.iter_mut().zip(numbers) {
                let number = V::load(number);
                // Magnitudes are nearly at equal distances.
                let position = number.abs().sub(V::splat(least)).mul(by).round_small();
                let sign = V::splat(f32::from(NEGATIVE)).select(number.lt(zero), zero);
                *column = position.add(sign).to_bytes();
            }
            for (row, codes) in V::transpose_u8(columns).into_iter().enumerate() {
                out.blocks[row * blocks + at].codes[eight * BAND_ROWS..][..BAND_ROWS].copy_from_slice(&codes);
            }
        }
        let d = self.scales.d.store();
        for (row, d) in d.into_iter().enumerate() {
            out.blocks[row * blocks + at].d = d;
        }
        for group in 0..B::SIZE.0 / B::GROUP {
            let stored = self.scales.stored[group].store();
            for (row, stored) in stored.into_iter().enumerate() {
                out.blocks[row * blocks + at].scales[group] = stored as i8;
            }
        }
    }
}

impl<V: Simd> Measured<V> {
    /// The least-squares `d` for the stored scales and the numbers of `of`.
    #[inline(always)]
    fn fitted<B: CodebookBlock>(&self, of: &Scales<V>) -> V {
        let zero = V::splat(0.0);
        let (mut mm, mut me) = (zero, zero);
        for group in 0..B::SIZE.0 / B::GROUP {
            let multiple = multiple::<V, B>(of.stored[group]);
            mm = multiple.mul(multiple).mul(self.q2[group]).add(mm);
            me = multiple.mul(self.eq[group]).add(me);
        }
        let change = me.div(mm).select(zero.lt(mm), zero);
        to_f16(of.d.add(change).max(zero))
    }

    /// The least-squares scales of the groups.
    #[inline(always)]
    fn scales<B: CodebookBlock>(&self, of: &Scales<V>) -> [V; MAX_SCALES] {
        let zero = V::splat(0.0);
        let mut scales = [zero; MAX_SCALES];
        for (group, scale) in scales[..B::SIZE.0 / B::GROUP].iter_mut().enumerate() {
            let change = self.eq[group].div(self.q2[group]).select(zero.lt(self.q2[group]), zero);
            *scale = of.of::<B>(group).add(change);
        }
        scales
    }
}

fn fourth_root(of: f32) -> f32 {
    of.sqrt().sqrt()
}

/// The scales that are expected of the groups.
#[inline(always)]
fn expected<V: Simd, B: CodebookBlock>((w, k): (&[Column], &[f32])) -> [V; MAX_SCALES] {
    let mut scales = [V::splat(0.0); MAX_SCALES];
    for ((w, k), scale) in w.chunks_exact(B::GROUP).zip(k.chunks_exact(B::GROUP)).zip(&mut scales) {
        // Powers of large numbers are no numbers, nor is the reciprocal of a small one, which binary16 has no scale for.
        let mut largest = V::splat(1e-30);
        for &w in w {
            largest = V::load(w).abs().max(largest);
        }
        let by = reciprocal(largest);
        let (mut sum, mut weight) = (V::splat(0.0), 0.0);
        for (&w, &k) in w.iter().zip(k) {
            let share = V::load(w).mul(by);
            let square = share.mul(share);
            sum = V::splat(k).mul(square.mul(square)).add(sum);
            weight += k;
        }
        let mean = sum.mul(V::splat(if weight > 0.0 { 1.0 / weight } else { 0.0 }));
        *scale = mean.map(fourth_root).mul(largest).mul(V::splat(B::START));
    }
    scales
}

impl<V: Simd, W: Batch<Part = V>> Work<V, W> {
    #[inline(always)]
    fn new() -> Self {
        let (best, tried) = (Coded::new(), Coded::new());
        Self { oriented: Oriented::EMPTY, gains: Gains::new(), batch: Gains::new(), best, tried }
    }

    /// Codes the block with `scales`, as `tried`.
    #[inline(always)]
    fn assign<B: CodebookBlock>(&mut self, k: &[f32], scales: &Scales<V>) {
        self.tried.scales = *scales;
        let some = AT_ONCE * B::DIMENSIONS;
        for (from, numbers) in (0..B::SIZE.0).step_by(some).zip(self.tried.numbers.chunks_exact_mut(some)) {
            let mut vectors = [WeightVector { weights: &[], importance: &[], scale: V::splat(0.0) }; AT_ONCE];
            for (at, vector) in vectors.iter_mut().enumerate() {
                let first = from + at * B::DIMENSIONS;
                vector.weights = &self.oriented.along[first..first + B::DIMENSIONS];
                vector.importance = &k[first..first + B::DIMENSIONS];
                vector.scale = scales.of::<B>(first / B::GROUP);
            }
            self.gains.assign::<B>(&vectors, numbers);
        }
        for (number, &sign) in self.tried.numbers.iter_mut().zip(&self.oriented.signs) {
            *number = V::load(*number).mul(V::load(sign)).store();
        }
    }

    /// Makes `tried` the best where its error, which was measured, is less.
    #[inline(always)]
    fn keep_better(&mut self, best: &mut Measured<V>, tried: &Measured<V>) {
        let is_better = tried.weighted.lt(best.weighted);
        self.best.replace(is_better, &self.tried);
        best.weighted = tried.weighted.select(is_better, best.weighted);
        best.plain = tried.plain.select(is_better, best.plain);
    }

    /// Encodes a block of each row as `best`, and returns its errors.
    #[inline(always)]
    fn encode_block<B: CodebookBlock>(&mut self, block: (&[Column], &[f32]), effort: Effort) -> Measured<V> {
        let (zero, k) = (V::splat(0.0), block.1);
        let expected = expected::<V, B>(block);
        self.oriented.take::<V, B>(block, &expected);
        let mut largest = zero;
        for scale in expected {
            largest = scale.max(largest);
        }
        let d = to_f16(largest.mul(V::splat(1.0 / ((MAX_SCALE + 0.5) * B::STEP))));
        self.assign::<B>(k, &Scales { d, stored: lowest::<V, B>(d, &expected, 0.0) });
        self.best.replace(zero.lt(V::splat(1.0)), &self.tried);
        let mut measured = self.best.measure::<B>(block);
        if effort == Effort::Fast {
            return measured;
        }
        let mut near = measured.scales::<B>(&self.best.scales);
        self.oriented.take::<V, B>(block, &near);
        let (fitted, mut most) = (measured.fitted::<B>(&self.best.scales), V::splat(f32::NEG_INFINITY));
        let mut scales = self.best.scales;
        for &(share, count) in B::TRIED {
            let mut tries = Tries::<V, W>::new::<B>(to_f16(fitted.mul(V::splat(share))), &near, count);
            tries.measure::<B>((&self.oriented.along, k), &mut self.batch);
            let (tried, gain) = tries.best::<B>();
            let is_more = most.lt(gain);
            most = gain.select(is_more, most);
            scales = tried.select(is_more, &scales);
            for (group, near) in near[..B::SIZE.0 / B::GROUP].iter_mut().enumerate() {
                *near = scales.of::<B>(group);
            }
        }
        self.assign::<B>(k, &scales);
        let tried = self.tried.measure::<B>(block);
        self.keep_better(&mut measured, &tried);
        self.tried.scales.d = tried.fitted::<B>(&scales);
        let tried = self.tried.measure::<B>(block);
        self.keep_better(&mut measured, &tried);
        measured
    }
}

/// Encodes a band, and returns the errors of its rows. Writes the blocks to `out`, if any.
///
/// `k` weighs the columns; none may be negative.
#[inline(always)]
pub(in crate::codec::ggml) fn encode<V: Simd, W: Batch<Part = V>, B: CodebookBlock>(
    band: &[Column],
    k: &[f32],
    effort: Effort,
    mut out: Option<&mut EncodedBlocks>,
) -> [RowError; BAND_ROWS] {
    const { assert!(B::SIZE.0 == MAX_WEIGHTS) };
    let blocks = band.len() / B::SIZE.0;
    let mut sums = RowSums::ZERO;
    let mut work = Work::<V, W>::new();
    for (at, block) in band.chunks_exact(B::SIZE.0).zip(k.chunks_exact(B::SIZE.0)).enumerate() {
        let measured = work.encode_block::<B>(block, effort);
        sums.add((measured.weighted, measured.plain));
        if let Some(out) = out.as_deref_mut() {
            work.best.put::<B>(out, (at, blocks));
        }
    }
    sums.rows()
}

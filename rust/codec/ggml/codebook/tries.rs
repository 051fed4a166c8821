//! Scales of groups, and the choice among several.

use super::nearest::{AT_ONCE, Gains, WeightVector};
use super::{CodebookBlock, MAX_SCALE};
use crate::codec::ggml::block::MAX_SCALES;
use crate::codec::ggml::stored::reciprocal;
use crate::simd::batch::{Batch, MAX_PARTS};
use crate::simd::vector::{Column, Simd};

/// The most scales of a group that are tried with one `d`.
const MAX_COUNT: usize = 6;

/// `d` and the scales of a block of each row.
#[derive(Clone, Copy)]
pub(super) struct Scales<V> {
    pub d: V,
    /// As stored, see [`CodebookBlock::multiple`].
    pub stored: [V; MAX_SCALES],
}

/// The factor of `d` for the scale `stored`.
#[inline(always)]
pub(super) fn multiple<V: Simd, B: CodebookBlock>(stored: V) -> V {
    stored.add(V::splat(0.5)).mul(V::splat(B::STEP))
}

impl<V: Simd> Scales<V> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { d: V::splat(0.0), stored: [V::splat(0.0); MAX_SCALES] }
    }

    #[inline(always)]
    pub(super) fn of<B: CodebookBlock>(&self, group: usize) -> V {
        self.d.mul(multiple::<V, B>(self.stored[group]))
    }

    #[inline(always)]
    pub(super) fn select(&self, mask: V::Mask, other: &Self) -> Self {
        let mut selected = *other;
        selected.d = self.d.select(mask, other.d);
        for at in 0..MAX_SCALES {
            selected.stored[at] = self.stored[at].select(mask, other.stored[at]);
        }
        selected
    }
}

/// The lowest of `last + 1` scales for `d` of each group, next to `near`.
#[inline(always)]
pub(super) fn lowest<V: Simd, B: CodebookBlock>(d: V, near: &[V; MAX_SCALES], last: f32) -> [V; MAX_SCALES] {
    let by = reciprocal(d.mul(V::splat(B::STEP)));
    let mut lowest = [V::splat(0.0); MAX_SCALES];
    for (lowest, near) in lowest.iter_mut().zip(near) {
        *lowest = near.mul(by).sub(V::splat(0.5 + 0.5 * last)).clamp(V::splat(MAX_SCALE - last)).round_small();
    }
    lowest
}

/// The scales that are tried with one `d`: `count` of each group.
pub(super) struct Tries<V, W> {
    d: V,
    /// The lowest of each group, as stored. The others are the next ones.
    lowest: [V; MAX_SCALES],
    count: u8,
    /// The scales of each group, as many in a register as it holds.
    scales: [[W; MAX_COUNT]; MAX_SCALES],
    /// The gains of the nearest vectors.
    gains: [[W; MAX_COUNT]; MAX_SCALES],
}

impl<V: Simd, W: Batch<Part = V>> Tries<V, W> {
    /// The scales next to `near`.
    #[inline(always)]
    pub(super) fn new<B: CodebookBlock>(d: V, near: &[V; MAX_SCALES], count: u8) -> Self {
        let (none, last) = ([[W::splat(0.0); MAX_COUNT]; MAX_SCALES], f32::from(count - 1));
        let mut of = Self { d, lowest: lowest::<V, B>(d, near, last), count, scales: none, gains: none };
        let registers = of.registers();
        for (scales, lowest) in of.scales.iter_mut().zip(of.lowest) {
            for (register, scale) in scales[..registers].iter_mut().enumerate() {
                let mut parts = [d; MAX_PARTS];
                for (at, part) in parts[..W::PARTS].iter_mut().enumerate() {
                    // The last one again to fill the register.
                    let off = ((register * W::PARTS + at) as f32).min(last);
                    *part = d.mul(multiple::<V, B>(lowest.add(V::splat(off))));
                }
                *scale = W::concat(&parts[..W::PARTS]);
            }
        }
        of
    }

    /// Registers for the scales of a group.
    #[inline(always)]
    fn registers(&self) -> usize {
        usize::from(self.count).div_ceil(W::PARTS)
    }

    /// Computes the gains for the weights `x`.
    #[inline(always)]
    pub(super) fn measure<B: CodebookBlock>(&mut self, (x, k): (&[Column], &[f32]), by: &mut Gains<W>) {
        let registers = self.registers();
        for from in (0..B::SIZE.0 / B::DIMENSIONS * registers).step_by(AT_ONCE) {
            let mut vectors = [WeightVector { weights: &[], importance: &[], scale: W::splat(0.0) }; AT_ONCE];
            for (at, vector) in vectors.iter_mut().enumerate() {
                let (first, register) = ((from + at) / registers * B::DIMENSIONS, (from + at) % registers);
                vector.weights = &x[first..first + B::DIMENSIONS];
                vector.importance = &k[first..first + B::DIMENSIONS];
                vector.scale = self.scales[first / B::GROUP][register];
            }
            for (at, gain) in by.greatest::<B>(&vectors).into_iter().enumerate() {
                let group = (from + at) / registers * B::DIMENSIONS / B::GROUP;
                let sum = &mut self.gains[group][(from + at) % registers];
                *sum = sum.add(gain);
            }
        }
    }

    /// The scale of each group with the greatest product of scale and gain, and the sum of these products.
    #[inline(always)]
    pub(super) fn best<B: CodebookBlock>(&self) -> (Scales<V>, V) {
        let (mut found, mut total) = (Scales { d: self.d, stored: self.lowest }, V::splat(0.0));
        for group in 0..B::SIZE.0 / B::GROUP {
            let mut most = V::splat(f32::NEG_INFINITY);
            for at in 0..usize::from(self.count) {
                let (register, part) = (at / W::PARTS, at % W::PARTS);
                let gain = self.scales[group][register].extract(part).mul(self.gains[group][register].extract(part));
                let is_more = most.lt(gain);
                most = gain.select(is_more, most);
                let stored = self.lowest[group].add(V::splat(at as f32));
                found.stored[group] = stored.select(is_more, found.stored[group]);
            }
            total = total.add(most);
        }
        (found, total)
    }
}

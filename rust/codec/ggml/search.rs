//! The scale and the minimum of a group, as real numbers.
//!
//! Each start gives codes, and these the weighted least-squares line in closed form. The line with the least error is the
//! result, with the sums for the codes nearest to it.

use super::levels::Levels;
use super::linear::{LinearBlock, Starts};
use super::sums::{GroupLine, GroupSums, GroupWeight};
use crate::simd::batch::{Batch, MAX_PARTS};
use crate::simd::vector::{Column, Simd};

/// The least and the greatest element of each row.
#[inline(always)]
fn range<V: Simd>(w: &[Column]) -> (V, V) {
    let mut range = (V::load(w[0]), V::load(w[0]));
    for &w in w {
        let w = V::load(w);
        range = (w.min(range.0), w.max(range.1));
    }
    range
}

/// The starts of a group.
struct StartLines<V> {
    low: V,
    high: V,
}

impl<V: Simd> StartLines<V> {
    #[inline(always)]
    fn new<B: LinearBlock>(w: &[Column]) -> Self {
        let (low, high) = range::<V>(w);
        if B::MINIMA && B::MAX_MIN == 1.0 {
            return Self { low, high };
        }
        let zero = V::splat(0.0);
        Self { low: low.min(zero), high: high.max(zero) }
    }

    /// The number of them.
    #[inline(always)]
    fn count<B: LinearBlock>() -> usize {
        match B::STARTS {
            Starts::Clips(clips) => clips.len(),
            // A scale of either sign for each share.
            Starts::Shares(shares) => 2 * shares.len(),
        }
    }

    #[inline(always)]
    fn line<B: LinearBlock>(&self, at: usize) -> GroupLine<V> {
        let [least, greatest] = <B::Levels as Levels>::RANGE;
        let zero = V::splat(0.0);
        match B::STARTS {
            Starts::Clips(clips) => {
                let width = self.high.sub(self.low);
                let [below, above] = clips[at].map(|share| f32::from(share) * 1e-4);
                let scale = width.mul(V::splat((1.0 - below) - above)).div(V::splat(greatest));
                GroupLine { scale, min: zero.sub(self.low.add(width.mul(V::splat(below)))) }
            }
            Starts::Shares(shares) => {
                let share = f32::from(shares[at / 2]) * 1e-3;
                let [of_low, of_high] = if at.is_multiple_of(2) { [least, greatest] } else { [greatest, least] };
                // Of one number the sign is that of the scale, the other is larger or zero.
                let [by_low, by_high] = [self.low.mul(V::splat(1.0 / of_low)), self.high.mul(V::splat(1.0 / of_high))];
                let larger = by_high.select(by_low.abs().lt(by_high.abs()), by_low);
                GroupLine { scale: larger.mul(V::splat(share)), min: zero }
            }
        }
    }
}

/// Moves a line by the changes of its least-squares fit. A type whose minima are not negative has none below zero.
#[inline(always)]
fn fitted<V: Simd, B: LinearBlock, const MINIMA: bool>(
    line: GroupLine<V>,
    sums: GroupSums<V>,
    weight: GroupWeight,
) -> (GroupLine<V>, V) {
    let zero = V::splat(0.0);
    let (mut alpha, mut beta) = sums.fit::<MINIMA>(weight);
    if MINIMA && B::MAX_MIN != 1.0 {
        let is_negative = line.min.add(beta).lt(zero);
        // With a minimum of zero, the scale is fitted alone.
        let to_zero = zero.sub(line.min);
        let alone = sums.eq.add(to_zero.mul(sums.q1)).div(sums.q2).select(zero.lt(sums.q2), zero);
        alpha = alone.select(is_negative, alpha);
        beta = to_zero.select(is_negative, beta);
    }
    let cost = sums.cost::<MINIMA>(weight, (alpha, beta));
    (GroupLine { scale: line.scale.add(alpha), min: line.min.add(beta) }, cost)
}

/// The line of the first start, fitted; and the sums for the nearest codes on it.
#[inline(always)]
pub(super) fn first<V: Simd, B: LinearBlock, const MINIMA: bool>(
    w: &[Column],
    k: &[f32],
    weight: GroupWeight,
) -> (GroupLine<V>, GroupSums<V>) {
    let start = StartLines::<V>::new::<B>(w).line::<B>(0);
    let sums = GroupSums::of::<B::Levels, MINIMA>(w, k, start, &mut V::splat(0.0));
    let (line, _) = fitted::<V, B, MINIMA>(start, sums, weight);
    (line, GroupSums::of::<B::Levels, MINIMA>(w, k, line, &mut V::splat(0.0)))
}

/// The line with the least weighted error of all starts; and the sums for the nearest codes on it.
#[inline(always)]
pub(super) fn best<V: Simd, W: Batch<Part = V>, B: LinearBlock, const MINIMA: bool>(
    w: &[Column],
    k: &[f32],
    weight: GroupWeight,
) -> (GroupLine<V>, GroupSums<V>) {
    let (starts, count) = (StartLines::<V>::new::<B>(w), StartLines::<V>::count::<B>());
    let zero = V::splat(0.0);
    let (mut found, mut least) = (starts.line::<B>(0), V::splat(f32::INFINITY));
    for from in (0..count).step_by(W::PARTS) {
        let mut batch = [found; MAX_PARTS];
        for (at, start) in batch[..W::PARTS].iter_mut().enumerate() {
            // The last one again to fill the register.
            *start = starts.line::<B>((from + at).min(count - 1));
        }
        let mut errors = W::splat(0.0);
        let lines = GroupLine::<W>::concat(&batch[..W::PARTS]);
        let sums = GroupSums::of::<B::Levels, MINIMA>(w, k, lines, &mut errors);
        for (at, &start) in batch[..W::PARTS].iter().enumerate() {
            let (line, cost) = fitted::<V, B, MINIMA>(start, sums.extract(at), weight);
            let error = errors.extract(at).add(cost).max(zero);
            let is_better = error.lt(least);
            found = line.select(is_better, found);
            least = error.select(is_better, least);
        }
    }
    (found, GroupSums::of::<B::Levels, MINIMA>(w, k, found, &mut V::splat(0.0)))
}

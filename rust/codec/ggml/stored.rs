//! The stored scales and minima of a block.
//!
//! Given the lines of the groups as real numbers and the sums for their codes, `d` and `dmin` are chosen among several
//! candidates, the groups' scales and minima rounded to multiples of them with the least error, and `d` and `dmin` fitted to
//! these. Then the codes are assigned again, on what is stored, and all of it is repeated from there. The least error as
//! stored wins. All but the codes costs no pass over the weights: see [`sums`](super::sums).

use super::block::MAX_SCALES;
use super::linear::LinearBlock;
use super::sums::{GroupLine, GroupSums, GroupWeight};
use crate::dtype::Float;
use crate::simd::vector::{Column, Lanes, Simd};

/// The largest binary16 number.
const MAX_F16: f32 = 65_504.0;

/// The stored scales and minima of a block of each row.
#[derive(Clone, Copy)]
pub(super) struct StoredBlock<V> {
    pub d: V,
    pub dmin: V,
    pub scales: [V; MAX_SCALES],
    pub mins: [V; MAX_SCALES],
}

/// Lines of the groups of a block, and the sums for the codes on them.
#[derive(Clone, Copy)]
pub(super) struct GroupFits<V> {
    pub lines: [GroupLine<V>; MAX_SCALES],
    pub sums: [GroupSums<V>; MAX_SCALES],
}

/// The nearest finite binary16 numbers.
#[inline(always)]
pub(super) fn to_f16<V: Simd>(of: V) -> V {
    of.max(V::splat(-MAX_F16)).min(V::splat(MAX_F16)).round_to(Float::F16)
}

/// `1 / of`, and 0 for 0.
#[inline(always)]
pub(super) fn reciprocal<V: Simd>(of: V) -> V {
    let zero = V::splat(0.0);
    V::splat(1.0).div(of).select(zero.lt(of.abs()), zero)
}

/// The nearest integer in a range; its end for NaN.
#[inline(always)]
fn integer<V: Lanes>(of: V, [least, greatest]: [f32; 2]) -> V {
    of.max(V::splat(least)).min(V::splat(greatest)).round_small()
}

impl<V: Simd> StoredBlock<V> {
    #[inline(always)]
    pub(super) fn line(&self, at: usize) -> GroupLine<V> {
        GroupLine { scale: self.d.mul(self.scales[at]), min: self.dmin.mul(self.mins[at]) }
    }

    #[inline(always)]
    pub(super) fn select(&self, mask: V::Mask, other: &Self) -> Self {
        let mut selected = *other;
        selected.d = self.d.select(mask, other.d);
        selected.dmin = self.dmin.select(mask, other.dmin);
        for at in 0..MAX_SCALES {
            selected.scales[at] = self.scales[at].select(mask, other.scales[at]);
            selected.mins[at] = self.mins[at].select(mask, other.mins[at]);
        }
        selected
    }

    /// The error of the nearest codes, and the sums for them.
    #[inline(always)]
    pub(super) fn measure<B: LinearBlock, const MINIMA: bool>(&self, w: &[Column], k: &[f32]) -> (V, GroupFits<V>) {
        let zero = V::splat(0.0);
        let mut fits = GroupFits { lines: [self.line(0); MAX_SCALES], sums: [GroupSums::zero(); MAX_SCALES] };
        let mut error = zero;
        for (at, (w, k)) in w.chunks_exact(B::GROUP).zip(k.chunks_exact(B::GROUP)).enumerate() {
            fits.lines[at] = self.line(at);
            fits.sums[at] = GroupSums::of::<B::Levels, MINIMA>(w, k, fits.lines[at], &mut error);
        }
        (error, fits)
    }
}

impl<V: Simd> GroupFits<V> {
    /// The scale and the minimum of the largest magnitudes, with their signs.
    #[inline(always)]
    fn largest<B: LinearBlock>(&self) -> (V, V) {
        let (mut scale, mut min) = (V::splat(0.0), V::splat(0.0));
        for line in &self.lines[..B::SIZE.0 / B::GROUP] {
            scale = line.scale.select(scale.abs().lt(line.scale.abs()), scale);
            min = line.min.select(min.abs().lt(line.min.abs()), min);
        }
        (scale, min)
    }

    /// The scales and minima of the groups for these `d` and `dmin`, and what they add to the error. Of the scales next to
    /// the least-squares scale, `near` are tried on either side.
    #[inline(always)]
    fn pick<B: LinearBlock, const MINIMA: bool>(
        &self,
        (d, dmin): (V, V),
        weights: &[GroupWeight; MAX_SCALES],
        near: i8,
    ) -> (StoredBlock<V>, V) {
        let zero = V::splat(0.0);
        let least_min = if B::MAX_MIN == 1.0 { 1.0 } else { 0.0 };
        let (by_d, by_dmin) = (reciprocal(d), reciprocal(dmin));
        let mut stored = StoredBlock { d, dmin, scales: [zero; MAX_SCALES], mins: [zero; MAX_SCALES] };
        let mut total = zero;
        for (at, &weight) in weights[..B::SIZE.0 / B::GROUP].iter().enumerate() {
            let (line, sums) = (self.lines[at], self.sums[at]);
            let center = line.scale.add(sums.fit::<MINIMA>(weight).0).mul(by_d);
            let mut least = V::splat(f32::INFINITY);
            // A type with one scale has no other.
            let near = if B::SCALES[0] < B::SCALES[1] { near } else { 0 };
            for off in -near..=near {
                let scale = integer(center.add(V::splat(f32::from(off))), B::SCALES);
                let alpha = d.mul(scale).sub(line.scale);
                let (mut min, mut beta) = (zero, zero);
                if MINIMA {
                    let ideal = alpha.mul(sums.q1).sub(sums.e1).mul(V::splat(weight.reciprocal));
                    min = integer(line.min.add(ideal).mul(by_dmin), [least_min, B::MAX_MIN]);
                    beta = dmin.mul(min).sub(line.min);
                }
                let cost = sums.cost::<MINIMA>(weight, (alpha, beta));
                let is_better = cost.lt(least);
                least = cost.select(is_better, least);
                stored.scales[at] = scale.select(is_better, stored.scales[at]);
                stored.mins[at] = min.select(is_better, stored.mins[at]);
            }
            total = total.add(least);
        }
        (stored, total)
    }

    /// The least-squares `d` and `dmin` for given scales and minima of the groups.
    #[inline(always)]
    fn refit<B: LinearBlock, const MINIMA: bool>(
        &self,
        of: &StoredBlock<V>,
        weights: &[GroupWeight; MAX_SCALES],
    ) -> (V, V) {
        let zero = V::splat(0.0);
        let [mut ss, mut sm, mut mm, mut se, mut me] = [zero; 5];
        for (at, weight) in weights[..B::SIZE.0 / B::GROUP].iter().enumerate() {
            let (line, sums, k) = (self.lines[at], self.sums[at], V::splat(weight.sum));
            let (scale, min) = (of.scales[at], of.mins[at]);
            let alpha = of.d.mul(scale).sub(line.scale);
            let beta = of.dmin.mul(min).sub(line.min);
            // The sums for the residuals on the stored line.
            let eq = sums.eq.sub(alpha.mul(sums.q2)).add(beta.mul(sums.q1));
            ss = ss.add(scale.mul(scale).mul(sums.q2));
            se = se.add(scale.mul(eq));
            if MINIMA {
                let e1 = sums.e1.sub(alpha.mul(sums.q1)).add(beta.mul(k));
                sm = sm.add(scale.mul(min).mul(sums.q1));
                mm = mm.add(min.mul(min).mul(k));
                me = me.add(min.mul(e1));
            }
        }
        let alone = se.div(ss).select(zero.lt(ss), zero);
        if !MINIMA {
            return (B::store(of.d.add(alone)), zero);
        }
        let product = ss.mul(mm);
        let determinant = product.sub(sm.mul(sm));
        let solvable = V::splat(1e-5).mul(product).lt(determinant);
        let of_d = mm.mul(se).sub(sm.mul(me)).div(determinant).select(solvable, alone);
        let of_dmin = sm.mul(se).sub(ss.mul(me)).div(determinant).select(solvable, zero);
        (B::store(of.d.add(of_d)), to_f16(of.dmin.add(of_dmin)))
    }

    /// The stored block of the first divisors.
    #[inline(always)]
    pub(super) fn round<B: LinearBlock, const MINIMA: bool>(
        &self,
        weights: &[GroupWeight; MAX_SCALES],
    ) -> StoredBlock<V> {
        let (scale, min) = self.largest::<B>();
        let [by, by_min] = B::DIVISORS[0];
        let of = (B::store(scale.div(V::splat(by))), to_f16(min.div(V::splat(by_min))));
        self.pick::<B, MINIMA>(of, weights, 0).0
    }

    /// The stored block with the least error for these codes that is found, from all divisors.
    #[inline(always)]
    pub(super) fn choose<B: LinearBlock, const MINIMA: bool>(
        &self,
        weights: &[GroupWeight; MAX_SCALES],
    ) -> StoredBlock<V> {
        let (scale, min) = self.largest::<B>();
        let (mut best, mut least) = (None, V::splat(f32::INFINITY));
        for &[by, by_min] in B::DIVISORS {
            let of = (B::store(scale.div(V::splat(by))), to_f16(min.div(V::splat(by_min))));
            let (found, cost) = self.pick::<B, MINIMA>(of, weights, 0);
            let is_better = cost.lt(least);
            least = cost.select(is_better, least);
            best = Some(match best {
                None => found,
                Some(best) => found.select(is_better, &best),
            });
        }
        let best = best.expect("there is a divisor");
        self.improve::<B, MINIMA>(&best, weights)
    }

    /// `d` and `dmin` fitted to the scales and minima of `of`, and these picked for them.
    #[inline(always)]
    pub(super) fn improve<B: LinearBlock, const MINIMA: bool>(
        &self,
        of: &StoredBlock<V>,
        weights: &[GroupWeight; MAX_SCALES],
    ) -> StoredBlock<V> {
        let fitted = self.refit::<B, MINIMA>(of, weights);
        self.pick::<B, MINIMA>(fitted, weights, 1).0
    }
}

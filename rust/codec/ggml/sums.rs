//! Sums over a group with given codes, and what follows from them for other scales and minima.
//!
//! With the codes' numbers `q` fixed, the error of a group is a quadratic function of its scale `a` and its minimum `b`. For
//! `ŵ = a q − b` and the residual `e = w − ŵ`, a change to `a + α` and `b + β` adds
//!
//! ```text
//! α² Σkq² − 2 α β Σkq + β² Σk − 2 α Σkqe + 2 β Σke
//! ```
//!
//! to `Σ k e²`. The sums are over residuals, so nothing cancels in `f32`.

use super::levels::Levels;
use crate::simd::batch::{Batch, MAX_PARTS};
use crate::simd::vector::{Column, Simd};

/// A least-squares fit is rejected if nearly all codes are the same: if the determinant is below this share of its first term.
const MIN_DETERMINANT: f32 = 1e-6;

/// Scale and minimum of a group of each row: `ŵ = scale · q − min`.
#[derive(Clone, Copy)]
pub(super) struct GroupLine<V> {
    pub scale: V,
    pub min: V,
}

impl<V: Simd> GroupLine<V> {
    #[inline(always)]
    pub(super) fn select(self, mask: V::Mask, other: Self) -> Self {
        Self { scale: self.scale.select(mask, other.scale), min: self.min.select(mask, other.min) }
    }
}

impl<W: Batch> GroupLine<W> {
    /// Lines as a batch.
    #[inline(always)]
    pub(super) fn concat(lines: &[GroupLine<W::Part>]) -> Self {
        let mut parts = [lines[0]; MAX_PARTS];
        parts[..lines.len()].copy_from_slice(lines);
        let (scales, mins) = (parts.map(|line| line.scale), parts.map(|line| line.min));
        Self { scale: W::concat(&scales[..lines.len()]), min: W::concat(&mins[..lines.len()]) }
    }

    /// The numbers of the codes nearest to `w`, and their decoded difference from it.
    #[inline(always)]
    pub(super) fn code<L: Levels>(self, reciprocal: W, w: W) -> (W, W) {
        let q = L::nearest(w.add(self.min).mul(reciprocal));
        (q, q.mul(self.scale).sub(self.min).sub(w))
    }

    #[inline(always)]
    pub(super) fn reciprocal(self) -> W {
        W::splat(1.0).div(self.scale)
    }
}

/// The importance of a group: its sum, and the reciprocal of the sum (0 of 0).
#[derive(Clone, Copy)]
pub(super) struct GroupWeight {
    pub sum: f32,
    pub reciprocal: f32,
}

impl GroupWeight {
    #[inline(always)]
    pub(super) fn new(k: &[f32]) -> Self {
        let sum = k.iter().fold(0.0, |sum, k| sum + k);
        Self { sum, reciprocal: if sum > 0.0 { 1.0 / sum } else { 0.0 } }
    }
}

/// The sums of the [module](self).
#[derive(Clone, Copy)]
pub(super) struct GroupSums<V> {
    /// `Σkq`; 0 for types without minima, as the next but one.
    pub q1: V,
    /// `Σkq²`
    pub q2: V,
    /// `Σke`
    pub e1: V,
    /// `Σkqe`
    pub eq: V,
}

impl<W: Batch> GroupSums<W> {
    #[inline(always)]
    pub(super) fn zero() -> Self {
        let zero = W::splat(0.0);
        Self { q1: zero, q2: zero, e1: zero, eq: zero }
    }

    /// The sums for the codes nearest on `line`. Adds their squared errors to `error`, one after the other.
    #[inline(always)]
    pub(super) fn of<L: Levels, const MINIMA: bool>(
        w: &[Column],
        k: &[f32],
        line: GroupLine<W>,
        error: &mut W,
    ) -> Self {
        let reciprocal = line.reciprocal();
        let (mut sums, mut total) = (Self::zero(), *error);
        let [mut minus_e1, mut minus_eq] = [W::splat(0.0); 2];
        for (&w, &k) in w.iter().zip(k) {
            let (q, off) = line.code::<L>(reciprocal, W::broadcast(w));
            let k = W::splat(k);
            let kq = k.mul(q);
            if MINIMA {
                sums.q1 = sums.q1.add(kq);
                minus_e1 = k.mul_add(off, minus_e1);
            }
            sums.q2 = kq.mul_add(q, sums.q2);
            minus_eq = kq.mul_add(off, minus_eq);
            total = total.add(k.mul(off.mul(off)));
        }
        *error = total;
        sums.e1 = W::splat(0.0).sub(minus_e1);
        sums.eq = W::splat(0.0).sub(minus_eq);
        sums
    }

    /// Those of part `at`.
    #[inline(always)]
    pub(super) fn extract(self, at: usize) -> GroupSums<W::Part> {
        GroupSums { q1: self.q1.extract(at), q2: self.q2.extract(at), e1: self.e1.extract(at), eq: self.eq.extract(at) }
    }
}

impl<V: Simd> GroupSums<V> {
    /// The changes of scale and minimum to their least-squares values.
    #[inline(always)]
    pub(super) fn fit<const MINIMA: bool>(self, weight: GroupWeight) -> (V, V) {
        let (zero, k) = (V::splat(0.0), V::splat(weight.sum));
        if !MINIMA {
            return (self.eq.div(self.q2).select(zero.lt(self.q2), zero), zero);
        }
        let product = k.mul(self.q2);
        let determinant = product.sub(self.q1.mul(self.q1));
        let solvable = V::splat(MIN_DETERMINANT).mul(product).lt(determinant);
        let alpha = k.mul(self.eq).sub(self.q1.mul(self.e1)).div(determinant);
        let beta = self.q1.mul(self.eq).sub(self.q2.mul(self.e1)).div(determinant);
        (alpha.select(solvable, zero), beta.select(solvable, zero))
    }

    /// What the changes add to the error.
    #[inline(always)]
    pub(super) fn cost<const MINIMA: bool>(self, weight: GroupWeight, (alpha, beta): (V, V)) -> V {
        let of_scale = alpha.mul(alpha.mul(self.q2).sub(self.eq.add(self.eq)));
        if !MINIMA {
            return of_scale;
        }
        let doubled = self.e1.sub(alpha.mul(self.q1));
        of_scale.add(beta.mul(beta.mul(V::splat(weight.sum)).add(doubled.add(doubled))))
    }
}

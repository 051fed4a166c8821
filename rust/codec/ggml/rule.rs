//! The rules of ggml for types whose blocks have one scale, and some a minimum.
//!
//! `fast` gives the bytes of ggml's reference encoder. It divides by the scale before that is rounded to binary16.

use super::levels::Levels;
use super::linear::RuleBlock;
use super::stored::to_f16;
use super::sums::GroupLine;
use crate::simd::vector::{Column, Simd, Vector};

/// The largest integer not above each lane; lanes lie in `[0, 2^22]`.
#[inline(always)]
fn floor<V: Vector>(of: V) -> V {
    let nearest = of.round_small();
    nearest.sub(V::splat(1.0)).select(of.lt(nearest), nearest)
}

/// `1 / of`, and 0 for 0.
#[inline(always)]
fn reciprocal<V: Vector>(of: V) -> V {
    let zero = V::splat(0.0);
    V::splat(1.0).div(of).select(zero.lt(of.abs()), zero)
}

/// The codes `⌊w / scale + shift⌋` of at most `max`.
#[inline(always)]
fn codes<V: Simd>(w: &[Column], (by, min): (V, V), shift: f32, max: f32) -> [V; 32] {
    let mut codes = [by; 32];
    for (code, &w) in codes.iter_mut().zip(w) {
        let steps = V::load(w).sub(min).mul(by).add(V::splat(shift));
        *code = floor(steps.clamp(V::splat(max)));
    }
    codes
}

/// Codes from `−half` to `half − 1`: the first weight of the largest magnitude has the code `−half`.
#[inline(always)]
pub(super) fn symmetric<V: Simd>(w: &[Column], half: f32) -> RuleBlock<V> {
    let zero = V::splat(0.0);
    let mut largest = zero;
    for &w in w {
        let w = V::load(w);
        largest = w.select(largest.abs().lt(w.abs()), largest);
    }
    let scale = largest.div(V::splat(-half));
    let mut numbers = codes(w, (reciprocal(scale), zero), half + 0.5, 2.0 * half - 1.0);
    for number in &mut numbers {
        *number = number.sub(V::splat(half));
    }
    RuleBlock { line: GroupLine { scale: to_f16(scale), min: zero }, numbers }
}

/// Codes from 0, for the least weight, to `max`, for the greatest.
#[inline(always)]
pub(super) fn affine<V: Simd>(w: &[Column], max: f32) -> RuleBlock<V> {
    let (mut low, mut high) = (V::load(w[0]), V::load(w[0]));
    for &w in w {
        low = V::load(w).min(low);
        high = V::load(w).max(high);
    }
    let scale = high.sub(low).div(V::splat(max));
    let numbers = codes(w, (reciprocal(scale), low), 0.5, max);
    RuleBlock { line: GroupLine { scale: to_f16(scale), min: to_f16(low).mul(V::splat(-1.0)) }, numbers }
}

/// Codes from −127 to 127, of which one stands for the largest magnitude. Halves are rounded away from zero.
#[inline(always)]
pub(super) fn bytes<V: Simd>(w: &[Column]) -> RuleBlock<V> {
    let (zero, max) = (V::splat(0.0), V::splat(127.0));
    let mut largest = zero;
    for &w in w {
        largest = V::load(w).abs().max(largest);
    }
    let scale = largest.div(max);
    let by = reciprocal(scale);
    let mut numbers = [zero; 32];
    for (number, &w) in numbers.iter_mut().zip(w) {
        let w = V::load(w);
        let steps = w.abs().mul(by).clamp(max);
        let nearest = steps.round_small();
        // The difference is exact.
        let magnitude = nearest.select(steps.sub(nearest).lt(V::splat(0.5)), nearest.add(V::splat(1.0)));
        *number = zero.sub(magnitude).select(w.lt(zero), magnitude);
    }
    RuleBlock { line: GroupLine { scale: to_f16(scale), min: zero }, numbers }
}

/// The nearest numbers, with the scale that `scale` gives for the largest magnitude.
#[inline(always)]
pub(super) fn nearest<V: Simd, L: Levels>(w: &[Column], scale: impl Fn(f32) -> f32) -> RuleBlock<V> {
    let zero = V::splat(0.0);
    let mut largest = zero;
    for &w in w {
        largest = V::load(w).abs().max(largest);
    }
    let line = GroupLine { scale: largest.map(scale), min: zero };
    let reciprocal = line.reciprocal();
    let mut numbers = [zero; 32];
    for (number, &w) in numbers.iter_mut().zip(w) {
        *number = line.code::<L>(reciprocal, V::load(w)).0;
    }
    RuleBlock { line, numbers }
}

//! The numbers that codes stand for, before they are scaled.

use crate::simd::batch::{Batch, MAX_PARTS};
use crate::simd::vector::{Lanes, Simd, Vector};

/// The numbers of all codes of a type.
pub(super) trait Levels {
    /// The least number and the greatest.
    const RANGE: [f32; 2];

    /// The nearest of the numbers to each lane; one of them for NaN.
    fn nearest<W: Batch>(of: W) -> W;

    /// The codes of numbers that [`nearest`](Self::nearest) returned.
    fn code<V: Simd>(number: V) -> V;
}

/// The integers from `LOW` to `HIGH`.
pub(super) struct Integers<const LOW: i32, const HIGH: i32>;

impl<const LOW: i32, const HIGH: i32> Levels for Integers<LOW, HIGH> {
    const RANGE: [f32; 2] = [LOW as f32, HIGH as f32];

    #[inline(always)]
    fn nearest<W: Batch>(of: W) -> W {
        of.max(W::splat(LOW as f32)).min(W::splat(HIGH as f32)).round_small()
    }

    #[inline(always)]
    fn code<V: Simd>(number: V) -> V {
        number.sub(V::splat(LOW as f32))
    }
}

/// The numbers of `IQ4_NL` and `IQ4_XS`: denser around zero, like weights.
pub(super) const NON_LINEAR: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// The 16 numbers [`NON_LINEAR`].
pub(super) struct NonLinear;

/// `of_code` at the position of the number of [`NON_LINEAR`] that is nearest to each lane.
#[inline(always)]
fn at_nearest<V: Vector>(of: V, of_code: impl Fn(usize) -> f32) -> V {
    let mut found = V::splat(of_code(0));
    for code in 1..NON_LINEAR.len() {
        let edge = 0.5 * (NON_LINEAR[code - 1] + NON_LINEAR[code]);
        found = V::splat(of_code(code)).select(V::splat(edge).lt(of), found);
    }
    found
}

/// Twice the 16 numbers of E2M1: the magnitudes of eight codes, and their negatives.
pub(super) struct DoubledE2m1;

/// The numbers of [`DoubledE2m1`] that are not negative.
const MAGNITUDES: [f32; 8] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];

/// `of_code` at the position of the number of [`MAGNITUDES`] that is nearest to the magnitude of each lane, of two the lesser.
#[inline(always)]
fn at_magnitude<V: Vector>(of: V, of_code: impl Fn(usize) -> f32) -> V {
    let (magnitude, mut found) = (of.abs(), V::splat(of_code(0)));
    for code in 1..MAGNITUDES.len() {
        let edge = 0.5 * (MAGNITUDES[code - 1] + MAGNITUDES[code]);
        found = V::splat(of_code(code)).select(V::splat(edge).lt(magnitude), found);
    }
    found
}

impl Levels for DoubledE2m1 {
    const RANGE: [f32; 2] = [-12.0, 12.0];

    /// Here NaN becomes 0.
    #[inline(always)]
    fn nearest<W: Batch>(of: W) -> W {
        let zero = W::Part::splat(0.0);
        let mut parts = [zero; MAX_PARTS];
        for (at, part) in parts[..W::PARTS].iter_mut().enumerate() {
            let of = of.extract(at);
            let magnitude = at_magnitude(of, |code| MAGNITUDES[code]);
            *part = zero.sub(magnitude).select(of.lt(zero), magnitude);
        }
        W::concat(&parts[..W::PARTS])
    }

    #[inline(always)]
    fn code<V: Simd>(number: V) -> V {
        let code = at_magnitude(number, |code| code as f32);
        code.add(V::splat(8.0)).select(number.lt(V::splat(0.0)), code)
    }
}

impl Levels for NonLinear {
    const RANGE: [f32; 2] = [-127.0, 113.0];

    #[inline(always)]
    fn nearest<W: Batch>(of: W) -> W {
        let mut parts = [W::Part::splat(0.0); MAX_PARTS];
        for (at, part) in parts[..W::PARTS].iter_mut().enumerate() {
            *part = at_nearest(of.extract(at), |code| NON_LINEAR[code]);
        }
        W::concat(&parts[..W::PARTS])
    }

    #[inline(always)]
    fn code<V: Simd>(number: V) -> V {
        at_nearest(number, |code| code as f32)
    }
}

//! The numbers that codes stand for, before they are scaled.

use crate::simd::vector::{Simd, Vector};

/// The numbers of all codes of a type, in ascending order of codes.
pub(super) trait Levels {
    /// The least number and the greatest.
    const RANGE: [f32; 2];

    /// The nearest of the numbers to each lane; the least for NaN.
    fn nearest<V: Simd>(of: V) -> V;

    /// The codes of numbers that [`nearest`](Self::nearest) returned.
    fn code<V: Simd>(number: V) -> V;
}

/// The integers from `LOW` to `HIGH`.
pub(super) struct Integers<const LOW: i32, const HIGH: i32>;

impl<const LOW: i32, const HIGH: i32> Levels for Integers<LOW, HIGH> {
    const RANGE: [f32; 2] = [LOW as f32, HIGH as f32];

    #[inline(always)]
    fn nearest<V: Simd>(of: V) -> V {
        of.max(V::splat(LOW as f32)).min(V::splat(HIGH as f32)).round_small()
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

impl Levels for NonLinear {
    const RANGE: [f32; 2] = [-127.0, 113.0];

    #[inline(always)]
    fn nearest<V: Simd>(of: V) -> V {
        at_nearest(of, |code| NON_LINEAR[code])
    }

    #[inline(always)]
    fn code<V: Simd>(number: V) -> V {
        at_nearest(number, |code| code as f32)
    }
}

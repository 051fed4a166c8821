//! Rounding to codes: integers from 0 to a largest code.

use super::vector::{INTEGERS, Lanes};

/// Rounds lanes to codes.
pub(crate) trait Quantize: Lanes {
    /// The lesser of two positive numbers, compared as the integers that their bits represent; unspecified for others.
    #[must_use]
    fn min_positive(self, other: Self) -> Self;

    /// The nearest integer in `[0, max]`, ties to even; 0 for NaN. `max` is at most 2^22.
    #[must_use]
    #[inline(always)]
    fn code(self, max: Self) -> Self {
        // `round_small` gives the same, except for the sign of a zero; and clamped values are not negative.
        self.clamp(max).round_ties_even()
    }

    /// As [`code`](Self::code), of values that are not negative; `max` for NaN.
    #[must_use]
    #[inline(always)]
    fn code_nonneg(self, max: Self) -> Self {
        self.min(max).round_ties_even()
    }

    /// The limit that [`fused_code`](Self::fused_code) takes, for the largest code `self`, an integer up to 2^22.
    #[must_use]
    #[inline(always)]
    fn code_limit(self) -> Self {
        self.add(Self::splat(INTEGERS))
    }

    /// The nearest integer to `self * by`, ties to even, or the largest code of `limit` where that is less. The product must
    /// lie in `[0, 2^22]`, and is rounded only once, to the integer; unspecified for NaN.
    ///
    /// It takes one operation of the multiply units: the subtraction goes to the adders, the limit to the integer units.
    #[must_use]
    #[inline(always)]
    fn fused_code(self, by: Self, limit: Self) -> Self {
        let integers = Self::splat(INTEGERS);
        self.mul_add(by, integers).min_positive(limit).sub(integers)
    }
}

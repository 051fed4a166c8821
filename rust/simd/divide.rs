//! Many quotients by one divisor: a product and a fused product each.
//!
//! The reciprocal is held in two parts, the nearest float and the nearest float to its error (Brisebarre, Muller and Raina,
//! "Accelerating correctly rounded floating-point division when the divisor is known in advance", IEEE Transactions on
//! Computers 53, 2004). This is for a [`Vector`] whose fused product is one instruction; others divide.

use super::vector::Vector;

/// Divides by a divisor that is prepared once.
pub(crate) trait Divide: Vector {
    /// A prepared divisor, one number per lane.
    type Divisor: Copy;

    /// The same, in arrays.
    type Divisors: Copy;

    /// Prepares to divide by `self`.
    fn divisor(self) -> Self::Divisor;

    /// `self / by`, or so near it that [`code`](super::quantize::Quantize::code) gives the same for a `max` up to 255, where the
    /// magnitude of `by` lies in `[2^−60, 2^60]`.
    #[must_use]
    fn quotient(self, by: Self::Divisor) -> Self;

    /// `self / by` for a `by` of 3, 7, 15, 31, 63 or 255, rounded as a division is, for magnitudes in `[2^−60, 2^60]`.
    #[must_use]
    #[inline(always)]
    fn exact_quotient(self, by: Self::Divisor) -> Self {
        self.quotient(by)
    }

    /// The prepared divisors of all lanes, as arrays.
    fn store_divisor(by: Self::Divisor) -> Self::Divisors;

    /// Prepares to divide all lanes by lane `at` of stored divisors.
    fn splat_divisor(of: &Self::Divisors, at: usize) -> Self::Divisor;
}

/// A reciprocal and its error.
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
pub(super) type Reciprocal<V> = [V; 2];

/// The parts of `1 / of`. Both are the nearest floats: the tests try every divisor.
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
#[inline(always)]
pub(super) fn reciprocal<V: Vector>(of: V) -> Reciprocal<V> {
    let one = V::splat(1.0);
    let nearest = one.div(of);
    let minus = V::splat(0.0).sub(of);
    // The remainder times the reciprocal, corrected once, is the nearest float to `remainder / of`, without a division.
    let remainder = minus.mul_add(nearest, one);
    let error = remainder.mul(nearest);
    [nearest, minus.mul_add(error, remainder).mul_add(nearest, error)]
}

/// Implements [`Divide`] by reciprocals.
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
macro_rules! divide_by_reciprocal {
    ($vector:ty) => {
        impl $crate::simd::divide::Divide for $vector {
            type Divisor = $crate::simd::divide::Reciprocal<Self>;
            type Divisors = [$crate::simd::vector::Column; 2];

            #[inline(always)]
            fn divisor(self) -> Self::Divisor {
                $crate::simd::divide::reciprocal(self)
            }

            #[inline(always)]
            fn quotient(self, [reciprocal, error]: Self::Divisor) -> Self {
                self.mul_add(reciprocal, self.mul(error))
            }

            #[inline(always)]
            fn store_divisor(by: Self::Divisor) -> Self::Divisors {
                [by[0].store(), by[1].store()]
            }

            #[inline(always)]
            fn splat_divisor(of: &Self::Divisors, at: usize) -> Self::Divisor {
                [Self::splat(of[0][at]), Self::splat(of[1][at])]
            }
        }
    };
}
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
pub(super) use divide_by_reciprocal;

#[cfg(test)]
mod tests {
    use crate::simd::vector::{BAND_ROWS, Column};
    use crate::simd::{Isa, kernel};

    kernel! {
        /// A quotient is only used for its code. Where that changes, between two integers, the quotient by `divisor` and the one
        /// by division must lie on the same side. The divisor is `1 + significand / 2^23`, and the numbers are those next to
        /// where the code changes.
        fn has_the_codes_of_a_division<V: Simd>(significand: u32) {
            let by = f32::from_bits(0x3f80_0000 | significand);
            let (divisor, max) = (V::splat(by).divisor(), V::splat(255.0));
            let mut off = V::splat(0.0);
            for code in 0..=255_u16 {
                let edge = ((f32::from(code) + 0.5) * by).to_bits();
                let mut near = [0.0; BAND_ROWS];
                for (near, bits) in near.iter_mut().zip(edge - 4..) {
                    *near = f32::from_bits(bits);
                }
                let near = V::load(near);
                off = near.quotient(divisor).code(max).sub(near.div(V::splat(by)).code(max)).abs().max(off);
            }
            assert_eq!(off.store(), [0.0; BAND_ROWS], "divided by {by:e}");
        }
    }

    /// The error of the quotient, beyond rounding, is below 2^−22 ulp, so it differs from the rounded quotient only near the
    /// middle of two floats. Near a half, that is where the low 16 bits of the divisor are near 0: these divisors are all tried,
    /// and one in 2^13 of the others.
    #[test]
    fn a_quotient_has_the_code_of_a_division() {
        for significand in 0..1 << 23 {
            let from_round = (significand + 64) % (1 << 16);
            if from_round < 128 || significand % 8_191 == 0 {
                has_the_codes_of_a_division(Isa::detect(), significand);
            }
        }
    }

    #[test]
    #[ignore = "half a minute: every significand of a divisor"]
    fn a_quotient_has_the_code_of_a_division_for_every_divisor() {
        (0..1 << 23).for_each(|significand| has_the_codes_of_a_division(Isa::detect(), significand));
    }

    kernel! {
        /// Quotients by one number, and the results of divisions.
        fn quotients<V: Simd>(of: Column, by: f32) -> (Column, Column) {
            let (of, by) = (V::load(of), V::splat(by));
            (of.exact_quotient(by.divisor()).store(), of.div(by).store())
        }
    }

    #[test]
    fn a_quotient_by_a_largest_code_is_that_of_a_division() {
        for by in [3.0, 7.0, 15.0, 31.0, 63.0, 255.0] {
            for first in (0..1 << 23).step_by(BAND_ROWS) {
                let of = std::array::from_fn(|at| f32::from_bits(0x3f80_0000 | (first + at as u32)));
                let (quotients, divisions) = quotients(Isa::detect(), of, by);
                assert_eq!(quotients, divisions, "/ {by}");
            }
        }
    }

    kernel! {
        /// The codes of all lanes of `of` divided by lane 0 of `by`, then by lane 1, and so on.
        fn codes<V: Simd>(of: Column, by: Column, max: f32) -> [Column; BAND_ROWS] {
            let mut codes = [[0.0; BAND_ROWS]; BAND_ROWS];
            let divisors = V::store_divisor(V::load(by).divisor());
            for (row, codes) in codes.iter_mut().enumerate() {
                *codes = V::load(of).quotient(V::splat_divisor(&divisors, row)).code(V::splat(max)).store();
            }
            codes
        }
    }

    #[test]
    fn all_lanes_are_divided_by_each() {
        let of = [0.0, 1.0, 2.5, 300.0, 7.0, 1e3, 1e-3, 77.7];
        let by = [1.0, 0.3, -2.0, 1e18, 1e-18, 7.5, 2.0, 0.1];
        for isa in Isa::available() {
            for (codes, by) in codes(isa, of, by, 255.0).iter().zip(by) {
                let expected = of.map(|of| (of / by).clamp(0.0, 255.0).round_ties_even());
                assert_eq!(*codes, expected, "{isa:?}: / {by}");
            }
        }
    }
}

//! Division by a product and a fused product.
//!
//! The reciprocal is held in two parts: the nearest float, and the nearest of what that lacks (Brisebarre, Muller and Raina,
//! "Accelerating correctly rounded floating-point division when the divisor is known in advance", IEEE Transactions on
//! Computers 53, 2004). For a [`Vector`] whose fused product is an instruction.

use super::vector::Vector;

/// A reciprocal, and what it lacks.
pub(super) type Parts<V> = [V; 2];

/// The parts of `1 / of`. Both are the nearest: the tests try every divisor.
#[inline(always)]
pub(super) fn parts<V: Vector>(of: V) -> Parts<V> {
    let one = V::splat(1.0);
    let reciprocal = one.div(of);
    let minus = V::splat(0.0).sub(of);
    // The rest by the reciprocal, and corrected once: the nearest of `rest / of` without a division.
    let rest = minus.mul_add(reciprocal, one);
    let lacks = rest.mul(reciprocal);
    [reciprocal, minus.mul_add(lacks, rest).mul_add(reciprocal, lacks)]
}

/// [`Vector::quotient`]
#[inline(always)]
pub(super) fn quotient<V: Vector>(of: V, [reciprocal, lacks]: Parts<V>) -> V {
    of.mul_add(reciprocal, of.mul(lacks))
}

#[cfg(test)]
mod tests {
    use super::super::vector::{BAND_ROWS, Column};
    use super::super::{Isa, kernel};
    use crate::codec::affine::BITS;

    kernel! {
        /// A quotient is only needed for its code. Where that changes, between two integers, the quotient by `divisor` and
        /// the one by division must lie on the same side: `significand / 2^23` is the divisor, and the numbers tried are
        /// those next to where the code changes.
        fn has_the_codes_of_a_division<V: Vector>(significand: u32) {
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

    /// The quotient is off by less than 2^−22 of its last place, so it can differ from the rounded one only next to the
    /// middle of two floats. Next to a half, that is where the divisor's low 16 bits are near 0: of all others one in
    /// 2^13 is tried.
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
    #[ignore = "half a minute: every divisor there is, but for its exponent"]
    fn a_quotient_has_the_code_of_a_division_for_every_divisor() {
        (0..1 << 23).for_each(|significand| has_the_codes_of_a_division(Isa::detect(), significand));
    }

    kernel! {
        /// Quotients by one and the same number, and what divisions give.
        fn quotients<V: Vector>(of: Column, by: f32) -> (Column, Column) {
            let (of, by) = (V::load(of), V::splat(by));
            (of.exact_quotient(by.divisor()).store(), of.div(by).store())
        }
    }

    #[test]
    fn a_quotient_by_a_largest_code_is_that_of_a_division() {
        for bits in BITS {
            let by = f32::from(u8::MAX >> (8 - bits));
            for first in (0..1 << 23).step_by(BAND_ROWS) {
                let of = std::array::from_fn(|at| f32::from_bits(0x3f80_0000 | (first + at as u32)));
                let (quotients, divisions) = quotients(Isa::detect(), of, by);
                assert_eq!(quotients, divisions, "{bits} bits");
            }
        }
    }

    kernel! {
        /// The codes of `of` by each lane of `by`, all lanes of one after those of the other.
        fn codes<V: Vector>(of: Column, by: Column, max: f32) -> [Column; BAND_ROWS] {
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

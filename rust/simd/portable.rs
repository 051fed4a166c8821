//! [`Vector`] in plain Rust: what every other implementation must agree with, bit for bit.

use super::convert::Convert;
use super::divide::Divide;
use super::pack::Pack;
use super::quantize::Quantize;
use super::shuffle::Shuffle;
use super::vector::{BAND_ROWS, Column, Lanes, Vector};
use crate::dtype::Float;

/// Eight lanes in an array.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable(Column);

/// `f` of the lanes of two vectors.
#[inline(always)]
fn zip<U>(a: Portable, b: Portable, f: impl Fn(f32, f32) -> U) -> [U; BAND_ROWS] {
    std::array::from_fn(|row| f(a.0[row], b.0[row]))
}

/// `a * b + c`, rounded once, without the instruction for it (and without the library's substitute, which is a call).
///
/// The product of two `f32` is exact in `f64`. An inexact sum is rounded to odd, towards the exact one (Boldo and Melquiond,
/// "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", IEEE Transactions on Computers 57,
/// 2008): `f64` has enough bits beyond those of `f32` that rounding the odd sum again gives the correctly rounded result.
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        // One instruction on these.
        return native(a, b, c);
    }
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    let of_c = sum - product;
    let lacks = (product - (sum - of_c)) + (c - of_c);
    let bits = sum.to_bits();
    let is_rounded = lacks != 0.0 && sum.is_finite() && bits & 1 == 0;
    let outward = (lacks > 0.0) == (sum > 0.0);
    let odd = if outward { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    f64::from_bits(if is_rounded { odd } else { bits }) as f32
}

/// `a * b + c`, rounded once, by the instruction for it.
#[inline(always)]
#[expect(clippy::disallowed_methods, reason = "every isa fuses here, and a fused product has but one result")]
fn native(a: f32, b: f32, c: f32) -> f32 {
    a.mul_add(b, c)
}

impl Lanes for Portable {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; BAND_ROWS])
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(zip(self, other, |a, b| a + b))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(zip(self, other, |a, b| a - b))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(zip(self, other, |a, b| a * b))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(zip(self, other, |a, b| a / b))
    }

    #[inline(always)]
    fn mul_add(self, by: Self, plus: Self) -> Self {
        Self(std::array::from_fn(|row| fused(self.0[row], by.0[row], plus.0[row])))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(zip(self, other, |a, b| if a < b { a } else { b }))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(zip(self, other, |a, b| if a > b { a } else { b }))
    }

    #[inline(always)]
    fn round_ties_even(self) -> Self {
        Self(self.0.map(f32::round_ties_even))
    }

    #[inline(always)]
    fn round_to(self, store: Float) -> Self {
        Self(self.0.map(|value| store.round(value)))
    }
}

impl Vector for Portable {
    type Mask = [bool; BAND_ROWS];

    #[inline(always)]
    fn load(lanes: Column) -> Self {
        Self(lanes)
    }

    #[inline(always)]
    fn store(self) -> Column {
        self.0
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }

    #[inline(always)]
    fn lt(self, other: Self) -> [bool; BAND_ROWS] {
        zip(self, other, |a, b| a < b)
    }

    #[inline(always)]
    fn select(self, mask: [bool; BAND_ROWS], other: Self) -> Self {
        Self(std::array::from_fn(|row| if mask[row] { self.0[row] } else { other.0[row] }))
    }

    #[inline(always)]
    fn all(mask: [bool; BAND_ROWS]) -> bool {
        mask.iter().all(|&lane| lane)
    }
}

impl Quantize for Portable {
    #[inline(always)]
    fn min_positive(self, other: Self) -> Self {
        Self(zip(self, other, |a, b| f32::from_bits(a.to_bits().min(b.to_bits()))))
    }

    // The baseline of a target may lack an instruction that rounds to integers.

    #[inline(always)]
    fn code(self, max: Self) -> Self {
        self.clamp(max).round_small()
    }

    #[inline(always)]
    fn code_nonneg(self, max: Self) -> Self {
        self.min(max).round_small()
    }
}

impl Divide for Portable {
    type Divisor = Self;
    type Divisors = Column;

    #[inline(always)]
    fn divisor(self) -> Self {
        self
    }

    #[inline(always)]
    fn quotient(self, by: Self) -> Self {
        self.div(by)
    }

    #[inline(always)]
    fn store_divisor(by: Self) -> Column {
        by.0
    }

    #[inline(always)]
    fn splat_divisor(of: &Column, at: usize) -> Self {
        Self::splat(of[at])
    }
}

impl Shuffle for Portable {}
impl Convert for Portable {}
impl Pack for Portable {}

#[cfg(test)]
mod tests {
    use super::fused;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the reference to compare with")]
    fn a_fused_product_is_the_one_that_ieee_754_defines() {
        let mut state = 1_u64;
        let mut bits = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        let special = [0.0, -0.0, 1.0, -1.0, f32::MIN_POSITIVE, f32::from_bits(1), f32::MAX, f32::INFINITY, f32::NAN];
        for round in 0..2_000_000 {
            let mut of = |at: usize| {
                let any = f32::from_bits(bits());
                match round % 4 {
                    // Arbitrary bits, and numbers that nearly cancel.
                    0 => any,
                    1 => f32::from_bits(0x3f80_0000 | (any.to_bits() & 0x0000_0fff) << (4 * at)),
                    2 => f32::from_bits(any.to_bits() & 0x807f_ffff | 0x3f00_0000),
                    _ => {
                        if any.to_bits().is_multiple_of(4) {
                            special[any.to_bits() as usize / 4 % special.len()]
                        } else {
                            any
                        }
                    }
                }
            };
            let (a, b) = (of(0), of(1));
            let c = if round % 8 == 1 { -(a * b) } else { of(2) };
            let (found, expected) = (fused(a, b, c), a.mul_add(b, c));
            assert!(
                found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()),
                "{a:e} {b:e} {c:e}"
            );
        }
    }
}

//! Eight rows side by side.
//!
//! A *band* holds [`ROWS`] rows of a matrix column by column: entry `j` is element `j` of each row. Whatever a kernel
//! computes for a row runs over that row's elements one after the other, in order, in the row's own lane. So the
//! result for a row is that of the plain loop over it: it does not depend on the width of the CPU's registers, on the
//! rows beside it, or on how the work was cut.
//!
//! [`Vector`] is the arithmetic of such lanes. Each operation is one IEEE 754 operation per lane, rounded to nearest
//! even, on every implementation: none is reordered or approximate, and none is fused but [`Vector::mul_add`], which is
//! on all of them.

/// Rows in a band.
pub const ROWS: usize = 8;

/// One `f32` per row.
pub type Lane = [f32; ROWS];

/// Eight `f32`, one per row.
pub trait Vector: Copy {
    /// Which lanes, as a comparison says.
    type Mask: Copy;

    /// The same value in each lane.
    fn splat(value: f32) -> Self;
    /// The lanes of an array.
    fn load(lanes: Lane) -> Self;
    /// The lanes as an array.
    fn store(self) -> Lane;
    /// `self + other`
    #[must_use]
    fn add(self, other: Self) -> Self;
    /// `self - other`
    #[must_use]
    fn sub(self, other: Self) -> Self;
    /// `self * other`
    #[must_use]
    fn mul(self, other: Self) -> Self;
    /// `self / other`
    #[must_use]
    fn div(self, other: Self) -> Self;
    /// `self * by + plus`, rounded once.
    #[must_use]
    fn mul_add(self, by: Self, plus: Self) -> Self;
    /// `self` where less than `other`, else `other` (so also where either is NaN).
    #[must_use]
    fn min(self, other: Self) -> Self;
    /// `self` where greater than `other`, else `other` (so also where either is NaN).
    #[must_use]
    fn max(self, other: Self) -> Self;
    /// Magnitude.
    #[must_use]
    fn abs(self) -> Self;
    /// Where `self < other`; false where either is NaN.
    fn less(self, other: Self) -> Self::Mask;
    /// `self` where `mask`, else `other`.
    #[must_use]
    fn where_or(self, mask: Self::Mask, other: Self) -> Self;
    /// The low byte of each lane's integer value, which must be in `[0, 255]`.
    fn bytes(self) -> [u8; ROWS];
    /// Bytes as floats.
    fn from_bytes(bytes: [u8; ROWS]) -> Self;
    /// `2^self` of lanes that hold an integer in `[−126, 127]`; of other lanes any value.
    #[must_use]
    fn power_of_two(self) -> Self;

    /// Columns of eight elements of bfloat16 from each of eight rows, widened.
    #[must_use]
    #[inline(always)]
    fn columns(rows: [[u16; ROWS]; ROWS]) -> [Lane; ROWS] {
        std::array::from_fn(|column| std::array::from_fn(|row| f32::from_bits(u32::from(rows[row][column]) << 16)))
    }

    /// The nearest integer, ties to even, of values in `[−2^22, 2^22]`; −0 may come out as 0, and NaN stays.
    ///
    /// Adding and taking away 1.5 × 2^23 leaves no fraction bits, on every target: the sum lies in `[2^23, 2^24]`,
    /// where the floats are the integers, and 1.5 × 2^23 is even.
    #[must_use]
    #[inline(always)]
    fn round(self) -> Self {
        let magic = Self::splat(12_582_912.0);
        self.add(magic).sub(magic)
    }

    /// Held to `[0, max]`; NaN goes to 0.
    #[must_use]
    #[inline(always)]
    fn clamp(self, max: Self) -> Self {
        self.max(Self::splat(0.0)).min(max)
    }

    /// The nearest integer in `[0, max]`, ties to even; NaN goes to 0. `max` is at most 2^22.
    #[must_use]
    #[inline(always)]
    fn code(self, max: Self) -> Self {
        self.clamp(max).round()
    }

    /// `f` of each lane, one by one.
    #[must_use]
    #[inline(always)]
    fn each(self, f: impl Fn(f32) -> f32) -> Self {
        Self::load(self.store().map(f))
    }
}

/// [`Vector`] in plain Rust.
#[derive(Clone, Copy, Debug)]
pub struct Portable(Lane);

/// `f` of the lanes of two.
#[inline(always)]
fn zip<U>(a: Portable, b: Portable, f: impl Fn(f32, f32) -> U) -> [U; ROWS] {
    std::array::from_fn(|row| f(a.0[row], b.0[row]))
}

/// `a * b + c`, rounded once, without the instruction for it (and without a library's stand-in, which is a call).
///
/// The product of two `f32` is exact in `f64`. Their sum there is made odd where it is not exact, towards what it lacks:
/// the bits that an odd number stands for are enough to round it to `f32` as the exact sum would be.
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        // There it is one instruction.
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
#[expect(clippy::disallowed_methods, reason = "every level fuses here, and a fused product has but one result")]
fn native(a: f32, b: f32, c: f32) -> f32 {
    a.mul_add(b, c)
}

impl Vector for Portable {
    type Mask = [bool; ROWS];

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; ROWS])
    }
    #[inline(always)]
    fn load(lanes: Lane) -> Self {
        Self(lanes)
    }
    #[inline(always)]
    fn store(self) -> Lane {
        self.0
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
    fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }
    #[inline(always)]
    fn less(self, other: Self) -> [bool; ROWS] {
        zip(self, other, |a, b| a < b)
    }
    #[inline(always)]
    fn where_or(self, mask: [bool; ROWS], other: Self) -> Self {
        Self(std::array::from_fn(|row| if mask[row] { self.0[row] } else { other.0[row] }))
    }
    #[inline(always)]
    #[expect(clippy::cast_sign_loss, reason = "the lanes are in [0, 255]")]
    fn bytes(self) -> [u8; ROWS] {
        self.0.map(|value| value as u8)
    }
    #[inline(always)]
    fn from_bytes(bytes: [u8; ROWS]) -> Self {
        Self(bytes.map(f32::from))
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        Self(self.0.map(|n| f32::from_bits((n as i32).wrapping_add(127).cast_unsigned() << 23)))
    }
}

#[cfg(test)]
mod tests {
    use super::fused;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "what ours is compared with")]
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
                    // Anything at all, and numbers that nearly cancel.
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

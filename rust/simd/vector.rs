//! Arithmetic on eight rows of a band.
//!
//! A *band* holds [`BAND_ROWS`] rows of a matrix column by column: entry `j` is element `j` of each row. A kernel processes
//! the elements of a row one after the other, in order, in that row's own lane. The result for a row is therefore that of
//! the plain loop over the row: it does not depend on the width of the CPU's registers, on the other rows of the band, or
//! on how the work was cut.
//!
//! [`Lanes`] is arithmetic on any number of lanes, [`Vector`] is eight of them. Each operation is one IEEE 754 operation per
//! lane, rounded to nearest even, on every implementation. No operation is reordered or approximate, and only
//! [`Lanes::mul_add`] is fused, on all of them. Results are unspecified for signalling NaNs and for NaN payloads.
//!
//! These two traits are all that kernels of plain arithmetic need. What else a kernel can ask for:
//!
//! | trait | operations |
//! |---|---|
//! | [`Shuffle`] | transposes, reductions across lanes |
//! | [`Divide`] | many quotients by one divisor |
//! | [`Convert`] | bytes, binary16 and bfloat16 to and from lanes |
//! | [`Quantize`] | rounding to codes |
//! | [`Pack`] | codes to a bit stream |
//!
//! A new instruction set implements the methods that have no body: 16 here, most of them one intrinsic, one of `Quantize`, and
//! `Divide`, for which there is a macro. It may override any other method.

use super::convert::Convert;
use super::divide::Divide;
use super::pack::Pack;
use super::quantize::Quantize;
use super::shuffle::Shuffle;
use crate::dtype::Float;

/// Rows in a band.
pub const BAND_ROWS: usize = 8;

/// One `f32` per row.
pub type Column = [f32; BAND_ROWS];

/// Adding this to a number in `[−2^22, 2^22]` rounds it to an integer: the sum lies in `[2^23, 2^24]`, where the floats are
/// the integers. It is even, so that ties go to even integers.
pub(super) const INTEGERS: f32 = 12_582_912.0;

/// Arithmetic on lanes.
pub(crate) trait Lanes: Copy {
    /// The same value in each lane.
    fn splat(value: f32) -> Self;
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
    /// The nearest integer, ties to even, of any magnitude.
    #[must_use]
    fn round_ties_even(self) -> Self;
    /// The nearest value of type `store`, ties to even; infinite if out of range.
    #[must_use]
    fn round_to(self, store: Float) -> Self;

    /// The nearest integer, ties to even, of values in `[−2^22, 2^22]`. −0 may become 0, and NaN stays NaN.
    #[must_use]
    #[inline(always)]
    fn round_small(self) -> Self {
        let integers = Self::splat(INTEGERS);
        self.add(integers).sub(integers)
    }

    /// The nearest value in `[0, max]`; 0 for NaN.
    #[must_use]
    #[inline(always)]
    fn clamp(self, max: Self) -> Self {
        self.max(Self::splat(0.0)).min(max)
    }
}

/// Eight `f32`, one per row.
pub(crate) trait Vector: Lanes {
    /// One truth value per lane.
    type Mask: Copy;

    /// The lanes of an array.
    fn load(lanes: Column) -> Self;
    /// The lanes as an array.
    fn store(self) -> Column;
    /// Magnitude.
    #[must_use]
    fn abs(self) -> Self;
    /// Where `self < other`; false where either is NaN.
    fn lt(self, other: Self) -> Self::Mask;
    /// `self` where `mask`, else `other`.
    #[must_use]
    fn select(self, mask: Self::Mask, other: Self) -> Self;
    /// Whether the mask is true in all lanes.
    fn all(mask: Self::Mask) -> bool;

    /// `2^self` of lanes that hold an integer in `[−126, 127]`; unspecified for other lanes.
    #[must_use]
    #[inline(always)]
    fn power_of_two(self) -> Self {
        self.map(|n| f32::from_bits((n as i32).wrapping_add(127).cast_unsigned() << 23))
    }

    /// `f` of each lane, one by one.
    #[must_use]
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Self::load(self.store().map(f))
    }
}

/// A vector with every operation there is: what `kernel!` gives to the body of a kernel.
pub(crate) trait Simd: Vector + Shuffle + Divide + Convert + Quantize + Pack {}

impl<V: Vector + Shuffle + Divide + Convert + Quantize + Pack> Simd for V {}

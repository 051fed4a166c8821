//! Eight rows side by side.
//!
//! A *band* holds [`ROWS`] rows of a matrix column by column: entry `j` is element `j` of each row. Whatever a kernel
//! computes for a row runs over that row's elements one after the other, in order, in the row's own lane. So the
//! result for a row is that of the plain loop over it: it does not depend on the width of the CPU's registers, on the
//! rows beside it, or on how the work was cut.
//!
//! [`Vector`] is the arithmetic of such lanes. Each operation is one IEEE 754 operation per lane, rounded to nearest
//! even, on every implementation: none is fused, reordered or approximate.

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

    /// The nearest integer, ties to even, of values in `[0, 2^22)`.
    ///
    /// Adding and taking away 1.5 × 2^23 leaves no fraction bits, on every target.
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
}

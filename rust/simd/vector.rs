//! Eight rows side by side.
//!
//! A *band* holds [`BAND_ROWS`] rows of a matrix column by column: entry `j` is element `j` of each row. Whatever a kernel
//! computes for a row runs over that row's elements one after the other, in order, in the row's own lane. So the
//! result for a row is that of the plain loop over it: it does not depend on the width of the CPU's registers, on the
//! rows beside it, or on how the work was cut.
//!
//! [`Lanes`] is the arithmetic of such lanes, [`Vector`] eight of them. Each operation is one IEEE 754 operation per lane,
//! rounded to nearest even, on every implementation: none is reordered or approximate, and none is fused but
//! [`Lanes::mul_add`], which is on all of them. The one exception says so, [`Vector::quotient`]: what is asked of it is alike
//! on all. NaN is what arithmetic gives, a quiet one: nothing is said of signalling ones, nor of which NaN comes of NaN.

use half::{bf16, f16};

use crate::dtype::Float;

/// Rows in a band.
pub const BAND_ROWS: usize = 8;

/// One `f32` per row.
pub type Column = [f32; BAND_ROWS];

/// Codes that are packed at once.
pub const BYTES: usize = 32;

/// What added to a number in `[−2^22, 2^22]` leaves no fraction bits, and the nearest integer above it: the sum lies in
/// `[2^23, 2^24]`, where the floats are the integers, and this one is even.
const INTEGERS: f32 = 12_582_912.0;

/// What a weight is stored as.
pub trait Element: bytemuck::Pod {
    /// Some of them as numbers, in the order that [`Vector::nearest_bytes`] takes them in.
    fn widened<V: Vector>(of: &[Self; BYTES]) -> [V; BYTES / BAND_ROWS];

    /// The least and the greatest of each of eight groups of numbers, a lane each; of zeros any.
    #[must_use]
    #[inline(always)]
    fn ranges<V: Vector, const G: usize>(groups: &[[Self; G]; BAND_ROWS]) -> (V, V) {
        ranges(groups)
    }

    /// Columns of eight elements from each of eight rows, widened.
    #[must_use]
    fn columns<V: Vector>(rows: [[Self; BAND_ROWS]; BAND_ROWS]) -> [Column; BAND_ROWS];
}

impl Element for f32 {
    #[inline(always)]
    fn columns<V: Vector>(rows: [[Self; BAND_ROWS]; BAND_ROWS]) -> [Column; BAND_ROWS] {
        V::turned(rows)
    }

    #[inline(always)]
    fn widened<V: Vector>(of: &[Self; BYTES]) -> [V; BYTES / BAND_ROWS] {
        V::from_f32(of)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn columns<V: Vector>(rows: [[Self; BAND_ROWS]; BAND_ROWS]) -> [Column; BAND_ROWS] {
        V::columns(bytemuck::cast(rows))
    }

    #[inline(always)]
    fn widened<V: Vector>(of: &[Self; BYTES]) -> [V; BYTES / BAND_ROWS] {
        V::from_bf16(of)
    }

    #[inline(always)]
    fn ranges<V: Vector, const G: usize>(groups: &[[Self; G]; BAND_ROWS]) -> (V, V) {
        V::ranges_bf16(groups)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn columns<V: Vector>(rows: [[Self; BAND_ROWS]; BAND_ROWS]) -> [Column; BAND_ROWS] {
        let mut wide = [[0.0; BAND_ROWS]; BAND_ROWS];
        for (wide, row) in wide.iter_mut().zip(rows) {
            *wide = V::from_halves(row).store();
        }
        V::turned(wide)
    }

    #[inline(always)]
    fn widened<V: Vector>(of: &[Self; BYTES]) -> [V; BYTES / BAND_ROWS] {
        V::from_f16(of)
    }

    #[inline(always)]
    fn ranges<V: Vector, const G: usize>(groups: &[[Self; G]; BAND_ROWS]) -> (V, V) {
        V::ranges_f16(groups)
    }
}

/// `of`, widened in their order.
#[inline(always)]
fn in_order<T: Copy, V: Vector>(of: &[T; BYTES], widen: impl Fn(T) -> f32) -> [V; BYTES / BAND_ROWS] {
    let mut wide = [V::splat(0.0); BYTES / BAND_ROWS];
    for (wide, of) in wide.iter_mut().zip(of.as_chunks::<BAND_ROWS>().0) {
        let mut lanes = [0.0; BAND_ROWS];
        for row in 0..BAND_ROWS {
            lanes[row] = widen(of[row]);
        }
        *wide = V::load(lanes);
    }
    wide
}

/// [`Element::ranges`], of numbers.
#[inline(always)]
pub(super) fn ranges<V: Vector, T: Element, const G: usize>(groups: &[[T; G]; BAND_ROWS]) -> (V, V) {
    let [mut low, mut high] = [[V::splat(0.0); BAND_ROWS]; 2];
    for (at, w) in groups.iter().enumerate() {
        let chunks = w.as_chunks::<BYTES>().0;
        let first = T::widened::<V>(&chunks[0]);
        let mut range = (first[0], first[0]);
        for chunk in chunks {
            for w in T::widened::<V>(chunk) {
                range = (w.min(range.0), w.max(range.1));
            }
        }
        (low[at], high[at]) = range;
    }
    (V::least(low), V::greatest(high))
}

/// Arithmetic of lanes.
pub trait Lanes: Copy {
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
    /// The nearest integer, ties to even, whatever the magnitude.
    #[must_use]
    fn nearest_integer(self) -> Self;
    /// The nearest values of `store`, ties to even; infinite if out of range.
    #[must_use]
    fn nearest(self, store: Float) -> Self;

    /// The nearest integer, ties to even, of values in `[−2^22, 2^22]`; −0 may come out as 0, and NaN stays.
    #[must_use]
    #[inline(always)]
    fn round(self) -> Self {
        let integers = Self::splat(INTEGERS);
        self.add(integers).sub(integers)
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
        // As `round` has it, but for the sign of a zero; and what is clamped is not negative.
        self.clamp(max).nearest_integer()
    }

    /// As [`code`](Self::code), of values that are not negative; NaN goes to `max`.
    #[must_use]
    #[inline(always)]
    fn capped_code(self, max: Self) -> Self {
        self.min(max).nearest_integer()
    }

    /// Makes ready to hold codes to `self`, which is a whole number up to 2^22.
    #[must_use]
    #[inline(always)]
    fn cap(self) -> Self {
        self.add(Self::splat(INTEGERS))
    }

    /// The nearest integer to `self * by`, ties to even, or what `cap` was made of where that is less; of products in
    /// `[0, 2^22]`, of NaN any. The product is not rounded but to the integer.
    ///
    /// It takes as few of the units that multiply as it can: the sum is for those that add, the cap for those of integers.
    #[must_use]
    #[inline(always)]
    fn product_code(self, by: Self, cap: Self) -> Self {
        let integers = Self::splat(INTEGERS);
        self.mul_add(by, integers).min_by_bits(cap).sub(integers)
    }

    /// The lesser of two positive numbers, found as that of the integers that their bits stand for; of others any.
    #[must_use]
    fn min_by_bits(self, other: Self) -> Self;
}

/// Eight `f32`, one per row.
pub trait Vector: Lanes {
    /// Which lanes, as a comparison says.
    type Mask: Copy;

    /// What many values are divided by, made ready for it.
    type Divisor: Copy;

    /// The same, in arrays.
    type Divisors: Copy;

    /// The lanes of an array.
    fn load(lanes: Column) -> Self;
    /// The lanes as an array.
    fn store(self) -> Column;
    /// Magnitude.
    #[must_use]
    fn abs(self) -> Self;
    /// Where `self < other`; false where either is NaN.
    fn less(self, other: Self) -> Self::Mask;
    /// `self` where `mask`, else `other`.
    #[must_use]
    fn where_or(self, mask: Self::Mask, other: Self) -> Self;
    /// Whether the mask has all lanes.
    fn all(mask: Self::Mask) -> bool;
    /// Makes ready to divide by `self`.
    fn divisor(self) -> Self::Divisor;
    /// `self / by`, or so near it that [`code`](Lanes::code) gives the same for a `max` up to 255, where the magnitude of
    /// `by` lies in `[2^−60, 2^60]`.
    #[must_use]
    fn quotient(self, by: Self::Divisor) -> Self;
    /// `self / by` of a `by` that is one of 3, 7, 15, 31, 63 and 255, rounded as a division is, of magnitudes in
    /// `[2^−60, 2^60]`.
    #[must_use]
    #[inline(always)]
    fn exact_quotient(self, by: Self::Divisor) -> Self {
        self.quotient(by)
    }
    /// The lanes of what is divided by, as arrays.
    fn store_divisor(by: Self::Divisor) -> Self::Divisors;
    /// What divides all lanes by lane `at` of those.
    fn splat_divisor(of: &Self::Divisors, at: usize) -> Self::Divisor;
    /// In each lane the least of the lanes of one of eight, all of them numbers; of zeros any.
    #[must_use]
    #[inline(always)]
    fn least(of: [Self; BAND_ROWS]) -> Self {
        Self::load(of.map(|of| {
            of.store().into_iter().fold(f32::INFINITY, |least, lane| if lane < least { lane } else { least })
        }))
    }
    /// In each lane the greatest of the lanes of one of eight, all of them numbers; of zeros any.
    #[must_use]
    #[inline(always)]
    fn greatest(of: [Self; BAND_ROWS]) -> Self {
        Self::load(of.map(|of| {
            of.store().into_iter().fold(f32::NEG_INFINITY, |most, lane| if lane > most { lane } else { most })
        }))
    }
    /// [`Element::widened`] of `f32`.
    #[must_use]
    #[inline(always)]
    fn from_f32(of: &[f32; BYTES]) -> [Self; BYTES / BAND_ROWS] {
        in_order(of, |value| value)
    }
    /// [`Element::widened`] of bfloat16.
    #[must_use]
    #[inline(always)]
    fn from_bf16(of: &[bf16; BYTES]) -> [Self; BYTES / BAND_ROWS] {
        in_order(of, bf16::to_f32)
    }
    /// [`Element::widened`] of binary16.
    #[must_use]
    #[inline(always)]
    fn from_f16(of: &[f16; BYTES]) -> [Self; BYTES / BAND_ROWS] {
        in_order(of, f16::to_f32)
    }
    /// Eight of binary16 as numbers.
    #[must_use]
    #[inline(always)]
    fn from_halves(of: [f16; BAND_ROWS]) -> Self {
        Self::load(of.map(f16::to_f32))
    }
    /// [`Element::ranges`] of bfloat16.
    #[must_use]
    #[inline(always)]
    fn ranges_bf16<const G: usize>(groups: &[[bf16; G]; BAND_ROWS]) -> (Self, Self) {
        ranges(groups)
    }
    /// [`Element::ranges`] of binary16.
    #[must_use]
    #[inline(always)]
    fn ranges_f16<const G: usize>(groups: &[[f16; G]; BAND_ROWS]) -> (Self, Self) {
        ranges(groups)
    }
    /// The nearest integers, ties to even, of values in `[0, 2^22]`, or `max` where that is less, in the order of what
    /// [`Element::widened`] widened; of NaN any.
    #[must_use]
    #[inline(always)]
    fn nearest_bytes(values: [Self; BYTES / BAND_ROWS], max: u8) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        for (bytes, values) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
            *bytes = values.capped_code(Self::splat(f32::from(max))).bytes();
        }
        bytes
    }
    /// Byte `j` of row `i` where byte `i` of row `j` was.
    #[must_use]
    #[inline(always)]
    fn transposed(rows: [[u8; BAND_ROWS]; BAND_ROWS]) -> [[u8; BAND_ROWS]; BAND_ROWS] {
        let mut columns = [[0; BAND_ROWS]; BAND_ROWS];
        for (row, bytes) in rows.iter().enumerate() {
            for (column, &byte) in bytes.iter().enumerate() {
                columns[column][row] = byte;
            }
        }
        columns
    }
    /// Codes of `BITS` bits, one a byte, without the bits between them: the first `BYTES / 8 * BITS` bytes of `out`. What
    /// comes of the others is not said.
    #[inline(always)]
    fn squeeze<const BITS: usize>(codes: &[u8; BYTES], out: &mut [u8; BYTES]) {
        for (at, eight) in codes.as_chunks::<8>().0.iter().enumerate() {
            // Pairs move together, then fours, then all.
            let codes = u64::from_le_bytes(*eight);
            let pairs = codes & 0x00ff_00ff_00ff_00ff | (codes & 0xff00_ff00_ff00_ff00) >> (8 - BITS);
            let fours = pairs & 0x0000_ffff_0000_ffff | (pairs & 0xffff_0000_ffff_0000) >> (16 - 2 * BITS);
            let all = fours & 0x0000_0000_ffff_ffff | (fours & 0xffff_ffff_0000_0000) >> (32 - 4 * BITS);
            out[at * BITS..][..BITS].copy_from_slice(&all.to_le_bytes()[..BITS]);
        }
    }
    /// Codes of four bits, one a byte, without the bits between them: as [`squeeze`](Self::squeeze), of twice as many, which
    /// fill a register then.
    #[must_use]
    #[inline(always)]
    fn nibbles(codes: &[u8; 2 * BYTES]) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        for (out, codes) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
            *out = codes[0] | codes[1] << 4;
        }
        out
    }
    /// The low byte of each lane's integer value, which must be in `[0, 255]`.
    fn bytes(self) -> [u8; BAND_ROWS];
    /// Bytes as floats.
    fn from_bytes(bytes: [u8; BAND_ROWS]) -> Self;
    /// `2^self` of lanes that hold an integer in `[−126, 127]`; of other lanes any value.
    #[must_use]
    fn power_of_two(self) -> Self;

    /// Columns of eight elements from each of eight rows.
    #[must_use]
    #[inline(always)]
    fn turned(rows: [Column; BAND_ROWS]) -> [Column; BAND_ROWS] {
        let mut columns = [[0.0; BAND_ROWS]; BAND_ROWS];
        for (row, lanes) in rows.iter().enumerate() {
            for (column, &value) in lanes.iter().enumerate() {
                columns[column][row] = value;
            }
        }
        columns
    }

    /// Columns of eight elements of bfloat16 from each of eight rows, widened.
    #[must_use]
    #[inline(always)]
    fn columns(rows: [[u16; BAND_ROWS]; BAND_ROWS]) -> [Column; BAND_ROWS] {
        std::array::from_fn(|column| std::array::from_fn(|row| f32::from_bits(u32::from(rows[row][column]) << 16)))
    }

    /// Of the two values of `store` on either side, the one further away; the same, if it is one of them.
    #[must_use]
    #[inline(always)]
    fn other_side(self, store: Float) -> Self {
        self.each(|value| {
            let nearest = store.round(value);
            if nearest == value {
                nearest
            } else if nearest.abs() < value.abs() {
                store.outward(nearest.copysign(value))
            } else {
                store.inward(nearest)
            }
        })
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
pub struct Portable(Column);

/// `f` of the lanes of two.
#[inline(always)]
fn zip<U>(a: Portable, b: Portable, f: impl Fn(f32, f32) -> U) -> [U; BAND_ROWS] {
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
    fn nearest_integer(self) -> Self {
        Self(self.0.map(f32::round_ties_even))
    }
    #[inline(always)]
    fn nearest(self, store: Float) -> Self {
        Self(self.0.map(|value| store.round(value)))
    }
    #[inline(always)]
    fn min_by_bits(self, other: Self) -> Self {
        Self(zip(self, other, |a, b| f32::from_bits(a.to_bits().min(b.to_bits()))))
    }
    // The baseline of a target may have no instruction for the nearest integer.
    #[inline(always)]
    fn code(self, max: Self) -> Self {
        self.clamp(max).round()
    }
    #[inline(always)]
    fn capped_code(self, max: Self) -> Self {
        self.min(max).round()
    }
}

impl Vector for Portable {
    type Mask = [bool; BAND_ROWS];
    type Divisor = Self;
    type Divisors = Column;

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
    fn less(self, other: Self) -> [bool; BAND_ROWS] {
        zip(self, other, |a, b| a < b)
    }
    #[inline(always)]
    fn where_or(self, mask: [bool; BAND_ROWS], other: Self) -> Self {
        Self(std::array::from_fn(|row| if mask[row] { self.0[row] } else { other.0[row] }))
    }
    #[inline(always)]
    fn all(mask: [bool; BAND_ROWS]) -> bool {
        mask.iter().all(|&lane| lane)
    }
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
    #[inline(always)]
    #[expect(clippy::cast_sign_loss, reason = "the lanes are in [0, 255]")]
    fn bytes(self) -> [u8; BAND_ROWS] {
        self.0.map(|value| value as u8)
    }
    #[inline(always)]
    fn from_bytes(bytes: [u8; BAND_ROWS]) -> Self {
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

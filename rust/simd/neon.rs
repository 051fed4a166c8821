//! [`Vector`] in NEON registers.
//!
//! NEON is part of the target, which the first line below has the compiler check: every CPU that runs this has the
//! instructions. That is what makes each `unsafe` here sound. (They would be safe to call only from functions that are
//! `#[target_feature]` themselves: those cannot be forced inline, and a kernel of calls is no kernel.)

use std::arch::aarch64::{
    float32x4_t, uint8x16_t, uint16x4_t, uint16x8_t, uint32x4_t, vabsq_f32, vaddq_f32, vaddq_s32, vaddq_u32, vandq_u16,
    vandq_u32, vandq_u64, vbslq_f32, vcagtq_f32, vceqq_f32, vcgezq_s16, vcgtq_u16, vcltq_f32, vcvt_f16_f32,
    vcvt_f32_f16, vcvtnq_u32_f32, vcvtq_f32_u32, vcvtq_s32_f32, vcvtq_u32_f32, vdivq_f32, vdupq_n_f32, vdupq_n_s16,
    vdupq_n_s32, vdupq_n_s64, vdupq_n_u16, vdupq_n_u32, vdupq_n_u64, vfmaq_f32, vget_high_u16, vget_low_u16, vld1_u8,
    vld1q_f32, vld1q_u8, vld1q_u16, vmaxnmq_f32, vmaxq_f32, vmaxq_s16, vmaxq_u16, vminnmq_f32, vminq_f32, vminq_s32,
    vminq_u32, vminvq_u16, vminvq_u32, vmovl_high_u16, vmovl_u8, vmovl_u16, vmovn_u16, vmovn_u32, vmulq_f32, vorrq_u16,
    vorrq_u32, vorrq_u64, vpmaxq_f32, vpmaxq_s16, vpmaxq_u16, vpminq_f32, vqtbl1q_u8, vreinterpret_f16_u16,
    vreinterpret_u16_f16, vreinterpretq_f32_s32, vreinterpretq_f32_u32, vreinterpretq_s16_u16, vreinterpretq_s32_f32,
    vreinterpretq_u8_u16, vreinterpretq_u8_u64, vreinterpretq_u16_s16, vreinterpretq_u16_u8, vreinterpretq_u16_u32,
    vreinterpretq_u32_f32, vreinterpretq_u32_u16, vreinterpretq_u64_u32, vrndnq_f32, vshll_high_n_u16, vshll_n_u16,
    vshlq_n_s32, vshlq_n_u32, vshlq_u16, vshlq_u32, vshlq_u64, vshrq_n_u16, vshrq_n_u32, vshrq_n_u64, vst1_u8,
    vst1q_f32, vst1q_u8, vsub_u16, vsubq_f32, vsubq_u32, vuzp1q_u8, vuzp1q_u16, vzip1q_f32, vzip1q_u8, vzip1q_u16,
    vzip2q_f32, vzip2q_u8, vzip2q_u16,
};

use half::{bf16, f16};

use super::reciprocal::{Parts, parts, quotient};
use super::vector::{BAND_ROWS, BYTES, Column, Lanes, Vector, ranges};
use crate::dtype::Float;

const _: () = assert!(cfg!(target_feature = "neon"), "AArch64 without NEON");

/// Bytes of a register.
const REGISTER: usize = 16;

/// Eight lanes in two registers: the first four, and the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon(float32x4_t, float32x4_t);

/// Intrinsics of one instruction each, of both registers.
macro_rules! operations {
    ($(fn $name:ident($($arg:ident),*) = $intrinsic:ident;)*) => {
        $(
            #[inline(always)]
            fn $name(self $(, $arg: Self)*) -> Self {
                // SAFETY: NEON is there, see the module.
                unsafe { Self($intrinsic(self.0 $(, $arg.0)*), $intrinsic(self.1 $(, $arg.1)*)) }
            }
        )*
    };
}

/// Sixteen bytes.
#[inline(always)]
fn bytes_of(of: &[u8; REGISTER]) -> uint8x16_t {
    // SAFETY: NEON is there, see the module; `of` is 16 bytes long, and no alignment is asked for.
    unsafe { vld1q_u8(of.as_ptr()) }
}

/// The bytes of a register.
#[inline(always)]
fn put_bytes(of: uint8x16_t, to: &mut [u8; REGISTER]) {
    // SAFETY: NEON is there, see the module; `to` is 16 bytes long, and no alignment is asked for.
    unsafe { vst1q_u8(to.as_mut_ptr(), of) };
}

/// Halves of a word, eight in a register.
#[inline(always)]
fn eights<T: bytemuck::Pod>(of: &[T; BYTES]) -> [uint16x8_t; BYTES / BAND_ROWS] {
    const { assert!(size_of::<T>() == 2, "halves") };
    let from = of.as_ptr().cast();
    // SAFETY: NEON is there, see the module; `of` is 64 bytes long, and no alignment is asked for.
    unsafe {
        [
            vld1q_u16(from),
            vld1q_u16(from.add(BAND_ROWS)),
            vld1q_u16(from.add(2 * BAND_ROWS)),
            vld1q_u16(from.add(3 * BAND_ROWS)),
        ]
    }
}

/// The bits of the least and the greatest of each of eight groups of halves, if each group has some that are negative and some
/// that are not: the former ones' bits grow with the magnitude, and as signed integers they are below the others.
#[inline(always)]
fn ranges_of_halves<T: bytemuck::Pod, const G: usize>(groups: &[[T; G]; BAND_ROWS]) -> Option<[uint16x8_t; 2]> {
    // SAFETY: NEON is there, see the module.
    unsafe {
        let (mut low, mut high) = ([vdupq_n_u16(0); BAND_ROWS], [vdupq_n_s16(0); BAND_ROWS]);
        for (at, group) in groups.iter().enumerate() {
            let (mut least, mut most) = (vdupq_n_u16(0), vdupq_n_s16(i16::MIN));
            for halves in group.as_chunks::<BYTES>().0 {
                for bits in eights(halves) {
                    least = vmaxq_u16(least, bits);
                    most = vmaxq_s16(most, vreinterpretq_s16_u16(bits));
                }
            }
            (low[at], high[at]) = (least, most);
        }
        // Of neighbours, their neighbours, and theirs: one is left of each group.
        let low = vpmaxq_u16(
            vpmaxq_u16(vpmaxq_u16(low[0], low[1]), vpmaxq_u16(low[2], low[3])),
            vpmaxq_u16(vpmaxq_u16(low[4], low[5]), vpmaxq_u16(low[6], low[7])),
        );
        let high = vpmaxq_s16(
            vpmaxq_s16(vpmaxq_s16(high[0], high[1]), vpmaxq_s16(high[2], high[3])),
            vpmaxq_s16(vpmaxq_s16(high[4], high[5]), vpmaxq_s16(high[6], high[7])),
        );
        // Negative and not −0, and not negative.
        let sound = vandq_u16(vcgtq_u16(low, vdupq_n_u16(1 << 15)), vcgezq_s16(high));
        (vminvq_u16(sound) == u16::MAX).then_some([low, vreinterpretq_u16_s16(high)])
    }
}

/// Four of binary16, from their bits.
#[inline(always)]
fn widened(halves: uint16x4_t) -> float32x4_t {
    // SAFETY: NEON is there, see the module.
    unsafe { vcvt_f32_f16(vreinterpret_f16_u16(halves)) }
}

/// The bits of the nearest of binary16, ties to even.
#[inline(always)]
fn halves(of: float32x4_t) -> uint16x4_t {
    // SAFETY: NEON is there, see the module.
    unsafe { vreinterpret_u16_f16(vcvt_f16_f32(of)) }
}

/// The nearest of bfloat16, ties to even.
#[inline(always)]
fn nearest_bf16(of: float32x4_t) -> float32x4_t {
    // SAFETY: NEON is there, see the module.
    unsafe {
        // Up if what is cut off is more than half, or half and the last bit that stays is odd.
        let bits = vreinterpretq_u32_f32(of);
        let is_odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let up = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), is_odd);
        let cut = vreinterpretq_f32_u32(vandq_u32(up, vdupq_n_u32(0xffff_0000)));
        vbslq_f32(vceqq_f32(of, of), cut, of)
    }
}

/// The step from the bits of `nearest` to those on the other side of `of`: it is to be taken away, so −1 where it is
/// outward and 1 where it is inward. (`nearest` has the sign of `of`, zeros too.)
#[inline(always)]
fn step(nearest: float32x4_t, of: float32x4_t) -> uint32x4_t {
    // SAFETY: NEON is there, see the module.
    unsafe { vorrq_u32(vcagtq_f32(of, nearest), vdupq_n_u32(1)) }
}

/// The value of binary16 on the other side of `of` than `nearest`.
#[inline(always)]
fn next_f16(nearest: float32x4_t, of: float32x4_t) -> float32x4_t {
    // SAFETY: NEON is there, see the module.
    widened(unsafe { vsub_u16(halves(of), vmovn_u32(step(nearest, of))) })
}

/// The value of bfloat16 on the other side of `of` than `nearest`.
#[inline(always)]
fn next_bf16(nearest: float32x4_t, of: float32x4_t) -> float32x4_t {
    // SAFETY: NEON is there, see the module.
    unsafe {
        let bits = vreinterpretq_u32_f32(nearest);
        vreinterpretq_f32_u32(vsubq_u32(bits, vshlq_n_u32::<16>(step(nearest, of))))
    }
}

/// Rows of bytes, two in a register, shuffled as cards are: the later half of the bytes goes between those of the first.
/// The number of a byte's place, of six bits, turns by one bit.
#[inline(always)]
fn shuffled_bytes([a, b, c, d]: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
    // SAFETY: NEON is there, see the module.
    unsafe { [vzip1q_u8(a, c), vzip2q_u8(a, c), vzip1q_u8(b, d), vzip2q_u8(b, d)] }
}

/// The same of rows of which each fills a register.
#[inline(always)]
fn shuffled(of: [uint16x8_t; BAND_ROWS]) -> [uint16x8_t; BAND_ROWS] {
    let mut shuffled = of;
    for at in 0..BAND_ROWS / 2 {
        let (first, later) = (of[at], of[at + BAND_ROWS / 2]);
        // SAFETY: NEON is there, see the module.
        (shuffled[2 * at], shuffled[2 * at + 1]) = unsafe { (vzip1q_u16(first, later), vzip2q_u16(first, later)) };
    }
    shuffled
}

/// The same of rows of four.
#[inline(always)]
fn shuffled_fours([a, b, c, d]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: NEON is there, see the module.
    unsafe { [vzip1q_f32(a, c), vzip2q_f32(a, c), vzip1q_f32(b, d), vzip2q_f32(b, d)] }
}

/// The columns of four rows, from row `first` on.
#[inline(always)]
fn columns_of_four(rows: &[Neon; BAND_ROWS], first: usize) -> [float32x4_t; BAND_ROWS] {
    let [a, b, c, d] = [rows[first], rows[first + 1], rows[first + 2], rows[first + 3]];
    // Rows and columns have numbers of two bits each: two turns exchange them.
    let left = shuffled_fours(shuffled_fours([a.0, b.0, c.0, d.0]));
    let right = shuffled_fours(shuffled_fours([a.1, b.1, c.1, d.1]));
    [left[0], left[1], left[2], left[3], right[0], right[1], right[2], right[3]]
}

impl Neon {
    /// Eight of bfloat16, from their bits.
    #[inline(always)]
    fn from_upper(halves: uint16x8_t) -> Self {
        // SAFETY: NEON is there, see the module.
        unsafe {
            let (low, high) = (vshll_n_u16::<16>(vget_low_u16(halves)), vshll_high_n_u16::<16>(halves));
            Self(vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high))
        }
    }

    /// Eight of binary16, from their bits.
    #[inline(always)]
    fn from_half_bits(halves: uint16x8_t) -> Self {
        // SAFETY: NEON is there, see the module.
        let (low, high) = unsafe { (vget_low_u16(halves), vget_high_u16(halves)) };
        Self(widened(low), widened(high))
    }

    /// The nearest integers, ties to even, or `max` where that is less: two bytes each.
    #[inline(always)]
    fn words(self, max: u8) -> uint8x16_t {
        // SAFETY: NEON is there, see the module.
        unsafe {
            let max = vdupq_n_u32(u32::from(max));
            let (low, high) = (vminq_u32(vcvtnq_u32_f32(self.0), max), vminq_u32(vcvtnq_u32_f32(self.1), max));
            vreinterpretq_u8_u16(vuzp1q_u16(vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high)))
        }
    }
}

impl Lanes for Neon {
    operations! {
        fn add(other) = vaddq_f32;
        fn sub(other) = vsubq_f32;
        fn mul(other) = vmulq_f32;
        fn div(other) = vdivq_f32;
        fn nearest_integer() = vrndnq_f32;
    }

    #[inline(always)]
    fn mul_add(self, by: Self, plus: Self) -> Self {
        // SAFETY: NEON is there, see the module.
        unsafe { Self(vfmaq_f32(plus.0, self.0, by.0), vfmaq_f32(plus.1, self.1, by.1)) }
    }

    // The instructions for `min` and `max` have rules of their own for NaN and for zeros of both signs.

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.where_or(self.less(other), other)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.where_or(other.less(self), other)
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: NEON is there, see the module.
        unsafe { Self(vdupq_n_f32(value), vdupq_n_f32(value)) }
    }

    #[inline(always)]
    fn min_by_bits(self, other: Self) -> Self {
        // SAFETY: NEON is there, see the module.
        let lesser =
            |a, b| unsafe { vreinterpretq_f32_s32(vminq_s32(vreinterpretq_s32_f32(a), vreinterpretq_s32_f32(b))) };
        Self(lesser(self.0, other.0), lesser(self.1, other.1))
    }

    #[inline(always)]
    fn clamp(self, max: Self) -> Self {
        let zero = Self::splat(0.0);
        // Here the greater one of a number and NaN is the number, and of zeros the positive one: then all are numbers.
        // SAFETY: NEON is there, see the module.
        unsafe {
            Self(vminnmq_f32(vmaxnmq_f32(self.0, zero.0), max.0), vminnmq_f32(vmaxnmq_f32(self.1, zero.1), max.1))
        }
    }

    #[inline(always)]
    fn capped_code(self, max: Self) -> Self {
        // Here the lesser one of NaN and a number is the number.
        // SAFETY: NEON is there, see the module.
        let capped = unsafe { Self(vminnmq_f32(self.0, max.0), vminnmq_f32(self.1, max.1)) };
        capped.nearest_integer()
    }

    #[inline(always)]
    fn nearest(self, store: Float) -> Self {
        match store {
            Float::F32 => self,
            Float::F16 => Self(widened(halves(self.0)), widened(halves(self.1))),
            Float::BF16 => Self(nearest_bf16(self.0), nearest_bf16(self.1)),
        }
    }
}

impl Vector for Neon {
    type Mask = (uint32x4_t, uint32x4_t);
    type Divisor = Parts<Self>;
    type Divisors = [Column; 2];

    operations! {
        fn abs() = vabsq_f32;
    }

    #[inline(always)]
    fn load(lanes: Column) -> Self {
        let from = lanes.as_ptr();
        // SAFETY: NEON is there, see the module; `lanes` is eight floats long, and no alignment is asked for.
        unsafe { Self(vld1q_f32(from), vld1q_f32(from.add(BAND_ROWS / 2))) }
    }

    #[inline(always)]
    fn store(self) -> Column {
        let mut lanes = [0.0; BAND_ROWS];
        let to = lanes.as_mut_ptr();
        // SAFETY: NEON is there, see the module; `lanes` is eight floats long, and no alignment is asked for.
        unsafe {
            vst1q_f32(to, self.0);
            vst1q_f32(to.add(BAND_ROWS / 2), self.1);
        }
        lanes
    }

    #[inline(always)]
    fn less(self, other: Self) -> (uint32x4_t, uint32x4_t) {
        // SAFETY: NEON is there, see the module.
        unsafe { (vcltq_f32(self.0, other.0), vcltq_f32(self.1, other.1)) }
    }

    #[inline(always)]
    fn where_or(self, mask: (uint32x4_t, uint32x4_t), other: Self) -> Self {
        // SAFETY: NEON is there, see the module.
        unsafe { Self(vbslq_f32(mask.0, self.0, other.0), vbslq_f32(mask.1, self.1, other.1)) }
    }

    #[inline(always)]
    fn all(mask: (uint32x4_t, uint32x4_t)) -> bool {
        // SAFETY: NEON is there, see the module.
        unsafe { vminvq_u32(vandq_u32(mask.0, mask.1)) == u32::MAX }
    }

    #[inline(always)]
    fn divisor(self) -> Parts<Self> {
        parts(self)
    }

    #[inline(always)]
    fn quotient(self, by: Parts<Self>) -> Self {
        quotient(self, by)
    }

    #[inline(always)]
    fn store_divisor(by: Parts<Self>) -> [Column; 2] {
        [by[0].store(), by[1].store()]
    }

    #[inline(always)]
    fn splat_divisor(of: &[Column; 2], at: usize) -> Parts<Self> {
        [Self::splat(of[0][at]), Self::splat(of[1][at])]
    }

    #[inline(always)]
    fn other_side(self, store: Float) -> Self {
        let nearest = self.nearest(store);
        let other = match store {
            Float::F32 => return self,
            Float::F16 => Self(next_f16(nearest.0, self.0), next_f16(nearest.1, self.1)),
            Float::BF16 => Self(next_bf16(nearest.0, self.0), next_bf16(nearest.1, self.1)),
        };
        // SAFETY: NEON is there, see the module.
        let is_it = unsafe { (vceqq_f32(nearest.0, self.0), vceqq_f32(nearest.1, self.1)) };
        nearest.where_or(is_it, other)
    }

    #[inline(always)]
    fn least(of: [Self; BAND_ROWS]) -> Self {
        // SAFETY: NEON is there, see the module.
        unsafe {
            let mut fours = [of[0].0; BAND_ROWS];
            for at in 0..BAND_ROWS {
                fours[at] = vminq_f32(of[at].0, of[at].1);
            }
            // Of neighbours, and of the neighbours' neighbours: one lane is left of each.
            Self(
                vpminq_f32(vpminq_f32(fours[0], fours[1]), vpminq_f32(fours[2], fours[3])),
                vpminq_f32(vpminq_f32(fours[4], fours[5]), vpminq_f32(fours[6], fours[7])),
            )
        }
    }

    #[inline(always)]
    fn greatest(of: [Self; BAND_ROWS]) -> Self {
        // SAFETY: NEON is there, see the module.
        unsafe {
            let mut fours = [of[0].0; BAND_ROWS];
            for at in 0..BAND_ROWS {
                fours[at] = vmaxq_f32(of[at].0, of[at].1);
            }
            Self(
                vpmaxq_f32(vpmaxq_f32(fours[0], fours[1]), vpmaxq_f32(fours[2], fours[3])),
                vpmaxq_f32(vpmaxq_f32(fours[4], fours[5]), vpmaxq_f32(fours[6], fours[7])),
            )
        }
    }

    #[inline(always)]
    fn from_f32(of: &[f32; BYTES]) -> [Self; BYTES / BAND_ROWS] {
        let [a, b, c, d] = of.as_chunks().0 else { unreachable!("four eights") };
        [Self::load(*a), Self::load(*b), Self::load(*c), Self::load(*d)]
    }

    #[inline(always)]
    fn from_bf16(of: &[bf16; BYTES]) -> [Self; BYTES / BAND_ROWS] {
        let [a, b, c, d] = eights(of);
        [Self::from_upper(a), Self::from_upper(b), Self::from_upper(c), Self::from_upper(d)]
    }

    #[inline(always)]
    fn from_f16(of: &[f16; BYTES]) -> [Self; BYTES / BAND_ROWS] {
        let [a, b, c, d] = eights(of);
        [Self::from_half_bits(a), Self::from_half_bits(b), Self::from_half_bits(c), Self::from_half_bits(d)]
    }

    #[inline(always)]
    fn from_halves(of: [f16; BAND_ROWS]) -> Self {
        // SAFETY: NEON is there, see the module; `of` is 16 bytes long, and no alignment is asked for.
        Self::from_half_bits(unsafe { vld1q_u16(of.as_ptr().cast()) })
    }

    #[inline(always)]
    fn ranges_bf16<const G: usize>(groups: &[[bf16; G]; BAND_ROWS]) -> (Self, Self) {
        match ranges_of_halves(groups) {
            Some([low, high]) => (Self::from_upper(low), Self::from_upper(high)),
            None => ranges(groups),
        }
    }

    #[inline(always)]
    fn ranges_f16<const G: usize>(groups: &[[f16; G]; BAND_ROWS]) -> (Self, Self) {
        match ranges_of_halves(groups) {
            Some([low, high]) => (Self::from_half_bits(low), Self::from_half_bits(high)),
            None => ranges(groups),
        }
    }

    #[inline(always)]
    fn nearest_bytes([a, b, c, d]: [Self; BYTES / BAND_ROWS], max: u8) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let [first, second] = bytes.as_chunks_mut().0 else { unreachable!("two sixteens") };
        // SAFETY: NEON is there, see the module.
        let (ab, cd) = unsafe { (vuzp1q_u8(a.words(max), b.words(max)), vuzp1q_u8(c.words(max), d.words(max))) };
        put_bytes(ab, first);
        put_bytes(cd, second);
        bytes
    }

    #[inline(always)]
    fn transposed(rows: [[u8; BAND_ROWS]; BAND_ROWS]) -> [[u8; BAND_ROWS]; BAND_ROWS] {
        let [a, b, c, d] = rows.as_flattened().as_chunks().0 else { unreachable!("four pairs of rows") };
        // Rows and columns have numbers of three bits each: three turns exchange them.
        let turned = shuffled_bytes([bytes_of(a), bytes_of(b), bytes_of(c), bytes_of(d)]);
        let turned = shuffled_bytes(shuffled_bytes(turned));
        let mut columns = [[0; BAND_ROWS]; BAND_ROWS];
        for (turned, pair) in turned.into_iter().zip(columns.as_flattened_mut().as_chunks_mut().0) {
            put_bytes(turned, pair);
        }
        columns
    }

    #[inline(always)]
    fn turned(rows: [Column; BAND_ROWS]) -> [Column; BAND_ROWS] {
        let mut held = [Self::splat(0.0); BAND_ROWS];
        for (held, row) in held.iter_mut().zip(rows) {
            *held = Self::load(row);
        }
        let (upper, lower) = (columns_of_four(&held, 0), columns_of_four(&held, 4));
        let mut columns = [[0.0; BAND_ROWS]; BAND_ROWS];
        for at in 0..BAND_ROWS {
            columns[at] = Self(upper[at], lower[at]).store();
        }
        columns
    }

    #[inline(always)]
    fn columns(rows: [[u16; BAND_ROWS]; BAND_ROWS]) -> [Column; BAND_ROWS] {
        // SAFETY: NEON is there, see the module.
        let mut held = [unsafe { vdupq_n_u16(0) }; BAND_ROWS];
        for (held, row) in held.iter_mut().zip(&rows) {
            // SAFETY: NEON is there, see the module; `row` is 16 bytes long, and no alignment is asked for.
            *held = unsafe { vld1q_u16(row.as_ptr()) };
        }
        let turned = shuffled(shuffled(shuffled(held)));
        let mut columns = [[0.0; BAND_ROWS]; BAND_ROWS];
        for (column, turned) in columns.iter_mut().zip(turned) {
            *column = Self::from_upper(turned).store();
        }
        columns
    }

    #[inline(always)]
    fn squeeze<const BITS: usize>(codes: &[u8; BYTES], out: &mut [u8; BYTES]) {
        if BITS == 8 {
            *out = *codes;
            return;
        }
        // The first BITS bytes of each 8 are what there is in the end: side by side.
        let mut places = [u8::MAX; REGISTER];
        for (at, place) in places[..2 * BITS].iter_mut().enumerate() {
            *place = (at % BITS + at / BITS * 8) as u8;
        }
        let (places, bits) = (bytes_of(&places), BITS as u8);
        for (at, codes) in codes.as_chunks().0.iter().enumerate() {
            // Each second code goes above the first, then each second pair, each second four.
            // SAFETY: NEON is there, see the module.
            let bytes = unsafe {
                let of = vreinterpretq_u16_u8(bytes_of(codes));
                let low = vandq_u16(of, vdupq_n_u16((1 << BITS) - 1));
                let pairs = vorrq_u16(low, vshlq_u16(vshrq_n_u16::<8>(of), vdupq_n_s16(i16::from(bits))));
                let of = vreinterpretq_u32_u16(pairs);
                let low = vandq_u32(of, vdupq_n_u32((1 << (2 * BITS)) - 1));
                let fours = vorrq_u32(low, vshlq_u32(vshrq_n_u32::<16>(of), vdupq_n_s32(2 * i32::from(bits))));
                let of = vreinterpretq_u64_u32(fours);
                let low = vandq_u64(of, vdupq_n_u64((1 << (4 * BITS)) - 1));
                let all = vorrq_u64(low, vshlq_u64(vshrq_n_u64::<32>(of), vdupq_n_s64(4 * i64::from(bits))));
                vqtbl1q_u8(vreinterpretq_u8_u64(all), places)
            };
            put_bytes(bytes, out[at * 2 * BITS..].first_chunk_mut().expect("room for a register"));
        }
    }

    #[inline(always)]
    fn bytes(self) -> [u8; BAND_ROWS] {
        let mut bytes = [0; BAND_ROWS];
        // SAFETY: NEON is there, see the module; `bytes` is 8 bytes long, and no alignment is asked for.
        unsafe {
            let (low, high) = (vcvtq_u32_f32(self.0), vcvtq_u32_f32(self.1));
            let words = vuzp1q_u16(vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high));
            vst1_u8(bytes.as_mut_ptr(), vmovn_u16(words));
        }
        bytes
    }

    #[inline(always)]
    fn from_bytes(bytes: [u8; BAND_ROWS]) -> Self {
        // SAFETY: NEON is there, see the module; `bytes` is 8 bytes long, and no alignment is asked for.
        unsafe {
            let words = vmovl_u8(vld1_u8(bytes.as_ptr()));
            Self(vcvtq_f32_u32(vmovl_u16(vget_low_u16(words))), vcvtq_f32_u32(vmovl_high_u16(words)))
        }
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        // SAFETY: NEON is there, see the module.
        unsafe {
            let bias = vdupq_n_s32(127);
            let low = vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(self.0), bias));
            let high = vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(self.1), bias));
            Self(vreinterpretq_f32_s32(low), vreinterpretq_f32_s32(high))
        }
    }
}

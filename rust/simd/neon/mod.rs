//! [`Vector`] in NEON registers.

mod convert;
mod pack;
mod raw;
mod shuffle;

use std::arch::aarch64::{float32x4_t, uint16x4_t, uint16x8_t, uint32x4_t};

use self::raw::{
    load_f32, store_f32, vabsq_f32, vaddq_f32, vaddq_s32, vaddq_u32, vandq_u32, vbslq_f32, vceqq_f32, vcltq_f32,
    vcvt_f16_f32, vcvt_f32_f16, vcvtq_s32_f32, vdivq_f32, vdupq_n_f32, vdupq_n_s32, vdupq_n_u32, vfmaq_f32,
    vget_high_u16, vget_low_u16, vmaxnmq_f32, vminnmq_f32, vminq_s32, vminvq_u32, vmulq_f32, vreinterpret_f16_u16,
    vreinterpret_u16_f16, vreinterpretq_f32_s32, vreinterpretq_f32_u32, vreinterpretq_s32_f32, vreinterpretq_u32_f32,
    vrndnq_f32, vshll_high_n_u16, vshll_n_u16, vshlq_n_s32, vshrq_n_u32, vsubq_f32,
};
use super::divide::divide_by_reciprocal;
use super::quantize::Quantize;
use super::vector::{BAND_ROWS, Column, Lanes, Vector};
use crate::dtype::Float;

/// Eight lanes in two registers: the first four, and the others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neon(float32x4_t, float32x4_t);

/// Methods that are one instruction for each of the two registers.
macro_rules! operations {
    ($(fn $name:ident($($arg:ident),*) = $intrinsic:ident;)*) => {
        $(
            #[inline(always)]
            fn $name(self $(, $arg: Self)*) -> Self {
                Self($intrinsic(self.0 $(, $arg.0)*), $intrinsic(self.1 $(, $arg.1)*))
            }
        )*
    };
}

/// Four binary16 numbers from their bits.
#[inline(always)]
fn widen_f16(halves: uint16x4_t) -> float32x4_t {
    vcvt_f32_f16(vreinterpret_f16_u16(halves))
}

/// The bits of the nearest binary16 numbers, ties to even.
#[inline(always)]
fn narrow_f16(of: float32x4_t) -> uint16x4_t {
    vreinterpret_u16_f16(vcvt_f16_f32(of))
}

/// The nearest bfloat16 numbers, ties to even.
#[inline(always)]
fn round_to_bf16(of: float32x4_t) -> float32x4_t {
    // Up if the bits that go are more than half a step, or just half and the last bit that stays is odd.
    let bits = vreinterpretq_u32_f32(of);
    let is_odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
    let up = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), is_odd);
    let cut = vreinterpretq_f32_u32(vandq_u32(up, vdupq_n_u32(0xffff_0000)));
    vbslq_f32(vceqq_f32(of, of), cut, of)
}

impl Neon {
    /// Eight bfloat16 numbers from their bits.
    #[inline(always)]
    fn from_upper(halves: uint16x8_t) -> Self {
        let (low, high) = (vshll_n_u16::<16>(vget_low_u16(halves)), vshll_high_n_u16::<16>(halves));
        Self(vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high))
    }

    /// Eight binary16 numbers from their bits.
    #[inline(always)]
    fn from_half_bits(halves: uint16x8_t) -> Self {
        Self(widen_f16(vget_low_u16(halves)), widen_f16(vget_high_u16(halves)))
    }
}

impl Lanes for Neon {
    operations! {
        fn add(other) = vaddq_f32;
        fn sub(other) = vsubq_f32;
        fn mul(other) = vmulq_f32;
        fn div(other) = vdivq_f32;
        fn round_ties_even() = vrndnq_f32;
    }

    #[inline(always)]
    fn mul_add(self, by: Self, plus: Self) -> Self {
        Self(vfmaq_f32(plus.0, self.0, by.0), vfmaq_f32(plus.1, self.1, by.1))
    }

    // The instructions for `min` and `max` have other rules for NaN and for zeros of both signs.

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.select(self.lt(other), other)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.select(other.lt(self), other)
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(vdupq_n_f32(value), vdupq_n_f32(value))
    }

    #[inline(always)]
    fn clamp(self, max: Self) -> Self {
        let zero = Self::splat(0.0);
        // `maxnm` of NaN and a number is the number, and of two zeros the positive one; after it, all lanes are numbers.
        Self(vminnmq_f32(vmaxnmq_f32(self.0, zero.0), max.0), vminnmq_f32(vmaxnmq_f32(self.1, zero.1), max.1))
    }

    #[inline(always)]
    fn round_to(self, store: Float) -> Self {
        match store {
            Float::F32 => self,
            Float::F16 => Self(widen_f16(narrow_f16(self.0)), widen_f16(narrow_f16(self.1))),
            Float::BF16 => Self(round_to_bf16(self.0), round_to_bf16(self.1)),
        }
    }
}

impl Vector for Neon {
    type Mask = (uint32x4_t, uint32x4_t);

    operations! {
        fn abs() = vabsq_f32;
    }

    #[inline(always)]
    fn load(lanes: Column) -> Self {
        let [low, high] = lanes.as_chunks().0 else { unreachable!("two fours") };
        Self(load_f32(low), load_f32(high))
    }

    #[inline(always)]
    fn store(self) -> Column {
        let mut lanes = [0.0; BAND_ROWS];
        let [low, high] = lanes.as_chunks_mut().0 else { unreachable!("two fours") };
        store_f32(self.0, low);
        store_f32(self.1, high);
        lanes
    }

    #[inline(always)]
    fn lt(self, other: Self) -> (uint32x4_t, uint32x4_t) {
        (vcltq_f32(self.0, other.0), vcltq_f32(self.1, other.1))
    }

    #[inline(always)]
    fn select(self, mask: (uint32x4_t, uint32x4_t), other: Self) -> Self {
        Self(vbslq_f32(mask.0, self.0, other.0), vbslq_f32(mask.1, self.1, other.1))
    }

    #[inline(always)]
    fn all(mask: (uint32x4_t, uint32x4_t)) -> bool {
        vminvq_u32(vandq_u32(mask.0, mask.1)) == u32::MAX
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        let bias = vdupq_n_s32(127);
        let low = vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(self.0), bias));
        let high = vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(self.1), bias));
        Self(vreinterpretq_f32_s32(low), vreinterpretq_f32_s32(high))
    }
}

impl Quantize for Neon {
    #[inline(always)]
    fn min_positive(self, other: Self) -> Self {
        let lesser = |a, b| vreinterpretq_f32_s32(vminq_s32(vreinterpretq_s32_f32(a), vreinterpretq_s32_f32(b)));
        Self(lesser(self.0, other.0), lesser(self.1, other.1))
    }

    #[inline(always)]
    fn code_nonneg(self, max: Self) -> Self {
        // `minnm` of NaN and a number is the number.
        Self(vminnmq_f32(self.0, max.0), vminnmq_f32(self.1, max.1)).round_ties_even()
    }
}

divide_by_reciprocal!(Neon);

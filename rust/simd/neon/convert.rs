//! [`Convert`] in NEON registers.

use std::arch::aarch64::{float32x4_t, uint8x16_t, uint16x8_t, uint32x4_t};

use half::{bf16, f16};

use super::raw::{
    load_eight_u8, load_u16, store_eight_u8, store_u8, vandq_u16, vcagtq_f32, vceqq_f32, vcgezq_s16, vcgtq_u16,
    vcvtnq_u32_f32, vcvtq_f32_u32, vcvtq_u32_f32, vdupq_n_s16, vdupq_n_u16, vdupq_n_u32, vget_low_u16, vmaxq_s16,
    vmaxq_u16, vminq_u32, vminvq_u16, vmovl_high_u16, vmovl_u8, vmovl_u16, vmovn_u16, vmovn_u32, vorrq_u32, vpmaxq_s16,
    vpmaxq_u16, vreinterpretq_f32_u32, vreinterpretq_s16_u16, vreinterpretq_u8_u16, vreinterpretq_u16_s16,
    vreinterpretq_u16_u32, vreinterpretq_u32_f32, vshlq_n_u32, vsub_u16, vsubq_u32, vuzp1q_u8, vuzp1q_u16,
};
use super::{Neon, narrow_f16, widen_f16};
use crate::dtype::Float;
use crate::simd::convert::{CHUNK, Convert, ranges};
use crate::simd::vector::{BAND_ROWS, Lanes, Vector};

/// The bits of the least and the greatest of each of eight groups of 16-bit floats, if each group has negative numbers and
/// others. The bits of negative numbers grow with the magnitude, and as signed integers they are below the others.
#[inline(always)]
fn ranges_of_halves<T: bytemuck::Pod, const G: usize>(groups: &[[T; G]; BAND_ROWS]) -> Option<[uint16x8_t; 2]> {
    let (mut low, mut high) = ([vdupq_n_u16(0); BAND_ROWS], [vdupq_n_s16(0); BAND_ROWS]);
    for (at, group) in groups.iter().enumerate() {
        let (mut least, mut most) = (vdupq_n_u16(0), vdupq_n_s16(i16::MIN));
        for eight in group.as_chunks::<BAND_ROWS>().0 {
            let bits = load_u16(eight);
            least = vmaxq_u16(least, bits);
            most = vmaxq_s16(most, vreinterpretq_s16_u16(bits));
        }
        (low[at], high[at]) = (least, most);
    }
    // Of neighbours, then of fours, then of all eight: one is left of each group.
    let low = vpmaxq_u16(
        vpmaxq_u16(vpmaxq_u16(low[0], low[1]), vpmaxq_u16(low[2], low[3])),
        vpmaxq_u16(vpmaxq_u16(low[4], low[5]), vpmaxq_u16(low[6], low[7])),
    );
    let high = vpmaxq_s16(
        vpmaxq_s16(vpmaxq_s16(high[0], high[1]), vpmaxq_s16(high[2], high[3])),
        vpmaxq_s16(vpmaxq_s16(high[4], high[5]), vpmaxq_s16(high[6], high[7])),
    );
    // The least is negative and not −0, and the greatest is not negative.
    let is_valid = vandq_u16(vcgtq_u16(low, vdupq_n_u16(1 << 15)), vcgezq_s16(high));
    (vminvq_u16(is_valid) == u16::MAX).then_some([low, vreinterpretq_u16_s16(high)])
}

/// The step from the stored value `nearest` to the one on the other side of `value`, as what to subtract from its bits: 1 to
/// step inward, −1 outward. (`nearest` has the sign of `value`, zeros too.)
#[inline(always)]
fn step_inward(nearest: float32x4_t, value: float32x4_t) -> uint32x4_t {
    vorrq_u32(vcagtq_f32(value, nearest), vdupq_n_u32(1))
}

/// The binary16 number on the other side of `value` than `nearest`.
#[inline(always)]
fn other_f16(nearest: float32x4_t, value: float32x4_t) -> float32x4_t {
    widen_f16(vsub_u16(narrow_f16(value), vmovn_u32(step_inward(nearest, value))))
}

/// The bfloat16 number on the other side of `value` than `nearest`.
#[inline(always)]
fn other_bf16(nearest: float32x4_t, value: float32x4_t) -> float32x4_t {
    let bits = vreinterpretq_u32_f32(nearest);
    vreinterpretq_f32_u32(vsubq_u32(bits, vshlq_n_u32::<16>(step_inward(nearest, value))))
}

impl Neon {
    /// The nearest integers, ties to even, or `max` where that is less, as eight integers of 16 bits.
    #[inline(always)]
    fn round_to_words(self, max: u8) -> uint8x16_t {
        let max = vdupq_n_u32(u32::from(max));
        let (low, high) = (vminq_u32(vcvtnq_u32_f32(self.0), max), vminq_u32(vcvtnq_u32_f32(self.1), max));
        vreinterpretq_u8_u16(vuzp1q_u16(vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high)))
    }
}

impl Convert for Neon {
    #[inline(always)]
    fn from_bytes(bytes: [u8; BAND_ROWS]) -> Self {
        let words = vmovl_u8(load_eight_u8(&bytes));
        Self(vcvtq_f32_u32(vmovl_u16(vget_low_u16(words))), vcvtq_f32_u32(vmovl_high_u16(words)))
    }

    #[inline(always)]
    fn to_bytes(self) -> [u8; BAND_ROWS] {
        let (low, high) = (vcvtq_u32_f32(self.0), vcvtq_u32_f32(self.1));
        let words = vuzp1q_u16(vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high));
        let mut bytes = [0; BAND_ROWS];
        store_eight_u8(vmovn_u16(words), &mut bytes);
        bytes
    }

    #[inline(always)]
    fn from_f16(of: [f16; BAND_ROWS]) -> Self {
        Self::from_half_bits(load_u16(&of))
    }

    #[inline(always)]
    fn widen_f32(chunk: &[f32; CHUNK]) -> [Self; CHUNK / BAND_ROWS] {
        let [a, b, c, d] = chunk.as_chunks().0 else { unreachable!("four eights") };
        [Self::load(*a), Self::load(*b), Self::load(*c), Self::load(*d)]
    }

    #[inline(always)]
    fn widen_bf16(chunk: &[bf16; CHUNK]) -> [Self; CHUNK / BAND_ROWS] {
        let [a, b, c, d] = chunk.as_chunks().0 else { unreachable!("four eights") };
        let upper = |eight| Self::from_upper(load_u16::<bf16>(eight));
        [upper(a), upper(b), upper(c), upper(d)]
    }

    #[inline(always)]
    fn widen_f16(chunk: &[f16; CHUNK]) -> [Self; CHUNK / BAND_ROWS] {
        let [a, b, c, d] = chunk.as_chunks().0 else { unreachable!("four eights") };
        [Self::from_f16(*a), Self::from_f16(*b), Self::from_f16(*c), Self::from_f16(*d)]
    }

    #[inline(always)]
    fn round_to_bytes([a, b, c, d]: [Self; CHUNK / BAND_ROWS], max: u8) -> [u8; CHUNK] {
        let mut bytes = [0; CHUNK];
        let [first, second] = bytes.as_chunks_mut().0 else { unreachable!("two sixteens") };
        store_u8(vuzp1q_u8(a.round_to_words(max), b.round_to_words(max)), first);
        store_u8(vuzp1q_u8(c.round_to_words(max), d.round_to_words(max)), second);
        bytes
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
    fn other_neighbour(self, store: Float) -> Self {
        let nearest = self.round_to(store);
        let other = match store {
            Float::F32 => return self,
            Float::F16 => Self(other_f16(nearest.0, self.0), other_f16(nearest.1, self.1)),
            Float::BF16 => Self(other_bf16(nearest.0, self.0), other_bf16(nearest.1, self.1)),
        };
        nearest.select((vceqq_f32(nearest.0, self.0), vceqq_f32(nearest.1, self.1)), other)
    }
}

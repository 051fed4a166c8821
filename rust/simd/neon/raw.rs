//! The intrinsics that this folder uses, as safe functions. NEON is part of the target, which the assertion below checks: every
//! CPU that runs this has the instructions.

use std::arch::aarch64::{
    float16x4_t, float32x4_t, int16x8_t, int32x4_t, int64x2_t, uint8x8_t, uint8x16_t, uint16x4_t, uint16x8_t,
    uint32x4_t, uint64x2_t,
};

use crate::simd::intrinsics::intrinsics;

const _: () = assert!(cfg!(target_feature = "neon"), "AArch64 without NEON");

intrinsics! { aarch64:
    // Four floats.
    (a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t: vfmaq_f32;
    (a: float32x4_t, b: float32x4_t) -> float32x4_t: vaddq_f32, vsubq_f32, vmulq_f32, vdivq_f32, vmaxnmq_f32, vmaxq_f32,
        vminnmq_f32, vminq_f32, vpmaxq_f32, vpminq_f32, vzip1q_f32, vzip2q_f32;
    (a: float32x4_t) -> float32x4_t: vabsq_f32, vrndnq_f32;
    (a: float32x4_t, b: float32x4_t) -> uint32x4_t: vcagtq_f32, vceqq_f32, vcltq_f32;
    (mask: uint32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t: vbslq_f32;
    (a: f32) -> float32x4_t: vdupq_n_f32;
    (a: float32x4_t) -> uint32x4_t: vcvtnq_u32_f32, vcvtq_u32_f32;
    (a: float32x4_t) -> int32x4_t: vcvtq_s32_f32;
    (a: uint32x4_t) -> float32x4_t: vcvtq_f32_u32;
    (a: float32x4_t) -> float16x4_t: vcvt_f16_f32;
    (a: float16x4_t) -> float32x4_t: vcvt_f32_f16;

    // Casts, which are no instructions.
    (a: uint16x4_t) -> float16x4_t: vreinterpret_f16_u16;
    (a: float16x4_t) -> uint16x4_t: vreinterpret_u16_f16;
    (a: int32x4_t) -> float32x4_t: vreinterpretq_f32_s32;
    (a: uint32x4_t) -> float32x4_t: vreinterpretq_f32_u32;
    (a: float32x4_t) -> int32x4_t: vreinterpretq_s32_f32;
    (a: float32x4_t) -> uint32x4_t: vreinterpretq_u32_f32;
    (a: uint16x8_t) -> int16x8_t: vreinterpretq_s16_u16;
    (a: int16x8_t) -> uint16x8_t: vreinterpretq_u16_s16;
    (a: uint16x8_t) -> uint8x16_t: vreinterpretq_u8_u16;
    (a: uint64x2_t) -> uint8x16_t: vreinterpretq_u8_u64;
    (a: uint8x16_t) -> uint16x8_t: vreinterpretq_u16_u8;
    (a: uint32x4_t) -> uint16x8_t: vreinterpretq_u16_u32;
    (a: uint16x8_t) -> uint32x4_t: vreinterpretq_u32_u16;
    (a: uint32x4_t) -> uint64x2_t: vreinterpretq_u64_u32;

    // Integers of 8 bits.
    (a: uint8x16_t, b: uint8x16_t) -> uint8x16_t: vqtbl1q_u8, vuzp1q_u8, vzip1q_u8, vzip2q_u8;
    (a: uint8x8_t) -> uint16x8_t: vmovl_u8;

    // Integers of 16 bits.
    (a: uint16x8_t, b: uint16x8_t) -> uint16x8_t: vandq_u16, vorrq_u16, vmaxq_u16, vpmaxq_u16, vcgtq_u16, vuzp1q_u16,
        vzip1q_u16, vzip2q_u16;
    (a: uint16x8_t, b: int16x8_t) -> uint16x8_t: vshlq_u16;
    (imm i32, a: uint16x8_t) -> uint16x8_t: vshrq_n_u16;
    (a: uint16x8_t) -> u16: vminvq_u16;
    (a: uint16x8_t) -> uint16x4_t: vget_high_u16, vget_low_u16;
    (a: uint16x8_t) -> uint8x8_t: vmovn_u16;
    (a: uint16x8_t) -> uint32x4_t: vmovl_high_u16;
    (imm i32, a: uint16x8_t) -> uint32x4_t: vshll_high_n_u16;
    (a: u16) -> uint16x8_t: vdupq_n_u16;
    (a: uint16x4_t, b: uint16x4_t) -> uint16x4_t: vsub_u16;
    (a: uint16x4_t) -> uint32x4_t: vmovl_u16;
    (imm i32, a: uint16x4_t) -> uint32x4_t: vshll_n_u16;
    (a: int16x8_t, b: int16x8_t) -> int16x8_t: vmaxq_s16, vpmaxq_s16;
    (a: int16x8_t) -> uint16x8_t: vcgezq_s16;
    (a: i16) -> int16x8_t: vdupq_n_s16;

    // Integers of 32 bits.
    (a: uint32x4_t, b: uint32x4_t) -> uint32x4_t: vaddq_u32, vsubq_u32, vandq_u32, vorrq_u32, vminq_u32;
    (a: uint32x4_t, b: int32x4_t) -> uint32x4_t: vshlq_u32;
    (imm i32, a: uint32x4_t) -> uint32x4_t: vshlq_n_u32, vshrq_n_u32;
    (a: uint32x4_t) -> u32: vminvq_u32;
    (a: uint32x4_t) -> uint16x4_t: vmovn_u32;
    (a: u32) -> uint32x4_t: vdupq_n_u32;
    (a: int32x4_t, b: int32x4_t) -> int32x4_t: vaddq_s32, vminq_s32;
    (imm i32, a: int32x4_t) -> int32x4_t: vshlq_n_s32;
    (a: i32) -> int32x4_t: vdupq_n_s32;

    // Integers of 64 bits.
    (a: uint64x2_t, b: uint64x2_t) -> uint64x2_t: vandq_u64, vorrq_u64;
    (a: uint64x2_t, b: int64x2_t) -> uint64x2_t: vshlq_u64;
    (imm i32, a: uint64x2_t) -> uint64x2_t: vshrq_n_u64;
    (a: u64) -> uint64x2_t: vdupq_n_u64;
    (a: i64) -> int64x2_t: vdupq_n_s64;
}

/// Four floats of an array.
#[inline(always)]
pub(super) fn load_f32(from: &[f32; 4]) -> float32x4_t {
    // SAFETY: NEON is there, see the module; 16 bytes are read, the length of `from`; no alignment is needed.
    unsafe { std::arch::aarch64::vld1q_f32(from.as_ptr()) }
}

/// Writes four floats to an array.
#[inline(always)]
pub(super) fn store_f32(a: float32x4_t, to: &mut [f32; 4]) {
    // SAFETY: NEON is there, see the module; 16 bytes are written, the length of `to`; no alignment is needed.
    unsafe { std::arch::aarch64::vst1q_f32(to.as_mut_ptr(), a) };
}

/// The 16 bytes of an array of eight elements, as integers.
#[inline(always)]
pub(super) fn load_u16<T: bytemuck::Pod>(from: &[T; 8]) -> uint16x8_t {
    const { assert!(size_of::<T>() == 2, "elements of 16 bits") };
    // SAFETY: NEON is there, see the module; 16 bytes are read, the length of `from`; no alignment is needed.
    unsafe { std::arch::aarch64::vld1q_u16(from.as_ptr().cast()) }
}

/// Sixteen bytes of an array.
#[inline(always)]
pub(super) fn load_u8(from: &[u8; 16]) -> uint8x16_t {
    // SAFETY: NEON is there, see the module; 16 bytes are read, the length of `from`.
    unsafe { std::arch::aarch64::vld1q_u8(from.as_ptr()) }
}

/// Writes sixteen bytes to an array.
#[inline(always)]
pub(super) fn store_u8(a: uint8x16_t, to: &mut [u8; 16]) {
    // SAFETY: NEON is there, see the module; 16 bytes are written, the length of `to`.
    unsafe { std::arch::aarch64::vst1q_u8(to.as_mut_ptr(), a) };
}

/// Eight bytes of an array.
#[inline(always)]
pub(super) fn load_eight_u8(from: &[u8; 8]) -> uint8x8_t {
    // SAFETY: NEON is there, see the module; 8 bytes are read, the length of `from`.
    unsafe { std::arch::aarch64::vld1_u8(from.as_ptr()) }
}

/// Writes eight bytes to an array.
#[inline(always)]
pub(super) fn store_eight_u8(a: uint8x8_t, to: &mut [u8; 8]) {
    // SAFETY: NEON is there, see the module; 8 bytes are written, the length of `to`.
    unsafe { std::arch::aarch64::vst1_u8(to.as_mut_ptr(), a) };
}

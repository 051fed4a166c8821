//! The intrinsics that this folder uses, as safe functions.
//!
//! Only methods of [`Avx2`](super::Avx2), and functions that they alone call, may use this module: they run where the CPU has
//! AVX2, FMA and F16C, see [`dispatch`](crate::simd::dispatch).

use std::arch::x86_64::{__m128, __m128i, __m256, __m256d, __m256i};

use crate::simd::intrinsics::intrinsics;

intrinsics! { x86_64:
    // Eight floats.
    (a: __m256, b: __m256, c: __m256) -> __m256: _mm256_fmadd_ps, _mm256_blendv_ps;
    (a: __m256, b: __m256) -> __m256: _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps, _mm256_div_ps, _mm256_min_ps,
        _mm256_max_ps, _mm256_andnot_ps, _mm256_unpacklo_ps, _mm256_unpackhi_ps;
    (imm i32, a: __m256, b: __m256) -> __m256: _mm256_cmp_ps, _mm256_permute2f128_ps, _mm256_shuffle_ps;
    (imm i32, a: __m256, b: __m128) -> __m256: _mm256_insertf128_ps;
    (imm i32, a: __m256) -> __m256: _mm256_round_ps;
    (imm i32, a: __m256) -> __m128i: _mm256_cvtps_ph;
    (a: __m256d, b: __m256d) -> __m256d: _mm256_unpacklo_pd, _mm256_unpackhi_pd;
    (a: __m256) -> i32: _mm256_movemask_ps;
    (a: f32) -> __m256: _mm256_set1_ps;
    (a: __m128i) -> __m256: _mm256_cvtph_ps;
    (a: __m256i) -> __m256: _mm256_cvtepi32_ps;
    (a: __m256) -> __m256i: _mm256_cvtps_epi32, _mm256_cvttps_epi32;

    // Casts, which are no instructions.
    (a: __m256) -> __m256d: _mm256_castps_pd;
    (a: __m256d) -> __m256: _mm256_castpd_ps;
    (a: __m256) -> __m256i: _mm256_castps_si256;
    (a: __m256i) -> __m256: _mm256_castsi256_ps;
    (a: __m128) -> __m256: _mm256_castps128_ps256;
    (a: __m128i) -> __m256i: _mm256_castsi128_si256;
    (a: __m256i) -> __m128i: _mm256_castsi256_si128;

    // 32 bytes.
    (a: __m256i, b: __m256i) -> __m256i: _mm256_add_epi32, _mm256_sub_epi32, _mm256_and_si256, _mm256_or_si256,
        _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_max_epi16, _mm256_max_epu16, _mm256_min_epi32, _mm256_min_epu8,
        _mm256_packs_epi32, _mm256_packus_epi16, _mm256_shuffle_epi8, _mm256_unpackhi_epi16, _mm256_unpackhi_epi32,
        _mm256_unpackhi_epi64, _mm256_unpacklo_epi16, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64;
    (imm i32, a: __m256i) -> __m256i: _mm256_slli_epi32, _mm256_srli_epi32, _mm256_srli_epi64, _mm256_permute4x64_epi64;
    (imm i32, a: __m256i) -> __m128i: _mm256_extracti128_si256;
    (imm i32, a: __m256i, b: __m128i) -> __m256i: _mm256_inserti128_si256;
    (a: __m256i, b: __m128i) -> __m256i: _mm256_sll_epi64;
    (a: __m128i) -> __m256i: _mm256_broadcastsi128_si256, _mm256_cvtepu8_epi32, _mm256_cvtepu16_epi32;
    () -> __m256i: _mm256_setzero_si256;
    (a: i8) -> __m256i: _mm256_set1_epi8;
    (a: i16) -> __m256i: _mm256_set1_epi16;
    (a: i32) -> __m256i: _mm256_set1_epi32;
    (a: i64) -> __m256i: _mm256_set1_epi64x;

    // 16 bytes.
    (a: __m128i, b: __m128i) -> __m128i: _mm_and_si128, _mm_andnot_si128, _mm_cmpgt_epi16, _mm_packs_epi16,
        _mm_packs_epi32, _mm_packus_epi16, _mm_shuffle_epi8, _mm_sub_epi16, _mm_unpackhi_epi16, _mm_unpackhi_epi32,
        _mm_unpackhi_epi64, _mm_unpacklo_epi16, _mm_unpacklo_epi32, _mm_unpacklo_epi64;
    (a: __m128i) -> i32: _mm_movemask_epi8;
    (a: __m128i) -> i64: _mm_cvtsi128_si64;
    (a: i64) -> __m128i: _mm_cvtsi64_si128;
    (a: i16) -> __m128i: _mm_set1_epi16;
}

/// Eight floats of an array.
#[inline(always)]
pub(super) fn load_ps(from: &[f32; 8]) -> __m256 {
    // SAFETY: AVX is there, see the module; 32 bytes are read, the length of `from`; no alignment is needed.
    unsafe { std::arch::x86_64::_mm256_loadu_ps(from.as_ptr()) }
}

/// Four floats of an array.
#[inline(always)]
pub(super) fn load_four_ps(from: &[f32; 4]) -> __m128 {
    // SAFETY: SSE is there, see the module; 16 bytes are read, the length of `from`; no alignment is needed.
    unsafe { std::arch::x86_64::_mm_loadu_ps(from.as_ptr()) }
}

/// Writes eight floats to an array.
#[inline(always)]
pub(super) fn store_ps(a: __m256, to: &mut [f32; 8]) {
    // SAFETY: AVX is there, see the module; 32 bytes are written, the length of `to`; no alignment is needed.
    unsafe { std::arch::x86_64::_mm256_storeu_ps(to.as_mut_ptr(), a) };
}

/// The 32 bytes of an array.
#[inline(always)]
pub(super) fn load_32<T: bytemuck::Pod, const N: usize>(from: &[T; N]) -> __m256i {
    const { assert!(size_of::<[T; N]>() == 32, "32 bytes") };
    // SAFETY: AVX is there, see the module; 32 bytes are read, the length of `from`; no alignment is needed.
    unsafe { std::arch::x86_64::_mm256_loadu_si256(from.as_ptr().cast()) }
}

/// The 16 bytes of an array.
#[inline(always)]
pub(super) fn load_16<T: bytemuck::Pod, const N: usize>(from: &[T; N]) -> __m128i {
    const { assert!(size_of::<[T; N]>() == 16, "16 bytes") };
    // SAFETY: SSE2 is there, see the module; 16 bytes are read, the length of `from`; no alignment is needed.
    unsafe { std::arch::x86_64::_mm_loadu_si128(from.as_ptr().cast()) }
}

/// Writes a register to 32 bytes.
#[inline(always)]
pub(super) fn store_32(a: __m256i, to: &mut [u8; 32]) {
    // SAFETY: AVX is there, see the module; 32 bytes are written, the length of `to`; no alignment is needed.
    unsafe { std::arch::x86_64::_mm256_storeu_si256(to.as_mut_ptr().cast(), a) };
}

/// Writes a register to 16 bytes.
#[inline(always)]
pub(super) fn store_16(a: __m128i, to: &mut [u8; 16]) {
    // SAFETY: SSE2 is there, see the module; 16 bytes are written, the length of `to`; no alignment is needed.
    unsafe { std::arch::x86_64::_mm_storeu_si128(to.as_mut_ptr().cast(), a) };
}

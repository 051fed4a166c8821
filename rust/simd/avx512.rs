//! [`Batch`] in AVX-512 registers: two vectors of eight lanes.

use std::arch::x86_64::{__m512, _CMP_ORD_Q, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT};
use std::hint::black_box;

use self::raw::{
    _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_broadcast_f32x8, _mm512_castps_si512,
    _mm512_castps256_ps512, _mm512_castps512_ps256, _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtph_ps,
    _mm512_cvtps_ph, _mm512_div_ps, _mm512_extractf32x8_ps, _mm512_fmadd_ps, _mm512_insertf32x8, _mm512_mask_and_epi32,
    _mm512_max_ps, _mm512_min_epi32, _mm512_min_ps, _mm512_mul_ps, _mm512_roundscale_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_srli_epi32, _mm512_sub_ps,
};
use super::avx2::{Avx2, operations};
use super::batch::Batch;
use super::quantize::Quantize;
use super::vector::{Column, Lanes, Vector};
use crate::dtype::Float;

/// The intrinsics that this file uses, as safe functions. Only methods of [`Avx512`] may use this module: they run where the
/// CPU has AVX-512 F, DQ and VL, see [`dispatch`](super::dispatch).
mod raw {
    use std::arch::x86_64::{__m256, __m256i, __m512, __m512i, __mmask16};

    use crate::simd::intrinsics::intrinsics;

    intrinsics! { x86_64:
        (a: __m512, b: __m512, c: __m512) -> __m512: _mm512_fmadd_ps;
        (a: __m512, b: __m512) -> __m512: _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps, _mm512_div_ps, _mm512_min_ps,
            _mm512_max_ps;
        (imm i32, a: __m512) -> __m512: _mm512_roundscale_ps;
        (imm i32, a: __m512, b: __m512) -> __mmask16: _mm512_cmp_ps_mask;
        (imm i32, a: __m512) -> __m256i: _mm512_cvtps_ph;
        (a: __m256i) -> __m512: _mm512_cvtph_ps;
        (a: f32) -> __m512: _mm512_set1_ps;
        (a: __m256) -> __m512: _mm512_broadcast_f32x8, _mm512_castps256_ps512;
        (a: __m512) -> __m256: _mm512_castps512_ps256;
        (imm i32, a: __m512, b: __m256) -> __m512: _mm512_insertf32x8;
        (imm i32, a: __m512) -> __m256: _mm512_extractf32x8_ps;
        (a: __m512) -> __m512i: _mm512_castps_si512;
        (a: __m512i) -> __m512: _mm512_castsi512_ps;
        (a: __m512i, b: __m512i) -> __m512i: _mm512_add_epi32, _mm512_and_si512, _mm512_min_epi32;
        (a: __m512i, mask: __mmask16, b: __m512i, c: __m512i) -> __m512i: _mm512_mask_and_epi32;
        (imm u32, a: __m512i) -> __m512i: _mm512_srli_epi32;
        (a: i32) -> __m512i: _mm512_set1_epi32;
    }
}

/// Two vectors in one register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(__m512);

impl Lanes for Avx512 {
    operations! {
        fn add(other) = _mm512_add_ps;
        fn sub(other) = _mm512_sub_ps;
        fn mul(other) = _mm512_mul_ps;
        fn div(other) = _mm512_div_ps;
        fn mul_add(by, plus) = _mm512_fmadd_ps;
        fn min(other) = _mm512_min_ps;
        fn max(other) = _mm512_max_ps;
        fn round_ties_even() = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>;
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn round_to(self, store: Float) -> Self {
        Self(match store {
            Float::F32 => self.0,
            Float::F16 => _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)),
            Float::BF16 => {
                // As in `avx2`.
                let bits = _mm512_castps_si512(self.0);
                let is_odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let up = _mm512_add_epi32(bits, _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff)));
                let is_number = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(self.0, self.0);
                _mm512_castsi512_ps(_mm512_mask_and_epi32(bits, is_number, up, _mm512_set1_epi32(!0xffff)))
            }
        })
    }
}

impl Quantize for Avx512 {
    #[inline(always)]
    fn min_positive(self, other: Self) -> Self {
        let bits = [self, other].map(|lanes| _mm512_castps_si512(lanes.0));
        Self(_mm512_castsi512_ps(_mm512_min_epi32(bits[0], bits[1])))
    }
}

impl Batch for Avx512 {
    type Part = Avx2;

    const PARTS: usize = 2;

    #[inline(always)]
    fn broadcast(lanes: Column) -> Self {
        Self(_mm512_broadcast_f32x8(Avx2::load(lanes).0))
    }

    #[inline(always)]
    fn concat(parts: &[Avx2]) -> Self {
        let (first, second) = match parts {
            // If the compiler knew that both are equal, it would do what follows on one of them, and concatenate the results
            // each time.
            [only] => (black_box(*only), *only),
            _ => (parts[0], parts[1]),
        };
        Self(_mm512_insertf32x8::<1>(_mm512_castps256_ps512(first.0), second.0))
    }

    #[inline(always)]
    fn extract(self, at: usize) -> Avx2 {
        Avx2(if at == 0 { _mm512_castps512_ps256(self.0) } else { _mm512_extractf32x8_ps::<1>(self.0) })
    }
}

//! [`Wide`] in AVX-512 registers: two vectors of eight lanes.
//!
//! An [`Avx512`] value is made only by this file's methods, and they are called only from the function that
//! [`kernel!`](super::kernel) enables AVX-512 (F, DQ and VL) for, which runs only where
//! [`Isa::available`](super::Isa::available) saw them. That is what makes each `unsafe` here sound, as in
//! [`x86_64`](super::avx2).

use std::arch::x86_64::{
    __m512, _CMP_ORD_Q, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm256_loadu_ps, _mm512_add_epi32, _mm512_add_ps,
    _mm512_and_si512, _mm512_broadcast_f32x8, _mm512_castps_si512, _mm512_castps256_ps512, _mm512_castps512_ps256,
    _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtph_ps, _mm512_cvtps_ph, _mm512_div_ps, _mm512_extractf32x8_ps,
    _mm512_fmadd_ps, _mm512_insertf32x8, _mm512_mask_and_epi32, _mm512_max_ps, _mm512_min_epi32, _mm512_min_ps,
    _mm512_mul_ps, _mm512_roundscale_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_srli_epi32, _mm512_sub_ps,
};
use std::hint::black_box;

use super::avx2::{Avx2, operations};
use super::paired::Wide;
use super::vector::{Column, Lanes};
use crate::dtype::Float;

/// Two vectors in one register.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(__m512);

impl Lanes for Avx512 {
    operations! {
        fn add(other) = _mm512_add_ps;
        fn sub(other) = _mm512_sub_ps;
        fn mul(other) = _mm512_mul_ps;
        fn div(other) = _mm512_div_ps;
        fn mul_add(by, plus) = _mm512_fmadd_ps;
        fn min(other) = _mm512_min_ps;
        fn max(other) = _mm512_max_ps;
        fn min_by_bits(other) = |a, b| _mm512_castsi512_ps(_mm512_min_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
        fn nearest_integer() = |a| _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: AVX-512 is there, see the module.
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    fn nearest(self, store: Float) -> Self {
        // SAFETY: AVX-512 is there, see the module.
        Self(unsafe {
            match store {
                Float::F32 => self.0,
                Float::F16 => _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)),
                Float::BF16 => {
                    // As in `x86_64`.
                    let bits = _mm512_castps_si512(self.0);
                    let is_odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                    let up = _mm512_add_epi32(bits, _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff)));
                    let is_number = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(self.0, self.0);
                    _mm512_castsi512_ps(_mm512_mask_and_epi32(bits, is_number, up, _mm512_set1_epi32(!0xffff)))
                }
            }
        })
    }
}

impl Wide for Avx512 {
    type Part = Avx2;

    const PARTS: usize = 2;

    #[inline(always)]
    fn each(lanes: Column) -> Self {
        // SAFETY: AVX-512 is there, see the module; `lanes` is eight floats long, and no alignment is asked for.
        Self(unsafe { _mm512_broadcast_f32x8(_mm256_loadu_ps(lanes.as_ptr())) })
    }

    #[inline(always)]
    fn beside(parts: &[Avx2]) -> Self {
        let (first, second) = match parts {
            // Did the compiler know that they are alike, it would do but half of what is done with both, and lay that side by
            // side each time.
            [only] => (black_box(*only), *only),
            _ => (parts[0], parts[1]),
        };
        // SAFETY: AVX-512 is there, see the module.
        Self(unsafe { _mm512_insertf32x8::<1>(_mm512_castps256_ps512(first.0), second.0) })
    }

    #[inline(always)]
    fn part(self, at: usize) -> Avx2 {
        // SAFETY: AVX-512 is there, see the module.
        Avx2(unsafe { if at == 0 { _mm512_castps512_ps256(self.0) } else { _mm512_extractf32x8_ps::<1>(self.0) } })
    }
}

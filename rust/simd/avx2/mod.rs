//! [`Vector`] in AVX2 registers, with FMA and F16C.

mod convert;
mod pack;
mod raw;
mod shuffle;

use std::arch::x86_64::{__m128i, __m256, _CMP_LT_OQ, _CMP_ORD_Q, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT};

use self::raw::{
    _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_andnot_ps, _mm256_blendv_ps, _mm256_castps_si256,
    _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_cvtps_epi32, _mm256_cvtps_ph,
    _mm256_div_ps, _mm256_fmadd_ps, _mm256_max_ps, _mm256_min_epi32, _mm256_min_ps, _mm256_movemask_ps, _mm256_mul_ps,
    _mm256_permute2f128_ps, _mm256_round_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_slli_epi32, _mm256_srli_epi32,
    _mm256_sub_ps, load_ps, store_ps,
};
use super::divide::divide_by_reciprocal;
use super::quantize::Quantize;
use super::vector::{BAND_ROWS, Column, Lanes, Vector};
use crate::dtype::Float;

/// Eight lanes in one register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(pub(super) __m256);

/// Methods that are one operation on registers.
macro_rules! operations {
    ($(fn $name:ident($($arg:ident),*) = $operation:expr;)*) => {
        $(
            #[inline(always)]
            fn $name(self $(, $arg: Self)*) -> Self {
                Self($operation(self.0 $(, $arg.0)*))
            }
        )*
    };
}

pub(super) use operations;

/// Eight binary16 numbers, as bits.
#[derive(Clone, Copy)]
struct Halves(__m128i);

impl Halves {
    #[inline(always)]
    fn widen(self) -> Avx2 {
        Avx2(_mm256_cvtph_ps(self.0))
    }
}

impl Avx2 {
    /// The nearest binary16 numbers, ties to even.
    #[inline(always)]
    fn halves(self) -> Halves {
        Halves(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0))
    }

    /// Eight bfloat16 numbers from their bits: the upper halves of floats.
    #[inline(always)]
    fn from_upper(halves: __m128i) -> Self {
        Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves))))
    }

    /// The lower four lanes of both, and the upper four lanes of both.
    #[inline(always)]
    fn interleave128(self, other: Self) -> (Self, Self) {
        (Self(_mm256_permute2f128_ps::<0x20>(self.0, other.0)), Self(_mm256_permute2f128_ps::<0x31>(self.0, other.0)))
    }
}

impl Lanes for Avx2 {
    operations! {
        fn add(other) = _mm256_add_ps;
        fn sub(other) = _mm256_sub_ps;
        fn mul(other) = _mm256_mul_ps;
        fn div(other) = _mm256_div_ps;
        fn mul_add(by, plus) = _mm256_fmadd_ps;
        fn min(other) = _mm256_min_ps;
        fn max(other) = _mm256_max_ps;
        fn round_ties_even() = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>;
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(_mm256_set1_ps(value))
    }

    #[inline(always)]
    fn round_to(self, store: Float) -> Self {
        match store {
            Float::F32 => self,
            Float::F16 => self.halves().widen(),
            Float::BF16 => {
                // Up if the bits that go are more than half a step, or just half and the last bit that stays is odd.
                let bits = _mm256_castps_si256(self.0);
                let is_odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let up = _mm256_add_epi32(bits, _mm256_add_epi32(is_odd, _mm256_set1_epi32(0x7fff)));
                let cut = _mm256_and_si256(up, _mm256_set1_epi32(!0xffff));
                let is_number = _mm256_cmp_ps::<_CMP_ORD_Q>(self.0, self.0);
                Self(_mm256_blendv_ps(self.0, _mm256_castsi256_ps(cut), is_number))
            }
        }
    }
}

impl Vector for Avx2 {
    type Mask = __m256;

    #[inline(always)]
    fn load(lanes: Column) -> Self {
        Self(load_ps(&lanes))
    }

    #[inline(always)]
    fn store(self) -> Column {
        let mut lanes = [0.0; BAND_ROWS];
        store_ps(self.0, &mut lanes);
        lanes
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0))
    }

    #[inline(always)]
    fn lt(self, other: Self) -> __m256 {
        _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0)
    }

    #[inline(always)]
    fn select(self, mask: __m256, other: Self) -> Self {
        Self(_mm256_blendv_ps(other.0, self.0, mask))
    }

    #[inline(always)]
    fn all(mask: __m256) -> bool {
        _mm256_movemask_ps(mask) == 0xff
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127));
        Self(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
    }
}

impl Quantize for Avx2 {
    #[inline(always)]
    fn min_positive(self, other: Self) -> Self {
        let bits = [self, other].map(|lanes| _mm256_castps_si256(lanes.0));
        Self(_mm256_castsi256_ps(_mm256_min_epi32(bits[0], bits[1])))
    }
}

divide_by_reciprocal!(Avx2);

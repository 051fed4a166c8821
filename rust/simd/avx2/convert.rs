//! [`Convert`] in AVX2 registers.

use std::arch::x86_64::{__m256i, _CMP_EQ_OQ};

use half::{bf16, f16};

use super::raw::{
    _mm_and_si128, _mm_andnot_si128, _mm_cmpgt_epi16, _mm_cvtsi64_si128, _mm_cvtsi128_si64, _mm_movemask_epi8,
    _mm_packs_epi16, _mm_packs_epi32, _mm_packus_epi16, _mm_set1_epi16, _mm_sub_epi16, _mm256_castps_si256,
    _mm256_castsi128_si256, _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cmp_ps, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi32, _mm256_cvtps_epi32, _mm256_cvttps_epi32, _mm256_extracti128_si256, _mm256_inserti128_si256,
    _mm256_max_epi16, _mm256_max_epu16, _mm256_min_epu8, _mm256_or_si256, _mm256_packs_epi32, _mm256_packus_epi16,
    _mm256_set1_epi8, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_slli_epi32, _mm256_sub_epi32,
    _mm256_unpackhi_epi16, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi16, _mm256_unpacklo_epi32,
    _mm256_unpacklo_epi64, load_16, load_32, store_32,
};
use super::{Avx2, Halves};
use crate::dtype::Float;
use crate::simd::convert::{CHUNK, Convert, ranges};
use crate::simd::vector::{BAND_ROWS, Lanes, Vector};

/// The greatest, by `$max`, of each of eight registers of sixteen integers, one per lane of sixteen bits.
macro_rules! reduce_max_halves {
    ($max:ident, $registers:expr) => {{
        // Of two registers, then four, then eight: each step halves the candidates of each.
        let [a, b, c, d, e, f, g, h] = $registers;
        let [ab, cd] = [(a, b), (c, d)].map(|(a, b)| $max(_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)));
        let [ef, gh] = [(e, f), (g, h)].map(|(a, b)| $max(_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)));
        let [first, second] =
            [(ab, cd), (ef, gh)].map(|(a, b)| $max(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)));
        let all = $max(_mm256_unpacklo_epi64(first, second), _mm256_unpackhi_epi64(first, second));
        let other = _mm256_castsi128_si256(_mm256_extracti128_si256::<1>(all));
        _mm256_castsi256_si128($max(all, other))
    }};
}

impl Halves {
    /// The least and the greatest of each of eight groups of 16-bit floats, by their bits, if each group has negative numbers
    /// and others. The bits of negative numbers grow with the magnitude, and as signed integers they are below the others.
    #[inline(always)]
    fn ranges<T: bytemuck::Pod, const G: usize>(groups: &[[T; G]; BAND_ROWS]) -> Option<[Self; 2]> {
        let mut low = [_mm256_setzero_si256(); BAND_ROWS];
        let mut high = low;
        for (at, group) in groups.iter().enumerate() {
            let (first, others) = group.as_chunks::<16>().0.split_first().expect("a group");
            let first = load_32(first);
            (low[at], high[at]) = (first, first);
            for sixteen in others {
                let bits = load_32(sixteen);
                low[at] = _mm256_max_epu16(low[at], bits);
                high[at] = _mm256_max_epi16(high[at], bits);
            }
        }
        let low = reduce_max_halves!(_mm256_max_epu16, low);
        let high = reduce_max_halves!(_mm256_max_epi16, high);
        // The least is negative and not −0, and the greatest is not negative.
        let is_valid = _mm_and_si128(_mm_cmpgt_epi16(low, _mm_set1_epi16(i16::MIN)), _mm_andnot_si128(high, low));
        (_mm_movemask_epi8(_mm_packs_epi16(is_valid, is_valid)) == 0xffff).then_some([Self(low), Self(high)])
    }
}

/// The step from the stored value `nearest` to the one on the other side of `value`, as what to subtract from its bits: 1 to
/// step inward, −1 outward. (`nearest` has the sign of `value`, zeros too.)
#[inline(always)]
fn step_inward(nearest: Avx2, value: Avx2) -> __m256i {
    let is_below = nearest.abs().lt(value.abs());
    _mm256_or_si256(_mm256_slli_epi32::<1>(_mm256_castps_si256(is_below)), _mm256_set1_epi32(1))
}

impl Convert for Avx2 {
    #[inline(always)]
    fn from_bytes(bytes: [u8; BAND_ROWS]) -> Self {
        let packed = _mm_cvtsi64_si128(i64::from_le_bytes(bytes));
        Self(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(packed)))
    }

    #[inline(always)]
    fn to_bytes(self) -> [u8; BAND_ROWS] {
        let words = _mm256_cvttps_epi32(self.0);
        let halves = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        _mm_cvtsi128_si64(_mm_packus_epi16(halves, halves)).to_le_bytes()
    }

    #[inline(always)]
    fn from_f16(of: [f16; BAND_ROWS]) -> Self {
        Halves(load_16(&of)).widen()
    }

    // Packing narrows the lower and upper halves of registers separately. So a chunk of fours is widened in an order that
    // packing undoes: 0 4, 1 5, 2 6, 3 7 for `f32` and binary16, as unpacking does it for bfloat16.

    #[inline(always)]
    fn widen_f32(chunk: &[f32; CHUNK]) -> [Self; CHUNK / BAND_ROWS] {
        let [a, b, c, d] = chunk.as_chunks().0 else { unreachable!("four eights") };
        let (ac, bd) = (Self::load(*a).interleave128(Self::load(*c)), Self::load(*b).interleave128(Self::load(*d)));
        [ac.0, ac.1, bd.0, bd.1]
    }

    #[inline(always)]
    fn widen_bf16(chunk: &[bf16; CHUNK]) -> [Self; CHUNK / BAND_ROWS] {
        let [a, b, c, d] = chunk.as_chunks::<BAND_ROWS>().0 else { unreachable!("four eights") };
        let ac = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load_16(a)), load_16(c));
        let bd = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load_16(b)), load_16(d));
        let zero = _mm256_setzero_si256();
        [
            Self(_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, ac))),
            Self(_mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, ac))),
            Self(_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, bd))),
            Self(_mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, bd))),
        ]
    }

    #[inline(always)]
    fn widen_f16(chunk: &[f16; CHUNK]) -> [Self; CHUNK / BAND_ROWS] {
        let [a, b, c, d] = chunk.as_chunks().0 else { unreachable!("four eights") };
        let ac = Self::from_f16(*a).interleave128(Self::from_f16(*c));
        let bd = Self::from_f16(*b).interleave128(Self::from_f16(*d));
        [ac.0, ac.1, bd.0, bd.1]
    }

    #[inline(always)]
    fn round_to_bytes([a, b, c, d]: [Self; CHUNK / BAND_ROWS], max: u8) -> [u8; CHUNK] {
        let ab = _mm256_packs_epi32(_mm256_cvtps_epi32(a.0), _mm256_cvtps_epi32(b.0));
        let cd = _mm256_packs_epi32(_mm256_cvtps_epi32(c.0), _mm256_cvtps_epi32(d.0));
        let codes = _mm256_min_epu8(_mm256_packus_epi16(ab, cd), _mm256_set1_epi8(max.cast_signed()));
        let mut bytes = [0; CHUNK];
        store_32(codes, &mut bytes);
        bytes
    }

    #[inline(always)]
    fn ranges_bf16<const G: usize>(groups: &[[bf16; G]; BAND_ROWS]) -> (Self, Self) {
        match Halves::ranges(groups) {
            Some([low, high]) => (Self::from_upper(low.0), Self::from_upper(high.0)),
            None => ranges(groups),
        }
    }

    #[inline(always)]
    fn ranges_f16<const G: usize>(groups: &[[f16; G]; BAND_ROWS]) -> (Self, Self) {
        match Halves::ranges(groups) {
            Some([low, high]) => (low.widen(), high.widen()),
            None => ranges(groups),
        }
    }

    #[inline(always)]
    fn other_neighbour(self, store: Float) -> Self {
        let nearest = self.round_to(store);
        let step = step_inward(nearest, self);
        let other = match store {
            Float::F32 => return self,
            Float::F16 => {
                let step = _mm_packs_epi32(_mm256_castsi256_si128(step), _mm256_extracti128_si256::<1>(step));
                Halves(_mm_sub_epi16(nearest.halves().0, step)).widen()
            }
            Float::BF16 => {
                let bits = _mm256_castps_si256(nearest.0);
                Self(_mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32::<16>(step))))
            }
        };
        nearest.select(_mm256_cmp_ps::<_CMP_EQ_OQ>(nearest.0, self.0), other)
    }
}

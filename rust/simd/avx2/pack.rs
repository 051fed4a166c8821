//! [`Pack`] in AVX2 registers.

use super::Avx2;
use super::raw::{
    _mm_cvtsi64_si128, _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_castsi256_si128, _mm256_extracti128_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_or_si256, _mm256_packus_epi16, _mm256_permute4x64_epi64,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_shuffle_epi8, _mm256_sll_epi64, _mm256_srli_epi64,
    load_16, load_32, store_16, store_32,
};
use crate::simd::convert::CHUNK;
use crate::simd::pack::Pack;

impl Pack for Avx2 {
    #[inline(always)]
    fn pack_bits<const BITS: usize>(codes: &[u8; CHUNK], out: &mut [u8; CHUNK]) {
        if BITS == 8 {
            *out = *codes;
            return;
        }
        // Each second code goes above the first, then each second pair, then each second four: by products with powers of two.
        let pairs = _mm256_maddubs_epi16(load_32(codes), _mm256_set1_epi16(1 | 1 << (8 + BITS)));
        let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi32(1 | 1 << (16 + 2 * BITS)));
        let (all, step) = if BITS == 2 {
            // Four codes of two bits fill a byte already.
            (fours, 4)
        } else {
            let low = _mm256_and_si256(fours, _mm256_set1_epi64x(0xffff_ffff));
            let above = _mm_cvtsi64_si128(4 * i64::from(BITS as u8));
            (_mm256_or_si256(low, _mm256_sll_epi64(_mm256_srli_epi64::<32>(fours), above)), 8)
        };
        // Move the used bytes of each step together, in each half of the register.
        let bytes = step * BITS / 8;
        let mut places = [-1_i8; 16];
        for (at, place) in places[..2 * BITS].iter_mut().enumerate() {
            *place = (at % bytes + at / bytes * step) as i8;
        }
        let bytes = _mm256_shuffle_epi8(all, _mm256_broadcastsi128_si256(load_16(&places)));
        // The second half overwrites what the first one leaves unused.
        store_16(_mm256_castsi256_si128(bytes), out.first_chunk_mut().expect("32 bytes"));
        let rest = out[2 * BITS..].first_chunk_mut().expect("2 × 6 + 16 bytes at most");
        store_16(_mm256_extracti128_si256::<1>(bytes), rest);
    }

    #[inline(always)]
    fn pack_nibbles(codes: &[u8; 2 * CHUNK]) -> [u8; CHUNK] {
        let [low, high] = codes.as_chunks::<CHUNK>().0 else { unreachable!("two chunks") };
        // Each second code goes above the first; packing alternates between eight bytes of one register and of the other.
        let above = _mm256_set1_epi16(1 | 1 << 12);
        let eights =
            _mm256_packus_epi16(_mm256_maddubs_epi16(load_32(low), above), _mm256_maddubs_epi16(load_32(high), above));
        let mut out = [0; CHUNK];
        store_32(_mm256_permute4x64_epi64::<0b11_01_10_00>(eights), &mut out);
        out
    }
}

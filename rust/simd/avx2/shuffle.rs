//! [`Shuffle`] in AVX2 registers.

use super::Avx2;
use super::raw::{
    _mm_shuffle_epi8, _mm_unpackhi_epi16, _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi16,
    _mm_unpacklo_epi32, _mm_unpacklo_epi64, _mm256_castpd_ps, _mm256_castps_pd, _mm256_castps128_ps256,
    _mm256_insertf128_ps, _mm256_shuffle_ps, _mm256_unpackhi_pd, _mm256_unpackhi_ps, _mm256_unpacklo_pd,
    _mm256_unpacklo_ps, load_16, load_four_ps, store_16, store_ps,
};
use crate::simd::shuffle::Shuffle;
use crate::simd::vector::{BAND_ROWS, Column, Lanes, Vector};

/// Lane `i` is all lanes of vector `i`, reduced by `of_two`.
#[inline(always)]
fn reduce8(vectors: [Avx2; BAND_ROWS], of_two: impl Fn(Avx2, Avx2) -> Avx2) -> Avx2 {
    let pair = |a: Avx2, b: Avx2| of_two(Avx2(_mm256_unpacklo_ps(a.0, b.0)), Avx2(_mm256_unpackhi_ps(a.0, b.0)));
    let four = |a: Avx2, b: Avx2| {
        let (a, b) = (_mm256_castps_pd(a.0), _mm256_castps_pd(b.0));
        let [low, high] = [_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b)];
        of_two(Avx2(_mm256_castpd_ps(low)), Avx2(_mm256_castpd_ps(high)))
    };
    let low = four(pair(vectors[0], vectors[1]), pair(vectors[2], vectors[3]));
    let high = four(pair(vectors[4], vectors[5]), pair(vectors[6], vectors[7]));
    let (first, second) = low.interleave128(high);
    of_two(first, second)
}

impl Shuffle for Avx2 {
    #[inline(always)]
    fn reduce_min(vectors: [Self; BAND_ROWS]) -> Self {
        reduce8(vectors, Self::min)
    }

    #[inline(always)]
    fn reduce_max(vectors: [Self; BAND_ROWS]) -> Self {
        reduce8(vectors, Self::max)
    }

    #[inline(always)]
    fn transpose_u8(rows: [[u8; BAND_ROWS]; BAND_ROWS]) -> [[u8; BAND_ROWS]; BAND_ROWS] {
        let [a, b, c, d] = rows.as_flattened().as_chunks::<16>().0 else { unreachable!("four pairs of rows") };
        // Interleave the bytes of two rows, then of four, then of all.
        let order = load_16(&[0_u8, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15]);
        let a = _mm_shuffle_epi8(load_16(a), order);
        let b = _mm_shuffle_epi8(load_16(b), order);
        let c = _mm_shuffle_epi8(load_16(c), order);
        let d = _mm_shuffle_epi8(load_16(d), order);
        let (ab, cd) = (_mm_unpacklo_epi16(a, b), _mm_unpacklo_epi16(c, d));
        let (ab_high, cd_high) = (_mm_unpackhi_epi16(a, b), _mm_unpackhi_epi16(c, d));
        let mut columns = [[0; BAND_ROWS]; BAND_ROWS];
        let [first, second, third, last] = columns.as_flattened_mut().as_chunks_mut::<16>().0 else {
            unreachable!("four pairs of columns")
        };
        store_16(_mm_unpacklo_epi32(ab, cd), first);
        store_16(_mm_unpackhi_epi32(ab, cd), second);
        store_16(_mm_unpacklo_epi32(ab_high, cd_high), third);
        store_16(_mm_unpackhi_epi32(ab_high, cd_high), last);
        columns
    }

    #[inline(always)]
    fn transpose_f32(rows: [Column; BAND_ROWS]) -> [Column; BAND_ROWS] {
        let mut columns = [[0.0; BAND_ROWS]; BAND_ROWS];
        for half in 0..2 {
            // Four columns: rows 0 to 3 go to the lower halves of registers, rows 4 to 7 to the upper ones. Interleave rows
            // to pairs, then to fours.
            let four = |row: usize| {
                let [lower, upper] = [&rows[row], &rows[row + 4]].map(|row| load_four_ps(&row.as_chunks().0[half]));
                _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(lower), upper)
            };
            let (a, b, c, d) = (four(0), four(1), four(2), four(3));
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            let to = &mut columns[4 * half..];
            store_ps(_mm256_shuffle_ps::<0b01_00_01_00>(ab, cd), &mut to[0]);
            store_ps(_mm256_shuffle_ps::<0b11_10_11_10>(ab, cd), &mut to[1]);
            store_ps(_mm256_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high), &mut to[2]);
            store_ps(_mm256_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high), &mut to[3]);
        }
        columns
    }

    #[inline(always)]
    fn transpose_bf16(rows: [[u16; BAND_ROWS]; BAND_ROWS]) -> [Column; BAND_ROWS] {
        let rows = rows.map(|row| load_16(&row));
        // Interleave two rows, then four, then all eight.
        let pairs = [
            _mm_unpacklo_epi16(rows[0], rows[1]),
            _mm_unpackhi_epi16(rows[0], rows[1]),
            _mm_unpacklo_epi16(rows[2], rows[3]),
            _mm_unpackhi_epi16(rows[2], rows[3]),
            _mm_unpacklo_epi16(rows[4], rows[5]),
            _mm_unpackhi_epi16(rows[4], rows[5]),
            _mm_unpacklo_epi16(rows[6], rows[7]),
            _mm_unpackhi_epi16(rows[6], rows[7]),
        ];
        let fours = [
            _mm_unpacklo_epi32(pairs[0], pairs[2]),
            _mm_unpackhi_epi32(pairs[0], pairs[2]),
            _mm_unpacklo_epi32(pairs[1], pairs[3]),
            _mm_unpackhi_epi32(pairs[1], pairs[3]),
            _mm_unpacklo_epi32(pairs[4], pairs[6]),
            _mm_unpackhi_epi32(pairs[4], pairs[6]),
            _mm_unpacklo_epi32(pairs[5], pairs[7]),
            _mm_unpackhi_epi32(pairs[5], pairs[7]),
        ];
        let mut columns = [[0.0; BAND_ROWS]; BAND_ROWS];
        for at in 0..4 {
            let (low, high) = (fours[at], fours[at + 4]);
            columns[2 * at] = Self::from_upper(_mm_unpacklo_epi64(low, high)).store();
            columns[2 * at + 1] = Self::from_upper(_mm_unpackhi_epi64(low, high)).store();
        }
        columns
    }
}

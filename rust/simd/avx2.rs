//! [`Vector`] in AVX2 registers, with FMA and F16C.
//!
//! An [`Avx2`] value is made only by methods of this file and of [`avx512`](super::avx512), and they are called only from
//! functions that [`kernel!`](super::kernel) enables AVX2, FMA and F16C for, which run only where
//! [`Isa::available`](super::Isa::available) saw them. That is what makes each `unsafe` here sound: the instruction exists
//! on the CPU that runs it. (They cannot be safe `#[target_feature]` functions: those cannot be forced inline, and a kernel of
//! calls is no kernel.)

use std::arch::x86_64::{
    __m128i, __m256, _CMP_EQ_OQ, _CMP_LT_OQ, _CMP_ORD_Q, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm_and_si128,
    _mm_andnot_si128, _mm_cmpgt_epi16, _mm_cvtsi64_si128, _mm_cvtsi128_si64, _mm_loadu_ps, _mm_loadu_si128,
    _mm_movemask_epi8, _mm_packs_epi16, _mm_packs_epi32, _mm_packus_epi16, _mm_set1_epi16, _mm_setr_epi8,
    _mm_shuffle_epi8, _mm_storeu_si128, _mm_sub_epi16, _mm_unpackhi_epi16, _mm_unpackhi_epi32, _mm_unpackhi_epi64,
    _mm_unpacklo_epi16, _mm_unpacklo_epi32, _mm_unpacklo_epi64, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256,
    _mm256_andnot_ps, _mm256_blendv_ps, _mm256_broadcastsi128_si256, _mm256_castpd_ps, _mm256_castps_pd,
    _mm256_castps_si256, _mm256_castps128_ps256, _mm256_castsi128_si256, _mm256_castsi256_ps, _mm256_castsi256_si128,
    _mm256_cmp_ps, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_cvtps_epi32, _mm256_cvtps_ph, _mm256_cvttps_epi32, _mm256_div_ps, _mm256_extracti128_si256, _mm256_fmadd_ps,
    _mm256_insertf128_ps, _mm256_inserti128_si256, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_max_epi16, _mm256_max_epu16, _mm256_max_ps, _mm256_min_epi32, _mm256_min_epu8,
    _mm256_min_ps, _mm256_movemask_ps, _mm256_mul_ps, _mm256_or_si256, _mm256_packs_epi32, _mm256_packus_epi16,
    _mm256_permute2f128_ps, _mm256_permute4x64_epi64, _mm256_round_ps, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_set1_ps, _mm256_setzero_si256, _mm256_shuffle_epi8,
    _mm256_shuffle_ps, _mm256_sll_epi64, _mm256_slli_epi32, _mm256_srli_epi32, _mm256_srli_epi64, _mm256_storeu_ps,
    _mm256_storeu_si256, _mm256_sub_epi32, _mm256_sub_ps, _mm256_unpackhi_epi16, _mm256_unpackhi_epi32,
    _mm256_unpackhi_epi64, _mm256_unpackhi_pd, _mm256_unpackhi_ps, _mm256_unpacklo_epi16, _mm256_unpacklo_epi32,
    _mm256_unpacklo_epi64, _mm256_unpacklo_pd, _mm256_unpacklo_ps,
};

use half::{bf16, f16};

use super::reciprocal::{Parts, parts, quotient};
use super::vector::{BAND_ROWS, BYTES, Column, Lanes, Vector, ranges};
use crate::dtype::Float;

/// Eight lanes in one register.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(pub(super) __m256);

/// Intrinsics of one register-to-register operation each.
macro_rules! operations {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident),*) = $intrinsic:expr;)*) => {
        $(
            $(#[$meta])*
            #[inline(always)]
            fn $name(self $(, $arg: Self)*) -> Self {
                // SAFETY: the instructions are there, see the module.
                Self(unsafe { $intrinsic(self.0 $(, $arg.0)*) })
            }
        )*
    };
}

pub(super) use operations;

/// Eight of binary16, as bits.
struct Halves(__m128i);

/// The greatest of each of eight registers of sixteen integers, by `$max`, each in one of eight lanes.
macro_rules! greatest_halves {
    ($max:ident, $of:expr) => {{
        // Of two registers, then four, then eight: after each step half as many of each are left.
        let [a, b, c, d, e, f, g, h] = $of;
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
    /// The least and the greatest of each of eight groups of sixteens, by their bits: where each has some that are negative and
    /// some that are not, the former ones' grow with the magnitude, and as signed integers they are below the others.
    #[inline(always)]
    fn ranges<T: bytemuck::Pod, const G: usize>(groups: &[[T; G]; BAND_ROWS]) -> Option<[Self; 2]> {
        const { assert!(size_of::<T>() == 2, "halves") };
        // SAFETY: AVX2 is there, see the module; each load is of sixteen halves, and no alignment is asked for.
        unsafe {
            let mut low = [_mm256_setzero_si256(); BAND_ROWS];
            let mut high = low;
            for (at, group) in groups.iter().enumerate() {
                let (first, others) = group.as_chunks::<16>().0.split_first().expect("a group");
                let first = _mm256_loadu_si256(first.as_ptr().cast());
                (low[at], high[at]) = (first, first);
                for sixteen in others {
                    let bits = _mm256_loadu_si256(sixteen.as_ptr().cast());
                    low[at] = _mm256_max_epu16(low[at], bits);
                    high[at] = _mm256_max_epi16(high[at], bits);
                }
            }
            let low = greatest_halves!(_mm256_max_epu16, low);
            let high = greatest_halves!(_mm256_max_epi16, high);
            // Negative and not −0, and not negative.
            let sound = _mm_and_si128(_mm_cmpgt_epi16(low, _mm_set1_epi16(i16::MIN)), _mm_andnot_si128(high, low));
            (_mm_movemask_epi8(_mm_packs_epi16(sound, sound)) == 0xffff).then_some([Self(low), Self(high)])
        }
    }

    #[inline(always)]
    fn widened(self) -> Avx2 {
        // SAFETY: F16C is there, see the module.
        Avx2(unsafe { _mm256_cvtph_ps(self.0) })
    }
}

/// Of two eights in a row the first and third fours, and the second and fourth: what widening by unpacking gives.
#[inline(always)]
fn fours(first: Avx2, second: Avx2) -> (Avx2, Avx2) {
    // SAFETY: AVX2 is there, see the module.
    unsafe {
        (
            Avx2(_mm256_permute2f128_ps::<0x20>(first.0, second.0)),
            Avx2(_mm256_permute2f128_ps::<0x31>(first.0, second.0)),
        )
    }
}

/// In each lane `of_two` of all lanes of one of eight.
#[inline(always)]
fn across(of: [Avx2; BAND_ROWS], of_two: impl Fn(Avx2, Avx2) -> Avx2) -> Avx2 {
    // SAFETY: AVX2 is there, see the module.
    unsafe {
        let pair = |a: Avx2, b: Avx2| of_two(Avx2(_mm256_unpacklo_ps(a.0, b.0)), Avx2(_mm256_unpackhi_ps(a.0, b.0)));
        let four = |a: Avx2, b: Avx2| {
            let (a, b) = (_mm256_castps_pd(a.0), _mm256_castps_pd(b.0));
            let [low, high] = [_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b)];
            of_two(Avx2(_mm256_castpd_ps(low)), Avx2(_mm256_castpd_ps(high)))
        };
        let low = four(pair(of[0], of[1]), pair(of[2], of[3]));
        let high = four(pair(of[4], of[5]), pair(of[6], of[7]));
        let (first, second) = fours(low, high);
        of_two(first, second)
    }
}

impl Avx2 {
    /// The nearest of binary16.
    #[inline(always)]
    fn halves(self) -> Halves {
        // SAFETY: F16C is there, see the module.
        Halves(unsafe { _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0) })
    }

    /// Eight of bfloat16, from their bits: the upper halves of floats.
    #[inline(always)]
    fn from_upper(halves: __m128i) -> Self {
        // SAFETY: AVX2 is there, see the module.
        Self(unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves))) })
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
        fn min_by_bits(other) = |a, b| _mm256_castsi256_ps(_mm256_min_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
        fn nearest_integer() = |a| _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: AVX2 is there, see the module.
        Self(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    fn nearest(self, store: Float) -> Self {
        match store {
            Float::F32 => self,
            Float::F16 => self.halves().widened(),
            // SAFETY: AVX2 is there, see the module.
            Float::BF16 => unsafe {
                // Up if what is cut off is more than half, or half and the last bit that stays is odd.
                let bits = _mm256_castps_si256(self.0);
                let is_odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let up = _mm256_add_epi32(bits, _mm256_add_epi32(is_odd, _mm256_set1_epi32(0x7fff)));
                let cut = _mm256_and_si256(up, _mm256_set1_epi32(!0xffff));
                let is_number = _mm256_cmp_ps::<_CMP_ORD_Q>(self.0, self.0);
                Self(_mm256_blendv_ps(self.0, _mm256_castsi256_ps(cut), is_number))
            },
        }
    }
}

impl Vector for Avx2 {
    type Mask = __m256;

    type Divisor = Parts<Self>;
    type Divisors = [Column; 2];

    operations! {
        fn abs() = |a| _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
    }

    #[inline(always)]
    fn load(lanes: Column) -> Self {
        // SAFETY: AVX2 is there, see the module; `lanes` is eight floats long, and no alignment is asked for.
        Self(unsafe { _mm256_loadu_ps(lanes.as_ptr()) })
    }

    #[inline(always)]
    fn store(self) -> Column {
        let mut lanes = [0.0; BAND_ROWS];
        // SAFETY: AVX2 is there, see the module; `lanes` is eight floats long, and no alignment is asked for.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), self.0) };
        lanes
    }

    #[inline(always)]
    fn less(self, other: Self) -> __m256 {
        // SAFETY: AVX2 is there, see the module.
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0) }
    }

    #[inline(always)]
    fn where_or(self, mask: __m256, other: Self) -> Self {
        // SAFETY: AVX2 is there, see the module.
        Self(unsafe { _mm256_blendv_ps(other.0, self.0, mask) })
    }

    #[inline(always)]
    fn all(mask: __m256) -> bool {
        // SAFETY: AVX2 is there, see the module.
        unsafe { _mm256_movemask_ps(mask) == 0xff }
    }

    #[inline(always)]
    fn divisor(self) -> Parts<Self> {
        parts(self)
    }

    #[inline(always)]
    fn quotient(self, by: Parts<Self>) -> Self {
        quotient(self, by)
    }

    #[inline(always)]
    fn other_side(self, store: Float) -> Self {
        let nearest = self.nearest(store);
        let is_below = nearest.abs().less(self.abs());
        // SAFETY: AVX2 and F16C are there, see the module.
        let other = unsafe {
            // In steps of the bits of the nearest, which has the same sign: −1 where the step is outward, and 1 where it is inward.
            let inward = _mm256_or_si256(_mm256_slli_epi32::<1>(_mm256_castps_si256(is_below)), _mm256_set1_epi32(1));
            match store {
                Float::F32 => return self,
                Float::F16 => {
                    let inward = _mm_packs_epi32(_mm256_castsi256_si128(inward), _mm256_extracti128_si256::<1>(inward));
                    Halves(_mm_sub_epi16(nearest.halves().0, inward)).widened()
                }
                Float::BF16 => {
                    let bits = _mm256_castps_si256(nearest.0);
                    Self(_mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32::<16>(inward))))
                }
            }
        };
        // SAFETY: AVX2 is there, see the module.
        nearest.where_or(unsafe { _mm256_cmp_ps::<_CMP_EQ_OQ>(nearest.0, self.0) }, other)
    }

    #[inline(always)]
    fn store_divisor(by: Parts<Self>) -> [Column; 2] {
        [by[0].store(), by[1].store()]
    }

    #[inline(always)]
    fn splat_divisor(of: &[Column; 2], at: usize) -> Parts<Self> {
        [Self::splat(of[0][at]), Self::splat(of[1][at])]
    }

    #[inline(always)]
    fn least(of: [Self; BAND_ROWS]) -> Self {
        across(of, Self::min)
    }

    #[inline(always)]
    fn greatest(of: [Self; BAND_ROWS]) -> Self {
        across(of, Self::max)
    }

    #[inline(always)]
    fn from_f32(of: &[f32; BYTES]) -> [Self; BYTES / BAND_ROWS] {
        let [a, b, c, d] = of.as_chunks().0 else { unreachable!("four eights") };
        let (ac, bd) = (fours(Self::load(*a), Self::load(*c)), fours(Self::load(*b), Self::load(*d)));
        [ac.0, ac.1, bd.0, bd.1]
    }

    #[inline(always)]
    fn from_bf16(of: &[bf16; BYTES]) -> [Self; BYTES / BAND_ROWS] {
        // SAFETY: AVX2 is there, see the module; `of` is 64 bytes long, and no alignment is asked for.
        unsafe {
            let eight = |at: usize| _mm_loadu_si128(of[at..].as_ptr().cast());
            let pair =
                |at: usize| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(eight(at)), eight(at + BYTES / 2));
            let (ac, bd) = (pair(0), pair(BAND_ROWS));
            let zero = _mm256_setzero_si256();
            [
                Self(_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, ac))),
                Self(_mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, ac))),
                Self(_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, bd))),
                Self(_mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, bd))),
            ]
        }
    }

    #[inline(always)]
    fn from_f16(of: &[f16; BYTES]) -> [Self; BYTES / BAND_ROWS] {
        let [a, b, c, d] = of.as_chunks().0 else { unreachable!("four eights") };
        let (ac, bd) =
            (fours(Self::from_halves(*a), Self::from_halves(*c)), fours(Self::from_halves(*b), Self::from_halves(*d)));
        [ac.0, ac.1, bd.0, bd.1]
    }

    #[inline(always)]
    fn from_halves(of: [f16; BAND_ROWS]) -> Self {
        // SAFETY: F16C is there, see the module; `of` is 16 bytes long, and no alignment is asked for.
        Halves(unsafe { _mm_loadu_si128(of.as_ptr().cast()) }).widened()
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
            Some([low, high]) => (low.widened(), high.widened()),
            None => ranges(groups),
        }
    }

    #[inline(always)]
    fn nearest_bytes([a, b, c, d]: [Self; BYTES / BAND_ROWS], max: u8) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        // SAFETY: AVX2 is there, see the module; `bytes` is 32 bytes long, and no alignment is asked for.
        unsafe {
            let ab = _mm256_packs_epi32(_mm256_cvtps_epi32(a.0), _mm256_cvtps_epi32(b.0));
            let cd = _mm256_packs_epi32(_mm256_cvtps_epi32(c.0), _mm256_cvtps_epi32(d.0));
            let held = _mm256_min_epu8(_mm256_packus_epi16(ab, cd), _mm256_set1_epi8(max.cast_signed()));
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), held);
        }
        bytes
    }

    #[inline(always)]
    fn transposed(rows: [[u8; BAND_ROWS]; BAND_ROWS]) -> [[u8; BAND_ROWS]; BAND_ROWS] {
        let mut columns = [[0; BAND_ROWS]; BAND_ROWS];
        // SAFETY: AVX2 is there, see the module; `rows` and `columns` are 64 bytes long, and no alignment is asked for.
        unsafe {
            let from = rows.as_ptr();
            // Of two rows each: bytes of the same column side by side. Then of four, of all.
            let order = _mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
            let a = _mm_shuffle_epi8(_mm_loadu_si128(from.cast()), order);
            let b = _mm_shuffle_epi8(_mm_loadu_si128(from.add(2).cast()), order);
            let c = _mm_shuffle_epi8(_mm_loadu_si128(from.add(4).cast()), order);
            let d = _mm_shuffle_epi8(_mm_loadu_si128(from.add(6).cast()), order);
            let (ab, cd) = (_mm_unpacklo_epi16(a, b), _mm_unpacklo_epi16(c, d));
            let (ab_high, cd_high) = (_mm_unpackhi_epi16(a, b), _mm_unpackhi_epi16(c, d));
            let to = columns.as_mut_ptr();
            _mm_storeu_si128(to.cast(), _mm_unpacklo_epi32(ab, cd));
            _mm_storeu_si128(to.add(2).cast(), _mm_unpackhi_epi32(ab, cd));
            _mm_storeu_si128(to.add(4).cast(), _mm_unpacklo_epi32(ab_high, cd_high));
            _mm_storeu_si128(to.add(6).cast(), _mm_unpackhi_epi32(ab_high, cd_high));
        }
        columns
    }

    #[inline(always)]
    fn squeeze<const BITS: usize>(codes: &[u8; BYTES], out: &mut [u8; BYTES]) {
        if BITS == 8 {
            *out = *codes;
            return;
        }
        // SAFETY: AVX2 is there, see the module; `codes` is 32 bytes long and so is `out`, of which 16 bytes from 0 and from
        // 2 × BITS ≤ 12 on are written; no alignment is asked for.
        unsafe {
            let codes = _mm256_loadu_si256(codes.as_ptr().cast());
            // Each second code goes above the first, then each second pair, each second four; until they fill bytes.
            let pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi16(1 | 1 << (8 + BITS)));
            let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi32(1 | 1 << (16 + 2 * BITS)));
            let (all, step) = if BITS == 2 {
                (fours, 4)
            } else {
                let low = _mm256_and_si256(fours, _mm256_set1_epi64x(0xffff_ffff));
                let above = _mm_cvtsi64_si128(4 * i64::from(BITS as u8));
                (_mm256_or_si256(low, _mm256_sll_epi64(_mm256_srli_epi64::<32>(fours), above)), 8)
            };
            // What stays of each step, side by side, for each half of the register.
            let bytes = step * BITS / 8;
            let mut places = [-1_i8; 16];
            for (at, place) in places[..2 * BITS].iter_mut().enumerate() {
                *place = (at % bytes + at / bytes * step) as i8;
            }
            let places = _mm256_broadcastsi128_si256(_mm_loadu_si128(places.as_ptr().cast()));
            let bytes = _mm256_shuffle_epi8(all, places);
            let to = out.as_mut_ptr();
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(bytes));
            _mm_storeu_si128(to.add(2 * BITS).cast(), _mm256_extracti128_si256::<1>(bytes));
        }
    }

    #[inline(always)]
    fn nibbles(codes: &[u8; 2 * BYTES]) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        // SAFETY: AVX2 is there, see the module; 32 bytes are loaded of `codes` from 0 and from 32 on, of 64, and 32 stored to
        // `out`, which is as long; no alignment is asked for.
        unsafe {
            let [low, high] =
                [_mm256_loadu_si256(codes.as_ptr().cast()), _mm256_loadu_si256(codes[BYTES..].as_ptr().cast())];
            // Each second code goes above the first, and what comes of both registers in fours of one and the other.
            let above = _mm256_set1_epi16(1 | 1 << 12);
            let fours = _mm256_packus_epi16(_mm256_maddubs_epi16(low, above), _mm256_maddubs_epi16(high, above));
            let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(fours);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes);
        }
        out
    }

    #[inline(always)]
    fn bytes(self) -> [u8; BAND_ROWS] {
        // SAFETY: AVX2 is there, see the module.
        let packed = unsafe {
            let words = _mm256_cvttps_epi32(self.0);
            let halves = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_cvtsi128_si64(_mm_packus_epi16(halves, halves))
        };
        packed.to_le_bytes()
    }

    #[inline(always)]
    fn from_bytes(bytes: [u8; BAND_ROWS]) -> Self {
        // SAFETY: AVX2 is there, see the module.
        unsafe {
            let packed: __m128i = _mm_cvtsi64_si128(i64::from_le_bytes(bytes));
            Self(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(packed)))
        }
    }

    #[inline(always)]
    fn turned(rows: [Column; BAND_ROWS]) -> [Column; BAND_ROWS] {
        let mut columns = [[0.0; BAND_ROWS]; BAND_ROWS];
        // SAFETY: AVX2 is there, see the module.
        unsafe {
            for half in 0..2 {
                // Of rows 0 to 3 beside 4 to 7 the same four elements, for each half of them; then pairs, then fours.
                let four = |row: usize| {
                    let [upper, lower] = [rows[row], rows[row + 4]].map(|row| _mm_loadu_ps(row[4 * half..].as_ptr()));
                    _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(upper), lower)
                };
                let (a, b, c, d) = (four(0), four(1), four(2), four(3));
                let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
                let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
                let to = &mut columns[4 * half..];
                _mm256_storeu_ps(to[0].as_mut_ptr(), _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd));
                _mm256_storeu_ps(to[1].as_mut_ptr(), _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd));
                _mm256_storeu_ps(to[2].as_mut_ptr(), _mm256_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high));
                _mm256_storeu_ps(to[3].as_mut_ptr(), _mm256_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high));
            }
        }
        columns
    }

    #[inline(always)]
    fn columns(rows: [[u16; BAND_ROWS]; BAND_ROWS]) -> [Column; BAND_ROWS] {
        // SAFETY: AVX2 is there, see the module; each row is 16 bytes long, and no alignment is asked for.
        unsafe {
            let rows = rows.map(|row| _mm_loadu_si128(row.as_ptr().cast()));
            // Pairs of rows, then fours, then all eight: after each step twice as many elements of a column are neighbours.
            let pairs: [__m128i; BAND_ROWS] = [
                _mm_unpacklo_epi16(rows[0], rows[1]),
                _mm_unpackhi_epi16(rows[0], rows[1]),
                _mm_unpacklo_epi16(rows[2], rows[3]),
                _mm_unpackhi_epi16(rows[2], rows[3]),
                _mm_unpacklo_epi16(rows[4], rows[5]),
                _mm_unpackhi_epi16(rows[4], rows[5]),
                _mm_unpacklo_epi16(rows[6], rows[7]),
                _mm_unpackhi_epi16(rows[6], rows[7]),
            ];
            let fours: [__m128i; BAND_ROWS] = [
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
                for (column, eight) in
                    [_mm_unpacklo_epi64(low, high), _mm_unpackhi_epi64(low, high)].into_iter().enumerate()
                {
                    columns[2 * at + column] = Self::from_upper(eight).store();
                }
            }
            columns
        }
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        // SAFETY: AVX2 is there, see the module.
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
        }
    }
}

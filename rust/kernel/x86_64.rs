//! [`Vector`] in AVX2 registers, with FMA.
//!
//! An [`Avx2`] value is made only by this file's methods, and they are called only from the function that
//! [`kernel!`](super::kernel) enables AVX2 and FMA for, which runs only where [`Level::detect`](super::Level::detect)
//! saw both. That is what makes each `unsafe` here sound: the instruction exists on the CPU that runs it. (They cannot
//! be safe `#[target_feature]` functions: those cannot be forced inline, and a kernel of calls is no kernel.)

use std::arch::x86_64::{
    __m128i, __m256, _CMP_LT_OQ, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm_cvtsi64_si128, _mm_cvtsi128_si64,
    _mm_loadu_si128, _mm_packs_epi32, _mm_packus_epi16, _mm_unpackhi_epi16, _mm_unpackhi_epi32, _mm_unpackhi_epi64,
    _mm_unpacklo_epi16, _mm_unpacklo_epi32, _mm_unpacklo_epi64, _mm256_add_epi32, _mm256_add_ps, _mm256_andnot_ps,
    _mm256_blendv_ps, _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cmp_ps, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi32, _mm256_cvtepu16_epi32, _mm256_cvtps_epi32, _mm256_cvttps_epi32, _mm256_div_ps,
    _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps,
    _mm256_round_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_slli_epi32, _mm256_storeu_ps, _mm256_sub_ps,
};

use super::vector::{Lane, ROWS, Vector};

/// Eight lanes in one register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(__m256);

/// Intrinsics of one register-to-register operation each.
macro_rules! operations {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident),*) = $intrinsic:expr;)*) => {
        $(
            $(#[$meta])*
            #[inline(always)]
            fn $name(self $(, $arg: Self)*) -> Self {
                // SAFETY: AVX2 with FMA is there, see the module.
                Self(unsafe { $intrinsic(self.0 $(, $arg.0)*) })
            }
        )*
    };
}

impl Vector for Avx2 {
    type Mask = __m256;

    operations! {
        fn add(other) = _mm256_add_ps;
        fn sub(other) = _mm256_sub_ps;
        fn mul(other) = _mm256_mul_ps;
        fn div(other) = _mm256_div_ps;
        fn mul_add(by, plus) = _mm256_fmadd_ps;
        fn min(other) = _mm256_min_ps;
        fn max(other) = _mm256_max_ps;
        fn abs() = |a| _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: AVX2 is there, see the module.
        Self(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    fn code(self, max: Self) -> Self {
        // The instruction rounds as `round` does, but for the sign of a zero; and what is clamped is not negative.
        // SAFETY: AVX2 is there, see the module.
        Self(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.clamp(max).0) })
    }

    #[inline(always)]
    fn load(lanes: Lane) -> Self {
        // SAFETY: AVX2 is there, see the module; `lanes` is eight floats long, and no alignment is asked for.
        Self(unsafe { _mm256_loadu_ps(lanes.as_ptr()) })
    }

    #[inline(always)]
    fn store(self) -> Lane {
        let mut lanes = [0.0; ROWS];
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
    fn bytes(self) -> [u8; ROWS] {
        // SAFETY: AVX2 is there, see the module.
        let packed = unsafe {
            let words = _mm256_cvttps_epi32(self.0);
            let halves = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_cvtsi128_si64(_mm_packus_epi16(halves, halves))
        };
        packed.to_le_bytes()
    }

    #[inline(always)]
    fn from_bytes(bytes: [u8; ROWS]) -> Self {
        // SAFETY: AVX2 is there, see the module.
        unsafe {
            let packed: __m128i = _mm_cvtsi64_si128(i64::from_le_bytes(bytes));
            Self(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(packed)))
        }
    }

    #[inline(always)]
    fn columns(rows: [[u16; ROWS]; ROWS]) -> [Lane; ROWS] {
        // SAFETY: AVX2 is there, see the module; each row is 16 bytes long, and no alignment is asked for.
        unsafe {
            let rows = rows.map(|row| _mm_loadu_si128(row.as_ptr().cast()));
            // Pairs of rows, then fours, then all eight: after each step twice as many elements of a column are neighbours.
            let pairs: [__m128i; ROWS] = [
                _mm_unpacklo_epi16(rows[0], rows[1]),
                _mm_unpackhi_epi16(rows[0], rows[1]),
                _mm_unpacklo_epi16(rows[2], rows[3]),
                _mm_unpackhi_epi16(rows[2], rows[3]),
                _mm_unpacklo_epi16(rows[4], rows[5]),
                _mm_unpackhi_epi16(rows[4], rows[5]),
                _mm_unpacklo_epi16(rows[6], rows[7]),
                _mm_unpackhi_epi16(rows[6], rows[7]),
            ];
            let fours: [__m128i; ROWS] = [
                _mm_unpacklo_epi32(pairs[0], pairs[2]),
                _mm_unpackhi_epi32(pairs[0], pairs[2]),
                _mm_unpacklo_epi32(pairs[1], pairs[3]),
                _mm_unpackhi_epi32(pairs[1], pairs[3]),
                _mm_unpacklo_epi32(pairs[4], pairs[6]),
                _mm_unpackhi_epi32(pairs[4], pairs[6]),
                _mm_unpacklo_epi32(pairs[5], pairs[7]),
                _mm_unpackhi_epi32(pairs[5], pairs[7]),
            ];
            let mut columns = [[0.0; ROWS]; ROWS];
            for at in 0..4 {
                let (low, high) = (fours[at], fours[at + 4]);
                for (column, eight) in
                    [_mm_unpacklo_epi64(low, high), _mm_unpackhi_epi64(low, high)].into_iter().enumerate()
                {
                    // The upper halves of floats.
                    let wide = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(eight));
                    _mm256_storeu_ps(columns[2 * at + column].as_mut_ptr(), _mm256_castsi256_ps(wide));
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

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::super::vector::Portable;
    use super::*;

    /// Numbers of every kind, and what is none.
    const VALUES: [f32; 16] = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        0.5,
        2.5,
        1e-45,
        -1e-40,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        255.0,
        254.5,
        1e-7,
    ];

    /// The bits of a lane; all that is no number alike.
    fn bits(lanes: Lane) -> [u32; ROWS] {
        lanes.map(|lane| if lane.is_nan() { f32::NAN.to_bits() } else { lane.to_bits() })
    }

    /// What every operation gives of a pair.
    fn all<V: Vector>(a: Lane, b: Lane) -> Vec<[u32; ROWS]> {
        let (x, y) = (V::load(a), V::load(b));
        let held = x.clamp(V::splat(255.0));
        let power = x.clamp(V::splat(253.0)).round().sub(V::splat(126.0));
        let results = [
            x.add(y),
            x.sub(y),
            x.mul(y),
            x.div(y),
            x.mul_add(y, V::splat(b[3])),
            x.mul_add(x, y),
            x.min(y),
            x.max(y),
            x.abs(),
            x.where_or(x.less(y), y),
            held,
            held.round(),
            V::splat(0.0).sub(held).round(),
            power.power_of_two(),
            V::from_bytes(held.round().bytes()),
            V::splat(b[3]),
            x.each(f32::round_ties_even),
        ];
        results.map(|result| bits(result.store())).to_vec()
    }

    #[test]
    fn columns_are_those_of_the_rows() {
        if Level::detect() == Level::PORTABLE {
            return;
        }
        let rows: [[u16; ROWS]; ROWS] =
            std::array::from_fn(|row| std::array::from_fn(|at| (row * 8 + at) as u16 * 521));
        assert_eq!(Avx2::columns(rows), Portable::columns(rows));
    }

    #[test]
    fn every_operation_gives_the_bits_of_the_portable_one() {
        if Level::detect() == Level::PORTABLE {
            return;
        }
        for at in 0..VALUES.len() {
            for by in 0..VALUES.len() {
                let a: Lane = std::array::from_fn(|lane| VALUES[(at + lane) % VALUES.len()]);
                let b: Lane = std::array::from_fn(|lane| VALUES[(by + 3 * lane) % VALUES.len()]);
                assert_eq!(all::<Avx2>(a, b), all::<Portable>(a, b), "{a:?} {b:?}");
            }
        }
        for n in -126_i16..=127 {
            let (avx2, portable) = (Avx2::splat(n.into()).power_of_two(), Portable::splat(n.into()).power_of_two());
            let power = f64::from_bits((i64::from(n) + 1023).cast_unsigned() << 52);
            assert_eq!(avx2.store().map(f64::from), [power; ROWS]);
            assert_eq!(portable.store().map(f64::from), [power; ROWS]);
        }
        // Rounded twice it would be 0.
        let (x, square) = (1.0 + f32::EPSILON, 1.0 + 2.0 * f32::EPSILON);
        let rest = Portable::splat(x).mul_add(Portable::splat(x), Portable::splat(-square));
        assert_eq!(rest.store(), [f32::EPSILON * f32::EPSILON; ROWS]);
        assert_eq!(Avx2::splat(x).mul_add(Avx2::splat(x), Avx2::splat(-square)).store(), rest.store());
    }
}

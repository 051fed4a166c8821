//! Rounding to float types of 4 and 8 bits.

use crate::simd::vector::{BAND_ROWS, Column, Lanes, Vector};

/// A float type of a sign bit, a few bits of exponent and a few bits of mantissa, without infinities.
#[derive(Clone, Copy)]
pub(super) struct Minifloat {
    exponent_bits: u32,
    mantissa_bits: u32,
    /// Below it, values are equally spaced down to 0.
    least_normal: f32,
    /// The largest value. Larger magnitudes round to it.
    pub(super) max: f32,
}

/// 2 bits of exponent, 1 of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4 and 6. All codes are numbers.
pub(super) const E2M1: Minifloat = Minifloat { exponent_bits: 2, mantissa_bits: 1, least_normal: 1.0, max: 6.0 };

/// 4 bits of exponent, 3 of mantissa. The code after that of 448 is NaN.
pub(super) const E4M3: Minifloat =
    Minifloat { exponent_bits: 4, mantissa_bits: 3, least_normal: 0.015_625, max: 448.0 };

/// Adding `1.5 · 2^23` steps to a number below `2^22` steps rounds it to a whole number of steps, ties to even: the
/// spacing of `f32` at the sum is one step.
const ROUNDING_STEPS: f32 = 12_582_912.0;

/// The power of two at or below each lane of `values`, which are not negative; 0 for 0.
///
/// For a normal number whose product with `2^23` is finite, the result is exact (Rump, Ogita and Oishi, "Accurate
/// floating-point summation, part I", SIAM Journal on Scientific Computing 31, 2008, algorithm 3.5). For a subnormal
/// number it is at most the least normal `f32`.
#[inline(always)]
fn binade<W: Lanes>(values: W) -> W {
    let wide = values.mul(W::splat(8_388_609.0));
    wide.sub(wide.mul(W::splat(1.0 - f32::EPSILON / 2.0)))
}

impl Minifloat {
    /// The nearest value to each of `magnitudes`, ties to the even code, and at most [`max`](Self::max), which NaN rounds
    /// to.
    #[inline(always)]
    pub(super) fn round<W: Lanes>(self, magnitudes: W) -> W {
        let capped = magnitudes.min(W::splat(self.max));
        let binade = binade(capped).max(W::splat(self.least_normal));
        let steps = binade.mul(W::splat(ROUNDING_STEPS / (1_u32 << self.mantissa_bits) as f32));
        capped.add(steps).sub(steps)
    }

    /// The codes of `rounded`, which are values of this type and not negative, with the sign bits of `signs`. A negative
    /// number that was rounded to zero keeps its sign.
    #[inline(always)]
    pub(super) fn codes<V: Vector>(self, rounded: V, signs: Column) -> [u8; BAND_ROWS] {
        // A normal value is doubled. A subnormal one moves into the first binade, which has its spacing. Then exponent and
        // mantissa are those of the code, except for the bias of the exponent.
        let values = rounded.add(rounded.max(V::splat(self.least_normal))).store();
        let bias = (self.least_normal.to_bits() >> 23) << self.mantissa_bits;
        let mut wide = [0; BAND_ROWS];
        for row in 0..BAND_ROWS {
            let sign = signs[row].to_bits() >> 31 << (self.exponent_bits + self.mantissa_bits);
            wide[row] = (values[row].to_bits() >> (23 - self.mantissa_bits)).wrapping_sub(bias) | sign;
        }
        let mut codes = [0; BAND_ROWS];
        for row in 0..BAND_ROWS {
            codes[row] = wide[row] as u8;
        }
        codes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::{Float8, e2m1_values};
    use crate::simd::{Isa, kernel};

    kernel! {
        /// The rounded values and their codes, with E4M3 or else E2M1.
        fn rounded<V: Simd in W: Batch>(eight_bits: bool, magnitudes: Column) -> (Column, [u8; BAND_ROWS]) {
            let format = if eight_bits { E4M3 } else { E2M1 };
            let rounded = format.round(W::broadcast(magnitudes)).extract(W::PARTS - 1);
            (rounded.store(), format.codes(rounded, [0.0; BAND_ROWS]))
        }
    }

    /// The nearest of `values`, which are sorted; of two equally near, that of the even code.
    fn nearest(values: &[f32], magnitude: f32) -> usize {
        let capped = f64::from(magnitude.min(values[values.len() - 1]));
        let off = |code: usize| (f64::from(values[code]) - capped).abs();
        let odd_last = |code: &usize| (off(*code), code % 2);
        (0..values.len()).min_by(|a, b| odd_last(a).partial_cmp(&odd_last(b)).unwrap()).unwrap()
    }

    #[test]
    fn every_isa_rounds_to_the_nearest_value_and_ties_to_the_even_code() {
        let (e4m3, e2m1) = (Float8::E4M3.values(), e2m1_values());
        for (eight_bits, values) in [(false, &e2m1[..8]), (true, &e4m3[..0x7f])] {
            let halfway = values.windows(2).map(|pair| f32::midpoint(pair[0], pair[1]));
            let marks = values.iter().copied().chain(halfway);
            let around = |mark: f32| [mark.next_down().max(0.0), mark, mark.next_up()];
            let mut magnitudes: Vec<f32> = marks.flat_map(around).collect();
            magnitudes.extend([f32::MIN_POSITIVE, f32::MAX, f32::INFINITY, 1e-40, 7.0, 449.0, 463.0, 465.0]);
            magnitudes.extend((0..0x7f80_0000).step_by(104_729).map(f32::from_bits));
            magnitudes.extend((0..20_000_u16).map(|at| f32::from(at) / 20_000.0 * values[values.len() - 1]));
            for magnitude in magnitudes {
                let code = nearest(values, magnitude);
                for isa in Isa::available() {
                    let (found, codes) = rounded(isa, eight_bits, [magnitude; BAND_ROWS]);
                    assert_eq!((found[5], codes[5]), (values[code], code as u8), "{magnitude:e} {}", isa.name());
                }
            }
        }
    }

    #[test]
    fn codes_have_the_sign_bit_of_their_type() {
        let weights = [-0.0, 0.0, -1.0, 1.0, -6.0, 6.0, -0.01, 0.01];
        for isa in Isa::available() {
            assert_eq!(signed(isa, false, weights), [8, 0, 10, 2, 15, 7, 8, 0]);
            assert_eq!(signed(isa, true, weights), [0x80, 0, 0xb8, 0x38, 0xcc, 0x4c, 0x85, 5]);
        }
    }

    kernel! {
        /// The codes of `weights`, in E4M3 or else E2M1.
        fn signed<V: Simd>(eight_bits: bool, weights: Column) -> [u8; BAND_ROWS] {
            let format = if eight_bits { E4M3 } else { E2M1 };
            format.codes(format.round(V::load(weights).abs()), weights)
        }
    }

    #[test]
    fn nan_rounds_to_the_largest_value() {
        for isa in Isa::available() {
            assert_eq!(rounded(isa, true, [f32::NAN; BAND_ROWS]), ([448.0; BAND_ROWS], [0x7e; BAND_ROWS]));
            assert_eq!(rounded(isa, false, [f32::NAN; BAND_ROWS]), ([6.0; BAND_ROWS], [7; BAND_ROWS]));
        }
    }
}

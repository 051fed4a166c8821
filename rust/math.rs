//! Portable exponential, logarithm, sine and cosine: the same bits on every system.
//!
//! The libraries of two systems may differ in the last bit of such a function. These results decide schemes and are written
//! to files, so they must not. The functions here use only additions, multiplications and divisions, which IEEE 754 defines
//! exactly.

use std::f64::consts::{FRAC_2_PI, LN_2, LN_10, LOG2_E, SQRT_2};

/// `e^x` with a relative error below 1e-13; 0 below −700, and `e^700` above 700.
///
/// `x = n ln 2 + f` with `|f| ≤ ½ ln 2`, `e^f` by its Taylor series to the 13th power (remainder below 1e-17).
#[must_use]
pub(crate) fn exp(x: f64) -> f64 {
    if x < -700.0 {
        return 0.0;
    }
    let x = if x < 700.0 { x } else { 700.0 };
    let n = (x * LOG2_E).round_ties_even();
    let f = x - n * LN_2;
    let mut sum = 1.0;
    for power in (1..=13).rev() {
        sum = 1.0 + sum * f / f64::from(power);
    }
    // 2^n: |n| ≤ 1010, a normal number.
    sum * f64::from_bits((n as i64 + 1023).cast_unsigned() << 52)
}

/// `ln x` of a normal positive `x`, with an error below `1e-15 max(1, |ln x|)`.
///
/// `x = 2^n m` with `m` in `[√½, √2)`; `ln m = 2 artanh((m − 1) / (m + 1))` by its series to the 23rd power (remainder
/// below 1e-19).
#[must_use]
pub(crate) fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut n = ((bits >> 52) & 0x7ff) as i32 - 1023;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m >= SQRT_2 {
        m *= 0.5;
        n += 1;
    }
    let f = (m - 1.0) / (m + 1.0);
    let square = f * f;
    let mut sum = 0.0;
    for power in (1..=23).rev().step_by(2) {
        sum = sum * square + 1.0 / f64::from(power);
    }
    f64::from(n) * LN_2 + 2.0 * f * sum
}

/// `base^exponent` of a normal positive base, as `e^(exponent ln base)`. The relative error is below
/// `1e-13 + 2e-15 |exponent| max(1, |ln base|)`; 0 below `e^−700`, and `e^700` above `e^700`.
#[must_use]
pub(crate) fn pow(base: f64, exponent: f64) -> f64 {
    exp(exponent * ln(base))
}

/// `sin x` and `cos x` of `|x| ≤ 1e6`, each with an absolute error of at most 3e-16. Beyond, the error grows; NaN if `x` is
/// non-finite.
///
/// `x = n π/2 + f` with `|f| ≤ π/4`; sine and cosine of `f` by their Taylor series to the 17th and the 16th power
/// (remainders below 1e-19 and 3e-18). `n π/2` is subtracted with `π/2` in three parts. The first two have 33 bits, so their
/// products with `n` and the first difference are exact. The third is the rest of `π/2`, to within 1e-36.
#[must_use]
pub(crate) fn sin_cos(x: f64) -> (f64, f64) {
    const PARTS: [f64; 3] = [1.570_796_326_734_125_6, 6.077_100_506_303_966e-11, 2.022_266_248_795_950_6e-21];
    let n = (x * FRAC_2_PI).round_ties_even();
    let f = PARTS.iter().fold(x, |rest, part| rest - n * part);
    let square = f * f;
    let (mut sine, mut cosine) = (1.0, 1.0);
    for power in (2..=16).rev().step_by(2) {
        let power = f64::from(power);
        sine = 1.0 - sine * square / (power * (power + 1.0));
        cosine = 1.0 - cosine * square / (power * (power - 1.0));
    }
    sine *= f;
    match (n as i64).rem_euclid(4) {
        0 => (sine, cosine),
        1 => (cosine, -sine),
        2 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}

/// A ratio in decibels, `10 log₁₀ ratio`; 999 for infinity and for NaN (0 ÷ 0: no noise), −999 for zero.
#[must_use]
pub(crate) fn decibels(ratio: f64) -> f64 {
    if ratio.is_finite() && ratio > 1e-99 {
        (10.0 / LN_10) * ln(ratio)
    } else if ratio <= 1.0 {
        -999.0
    } else {
        999.0
    }
}

/// The inverse of [`decibels`].
#[cfg(test)]
pub(crate) fn from_decibels(decibels: f64) -> f64 {
    exp(decibels * (LN_10 / 10.0))
}

/// Rounds to two decimals, for display.
#[must_use]
pub(crate) fn round2(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the system's library is what ours is compared with")]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_library() {
        for step in -7_000..=7_000 {
            let x = f64::from(step) / 10.0 + 0.037;
            if x.abs() < 700.0 {
                assert!((exp(x) / x.exp() - 1.0).abs() < 1e-13, "{x}");
            }
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e9), 0.0);
        assert_eq!(exp(1e9), exp(700.0));
    }

    #[test]
    fn ln_is_close_to_the_library() {
        let mut x = 1e-300;
        while x < 1e300 {
            assert!((ln(x) - x.ln()).abs() <= 1e-15 * x.ln().abs().max(1.0), "{x}");
            x *= 1.093_7;
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn pow_is_close_to_the_library() {
        for base in [1e-30_f64, 0.3, 1.0, 2.0, 1e4, 5e5, 1e6] {
            for step in -400..=400 {
                let exponent = f64::from(step) / 40.0 + 0.003_7;
                let bound = 1e-13 + 2e-15 * exponent.abs() * base.ln().abs().max(1.0);
                assert!((pow(base, exponent) / base.powf(exponent) - 1.0).abs() <= bound, "{base}^{exponent}");
            }
            assert_eq!(pow(base, 0.0), 1.0);
        }
    }

    #[test]
    fn sine_and_cosine_are_close_to_the_library() {
        let near = |x: f64| {
            let (sine, cosine) = sin_cos(x);
            assert!((sine - x.sin()).abs() <= 3e-16 && (cosine - x.cos()).abs() <= 3e-16, "{x}");
            assert_eq!(sin_cos(-x), (-sine, cosine));
        };
        for step in 0..200_000 {
            near(f64::from(step) * 5.000_017);
            near(f64::from(step) * 1e-4);
        }
        // Next to the multiples of π/2, where all but the last part cancels.
        for n in 0..600_000 {
            near(f64::from(n) * std::f64::consts::FRAC_PI_2);
            near((f64::from(n) + 0.5) * std::f64::consts::FRAC_PI_2);
        }
        assert_eq!(sin_cos(0.0), (0.0, 1.0));
        assert_eq!(sin_cos(1e-300), (1e-300, 1.0));
        for x in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(sin_cos(x).0.is_nan() && sin_cos(x).1.is_nan());
        }
    }

    #[test]
    fn decibels_go_both_ways() {
        for ratio in [0.125, 1.0, 10.0, 1e7] {
            assert!((from_decibels(decibels(ratio)) / ratio - 1.0).abs() < 1e-12);
        }
        assert_eq!(decibels(f64::INFINITY), 999.0);
        assert_eq!(decibels(f64::NAN), 999.0);
        assert_eq!(decibels(0.0), -999.0);
        assert_eq!(decibels(1e-200), -999.0);
    }
}

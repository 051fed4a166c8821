//! Exponential and logarithm of our own.
//!
//! A system's library may differ from another's in the last bit, and these numbers decide bits and stand in files.
//! Additions, multiplications and divisions are the same everywhere.

use std::f64::consts::{LN_2, LN_10, LOG2_E, SQRT_2};

/// `e^x`, to within 1e-13 of it relatively; 0 below −700, and held to `e^700` above.
///
/// `x = n ln 2 + f` with `|f| ≤ ½ ln 2`, `e^f` by its Taylor series to the 13th power (remainder below 1e-17).
#[must_use]
pub fn exp(x: f64) -> f64 {
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

/// `ln x` of a normal positive `x`, to within 1e-15 absolutely and relatively.
///
/// `x = 2^n m` with `m` in `[√½, √2)`; `ln m = 2 artanh((m − 1) / (m + 1))` by its series to the 23rd power (remainder
/// below 1e-19).
#[must_use]
pub fn ln(x: f64) -> f64 {
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

/// A ratio in decibels, `10 log₁₀ ratio`; 999 for an infinite one and for 0 ÷ 0 (no noise), −999 for none.
#[must_use]
pub fn decibels(ratio: f64) -> f64 {
    if ratio.is_finite() && ratio > 1e-99 {
        (10.0 / LN_10) * ln(ratio)
    } else if ratio <= 1.0 {
        -999.0
    } else {
        999.0
    }
}

/// The ratio that is so many decibels.
#[must_use]
pub fn from_decibels(decibels: f64) -> f64 {
    exp(decibels * (LN_10 / 10.0))
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

//! Exponential functions in `f32`, and the activations of MLPs with their derivatives.
//!
//! They are made of additions, products, fused products and divisions in the written order, so the results are the same bits
//! everywhere (except for NaN payloads). The coefficients are minimax fits of our own, by Lawson's iteration on Chebyshev
//! nodes; each was rounded to `f32` before the next ones were fitted again. An *ulp* is the distance of the two floats around
//! the true value. Bounds are above the largest error on all 2³² floats, compared with `f64`.
//!
//! Every function returns NaN for NaN.

mod activation;

pub(crate) use activation::{Activation, apply, slope};

use super::kernel;
use super::vector::{BAND_ROWS, Vector};

/// `Σ c_k x^k`, the coefficients from the highest power down.
#[inline(always)]
fn polynomial<V: Vector, const N: usize>(x: V, coefficients: [f32; N]) -> V {
    let mut sum = V::splat(coefficients[0]);
    for &coefficient in &coefficients[1..] {
        sum = sum.mul_add(x, V::splat(coefficient));
    }
    sum
}

#[inline(always)]
fn negate<V: Vector>(x: V) -> V {
    V::splat(0.0).sub(x)
}

/// The nearest value in `[low, high]`; NaN for NaN.
#[inline(always)]
fn clamp_to<V: Vector>(x: V, low: f32, high: f32) -> V {
    V::splat(high).min(V::splat(low).max(x))
}

/// `n`, `f` and `q` with `e^x = 2^n (1 + f q)`, for `|x| ≤ 89`: `n` is the integer nearest to `x / ln 2`, up to the rounding of
/// the product, and `f = x − n ln 2` lies in `[−0.3468, 0.3468]`.
///
/// `ln 2` is the sum of the nearest float and its error. The first product is fused, and its difference to `x` is exact. `q` is
/// of degree 5 with `q(0) = 1`, and within a relative error of 1.4e-8 of `(e^f − 1) / f`.
#[inline(always)]
fn reduce<V: Vector>(x: V) -> (V, V, V) {
    const HIGH: f32 = std::f32::consts::LN_2;
    const LOW: f32 = -1.904_654_3e-9;
    let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round_small();
    let f = n.mul_add(V::splat(-LOW), n.mul_add(V::splat(-HIGH), x));
    let q = [1.387_067_8e-3, 8.366_265e-3, 4.166_743_5e-2, 0.166_665_46, 0.499_999_97, 1.0];
    (n, f, polynomial(f, q))
}

/// `e^x`, to within 0.92 ulp where that is a normal float: `x` in `[−87.33654, 88.72283]`. It is 0 below, also at −∞, and
/// `e^88.72283` = 3.4028e38 above, also at +∞.
///
/// `n` lies in `[−126, 128]`, and `2^128` is no float: the last doubling is applied to `1 + f q`.
#[inline(always)]
pub(crate) fn exp<V: Vector>(x: V) -> V {
    // The least float not below −126 ln 2, and the greatest float with a finite power.
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.722_83;
    let (n, f, q) = reduce(clamp_to(x, LOWEST, HIGHEST));
    let power = f.mul_add(q, V::splat(1.0));
    let most = V::splat(127.0).min(n);
    let power = power.mul_add(n.sub(most), power).mul(most.power_of_two());
    V::splat(0.0).select(x.lt(V::splat(LOWEST)), power)
}

/// [`sigmoid`] of `x` and of `−x`, each with a small relative error. They add up to one.
#[inline(always)]
fn sigmoids<V: Vector>(x: V) -> (V, V) {
    let one = V::splat(1.0);
    let power = exp(negate(x.abs()));
    let (sum, negative) = (one.add(power), x.lt(V::splat(0.0)));
    (power.select(negative, one).div(sum), one.select(negative, power).div(sum))
}

/// `1 / (1 + e^−x)`, to within 2.5 ulp; 0 below −87.33654, also at −∞; 1 from 17 on, also at +∞.
///
/// With `p = e^−|x|` it is `1 / (1 + p)`, or `p / (1 + p)` for negative `x`: no overflow, no cancellation.
#[inline(always)]
pub(crate) fn sigmoid<V: Vector>(x: V) -> V {
    sigmoids(x).0
}

/// `tanh x`, to within 2.7 ulp, also around 0. It is odd (0 for −0), and ±1 from ±10 on.
///
/// `tanh |x| = −m / (2 + m)` with `m = e^−2|x| − 1 = 2^n f q + (2^n − 1)`, `n`, `f` and `q` as in [`exp`]. Around 0 `n` is 0 and
/// `m = f q`.
#[inline(always)]
pub(crate) fn tanh<V: Vector>(x: V) -> V {
    let (one, two) = (V::splat(1.0), V::splat(2.0));
    let double = V::splat(10.0).min(x.abs()).mul(V::splat(-2.0));
    let (n, f, q) = reduce(double);
    let scale = n.power_of_two();
    let less_one = scale.mul_add(f.mul(q), scale.sub(one));
    less_one.select(x.lt(V::splat(0.0)), negate(less_one)).div(two.add(less_one))
}

/// `1 − Φ(|x|)`, the upper tail of the standard normal distribution, and `e^(−x²/2)`, to within 7.1 and 1.4 ulp up to `|x|` =
/// 13.2; 0 from there on.
///
/// The tail is `e^(−x²/2) P(|x|) / Q(|x|)`, of degrees 4 and 5, with a relative error of 1.1e-8. All coefficients are positive,
/// so nothing cancels, and the tail is ½ at 0. The rounding error `l` of the square is corrected by a factor `1 − l/2`.
#[inline(always)]
fn tail<V: Vector>(x: V) -> (V, V) {
    let p = [3.990_838e-3, 3.979_924_3e-2, 0.180_777_07, 0.435_000_84, 0.5];
    let q = [1.000_340_1e-2, 9.976_943e-2, 0.462_976_3, 1.192_331_6, 1.667_886_5, 1.0];
    let (x, half) = (V::splat(14.0).min(x.abs()), V::splat(-0.5));
    let square = x.mul(x);
    let lacks = x.mul_add(x, negate(square));
    let power = exp(square.mul(half));
    let power = lacks.mul(half).mul_add(power, power);
    (power.mul(polynomial(x, p).div(polynomial(x, q))), power)
}

/// `Φ(x)`, the standard normal distribution function, and `e^(−x²/2)`; 0 below −13.2.
#[inline(always)]
fn normal<V: Vector>(x: V) -> (V, V) {
    let (tail, power) = tail(x);
    (tail.select(x.lt(V::splat(0.0)), V::splat(1.0).sub(tail)), power)
}

/// `erf x`, to within 1.4e-7 and 2.3 ulp. It is odd (0 for −0), and ±1 from ±4 on.
///
/// Below ¾ it is `|x| + |x| s(x²)`, with `s` of degree 5 and a relative error of 1.7e-9; from there on
/// `1 − 2 (1 − Φ(√2 |x|))`.
#[cfg(test)]
#[inline(always)]
pub(crate) fn erf<V: Vector>(x: V) -> V {
    let s = [-6.737_584e-4, 5.113_157e-3, -2.683_433_5e-2, 0.112_833_79, -0.376_126_2, 0.128_379_17];
    let size = x.abs();
    let near = size.mul_add(polynomial(size.mul(size), s), size);
    let (tail, _) = tail(size.mul(V::splat(std::f32::consts::SQRT_2)));
    let far = tail.mul_add(V::splat(-2.0), V::splat(1.0));
    let size = near.select(size.lt(V::splat(0.75)), far);
    negate(size).select(x.lt(V::splat(0.0)), size)
}

kernel! {
    /// `x_i = e^(x_i − max)`: [`exp`] of the rounded difference; NaN where both are the same infinity.
    pub(crate) fn exp_minus<V: Simd>(x: &mut [f32], max: f32) {
        let max = V::splat(max);
        let (whole, rest) = x.as_chunks_mut::<BAND_ROWS>();
        for lanes in whole {
            *lanes = exp(V::load(*lanes).sub(max)).store();
        }
        let mut lanes = [0.0; BAND_ROWS];
        lanes[..rest.len()].copy_from_slice(rest);
        lanes = exp(V::load(lanes).sub(max)).store();
        rest.copy_from_slice(&lanes[..rest.len()]);
    }
}

kernel! {
    /// `x_i = cap · tanh(x_i / cap)`: [`tanh`] of the rounded quotient.
    pub(crate) fn soft_cap<V: Simd>(x: &mut [f32], cap: f32) {
        let cap = V::splat(cap);
        let (whole, rest) = x.as_chunks_mut::<BAND_ROWS>();
        for lanes in whole {
            *lanes = tanh(V::load(*lanes).div(cap)).mul(cap).store();
        }
        let mut lanes = [0.0; BAND_ROWS];
        lanes[..rest.len()].copy_from_slice(rest);
        lanes = tanh(V::load(lanes).div(cap)).mul(cap).store();
        rest.copy_from_slice(&lanes[..rest.len()]);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the system's library is the reference")]
mod tests {
    use std::f64::consts::PI;

    use super::super::Isa;
    use super::super::vector::Column;
    use super::*;

    /// Floats of all exponents and both signs, among them 0, ±∞ and NaN, and a fine grid of `[−100, 100]`.
    pub(super) fn sweep() -> Vec<f32> {
        let all = (0..=u32::MAX).step_by(16_385).map(f32::from_bits);
        let grid = (-100_000_i32..=100_000).map(|step| step as f32 / 1000.0);
        let ends = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0, f32::MAX, f32::MIN, f32::from_bits(1)];
        all.chain(grid).chain(ends).collect()
    }

    /// The bits of floats, with every NaN mapped to one.
    pub(super) fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }).collect()
    }

    /// `erf x` and `1 − erf x` for `x ≥ 0`: by the series of the former below 2, by the continued fraction of the latter from
    /// there on.
    pub(super) fn areas(x: f64) -> (f64, f64) {
        if x < 2.0 {
            let (mut term, mut sum) = (x, x);
            for n in 1..60 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            let area = 2.0 / PI.sqrt() * sum;
            (area, 1.0 - area)
        } else {
            let fraction = (1..=100).rev().fold(x, |rest, n| x + 0.5 * f64::from(n) / rest);
            let area = (-x * x).exp() / (PI.sqrt() * fraction);
            (1.0 - area, area)
        }
    }

    pub(super) fn logistic(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    kernel! {
        fn lanes<V: Simd>(which: usize, x: &[Column]) -> Vec<Column> {
            let mut results = Vec::new();
            for &lanes in x {
                let x = V::load(lanes);
                results.push(match which { 0 => exp(x), 1 => sigmoid(x), 2 => tanh(x), _ => erf(x) }.store());
            }
            results
        }
    }

    /// One of the functions of each `x`.
    fn function(isa: Isa, which: usize, x: &[f32]) -> Vec<f32> {
        let mut padded = x.to_vec();
        padded.resize(x.len().next_multiple_of(BAND_ROWS), 0.0);
        let mut results = lanes(isa, which, padded.as_chunks().0).concat();
        results.truncate(x.len());
        results
    }

    /// The error of `value` in ulp of `truth`, a normal float.
    fn ulps(value: f32, truth: f64) -> f64 {
        let exponent = (truth.abs().to_bits() >> 52) - 23;
        (f64::from(value) - truth).abs() / f64::from_bits(exponent << 52)
    }

    #[test]
    fn functions_are_as_accurate_as_documented() {
        let truth = |which, x: f64| match which {
            0 => x.exp(),
            1 => logistic(x),
            2 => x.tanh(),
            _ => areas(x.abs()).0.copysign(x),
        };
        let x = sweep();
        for (which, bound) in [0.92, 2.5, 2.7, 2.3].into_iter().enumerate() {
            for (&x, y) in x.iter().zip(function(Isa::detect(), which, &x)) {
                let truth = truth(which, x.into());
                assert_eq!(x.is_nan(), y.is_nan(), "{which}: {x} → {y}");
                if truth.abs() >= f32::MIN_POSITIVE.into() && truth <= f32::MAX.into() {
                    assert!(ulps(y, truth) <= bound, "{which}: {x} → {y}, not {truth}");
                }
            }
        }
    }

    #[test]
    fn limits_of_functions_are_as_documented() {
        let of = |which, x: &[f32]| function(Isa::detect(), which, x);
        let (least, most) = (-87.336_54_f32, 88.722_83_f32);
        assert_eq!(of(0, &[0.0, -0.0, least.next_down(), -1e30, f32::NEG_INFINITY]), [1.0, 1.0, 0.0, 0.0, 0.0]);
        let ends = of(0, &[least, most, most.next_up(), 1e30, f32::INFINITY]);
        assert!(ends[0] >= f32::MIN_POSITIVE && ends[1] > 3.402_7e38 && ends[1] < f32::INFINITY, "{ends:?}");
        assert_eq!(ends[2..], [ends[1]; 3]);
        let ends = of(1, &[0.0, 17.0, f32::INFINITY, least.next_down(), f32::NEG_INFINITY]);
        assert_eq!(ends, [0.5, 1.0, 1.0, 0.0, 0.0]);
        let (tiny, positive) = (f32::from_bits(1), sweep().into_iter().filter(|&x| x >= 0.0).collect::<Vec<_>>());
        let negative: Vec<f32> = positive.iter().map(|x| -x).collect();
        for which in [2, 3] {
            assert_eq!(bits(&of(which, &[0.0, -0.0, tiny, -tiny])), bits(&[0.0, 0.0, tiny, -tiny]));
            assert_eq!(of(which, &[10.0, 1e30, f32::INFINITY]), [1.0; 3]);
            let mirrored: Vec<f32> = of(which, &negative).into_iter().map(|y| -y).collect();
            assert_eq!(of(which, &positive), mirrored);
        }
    }

    #[test]
    fn exp_minus_is_exp_of_the_difference_for_any_length() {
        let x = sweep();
        let differences: Vec<f32> = x.iter().map(|x| x - 3.7).collect();
        let expected = function(Isa::PORTABLE, 0, &differences);
        for isa in Isa::available() {
            for length in (0..=40).chain([x.len()]) {
                let mut y = x[x.len() - length..].to_vec();
                exp_minus(isa, &mut y, 3.7);
                assert_eq!(bits(&y), bits(&expected[x.len() - length..]), "{length}");
            }
        }
    }

    #[test]
    fn every_isa_gives_the_same_bits() {
        let x = sweep();
        for which in 0..4 {
            let portable = bits(&function(Isa::PORTABLE, which, &x));
            for isa in Isa::available() {
                assert_eq!(bits(&function(isa, which, &x)), portable, "{which}, {isa:?}");
            }
        }
    }
}

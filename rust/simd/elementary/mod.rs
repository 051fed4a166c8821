//! Exponentials and what is made of them, in `f32`; the curves of MLPs and their slopes.
//!
//! Additions, products, fused products and divisions, in the order that is written, so the results are the same bits
//! everywhere (but for which NaN it is). The coefficients are minimax fits of our own, by Lawson's iteration on
//! Chebyshev nodes, each rounded to `f32` before the next ones were fitted again. An *ulp* is the distance of two
//! floats around the true value; bounds are above the greatest error seen on all 2³² floats, against `f64`.
//!
//! NaN gives NaN, everywhere.

mod curve;

pub use curve::{Curve, apply, slope};

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

/// `−x`
#[inline(always)]
fn negated<V: Vector>(x: V) -> V {
    V::splat(0.0).sub(x)
}

/// Held to `[low, high]`; NaN stays.
#[inline(always)]
fn held<V: Vector>(x: V, low: f32, high: f32) -> V {
    V::splat(high).min(V::splat(low).max(x))
}

/// `n`, `f` and `q` with `e^x = 2^n (1 + f q)`, of `|x| ≤ 89`: `n` is the integer nearest to `x / ln 2`, give or take
/// the product's rounding, and `f = x − n ln 2`, in `[−0.3468, 0.3468]`.
///
/// `ln 2` is the nearest float and what that lacks: the first product is fused and takes away all but bits that a float
/// holds. `q` is of degree 5, `q(0) = 1`, and within 1.4e-8 of `(e^f − 1) / f` relatively.
#[inline(always)]
fn reduced<V: Vector>(x: V) -> (V, V, V) {
    const HIGH: f32 = std::f32::consts::LN_2;
    const LOW: f32 = -1.904_654_3e-9;
    let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
    let f = n.mul_add(V::splat(-LOW), n.mul_add(V::splat(-HIGH), x));
    let q = [1.387_067_8e-3, 8.366_265e-3, 4.166_743_5e-2, 0.166_665_46, 0.499_999_97, 1.0];
    (n, f, polynomial(f, q))
}

/// `e^x`, to within 0.92 ulp where that is a normal float: `x` in `[−87.33654, 88.72283]`. 0 below, −∞ too, and held to
/// `e^88.72283` = 3.4028e38 above, +∞ too.
///
/// `n` is in `[−126, 128]`, and no float is `2^128`: the last doubling is of `1 + f q`.
#[inline(always)]
pub fn exp<V: Vector>(x: V) -> V {
    // The least float not below −126 ln 2, and the greatest whose power is finite.
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.722_83;
    let (n, f, q) = reduced(held(x, LOWEST, HIGHEST));
    let power = f.mul_add(q, V::splat(1.0));
    let most = V::splat(127.0).min(n);
    let power = power.mul_add(n.sub(most), power).mul(most.power_of_two());
    V::splat(0.0).where_or(x.less(V::splat(LOWEST)), power)
}

/// [`sigmoid`] of `x` and of `−x`, which add up to one, each with small relative error.
#[inline(always)]
fn sigmoids<V: Vector>(x: V) -> (V, V) {
    let one = V::splat(1.0);
    let power = exp(negated(x.abs()));
    let (sum, negative) = (one.add(power), x.less(V::splat(0.0)));
    (power.where_or(negative, one).div(sum), one.where_or(negative, power).div(sum))
}

/// `1 / (1 + e^−x)`, to within 2.5 ulp; 0 below −87.33654, −∞ too; 1 from 17 on, +∞ too.
///
/// With `p = e^−|x|`, it is `1 / (1 + p)` or, for negative `x`, `p / (1 + p)`: nothing overflows or cancels.
#[inline(always)]
pub fn sigmoid<V: Vector>(x: V) -> V {
    sigmoids(x).0
}

/// `tanh x`, to within 2.7 ulp, at 0 too; odd (0 for −0), ±1 from ±10 on.
///
/// `tanh |x| = −m / (2 + m)` with `m = e^−2|x| − 1 = 2^n f q + (2^n − 1)`, in [`exp`]'s terms: around 0 `n` is 0
/// and `m = f q`.
#[inline(always)]
pub fn tanh<V: Vector>(x: V) -> V {
    let (one, two) = (V::splat(1.0), V::splat(2.0));
    let double = V::splat(10.0).min(x.abs()).mul(V::splat(-2.0));
    let (n, f, q) = reduced(double);
    let scale = n.power_of_two();
    let less_one = scale.mul_add(f.mul(q), scale.sub(one));
    less_one.where_or(x.less(V::splat(0.0)), negated(less_one)).div(two.add(less_one))
}

/// `1 − Φ(|x|)`, the upper tail of a standard normal, and `e^(−x²/2)`, to within 7.1 and 1.4 ulp up to `|x|` = 13.2
/// and 0 from there on.
///
/// The tail is `e^(−x²/2) P(|x|) / Q(|x|)`, of degrees 4 and 5, within 1.1e-8 relatively; all coefficients are
/// positive, so nothing cancels, and the tail is ½ at 0. What rounding took from the square, `l`, is made good by a
/// factor `1 − l/2`.
#[inline(always)]
fn tail<V: Vector>(x: V) -> (V, V) {
    let p = [3.990_838e-3, 3.979_924_3e-2, 0.180_777_07, 0.435_000_84, 0.5];
    let q = [1.000_340_1e-2, 9.976_943e-2, 0.462_976_3, 1.192_331_6, 1.667_886_5, 1.0];
    let (x, half) = (V::splat(14.0).min(x.abs()), V::splat(-0.5));
    let square = x.mul(x);
    let lacks = x.mul_add(x, negated(square));
    let power = exp(square.mul(half));
    let power = lacks.mul(half).mul_add(power, power);
    (power.mul(polynomial(x, p).div(polynomial(x, q))), power)
}

/// `Φ(x)`, the share of a standard normal below `x`, and `e^(−x²/2)`; 0 below −13.2.
#[inline(always)]
fn normal<V: Vector>(x: V) -> (V, V) {
    let (tail, power) = tail(x);
    (tail.where_or(x.less(V::splat(0.0)), V::splat(1.0).sub(tail)), power)
}

/// `erf x`, to within 1.4e-7 absolutely and 2.3 ulp; odd (0 for −0), ±1 from ±4 on.
///
/// `|x| + |x| s(x²)` below ¾, `s` of degree 5 and the sum within 1.7e-9 relatively; from there on
/// `1 − 2 (1 − Φ(√2 |x|))`.
#[inline(always)]
pub fn erf<V: Vector>(x: V) -> V {
    let s = [-6.737_584e-4, 5.113_157e-3, -2.683_433_5e-2, 0.112_833_79, -0.376_126_2, 0.128_379_17];
    let size = x.abs();
    let near = size.mul_add(polynomial(size.mul(size), s), size);
    let (tail, _) = tail(size.mul(V::splat(std::f32::consts::SQRT_2)));
    let far = tail.mul_add(V::splat(-2.0), V::splat(1.0));
    let size = near.where_or(size.less(V::splat(0.75)), far);
    negated(size).where_or(x.less(V::splat(0.0)), size)
}

kernel! {
    /// `x_i = e^(x_i − max)`, as [`exp`] gives it of the rounded difference; NaN where both are infinite alike.
    pub fn exp_minus<V: Vector>(x: &mut [f32], max: f32) {
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
    /// `x_i = cap · tanh(x_i / cap)`, as [`tanh`] gives it of the rounded quotient.
    pub fn soft_cap<V: Vector>(x: &mut [f32], cap: f32) {
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
#[expect(clippy::disallowed_methods, reason = "the system's library is what ours is compared with")]
mod tests {
    use std::f64::consts::PI;

    use super::super::Isa;
    use super::super::vector::Column;
    use super::*;

    /// Floats of all exponents and both signs, 0, ±∞ and NaN among them, and a fine grid of `[−100, 100]`.
    pub(super) fn sweep() -> Vec<f32> {
        let all = (0..=u32::MAX).step_by(16_385).map(f32::from_bits);
        let grid = (-100_000_i32..=100_000).map(|step| step as f32 / 1000.0);
        let ends = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0, f32::MAX, f32::MIN, f32::from_bits(1)];
        all.chain(grid).chain(ends).collect()
    }

    /// The bits of floats; all that is no number alike.
    pub(super) fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }).collect()
    }

    /// `erf x` and `1 − erf x` of `x ≥ 0`: the series of the one below 2, the continued fraction of the other from
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
        fn lanes<V: Vector>(which: usize, x: &[Column]) -> Vec<Column> {
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
    fn functions_are_as_close_as_they_say() {
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
    fn functions_end_as_they_say() {
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
    fn every_level_gives_the_same_bits() {
        let x = sweep();
        for which in 0..4 {
            let portable = bits(&function(Isa::PORTABLE, which, &x));
            for isa in Isa::available() {
                assert_eq!(bits(&function(isa, which, &x)), portable, "{which}, {isa:?}");
            }
        }
    }
}

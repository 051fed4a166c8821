//! The activations of MLPs and their derivatives.

use super::super::kernel;
use super::super::vector::{BAND_ROWS, Vector};
use super::{clamp_to, normal, polynomial, sigmoid, sigmoids};

/// The activation of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^−x)`
    Silu,
    /// `x Φ(x) = ½ x (1 + erf(x / √2))`
    Gelu,
    /// `½ x (1 + tanh u) = x / (1 + e^−2u)` with `u = √(2/π) (x + 0.044715 x³)`
    GeluTanh,
    /// `x / (1 + e^(−1.702 x))`
    QuickGelu,
    /// `max(x, 0)`
    Relu,
    /// `max(x, 0)²`
    Relu2,
}

/// A formula and its derivative.
///
/// The smooth ones clamp `x` to −100 from below, where all of them are −0, and for the derivative to 100 from above, where it is
/// 1: this avoids `∞ · 0`.
trait Formula {
    fn value<V: Vector>(x: V) -> V;
    fn slope<V: Vector>(x: V) -> V;
}

/// The magnitude from which on the smooth activations are linear.
const FAR: f32 = 100.0;

struct Silu;

impl Formula for Silu {
    #[inline(always)]
    fn value<V: Vector>(x: V) -> V {
        let x = V::splat(-FAR).max(x);
        x.mul(sigmoid(x))
    }
    #[inline(always)]
    fn slope<V: Vector>(x: V) -> V {
        let x = clamp_to(x, -FAR, FAR);
        let (share, rest) = sigmoids(x);
        share.mul(rest).mul_add(x, share)
    }
}

struct Gelu;

impl Formula for Gelu {
    #[inline(always)]
    fn value<V: Vector>(x: V) -> V {
        let x = V::splat(-FAR).max(x);
        x.mul(normal(x).0)
    }
    #[inline(always)]
    fn slope<V: Vector>(x: V) -> V {
        /// `1 / √(2π)`
        const PEAK: f32 = 0.398_942_3;
        let x = clamp_to(x, -FAR, FAR);
        let (share, power) = normal(x);
        power.mul(V::splat(PEAK)).mul_add(x, share)
    }
}

struct GeluTanh;

impl GeluTanh {
    /// `2 √(2/π)`
    const LINEAR: f32 = 1.595_769_2;
    /// `2 √(2/π) · 0.044715`
    const CUBIC: f32 = 0.071_354_814;
}

impl Formula for GeluTanh {
    #[inline(always)]
    fn value<V: Vector>(x: V) -> V {
        let x = V::splat(-FAR).max(x);
        x.mul(sigmoid(x.mul(polynomial(x.mul(x), [Self::CUBIC, Self::LINEAR]))))
    }
    #[inline(always)]
    fn slope<V: Vector>(x: V) -> V {
        let x = clamp_to(x, -FAR, FAR);
        let square = x.mul(x);
        let (share, rest) = sigmoids(x.mul(polynomial(square, [Self::CUBIC, Self::LINEAR])));
        let inner = polynomial(square, [3.0 * Self::CUBIC, Self::LINEAR]);
        share.mul(rest).mul_add(x.mul(inner), share)
    }
}

struct QuickGelu;

impl QuickGelu {
    const STEEP: f32 = 1.702;
}

impl Formula for QuickGelu {
    #[inline(always)]
    fn value<V: Vector>(x: V) -> V {
        let x = V::splat(-FAR).max(x);
        x.mul(sigmoid(x.mul(V::splat(Self::STEEP))))
    }
    #[inline(always)]
    fn slope<V: Vector>(x: V) -> V {
        let steep = clamp_to(x, -FAR, FAR).mul(V::splat(Self::STEEP));
        let (share, rest) = sigmoids(steep);
        share.mul(rest).mul_add(steep, share)
    }
}

struct Relu;

impl Formula for Relu {
    #[inline(always)]
    fn value<V: Vector>(x: V) -> V {
        V::splat(0.0).max(x)
    }
    /// 0 at 0.
    #[inline(always)]
    fn slope<V: Vector>(x: V) -> V {
        V::splat(1.0).select(V::splat(0.0).lt(x), Self::value(x))
    }
}

struct Relu2;

impl Formula for Relu2 {
    #[inline(always)]
    fn value<V: Vector>(x: V) -> V {
        let x = Relu::value(x);
        x.mul(x)
    }
    #[inline(always)]
    fn slope<V: Vector>(x: V) -> V {
        let x = Relu::value(x);
        x.add(x)
    }
}

/// `y_i` from `x_i`: the formula's value, or its derivative. The last vector is padded with zeros.
#[inline(always)]
fn map<V: Vector, S: Formula, const SLOPE: bool>(x: &[f32], y: &mut [f32]) {
    #[inline(always)]
    fn at<V: Vector, S: Formula, const SLOPE: bool>(lanes: [f32; BAND_ROWS]) -> [f32; BAND_ROWS] {
        let x = V::load(lanes);
        if SLOPE { S::slope(x).store() } else { S::value(x).store() }
    }
    assert_eq!(x.len(), y.len(), "activation: as many results as arguments");
    let (whole, rest) = x.as_chunks::<BAND_ROWS>();
    let (results, rest_results) = y.as_chunks_mut::<BAND_ROWS>();
    for (&lanes, result) in whole.iter().zip(results) {
        *result = at::<V, S, SLOPE>(lanes);
    }
    let mut lanes = [0.0; BAND_ROWS];
    lanes[..rest.len()].copy_from_slice(rest);
    rest_results.copy_from_slice(&at::<V, S, SLOPE>(lanes)[..rest.len()]);
}

/// [`map`] of the activation's formula.
#[inline(always)]
fn map_activation<V: Vector, const SLOPE: bool>(act: Activation, x: &[f32], y: &mut [f32]) {
    match act {
        Activation::Silu => map::<V, Silu, SLOPE>(x, y),
        Activation::Gelu => map::<V, Gelu, SLOPE>(x, y),
        Activation::GeluTanh => map::<V, GeluTanh, SLOPE>(x, y),
        Activation::QuickGelu => map::<V, QuickGelu, SLOPE>(x, y),
        Activation::Relu => map::<V, Relu, SLOPE>(x, y),
        Activation::Relu2 => map::<V, Relu2, SLOPE>(x, y),
    }
}

kernel! {
    /// `y_i = act(x_i)`, to within 1.6e-7 of `|x_i|`; [`Activation::Relu`] is exact, [`Activation::Relu2`] is rounded once.
    ///
    /// The smooth ones keep their relative error small also for negative `x`, where results are small: 5e-7 for
    /// [`Activation::Silu`] and [`Activation::Gelu`], 1e-5 for the others, down to results of 1e-30.
    ///
    /// # Panics
    /// If `x` and `y` differ in length.
    pub(crate) fn apply<V: Simd>(act: Activation, x: &[f32], y: &mut [f32]) {
        map_activation::<V, false>(act, x, y);
    }
}

kernel! {
    /// `y_i = act'(x_i)`, the formula's derivative, to within 2.2e-7. Those of [`Activation::Relu`] and
    /// [`Activation::Relu2`] are exact, and 0 at 0.
    ///
    /// # Panics
    /// If `x` and `y` differ in length.
    pub(crate) fn slope<V: Simd>(act: Activation, x: &[f32], y: &mut [f32]) {
        map_activation::<V, true>(act, x, y);
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::{FRAC_1_SQRT_2, PI};

    use super::super::super::Isa;
    use super::super::tests::{areas, bits, logistic, sweep};
    use super::*;

    const ACTIVATIONS: [Activation; 6] = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::Relu2,
    ];

    fn values(isa: Isa, act: Activation, x: &[f32]) -> Vec<f32> {
        let mut y = vec![f32::NAN; x.len()];
        apply(isa, act, x, &mut y);
        y
    }

    fn slopes(isa: Isa, act: Activation, x: &[f32]) -> Vec<f32> {
        let mut y = vec![f32::NAN; x.len()];
        slope(isa, act, x, &mut y);
        y
    }

    /// The activations in `f64`.
    fn truth(act: Activation, x: f64) -> f64 {
        match act {
            Activation::Silu => x * logistic(x),
            Activation::Gelu if x < 0.0 => 0.5 * x * areas(-x * FRAC_1_SQRT_2).1,
            Activation::Gelu => x * (1.0 - 0.5 * areas(x * FRAC_1_SQRT_2).1),
            Activation::GeluTanh => x * logistic((8.0 / PI).sqrt() * (x + 0.044_715 * x * x * x)),
            Activation::QuickGelu => x * logistic(1.702 * x),
            Activation::Relu => x.max(0.0),
            Activation::Relu2 => x.max(0.0) * x.max(0.0),
        }
    }

    #[test]
    fn activations_are_as_accurate_as_documented() {
        let x: Vec<f32> = sweep().into_iter().filter(|x| x.abs() < 1e18).collect();
        for act in ACTIVATIONS {
            for (&x, y) in x.iter().zip(values(Isa::detect(), act, &x)) {
                let truth = truth(act, x.into());
                let bound = if act == Activation::Relu2 { truth } else { f64::from(x).abs() };
                assert!((f64::from(y) - truth).abs() <= 1.6e-7 * bound + 1e-45, "{act:?} {x} → {y}, not {truth}");
            }
        }
    }

    #[test]
    fn slopes_are_the_derivatives_of_the_activations() {
        const STEP: f64 = 1e-4;
        let x: Vec<f32> = (-20_000_i16..20_000).map(|step| (f32::from(step) + 0.5) / 1000.0).collect();
        for act in ACTIVATIONS {
            for (&x, y) in x.iter().zip(slopes(Isa::detect(), act, &x)) {
                let [up, down] = [STEP, -STEP].map(|step| truth(act, f64::from(x) + step));
                let difference = (up - down) / (2.0 * STEP);
                // The bound of the slope, and the error of the difference: STEP² / 6 times the third derivative.
                assert!((f64::from(y) - difference).abs() <= 2.2e-7 + 1e-8, "{act:?} {x} → {y}, not {difference}");
            }
        }
    }

    #[test]
    fn limits_of_activations_and_slopes_are_as_documented() {
        let isa = Isa::detect();
        for act in ACTIVATIONS {
            let low = [0.0, -0.0, -200.0, -1e38, f32::NEG_INFINITY];
            assert_eq!(values(isa, act, &low), [0.0; 5], "{act:?}");
            assert_eq!(slopes(isa, act, &low[2..]), [0.0; 3], "{act:?}");
            assert_eq!(values(isa, act, &[f32::INFINITY]), [f32::INFINITY], "{act:?}");
            assert!(values(isa, act, &[f32::NAN])[0].is_nan() && slopes(isa, act, &[f32::NAN])[0].is_nan());
            let high = [200.0, 1e38, f32::INFINITY];
            if act == Activation::Relu2 {
                assert_eq!(slopes(isa, act, &high), [400.0, 2e38, f32::INFINITY]);
            } else {
                assert_eq!(values(isa, act, &high), high, "{act:?}");
                assert_eq!(slopes(isa, act, &high), [1.0; 3], "{act:?}");
            }
        }
        for act in [Activation::Relu, Activation::Relu2] {
            assert_eq!(slopes(isa, act, &[0.0, -0.0, -1.0]), [0.0; 3]);
        }
    }

    #[test]
    fn every_isa_gives_the_same_bits_for_any_length() {
        let x = sweep();
        for act in ACTIVATIONS {
            for of in [values, slopes] {
                let expected = bits(&of(Isa::PORTABLE, act, &x));
                for isa in Isa::available() {
                    for length in (0..=40).chain([x.len()]) {
                        let from = x.len() - length;
                        assert_eq!(bits(&of(isa, act, &x[from..])), expected[from..], "{act:?} {length}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "as many results as arguments")]
    fn lengths_must_agree() {
        apply(Isa::PORTABLE, Activation::Silu, &[1.0], &mut []);
    }
}

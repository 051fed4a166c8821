//! The non-linearities of MLPs and their slopes.

use super::super::kernel;
use super::super::vector::{BAND_ROWS, Vector};
use super::{held, normal, polynomial, sigmoid, sigmoids};

/// The non-linearity of an MLP, by its formula.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
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

/// A curve's formula and its derivative.
///
/// The smooth ones hold `x` to −100 at least, where all of them are −0, and for the slope to 100 at most, where it is
/// 1: no `∞ · 0`.
trait Shape {
    fn value<V: Vector>(x: V) -> V;
    fn slope<V: Vector>(x: V) -> V;
}

/// Where the smooth curves are straight.
const FAR: f32 = 100.0;

struct Silu;

impl Shape for Silu {
    #[inline(always)]
    fn value<V: Vector>(x: V) -> V {
        let x = V::splat(-FAR).max(x);
        x.mul(sigmoid(x))
    }
    #[inline(always)]
    fn slope<V: Vector>(x: V) -> V {
        let x = held(x, -FAR, FAR);
        let (share, rest) = sigmoids(x);
        share.mul(rest).mul_add(x, share)
    }
}

struct Gelu;

impl Shape for Gelu {
    #[inline(always)]
    fn value<V: Vector>(x: V) -> V {
        let x = V::splat(-FAR).max(x);
        x.mul(normal(x).0)
    }
    #[inline(always)]
    fn slope<V: Vector>(x: V) -> V {
        /// `1 / √(2π)`
        const PEAK: f32 = 0.398_942_3;
        let x = held(x, -FAR, FAR);
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

impl Shape for GeluTanh {
    #[inline(always)]
    fn value<V: Vector>(x: V) -> V {
        let x = V::splat(-FAR).max(x);
        x.mul(sigmoid(x.mul(polynomial(x.mul(x), [Self::CUBIC, Self::LINEAR]))))
    }
    #[inline(always)]
    fn slope<V: Vector>(x: V) -> V {
        let x = held(x, -FAR, FAR);
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

impl Shape for QuickGelu {
    #[inline(always)]
    fn value<V: Vector>(x: V) -> V {
        let x = V::splat(-FAR).max(x);
        x.mul(sigmoid(x.mul(V::splat(Self::STEEP))))
    }
    #[inline(always)]
    fn slope<V: Vector>(x: V) -> V {
        let steep = held(x, -FAR, FAR).mul(V::splat(Self::STEEP));
        let (share, rest) = sigmoids(steep);
        share.mul(rest).mul_add(steep, share)
    }
}

struct Relu;

impl Shape for Relu {
    #[inline(always)]
    fn value<V: Vector>(x: V) -> V {
        V::splat(0.0).max(x)
    }
    /// 0 at 0.
    #[inline(always)]
    fn slope<V: Vector>(x: V) -> V {
        V::splat(1.0).where_or(V::splat(0.0).less(x), Self::value(x))
    }
}

struct Relu2;

impl Shape for Relu2 {
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

/// `y_i` from `x_i`: the shape's value, or its slope. What is left over of a vector is filled up with zeros.
#[inline(always)]
fn map<V: Vector, S: Shape, const SLOPE: bool>(x: &[f32], y: &mut [f32]) {
    #[inline(always)]
    fn at<V: Vector, S: Shape, const SLOPE: bool>(lanes: [f32; BAND_ROWS]) -> [f32; BAND_ROWS] {
        let x = V::load(lanes);
        if SLOPE { S::slope(x).store() } else { S::value(x).store() }
    }
    assert_eq!(x.len(), y.len(), "elementary: as many results as arguments");
    let (whole, rest) = x.as_chunks::<BAND_ROWS>();
    let (results, rest_results) = y.as_chunks_mut::<BAND_ROWS>();
    for (&lanes, result) in whole.iter().zip(results) {
        *result = at::<V, S, SLOPE>(lanes);
    }
    let mut lanes = [0.0; BAND_ROWS];
    lanes[..rest.len()].copy_from_slice(rest);
    rest_results.copy_from_slice(&at::<V, S, SLOPE>(lanes)[..rest.len()]);
}

/// [`map`] of the curve's shape.
#[inline(always)]
fn along<V: Vector, const SLOPE: bool>(curve: Curve, x: &[f32], y: &mut [f32]) {
    match curve {
        Curve::Silu => map::<V, Silu, SLOPE>(x, y),
        Curve::Gelu => map::<V, Gelu, SLOPE>(x, y),
        Curve::GeluTanh => map::<V, GeluTanh, SLOPE>(x, y),
        Curve::QuickGelu => map::<V, QuickGelu, SLOPE>(x, y),
        Curve::Relu => map::<V, Relu, SLOPE>(x, y),
        Curve::Relu2 => map::<V, Relu2, SLOPE>(x, y),
    }
}

kernel! {
    /// `y_i = act(x_i)`, to within 1.6e-7 of `|x_i|`; [`Curve::Relu`] exact, [`Curve::Relu2`] rounded once.
    ///
    /// The smooth ones keep their relative error small to the left as well, where nearly nothing is left of `x`: 5e-7
    /// for [`Curve::Silu`] and [`Curve::Gelu`], 1e-5 for the others, down to results of 1e-30.
    ///
    /// # Panics
    /// If `x` and `y` differ in length.
    pub fn apply<V: Vector>(curve: Curve, x: &[f32], y: &mut [f32]) {
        along::<V, false>(curve, x, y);
    }
}

kernel! {
    /// `y_i = act'(x_i)`, the formula's derivative, to within 2.2e-7 absolutely. [`Curve::Relu`]'s and
    /// [`Curve::Relu2`]'s are exact, and 0 at 0.
    ///
    /// # Panics
    /// If `x` and `y` differ in length.
    pub fn slope<V: Vector>(curve: Curve, x: &[f32], y: &mut [f32]) {
        along::<V, true>(curve, x, y);
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::{FRAC_1_SQRT_2, PI};

    use super::super::super::Isa;
    use super::super::tests::{areas, bits, logistic, sweep};
    use super::*;

    const CURVES: [Curve; 6] = [Curve::Silu, Curve::Gelu, Curve::GeluTanh, Curve::QuickGelu, Curve::Relu, Curve::Relu2];

    fn values(isa: Isa, curve: Curve, x: &[f32]) -> Vec<f32> {
        let mut y = vec![f32::NAN; x.len()];
        apply(isa, curve, x, &mut y);
        y
    }

    fn slopes(isa: Isa, curve: Curve, x: &[f32]) -> Vec<f32> {
        let mut y = vec![f32::NAN; x.len()];
        slope(isa, curve, x, &mut y);
        y
    }

    /// The curves in `f64`.
    fn truth(curve: Curve, x: f64) -> f64 {
        match curve {
            Curve::Silu => x * logistic(x),
            Curve::Gelu if x < 0.0 => 0.5 * x * areas(-x * FRAC_1_SQRT_2).1,
            Curve::Gelu => x * (1.0 - 0.5 * areas(x * FRAC_1_SQRT_2).1),
            Curve::GeluTanh => x * logistic((8.0 / PI).sqrt() * (x + 0.044_715 * x * x * x)),
            Curve::QuickGelu => x * logistic(1.702 * x),
            Curve::Relu => x.max(0.0),
            Curve::Relu2 => x.max(0.0) * x.max(0.0),
        }
    }

    #[test]
    fn curves_are_as_close_as_they_say() {
        let x: Vec<f32> = sweep().into_iter().filter(|x| x.abs() < 1e18).collect();
        for curve in CURVES {
            for (&x, y) in x.iter().zip(values(Isa::detect(), curve, &x)) {
                let truth = truth(curve, x.into());
                let bound = if curve == Curve::Relu2 { truth } else { f64::from(x).abs() };
                assert!((f64::from(y) - truth).abs() <= 1.6e-7 * bound + 1e-45, "{curve:?} {x} → {y}, not {truth}");
            }
        }
    }

    #[test]
    fn slopes_are_those_of_the_curves() {
        const STEP: f64 = 1e-4;
        let x: Vec<f32> = (-20_000_i16..20_000).map(|step| (f32::from(step) + 0.5) / 1000.0).collect();
        for curve in CURVES {
            for (&x, y) in x.iter().zip(slopes(Isa::detect(), curve, &x)) {
                let [up, down] = [STEP, -STEP].map(|step| truth(curve, f64::from(x) + step));
                let difference = (up - down) / (2.0 * STEP);
                // The slope's own error and the difference's, a sixth of STEP² and of the third derivative.
                assert!((f64::from(y) - difference).abs() <= 2.2e-7 + 1e-8, "{curve:?} {x} → {y}, not {difference}");
            }
        }
    }

    #[test]
    fn curves_and_slopes_end_as_they_say() {
        let isa = Isa::detect();
        for curve in CURVES {
            let low = [0.0, -0.0, -200.0, -1e38, f32::NEG_INFINITY];
            assert_eq!(values(isa, curve, &low), [0.0; 5], "{curve:?}");
            assert_eq!(slopes(isa, curve, &low[2..]), [0.0; 3], "{curve:?}");
            assert_eq!(values(isa, curve, &[f32::INFINITY]), [f32::INFINITY], "{curve:?}");
            assert!(values(isa, curve, &[f32::NAN])[0].is_nan() && slopes(isa, curve, &[f32::NAN])[0].is_nan());
            let high = [200.0, 1e38, f32::INFINITY];
            if curve == Curve::Relu2 {
                assert_eq!(slopes(isa, curve, &high), [400.0, 2e38, f32::INFINITY]);
            } else {
                assert_eq!(values(isa, curve, &high), high, "{curve:?}");
                assert_eq!(slopes(isa, curve, &high), [1.0; 3], "{curve:?}");
            }
        }
        for curve in [Curve::Relu, Curve::Relu2] {
            assert_eq!(slopes(isa, curve, &[0.0, -0.0, -1.0]), [0.0; 3]);
        }
    }

    #[test]
    fn every_level_gives_the_same_bits_for_any_length() {
        let x = sweep();
        for curve in CURVES {
            for of in [values, slopes] {
                let expected = bits(&of(Isa::PORTABLE, curve, &x));
                for isa in Isa::available() {
                    for length in (0..=40).chain([x.len()]) {
                        let from = x.len() - length;
                        assert_eq!(bits(&of(isa, curve, &x[from..])), expected[from..], "{curve:?} {length}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "as many results as arguments")]
    fn lengths_must_agree() {
        apply(Isa::PORTABLE, Curve::Silu, &[1.0], &mut []);
    }
}

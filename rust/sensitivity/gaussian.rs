//! Second moments of the output of a non-linearity, for Gaussian inputs.
//!
//! `E[act(g)²]` for `g ~ N(0, s²)`, by the trapezoid rule: for a smooth function under a Gaussian it converges faster
//! than any power of the step.

use std::sync::LazyLock;

use crate::arch::Activation;
use crate::math::exp;

/// The value of `activation` at `x`. All forms of GELU take the tanh form: they differ by less than 5e-4.
#[must_use]
pub(crate) fn at(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + exp(-x)),
        Activation::QuickGelu => x / (1.0 + exp(-1.702 * x)),
        // ½ x (1 + tanh u) = x / (1 + e^−2u)
        Activation::Gelu | Activation::GeluTanh => {
            x / (1.0 + exp(-2.0 * 0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)))
        }
        Activation::Relu => x.max(0.0),
        Activation::Relu2 => x.max(0.0) * x.max(0.0),
    }
}

/// Steps of the trapezoid rule on either side, and their width in standard deviations.
const STEPS: i32 = 24;
const STEP: f64 = 0.25;

/// The points of the rule, each with the Gaussian density there up to a constant factor.
static POINTS: LazyLock<Vec<(f64, f64)>> =
    LazyLock::new(|| (-STEPS..=STEPS).map(|step| f64::from(step) * STEP).map(|x| (x, exp(-0.5 * x * x))).collect());

/// `E[act(g)²]` for a Gaussian `g` of mean 0 and variance `variance`.
#[must_use]
pub(crate) fn second_moment(activation: Activation, variance: f64) -> f64 {
    let deviation = variance.sqrt();
    let (mut sum, mut total) = (0.0, 0.0);
    for &(x, density) in POINTS.iter() {
        let value = at(activation, deviation * x);
        sum += density * value * value;
        total += density;
    }
    sum / total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_have_their_known_values() {
        // Half of a Gaussian's second moment, and half of its fourth.
        assert!((second_moment(Activation::Relu, 4.0) - 2.0).abs() < 1e-3);
        assert!((second_moment(Activation::Relu2, 2.0) / 6.0 - 1.0).abs() < 1e-3);
        for smooth in [Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
            // Large inputs see a ReLU.
            assert!((second_moment(smooth, 1e6) / 5e5 - 1.0).abs() < 1e-2, "{smooth:?}");
            // Small ones half the identity: E[(x/2)²].
            assert!((second_moment(smooth, 1e-6) / 0.25e-6 - 1.0).abs() < 1e-3, "{smooth:?}");
        }
        assert_eq!(second_moment(Activation::Silu, 0.0), 0.0);
    }
}

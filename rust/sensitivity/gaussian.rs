//! Second moments behind a non-linearity, for Gaussian inputs.
//!
//! `E[act(g)²]` for `g ~ N(0, s²)`, by the trapezoid rule: for a smooth function under a Gaussian it converges faster
//! than any power of the step.

use crate::math::exp;

/// The non-linearity of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^−x)`
    Silu,
    /// The tanh form of GELU, for all forms of it: they differ by less than 5e-4.
    Gelu,
    /// `max(x, 0)`
    Relu,
}

impl Activation {
    /// The one a configuration calls `name`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Self::Silu),
            "relu" => Some(Self::Relu),
            name if name.starts_with("gelu") || name == "quick_gelu" => Some(Self::Gelu),
            _ => None,
        }
    }

    /// Its value at `x`.
    #[must_use]
    pub fn at(self, x: f64) -> f64 {
        match self {
            Self::Silu => x / (1.0 + exp(-x)),
            // ½ x (1 + tanh u) = x / (1 + e^−2u)
            Self::Gelu => x / (1.0 + exp(-2.0 * 0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x))),
            Self::Relu => x.max(0.0),
        }
    }

    /// `E[act(g)²]` for a Gaussian `g` of mean 0 and variance `variance`.
    #[must_use]
    pub fn second_moment(self, variance: f64) -> f64 {
        const STEPS: i32 = 24;
        const STEP: f64 = 0.25;
        let deviation = variance.sqrt();
        let (mut sum, mut total) = (0.0, 0.0);
        for at in -STEPS..=STEPS {
            let x = f64::from(at) * STEP;
            let density = exp(-0.5 * x * x);
            let value = self.at(deviation * x);
            sum += density * value * value;
            total += density;
        }
        sum / total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_have_their_known_values() {
        // Half of a Gaussian's second moment.
        assert!((Activation::Relu.second_moment(4.0) - 2.0).abs() < 1e-3);
        // Large inputs see a ReLU.
        for smooth in [Activation::Silu, Activation::Gelu] {
            assert!((smooth.second_moment(1e6) / 5e5 - 1.0).abs() < 1e-2, "{smooth:?}");
        }
        // Small ones half the identity: E[(x/2)²].
        assert!((Activation::Silu.second_moment(1e-6) / 0.25e-6 - 1.0).abs() < 1e-3);
        assert!((Activation::Gelu.second_moment(1e-6) / 0.25e-6 - 1.0).abs() < 1e-3);
        assert_eq!(Activation::Silu.second_moment(0.0), 0.0);
    }

    #[test]
    fn an_unknown_activation_is_not_guessed() {
        assert_eq!(Activation::parse("gelu_pytorch_tanh"), Some(Activation::Gelu));
        assert_eq!(Activation::parse("silu"), Some(Activation::Silu));
        assert_eq!(Activation::parse("xielu"), None);
    }
}

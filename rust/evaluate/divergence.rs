//! The divergence of two distributions of the next token, from their logits.
//!
//! With `p` and `q` the softmax of the logits `a` and `b`, `δ = a − b` and `c = Σ p δ`:
//!
//! ```text
//! KL(p ‖ q) = c − ln Σ eᵃ + ln Σ eᵇ = ln Σ p e^(c − δ)
//! ```
//!
//! The first form is a difference of numbers that are nearly equal where `KL` is small. The second is not:
//! `Σ p e^(c − δ) = 1 + Σ p f(δ − c)` with `f(x) = e^−x − 1 + x`, which is nowhere negative.

use crate::checkpoint::stream::Pass;
use crate::error::Result;
use crate::math::ln;
use crate::simd::math::exp_minus;

/// Below this divergence, the second form is used. In larger ones, probabilities may be 0 in `f32` where the other
/// model's are not.
const SMALL: f64 = 0.1;

/// One position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scored {
    /// KL divergence, in nats.
    pub(super) kl: f64,
    /// Negative log-likelihood of the following token.
    pub(super) nll: f64,
    /// The same in the reference.
    pub(super) reference_nll: f64,
    /// Whether both models prefer the same token.
    pub(super) agrees: bool,
}

/// The logits of the reference at some positions, to compare others with.
pub(super) struct Scorer<'a> {
    pub(super) pass: Pass<'a>,
    pub(super) reference: &'a [f32],
    /// The token that follows each position.
    pub(super) following: &'a [u32],
}

impl Scorer<'_> {
    /// Compares `logits` of the same positions.
    pub(super) fn score(&self, logits: &[f32]) -> Result<Vec<Scored>> {
        let width = logits.len() / self.following.len().max(1);
        let pairs = self.reference.chunks_exact(width.max(1)).zip(logits.chunks_exact(width.max(1)));
        let rows: Vec<_> = pairs.zip(self.following.iter().copied()).collect();
        self.pass.workers.map(self.pass.progress, &rows, Buffers::default, |buffers, &((reference, model), next)| {
            Ok(self.scored(buffers, reference, model, next as usize))
        })
    }

    fn scored(&self, buffers: &mut Buffers, reference: &[f32], model: &[f32], next: usize) -> Scored {
        let Buffers { p, powers, differences } = buffers;
        let isa = self.pass.isa;
        let ((preferred, most), (other, other_most)) = (greatest(reference), greatest(model));
        p.clear();
        p.extend_from_slice(reference);
        exp_minus(isa, p, most);
        powers.clear();
        powers.extend_from_slice(model);
        exp_minus(isa, powers, other_most);
        let (sum, other_sum) = (total(p), total(powers));
        let (norm, other_norm) = (f64::from(most) + ln(sum), f64::from(other_most) + ln(other_sum));
        let weighted = |(p, (a, b)): (&f32, (&f32, &f32))| f64::from(*p) * (f64::from(*a) - f64::from(*b));
        let mean = p.iter().zip(reference.iter().zip(model)).map(weighted).sum::<f64>() / sum;
        let mut kl = mean - norm + other_norm;
        if kl < SMALL {
            // `powers` become e^(c − δ).
            for ((power, a), b) in powers.iter_mut().zip(reference).zip(model) {
                *power = (f64::from(*b) - f64::from(*a) + mean) as f32;
            }
            differences.clone_from(powers);
            exp_minus(isa, powers, 0.0);
            let terms = p.iter().zip(&*powers).zip(&*differences);
            let terms = terms.map(|((p, power), x)| f64::from(*p) * excess(f64::from(*power), -f64::from(*x)));
            kl = ln_1p(terms.sum::<f64>() / sum);
        }
        Scored {
            kl,
            nll: other_norm - f64::from(model[next]),
            reference_nll: norm - f64::from(reference[next]),
            agrees: preferred == other,
        }
    }
}

/// Buffers of a thread.
#[derive(Default)]
struct Buffers {
    p: Vec<f32>,
    powers: Vec<f32>,
    differences: Vec<f32>,
}

/// The greatest logit and its index; of equal ones the first.
fn greatest(logits: &[f32]) -> (usize, f32) {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (logits.iter().position(|&logit| logit == most).unwrap_or(0), most)
}

fn total(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value)).sum()
}

/// `1/8` to `1/3`.
const INVERSES: [f64; 6] = [1.0 / 8.0, 1.0 / 7.0, 1.0 / 6.0, 1.0 / 5.0, 1.0 / 4.0, 1.0 / 3.0];

/// `e^−x − 1 + x`, with `power` = `e^−x`.
fn excess(power: f64, x: f64) -> f64 {
    if x.abs() > 0.5 {
        return power - 1.0 + x;
    }
    // `x²/2 (1 − x/3 (1 − x/4 (…)))`. What is left out is below 10⁻⁷ of the sum.
    0.5 * x * x * INVERSES.iter().fold(1.0, |sum, inverse| 1.0 - x * sum * inverse)
}

/// `ln (1 + x)` for small `x`.
fn ln_1p(x: f64) -> f64 {
    let wide = 1.0 + x;
    // The rounding of 1 + x is undone by the quotient.
    if wide == 1.0 { x } else { ln(wide) * (x / (wide - 1.0)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::exp;

    #[test]
    fn the_series_joins_the_exponential() {
        for x in [-0.5, -0.4999, -0.1, -1e-3, 1e-9, 0.02, 0.3, 0.5, 0.5001, 2.0, -3.0] {
            let power = exp(-x);
            let expected = if f64::abs(x) < 1e-2 { x * x / 2.0 - x * x * x / 6.0 } else { power - 1.0 + x };
            assert!((excess(power, x) / expected - 1.0).abs() < 1e-6, "{x}");
        }
    }

    #[test]
    fn the_logarithm_near_one_is_exact() {
        for x in [0.0, 1e-18, 1e-9, 1e-3, 0.1] {
            let expected = x - x * x / 2.0 + x * x * x / 3.0 - x * x * x * x / 4.0;
            assert!((ln_1p(x) - expected).abs() <= x * x * x * x * x + 1e-15 * x, "{x}");
        }
    }

    #[test]
    fn of_equal_logits_the_first_is_preferred() {
        assert_eq!(greatest(&[1.0, 3.0, 3.0]), (1, 3.0));
    }
}

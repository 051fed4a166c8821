//! Norms, forward and back.
//!
//! `y = γ (x − μ) s + β` with `s = 1 / √(mean (x − μ)² + ε)`; `μ` is 0 where a norm does not centre (RMSNorm). Back, with
//! `x̂ = (x − μ) s` and `g = γ dy`: `dx = s (g − mean g − x̂ mean(g x̂))`, without `mean g` where it does not.

use super::Session;
use super::activations::Activations;
use crate::arch::conventions::NormKind;
use crate::arch::{Norm, ParameterVector};
use crate::error::{Error, Result};

/// A norm with its parameters read.
pub(super) struct NormLayer {
    /// Whether it subtracts the mean (LayerNorm), not only divides by the root mean square.
    centres: bool,
    epsilon: f64,
    /// Numbers that are normalised together: a row, or one head of it.
    span: usize,
    /// As long as a span or as a row.
    gain: Vec<f32>,
    shift: Vec<f32>,
}

impl NormLayer {
    /// Reads `norm`, of rows of `width`.
    pub(super) fn new(session: &Session<'_>, norm: Norm<'_>, width: usize) -> Result<Self> {
        let conventions = &session.model.conventions;
        let span = norm.weight.shape.last().map_or(0, |length| *length as usize);
        let length = norm.weight.elements() as usize;
        if span == 0 || !width.is_multiple_of(span) || (length != span && length != width) {
            let reason = format!("a norm of {length} in spans of {span} does not fit rows of {width}");
            return Err(Error::Scheme { tensor: norm.weight.name.clone(), reason });
        }
        let mut gain = session.elements(ParameterVector { tensor: norm.weight, at: 0 }, length)?;
        if norm.minus_one {
            for gain in &mut gain {
                *gain += 1.0;
            }
        }
        let shift = norm.bias.map(|tensor| session.elements(ParameterVector { tensor, at: 0 }, length)).transpose()?;
        let centres = conventions.norm == NormKind::Layer;
        Ok(Self {
            centres,
            epsilon: session.model.epsilon,
            span,
            shift: shift.unwrap_or_else(|| vec![0.0; gain.len()]),
            gain,
        })
    }

    /// `μ` and `s` of a span.
    fn centre(&self, x: &[f32]) -> (f32, f32) {
        let count = x.len() as f64;
        let mean = if self.centres { x.iter().map(|&x| f64::from(x)).sum::<f64>() / count } else { 0.0 };
        let square = |&x: &f32| (f64::from(x) - mean) * (f64::from(x) - mean);
        let variance = x.iter().map(square).sum::<f64>() / count;
        (mean as f32, (1.0 / (variance + self.epsilon).sqrt()) as f32)
    }

    /// The gains of span `at` of a row.
    fn of<'v>(&self, vector: &'v [f32], at: usize) -> &'v [f32] {
        &vector[at * self.span % vector.len()..][..self.span]
    }

    pub(super) fn forward(&self, session: &Session<'_>, x: &Activations) -> Result<Activations> {
        Activations::computed(session.pass, x.count(), x.width, |row, y| {
            for (at, (x, y)) in x.row(row).chunks_exact(self.span).zip(y.chunks_exact_mut(self.span)).enumerate() {
                let (mean, inverse) = self.centre(x);
                for (((y, x), gain), shift) in
                    y.iter_mut().zip(x).zip(self.of(&self.gain, at)).zip(self.of(&self.shift, at))
                {
                    *y = (x - mean) * inverse * gain + shift;
                }
            }
        })
    }

    /// Gradients at the norm's input `x`, from those at its output; for each row of `x` there may be several of these.
    pub(super) fn back(&self, session: &Session<'_>, x: &Activations, gradients: &Activations) -> Result<Activations> {
        Activations::computed(session.pass, gradients.count(), x.width, |row, out| {
            let x = x.row(row % x.count()).chunks_exact(self.span);
            let gradients = gradients.row(row).chunks_exact(self.span);
            for (at, ((x, gradients), out)) in x.zip(gradients).zip(out.chunks_exact_mut(self.span)).enumerate() {
                let (mean, inverse) = self.centre(x);
                let (mut sum, mut along) = (0.0, 0.0);
                for (((out, gradient), x), gain) in out.iter_mut().zip(gradients).zip(x).zip(self.of(&self.gain, at)) {
                    *out = gradient * gain;
                    sum += f64::from(*out);
                    along += f64::from(*out) * f64::from((x - mean) * inverse);
                }
                let sum = if self.centres { (sum / self.span as f64) as f32 } else { 0.0 };
                let along = (along / self.span as f64) as f32;
                for (out, x) in out.iter_mut().zip(x) {
                    *out = inverse * (*out - sum - (x - mean) * inverse * along);
                }
            }
        })
    }
}

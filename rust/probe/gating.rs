//! The non-linearity between the matrices of a feed-forward network, forward and back.

use super::activations::Activations;
use super::{LinearOutput, Session};
use crate::arch::conventions::Conventions;
use crate::arch::{Activation, Expansion};
use crate::checkpoint::stream::Pass;
use crate::error::Result;
use crate::simd::math::{apply, slope};

/// The non-linearity of a model's feed-forward networks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Gating {
    /// `act(up)`, or `act(gate) · up` where there is a gate.
    activation: Activation,
    /// With a limit, a gated network computes `g · σ(1.702 g) · (1 + u)` instead, `g = min(gate, limit)` and `u` = `up`
    /// clamped to `±limit`.
    limit: Option<f32>,
    /// Whether the outputs of a fused matrix alternate, gate first; otherwise all of the gate comes first.
    interleaved: bool,
}

impl Gating {
    pub(super) fn of(conventions: &Conventions) -> Self {
        let Conventions { activation, clamped_gate: limit, interleaved, .. } = *conventions;
        Self { activation, limit, interleaved }
    }

    /// Gate and up of the outputs of a fused matrix.
    fn split(self, fused: &Activations) -> [Activations; 2] {
        let half = fused.width / 2;
        if !self.interleaved {
            return [fused.columns(0, half), fused.columns(half, fused.width)];
        }
        [0, 1].map(|first| Activations {
            width: half,
            values: fused.values.iter().skip(first).step_by(2).copied().collect(),
        })
    }

    /// The input of the last matrix, from the outputs of the first ones.
    pub(super) fn forward(self, pass: Pass<'_>, first: &Expansion<LinearOutput<'_>>) -> Result<Activations> {
        match first {
            Expansion::Plain(up) => Activations::computed(pass, up.rows.count(), up.rows.width, |row, out| {
                apply(pass.isa, self.activation, up.rows.row(row), out);
            }),
            Expansion::Gated { gate, up } => self.gated(pass, &gate.rows, &up.rows),
            Expansion::FusedGated(both) => {
                let [gate, up] = self.split(&both.rows);
                self.gated(pass, &gate, &up)
            }
        }
    }

    fn gated(self, pass: Pass<'_>, gate: &Activations, up: &Activations) -> Result<Activations> {
        Activations::computed(pass, up.count(), up.width, |row, out| {
            let (gate, up) = (gate.row(row), up.row(row));
            if let Some(limit) = self.limit {
                let clamped: Vec<f32> = gate.iter().map(|gate| gate.min(limit)).collect();
                apply(pass.isa, Activation::QuickGelu, &clamped, out);
                out.iter_mut().zip(up).for_each(|(out, up)| *out *= 1.0 + up.clamp(-limit, limit));
            } else {
                apply(pass.isa, self.activation, gate, out);
                out.iter_mut().zip(up).for_each(|(out, up)| *out *= up);
            }
        })
    }

    /// Gradients at the outputs of the first matrices, from those at the input of the last one. For each row of outputs
    /// there may be several rows of gradients.
    pub(super) fn back<'a>(
        self,
        session: &Session<'_>,
        first: &Expansion<LinearOutput<'a>>,
        gradients: &Activations,
    ) -> Result<Expansion<LinearOutput<'a>>> {
        let pass = session.pass;
        Ok(match first {
            Expansion::Plain(up) => {
                let rows = Activations::computed(pass, gradients.count(), up.rows.width, |row, out| {
                    slope(pass.isa, self.activation, up.rows.row(row % up.rows.count()), out);
                    out.iter_mut().zip(gradients.row(row)).for_each(|(out, gradient)| *out *= gradient);
                })?;
                Expansion::Plain(LinearOutput { linear: up.linear, rows })
            }
            Expansion::Gated { gate, up } => {
                let both = self.gated_back(pass, &gate.rows, &up.rows, gradients)?;
                let half = up.rows.width;
                Expansion::Gated {
                    gate: LinearOutput { linear: gate.linear, rows: both.columns(0, half) },
                    up: LinearOutput { linear: up.linear, rows: both.columns(half, 2 * half) },
                }
            }
            Expansion::FusedGated(both) => {
                let [gate, up] = self.split(&both.rows);
                let mut rows = self.gated_back(pass, &gate, &up, gradients)?;
                if self.interleaved {
                    rows.interleave_halves();
                }
                Expansion::FusedGated(LinearOutput { linear: both.linear, rows })
            }
        })
    }

    /// Gradients at gate and up, side by side in one row.
    fn gated_back(
        self,
        pass: Pass<'_>,
        gate: &Activations,
        up: &Activations,
        gradients: &Activations,
    ) -> Result<Activations> {
        let width = up.width;
        Activations::computed(pass, gradients.count(), 2 * width, |row, out| {
            let (gate, up) = (gate.row(row % gate.count()), up.row(row % up.count()));
            let gradients = gradients.row(row);
            let (of_gate, of_up) = out.split_at_mut(width);
            if let Some(limit) = self.limit {
                let clamped: Vec<f32> = gate.iter().map(|gate| gate.min(limit)).collect();
                slope(pass.isa, Activation::QuickGelu, &clamped, of_gate);
                apply(pass.isa, Activation::QuickGelu, &clamped, of_up);
                for (at, gradient) in gradients.iter().enumerate() {
                    let other = 1.0 + up[at].clamp(-limit, limit);
                    of_gate[at] *= if gate[at] > limit { 0.0 } else { gradient * other };
                    of_up[at] *= if up[at].abs() > limit { 0.0 } else { *gradient };
                }
            } else {
                slope(pass.isa, self.activation, gate, of_gate);
                apply(pass.isa, self.activation, gate, of_up);
                for (at, gradient) in gradients.iter().enumerate() {
                    of_gate[at] *= gradient * up[at];
                    of_up[at] *= gradient;
                }
            }
        })
    }
}

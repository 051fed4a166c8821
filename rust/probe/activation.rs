//! Feed-forward networks between their matrices: what the non-linearity makes of gate and up, and back.

use super::Session;
use super::rows::Rows;
use crate::checkpoint::stream::Pass;
use crate::error::Result;
use crate::simd::math::{Activation, apply, slope};

/// What lies between the matrices of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Gating {
    /// `curve(up)`
    Plain(Activation),
    /// `curve(gate) · up`
    Gated(Activation),
    /// `g · σ(1.702 g) · (1 + u)` of `g` = `gate` held to at most the limit, and `u` = `up` held to both sides of it.
    Clamped(f32),
}

/// Gate, if there is one, and up: what the first matrices give.
#[derive(Clone, Debug)]
pub(super) struct Halves {
    pub(super) gate: Option<Rows>,
    pub(super) up: Rows,
}

impl Halves {
    /// Splits what a fused matrix gives: the gate first, or in turns.
    pub(super) fn split(fused: &Rows, alternating: bool) -> Self {
        let half = fused.width / 2;
        if !alternating {
            return Self { gate: Some(fused.columns(0, half)), up: fused.columns(half, fused.width) };
        }
        let every =
            |first: usize| Rows { width: half, values: fused.values.iter().skip(first).step_by(2).copied().collect() };
        Self { gate: Some(every(0)), up: every(1) }
    }

    /// The inverse of [`split`](Self::split).
    pub(super) fn fused(&self, alternating: bool) -> Rows {
        let Some(gate) = &self.gate else { return self.up.clone() };
        let mut fused = Rows { width: 2 * gate.width, values: Vec::with_capacity(2 * gate.values.len()) };
        for at in 0..gate.count() {
            let (gate, up) = (gate.row(at), self.up.row(at));
            if alternating {
                fused.values.extend(gate.iter().zip(up).flat_map(|(&gate, &up)| [gate, up]));
            } else {
                fused.values.extend_from_slice(gate);
                fused.values.extend_from_slice(up);
            }
        }
        fused
    }
}

impl Gating {
    /// What goes into the last matrix.
    pub(super) fn forward(self, pass: Pass<'_>, halves: &Halves) -> Result<Rows> {
        let Halves { gate, up } = halves;
        Rows::made(pass, up.count(), up.width, |row, out| {
            let up = up.row(row);
            match (self, gate) {
                (Self::Gated(curve), Some(gate)) => {
                    apply(pass.isa, curve, gate.row(row), out);
                    out.iter_mut().zip(up).for_each(|(out, up)| *out *= up);
                }
                (Self::Clamped(limit), Some(gate)) => {
                    let held: Vec<f32> = gate.row(row).iter().map(|gate| gate.min(limit)).collect();
                    apply(pass.isa, Activation::QuickGelu, &held, out);
                    out.iter_mut().zip(up).for_each(|(out, up)| *out *= 1.0 + up.clamp(-limit, limit));
                }
                (Self::Plain(curve) | Self::Gated(curve), _) => apply(pass.isa, curve, up, out),
                (Self::Clamped(_), None) => out.copy_from_slice(up),
            }
        })
    }

    /// Gradients at gate and up from those at what [`forward`](Self::forward) gives, several for each row.
    pub(super) fn back(self, session: &Session<'_>, halves: &Halves, gradients: &Rows) -> Result<Halves> {
        let (pass, width) = (session.pass, halves.up.width);
        let Halves { gate: Some(gate), up } = halves else {
            let Self::Plain(curve) = self else { return Ok(Halves { gate: None, up: gradients.clone() }) };
            let up = Rows::made(pass, gradients.count(), width, |row, out| {
                slope(pass.isa, curve, halves.up.row(row % halves.up.count()), out);
                out.iter_mut().zip(gradients.row(row)).for_each(|(out, gradient)| *out *= gradient);
            })?;
            return Ok(Halves { gate: None, up });
        };
        // Both in one row, for one walk.
        let both = Rows::made(pass, gradients.count(), 2 * width, |row, out| {
            let (gate, up) = (gate.row(row % gate.count()), up.row(row % up.count()));
            let gradients = gradients.row(row);
            let (of_gate, of_up) = out.split_at_mut(width);
            match self {
                Self::Clamped(limit) => {
                    let held: Vec<f32> = gate.iter().map(|gate| gate.min(limit)).collect();
                    slope(pass.isa, Activation::QuickGelu, &held, of_gate);
                    apply(pass.isa, Activation::QuickGelu, &held, of_up);
                    for (at, gradient) in gradients.iter().enumerate() {
                        let other = 1.0 + up[at].clamp(-limit, limit);
                        of_gate[at] *= if gate[at] > limit { 0.0 } else { gradient * other };
                        of_up[at] *= if up[at].abs() > limit { 0.0 } else { *gradient };
                    }
                }
                Self::Gated(curve) | Self::Plain(curve) => {
                    slope(pass.isa, curve, gate, of_gate);
                    apply(pass.isa, curve, gate, of_up);
                    for (at, gradient) in gradients.iter().enumerate() {
                        of_gate[at] *= gradient * up[at];
                        of_up[at] *= gradient;
                    }
                }
            }
        })?;
        Ok(Halves::split(&both, false))
    }
}

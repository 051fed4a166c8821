//! Sensitivity: how much an error in a weight costs, as two vectors for each matrix, from any source.
//!
//! The loss from storing matrix `W` in scheme `c` (`docs/method.md`, "The loss") is
//!
//! ```text
//! L(c) = ½ Σ_i Σ_j r_i k_j (ŵ_ij − w_ij)²
//! ```
//!
//! with the importance `k` of its input channels and the gain `r` of its output channels. It is additive over matrices,
//! and in nats per token if the source measures that. [`propagate`] derives the vectors from the weights without running the
//! model; [`from_probe`] takes them from a run on tokens of the model's own vocabulary; [`mod@file`] reads them from a file
//! of the documented schema.

pub(crate) mod file;
pub(crate) mod from_probe;
pub(crate) mod gaussian;
pub(crate) mod imatrix;
pub(crate) mod prior;
pub(crate) mod propagate;
pub(crate) mod table;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Matrix, Tensor, View};
use crate::name::Name;
use crate::pass::energy::DeadWeights;

/// Gain of the output channels of a matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Gain {
    /// The same for all.
    Same(f64),
    /// One each.
    Each(Arc<[f32]>),
}

impl Gain {
    /// The gain of output channel `row`.
    #[must_use]
    pub fn of(&self, row: usize) -> f64 {
        match self {
            Self::Same(gain) => *gain,
            Self::Each(gains) => f64::from(gains[row]),
        }
    }
}

/// The two vectors of one matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vectors {
    /// Importance of each input channel, none negative.
    pub importance: Arc<[f32]>,
    /// Gain of the output channels.
    pub gain: Gain,
}

/// The sensitivity of one matrix, and the energy of the matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MatrixSensitivity {
    /// Its vectors.
    pub vectors: Vectors,
    /// `½ Σ_ij r_i k_j w_ij²`: the loss from setting the whole matrix to zero.
    pub signal: f64,
    /// `Σ_ij w_ij²`
    pub energy: f64,
    /// Its weights that do nothing.
    pub dead: DeadWeights,
    /// The origin of the vectors, for the ledger.
    pub origin: Origin,
}

/// The origin of the vectors of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Second moments propagated through the weights.
    Propagated,
    /// The inputs are unknown: all channels have the same importance.
    Flat,
    /// The model run on tokens of its own vocabulary.
    Probe,
    /// A sensitivity file.
    File,
    /// The objective uses no sensitivity.
    Unweighted,
}

/// A matrix that may be quantized.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    /// The parsed name of the output tensor that it is in, alone or in a stack.
    pub name: &'a Name,
    /// Index of that tensor; candidates of one tensor are consecutive.
    pub target: usize,
    /// Its elements in the source.
    pub view: View,
    pub matrix: Matrix,
}

impl Candidate<'_> {
    /// The tensor of the checkpoint that holds it.
    #[must_use]
    pub(crate) fn tensor(self, checkpoint: &Checkpoint) -> &Tensor {
        &checkpoint.tensors[self.view.tensor]
    }
}

/// Number of layers of a model with these matrices.
fn layers(candidates: &[Candidate<'_>]) -> usize {
    candidates.iter().filter_map(|candidate| candidate.name.layer).max().map_or(0, |last| last + 1)
}

/// Divides the gain of the prior among the matrices of a stack: the prior is for the whole stack. How often each expert is
/// chosen is not known, so all matrices of the stack get the same gain.
fn share(candidates: &[Candidate<'_>], measured: &mut [MatrixSensitivity]) {
    let mut first = 0;
    for stack in candidates.chunk_by(|a, b| a.target == b.target) {
        let measured = &mut measured[first..first + stack.len()];
        first += stack.len();
        let from_prior = measured.iter().all(|one| matches!(one.vectors.gain, Gain::Same(_)));
        if stack.len() == 1 || !from_prior {
            continue;
        }
        let whole = measured.iter().map(|one| one.signal).fold(0.0, f64::max);
        let weighted = |one: &MatrixSensitivity| match one.vectors.gain {
            Gain::Same(gain) if gain > 0.0 => 2.0 * one.signal / gain,
            _ => 0.0,
        };
        let energies: Vec<f64> = measured.iter().map(weighted).collect();
        let total: f64 = energies.iter().sum();
        for (one, energy) in measured.iter_mut().zip(energies) {
            let gain = if total > 0.0 { 2.0 * whole / total } else { 0.0 };
            (one.vectors.gain, one.signal) = (Gain::Same(gain), 0.5 * gain * energy);
        }
    }
}

impl Origin {
    /// Doubt about the importance of the input channels, from 0 to 1: this share of the loss is the plain squared error
    /// (`docs/method.md`, "Hedging").
    #[must_use]
    pub fn doubt(self) -> f64 {
        match self {
            Self::Propagated => propagate::HEDGE,
            Self::Flat | Self::Probe | Self::File | Self::Unweighted => 0.0,
        }
    }
}

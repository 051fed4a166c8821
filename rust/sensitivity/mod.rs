//! How much an error in a weight matters: two vectors for each matrix, from any source.
//!
//! The loss a scheme `c` does to matrix `W` (`docs/method.md` §1) is
//!
//! ```text
//! L(c) = ½ Σ_i Σ_j r_i k_j (ŵ_ij − w_ij)²
//! ```
//!
//! with the importance `k` of its input channels and the gain `r` of its output channels. In nats per token, where the
//! source knows; additive over matrices. [`weights`] derives the vectors from the checkpoint without running it;
//! [`probed`] takes them from a run on tokens of the model's own vocabulary; [`mod@file`] reads them from a file of the
//! documented schema, whoever wrote it.

pub mod file;
pub mod gaussian;
pub mod given;
pub mod imatrix;
pub mod prior;
pub mod probed;
pub mod weights;

use std::sync::Arc;

use crate::checkpoint::{Matrix, Tensor};
use crate::name::Name;

/// The gain of a matrix's output channels.
#[derive(Clone, Debug, PartialEq)]
pub enum Gain {
    /// The same for all.
    Same(f64),
    /// One each.
    Each(Arc<[f32]>),
}

impl Gain {
    /// That of output channel `row`.
    #[must_use]
    pub fn of(&self, row: usize) -> f64 {
        match self {
            Self::Same(gain) => *gain,
            Self::Each(gains) => f64::from(gains[row]),
        }
    }
}

/// The sensitivity of one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Vectors {
    /// Importance of each input channel, none negative.
    pub k: Arc<[f32]>,
    /// Gain of the output channels.
    pub r: Gain,
}

/// The sensitivity of one matrix, and how much energy the matrix has by it.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Its sensitivity.
    pub vectors: Vectors,
    /// `½ Σ_ij r_i k_j w_ij²`: the loss that dropping the whole matrix would do.
    pub signal: f64,
    /// `Σ_ij w_ij²`
    pub energy: f64,
    /// Where the vectors come from, for the ledger.
    pub origin: Origin,
}

/// Where a matrix's vectors come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Second moments propagated through the weights.
    Propagated,
    /// Nothing is known of its inputs: all channels alike.
    Flat,
    /// The model run on tokens of its own vocabulary.
    Probe,
    /// A sensitivity file.
    File,
    /// The objective asks for none.
    Unweighted,
}

/// Layers of a model with these matrices.
fn layers(matrices: &[(&Tensor, Matrix)]) -> usize {
    matrices.iter().filter_map(|(tensor, _)| Name::parse(&tensor.name).layer).max().map_or(0, |last| last + 1)
}

impl Origin {
    /// How far the importance of the input channels is in doubt, from 0 to 1: this share of the loss is the plain
    /// squared error's (`docs/method.md`, "Hedging").
    #[must_use]
    pub fn doubt(self) -> f64 {
        match self {
            Self::Propagated => weights::DOUBT,
            Self::Flat | Self::Probe | Self::File | Self::Unweighted => 0.0,
        }
    }
}

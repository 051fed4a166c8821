//! An analysis: the rate–distortion curve of every matrix, good for any budget and policy.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Settings, SourceId, Tool};
use crate::checkpoint::Matrix;
use crate::dtype::{Dtype, Float};
use crate::error::Result;
use crate::name::Role;
use crate::scheme::Scheme;
use crate::sensitivity::Origin;

/// Version of the document.
pub const VERSION: u32 = 1;

/// The document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Analysis {
    /// [`VERSION`].
    pub ramrs_analysis: u32,
    /// Who made it.
    pub tool: Tool,
    /// Of what.
    pub source: SourceId,
    /// How.
    pub settings: Settings,
    /// The tensors that are written, in the order of the checkpoint.
    pub tensors: Vec<Tensor>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// A tensor of the source that is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Bytes of its data.
    pub bytes: u64,
    /// What it does.
    pub role: Role,
    /// In which layer.
    pub layer: Option<usize>,
    /// If no scheme exists for it, why.
    pub kept: Option<String>,
    /// If schemes exist for it, what they cost.
    pub curve: Option<Curve>,
}

/// What the schemes of a matrix cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// Matrices of one family get one scheme.
    pub family: String,
    /// Where its sensitivity is from.
    pub origin: Origin,
    /// Loss of dropping it whole, `½ Σ r k w²`.
    pub signal: f64,
    /// `Σ w²`
    pub energy: f64,
    /// The schemes, by growing size.
    pub points: Vec<Point>,
}

/// One scheme of a curve: `[scheme, loss, sqnr_db, standard_error]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The scheme.
    pub scheme: Scheme,
    /// Loss of the matrix, in the objective's unit.
    pub loss: f64,
    /// Signal over noise at the matrix's output, by its sensitivity, in decibels.
    pub sqnr_db: f64,
    /// Relative standard error of the loss: not 0 where only some rows were encoded.
    pub standard_error: f64,
}

impl Analysis {
    /// Reads one.
    ///
    /// # Errors
    /// As [`super::read`].
    pub fn read(path: &Path) -> Result<Self> {
        super::read(path, "analysis", ("ramrs_analysis", VERSION))
    }
}

impl Tensor {
    /// Its element type, if the format has it.
    #[must_use]
    pub fn dtype(&self) -> Option<Dtype> {
        Dtype::parse(&self.dtype)
    }

    /// Its shape as a matrix, if it is one of a float type that ramrs decodes.
    #[must_use]
    pub fn matrix(&self) -> Option<Matrix> {
        match (self.shape.as_slice(), Float::of(self.dtype()?)) {
            (&[rows, cols], Some(float)) => Some(Matrix { rows, cols, float }),
            _ => None,
        }
    }
}

impl Serialize for Point {
    fn serialize<S: serde::Serializer>(&self, out: S) -> std::result::Result<S::Ok, S::Error> {
        (self.scheme, self.loss, self.sqnr_db, self.standard_error).serialize(out)
    }
}

impl<'de> Deserialize<'de> for Point {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let (scheme, loss, sqnr_db, standard_error) = Deserialize::deserialize(from)?;
        Ok(Self { scheme, loss, sqnr_db, standard_error })
    }
}

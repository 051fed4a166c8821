//! The analysis: the rate–distortion curve of every matrix, valid for any budget and policy.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Document, Settings, SourceId, Tool};
use crate::band::Matrix;
use crate::codec::Scheme;
use crate::dtype::{Dtype, Float};
use crate::error::Result;
use crate::name::Role;
use crate::sensitivity::Origin;

/// Version of the analysis document.
pub(crate) const VERSION: u32 = 2;

/// The analysis document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Analysis {
    /// Version of the document's form.
    pub ramrs_analysis: u32,
    /// The tool that wrote the document.
    pub tool: Tool,
    /// The source checkpoint.
    pub source: SourceId,
    /// Settings of the analysis.
    pub settings: Settings,
    /// The tensors that are written, in checkpoint order.
    pub tensors: Vec<AnalyzedTensor>,
    /// Warnings.
    pub warnings: Vec<String>,
}

/// A tensor that is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnalyzedTensor {
    /// Name in the output.
    pub name: String,
    /// Element type if kept, as in safetensors.
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// The prequantized form that is passed through if the tensor is kept: `mxfp4` or `4gGROUP`. `None` for plain
    /// numbers.
    pub packed: Option<String>,
    /// Bytes stored if the tensor is kept.
    pub bytes: u64,
    /// Role of the tensor.
    pub role: Role,
    /// Index of the layer, if the tensor belongs to one.
    pub layer: Option<usize>,
    /// Names of its source tensors; empty if it has one source tensor of the same name.
    pub sources: Vec<String>,
    /// The reason why the tensor cannot be quantized, if it cannot.
    pub kept: Option<String>,
    /// The curve over the available schemes, if the tensor can be quantized.
    pub curve: Option<RdCurve>,
}

/// The rate–distortion curve of a matrix or a stack of matrices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RdCurve {
    /// Name of the fusion group. Tensors of one group share a scheme.
    pub family: String,
    /// Source of the sensitivity.
    pub origin: Origin,
    /// Loss if all weights were zero, `½ Σ r k w²`.
    pub signal: f64,
    /// Squared norm of the weights, `Σ w²`.
    pub energy: f64,
    /// Signal and energy of each matrix of a stack; empty for a single matrix.
    pub matrices: Vec<StackedEnergy>,
    /// The schemes, by increasing bytes.
    pub points: Vec<RdPoint>,
}

/// A matrix of a stack, in JSON `[signal, energy]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StackedEnergy {
    /// Loss if all its weights were zero, `½ Σ r k w²`.
    pub signal: f64,
    /// Squared norm of its weights, `Σ w²`.
    pub energy: f64,
}

/// One scheme of a curve, in JSON `[scheme, loss, sqnr_db, standard_error]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RdPoint {
    /// The scheme.
    pub scheme: Scheme,
    /// Loss in the unit of the objective.
    pub loss: f64,
    /// Signal-to-noise ratio at the matrix's output, weighted by its sensitivity, in decibels.
    pub sqnr_db: f64,
    /// Relative standard error of the loss; 0 if all rows were encoded.
    pub standard_error: f64,
}

impl Analysis {
    /// Reads an analysis from `path`.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if the content is not a valid analysis, [`Error::Io`](crate::Error::Io).
    pub fn read(path: &Path) -> Result<Self> {
        super::read(path)
    }
}

impl Document for Analysis {
    const WHAT: &'static str = "analysis";
    const VERSION: (&'static str, u32) = ("ramrs_analysis", VERSION);

    /// Checks sizes and losses: later arithmetic must not overflow, and losses must be comparable.
    fn check(&self) -> std::result::Result<(), String> {
        let mut total: u64 = 0;
        for tensor in &self.tensors {
            tensor.check().map_err(|reason| format!("tensor `{}`: {reason}", tensor.name))?;
            // Upper bound for every scheme: it stores at most the source's bytes, or 8 bits plus a scale and a bias per
            // 32 weights.
            total = tensor.bytes.checked_mul(16).and_then(|bytes| total.checked_add(bytes)).ok_or("it is too large")?;
        }
        Ok(())
    }
}

impl AnalyzedTensor {
    /// The element type; `None` if it is unknown.
    #[must_use]
    pub fn dtype(&self) -> Option<Dtype> {
        Dtype::parse(&self.dtype)
    }

    /// The scheme that is passed through if the tensor is kept.
    #[must_use]
    pub fn packed(&self) -> Option<Scheme> {
        self.packed.as_ref()?.parse().ok().filter(|form: &Scheme| !form.is_kept())
    }

    /// The curve's point for `scheme`, if there is one.
    #[must_use]
    pub fn point(&self, scheme: Scheme) -> Option<&RdPoint> {
        self.curve.as_ref()?.points.iter().find(|point| point.scheme == scheme)
    }

    /// Its own name and the names of its source tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        [&self.name].into_iter().chain(&self.sources).map(String::as_str)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let dtype = self.dtype().ok_or_else(|| format!("unknown dtype {}", self.dtype))?;
        let elements = self.shape.iter().try_fold(1_u64, |product, &length| product.checked_mul(length));
        let plain = elements.and_then(|elements| dtype.bytes(elements));
        let bytes = match (&self.packed, self.packed()) {
            (None, _) => plain,
            (Some(_), Some(packed)) => {
                // A prequantized form takes at most the bytes of plain numbers, so the product does not overflow.
                let matrix = plain.and_then(|_| self.matrix()).filter(|matrix| packed.fits(matrix.cols));
                matrix.map(|matrix| packed.stored_bytes(matrix))
            }
            (Some(packed), None) => return Err(format!("unknown form {packed}")),
        };
        if bytes != Some(self.bytes) {
            return Err(format!("{} {:?} is not {} bytes", self.dtype, self.shape, self.bytes));
        }
        let Some(curve) = &self.curve else { return Ok(()) };
        let matrix = self.matrix().ok_or("has a curve, but is not a matrix")?;
        for point in &curve.points {
            if !point.scheme.fits(matrix.cols) {
                return Err(format!("{} does not fit it", point.scheme));
            }
            if !(point.loss.is_finite() && point.loss >= 0.0 && point.standard_error.is_finite()) {
                return Err(format!("{} has a loss of {} ± {}", point.scheme, point.loss, point.standard_error));
            }
        }
        Ok(())
    }

    /// All rows as one matrix, for a matrix or a stack of matrices of a float type that ramrs decodes.
    #[must_use]
    pub fn matrix(&self) -> Option<Matrix> {
        let float = Float::of(self.dtype()?)?;
        match *self.shape.as_slice() {
            [rows, cols] => Some(Matrix { rows, cols, float }),
            [count, rows, cols] => Some(Matrix { rows: count.checked_mul(rows)?, cols, float }),
            _ => None,
        }
    }
}

impl Serialize for StackedEnergy {
    fn serialize<S: serde::Serializer>(&self, out: S) -> std::result::Result<S::Ok, S::Error> {
        (self.signal, self.energy).serialize(out)
    }
}

impl<'de> Deserialize<'de> for StackedEnergy {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let (signal, energy) = Deserialize::deserialize(from)?;
        Ok(Self { signal, energy })
    }
}

impl Serialize for RdPoint {
    fn serialize<S: serde::Serializer>(&self, out: S) -> std::result::Result<S::Ok, S::Error> {
        (self.scheme, self.loss, self.sqnr_db, self.standard_error).serialize(out)
    }
}

impl<'de> Deserialize<'de> for RdPoint {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let (scheme, loss, sqnr_db, standard_error) = Deserialize::deserialize(from)?;
        Ok(Self { scheme, loss, sqnr_db, standard_error })
    }
}

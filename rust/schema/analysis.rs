//! An analysis: the rate–distortion curve of every matrix, good for any budget and policy.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Document, Settings, SourceId, Tool};
use crate::band::Matrix;
use crate::codec::Scheme;
use crate::dtype::{Dtype, Float};
use crate::error::Result;
use crate::name::Role;
use crate::sensitivity::Origin;

/// Version of the document.
pub(crate) const VERSION: u32 = 2;

/// The document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Analysis {
    /// Version of the document's form.
    pub ramrs_analysis: u32,
    /// Who made it.
    pub tool: Tool,
    /// Of what.
    pub source: SourceId,
    /// How.
    pub settings: Settings,
    /// The tensors that are written, in the order of the checkpoint.
    pub tensors: Vec<AnalyzedTensor>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// A tensor that is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnalyzedTensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// The form in which it is kept, if not as plain numbers: `mxfp4` or `int4gGROUP`.
    pub packed: Option<String>,
    /// Bytes of it, if it is kept.
    pub bytes: u64,
    /// What it does.
    pub role: Role,
    /// In which layer.
    pub layer: Option<usize>,
    /// The tensors of the source that it is made of, if not the one of the same name.
    pub sources: Vec<String>,
    /// If no scheme exists for it, why.
    pub kept: Option<String>,
    /// If schemes exist for it, what they cost.
    pub curve: Option<RdCurve>,
}

/// What the schemes of a matrix cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RdCurve {
    /// Matrices of one family get one scheme.
    pub family: String,
    /// Where its sensitivity is from.
    pub origin: Origin,
    /// Loss of dropping it whole, `½ Σ r k w²`.
    pub signal: f64,
    /// `Σ w²`
    pub energy: f64,
    /// Of a stack, these two of each matrix.
    pub matrices: Vec<StackedEnergy>,
    /// The schemes, by growing size.
    pub points: Vec<RdPoint>,
}

/// A matrix of a stack: `[signal, energy]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StackedEnergy {
    /// Loss of dropping it whole.
    pub signal: f64,
    /// `Σ w²`
    pub energy: f64,
}

/// One scheme of a curve: `[scheme, loss, sqnr_db, standard_error]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RdPoint {
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
    /// [`Error::File`](crate::Error::File), [`Error::Io`](crate::Error::Io), and for sizes and losses that no analysis has.
    pub fn read(path: &Path) -> Result<Self> {
        super::read(path)
    }
}

impl Document for Analysis {
    const WHAT: &'static str = "analysis";
    const VERSION: (&'static str, u32) = ("ramrs_analysis", VERSION);

    /// What follows adds and multiplies sizes, and compares losses: here both are made sure of.
    fn check(&self) -> std::result::Result<(), String> {
        let mut total: u64 = 0;
        for tensor in &self.tensors {
            tensor.check().map_err(|reason| format!("tensor `{}`: {reason}", tensor.name))?;
            // No scheme stores more than the source, or than 8 bits and a scale and a bias for every 32 weights.
            total = tensor.bytes.checked_mul(16).and_then(|bytes| total.checked_add(bytes)).ok_or("it is too large")?;
        }
        Ok(())
    }
}

impl AnalyzedTensor {
    /// Its element type, if the format has it.
    #[must_use]
    pub fn dtype(&self) -> Option<Dtype> {
        Dtype::parse(&self.dtype)
    }

    /// The form in which it is kept.
    #[must_use]
    pub fn packed(&self) -> Option<Scheme> {
        self.packed.as_ref()?.parse().ok().filter(|form: &Scheme| !form.is_kept() && form.encoder().is_none())
    }

    /// What `scheme` costs, if it has a curve with it.
    #[must_use]
    pub fn point(&self, scheme: Scheme) -> Option<&RdPoint> {
        self.curve.as_ref()?.points.iter().find(|point| point.scheme == scheme)
    }

    /// Its names: its own, and those of what it is made of.
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
                // No form takes more than plain numbers, so nothing overflows.
                let matrix = plain.and_then(|_| self.matrix()).filter(|matrix| packed.fits(matrix.cols));
                matrix.map(|matrix| packed.stored_bytes(matrix))
            }
            (Some(packed), None) => return Err(format!("unknown form {packed}")),
        };
        if bytes != Some(self.bytes) {
            return Err(format!("{} {:?} is not {} bytes", self.dtype, self.shape, self.bytes));
        }
        let Some(curve) = &self.curve else { return Ok(()) };
        let matrix = self.matrix().ok_or("has a curve, and is no matrix")?;
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

    /// All its rows as a matrix, if it is one or a stack of them, of a float type that ramrs decodes.
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

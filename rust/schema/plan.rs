//! The plan: a scheme for every tensor, and the resulting sizes and loss. The schemes may be edited by hand.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Document, Settings, SourceId, Tool};
use crate::codec::Scheme;
use crate::digest::Digest;
use crate::error::Result;
use crate::name::Role;
use crate::policy::PolicyOptions;

/// Version of the plan document.
pub(crate) const VERSION: u32 = 1;

/// The plan document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of the document's form.
    pub ramrs_plan: u32,
    /// The tool that wrote the document.
    pub tool: Tool,
    /// The source checkpoint.
    pub source: SourceId,
    /// Settings of the analysis.
    pub settings: Settings,
    /// Limits on the schemes.
    pub policy: PolicyOptions,
    /// The requested budget, as text; `None` for a uniform scheme.
    pub budget: Option<String>,
    /// Sizes and losses of the plan.
    pub totals: Totals,
    /// Sizes and losses of other plans from the same curves, by increasing size.
    pub trade_off: Vec<Size>,
    /// SHA-256 of the tensors' names and schemes, to detect edits.
    pub schemes_sha256: String,
    /// The tensors that are written, in checkpoint order.
    pub tensors: Vec<PlannedTensor>,
    /// Warnings.
    pub warnings: Vec<String>,
}

/// Sizes and losses of a plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Bytes of tensor data.
    pub tensor_bytes: u64,
    /// Bytes of all weight files.
    pub file_bytes: u64,
    /// The budget in bytes, for tensor data or for weight files according to its unit.
    pub budget_bytes: Option<u64>,
    /// Effective bits per weight: 8 × tensor bytes ÷ weights of the source.
    pub effective_bpw: f64,
    /// Bits per weight of codes and kept tensors alone, without scales and biases.
    pub payload_bpw: f64,
    /// Loss in the unit of the objective.
    pub loss: f64,
    /// Lower bound on the loss of every plan of at most this size from the same curves.
    pub lower_bound: Option<f64>,
    /// The best uniform scheme within the budget.
    pub best_uniform: Option<Uniform>,
}

/// A plan with one scheme for all matrices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uniform {
    /// The scheme.
    pub scheme: Scheme,
    /// Loss in the unit of the objective.
    pub loss: f64,
    /// Whether it is the plan, because no better allocation was found.
    pub is_the_plan: bool,
}

/// A possible size and its loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Effective bits per weight: 8 × tensor bytes ÷ weights of the source.
    pub effective_bpw: f64,
    /// Bytes of tensor data.
    pub tensor_bytes: u64,
    /// Loss in the unit of the objective.
    pub loss: f64,
}

/// The scheme of a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedTensor {
    /// Name in the output.
    pub name: String,
    /// Role of the tensor.
    pub role: Role,
    /// Index of the layer, if the tensor belongs to one.
    pub layer: Option<usize>,
    /// The scheme.
    pub scheme: Scheme,
    /// Bytes that are stored.
    pub bytes: u64,
    /// Loss in the unit of the objective.
    pub loss: f64,
    /// Signal-to-noise ratio at the matrix's output, in decibels; `None` if kept.
    pub sqnr_db: Option<f64>,
    /// The reason for the scheme.
    pub why: String,
}

/// SHA-256 of the names and schemes of `tensors`.
#[must_use]
pub(crate) fn schemes_digest(tensors: &[PlannedTensor]) -> String {
    let mut digest = Digest::default();
    for tensor in tensors {
        digest.text(&tensor.name);
        digest.text(&tensor.scheme.to_string());
    }
    digest.finish()
}

impl Plan {
    /// Reads a plan from `path`.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if the content is not a plan, [`Error::Io`](crate::Error::Io).
    pub fn read(path: &Path) -> Result<Self> {
        super::read(path)
    }
}

impl Document for Plan {
    const WHAT: &'static str = "plan";
    const VERSION: (&'static str, u32) = ("ramrs_plan", VERSION);
}

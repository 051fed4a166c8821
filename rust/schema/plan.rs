//! A plan: which scheme every matrix gets, and what that amounts to. Edit the schemes, and it is your plan.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Document, Settings, SourceId, Tool};
use crate::codec::Scheme;
use crate::digest::Digest;
use crate::error::Result;
use crate::name::Role;
use crate::policy::PolicyOptions;

/// Version of the document.
pub(crate) const VERSION: u32 = 1;

/// The document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of the document's form.
    pub ramrs_plan: u32,
    /// Who made it.
    pub tool: Tool,
    /// Of what.
    pub source: SourceId,
    /// How.
    pub settings: Settings,
    /// Within what limits.
    pub policy: PolicyOptions,
    /// The budget, as it was asked for; none if a uniform scheme was.
    pub budget: Option<String>,
    /// What it amounts to.
    pub totals: Totals,
    /// Sizes and losses of other plans from the same curves, from the smallest to the largest.
    pub trade_off: Vec<Size>,
    /// SHA-256 of the tensors' names and schemes, by which an edit is noticed.
    pub schemes_sha256: String,
    /// The tensors that are written, in the order of the checkpoint.
    pub tensors: Vec<PlannedTensor>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// What a plan amounts to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Bytes of all tensor data.
    pub tensor_bytes: u64,
    /// Bytes of all files of weights.
    pub file_bytes: u64,
    /// The limit that the budget sets on one of these, in bytes.
    pub budget_bytes: Option<u64>,
    /// 8 × tensor bytes ÷ weights of the source.
    pub effective_bpw: f64,
    /// The same, of the codes (and of what is kept) alone.
    pub payload_bpw: f64,
    /// Loss, by the objective.
    pub loss: f64,
    /// No plan of this size from these curves has less loss.
    pub lower_bound: Option<f64>,
    /// The best that one scheme for all matrices would do within the budget.
    pub best_uniform: Option<Uniform>,
}

/// One scheme for all matrices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uniform {
    /// The scheme.
    pub scheme: Scheme,
    /// Its loss.
    pub loss: f64,
    /// Whether it is the plan, because nothing better was found.
    pub is_the_plan: bool,
}

/// A size that could be had, and its loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// 8 × tensor bytes ÷ weights of the source.
    pub effective_bpw: f64,
    /// Bytes of all tensor data.
    pub tensor_bytes: u64,
    /// Loss, by the objective.
    pub loss: f64,
}

/// A tensor of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedTensor {
    /// Its name.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// In which layer.
    pub layer: Option<usize>,
    /// What it gets.
    pub scheme: Scheme,
    /// Bytes of what is stored for it.
    pub bytes: u64,
    /// Loss, by the objective.
    pub loss: f64,
    /// Signal over noise at its output, in decibels; none if kept.
    pub sqnr_db: Option<f64>,
    /// Why.
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
    /// Reads one.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) for anything that is no such document, [`Error::Io`](crate::Error::Io).
    pub fn read(path: &Path) -> Result<Self> {
        super::read(path)
    }
}

impl Document for Plan {
    const WHAT: &'static str = "plan";
    const VERSION: (&'static str, u32) = ("ramrs_plan", VERSION);
}

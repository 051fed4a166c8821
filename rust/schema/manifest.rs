//! The manifest: records which bytes were read and written, so that an output can be verified.
//!
//! It does not depend on the machine, the time or the paths: equal input and options give an equal manifest.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::plan::Totals;
use super::{Document, Settings, SourceId, Tool};
use crate::codec::Scheme;
use crate::error::Result;
use crate::evaluate::{Estimate, TokenOrigin};
use crate::name::Role;
use crate::policy::PolicyOptions;
use crate::sensitivity::Origin;

/// Version of the manifest document.
pub(crate) const VERSION: u32 = 2;

/// File name in the output directory.
pub(crate) const FILE_NAME: &str = "ramrs-manifest.json";

/// The manifest document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the document's form.
    pub ramrs_manifest: u32,
    /// The tool that wrote the document.
    pub tool: Tool,
    /// The source checkpoint.
    pub source: SourceId,
    /// Digests of the source files that were read.
    pub source_files: Vec<FileDigest>,
    /// Settings of the analysis.
    pub settings: Settings,
    /// Limits on the schemes.
    pub policy: PolicyOptions,
    /// The requested budget, as text.
    pub budget: Option<String>,
    /// Sizes and losses of the plan.
    pub totals: Totals,
    /// One line for every tensor of the source.
    pub ledger: Vec<LedgerLine>,
    /// Digest of every stored tensor.
    pub tensors: Vec<TensorDigest>,
    /// Digest of every file except this one.
    pub files: Vec<FileDigest>,
    /// Files of the source that were not copied, with the reason.
    pub left_out: Vec<LeftOut>,
    /// Warnings.
    pub warnings: Vec<String>,
    /// What the output computes, measured against the source; `None` if that was not checked.
    #[serde(default)]
    pub check: Option<Check>,
}

/// The divergence of an output from its source, measured on tokens of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Number of windows.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Where the tokens come from.
    pub origin: TokenOrigin,
    /// KL divergence from the source, in nats per token.
    pub kl: Estimate,
    /// Share of positions at which both models prefer the same token.
    pub agreement: Estimate,
    /// The predicted divergence, if the objective predicts it.
    pub predicted: Option<f64>,
}

/// The digest of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Path relative to the directory.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the content.
    pub sha256: String,
}

/// The digest of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorDigest {
    /// Name of the tensor.
    pub name: String,
    /// Element type, as in safetensors.
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Name of its file.
    pub file: String,
    /// SHA-256 of the tensor data.
    pub sha256: String,
}

/// A file of the source that was not copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// Path relative to the source directory.
    pub name: String,
    /// The reason.
    pub why: String,
}

/// The fate of a source tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Became {
    /// Encoded.
    Quantized,
    /// Copied byte for byte under its own name.
    Kept,
    /// Written as plain numbers under another name or in another order, or passed through in a prequantized form.
    Converted,
    /// Read together with the tensor whose scales or shape it contains; or used only by runtimes that compute in fewer
    /// bits.
    Consumed,
    /// Not written: another tensor has the same data.
    Tied,
    /// Not written.
    Dropped,
}

/// The ledger line of a source tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerLine {
    /// Name in the source.
    pub tensor: String,
    /// Element type, as in safetensors.
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Name of its shard.
    pub file: String,
    /// SHA-256 of the tensor data.
    pub sha256: String,
    /// Role of the tensor.
    pub role: Role,
    /// The fate of the tensor.
    pub became: Became,
    /// The reason, or a statement that the allocation chose the scheme.
    pub why: String,
    /// Bytes of the output that store its data.
    pub bytes: u64,
    /// Names of the stored tensors that contain its data.
    pub into: Vec<String>,
    /// Scheme and errors for each quantized output tensor that contains its data; empty if it was not quantized.
    pub quantized: Vec<Quantized>,
}

/// Scheme and errors of the rows that a source tensor contributed to one output tensor, measured on the written bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantized {
    /// Name of the output tensor.
    pub into: String,
    /// The scheme.
    pub scheme: Scheme,
    /// Source of the sensitivity.
    pub origin: Origin,
    /// Number of its matrices that were encoded with error feedback; without it the loss was less, or nothing was known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub feedback: usize,
    /// Loss in the unit of the objective.
    pub loss: f64,
    /// Signal-to-noise ratio at the matrix's output, weighted by its sensitivity, in decibels.
    pub sqnr_db: f64,
    /// Squared error, `Σ (ŵ − w)²`.
    pub squared_error: f64,
    /// Normalised root mean squared error, `√(Σ (ŵ − w)² / Σ w²)`.
    pub nrmse: f64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde calls")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Manifest {
    /// Reads a manifest from `path`.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if the content is not a manifest, [`Error::Io`](crate::Error::Io).
    pub fn read(path: &Path) -> Result<Self> {
        super::read(path)
    }
}

impl Document for Manifest {
    const WHAT: &'static str = "manifest";
    const VERSION: (&'static str, u32) = ("ramrs_manifest", VERSION);
}

//! The manifest: what was done to which bytes, for whoever has to check it.
//!
//! Nothing in it depends on the machine, the time or the place: the same input and options give the same manifest.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::plan::Totals;
use super::{Document, Settings, SourceId, Tool};
use crate::codec::Scheme;
use crate::error::Result;
use crate::name::Role;
use crate::policy::PolicyOptions;
use crate::sensitivity::Origin;

/// Version of the document.
pub(crate) const VERSION: u32 = 2;

/// Its name in the output directory.
pub(crate) const FILE_NAME: &str = "ramrs-manifest.json";

/// The document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the document's form.
    pub ramrs_manifest: u32,
    /// Who made it.
    pub tool: Tool,
    /// Of what.
    pub source: SourceId,
    /// The source's files that were read.
    pub source_files: Vec<FileDigest>,
    /// How.
    pub settings: Settings,
    /// Within what limits.
    pub policy: PolicyOptions,
    /// The budget, as it was asked for.
    pub budget: Option<String>,
    /// What it amounts to.
    pub totals: Totals,
    /// Every tensor of the source, and what became of it.
    pub ledger: Vec<LedgerLine>,
    /// Every tensor that was written.
    pub tensors: Vec<TensorDigest>,
    /// Every file that was written, but this one.
    pub files: Vec<FileDigest>,
    /// Files of the source that were left out, and why.
    pub left_out: Vec<LeftOut>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// A file, by its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Its path in the directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Of its content.
    pub sha256: String,
}

/// A stored tensor, by its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorDigest {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// The file that holds it.
    pub file: String,
    /// Of its data.
    pub sha256: String,
}

/// A file of the source that is not in the output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// Its path in the directory.
    pub name: String,
    /// Why.
    pub why: String,
}

/// What became of a tensor of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Became {
    /// Encoded.
    Quantized,
    /// Copied byte for byte, under its own name.
    Kept,
    /// Its numbers, decoded if it was packed, under another name, in another order, or as another packed form.
    Converted,
    /// Read with the tensor whose scales or shape it holds; or of no use but to a runtime that computes in fewer bits.
    Consumed,
    /// Left out: another tensor is the same.
    Tied,
    /// Left out.
    Dropped,
}

/// One tensor of the source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerLine {
    /// Its name.
    pub tensor: String,
    /// Its element type.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// The file that holds it.
    pub file: String,
    /// SHA-256 of its data.
    pub sha256: String,
    /// What it does.
    pub role: Role,
    /// What became of it.
    pub became: Became,
    /// Why; where the allocation decided, that it did.
    pub why: String,
    /// Bytes of what is stored for it.
    pub bytes: u64,
    /// The tensors of the output that have something of it.
    pub into: Vec<String>,
    /// Where it was quantized, how and how well: for each weight that it became, or part of which.
    pub quantized: Vec<Quantized>,
}

/// How a tensor was quantized, or what of it went into one of several, and the error of exactly what was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantized {
    /// The name of that weight.
    pub into: String,
    /// The scheme.
    pub scheme: Scheme,
    /// Where its sensitivity is from.
    pub origin: Origin,
    /// Loss, by the objective.
    pub loss: f64,
    /// Signal over noise at its output, by its sensitivity, in decibels.
    pub sqnr_db: f64,
    /// `Σ (ŵ − w)²`
    pub squared_error: f64,
    /// `√(Σ (ŵ − w)² / Σ w²)`
    pub nrmse: f64,
}

impl Manifest {
    /// Reads one.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) for anything that is no such document, [`Error::Io`](crate::Error::Io).
    pub fn read(path: &Path) -> Result<Self> {
        super::read(path)
    }
}

impl Document for Manifest {
    const WHAT: &'static str = "manifest";
    const VERSION: (&'static str, u32) = ("ramrs_manifest", VERSION);
}

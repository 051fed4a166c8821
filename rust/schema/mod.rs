//! What ramrs writes beside weights: analyses, plans, manifests. JSON, versioned, with the reason for every number.

pub mod analysis;
pub mod manifest;
pub mod plan;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::codec::encoder::Effort;
use crate::error::{Error, FileFault, Result};
use crate::rate_distortion::Objective;
use crate::sensitivity::file::ProbeRecord;
use crate::sensitivity::prior::Prior;

/// Who made a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// `ramrs`
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Tool {
    /// This tool.
    #[must_use]
    pub fn this() -> Self {
        Self { name: "ramrs".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// Which checkpoint a document is about: enough to know another from it, not proof that all bytes are the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceId {
    /// SHA-256 of the names, lengths and headers of all shards.
    pub headers_sha256: String,
    /// Weights in it.
    pub parameters: u64,
    /// Bytes of their data.
    pub tensor_bytes: u64,
    /// Bytes of its shards.
    pub file_bytes: u64,
}

/// Everything beside the checkpoint that decides what the curves are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Output format.
    pub format: String,
    /// Whether names are left alone, whatever the model is.
    pub generic: bool,
    /// The encoder.
    pub effort: Effort,
    /// What is minimised.
    pub objective: Objective,
    /// Where the sensitivity is from: `probe`, `weights`, `file`, or `none` if the objective asks for none.
    pub sensitivity: String,
    /// SHA-256 of all sensitivity vectors.
    pub sensitivity_sha256: String,
    /// How the probe worked, if it did.
    pub probe: Option<ProbeRecord>,
    /// The prior, where one is used.
    pub prior: Prior,
    /// Version of its table.
    pub prior_version: u32,
}

/// Reads a document of kind `what` from `path`; `version` is where its version number stands, and which one we read.
///
/// # Errors
/// [`Error::File`] for anything that is no such document, [`Error::Io`].
pub fn read<T: for<'de> Deserialize<'de>>(path: &Path, what: &'static str, version: (&str, u32)) -> Result<T> {
    let text = fs::read_to_string(path).map_err(Error::io("reading", path))?;
    let fault = |reason: String| Error::file(path, FileFault::Document { what, reason });
    let top: BTreeMap<String, &RawValue> = serde_json::from_str(&text).map_err(|found| fault(found.to_string()))?;
    match top.get(version.0).map(|raw| raw.get()) {
        Some(found) if found == version.1.to_string() => {}
        Some(found) => return Err(fault(format!("its version is {found}; this ramrs reads version {}", version.1))),
        None => return Err(fault(format!("it has no `{}`", version.0))),
    }
    serde_json::from_str(&text).map_err(|found| fault(found.to_string()))
}

/// The text of a document.
///
/// # Errors
/// [`Error::Bug`] if it has no JSON form.
pub fn text<T: Serialize>(document: &T) -> Result<String> {
    let text = serde_json::to_string_pretty(document).map_err(|fault| Error::Bug(fault.to_string()))?;
    Ok(text + "\n")
}

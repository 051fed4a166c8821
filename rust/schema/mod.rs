//! Documents that ramrs writes next to the weights: analyses, plans, manifests. Versioned JSON, with a reason for every
//! scheme.

pub(crate) mod analysis;
pub(crate) mod manifest;
pub(crate) mod plan;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::codec::Effort;
use crate::container::HeadSize;
use crate::digest::Digest;
use crate::error::{DocumentSource, Error, FileFault, Result};
use crate::rate_distortion::Objective;
use crate::sensitivity::file::ProbeRecord;
use crate::sensitivity::prior::Prior;

/// The tool that wrote a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Always `ramrs`.
    pub name: String,
    /// Version of the tool.
    pub version: String,
}

impl Tool {
    /// Returns the name and version of this build.
    #[must_use]
    pub fn this() -> Self {
        Self { name: "ramrs".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// Identity of a checkpoint: distinguishes checkpoints, but does not prove that all bytes are equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceId {
    /// SHA-256 of the names, sizes and headers of all shards, in file order.
    pub headers_sha256: String,
    /// Number of weights that are written.
    pub parameters: u64,
    /// Bytes of tensor data.
    pub tensor_bytes: u64,
    /// Bytes of the shards.
    pub file_bytes: u64,
}

/// Everything except the checkpoint that determines the curves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Name of the output format.
    pub format: String,
    /// The runtime that the output is for, if several read the format.
    #[serde(default)]
    pub target: Option<String>,
    /// Number of devices that the runtime divides each layer among.
    #[serde(default = "one")]
    pub tensor_parallel: u64,
    /// The size of the key-values that the output states, of formats that have any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadSize>,
    /// Whether source names are kept, without a model-specific layout.
    pub generic: bool,
    /// The program that laid the checkpoint out, if it is not a release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub laid_out_by: Option<String>,
    /// Effort of the encoder.
    pub effort: Effort,
    /// The objective that plans minimise.
    pub objective: Objective,
    /// Source of the sensitivity: `probe`, `weights`, `file`, or `none` if the objective uses no sensitivity.
    pub sensitivity: String,
    /// SHA-256 of all sensitivity vectors.
    pub sensitivity_sha256: String,
    /// Settings and results of the probe, if it ran.
    pub probe: Option<ProbeRecord>,
    /// The role prior, for matrices without measured gains.
    pub prior: Prior,
    /// Version of the prior's table.
    pub prior_version: u32,
}

fn one() -> u64 {
    1
}

/// A JSON document with a version field.
pub trait Document: DeserializeOwned {
    /// The document's name in messages.
    const WHAT: &'static str;
    /// Name of the version field, and the version that this build reads.
    const VERSION: (&'static str, u32);

    /// Checks constraints that the types do not express.
    ///
    /// # Errors
    /// A description of the violated constraint.
    fn check(&self) -> std::result::Result<(), String> {
        Ok(())
    }
}

/// Reads a document from `path`.
///
/// # Errors
/// [`Error::File`] if the content is not such a document, [`Error::Io`].
pub(crate) fn read<D: Document>(path: &Path) -> Result<D> {
    let text = fs::read_to_string(path).map_err(Error::io("reading", path))?;
    parse(&text).map_err(|reason| Error::file(path, FileFault::Document { what: D::WHAT, reason }))
}

/// Parses a document. Checks the version first: otherwise a field of another version would be reported as unknown.
fn parse<D: Document>(text: &str) -> std::result::Result<D, String> {
    let (field, version) = D::VERSION;
    let top: BTreeMap<String, &RawValue> = serde_json::from_str(text).map_err(|fault| fault.to_string())?;
    match top.get(field).map(|raw| raw.get()) {
        Some(found) if found == version.to_string() => {}
        Some(found) => return Err(format!("its version is {found}; this ramrs reads version {version}")),
        None => return Err(format!("it has no `{field}`")),
    }
    let document: D = serde_json::from_str(text).map_err(|fault| fault.to_string())?;
    document.check()?;
    Ok(document)
}

/// A saved document in a request: the path of its file, or the document itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saved {
    /// From a JSON string: the path of a file.
    File(PathBuf),
    /// From any other JSON value: the text of the document.
    Given(String),
}

impl Saved {
    /// Reads the document.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Io`] for a file, [`Error::Document`] for a given document.
    pub fn read<D: Document>(&self) -> Result<D> {
        match self {
            Self::File(path) => read(path),
            Self::Given(text) => parse(text).map_err(|reason| Error::Document { what: D::WHAT, reason }),
        }
    }

    /// SHA-256 of the document's text.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn digest(&self) -> Result<String> {
        match self {
            Self::File(path) => Ok(Digest::of(&fs::read(path).map_err(Error::io("reading", path))?)),
            Self::Given(text) => Ok(Digest::of(text.as_bytes())),
        }
    }

    /// The path of the file, for an error about its content.
    #[must_use]
    pub fn place<D: Document>(&self) -> DocumentSource {
        match self {
            Self::File(path) => DocumentSource::File(path.clone()),
            Self::Given(_) => DocumentSource::Given(D::WHAT),
        }
    }
}

impl Serialize for Saved {
    fn serialize<S: Serializer>(&self, out: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::File(path) => path.serialize(out),
            Self::Given(text) => RawValue::from_string(text.clone()).map_err(serde::ser::Error::custom)?.serialize(out),
        }
    }
}

impl<'de> Deserialize<'de> for Saved {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(from)?;
        if raw.get().starts_with('"') {
            serde_json::from_str(raw.get()).map(Self::File).map_err(serde::de::Error::custom)
        } else {
            Ok(Self::Given(String::from(Box::<str>::from(raw))))
        }
    }
}

/// Serializes a document as JSON text.
///
/// # Errors
/// [`Error::Bug`] if the document has no JSON form.
pub(crate) fn text<T: Serialize>(document: &T) -> Result<String> {
    let text = serde_json::to_string_pretty(document).map_err(|fault| Error::Bug(fault.to_string()))?;
    Ok(text + "\n")
}

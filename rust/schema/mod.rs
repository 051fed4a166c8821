//! What ramrs writes beside weights: analyses, plans, manifests. JSON, versioned, with the reason for every number.

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
use crate::error::{DocumentSource, Error, FileFault, Result};
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

/// A document with a version of its own.
pub trait Document: DeserializeOwned {
    /// What messages call it.
    const WHAT: &'static str;
    /// The field that holds its version, and the version that this ramrs reads.
    const VERSION: (&'static str, u32);

    /// Checks what the types do not.
    ///
    /// # Errors
    /// What is wrong.
    fn check(&self) -> std::result::Result<(), String> {
        Ok(())
    }
}

/// Reads a document from `path`.
///
/// # Errors
/// [`Error::File`] for anything that is no such document, [`Error::Io`].
pub(crate) fn read<D: Document>(path: &Path) -> Result<D> {
    let text = fs::read_to_string(path).map_err(Error::io("reading", path))?;
    parse(&text).map_err(|reason| Error::file(path, FileFault::Document { what: D::WHAT, reason }))
}

/// Parses a document. Its version comes first: the fields of another version would only be said to be unknown.
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
    /// A JSON string: the path of a file.
    File(PathBuf),
    /// Any other JSON value: the text of the document.
    Given(String),
}

impl Saved {
    /// Reads the document.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Io`] for a file, and [`Error::Document`].
    pub fn read<D: Document>(&self) -> Result<D> {
        match self {
            Self::File(path) => read(path),
            Self::Given(text) => parse(text).map_err(|reason| Error::Document { what: D::WHAT, reason }),
        }
    }

    /// Where it is, for an error about its content.
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

/// The text of a document.
///
/// # Errors
/// [`Error::Bug`] if it has no JSON form.
pub(crate) fn text<T: Serialize>(document: &T) -> Result<String> {
    let text = serde_json::to_string_pretty(document).map_err(|fault| Error::Bug(fault.to_string()))?;
    Ok(text + "\n")
}

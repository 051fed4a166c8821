//! `complete_config`: a configuration with the keys that a runtime reads.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::open_format;
use crate::error::Result;
use crate::format::ReadKeys;

/// A configuration, and what the runtime's code for the model reads of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigRequest {
    /// Name of the output format.
    pub format: String,
    /// The configuration.
    pub config: Map<String, Value>,
    /// Keys that the runtime reads, besides those that are known here.
    pub read: ReadKeys,
}

/// Adds what the runtime of a format reads in `config.json` and the configuration has elsewhere.
///
/// # Errors
/// [`crate::Error::Option`] for an unknown format.
pub fn complete_config(request: &ConfigRequest) -> Result<Map<String, Value>> {
    let mut config = request.config.clone();
    open_format(&request.format, None, 1, (None, None))?.complete_config(&mut config, &request.read);
    Ok(config)
}

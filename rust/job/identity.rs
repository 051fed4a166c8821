//! The identity of a job: what decides the bytes of its output, to tell whether an unfinished output is its own.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::schema::{SourceId, Tool};

/// A job. It is written next to its journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct JobIdentity {
    pub tool: Tool,
    pub source: SourceId,
    /// The files of the source. Empty for a source that another program makes anew for every run.
    pub files: Vec<SourceStamp>,
    /// The options that decide bytes. Documents are named by their digests.
    pub request: Value,
}

/// A file of the source, and what tells that it was not written since.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct SourceStamp {
    pub name: String,
    pub bytes: u64,
    /// Time of the last change, in nanoseconds since 1970.
    pub modified: u64,
}

/// The files in the directory of `checkpoint` that the job reads, by name.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn stamps(checkpoint: &Checkpoint) -> Result<Vec<SourceStamp>> {
    let dir = &checkpoint.dir;
    let mut found = Vec::new();
    let names = checkpoint.shards.iter().map(|shard| shard.path.clone());
    let others = checkpoint.other_files.iter().map(|name| dir.join(name));
    let config = Some(dir.join("config.json")).filter(|path| path.is_file());
    for path in names.chain(others).chain(config) {
        let of = fs::metadata(&path).map_err(Error::io("reading", &path))?;
        let modified = of.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let name = path.strip_prefix(dir).unwrap_or(&path).display().to_string();
        found.push(SourceStamp { name, bytes: of.len(), modified: modified.map_or(0, |at| at.as_nanos() as u64) });
    }
    found.sort();
    Ok(found)
}

impl JobIdentity {
    /// In what `other`, another job, differs, in words.
    #[must_use]
    pub(crate) fn difference(&self, other: &Self) -> String {
        if self.tool != other.tool {
            return format!("ramrs {} began it, and this is {}", other.tool.version, self.tool.version);
        }
        if self.source != other.source {
            return "it is of another checkpoint".to_owned();
        }
        if let Some(changed) = self.files.iter().find(|file| !other.files.contains(file)) {
            return format!("`{}` of the source was written since", changed.name);
        }
        if self.files != other.files {
            return "a file of the source is gone since".to_owned();
        }
        match differing(&self.request, &other.request) {
            Some((place, before)) => format!("it was begun with {place} {before}"),
            None => "its options differ".to_owned(),
        }
    }

    /// Reads the identity at `path`; `None` if there is none that is whole.
    #[must_use]
    pub(crate) fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

/// The first option that differs: its name, and the other value.
fn differing(ours: &Value, other: &Value) -> Option<(String, String)> {
    if ours == other {
        return None;
    }
    if let (Some(ours), Some(theirs)) = (ours.as_object(), other.as_object()) {
        for (name, value) in ours {
            let before = theirs.get(name).unwrap_or(&Value::Null);
            if let Some((place, before)) = differing(value, before) {
                let place = if place.is_empty() { name.clone() } else { place };
                return Some((place, before));
            }
        }
    }
    let text = match other {
        Value::String(text) => format!("`{text}`"),
        Value::Null => "not given".to_owned(),
        value => value.to_string(),
    };
    Some((String::new(), text))
}

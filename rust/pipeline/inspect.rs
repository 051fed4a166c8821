//! `inspect`: what is in a checkpoint, and what could be done to it. Headers only.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::source::Source;
use crate::checkpoint::Checkpoint;
use crate::document::SourceId;
use crate::error::{Error, Result};
use crate::format::Treatment;
use crate::name::Role;

/// What is in a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// Its directory.
    pub path: String,
    /// `model_type` of its configuration.
    pub model_type: Option<String>,
    /// Which checkpoint it is.
    pub source: SourceId,
    /// Its shards.
    pub shards: Vec<ShardLine>,
    /// Its tensors by role and type.
    pub roles: Vec<RoleLine>,
    /// Its tensors, in the order of the files.
    pub tensors: Vec<TensorLine>,
    /// Its other files.
    pub other_files: Vec<String>,
    /// Bits per weight with every matrix in its smallest scheme.
    pub smallest_bpw: f64,
    /// Why the format has no layout for it, if so.
    pub unsupported: Option<String>,
}

/// A shard.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShardLine {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// The tensors of one role and type.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoleLine {
    /// The role.
    pub role: Role,
    /// The element type.
    pub dtype: String,
    /// How many tensors.
    pub tensors: u64,
    /// How many weights in them.
    pub parameters: u64,
    /// Bytes of their data.
    pub bytes: u64,
    /// How many of them can be quantized.
    pub quantizable: u64,
}

/// A tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorLine {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Bytes of its data.
    pub bytes: u64,
    /// What it does.
    pub role: Role,
    /// In which layer.
    pub layer: Option<usize>,
    /// `quantizable`, `kept`, `tied` or `dropped`.
    pub becomes: &'static str,
    /// Why, if not quantizable.
    pub why: Option<String>,
}

/// Looks at the checkpoint at `model`. A model that the format has no layout for is looked at all the same.
///
/// # Errors
/// Those of opening it.
pub fn inspect(model: &Path, format: &str, generic: bool) -> Result<Inspection> {
    let (source, unsupported) = match Source::open(model, format, generic) {
        Err(fault @ (Error::UnknownModel { .. } | Error::AlreadyQuantized { .. })) => {
            (Source::untouched(model, format)?, Some(fault.to_string()))
        }
        Err(fault @ Error::NoCheckpoint { .. }) => match Checkpoint::open(model) {
            Ok(_) => (Source::untouched(model, format)?, Some(fault.to_string())),
            Err(fault) => return Err(fault),
        },
        opened => (opened?, None),
    };
    let mut roles: BTreeMap<(Role, &str), RoleLine> = BTreeMap::new();
    let mut tensors = Vec::with_capacity(source.entries.len());
    let mut smallest = 0;
    for (tensor, entry) in source.checkpoint.tensors.iter().zip(&source.entries) {
        let (becomes, why) = match (&entry.treatment, &entry.candidate) {
            (Treatment::Write, Ok(_)) => ("quantizable", None),
            (Treatment::Write, Err(kept)) => ("kept", Some(kept.to_string())),
            (Treatment::Tied(to), _) => ("tied", Some(format!("the same as {to}"))),
            (Treatment::Drop(why), _) => ("dropped", Some((*why).to_owned())),
        };
        if entry.treatment == Treatment::Write {
            let stored = entry.candidate.as_ref().ok().and_then(|(matrix, schemes)| {
                schemes.first().map(|scheme| scheme.stored_bytes(matrix.rows, matrix.cols, matrix.float))
            });
            smallest += stored.unwrap_or(tensor.bytes);
        }
        let line = roles.entry((entry.name.role, tensor.dtype.name())).or_insert_with(|| RoleLine {
            role: entry.name.role,
            dtype: tensor.dtype.name().to_owned(),
            tensors: 0,
            parameters: 0,
            bytes: 0,
            quantizable: 0,
        });
        line.tensors += 1;
        line.parameters += tensor.elements();
        line.bytes += tensor.bytes;
        line.quantizable += u64::from(becomes == "quantizable");
        tensors.push(TensorLine {
            name: tensor.name.clone(),
            dtype: tensor.dtype.name().to_owned(),
            shape: tensor.shape.clone(),
            bytes: tensor.bytes,
            role: entry.name.role,
            layer: entry.name.layer,
            becomes,
            why,
        });
    }
    let id = source.id();
    Ok(Inspection {
        path: source.checkpoint.dir.display().to_string(),
        model_type: source.checkpoint.model_type().map(str::to_owned),
        shards: source.checkpoint.shards.iter().map(|s| ShardLine { name: s.name.clone(), bytes: s.bytes }).collect(),
        roles: roles.into_values().collect(),
        tensors,
        other_files: source.checkpoint.other_files.iter().map(|file| file.display().to_string()).collect(),
        smallest_bpw: 8.0 * smallest as f64 / id.parameters.max(1) as f64,
        source: id,
        unsupported,
    })
}

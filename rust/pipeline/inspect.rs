//! `inspect`: what is in a checkpoint, and what could be done to it. Headers only.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::prequantized::PartUse;
use crate::error::{Error, Result};
use crate::job::conversion::{Conversion, Fate, OutputTensor};
use crate::name::{Name, Role};
use crate::schema::SourceId;

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
    /// What the user should know.
    pub warnings: Vec<String>,
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
    /// `quantizable`, `kept`, `converted`, `consumed`, `tied` or `dropped`.
    pub becomes: &'static str,
    /// Why, if not quantizable.
    pub why: Option<String>,
    /// The tensors of the output that it becomes, or part of which.
    pub into: Vec<String>,
}

/// Looks at the checkpoint at `model`. A model that the format has no layout for is looked at all the same.
///
/// # Errors
/// Those of opening it.
pub fn inspect(model: &Path, format: &str, generic: bool) -> Result<Inspection> {
    let (source, unsupported) = match Conversion::open(model, format, generic) {
        Err(fault @ (Error::UnknownModel { .. } | Error::AlreadyQuantized { .. } | Error::Layout { .. })) => {
            (Conversion::untouched(model, format)?, Some(fault.to_string()))
        }
        Err(fault @ Error::NoCheckpoint { .. }) => match Checkpoint::open(model) {
            Ok(_) => (Conversion::untouched(model, format)?, Some(fault.to_string())),
            Err(fault) => return Err(fault),
        },
        opened => (opened?, None),
    };
    let mut roles: BTreeMap<(Role, &str), RoleLine> = BTreeMap::new();
    let mut tensors = Vec::with_capacity(source.checkpoint.parts.len());
    for (at, part) in source.checkpoint.parts.iter().enumerate() {
        let PartFate { becomes, why, into } = part_fate(&source, at);
        let role = source.role(at);
        let elements = match source.checkpoint.uses[at] {
            PartUse::Elements(tensor) => source.checkpoint.tensors[tensor].elements(),
            PartUse::Companion(_) | PartUse::Unused(_) => 0,
        };
        let line = roles.entry((role, part.dtype.name())).or_insert_with(|| RoleLine {
            role,
            dtype: part.dtype.name().to_owned(),
            tensors: 0,
            parameters: 0,
            bytes: 0,
            quantizable: 0,
        });
        line.tensors += 1;
        line.parameters += elements;
        line.bytes += part.bytes;
        line.quantizable += u64::from(becomes == "quantizable");
        tensors.push(TensorLine {
            name: part.name.clone(),
            dtype: part.dtype.name().to_owned(),
            shape: part.shape.clone(),
            bytes: part.bytes,
            role,
            layer: Name::parse(&part.name).layer,
            becomes,
            why,
            into,
        });
    }
    let smallest: u64 = source.outputs.iter().map(OutputTensor::smallest_bytes).sum();
    let mut warnings = Vec::new();
    source.check(false, None, |warning| warnings.push(warning))?;
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
        warnings,
    })
}

/// What becomes of a part, why, and into what.
struct PartFate {
    becomes: &'static str,
    why: Option<String>,
    into: Vec<String>,
}

/// The fate of part `part`, in words.
fn part_fate(source: &Conversion, part: usize) -> PartFate {
    let nothing = |becomes, why: String| PartFate { becomes, why: Some(why), into: Vec::new() };
    let tensor = match source.fate(part) {
        Fate::Unused(why) => return nothing("consumed", why.to_owned()),
        Fate::Companion(of) => return nothing("consumed", format!("read with {}", source.checkpoint.tensors[of].name)),
        Fate::Tied(to) => return nothing("tied", format!("the same as {to}")),
        Fate::Dropped(why) => return nothing("dropped", why.to_owned()),
        Fate::Written(tensor) => tensor,
    };
    let outputs: Vec<&OutputTensor> = source.shares[tensor].iter().map(|share| &source.outputs[share.target]).collect();
    let into = outputs.iter().map(|output| output.target.name.clone()).collect();
    let why = outputs.iter().find_map(|output| output.candidate.as_ref().err()).map(ToString::to_string);
    let becomes = match why {
        None => "quantizable",
        Some(_) if outputs.iter().all(|output| source.is_as_it_is(tensor, output)) => "kept",
        Some(_) => "converted",
    };
    PartFate { becomes, why, into }
}

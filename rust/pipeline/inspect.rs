//! `inspect`: the contents of a checkpoint and the fate of each tensor. Reads headers only.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::AnalysisRequest;
use crate::checkpoint::prequantized::PartUse;
use crate::checkpoint::{Checkpoint, Part};
use crate::error::{Error, Result};
use crate::job::conversion::{Conversion, Fate, OutputTensor};
use crate::name::{Name, Role};
use crate::option::OptionName;
use crate::schema::SourceId;

/// The contents of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// Path of the checkpoint.
    pub path: String,
    /// `model_type` of the configuration.
    pub model_type: Option<String>,
    /// Identity of the checkpoint.
    pub source: SourceId,
    /// The shards, in file order.
    pub shards: Vec<ShardLine>,
    /// The tensors grouped by role and element type.
    pub roles: Vec<RoleLine>,
    /// The tensors, in file order.
    pub tensors: Vec<TensorLine>,
    /// The names under which tensors are read, by their names in the files, where the two differ.
    pub renamed: BTreeMap<String, String>,
    /// Paths of the other files.
    pub other_files: Vec<String>,
    /// Bits per weight with every matrix in its smallest scheme.
    pub smallest_bpw: f64,
    /// The reason why the format has no layout for the model, if it has none.
    pub unsupported: Option<String>,
    /// Warnings.
    pub warnings: Vec<String>,
}

/// A shard of the checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShardLine {
    /// File name.
    pub name: String,
    /// File size in bytes.
    pub bytes: u64,
}

/// Totals of the tensors of one role and element type.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoleLine {
    /// Role of the tensors.
    pub role: Role,
    /// Element type, as in safetensors.
    pub dtype: String,
    /// Number of tensors.
    pub tensors: u64,
    /// Number of weights.
    pub parameters: u64,
    /// Bytes of tensor data.
    pub bytes: u64,
    /// Number of tensors that can be quantized.
    pub quantizable: u64,
}

/// A stored tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorLine {
    /// Name of the tensor.
    pub name: String,
    /// Element type, as in safetensors.
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Bytes of tensor data.
    pub bytes: u64,
    /// Role of the tensor.
    pub role: Role,
    /// Index of the layer, if the tensor belongs to one.
    pub layer: Option<usize>,
    /// The fate of the tensor: `quantizable`, `kept`, `converted`, `consumed`, `tied` or `dropped`.
    pub becomes: &'static str,
    /// The reason, if the tensor is not quantizable.
    pub why: Option<String>,
    /// Names of the output tensors that contain its data.
    pub into: Vec<String>,
}

/// Inspects the checkpoint of `request`. A model that the format has no layout for is inspected under its source names.
///
/// # Errors
/// The errors of opening the checkpoint.
pub fn inspect(request: &AnalysisRequest) -> Result<Inspection> {
    let (model, format) = (request.model.as_path(), request.open_format_of_tensors()?);
    let (source, unsupported) = match request.open(format.clone()) {
        Err(
            fault @ (Error::UnknownModel { .. }
            | Error::AlreadyQuantized { .. }
            | Error::Inexpressible { .. }
            | Error::Layout { .. }
            | Error::Mismatch { .. }),
        ) => (Conversion::untouched(model, format.clone())?, Some(fault.to_string())),
        Err(fault @ Error::NoCheckpoint { .. }) => match Checkpoint::open(model) {
            Ok(_) => (Conversion::untouched(model, format.clone())?, Some(fault.to_string())),
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
            name: part.stored_name().to_owned(),
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
        renamed: source.checkpoint.parts.iter().filter_map(renamed).collect(),
        other_files: source.checkpoint.other_files.iter().map(|file| file.display().to_string()).collect(),
        smallest_bpw: 8.0 * smallest as f64 / id.parameters.max(1) as f64,
        source: id,
        unsupported,
        warnings,
    })
}

/// Two tensors of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SameElementsRequest {
    /// Path of the checkpoint.
    pub model: PathBuf,
    /// Names of the tensors in its files.
    pub tensors: [String; 2],
}

/// Returns whether the two tensors of `request` are stored alike, byte for byte.
///
/// # Errors
/// [`Error::Option`] for an unknown tensor, and the errors of opening and reading.
pub fn same_elements(request: &SameElementsRequest) -> Result<bool> {
    let checkpoint = Checkpoint::open(&request.model)?;
    let tensor = |name: &String| {
        let unknown = || Error::option(OptionName::Tensor, name, "is not one of the checkpoint's weights");
        checkpoint.tensor(name).ok_or_else(unknown)
    };
    let [one, other] = &request.tensors;
    checkpoint.has_same_elements(tensor(one)?, tensor(other)?)
}

/// The name of `part` in the file and the one that it is read under, if the two differ.
fn renamed(part: &Part) -> Option<(String, String)> {
    Some((part.stored.clone()?, part.name.clone()))
}

/// The fate of a part, the reason, and the names of the outputs.
struct PartFate {
    becomes: &'static str,
    why: Option<String>,
    into: Vec<String>,
}

/// Describes the fate of part `part`.
fn part_fate(source: &Conversion, part: usize) -> PartFate {
    let nothing = |becomes, why: String| PartFate { becomes, why: Some(why), into: Vec::new() };
    let tensor = match source.fate(part) {
        Fate::Unused(why) => return nothing("consumed", why.to_owned()),
        Fate::Companion(of) => return nothing("consumed", format!("read with {}", source.checkpoint.tensors[of].name)),
        Fate::Tied(to) => return nothing("tied", format!("the same as {to}")),
        Fate::Dropped(why) => return nothing("dropped", why.to_owned()),
        Fate::Written(tensor) => tensor,
    };
    let outputs: Vec<&OutputTensor> =
        source.contributions[tensor].iter().map(|one| &source.outputs[one.target]).collect();
    let into = outputs.iter().map(|output| output.target.name.clone()).collect();
    let why = outputs.iter().find_map(|output| output.candidate.as_ref().err()).map(ToString::to_string);
    let becomes = match why {
        None => "quantizable",
        Some(_) if outputs.iter().all(|output| source.is_unchanged(tensor, output)) => "kept",
        Some(_) => "converted",
    };
    PartFate { becomes, why, into }
}

//! What all formats do with a source: checks of it and of its arrangement, and the steps that arrangements share.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Arrangement, Disposition, Target};
use crate::arch::contract;
use crate::arch::families::{ModelFamily, Outputs, family};
use crate::checkpoint::foreign_codes::foreign_codes;
use crate::checkpoint::prequantized::Packing;
use crate::checkpoint::{Checkpoint, Config, Tensor, View};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::name::{Name, Role};

/// `quant_method`s whose checkpoints are read ([`crate::checkpoint::prequantized`]).
const READ_METHODS: [&str; 4] = ["fp8", "mxfp4", "compressed-tensors", "fbgemm_fp8"];

/// `format`s of the method `compressed-tensors` that are read.
const READ_FORMS: [&str; 4] = ["pack-quantized", "float-quantized", "naive-quantized", "dense"];

/// Checks that the weights of a source can be read. Unless the output is `generic`, holds the source to what a model of its
/// type must have, and corrects what has one possible reading.
///
/// # Errors
/// [`Error::Layout`] for parts that do not fit together, [`Error::AlreadyQuantized`] for a method that is not read,
/// [`Error::Mismatch`] for a source that is not a model of its type.
pub(crate) fn prepare(checkpoint: &mut Checkpoint, generic: bool) -> Result<()> {
    check_source(checkpoint)?;
    check_blocks(checkpoint)?;
    checkpoint.notes.extend(stale_method(checkpoint));
    if generic { Ok(()) } else { contract::fulfil(checkpoint) }
}

/// Checks that the blocks of a GGUF source are nearly the weights of the release, and says so if there are any.
fn check_blocks(checkpoint: &mut Checkpoint) -> Result<()> {
    let is_coded = |tensor: &&Tensor| matches!(tensor.packing, Packing::Encoded(_));
    let stored = |tensor: &Tensor| checkpoint.parts[tensor.part].dtype;
    let coded: Vec<&Tensor> = checkpoint.tensors.iter().filter(is_coded).collect();
    if let Some(tensor) = coded.iter().find(|tensor| !matches!(stored(tensor), Dtype::Q8_0 | Dtype::MXFP4)) {
        let method = format!("`{}` is {}", checkpoint.parts[tensor.part].stored_name(), stored(tensor));
        return Err(Error::AlreadyQuantized { config: checkpoint.file_of(tensor).to_owned(), method });
    }
    let rounded = coded.iter().filter(|tensor| stored(tensor) == Dtype::Q8_0).count();
    let note = format!("{rounded} tensors of the source are in Q8_0: its errors are added to those of the output");
    checkpoint.notes.extend((rounded > 0).then_some(note));
    Ok(())
}

fn check_source(checkpoint: &Checkpoint) -> Result<()> {
    if let Some((part, format)) = foreign_codes(&checkpoint.parts) {
        let part = &checkpoint.parts[part];
        let stated = stated_block(checkpoint).and_then(|block| block.get("quant_method")?.as_str());
        let stated =
            stated.filter(|method| !format.contains(*method)).map_or(String::new(), |method| format!("{method}, "));
        let method = format!("{stated}{format}: `{}` is {} {:?}", part.stored_name(), part.dtype, part.shape);
        return Err(Error::AlreadyQuantized { config: checkpoint.shards[part.shard].path.clone(), method });
    }
    let has_codes = is_packed(checkpoint) || !checkpoint.faults.is_empty();
    if let Some(method) = unreadable(checkpoint).filter(|_| has_codes) {
        return Err(Error::AlreadyQuantized { config: checkpoint.dir.join("config.json"), method });
    }
    if let Some((part, reason)) = checkpoint.faults.first() {
        let part = &checkpoint.parts[*part];
        let file = checkpoint.shards[part.shard].path.clone();
        return Err(Error::Layout { file, tensor: part.name.clone(), reason: reason.clone() });
    }
    Ok(())
}

/// Whether any weight is stored as codes that are read.
fn is_packed(checkpoint: &Checkpoint) -> bool {
    checkpoint.tensors.iter().any(|tensor| tensor.packing != Packing::Plain)
}

/// What the configuration says of codes.
fn stated_block(checkpoint: &Checkpoint) -> Option<&Value> {
    checkpoint.config_value("quantization_config").or(checkpoint.config_value("quantization"))
}

/// Says that the configuration describes codes, if it does and a readable source has none.
fn stale_method(checkpoint: &Checkpoint) -> Option<String> {
    let block = stated_block(checkpoint).filter(|_| !is_packed(checkpoint))?;
    let method = block.get("quant_method").and_then(Value::as_str).unwrap_or("a quantization block");
    let is_dense = block.get("format").and_then(Value::as_str) == Some("dense");
    (!is_dense).then(|| {
        format!("config.json says that the weights are quantized ({method}), and they are not: that is left out")
    })
}

/// The family of the model in `checkpoint`; `None` if the output is generic.
///
/// # Errors
/// [`Error::UnknownModel`], and [`Error::NoCheckpoint`] if the configuration is missing or names no model type.
pub(super) fn model_family(
    checkpoint: &Checkpoint,
    generic: bool,
    format: &'static str,
) -> Result<Option<&'static ModelFamily>> {
    if checkpoint.is_gguf() {
        let model_type = checkpoint.model_type().unwrap_or("GGUF").to_owned();
        let reason = Some("a GGUF file is written as GGUF only (⟨format=gguf⟩): give the release for other formats");
        return Err(Error::UnknownModel { model_type, format, reason });
    }
    match (generic, checkpoint.model_type()) {
        (true, _) => Ok(None),
        (false, Some(model_type)) => match family(model_type) {
            Some(family) => Ok(Some(family)),
            None => Err(Error::UnknownModel { model_type: model_type.to_owned(), format, reason: None }),
        },
        (false, None) => Err(Error::NoCheckpoint {
            path: checkpoint.dir.join("config.json"),
            reason: if checkpoint.config.is_some() { "has no model_type" } else { "is missing" }.to_owned(),
            hint: "the format needs the model's config.json; ⟨generic=true⟩ writes the tensors without it",
        }),
    }
}

/// Checks that every tensor of the output has a name of its own.
pub(super) fn check_names(checkpoint: &Checkpoint, arrangement: &Arrangement, reader: &str) -> Result<()> {
    let mut names: BTreeMap<&str, &Target> = BTreeMap::new();
    for target in &arrangement.targets {
        if let Some(other) = names.insert(&target.name, target) {
            let tensor = |target: &Target| target.views.first().map(|view| &checkpoint.tensors[view.tensor]);
            let (Some(first), Some(second)) = (tensor(other), tensor(target)) else {
                return Err(Error::Bug(format!("`{}` is computed, and in the source", target.name)));
            };
            let reason = format!("it and `{}` are both `{}` for {reader}", first.name, target.name);
            return Err(Error::Layout {
                file: checkpoint.file_of(second).to_owned(),
                tensor: second.name.clone(),
                reason,
            });
        }
    }
    Ok(())
}

/// The method by which a checkpoint is quantized, if it is not one that is read.
fn unreadable(checkpoint: &Checkpoint) -> Option<String> {
    let block = stated_block(checkpoint)?;
    let text = |key: &str| block.get(key).and_then(Value::as_str);
    match text("quant_method") {
        Some("compressed-tensors") => {
            let form = text("format").unwrap_or("dense");
            let groups = block.get("config_groups").and_then(Value::as_object);
            let weights =
                groups.into_iter().flat_map(|groups| groups.values()).filter_map(|group| group.get("weights"));
            let asymmetric = |weights: &Value| weights.get("symmetric") == Some(&Value::Bool(false));
            let wide = |weights: &Value| !matches!(weights.get("num_bits").and_then(Value::as_u64), None | Some(4));
            let refused = if READ_FORMS.contains(&form) {
                form == "pack-quantized" && weights.clone().any(|weights| asymmetric(weights) || wide(weights))
            } else {
                true
            };
            refused
                .then(|| format!("compressed-tensors, {form}: of the packed ones only symmetric 4-bit codes are read"))
        }
        Some(method) if READ_METHODS.contains(&method) => None,
        Some(method) => Some(method.to_owned()),
        None => Some(text("mode").unwrap_or("its config.json has a quantization block").to_owned()),
    }
}

/// The name of the weight that `tensor` holds. Blocks and scales of MXFP4 are one weight.
pub(super) fn weight_name(tensor: &Tensor) -> String {
    match tensor.packing {
        Packing::Mxfp4 { .. } => format!("{}.weight", tensor.name.strip_suffix("_blocks").unwrap_or(&tensor.name)),
        _ => tensor.weight_name().to_owned(),
    }
}

/// Whether a tensor of `layer` lies beyond the layers that the configuration counts.
pub(super) fn is_beyond_layers(checkpoint: &Checkpoint, layer: Option<usize>) -> bool {
    let layers = checkpoint.config_size("num_hidden_layers");
    layer.zip(layers).is_some_and(|(layer, layers)| layer as u64 >= layers)
}

/// The embedding that `tensor` is tied to, if it is the head of a model whose configuration ties the two.
pub(super) fn tied_head(checkpoint: &Checkpoint, tensor: &Tensor) -> Option<Disposition> {
    let is_head = Name::parse(&tensor.name).role == Role::Head && tensor.weight_name().ends_with("lm_head.weight");
    let is_embedding = |tensor: &&Tensor| Name::parse(&tensor.name).role == Role::Embedding;
    let is_tied = is_head && checkpoint.is_tied() == Some(true);
    let embedding = checkpoint.tensors.iter().find(is_embedding).filter(|_| is_tied)?;
    Some(Disposition::Tied(embedding.name.clone()))
}

/// The views of `count` matrices of `rows` rows that are stored one after the other in `whole`.
///
/// # Errors
/// The reason, if their rows do not divide into the `outputs`.
pub(super) fn matrices(
    whole: View,
    (count, rows): (u64, u64),
    (input_major, outputs): (bool, Outputs),
) -> std::result::Result<Vec<View>, &'static str> {
    let rows = if input_major { whole.cols } else { rows };
    if outputs != Outputs::All && !rows.is_multiple_of(2) {
        return Err("its outputs do not divide into two");
    }
    let one = |at: u64| {
        let stored = whole.matrix_of(at, count);
        outputs.of(if input_major { stored.transposed() } else { stored }, rows)
    };
    Ok((0..count).map(one).collect())
}

/// Configuration keys that describe how weights are stored.
const ENCODINGS: [&str; 3] = ["quantization", "quantization_config", "compression_config"];

/// `config` without the description of the source's codes.
pub(super) fn without_encodings(config: &Config) -> Config {
    let mut config = config.clone();
    for key in ENCODINGS {
        config.remove(key);
        if let Some(Value::Object(text)) = config.get_mut("text_config") {
            text.remove(key);
        }
    }
    config
}

//! Which models `mlx-lm` reads under the names they are released with, and what of them it has no use for.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::format::Treatment;

/// `model_type`s whose tensors `mlx-lm` takes under their own names and in their own layout. Each of them is made,
/// quantized and loaded by a test.
pub(super) const AS_IS: [&str; 16] = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "smollm3",
    "granite",
    "glm4",
    "stablelm",
    "starcoder2",
    "phi",
    "cohere",
];

/// What becomes of each tensor.
pub(super) fn treatments(checkpoint: &Checkpoint, generic: bool) -> Result<Vec<Treatment>> {
    let config = checkpoint.dir.join("config.json");
    if let Some(method) = quantized_by(checkpoint) {
        return Err(Error::AlreadyQuantized { config, method });
    }
    if !generic {
        let model_type = checkpoint.model_type().ok_or_else(|| Error::NoCheckpoint {
            path: config,
            reason: if checkpoint.config.is_some() { "has no model_type" } else { "is missing" }.to_owned(),
            hint: "MLX needs the model's config.json; --generic writes the tensors without it",
        })?;
        if !AS_IS.contains(&model_type) {
            return Err(Error::UnknownModel { model_type: model_type.to_owned(), format: "MLX" });
        }
    }
    let is_key = |name: &str| ["bits", "group_size", "mode"].contains(&name.strip_suffix(".weight").unwrap_or(name));
    if let Some(tensor) = checkpoint.tensors.iter().find(|tensor| tensor.shape.len() == 2 && is_key(&tensor.name)) {
        let reason = "its module is called as a key of MLX's quantization block is".to_owned();
        return Err(Error::Scheme { tensor: tensor.name.clone(), reason });
    }
    Ok(checkpoint
        .tensors
        .iter()
        .map(|tensor| if generic { Treatment::Write } else { treatment(checkpoint, &tensor.name) })
        .collect())
}

fn treatment(checkpoint: &Checkpoint, name: &str) -> Treatment {
    if name.ends_with("rotary_emb.inv_freq") {
        return Treatment::Drop("mlx-lm computes rotary frequencies itself");
    }
    let embedding = "model.embed_tokens.weight";
    if name == "lm_head.weight" && checkpoint.is_tied() == Some(true) && checkpoint.tensor(embedding).is_some() {
        return Treatment::Tied(embedding.to_owned());
    }
    Treatment::Write
}

/// The method a checkpoint says it is quantized by.
fn quantized_by(checkpoint: &Checkpoint) -> Option<String> {
    let block = checkpoint.config_value("quantization_config").or(checkpoint.config_value("quantization"))?;
    let method = block.get("quant_method").or(block.get("mode")).and_then(serde_json::Value::as_str);
    Some(method.unwrap_or("its config.json has a quantization block").to_owned())
}

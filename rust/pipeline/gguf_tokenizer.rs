//! `gguf_tokenizer`: the tokenizer in a GGUF file, as its key-values state it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::container::gguf::value::ValueRef;
use crate::error::Result;

/// A request for the tokenizer in a model.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GgufTokenizerRequest {
    /// Path of the model.
    pub model: PathBuf,
}

/// A tokenizer: the values of `tokenizer.ggml.*`. Lists are empty where a file has none.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GgufTokenizer {
    /// Kind of the tokenizer: `gpt2`, `llama`.
    pub model: Option<String>,
    /// Name of the rule that splits texts into words.
    pub pre: Option<String>,
    /// The tokens, by their ids.
    pub tokens: Vec<String>,
    /// Kind of each token.
    pub types: Vec<u64>,
    /// Score of each token.
    pub scores: Vec<f64>,
    /// Pairs of tokens that are merged, the first one first, each with a space in between.
    pub merges: Vec<String>,
    /// Id of the token for what has none.
    pub unknown: Option<u64>,
    /// Whether a text begins with a space that it does not have.
    pub adds_space: Option<bool>,
    /// Whether several spaces become one.
    pub removes_spaces: Option<bool>,
    /// Bytes of the rule that normalises texts.
    pub normalizer: u64,
}

/// The tokenizer in the model of `request`; nothing if it is no GGUF file.
///
/// # Errors
/// Those of opening the model.
pub fn gguf_tokenizer(request: &GgufTokenizerRequest) -> Result<GgufTokenizer> {
    let checkpoint = Checkpoint::open(&request.model)?;
    let get = |key: &str| checkpoint.key_values.get(&format!("tokenizer.ggml.{key}"));
    let text = |key: &str| get(key).and_then(ValueRef::text).map(str::to_owned);
    let texts = |key: &str| -> Vec<String> {
        get(key).and_then(ValueRef::texts).unwrap_or_default().into_iter().map(str::to_owned).collect()
    };
    let flag = |key: &str| get(key).and_then(ValueRef::boolean);
    Ok(GgufTokenizer {
        model: text("model"),
        pre: text("pre"),
        tokens: texts("tokens"),
        types: get("token_type").and_then(ValueRef::unsigned_array).unwrap_or_default(),
        scores: get("scores").and_then(ValueRef::floats).unwrap_or_default(),
        merges: texts("merges"),
        unknown: get("unknown_token_id").and_then(ValueRef::unsigned),
        adds_space: flag("add_space_prefix"),
        removes_spaces: flag("remove_extra_whitespaces"),
        normalizer: get("precompiled_charsmap").and_then(ValueRef::elements).map_or(0, |(_, count)| count),
    })
}

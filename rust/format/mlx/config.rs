//! `config.json` in the form that `mlx-lm` reads.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::checkpoint::Config;
use crate::codec::Scheme;
use crate::codec::affine::Affine;
use crate::codec::float::mxfp4::MXFP4_SCHEME;
use crate::format::readable::without_encodings;
use crate::format::{Module, ReadKeys, Refusal};

use super::keys::complete;

/// The mode of codes with a scale and a bias per group.
const AFFINE: &str = "affine";

/// The source's configuration with sorted keys and the quantization block. The block occurs twice: MLX reads one key,
/// the Hugging Face hub displays the other.
pub(super) fn text(source: &Config, modules: &[Module], generic: bool) -> String {
    let mut config = without_encodings(source);
    if !generic {
        config = within_outer(config);
        config.remove("_name_or_path");
        config.remove("vision_config");
        // Some of its models treat the head as tied by default and would drop the stored head.
        if modules.iter().any(|module| module.path == "lm_head") {
            config.entry("tie_word_embeddings").or_insert(Value::Bool(false));
        }
        complete(&mut config, &ReadKeys::default());
    }
    if let Some(block) = block(modules) {
        config.insert("quantization".to_owned(), block.clone());
        config.insert("quantization_config".to_owned(), block);
    }
    let sorted: BTreeMap<String, Value> = config.into_iter().collect();
    let sorted: Map<String, Value> = sorted.into_iter().collect();
    format!("{:#}\n", Value::Object(sorted))
}

/// Types of language models that `mlx-lm` reads only within a larger model, and the type of that.
const WITHIN: [(&str, &str); 2] = [("qwen3_5_text", "qwen3_5"), ("qwen3_5_moe_text", "qwen3_5_moe")];

/// `config` as the `text_config` of the larger model, if `mlx-lm` reads its type only there.
fn within_outer(config: Config) -> Config {
    let model_type = config.get("model_type").and_then(Value::as_str);
    let Some((_, outer)) = WITHIN.iter().find(|(inner, _)| Some(*inner) == model_type) else { return config };
    let shared = ["dtype", "torch_dtype", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"];
    let mut found: Config =
        shared.iter().filter_map(|key| Some(((*key).to_owned(), config.get(*key)?.clone()))).collect();
    found.insert("model_type".to_owned(), json!(outer));
    found.insert("text_config".to_owned(), Value::Object(config));
    found
}

/// Values of a module in the quantization block: bits, group size, mode.
type Entry = (u8, usize, &'static str);

/// The entry of a module; `None` for plain numbers.
fn entry(module: &Module) -> Option<Entry> {
    let scheme = module.stored_in()?;
    match Affine::of(scheme) {
        Some(affine) => Some((affine.bits(), affine.group_size(), AFFINE)),
        None => (scheme == MXFP4_SCHEME).then_some((4, 32, "mxfp4")),
    }
}

/// Refuses modules whose path equals a key of the quantization block.
pub(super) fn refusals(modules: &[Module]) -> Vec<Refusal> {
    let is_key = |module: &&Module| ["bits", "group_size", "mode"].contains(&module.path.as_str());
    let refusal = |module: &Module| Refusal {
        tensor: format!("{}.weight", module.path),
        reason: "its module has the name of a key in MLX's quantization block".to_owned(),
    };
    modules.iter().filter(is_key).map(refusal).collect()
}

/// The quantization block: the most common entry at the top level, each module with another entry under its path, and
/// `false` for each module that is not quantized. `None` if nothing is quantized.
fn block(modules: &[Module]) -> Option<Value> {
    let mut counts: BTreeMap<Entry, usize> = BTreeMap::new();
    for entry in modules.iter().filter_map(entry) {
        *counts.entry(entry).or_insert(0) += 1;
    }
    // Prefers the smallest of several equally common entries: the map is sorted, and `max_by_key` returns the last.
    let top = *counts.iter().rev().max_by_key(|(_, count)| **count)?.0;
    let spelled = |(bits, group_size, mode): Entry| {
        let mut block = Map::new();
        block.insert("group_size".to_owned(), json!(group_size));
        block.insert("bits".to_owned(), json!(bits));
        block.insert("mode".to_owned(), json!(mode));
        block
    };
    let mut block = spelled(top);
    for module in modules {
        match entry(module) {
            Some(entry) if entry == top => {}
            // The loader passes the entry to the layer, so it needs all keys.
            Some(entry) => {
                block.insert(module.path.clone(), Value::Object(spelled(entry)));
            }
            None => {
                block.insert(module.path.clone(), Value::Bool(false));
            }
        }
    }
    Some(Value::Object(block))
}

/// Parses the block that [`block`] and `mlx-lm` write: the scheme of each module, by its path. An empty path stands for all others.
pub(super) fn described(config: &Config) -> BTreeMap<String, Scheme> {
    let scheme = |entry: &Value| {
        let size = |key: &str| entry.get(key)?.as_u64();
        let (bits, group_size) = (size("bits")?.try_into().ok()?, size("group_size")?.try_into().ok()?);
        match entry.get("mode").and_then(Value::as_str).unwrap_or(AFFINE) {
            AFFINE => Affine::new(bits, group_size).map(Affine::scheme),
            "mxfp4" => Some(MXFP4_SCHEME),
            _ => None,
        }
    };
    let other = config.get("quantization_config").filter(|block| block.get("quant_method").is_none());
    let Some(block) = config.get("quantization").or(other) else { return BTreeMap::new() };
    let top = scheme(block).map(|top| (String::new(), top));
    let module = |(path, entry): (&String, &Value)| match entry {
        Value::Bool(false) => Some((path.clone(), Scheme::KEPT)),
        entry => Some((path.clone(), scheme(entry)?)),
    };
    top.into_iter().chain(block.as_object().into_iter().flatten().filter_map(module)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str, scheme: &str) -> Module {
        Module { path: path.to_owned(), scheme: scheme.parse().unwrap(), packed: None }
    }

    fn parsed(source: &str, modules: &[Module]) -> Value {
        serde_json::from_str(&text(&serde_json::from_str(source).unwrap(), modules, false)).unwrap()
    }

    #[test]
    fn the_most_common_scheme_is_on_top_and_the_others_are_complete() {
        let modules = [module("a", "4g64"), module("b", "3g32"), module("c", "4g64"), module("d", "kept")];
        let config = parsed(r#"{"z": 1, "a": 1e-05}"#, &modules);
        let expected = json!({
            "group_size": 64, "bits": 4, "mode": "affine",
            "b": { "group_size": 32, "bits": 3, "mode": "affine" },
            "d": false,
        });
        assert_eq!(config["quantization"], expected);
        assert_eq!(config["quantization_config"], expected);
        let read = described(config.as_object().unwrap());
        for module in &modules {
            assert_eq!(read.get(&module.path).or(read.get("")), Some(&module.scheme));
        }
    }

    #[test]
    fn what_is_kept_packed_has_the_mode_of_its_form() {
        let packed = |path, packed: &str| Module { packed: packed.parse().ok(), ..module(path, "kept") };
        let config = parsed("{}", &[packed("a", "mxfp4"), packed("b", "mxfp4"), packed("c", "4g32")]);
        let expected = json!({
            "group_size": 32, "bits": 4, "mode": "mxfp4", "c": { "group_size": 32, "bits": 4, "mode": "affine" },
        });
        assert_eq!(config["quantization"], expected);
    }

    #[test]
    fn equally_common_schemes_give_the_smallest() {
        let config = parsed("{}", &[module("a", "6g64"), module("b", "3g32")]);
        assert_eq!(config["quantization"]["bits"], json!(3));
    }

    #[test]
    fn numbers_keep_their_text_and_keys_are_sorted() {
        let text =
            text(&serde_json::from_str(r#"{"z": 1e-05, "b": [1.0], "_name_or_path": "/x"}"#).unwrap(), &[], false);
        assert_eq!(text, "{\n  \"b\": [\n    1.0\n  ],\n  \"z\": 1e-05\n}\n");
    }

    #[test]
    fn a_head_of_its_own_is_said_to_be_one() {
        assert_eq!(parsed("{}", &[module("lm_head", "4g64")])["tie_word_embeddings"], json!(false));
        assert!(parsed("{}", &[module("a", "4g64")]).get("tie_word_embeddings").is_none());
    }
}

//! `config.json` as `mlx-lm` wants it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::checkpoint::Config;
use crate::format::Module;
use crate::scheme::{Affine, Scheme};

/// The source's configuration with its keys sorted and the quantization block in it, once as MLX reads it and once as
/// the hub shows it.
pub(super) fn text(source: &Config, modules: &[Module], generic: bool) -> String {
    let mut config: BTreeMap<&str, Value> = source.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    if !generic {
        config.remove("_name_or_path");
        config.remove("vision_config");
        complete(&mut config, modules);
    }
    if let Some(block) = block(modules) {
        config.insert("quantization", block.clone());
        config.insert("quantization_config", block);
    }
    let sorted: Map<String, Value> = config.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    format!("{:#}\n", Value::Object(sorted))
}

/// The quantization block: the most common scheme on top, every module that differs from it by its path, and `false`
/// for a module that was left as it is. `None` if nothing is quantized.
fn block(modules: &[Module]) -> Option<Value> {
    let mut counts: BTreeMap<Affine, usize> = BTreeMap::new();
    for affine in modules.iter().filter_map(|module| module.scheme.affine()) {
        *counts.entry(affine).or_insert(0) += 1;
    }
    // Of equally common ones the smallest: the map is sorted, and `max_by_key` takes the last.
    let top = *counts.iter().rev().max_by_key(|(_, count)| **count)?.0;
    let mut block = Map::new();
    block.insert("group_size".to_owned(), json!(top.group_size()));
    block.insert("bits".to_owned(), json!(top.bits()));
    block.insert("mode".to_owned(), json!("affine"));
    for module in modules {
        match module.scheme {
            Scheme::Affine(affine) if affine == top => {}
            // The loader passes an entry on whole, so it must be complete.
            Scheme::Affine(affine) => {
                let entry = json!({ "group_size": affine.group_size(), "bits": affine.bits(), "mode": "affine" });
                block.insert(module.path.clone(), entry);
            }
            Scheme::Kept => {
                block.insert(module.path.clone(), Value::Bool(false));
            }
        }
    }
    Some(Value::Object(block))
}

/// What [`block`] wrote, read back.
pub(super) fn described(config: &Config) -> Vec<(String, Scheme)> {
    let scheme = |entry: &Value| {
        let size = |key: &str| entry.get(key)?.as_u64();
        let is_affine = entry.get("mode").and_then(Value::as_str) == Some("affine");
        let (bits, group_size) = (size("bits")?.try_into().ok()?, size("group_size")?.try_into().ok()?);
        Affine::new(bits, group_size).filter(|_| is_affine).map(Scheme::Affine)
    };
    let Some(block) = config.get("quantization") else { return Vec::new() };
    let top = scheme(block).map(|top| (String::new(), top));
    let module = |(path, entry): (&String, &Value)| match entry {
        Value::Bool(false) => Some((path.clone(), Scheme::Kept)),
        entry => Some((path.clone(), scheme(entry)?)),
    };
    top.into_iter().chain(block.as_object().into_iter().flatten().filter_map(module)).collect()
}

/// Adds what `mlx-lm` looks for at the top and newer configurations keep elsewhere: without `rope_theta` it would fall
/// back to 10000, silently.
fn complete(config: &mut BTreeMap<&str, Value>, modules: &[Module]) {
    // Some of its models take the head to be tied unless told otherwise, and drop the one that is stored.
    if modules.iter().any(|module| module.path == "lm_head") {
        config.entry("tie_word_embeddings").or_insert(Value::Bool(false));
    }
    let Some(rope) = config.get("rope_parameters").cloned() else { return };
    if let Some(theta) = rope.get("rope_theta") {
        config.entry("rope_theta").or_insert_with(|| theta.clone());
    }
    if let Some(factor) = rope.get("partial_rotary_factor") {
        config.entry("partial_rotary_factor").or_insert_with(|| factor.clone());
    }
    let scaled = rope.get("rope_type").and_then(Value::as_str).is_some_and(|kind| kind != "default");
    if rope.get("rope_type").is_some() {
        config.entry("rope_scaling").or_insert(if scaled { rope } else { Value::Null });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str, scheme: &str) -> Module {
        Module { path: path.to_owned(), scheme: scheme.parse().unwrap() }
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
        let read: BTreeMap<_, _> = described(config.as_object().unwrap()).into_iter().collect();
        for module in &modules {
            assert_eq!(read.get(&module.path).or(read.get("")), Some(&module.scheme));
        }
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

    #[test]
    fn rope_parameters_are_spelled_out() {
        let default = parsed(r#"{"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}"#, &[]);
        assert_eq!(default["rope_theta"].as_f64(), Some(5e5));
        assert_eq!(default["rope_scaling"], Value::Null);
        let scaled = parsed(r#"{"rope_parameters": {"rope_theta": 1, "rope_type": "llama3", "factor": 8}}"#, &[]);
        assert_eq!(scaled["rope_scaling"]["factor"], json!(8));
        let told = parsed(r#"{"rope_theta": 7, "rope_parameters": {"rope_theta": 5e5}}"#, &[]);
        assert_eq!(told["rope_theta"], json!(7));
    }
}

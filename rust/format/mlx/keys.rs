//! Keys of `config.json` that `mlx-lm` reads, and that a configuration has under another name, in another place, or
//! leaves to the code of transformers.
//!
//! transformers 5 moved the parameters of rotary embeddings into `rope_parameters`, and dropped keys that follow from
//! others. Where `mlx-lm` has a default for such a key, it would use that without a word.

use serde_json::{Value, json};

use crate::checkpoint::Config;
use crate::format::ReadKeys;

/// Keys under which a configuration has that of its language model.
const INNER: [&str; 3] = ["text_config", "language_config", "llm_config"];

/// Keys that are added for every type whose configuration has `rope_parameters`.
const ROTARY: &[&str] = &["rope_theta", "partial_rotary_factor", "rope_scaling"];

/// The same for a type that has its own names for them.
const NEOX_ROTARY: &[&str] = &["rotary_emb_base", "rotary_pct", "rope_scaling"];

/// Further keys that `mlx-lm` requires for a type, or has defaults for that are not those of transformers.
const OF_TYPE: &[(&str, &[&str])] = &[
    ("cohere2", &["sliding_window_pattern"]),
    ("exaone4", &["head_dim"]),
    ("exaone_moe", &["head_dim"]),
    ("falcon_h1", &["head_dim"]),
    ("gemma3_text", &["rope_local_base_freq", "sliding_window_pattern"]),
    ("glm4_moe", &["head_dim"]),
    ("gpt2", &["n_ctx", "n_positions", "n_embd", "n_head", "n_layer"]),
    ("gpt_bigcode", &["n_positions", "n_embd", "n_head", "n_layer", "n_inner"]),
    ("lfm2", &["block_dim"]),
    ("mamba2", &["intermediate_size"]),
    ("minimax_m2", &["rotary_dim", "shared_intermediate_size"]),
    ("qwen3_moe", &["num_experts", "head_dim"]),
    ("qwen3_next", &["full_attention_interval"]),
];

/// Names of one quantity: any of them stands for the others.
const ALIASES: &[&[&str]] = &[
    &["n_positions", "n_ctx", "max_position_embeddings"],
    &["n_embd", "hidden_size", "d_model"],
    &["n_head", "num_attention_heads"],
    &["n_layer", "num_hidden_layers"],
    &["num_experts", "num_local_experts"],
    &["torch_dtype", "dtype"],
];

/// Keys that are the same in all models of a type, so that transformers has none for them.
const CONSTANTS: &[(&str, &str, &str)] = &[
    ("apertus", "mlp_bias", "false"),
    ("apertus", "post_norm", "false"),
    ("apertus", "qk_norm", "true"),
    ("glm_moe_dsa", "moe_layer_freq", "1"),
    ("glm_moe_dsa", "scoring_func", "\"sigmoid\""),
    ("glm_moe_dsa", "topk_method", "\"noaux_tc\""),
    ("longcat_flash", "attention_method", "\"MLA\""),
    ("longcat_flash", "mla_scale_kv_lora", "true"),
    ("longcat_flash", "mla_scale_q_lora", "true"),
    ("longcat_flash", "zero_expert_type", "\"identity\""),
    // mlx-lm reads it and does not use it.
    ("minimax_m2", "shared_intermediate_size", "0"),
];

/// Adds to `config`, and to the configuration of the language model in it, what `mlx-lm` reads and they have elsewhere.
///
/// A key that is there stays as it is, except that null is replaced where a number follows from other keys. `read` names
/// further keys that the model reads.
pub(super) fn complete(config: &mut Config, read: &ReadKeys) {
    let outer = config.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    for key in INNER {
        if let Some(Value::Object(inner)) = config.get_mut(key) {
            let model_type = inner.get("model_type").and_then(Value::as_str).unwrap_or(&outer).to_owned();
            complete_one(inner, &model_type, read);
        }
    }
    complete_one(config, &outer, read);
}

fn complete_one(config: &mut Config, model_type: &str, read: &ReadKeys) {
    let rotary = if model_type == "gpt_neox" { NEOX_ROTARY } else { ROTARY };
    let of_type = OF_TYPE.iter().find(|(known, _)| *known == model_type).map_or(&[][..], |(_, keys)| *keys);
    let nulls: Vec<String> = config.iter().filter(|(_, value)| value.is_null()).map(|(key, _)| key.clone()).collect();
    let required = of_type.iter().copied().chain(nulls.iter().map(String::as_str));
    let required: Vec<String> = required.chain(read.required.iter().map(String::as_str)).map(str::to_owned).collect();
    let optional = rotary.iter().copied().chain(read.optional.iter().map(String::as_str));
    let mut found: Vec<(String, Value)> = Vec::new();
    for key in optional {
        found.extend(elsewhere(config, key).map(|value| (key.to_owned(), value)));
    }
    for key in required {
        let value = elsewhere(config, &key).or_else(|| derived(config, model_type, &key));
        found.extend(value.map(|value| (key, value)));
    }
    for (key, value) in found {
        let place = config.entry(key).or_insert(Value::Null);
        if place.is_null() {
            *place = value;
        }
    }
}

/// The value of `key` that `config` has under another name or in another place.
fn elsewhere(config: &Config, key: &str) -> Option<Value> {
    let of_windows = || config.get("rope_parameters")?.get("sliding_attention")?.get("rope_theta").cloned();
    match key {
        "rope_theta" | "rotary_emb_base" => rope(config)?.get("rope_theta").cloned(),
        "partial_rotary_factor" | "rotary_pct" => rope(config)?.get("partial_rotary_factor").cloned(),
        "rope_scaling" => scaling_of(rope(config)?),
        "rope_local_base_freq" | "swa_rope_theta" => of_windows(),
        "full_attention_interval" | "sliding_window_pattern" => interval(config),
        _ => {
            let names = ALIASES.iter().find(|names| names.contains(&key))?;
            names.iter().filter(|name| **name != key).find_map(|name| present(config, name)).cloned()
        }
    }
}

/// The value of `key` that the code of transformers computes from other keys, for all types that have the key.
fn derived(config: &Config, model_type: &str, key: &str) -> Option<Value> {
    let size = |key: &str| present(config, key).and_then(Value::as_u64);
    let any = |names: [&str; 2]| names.into_iter().find_map(size);
    let (width, heads) = (any(["hidden_size", "n_embd"]), any(["num_attention_heads", "n_head"]));
    if let Some((.., value)) = CONSTANTS.iter().find(|(known, named, _)| (*known, *named) == (model_type, key)) {
        return serde_json::from_str(value).ok();
    }
    let number = match key {
        "head_dim" => width?.checked_div(heads?)?,
        "num_key_value_heads" => heads?,
        "n_inner" => width?.checked_mul(4)?,
        "block_dim" => width?,
        "intermediate_size" if model_type == "mamba2" => size("expand")?.checked_mul(width?)?,
        "rotary_dim" => {
            let head = size("head_dim").or_else(|| width?.checked_div(heads?))?;
            let share = rope(config)?.get("partial_rotary_factor").map_or(Some(1.0), Value::as_f64)?;
            if !(0.0..=1.0).contains(&share) {
                return None;
            }
            #[expect(clippy::cast_sign_loss, reason = "the share is between 0 and 1")]
            let rotated = (head as f64 * share) as u64;
            rotated
        }
        _ => return None,
    };
    Some(json!(number))
}

/// The value of `key`, unless it is null.
fn present<'c>(config: &'c Config, key: &str) -> Option<&'c Value> {
    config.get(key).filter(|value| !value.is_null())
}

/// The parameters of rotary embeddings. Where kinds of layers have their own, those of layers with full attention.
fn rope(config: &Config) -> Option<&Value> {
    let rope = config.get("rope_parameters")?;
    rope.get("full_attention").filter(|of_kind| of_kind.is_object()).or(Some(rope))
}

/// The value of the older key `rope_scaling`: all of `rope`, or null if the type is `default`. Some models read the type
/// as `type`, others as `rope_type`.
fn scaling_of(rope: &Value) -> Option<Value> {
    let kind = rope.get("rope_type").or_else(|| rope.get("type"))?.as_str()?;
    if kind == "default" {
        return Some(Value::Null);
    }
    let mut scaling = rope.as_object()?.clone();
    for key in ["type", "rope_type"] {
        scaling.entry(key).or_insert_with(|| json!(kind));
    }
    Some(Value::Object(scaling))
}

/// The number of layers after which layers with full attention recur. The first one determines it.
fn interval(config: &Config) -> Option<Value> {
    let kinds = config.get("layer_types")?.as_array()?;
    let first = kinds.iter().position(|kind| kind == "full_attention")?;
    Some(json!(first + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(source: &str) -> Value {
        with(source, &[], &[])
    }

    fn with(source: &str, required: &[&str], optional: &[&str]) -> Value {
        let owned = |keys: &[&str]| keys.iter().map(|&key| key.to_owned()).collect();
        let mut config = serde_json::from_str(source).unwrap();
        complete(&mut config, &ReadKeys { required: owned(required), optional: owned(optional) });
        Value::Object(config)
    }

    #[test]
    fn rope_parameters_are_spelled_out() {
        let default = completed(r#"{"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}"#);
        assert_eq!(default["rope_theta"].as_f64(), Some(5e5));
        assert_eq!(default["rope_scaling"], Value::Null);
        let scaled = completed(r#"{"rope_parameters": {"rope_theta": 1, "rope_type": "llama3", "factor": 8}}"#);
        assert_eq!(scaled["rope_scaling"]["factor"], json!(8));
        assert_eq!(scaled["rope_scaling"]["type"], json!("llama3"));
        let told = completed(r#"{"rope_theta": 7, "rope_parameters": {"rope_theta": 5e5}}"#);
        assert_eq!(told["rope_theta"], json!(7));
        let null = completed(r#"{"rope_theta": null, "rope_parameters": {"rope_theta": 5e5}}"#);
        assert_eq!(null["rope_theta"].as_f64(), Some(5e5));
        let neox = completed(
            r#"{"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 9, "partial_rotary_factor": 0.5}}"#,
        );
        assert_eq!((neox["rotary_emb_base"].as_u64(), neox["rotary_pct"].as_f64()), (Some(9), Some(0.5)));
    }

    #[test]
    fn the_language_model_within_another_is_completed_by_its_own_type() {
        let inner = r#"{"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8},
                                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}}"#;
        for (source, at) in [(inner.to_owned(), ""), (format!(r#"{{"text_config": {inner}}}"#), "/text_config")] {
            let config = completed(&source);
            let config = config.pointer(at).unwrap();
            assert_eq!(config["rope_theta"].as_f64(), Some(1e6));
            assert_eq!(config["rope_scaling"]["factor"], json!(8));
            assert_eq!(config["rope_local_base_freq"].as_f64(), Some(1e4));
            assert_eq!(config["sliding_window_pattern"], json!(2));
        }
    }

    #[test]
    fn what_a_type_requires_follows_from_other_keys() {
        let moe = completed(
            r#"{"model_type": "qwen3_moe", "num_local_experts": 8, "hidden_size": 64, "num_attention_heads": 4}"#,
        );
        assert_eq!((&moe["num_experts"], &moe["head_dim"]), (&json!(8), &json!(16)));
        let next = completed(r#"{"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]}"#);
        assert_eq!(next["full_attention_interval"], json!(2));
        let gpt2 = completed(r#"{"model_type": "gpt2", "n_positions": 32, "hidden_size": 64, "n_embd": 48}"#);
        assert_eq!((&gpt2["n_ctx"], &gpt2["n_embd"]), (&json!(32), &json!(48)));
        let mamba = completed(r#"{"model_type": "mamba2", "expand": 2, "hidden_size": 64}"#);
        assert_eq!(mamba["intermediate_size"], json!(128));
        let minimax = completed(
            r#"{"model_type": "minimax_m2", "head_dim": 32, "rope_parameters": {"partial_rotary_factor": 0.5}}"#,
        );
        assert_eq!((&minimax["rotary_dim"], &minimax["shared_intermediate_size"]), (&json!(16), &json!(0)));
    }

    #[test]
    fn null_is_replaced_only_where_a_value_follows() {
        let config = r#"{"head_dim": null, "num_key_value_heads": null, "sliding_window": null,
            "hidden_size": 64, "num_attention_heads": 4}"#;
        let config = completed(config);
        assert_eq!((&config["head_dim"], &config["num_key_value_heads"]), (&json!(16), &json!(4)));
        assert_eq!(config["sliding_window"], Value::Null);
    }

    #[test]
    fn further_keys_are_derived_only_if_they_are_required() {
        let source = r#"{"hidden_size": 64, "num_attention_heads": 4, "n_positions": 8}"#;
        assert_eq!(with(source, &["head_dim"], &[])["head_dim"], json!(16));
        assert!(with(source, &[], &["head_dim"]).get("head_dim").is_none());
        assert_eq!(with(source, &[], &["n_ctx"])["n_ctx"], json!(8));
        assert!(completed(source).get("n_ctx").is_none());
    }
}

//! The configuration of the model in a GGUF file: its key-values under the keys of a release's `config.json`.
//!
//! llama.cpp states most of a configuration under keys of its own, and has the rest in its code: which experts' shares are
//! normalised, which layers have a window, the scale of Gemma's attention. Here is what the [conventions](super::conventions) of
//! a forward pass need of both.

use serde_json::{Map, Value, json};

use super::families::gguf::{GgufModel, of_architecture};
use crate::checkpoint::stream::Reader;
use crate::checkpoint::{Checkpoint, Config};
use crate::container::gguf::value::ValueRef;
use crate::container::{Header, KeyValues, TensorEntry};
use crate::dtype::Float;
use crate::error::Result;

/// Key of a release's configuration, and the key of llama.cpp after the architecture.
type Keys = &'static [(&'static str, &'static str)];

/// Sizes of all architectures.
const SIZES: Keys = &[
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("max_position_embeddings", "context_length"),
    ("sliding_window", "attention.sliding_window"),
    ("sliding_window_pattern", "attention.sliding_window_pattern"),
    ("num_experts", "expert_count"),
    ("num_local_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
    ("original_max_position_embeddings", "rope.scaling.original_context_length"),
];

/// Numbers of all architectures.
const NUMBERS: Keys = &[
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("norm_epsilon", "attention.layer_norm_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("rope_local_base_freq", "rope.freq_base_swa"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("embedding_multiplier", "embedding_scale"),
    ("residual_multiplier", "residual_scale"),
    ("attention_multiplier", "attention.scale"),
    ("logits_scaling", "logit_scale"),
];

/// The models whose windows llama.cpp computes; for the others it ignores `attention.sliding_window`.
const WITH_WINDOWS: [&str; 4] = ["olmo2", "gemma2", "gemma3_text", "gpt_oss"];

/// No head has more channels that rotate together.
const MOST_PAIRS: u64 = 1 << 16;

/// Tokens with a meaning.
const TOKENS: Keys = &[
    ("bos_token_id", "bos_token_id"),
    ("eos_token_id", "eos_token_id"),
    ("pad_token_id", "padding_token_id"),
    ("unk_token_id", "unknown_token_id"),
];

/// Numbers of `tokenizer.ggml.token_type` of tokens that stand for no text: unknown, control, unused.
const SILENT_TOKENS: [u64; 3] = [2, 3, 5];

/// The key for the tokens that stand for no text, which no release states.
pub(crate) const SILENT_TOKEN_IDS: &str = "silent_token_ids";

/// The kind of model that a file with these key-values holds; `None` if its names are not known.
#[must_use]
pub(crate) fn model_of(key_values: &KeyValues) -> Option<&'static GgufModel> {
    let architecture = key_values.get("general.architecture")?.text()?;
    let experts = key_values.get(&format!("{architecture}.expert_count")).and_then(ValueRef::unsigned);
    of_architecture(architecture, experts.is_some_and(|count| count > 0))
}

/// The configuration that the key-values of `headers` state, those of the files of one model.
#[must_use]
pub(crate) fn config(headers: &[&Header]) -> Option<Config> {
    let entries: Vec<&TensorEntry> = headers.iter().flat_map(|header| &header.entries).collect();
    stated(&headers.first()?.key_values, &entries)
}

/// The configuration that `key_values` state, those of a model with the tensors `entries`.
#[must_use]
pub(super) fn stated(key_values: &KeyValues, entries: &[&TensorEntry]) -> Option<Config> {
    let architecture = key_values.get("general.architecture")?.text()?;
    let model = model_of(key_values);
    let stated = Stated { key_values, architecture };
    let mut config = Map::new();
    let model_type = model.map_or(architecture, |model| model.types[0]);
    config.insert("model_type".to_owned(), json!(model_type));
    for (key, own) in SIZES {
        if let Some(size) = stated.size(own) {
            config.insert((*key).to_owned(), json!(size));
        }
    }
    for (key, own) in NUMBERS {
        if let Some(number) = stated.number(own) {
            config.insert((*key).to_owned(), json!(number));
        }
    }
    for (key, own) in TOKENS {
        let id = key_values.get(&format!("tokenizer.ggml.{own}")).and_then(ValueRef::unsigned);
        let is_first = *key == "bos_token_id";
        let adds = key_values.get("tokenizer.ggml.add_bos_token").and_then(ValueRef::boolean);
        if let Some(id) = id.filter(|_| !is_first || adds != Some(false)) {
            config.insert((*key).to_owned(), json!(id));
        }
    }
    config.insert(SILENT_TOKEN_IDS.to_owned(), json!(silent_tokens(key_values)));
    let rows = |name: &str| entries.iter().find(|entry| entry.name == name).and_then(|entry| entry.shape.first());
    config.insert("vocab_size".to_owned(), json!(rows("token_embd.weight")));
    config.insert("tie_word_embeddings".to_owned(), json!(rows("output.weight").is_none()));
    let is_biased = ["blk.0.attn_q.bias", "blk.0.attn_qkv.bias"].map(rows).iter().any(Option::is_some);
    config.insert("attention_bias".to_owned(), json!(is_biased));
    config.insert("mlp_bias".to_owned(), json!(rows("blk.0.ffn_down.bias").is_some()));
    if let Some(windows) = stated.windows() {
        let kind = |is_windowed: &bool| if *is_windowed { "sliding_attention" } else { "full_attention" };
        config.insert("layer_types".to_owned(), json!(windows.iter().map(kind).collect::<Vec<_>>()));
    }
    if let Some(scaling) = stated.rope_scaling() {
        config.insert("rope_scaling".to_owned(), scaling);
    }
    if let Some(fraction) = stated.rotated_share() {
        config.insert("partial_rotary_factor".to_owned(), json!(fraction));
    }
    stated.unstated(model_type, &mut config);
    Some(config)
}

/// Whether the channels of each head are in the order of llama.cpp in `checkpoint`: those that rotate together are adjacent.
#[must_use]
pub(super) fn has_adjacent_pairs(checkpoint: &Checkpoint) -> bool {
    checkpoint.is_gguf() && model_of(&checkpoint.key_values).is_some_and(|model| model.has_adjacent_pairs)
}

/// Writes the factors of rotary frequencies, which a GGUF file holds as tensors, into the configuration.
///
/// # Errors
/// Those of reading.
pub(super) fn state_rotary_factors(checkpoint: &mut Checkpoint) -> Result<()> {
    if !checkpoint.is_gguf() {
        return Ok(());
    }
    let factors = |name: &str| -> Result<Option<Vec<f32>>> {
        let Some(tensor) = checkpoint.tensor(name).filter(|tensor| tensor.elements() <= MOST_PAIRS) else {
            return Ok(None);
        };
        let Some(float) = Float::of(tensor.dtype) else { return Ok(None) };
        let mut values = vec![0.0; tensor.elements() as usize];
        float.widen(Reader::default().bytes(checkpoint, tensor, 0..tensor.bytes)?, &mut values);
        Ok(Some(values))
    };
    let each = factors("rope_freqs.weight")?;
    let (short, long) = (factors("rope_factors_short.weight")?, factors("rope_factors_long.weight")?);
    let scaling = match (each, short, long) {
        (Some(each), ..) => json!({ "rope_type": "longrope", "short_factor": each, "long_factor": each }),
        (_, Some(short), Some(long)) => json!({ "rope_type": "longrope", "short_factor": short, "long_factor": long }),
        _ => return Ok(()),
    };
    if let Some(config) = &mut checkpoint.config {
        config.insert("rope_scaling".to_owned(), scaling);
    }
    Ok(())
}

/// The tokens that stand for no text.
fn silent_tokens(key_values: &KeyValues) -> Vec<usize> {
    let types = key_values.get("tokenizer.ggml.token_type").and_then(ValueRef::unsigned_array);
    let types = types.unwrap_or_default();
    types.iter().enumerate().filter(|(_, kind)| SILENT_TOKENS.contains(kind)).map(|(id, _)| id).collect()
}

/// Reads the values of an architecture.
struct Stated<'a> {
    key_values: &'a KeyValues,
    architecture: &'a str,
}

impl Stated<'_> {
    fn size(&self, key: &str) -> Option<u64> {
        let value = self.key_values.get(&format!("{}.{key}", self.architecture))?;
        // A number for each layer, of models whose layers differ: one that all share.
        let listed = || value.unsigned_array().filter(|all| all.windows(2).all(|pair| pair[0] == pair[1]));
        value.unsigned().or_else(|| listed()?.first().copied())
    }

    fn number(&self, key: &str) -> Option<f64> {
        let value = self.key_values.get(&format!("{}.{key}", self.architecture))?;
        // The shortest decimal of the stored `f32`: what the release stated.
        let shortest = |number: f64| (number as f32).to_string().parse().unwrap_or(number);
        value.float().map(shortest)
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.key_values.get(&format!("{}.{key}", self.architecture))?.text()
    }

    /// Whether each layer has a window, where that is listed.
    fn windows(&self) -> Option<Vec<bool>> {
        self.key_values.get(&format!("{}.attention.sliding_window_pattern", self.architecture))?.booleans()
    }

    /// The scaling of rotary frequencies, where key-values state it. Factors of each frequency are a tensor.
    fn rope_scaling(&self) -> Option<Value> {
        let kind = self.text("rope.scaling.type").filter(|kind| *kind != "none" && *kind != "longrope")?;
        let mut scaling = Map::new();
        scaling.insert("rope_type".to_owned(), json!(kind));
        let keys = [
            ("factor", "rope.scaling.factor"),
            ("beta_fast", "rope.scaling.yarn_beta_fast"),
            ("beta_slow", "rope.scaling.yarn_beta_slow"),
            ("attention_factor", "rope.scaling.yarn_attn_factor"),
        ];
        for (key, own) in keys {
            if let Some(number) = self.number(own) {
                scaling.insert(key.to_owned(), json!(number));
            }
        }
        Some(Value::Object(scaling))
    }

    /// The share of a head's channels that are rotated, if it is not all of them.
    fn rotated_share(&self) -> Option<f64> {
        let (rotated, heads) = (self.size("rope.dimension_count")?, self.size("attention.head_count")?);
        let size = self.size("attention.key_length").or(self.size("embedding_length")?.checked_div(heads))?;
        (0 < rotated && rotated < size).then(|| rotated as f64 / size as f64)
    }

    /// Adds what llama.cpp's code for a model contains and the file does not state.
    fn unstated(&self, model_type: &str, config: &mut Config) {
        let layers = self.size("block_count").unwrap_or(0);
        let mut set = |key: &str, value: Value| {
            config.entry(key).or_insert(value);
        };
        let head_size = |model_27b: u64| {
            let (width, heads) = (self.size("embedding_length"), self.size("attention.head_count"));
            let share = width.zip(heads).and_then(|(width, heads)| width.checked_div(heads));
            if layers == model_27b { share } else { self.size("attention.key_length").or(share) }
        };
        match model_type {
            "qwen3_moe" => set("norm_topk_prob", json!(true)),
            "qwen2_moe" | "olmoe" => set("norm_topk_prob", json!(false)),
            "smollm3" => set("no_rope_layer_interval", json!(4)),
            "olmo2" => set("sliding_window_pattern", json!(4)),
            "gemma2" => {
                set("query_pre_attn_scalar", json!(head_size(46)));
                set("sliding_window", json!(4096));
            }
            "gemma3_text" => {
                set("query_pre_attn_scalar", json!(head_size(62)));
                set("rope_local_base_freq", json!(10_000.0));
                set("sliding_window_pattern", json!(6));
            }
            "gpt_oss" => {
                let kind = |layer: u64| if layer.is_multiple_of(2) { "sliding_attention" } else { "full_attention" };
                set("layer_types", json!((0..layers).map(kind).collect::<Vec<_>>()));
                if let Some(inner) = self.size("expert_feed_forward_length") {
                    config.insert("intermediate_size".to_owned(), json!(inner));
                }
            }
            _ => {}
        }
        if !WITH_WINDOWS.contains(&model_type) {
            config.remove("sliding_window");
        }
    }
}

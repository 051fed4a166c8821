//! What llama.cpp computes of a release, where that is not what the release computes.
//!
//! llama.cpp has parts of a forward pass in its code, for which there are no key-values: the scale of Gemma's attention, which
//! layers have a window, the activation. A release whose configuration says otherwise loads without a word and computes
//! something else. The [conventions](super::conventions) of the release are compared with those that the key-values of its
//! header stand for.

use std::ops::Range;

use super::Activation;
use super::conventions::{ConfigReader, Conventions, Routing};
use super::gguf;
use crate::checkpoint::Checkpoint;
use crate::container::KeyValues;

/// What differs in llama.cpp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// All texts are computed in another way.
    Always(String),
    /// Only tokens that lie further back than a window are.
    BeyondWindow(String),
}

/// Sizes of which a header of the same model has the same.
const SIZES: [&str; 4] = ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"];

/// Keys of a scaling of rotary frequencies that GGUF files hold as tensors.
const FACTORS: [&str; 4] =
    ["rope_scaling", "rope_parameters", "original_max_position_embeddings", "max_position_embeddings"];

/// The largest relative difference of numbers that count as equal: key-values are in `f32`.
const ROUNDING: f64 = 1e-5;

/// Why `key_values` are not those of the release in `checkpoint`, if they are not.
#[must_use]
pub(crate) fn other_model(checkpoint: &Checkpoint, key_values: &KeyValues) -> Option<String> {
    let model_type = checkpoint.model_type()?;
    let expected = super::families::gguf::of_type(model_type)?;
    let found = key_values.get("general.architecture")?.text()?;
    if found != expected.architecture {
        return Some(format!("is of a `{found}`, and {model_type} is a `{}`", expected.architecture));
    }
    let stated = gguf::stated(key_values, &[])?;
    SIZES.iter().find_map(|key| {
        let (own, found) = (checkpoint.config_size(key)?, stated.get(*key)?.as_u64()?);
        (own != found).then(|| format!("is of a model with {key} {found}, and config.json has {own}"))
    })
}

/// What llama.cpp computes otherwise than the release in `checkpoint` says, with these key-values.
#[must_use]
pub(crate) fn differences(checkpoint: &Checkpoint, key_values: &KeyValues) -> Vec<Difference> {
    let own = Conventions::of(checkpoint);
    let (Ok(mut own), Some(mut config)) = (own, gguf::stated(key_values, &[])) else { return Vec::new() };
    let reader = ConfigReader(checkpoint);
    let Some(heads) = reader.size(&["num_attention_heads"]).filter(|heads| *heads > 0) else { return Vec::new() };
    let head_size = reader.size(&["head_dim"]).or(reader.size(&["hidden_size"]).map(|width| width / heads));
    let head_size = head_size.unwrap_or(0);
    if !own.rope.factors(head_size).is_empty() {
        for key in FACTORS {
            config.remove(key);
            config.extend(checkpoint.config_value(key).map(|value| (key.to_owned(), value.clone())));
        }
    }
    let mut other = checkpoint.clone();
    other.config = Some(config);
    let Ok(mut other) = Conventions::of(&other) else { return Vec::new() };
    for of in [&mut own, &mut other] {
        of.attention_scale.get_or_insert(1.0 / (head_size as f64).sqrt());
    }
    let pair = Pair { checkpoint, head_size, own: &own, other: &other };
    let always = pair.numbers().chain(pair.choices()).chain(pair.rotations());
    always.map(Difference::Always).chain(pair.windows().map(Difference::BeyondWindow)).collect()
}

/// A number of the conventions.
struct NumberOf {
    /// The keys that releases give it.
    keys: &'static [&'static str],
    what: &'static str,
    of: fn(&Conventions) -> Option<f64>,
}

const NUMBERS: [NumberOf; 8] = [
    NumberOf {
        keys: &["query_pre_attn_scalar", "attention_multiplier"],
        what: "the factor of queries times keys",
        of: |of| of.attention_scale,
    },
    NumberOf { keys: &["rms_norm_eps", "norm_epsilon"], what: "the epsilon of norms", of: |of| of.epsilon },
    NumberOf {
        keys: &["embedding_multiplier"],
        what: "the factor of embeddings",
        of: |of| Some(of.float32_embedding_scale),
    },
    NumberOf {
        keys: &["residual_multiplier"],
        what: "the factor of what layers add",
        of: |of| Some(of.residual_scale),
    },
    NumberOf { keys: &["logits_scaling"], what: "the factor of logits", of: |of| Some(of.logit_scale) },
    NumberOf { keys: &["final_logit_softcapping"], what: "the cap of logits", of: |of| of.logit_cap },
    NumberOf { keys: &["attn_logit_softcapping"], what: "the cap of queries times keys", of: |of| of.attention_cap },
    NumberOf { keys: &["swiglu_limit"], what: "the limit of gates", of: |of| of.clamped_gate.map(f64::from) },
];

/// The conventions of a release, and those of llama.cpp.
struct Pair<'a> {
    checkpoint: &'a Checkpoint,
    head_size: usize,
    own: &'a Conventions,
    other: &'a Conventions,
}

fn is_close(one: f64, other: f64) -> bool {
    (one - other).abs() <= ROUNDING * one.abs().max(other.abs())
}

impl Pair<'_> {
    /// The key that the configuration has of these.
    fn key(&self, keys: &[&'static str]) -> &'static str {
        keys.iter().find(|key| self.checkpoint.config_value(key).is_some()).copied().unwrap_or(keys[0])
    }

    /// Factors, limits and epsilon.
    fn numbers(&self) -> impl Iterator<Item = String> {
        let spelled = |number: Option<f64>| number.map_or("none".to_owned(), |number| (number as f32).to_string());
        NUMBERS.iter().filter_map(move |NumberOf { keys, what, of }| {
            let (own, other) = (of(self.own), of(self.other));
            let is_same = own.zip(other).map_or(own == other, |(own, other)| is_close(own, other));
            let (key, own, other) = (self.key(keys), spelled(own), spelled(other));
            (!is_same).then(|| format!("{what} (`{key}`) is {own}, and {other} in llama.cpp"))
        })
    }

    /// The activation, the norm and the routing.
    fn choices(&self) -> impl Iterator<Item = String> {
        let (own, other) = (self.own, self.other);
        let mut found = Vec::new();
        // llama.cpp has one GELU, the tanh form. The other differs from it by less than 0.001.
        let form = |of: &Conventions| match of.activation {
            Activation::Gelu => Activation::GeluTanh,
            other => other,
        };
        if form(own) != form(other) {
            let key = self.key(&["hidden_act", "hidden_activation"]);
            found.push(format!(
                "the activation (`{key}`) is {:?}, and {:?} in llama.cpp",
                own.activation, other.activation
            ));
        }
        if own.norm != other.norm {
            found.push(format!("the norms are {:?}, and {:?} in llama.cpp", own.norm, other.norm));
        }
        if let (Some(own), Some(other)) = (own.routing, other.routing)
            && own != other
        {
            let spelled = |routing: Routing| {
                let scores = if routing.sigmoid { "sigmoid" } else { "softmax" };
                let normalised = if routing.normalised { "adding up to" } else { "times" };
                format!("{} by {scores}, their shares {normalised} {}", routing.chosen, routing.scale as f32)
            };
            found.push(format!(
                "experts (`norm_topk_prob`, `num_experts_per_tok`) are chosen {}, and {} in llama.cpp",
                spelled(own),
                spelled(other)
            ));
        }
        found.into_iter()
    }

    fn layers(&self) -> Range<usize> {
        0..ConfigReader(self.checkpoint).layers()
    }

    /// The first layer whose rotary positions differ.
    fn rotations(&self) -> impl Iterator<Item = String> {
        let of = |conventions: &Conventions, layer| conventions.rope.of_layer(layer, self.head_size);
        let differs = |layer: &usize| match (of(self.own, *layer), of(self.other, *layer)) {
            (Ok(own), Ok(other)) => match (own, other) {
                (Some(own), Some(other)) => !own.is_like(&other, is_close),
                (own, other) => own.is_some() != other.is_some(),
            },
            _ => false,
        };
        let keys = ["rope_theta", "rope_scaling", "rope_parameters", "no_rope_layers"];
        let keys = keys.iter().filter(|key| self.checkpoint.config_value(key).is_some());
        let keys: Vec<String> = keys.map(|key| format!("`{key}`")).collect();
        self.layers().find(differs).into_iter().map(move |layer| {
            format!("the rotary positions of layer {layer} ({}) are others in llama.cpp", keys.join(", "))
        })
    }

    /// The windows of layers.
    fn windows(&self) -> impl Iterator<Item = String> {
        let most = ConfigReader(self.checkpoint).size(&["max_position_embeddings"]).unwrap_or(usize::MAX);
        let of = |conventions: &Conventions, layer: usize| {
            let (length, sliding) = conventions.window.as_ref()?;
            (sliding.get(layer) == Some(&true) && *length < most).then_some(*length)
        };
        let spelled = |window: Option<usize>| window.map_or("none".to_owned(), |length| format!("{length} tokens"));
        let pairs = self.layers().map(|layer| (layer, of(self.own, layer), of(self.other, layer)));
        let differing: Vec<_> = pairs.filter(|(_, own, other)| own != other).collect();
        differing.first().copied().into_iter().map(move |(layer, own, other)| {
            format!(
                "the window of {} layers (`sliding_window`; first layer {layer}) is {}, and {} in llama.cpp",
                differing.len(),
                spelled(own),
                spelled(other)
            )
        })
    }
}

//! The conventions of a forward pass: those that the configuration states, and those that only the code of its family
//! contains ([`Quirk`]).

use serde_json::Value;

use super::Activation;
use super::families::{ModelFamily, Quirk, family};
use super::gguf;
use super::rope::RopeConfig;
use crate::checkpoint::{Checkpoint, Tensor};
use crate::dtype::Float;
use crate::name::{Name, Role};

/// How a norm centres.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// RMSNorm: it divides by the root mean square.
    Rms,
    /// LayerNorm: it subtracts the mean first.
    Layer,
}

/// The choice of experts for a token, and their weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Experts per token.
    pub chosen: usize,
    /// Scores are sigmoids, not a softmax.
    pub sigmoid: bool,
    /// Weights of the chosen experts add up to `scale`.
    pub normalised: bool,
    pub scale: f64,
    /// Number of groups of experts, and of the groups that experts are chosen from.
    pub groups: Option<(usize, usize)>,
}

/// How the parts of a model are combined.
#[derive(Clone, Debug)]
pub struct Conventions {
    /// The family, if its forward pass is known.
    pub family: Option<&'static ModelFamily>,
    pub norm: NormKind,
    /// Added to a variance before its root is taken.
    pub epsilon: Option<f64>,
    /// Factor of the embeddings, rounded as the runtimes round it in the type of the embeddings.
    pub embedding_scale: f64,
    /// The same for embeddings in float32.
    pub float32_embedding_scale: f64,
    /// Factor of the output of each half of a layer, before it is added to the residual stream.
    pub residual_scale: f64,
    pub logit_scale: f64,
    /// Soft cap of the logits (tanh).
    pub logit_cap: Option<f64>,
    /// Factor of the products of queries and keys; by default the inverse square root of the head size.
    pub attention_scale: Option<f64>,
    /// Soft cap of these products (tanh).
    pub attention_cap: Option<f64>,
    /// Length of the sliding window, and for each layer whether it has one.
    pub window: Option<(usize, Vec<bool>)>,
    pub rope: RopeConfig,
    pub activation: Activation,
    /// Limit of gate and `up`, where the MLP is `g · σ(1.702 g) · (1 + u)` of these, clamped (gpt-oss).
    pub clamped_gate: Option<f32>,
    /// The outputs of a fused gate and up alternate, gate first; otherwise all of the gate comes first.
    pub interleaved: bool,
    /// Attention and MLP both read the layer's input.
    pub parallel: bool,
    /// Queries, keys and values are fused head by head; otherwise all queries come first.
    pub fused_by_head: bool,
    pub routing: Option<Routing>,
}

impl Conventions {
    /// The conventions of `checkpoint`.
    ///
    /// # Errors
    /// A sentence that says what is not known.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, String> {
        let config = ConfigReader(checkpoint);
        let family = checkpoint.model_types().filter_map(family).find(|family| family.quirks.is_some());
        let quirks = family.and_then(|family| family.quirks).unwrap_or_default();
        let has = |quirk: Quirk| quirks.contains(&quirk);
        let width = config.number(&["hidden_size", "n_embd"]).unwrap_or(1.0);
        let rms = config.number(&["rms_norm_eps"]);
        let layer = config.number(&["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"]);
        let scale = config.number(&["embedding_multiplier", "scale_emb"]);
        let embedding_scale = |stored: Float| {
            let stored = if has(Quirk::RoundedScale) { Float::BF16 } else { stored };
            let root = f64::from(stored.round(width.sqrt() as f32));
            scale.unwrap_or(if has(Quirk::ScaledEmbedding) { root } else { 1.0 })
        };
        Ok(Self {
            family,
            norm: if rms.is_none() && layer.is_some() { NormKind::Layer } else { NormKind::Rms },
            epsilon: rms.or(layer),
            embedding_scale: embedding_scale(embedding_type(checkpoint)),
            float32_embedding_scale: embedding_scale(Float::F32),
            residual_scale: config.number(&["residual_multiplier"]).unwrap_or(1.0),
            logit_scale: config
                .number(&["logit_scale"])
                .or_else(|| Some(1.0 / config.number(&["logits_scaling"])?))
                .unwrap_or(1.0),
            logit_cap: config.number(&["final_logit_softcapping"]),
            attention_scale: config
                .number(&["attention_multiplier"])
                .or_else(|| Some(1.0 / config.number(&["query_pre_attn_scalar"])?.sqrt())),
            attention_cap: config.number(&["attn_logit_softcapping"]),
            window: window(config, has(Quirk::AlternateWindows)),
            rope: RopeConfig::of(checkpoint, has(Quirk::AdjacentPairs) || gguf::has_adjacent_pairs(checkpoint)),
            activation: activation(config, has(Quirk::TanhGelu), has(Quirk::GeluByDefault))?,
            clamped_gate: has(Quirk::ClampedGate).then(|| config.number(&["swiglu_limit"]).unwrap_or(7.0) as f32),
            interleaved: checkpoint.is_release() && family.is_some_and(ModelFamily::interleaves),
            parallel: has(Quirk::Parallel) || config.flag("use_parallel_residual").unwrap_or(false),
            fused_by_head: has(Quirk::FusedByHead),
            routing: routing(config, has(Quirk::SigmoidRouting), has(Quirk::NormalisedShares)),
        })
    }
}

/// No model has more layers; a larger number in a configuration is ignored.
const MOST_LAYERS: usize = 1 << 16;

/// Reads values of a configuration, by the keys that families give them.
#[derive(Clone, Copy)]
pub(super) struct ConfigReader<'a>(pub(super) &'a Checkpoint);

impl<'a> ConfigReader<'a> {
    pub(super) fn value(self, keys: &[&str]) -> Option<&'a Value> {
        keys.iter().find_map(|key| self.0.config_value(key))
    }

    pub(super) fn number(self, keys: &[&str]) -> Option<f64> {
        self.value(keys)?.as_f64()
    }

    pub(super) fn size(self, keys: &[&str]) -> Option<usize> {
        // No model has more of anything, and products of two such numbers do not overflow.
        u32::try_from(self.value(keys)?.as_u64()?).ok().map(|size| size as usize)
    }

    pub(super) fn flag(self, key: &str) -> Option<bool> {
        self.0.config_value(key)?.as_bool()
    }

    fn text(self, keys: &[&str]) -> Option<&'a str> {
        self.value(keys)?.as_str()
    }

    /// Whether each layer has a sliding window, if the configuration lists layers.
    pub(super) fn sliding_layers(self) -> Option<Vec<bool>> {
        let types = self.0.config_value("layer_types")?.as_array()?;
        Some(types.iter().map(|kind| kind.as_str() == Some("sliding_attention")).collect())
    }

    pub(super) fn layers(self) -> usize {
        self.size(&["num_hidden_layers", "n_layer"]).filter(|layers| *layers <= MOST_LAYERS).unwrap_or(0)
    }
}

fn embedding_type(checkpoint: &Checkpoint) -> Float {
    let is_embedding = |tensor: &&Tensor| Name::parse(&tensor.name).role == Role::Embedding;
    let found = checkpoint.tensors.iter().find(is_embedding);
    found.and_then(|tensor| Float::of(tensor.dtype)).unwrap_or(Float::F32)
}

fn activation(config: ConfigReader<'_>, tanh: bool, by_default: bool) -> Result<Activation, String> {
    let silent = if tanh || by_default { "gelu_new" } else { "silu" };
    let keys: &[&str] =
        if tanh { &["hidden_activation"] } else { &["hidden_act", "hidden_activation", "activation_function"] };
    let named = config.text(keys).unwrap_or(silent);
    Ok(match named {
        "silu" | "swish" => Activation::Silu,
        "gelu" | "gelu_python" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_tanh" => Activation::GeluTanh,
        "quick_gelu" => Activation::QuickGelu,
        "relu" => Activation::Relu,
        "relu2" | "relu_squared" => Activation::Relu2,
        _ => return Err(format!("the activation `{named}` is not known")),
    })
}

/// The length of the sliding window, and which layers have one.
fn window(config: ConfigReader<'_>, alternate: bool) -> Option<(usize, Vec<bool>)> {
    let window = config.size(&["sliding_window"]).filter(|_| config.flag("use_sliding_window") != Some(false))?;
    let layers = config.layers();
    let first = config.size(&["max_window_layers"]).filter(|_| config.flag("use_sliding_window") == Some(true));
    let sliding = config.sliding_layers().unwrap_or_else(|| {
        let pattern = config.size(&["sliding_window_pattern", "_sliding_window_pattern"]);
        let slides = |layer: usize| match pattern {
            Some(pattern) => pattern > 1 && !(layer + 1).is_multiple_of(pattern),
            None if alternate => layer.is_multiple_of(2),
            None => layer >= first.unwrap_or(0),
        };
        (0..layers).map(slides).collect()
    });
    Some((window, sliding))
}

fn routing(config: ConfigReader<'_>, sigmoid: bool, normalised: bool) -> Option<Routing> {
    let chosen = config.size(&["num_experts_per_tok", "num_experts_per_token", "experts_per_token"])?;
    let groups = config.size(&["n_group"]).filter(|groups| *groups > 1);
    Some(Routing {
        chosen,
        sigmoid: sigmoid || config.text(&["scoring_func"]) == Some("sigmoid"),
        normalised: normalised || config.flag("norm_topk_prob").unwrap_or(false),
        scale: config.number(&["routed_scaling_factor"]).unwrap_or(1.0),
        groups: groups.zip(config.size(&["topk_group"])),
    })
}

//! What a configuration says of a forward pass, and what it implies without saying.
//!
//! Most of it is read from `config.json`. What a release's own code knows and its configuration does not is a list of
//! `Trait`s for its `model_type`: another family is another line of `FAMILIES`.

use serde_json::Value;

use super::Activation;
use super::rope::RopeConfig;
use crate::checkpoint::{Checkpoint, Tensor};
use crate::dtype::Float;
use crate::name::{Name, Role};

/// Something that the code of a family does and its configuration does not mention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trait {
    /// A norm's gain is `1 + weight`.
    NormAddsOne,
    /// Embeddings are multiplied by the square root of their width, rounded to their own type.
    ScaledEmbedding,
    /// That root is rounded to bfloat16, whatever they are stored in.
    RoundedScale,
    /// The MLP's curve is GELU in its tanh form, unless `hidden_activation` says otherwise; `hidden_act` is not heard.
    TanhGelu,
    /// The MLP's curve is GELU in its tanh form, if the configuration is silent.
    GeluByDefault,
    /// Attention and MLP both read the block's input.
    Parallel,
    /// Rotary pairs are neighbours, not half a head apart.
    NeighbourPairs,
    /// Queries, keys and values are fused head by head.
    FusedByHead,
    /// Linear layers are stored with a row for each input.
    InputMajor,
    /// Stacks of experts, too, and a fused gate and up alternate.
    InputMajorStacks,
    /// The gate is clamped and sharpened, and the other half shifted by one.
    ClampedGate,
    /// Experts are scored by a sigmoid each, not by a softmax.
    SigmoidRouting,
    /// The chosen experts' shares add up to one, whatever the configuration says.
    NormalisedShares,
    /// Every other layer, from the first on, looks back a window only.
    AlternateWindows,
}

/// The model types whose forward pass is known.
const FAMILIES: &[(&str, &[Trait])] = {
    use Trait::{
        AlternateWindows, ClampedGate, FusedByHead, GeluByDefault, InputMajor, InputMajorStacks, NeighbourPairs,
        NormAddsOne, NormalisedShares, Parallel, RoundedScale, ScaledEmbedding, SigmoidRouting, TanhGelu,
    };
    &[
        ("llama", &[]),
        ("mistral", &[]),
        ("qwen2", &[]),
        ("qwen3", &[]),
        ("gemma", &[NormAddsOne, ScaledEmbedding, TanhGelu]),
        ("gemma2", &[NormAddsOne, ScaledEmbedding, TanhGelu, AlternateWindows]),
        ("gemma3_text", &[NormAddsOne, ScaledEmbedding, RoundedScale, TanhGelu]),
        ("phi3", &[]),
        ("olmo2", &[]),
        ("smollm3", &[]),
        ("granite", &[]),
        ("glm4", &[NeighbourPairs]),
        ("gpt2", &[InputMajor, GeluByDefault]),
        ("gpt_neox", &[FusedByHead, GeluByDefault]),
        ("starcoder2", &[GeluByDefault]),
        ("stablelm", &[]),
        ("phi", &[Parallel, GeluByDefault]),
        ("cohere", &[Parallel, NeighbourPairs]),
        ("mixtral", &[NormalisedShares]),
        ("qwen2_moe", &[]),
        ("qwen3_moe", &[]),
        ("olmoe", &[]),
        ("glm4_moe", &[SigmoidRouting]),
        ("gpt_oss", &[InputMajorStacks, ClampedGate, NormalisedShares]),
    ]
};

/// How a norm centres.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Divides by the root mean square.
    Rms,
    /// Takes the mean away first.
    Layer,
}

/// Which experts a token goes to, and how much of each it gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Experts per token.
    pub chosen: usize,
    /// Scores are sigmoids, not a softmax.
    pub sigmoid: bool,
    /// Shares of the chosen add up to `scale`.
    pub normalised: bool,
    /// Shares are multiplied by this.
    pub scale: f64,
    /// Experts are in so many groups, and only so many of these are chosen from.
    pub groups: Option<(usize, usize)>,
}

/// How the parts of a decoder go together.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a release does each of these or not, whatever it does of the others"
)]
pub struct Conventions {
    /// The model type, if its forward pass is known.
    pub family: Option<&'static str>,
    /// What its norms do.
    pub norm: NormKind,
    /// What is added to a variance.
    pub epsilon: Option<f64>,
    /// A norm's gain is `1 + weight`.
    pub norm_adds_one: bool,
    /// Looked-up embeddings are multiplied by this.
    pub embedding_scale: f64,
    /// A block's output is multiplied by this before it is added.
    pub residual_scale: f64,
    /// Logits are multiplied by this.
    pub logit_scale: f64,
    /// Logits are held between this and its negative, smoothly.
    pub logit_cap: Option<f64>,
    /// Products of queries and keys are multiplied by this; by the inverse square root of the head's size, if not given.
    pub attention_scale: Option<f64>,
    /// They are held between this and its negative, smoothly.
    pub attention_cap: Option<f64>,
    /// How far back the layers look that do not look back all the way; and which these are, layer by layer.
    pub window: Option<(usize, Vec<bool>)>,
    /// Positions.
    pub rope: RopeConfig,
    /// The MLP's non-linearity.
    pub activation: Activation,
    /// The gate is `z · sigmoid(1.702 z)` of `z = min(gate, limit)`, and times one more than the other half, held to
    /// `±limit`.
    pub clamped_gate: Option<f32>,
    /// The outputs of a fused gate and up alternate, gate first; otherwise all of the gate comes first.
    pub interleaved: bool,
    /// Attention and MLP both read the block's input.
    pub parallel: bool,
    /// Queries, keys and values are fused head by head; else all queries come first.
    pub fused_by_head: bool,
    /// How experts are chosen, if there are any.
    pub routing: Option<Routing>,
    input_major: bool,
    input_major_stacks: bool,
}

impl Conventions {
    /// Those of `checkpoint`.
    ///
    /// # Errors
    /// A sentence that says what is not known.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, String> {
        let config = ConfigReader(checkpoint);
        let known = checkpoint.model_types().find_map(|found| FAMILIES.iter().find(|(family, _)| *family == found));
        let has = |which: Trait| known.is_some_and(|(_, traits)| traits.contains(&which));
        let width = config.number(&["hidden_size", "n_embd"]).unwrap_or(1.0);
        let rms = config.number(&["rms_norm_eps"]);
        let layer = config.number(&["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"]);
        let scale = config.number(&["embedding_multiplier", "scale_emb"]);
        let stored = if has(Trait::RoundedScale) { Float::BF16 } else { embedding_type(checkpoint) };
        let root = f64::from(stored.round(width.sqrt() as f32));
        Ok(Self {
            family: known.map(|(family, _)| *family),
            norm: if rms.is_none() && layer.is_some() { NormKind::Layer } else { NormKind::Rms },
            epsilon: rms.or(layer),
            norm_adds_one: has(Trait::NormAddsOne),
            embedding_scale: scale.unwrap_or(if has(Trait::ScaledEmbedding) { root } else { 1.0 }),
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
            window: window(config, has(Trait::AlternateWindows)),
            rope: RopeConfig::of(checkpoint, has(Trait::NeighbourPairs)),
            activation: activation(config, has(Trait::TanhGelu), has(Trait::GeluByDefault))?,
            clamped_gate: has(Trait::ClampedGate).then(|| config.number(&["swiglu_limit"]).unwrap_or(7.0) as f32),
            interleaved: has(Trait::InputMajorStacks),
            parallel: has(Trait::Parallel) || config.flag("use_parallel_residual").unwrap_or(false),
            fused_by_head: has(Trait::FusedByHead),
            routing: routing(config, has(Trait::SigmoidRouting), has(Trait::NormalisedShares)),
            input_major: has(Trait::InputMajor),
            input_major_stacks: has(Trait::InputMajorStacks),
        })
    }

    /// Whether the matrix `name` is stored with a row for each input.
    #[must_use]
    pub fn transposed(&self, name: &str) -> bool {
        self.input_major && name.rsplit('.').nth(1).is_some_and(|module| module.starts_with("c_"))
    }

    /// Whether stacks of matrices are.
    #[must_use]
    pub fn stacks_transposed(&self) -> bool {
        self.input_major_stacks
    }
}

/// No model has more layers: what claims to is not believed.
const MOST_LAYERS: usize = 1 << 16;

/// Values of a configuration by the names that families give them.
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
        // No model has more of anything; products of two such numbers stay numbers.
        u32::try_from(self.value(keys)?.as_u64()?).ok().map(|size| size as usize)
    }

    pub(super) fn flag(self, key: &str) -> Option<bool> {
        self.0.config_value(key)?.as_bool()
    }

    fn text(self, keys: &[&str]) -> Option<&'a str> {
        self.value(keys)?.as_str()
    }

    /// For each layer, whether it is one that looks back a window only, where the configuration lists them.
    pub(super) fn sliding_layers(self) -> Option<Vec<bool>> {
        let types = self.0.config_value("layer_types")?.as_array()?;
        Some(types.iter().map(|kind| kind.as_str() == Some("sliding_attention")).collect())
    }

    pub(super) fn layers(self) -> usize {
        self.size(&["num_hidden_layers", "n_layer"]).filter(|layers| *layers <= MOST_LAYERS).unwrap_or(0)
    }
}

/// What the embedding is stored in.
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

/// How far back which layers look.
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

//! The parts that each model type consists of.

use super::parts::{FeedForwardKind, HeadNorms, MixerKind, When};
use super::{HeadTie, Sizes};

/// The parts of a model type.
#[derive(Debug)]
pub(super) struct TypeLayout {
    types: &'static [&'static str],
    pub attention: MixerKind,
    pub feed_forward: FeedForwardKind,
    /// Norms of a layer over the residual stream.
    pub norms: &'static [&'static str],
    /// The norm that a layer lacks if attention and MLP are parallel.
    pub serial_norm: Option<&'static str>,
    /// Whether norms have a bias.
    pub norm_bias: When,
    /// Names of the embedding, the layers, the last norm and the head.
    pub embedding: &'static str,
    pub layers: &'static str,
    pub last_norm: &'static str,
    pub head: &'static str,
    pub head_bias: bool,
    pub tie: HeadTie,
}

const BEFORE: &[&str] = &["input_layernorm", "post_attention_layernorm"];
const AROUND: &[&str] =
    &["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"];

/// Attention with separate projections without biases.
const PLAIN: MixerKind =
    MixerKind::Split { biased: When::Never, output_biased: When::Never, norms: HeadNorms::None, output: "o_proj" };

const fn split(biased: When, output_biased: When, norms: HeadNorms) -> MixerKind {
    MixerKind::Split { biased, output_biased, norms, output: "o_proj" }
}

/// Attention with biases if `attention_bias` says so.
const STATED: MixerKind = split(When::Flag("attention_bias"), When::Flag("attention_bias"), HeadNorms::None);

const LLAMA: TypeLayout = TypeLayout {
    types: &["llama", "mistral", "granite"],
    attention: STATED,
    feed_forward: FeedForwardKind::Gated { biased: When::Flag("mlp_bias") },
    norms: BEFORE,
    serial_norm: None,
    norm_bias: When::Never,
    embedding: "embed_tokens",
    layers: "layers",
    last_norm: "norm",
    head: "lm_head",
    head_bias: false,
    tie: HeadTie::Stated(false),
};

const GATED: FeedForwardKind = FeedForwardKind::Gated { biased: When::Never };

const fn experts(block: &'static str, width: &'static str) -> FeedForwardKind {
    FeedForwardKind::Experts { block, width, correction: None }
}

/// The layout of `model_type`.
pub(super) fn layout(model_type: &str) -> Option<&'static TypeLayout> {
    LAYOUTS.iter().find(|layout| layout.types.contains(&model_type))
}

const LAYOUTS: &[TypeLayout] = &[
    LLAMA,
    TypeLayout { types: &["smollm3"], tie: HeadTie::Stated(true), ..LLAMA },
    TypeLayout {
        types: &["qwen2"],
        attention: split(When::Always, When::Never, HeadNorms::None),
        feed_forward: GATED,
        ..LLAMA
    },
    TypeLayout {
        types: &["qwen3"],
        attention: split(When::Flag("attention_bias"), When::Flag("attention_bias"), HeadNorms::PerHead),
        feed_forward: GATED,
        ..LLAMA
    },
    TypeLayout { types: &["phi3"], attention: MixerKind::Fused, feed_forward: FeedForwardKind::FusedGated, ..LLAMA },
    TypeLayout {
        types: &["olmo2"],
        attention: split(When::Flag("attention_bias"), When::Flag("attention_bias"), HeadNorms::AllHeads),
        norms: &["post_attention_layernorm", "post_feedforward_layernorm"],
        ..LLAMA
    },
    TypeLayout {
        types: &["stablelm"],
        attention: split(When::Flag("use_qkv_bias"), When::Never, HeadNorms::EachHead(When::Flag("qk_layernorm"))),
        feed_forward: GATED,
        serial_norm: Some("post_attention_layernorm"),
        norm_bias: When::Always,
        tie: HeadTie::Never,
        ..LLAMA
    },
    TypeLayout {
        types: &["glm4"],
        attention: split(When::Flag("attention_bias"), When::Never, HeadNorms::None),
        feed_forward: FeedForwardKind::FusedGated,
        norms: &["input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm"],
        tie: HeadTie::Never,
        ..LLAMA
    },
    TypeLayout {
        types: &["starcoder2"],
        attention: split(When::Always, When::Always, HeadNorms::None),
        feed_forward: FeedForwardKind::TwoLayers { first: "c_fc", second: "c_proj" },
        norm_bias: When::Always,
        tie: HeadTie::Stated(true),
        ..LLAMA
    },
    TypeLayout {
        types: &["phi"],
        attention: MixerKind::Split {
            biased: When::Always,
            output_biased: When::Always,
            norms: HeadNorms::None,
            output: "dense",
        },
        feed_forward: FeedForwardKind::TwoLayers { first: "fc1", second: "fc2" },
        norms: &["input_layernorm"],
        norm_bias: When::Always,
        last_norm: "final_layernorm",
        head_bias: true,
        tie: HeadTie::Never,
        ..LLAMA
    },
    TypeLayout {
        types: &["cohere"],
        attention: split(
            When::Flag("attention_bias"),
            When::Flag("attention_bias"),
            HeadNorms::Rows(When::Flag("use_qk_norm")),
        ),
        feed_forward: GATED,
        norms: &["input_layernorm"],
        norm_bias: When::Flag("layer_norm_bias"),
        tie: HeadTie::Always,
        ..LLAMA
    },
    TypeLayout { types: &["gemma"], attention: PLAIN, feed_forward: GATED, tie: HeadTie::Always, ..LLAMA },
    TypeLayout {
        types: &["gemma2"],
        attention: PLAIN,
        feed_forward: GATED,
        norms: AROUND,
        tie: HeadTie::Always,
        ..LLAMA
    },
    TypeLayout {
        types: &["gemma3_text"],
        attention: split(When::Never, When::Never, HeadNorms::PerHead),
        feed_forward: GATED,
        norms: AROUND,
        tie: HeadTie::Stated(true),
        ..LLAMA
    },
    TypeLayout {
        types: &["mixtral"],
        attention: PLAIN,
        feed_forward: experts("block_sparse_moe", "intermediate_size"),
        ..LLAMA
    },
    TypeLayout {
        types: &["minimax_m2"],
        attention: split(When::Never, When::Never, HeadNorms::AllHeads),
        feed_forward: FeedForwardKind::Experts {
            block: "block_sparse_moe",
            width: "intermediate_size",
            correction: Some("e_score_correction_bias"),
        },
        ..LLAMA
    },
    TypeLayout {
        types: &["qwen2_moe"],
        attention: split(When::Always, When::Never, HeadNorms::None),
        feed_forward: FeedForwardKind::QwenExperts { has_shared: true },
        tie: HeadTie::Never,
        ..LLAMA
    },
    TypeLayout {
        types: &["qwen3_moe"],
        attention: split(When::Never, When::Never, HeadNorms::PerHead),
        feed_forward: FeedForwardKind::QwenExperts { has_shared: false },
        ..LLAMA
    },
    TypeLayout {
        types: &["olmoe"],
        attention: split(When::Flag("attention_bias"), When::Flag("attention_bias"), HeadNorms::AllHeads),
        feed_forward: experts("mlp", "intermediate_size"),
        ..LLAMA
    },
    TypeLayout {
        types: &["glm4_moe"],
        attention: split(When::Flag("attention_bias"), When::Never, HeadNorms::PerHeadIf(When::Flag("use_qk_norm"))),
        feed_forward: FeedForwardKind::DeepSeekExperts { has_correction: |_| true },
        tie: HeadTie::Never,
        ..LLAMA
    },
    TypeLayout {
        types: &["deepseek_v2"],
        attention: MixerKind::Latent,
        feed_forward: FeedForwardKind::DeepSeekExperts { has_correction: |_| false },
        tie: HeadTie::Never,
        ..LLAMA
    },
    TypeLayout {
        types: &["deepseek_v3", "kimi_k2", "kimi_k25"],
        attention: MixerKind::Latent,
        feed_forward: FeedForwardKind::DeepSeekExperts { has_correction: is_noaux },
        tie: HeadTie::Never,
        ..LLAMA
    },
    TypeLayout {
        types: &["qwen3_next"],
        attention: MixerKind::Hybrid { is_split: false },
        feed_forward: FeedForwardKind::QwenExperts { has_shared: true },
        ..LLAMA
    },
    TypeLayout {
        types: &["qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text"],
        attention: MixerKind::Hybrid { is_split: true },
        feed_forward: FeedForwardKind::QwenExperts { has_shared: true },
        ..LLAMA
    },
    TypeLayout {
        types: &["gpt_oss"],
        attention: MixerKind::WithSinks,
        feed_forward: FeedForwardKind::BiasedExperts,
        tie: HeadTie::Never,
        ..LLAMA
    },
    TypeLayout {
        types: &["llama4"],
        attention: STATED,
        feed_forward: FeedForwardKind::Llama4,
        tie: HeadTie::Never,
        ..LLAMA
    },
    TypeLayout {
        types: &["mamba2"],
        attention: MixerKind::Mamba2,
        feed_forward: FeedForwardKind::None,
        norms: &["norm"],
        embedding: "embeddings",
        last_norm: "norm_f",
        ..LLAMA
    },
    TypeLayout {
        types: &["gpt2"],
        attention: MixerKind::Gpt2,
        feed_forward: FeedForwardKind::Gpt2,
        norms: &["ln_1", "ln_2"],
        norm_bias: When::Always,
        embedding: "wte",
        layers: "h",
        last_norm: "ln_f",
        tie: HeadTie::Always,
        ..LLAMA
    },
    TypeLayout {
        types: &["gpt_neox"],
        attention: MixerKind::GptNeox,
        feed_forward: FeedForwardKind::TwoLayers { first: "dense_h_to_4h", second: "dense_4h_to_h" },
        norm_bias: When::Always,
        embedding: "embed_in",
        last_norm: "final_layer_norm",
        head: "embed_out",
        tie: HeadTie::Never,
        ..LLAMA
    },
];

/// Whether routers of `deepseek_v3` have a correction: they do unless the configuration names another method.
fn is_noaux(config: Sizes<'_>) -> bool {
    config.0.config_value("topk_method").and_then(serde_json::Value::as_str).is_none_or(|method| method == "noaux_tc")
}

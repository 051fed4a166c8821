//! The tensors of the parts of a model.

use super::{Dimension, Drawing, Sizes};

/// Whether a part is there.
#[derive(Clone, Copy, Debug)]
pub(super) enum When {
    Never,
    Always,
    /// If the configuration says so.
    Flag(&'static str),
}

impl When {
    fn holds(self, config: Sizes<'_>) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::Flag(key) => config.flag(key),
        }
    }
}

/// Norms of queries and keys.
#[derive(Clone, Copy, Debug)]
pub(super) enum HeadNorms {
    None,
    /// One gain for each channel of a head.
    PerHead,
    PerHeadIf(When),
    /// One gain for each channel of all heads.
    AllHeads,
    /// A row of gains for each head.
    Rows(When),
    /// A norm for each head.
    EachHead(When),
}

/// What mixes tokens.
#[derive(Clone, Copy, Debug)]
pub(super) enum MixerKind {
    Split {
        /// Whether queries, keys and values have a bias.
        biased: When,
        output_biased: When,
        norms: HeadNorms,
        output: &'static str,
    },
    /// Queries, keys and values in one matrix (Phi 3).
    Fused,
    /// With a sink for each head (gpt-oss).
    WithSinks,
    /// Multi-head latent attention (`deepseek_v2`).
    Latent,
    /// Linear attention in most layers, gated attention in the others (Qwen 3 Next).
    Hybrid {
        /// Whether the projections of linear attention are separate.
        is_split: bool,
    },
    Gpt2,
    GptNeox,
    Mamba2,
}

/// What follows attention.
#[derive(Clone, Copy, Debug)]
pub(super) enum FeedForwardKind {
    None,
    Gated {
        biased: When,
    },
    /// Gate and up in one matrix.
    FusedGated,
    /// Two layers with biases.
    TwoLayers {
        first: &'static str,
        second: &'static str,
    },
    Gpt2,
    /// Experts in every layer.
    Experts {
        block: &'static str,
        /// The key of an expert's width.
        width: &'static str,
        /// Name of the router's correction.
        correction: Option<&'static str>,
    },
    /// Experts of Qwen: in the layers that the configuration does not except.
    QwenExperts {
        has_shared: bool,
    },
    /// Experts of `deepseek_v2`: from a layer on, with shared ones.
    DeepSeekExperts {
        has_correction: fn(Sizes<'_>) -> bool,
    },
    /// Experts of gpt-oss, with biases.
    BiasedExperts,
    Llama4,
}

impl Drawing<'_> {
    /// Adds the tensors outside of layers, except for the head. Returns the name of the embedding.
    pub(super) fn outside(&mut self, vocabulary: Dimension) -> String {
        let (config, layout, body) = (self.config, self.layout, self.body);
        let embedding = format!("{body}{}.weight", layout.embedding);
        self.tensor(embedding.clone(), &[vocabulary, config.hidden()]);
        if matches!(layout.attention, MixerKind::Gpt2) {
            let positions = config.size(&["n_positions", "n_ctx", "max_position_embeddings"]);
            self.tensor(format!("{body}wpe.weight"), &[positions, config.hidden()]);
        }
        self.norm(&format!("{body}{}", layout.last_norm), config.hidden(), layout.norm_bias.holds(config));
        embedding
    }

    /// Adds the tensors of a layer.
    pub(super) fn layer(&mut self, layer: u64) {
        let (config, layout) = (self.config, self.layout);
        let within = format!("{}{}.{layer}.", self.body, layout.layers);
        self.attention(&within, layer);
        self.feed_forward(&within, layer);
        let parallel = layout.serial_norm.filter(|_| config.flag("use_parallel_residual"));
        for norm in layout.norms.iter().filter(|norm| parallel != Some(**norm)) {
            self.norm(&format!("{within}{norm}"), config.hidden(), layout.norm_bias.holds(config));
        }
    }

    fn attention(&mut self, within: &str, layer: u64) {
        let config = self.config;
        let (hidden, heads, size) = (config.hidden(), config.heads(), config.head_size());
        let (queries, keys) = (heads * size, config.key_heads() * size);
        let module = |name: &str| format!("{within}self_attn.{name}");
        match self.layout.attention {
            MixerKind::Split { biased, output_biased, norms, output } => {
                let biased = biased.holds(config);
                self.linear(&module("q_proj"), queries, hidden, biased);
                self.linear(&module("k_proj"), keys, hidden, biased);
                self.linear(&module("v_proj"), keys, hidden, biased);
                self.linear(&module(output), hidden, queries, output_biased.holds(config));
                self.head_norms(within, norms);
            }
            MixerKind::Fused => {
                self.linear(&module("qkv_proj"), queries + 2 * keys, hidden, false);
                self.linear(&module("o_proj"), hidden, queries, false);
            }
            MixerKind::WithSinks => {
                for (name, outputs) in [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)] {
                    self.linear(&module(name), outputs, hidden, true);
                }
                self.linear(&module("o_proj"), hidden, queries, true);
                self.tensor(module("sinks"), &[heads]);
            }
            MixerKind::Latent => self.latent(within),
            MixerKind::Hybrid { is_split } => self.hybrid(within, layer, is_split),
            MixerKind::Gpt2 => {
                self.linear(&format!("{within}attn.c_attn"), 3 * hidden, hidden, true);
                self.linear(&format!("{within}attn.c_proj"), hidden, hidden, true);
            }
            MixerKind::GptNeox => {
                self.linear(&format!("{within}attention.query_key_value"), 3 * hidden, hidden, true);
                self.linear(&format!("{within}attention.dense"), hidden, hidden, true);
            }
            MixerKind::Mamba2 => self.mamba2(within),
        }
    }

    fn head_norms(&mut self, within: &str, norms: HeadNorms) {
        let config = self.config;
        let size = config.head_size();
        for (name, heads) in [("q", config.heads()), ("k", config.key_heads())] {
            let weight = format!("{within}self_attn.{name}_norm.weight");
            match norms {
                HeadNorms::PerHead => self.tensor(weight, &[size]),
                HeadNorms::PerHeadIf(when) if when.holds(config) => self.tensor(weight, &[size]),
                HeadNorms::AllHeads => self.tensor(weight, &[heads * size]),
                HeadNorms::Rows(when) if when.holds(config) => self.tensor(weight, &[heads, size]),
                HeadNorms::EachHead(when) if when.holds(config) => {
                    for head in 0..heads.0.unwrap_or(0).min(super::MAX_LAYERS) {
                        self.tensor(format!("{within}self_attn.{name}_layernorm.norms.{head}.weight"), &[size]);
                    }
                }
                HeadNorms::None | HeadNorms::PerHeadIf(_) | HeadNorms::Rows(_) | HeadNorms::EachHead(_) => {}
            }
        }
    }

    fn latent(&mut self, within: &str) {
        let config = self.config;
        let of = |key: &str| config.size(&[key]);
        let (hidden, heads, rank) = (config.hidden(), config.heads(), of("q_lora_rank"));
        let (nope, rope, value) = (of("qk_nope_head_dim"), of("qk_rope_head_dim"), of("v_head_dim"));
        let biased = config.flag("attention_bias");
        let module = |name: &str| format!("{within}self_attn.{name}");
        if rank.0.is_some() {
            self.linear(&module("q_a_proj"), rank, hidden, biased);
            self.norm(&module("q_a_layernorm"), rank, false);
            self.linear(&module("q_b_proj"), heads * (nope + rope), rank, false);
        } else {
            self.linear(&module("q_proj"), heads * (nope + rope), hidden, false);
        }
        let keys = of("kv_lora_rank");
        self.linear(&module("kv_a_proj_with_mqa"), keys + rope, hidden, biased);
        self.norm(&module("kv_a_layernorm"), keys, false);
        self.linear(&module("kv_b_proj"), heads * (nope + value), keys, false);
        self.linear(&module("o_proj"), hidden, heads * value, biased);
    }

    fn hybrid(&mut self, within: &str, layer: u64, is_split: bool) {
        let config = self.config;
        let hidden = config.hidden();
        let interval = config.size(&["full_attention_interval"]).0.unwrap_or(4).max(1);
        let is_full = config.has_full_attention(layer).unwrap_or((layer + 1).is_multiple_of(interval));
        if is_full {
            let (queries, keys) = (config.heads() * config.head_size(), config.key_heads() * config.head_size());
            let biased = config.flag("attention_bias");
            let module = |name: &str| format!("{within}self_attn.{name}");
            // Queries come with a gate of the output.
            for (name, outputs) in [("q_proj", 2 * queries), ("k_proj", keys), ("v_proj", keys)] {
                self.linear(&module(name), outputs, hidden, biased);
            }
            self.linear(&module("o_proj"), hidden, queries, biased);
            self.head_norms(within, HeadNorms::PerHead);
            return;
        }
        let of = |key: &str| config.size(&[key]);
        let heads = of("linear_num_value_heads");
        let keys = of("linear_num_key_heads") * of("linear_key_head_dim");
        let values = heads * of("linear_value_head_dim");
        let module = |name: &str| format!("{within}linear_attn.{name}");
        let projections: &[(&str, Dimension)] = if is_split {
            &[("in_proj_qkv", 2 * keys + values), ("in_proj_z", values), ("in_proj_a", heads), ("in_proj_b", heads)]
        } else {
            &[("in_proj_qkvz", 2 * keys + 2 * values), ("in_proj_ba", 2 * heads)]
        };
        for (name, outputs) in projections {
            self.linear(&module(name), *outputs, hidden, false);
        }
        self.tensor(module("A_log"), &[heads]);
        self.tensor(module("dt_bias"), &[heads]);
        self.tensor(module("conv1d.weight"), &[2 * keys + values, Dimension::ONE, of("linear_conv_kernel_dim")]);
        self.tensor(module("norm.weight"), &[of("linear_value_head_dim")]);
        self.linear(&module("out_proj"), hidden, values, false);
    }

    fn mamba2(&mut self, within: &str) {
        let config = self.config;
        let of = |keys: &[&str]| config.size(keys);
        let (hidden, heads) = (config.hidden(), of(&["num_heads"]));
        let inner = heads * of(&["head_dim"]);
        let convolved = inner + 2 * (of(&["n_groups"]) * of(&["state_size", "ssm_state_size"]));
        let biased = config.flag("use_bias");
        let module = |name: &str| format!("{within}mixer.{name}");
        self.linear(&module("in_proj"), inner + convolved + heads, hidden, biased);
        self.linear(&module("out_proj"), hidden, inner, biased);
        for name in ["dt_bias", "A_log", "D"] {
            self.tensor(module(name), &[heads]);
        }
        self.tensor(module("conv1d.weight"), &[convolved, Dimension::ONE, of(&["conv_kernel"])]);
        if config.flag("use_conv_bias") {
            self.tensor(module("conv1d.bias"), &[convolved]);
        }
        self.tensor(module("norm.weight"), &[inner]);
    }

    fn feed_forward(&mut self, within: &str, layer: u64) {
        let config = self.config;
        let (hidden, inner) = (config.hidden(), config.inner());
        let mlp = format!("{within}mlp");
        match self.layout.feed_forward {
            FeedForwardKind::None => {}
            FeedForwardKind::Gated { biased } => self.gated(&mlp, inner, biased.holds(config)),
            FeedForwardKind::FusedGated => {
                self.linear(&format!("{mlp}.gate_up_proj"), 2 * inner, hidden, false);
                self.linear(&format!("{mlp}.down_proj"), hidden, inner, false);
            }
            FeedForwardKind::TwoLayers { first, second } => {
                self.linear(&format!("{mlp}.{first}"), inner, hidden, true);
                self.linear(&format!("{mlp}.{second}"), hidden, inner, true);
            }
            FeedForwardKind::Gpt2 => {
                let inner = config.size(&["n_inner"]).or(4 * hidden);
                self.linear(&format!("{mlp}.c_fc"), inner, hidden, true);
                self.linear(&format!("{mlp}.c_proj"), hidden, inner, true);
            }
            FeedForwardKind::Experts { block, width, correction } => {
                let block = format!("{within}{block}");
                self.linear(&format!("{block}.gate"), config.experts(), hidden, false);
                self.experts(&format!("{block}.experts"), config.size(&[width]), false);
                if let Some(name) = correction {
                    self.tensor(format!("{block}.{name}"), &[config.experts()]);
                }
            }
            FeedForwardKind::QwenExperts { has_shared } => self.qwen_experts(&mlp, layer, has_shared),
            FeedForwardKind::DeepSeekExperts { has_correction } => self.deepseek_experts(&mlp, layer, has_correction),
            FeedForwardKind::BiasedExperts => {
                self.linear(&format!("{mlp}.router"), config.experts(), hidden, true);
                self.experts(&format!("{mlp}.experts"), inner, true);
            }
            FeedForwardKind::Llama4 => self.llama4_experts(&format!("{within}feed_forward"), layer),
        }
    }

    fn gated(&mut self, block: &str, inner: Dimension, biased: bool) {
        let hidden = self.config.hidden();
        self.linear(&format!("{block}.gate_proj"), inner, hidden, biased);
        self.linear(&format!("{block}.up_proj"), inner, hidden, biased);
        self.linear(&format!("{block}.down_proj"), hidden, inner, biased);
    }

    /// Adds stacks of experts of `inner` columns.
    fn experts(&mut self, block: &str, inner: Dimension, biased: bool) {
        let (count, hidden) = (self.config.experts(), self.config.hidden());
        for (name, outputs, inputs) in [("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)] {
            self.tensor(format!("{block}.{name}_proj.weight"), &[count, outputs, inputs]);
            if biased {
                self.tensor(format!("{block}.{name}_proj.bias"), &[count, outputs]);
            }
        }
    }

    fn qwen_experts(&mut self, mlp: &str, layer: u64, has_shared: bool) {
        let config = self.config;
        let step = config.size(&["decoder_sparse_step"]).0.unwrap_or(1);
        let is_excepted = config.lists("mlp_only_layers", layer).unwrap_or(false);
        let has_experts = config.experts().0.unwrap_or(0) > 0;
        if !has_experts || is_excepted || step == 0 || !(layer + 1).is_multiple_of(step) {
            return self.gated(mlp, config.inner(), false);
        }
        self.linear(&format!("{mlp}.gate"), config.experts(), config.hidden(), false);
        self.experts(&format!("{mlp}.experts"), config.size(&["moe_intermediate_size"]), false);
        if has_shared {
            self.gated(&format!("{mlp}.shared_expert"), config.size(&["shared_expert_intermediate_size"]), false);
            self.linear(&format!("{mlp}.shared_expert_gate"), Dimension::ONE, config.hidden(), false);
        }
    }

    fn deepseek_experts(&mut self, mlp: &str, layer: u64, has_correction: fn(Sizes<'_>) -> bool) {
        let config = self.config;
        let dense = config.size(&["first_k_dense_replace"]).0.unwrap_or(0);
        let step = config.size(&["moe_layer_freq"]).0.unwrap_or(1).max(1);
        if config.experts().0.is_none() || layer < dense || !layer.is_multiple_of(step) {
            return self.gated(mlp, config.inner(), false);
        }
        self.linear(&format!("{mlp}.gate"), config.experts(), config.hidden(), false);
        let width = config.size(&["moe_intermediate_size"]);
        self.experts(&format!("{mlp}.experts"), width, false);
        if has_correction(config) {
            self.tensor(format!("{mlp}.gate.e_score_correction_bias"), &[config.experts()]);
        }
        if let Some(count @ 1..) = config.size(&["n_shared_experts"]).0 {
            self.gated(&format!("{mlp}.shared_experts"), count * width, false);
        }
    }

    fn llama4_experts(&mut self, block: &str, layer: u64) {
        let config = self.config;
        let step = config.size(&["interleave_moe_layer_step"]).0.unwrap_or(1).max(1);
        let is_sparse = config.lists("moe_layers", layer).unwrap_or((layer + 1).is_multiple_of(step));
        if !is_sparse {
            return self.gated(block, config.size(&["intermediate_size_mlp"]), false);
        }
        self.linear(&format!("{block}.router"), config.experts(), config.hidden(), false);
        self.experts(&format!("{block}.experts"), config.inner(), false);
        self.gated(&format!("{block}.shared_expert"), config.inner(), false);
    }
}

//! The table of model families: what their code does and their configuration does not say, how their releases store
//! matrices, and what runtimes call them. Another family is another entry of [`FAMILIES`]; one like Llama is one line.
//!
//! The probe and the output formats derive everything family-specific from this table. Names of tensors are
//! [patterns](super::pattern). In an entry, the first rule that fits a name counts; a tensor that no rule fits is stored
//! as it is used.

use super::pattern::{PatternMatch, matches};
use crate::name::Role;

/// Something that the code of a family does and its configuration does not mention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quirk {
    /// Embeddings are multiplied by the square root of their width, rounded to their own type.
    ScaledEmbedding,
    /// That root is rounded to bfloat16, whatever type embeddings are stored in.
    RoundedScale,
    /// The activation is GELU in its tanh form, unless `hidden_activation` says otherwise; `hidden_act` is ignored.
    TanhGelu,
    /// The activation is GELU in its tanh form if the configuration names none.
    GeluByDefault,
    /// Attention and MLP both read the layer's input.
    Parallel,
    /// RoPE pairs are adjacent channels, not half a head apart.
    AdjacentPairs,
    /// Queries, keys and values are fused head by head.
    FusedByHead,
    /// The gate is clamped and sharpened, and `up` is clamped and shifted by one (gpt-oss).
    ClampedGate,
    /// Experts are scored by a sigmoid each, not by a softmax.
    SigmoidRouting,
    /// The weights of the chosen experts add up to one, whatever the configuration says.
    NormalisedShares,
    /// Every other layer, from the first on, has a sliding window.
    AlternateWindows,
}

/// How a stored tensor becomes one that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// It is used as it is stored.
    Same,
    /// It is matrix `#` of a stack.
    Expert,
    /// It is a matrix, or a stack of matrices.
    Matrices {
        /// Stored with a row for each input.
        input_major: bool,
        /// Which of its outputs are used.
        outputs: Outputs,
    },
    /// Every second element of each row, from this one on.
    Interleaved(u64),
    /// One is added to each element: norms that are stored minus one.
    PlusOne,
    /// The last two dimensions are exchanged.
    SwappedAxes,
    /// Of keys and values of multi-head latent attention: the rows of the keys of each head, transposed.
    LatentKeys,
    /// Of keys and values of multi-head latent attention: the rows of the values of each head.
    LatentValues,
}

/// Outputs of a matrix that holds gate and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// All of them: it holds one thing only.
    All,
    /// The first half, or the second.
    Half(u64),
    /// Every second one, from this one on.
    Alternate(u64),
}

/// How tensors are stored whose names match a pattern.
#[derive(Debug)]
pub struct StorageRule {
    stored: &'static str,
    becomes: Becomes,
}

/// What a stored tensor becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Becomes {
    /// Tensors that are used, by the pattern of their names.
    Used(&'static [(&'static str, Transform)]),
    /// Nothing: a buffer, computed from the configuration.
    Buffer,
    /// Nothing: a copy of the embedding, which is the head.
    TiedHead,
}

/// What `mlx-lm` expects of a family.
#[derive(Clone, Copy, Debug)]
pub struct MlxColumn {
    /// Beginnings of names, and what `mlx-lm` calls them; the first match counts.
    pub prefixes: &'static [(&'static str, &'static str)],
    /// What it calls `experts`, the module of stacked experts.
    pub experts: &'static str,
    /// Rules for tensors that it uses in another form than the release.
    pub rules: &'static [&'static [StorageRule]],
    /// Whether it adds one to gains that are stored minus one.
    pub adds_one: bool,
    /// Matrices that it holds outside of any module, and so cannot read quantized.
    pub raw: &'static [&'static str],
}

/// Models with common code.
#[derive(Debug)]
pub struct ModelFamily {
    /// Their `model_type`s.
    types: &'static [&'static str],
    /// What their forward pass does and their configuration does not say; `None` if their forward pass is not known.
    pub quirks: Option<&'static [Quirk]>,
    /// How their releases store tensors.
    storage: &'static [&'static [StorageRule]],
    /// What `mlx-lm` expects.
    pub mlx: MlxColumn,
}

/// The family of `model_type`.
#[must_use]
pub fn family(model_type: &str) -> Option<&'static ModelFamily> {
    FAMILIES.iter().find(|family| family.types.contains(&model_type))
}

impl StorageRule {
    fn find(mut rules: impl Iterator<Item = &'static Self>, name: &str) -> Option<(Becomes, PatternMatch<'_>)> {
        rules.find_map(|rule| Some((rule.becomes, matches(rule.stored, name)?)))
    }
}

impl ModelFamily {
    /// What the tensor `name` of a release becomes, if it is not used as it is stored.
    #[must_use]
    pub fn stored<'n>(&self, name: &'n str) -> Option<(Becomes, PatternMatch<'n>)> {
        StorageRule::find(self.storage.iter().copied().chain([BUFFERS]).flatten(), name)
    }

    /// What the tensor `name` of a release becomes for `mlx-lm` only.
    #[must_use]
    pub fn stored_for_mlx<'n>(&self, name: &'n str) -> Option<(Becomes, PatternMatch<'n>)> {
        StorageRule::find(self.mlx.rules.iter().copied().flatten(), name)
    }

    /// Whether the parts of the tensor `name` are matrices for which `is` holds.
    fn has_matrices(&self, name: &str, is: impl Fn(bool, Outputs) -> bool) -> bool {
        let Some((Becomes::Used(parts), _)) = self.stored(name) else { return false };
        parts.iter().any(|(_, transform)| match transform {
            Transform::Matrices { input_major, outputs } => is(*input_major, *outputs),
            _ => false,
        })
    }

    /// Whether the matrix or stack `name` is stored with a row for each input.
    #[must_use]
    pub fn is_input_major(&self, name: &str) -> bool {
        self.has_matrices(name, |input_major, _| input_major)
    }

    /// Whether gate and up alternate among the outputs of fused matrices; otherwise the gate comes first.
    #[must_use]
    pub fn interleaves(&self) -> bool {
        let parts = self.storage.iter().copied().flatten().filter_map(|rule| match rule.becomes {
            Becomes::Used(parts) => Some(parts),
            Becomes::Buffer | Becomes::TiedHead => None,
        });
        let alternates =
            |transform: &Transform| matches!(transform, Transform::Matrices { outputs: Outputs::Alternate(_), .. });
        parts.flatten().any(|(_, transform)| alternates(transform))
    }

    /// Whether the norm `name` is stored minus one.
    #[must_use]
    pub fn is_minus_one(&self, name: &str) -> bool {
        matches!(self.stored(name), Some((Becomes::Used([(_, Transform::PlusOne)]), _)))
    }

    /// Whether the tensor `name` is a buffer, which no forward pass reads.
    #[must_use]
    pub fn is_buffer(&self, name: &str) -> bool {
        matches!(self.stored(name), Some((Becomes::Buffer, _)))
    }
}

/// Names that llama.cpp gives to matrices of a layer, by their role. Its experts end in `_exps`, its shared ones in `_shexp`.
const LLAMA_CPP: [(Role, &str); 9] = [
    (Role::Query, "attn_q"),
    (Role::Key, "attn_k"),
    (Role::Value, "attn_v"),
    (Role::QueryKeyValue, "attn_qkv"),
    (Role::Output, "attn_output"),
    (Role::Gate, "ffn_gate"),
    (Role::Up, "ffn_up"),
    (Role::Down, "ffn_down"),
    (Role::Router, "ffn_gate_inp"),
];

/// The name that llama.cpp gives to the matrix of `role` in a layer, without the layer's.
#[must_use]
pub fn llama_cpp_name(role: Role) -> Option<&'static str> {
    LLAMA_CPP.iter().find(|(known, _)| *known == role).map(|(_, name)| *name)
}

const fn used(stored: &'static str, parts: &'static [(&'static str, Transform)]) -> StorageRule {
    StorageRule { stored, becomes: Becomes::Used(parts) }
}

const fn buffer(stored: &'static str) -> StorageRule {
    StorageRule { stored, becomes: Becomes::Buffer }
}

const fn matrices(input_major: bool, outputs: Outputs) -> Transform {
    Transform::Matrices { input_major, outputs }
}

const OUTPUT_MAJOR: Transform = matrices(false, Outputs::All);
const INPUT_MAJOR: Transform = matrices(true, Outputs::All);

/// What older releases of any family store.
const BUFFERS: &[StorageRule] = &[buffer("*rotary_emb.inv_freq")];

/// Norms that are stored minus one, all of a model.
const NORMS_MINUS_ONE: &[StorageRule] = &[used("*norm.weight", &[("*norm.weight", Transform::PlusOne)])];

/// Experts with a tensor for each matrix.
const EXPERTS: &[StorageRule] = &[
    used("*.mlp.experts.#.gate_proj.weight", &[("*.mlp.experts.gate_proj.weight", Transform::Expert)]),
    used("*.mlp.experts.#.up_proj.weight", &[("*.mlp.experts.up_proj.weight", Transform::Expert)]),
    used("*.mlp.experts.#.down_proj.weight", &[("*.mlp.experts.down_proj.weight", Transform::Expert)]),
];

/// The same under Mixtral's names.
const NUMBERED_EXPERTS: &[StorageRule] = &[
    used(
        "*.block_sparse_moe.experts.#.w1.weight",
        &[("*.block_sparse_moe.experts.gate_proj.weight", Transform::Expert)],
    ),
    used(
        "*.block_sparse_moe.experts.#.w2.weight",
        &[("*.block_sparse_moe.experts.down_proj.weight", Transform::Expert)],
    ),
    used("*.block_sparse_moe.experts.#.w3.weight", &[("*.block_sparse_moe.experts.up_proj.weight", Transform::Expert)]),
];

/// Stacked experts, the outputs of gate and up one after the other.
const FUSED_EXPERTS: &[StorageRule] = &[
    used(
        "*.mlp.experts.gate_up_proj",
        &[
            ("*.mlp.experts.gate_proj.weight", matrices(false, Outputs::Half(0))),
            ("*.mlp.experts.up_proj.weight", matrices(false, Outputs::Half(1))),
        ],
    ),
    used("*.mlp.experts.down_proj", &[("*.mlp.experts.down_proj.weight", OUTPUT_MAJOR)]),
];

/// Norms of Qwen 3 Next that are stored minus one. Those of its linear attention are not.
const QWEN_NEXT_NORMS: &[StorageRule] = &[
    used("*.input_layernorm.weight", &[("*.input_layernorm.weight", Transform::PlusOne)]),
    used("*.post_attention_layernorm.weight", &[("*.post_attention_layernorm.weight", Transform::PlusOne)]),
    used("*.q_norm.weight", &[("*.q_norm.weight", Transform::PlusOne)]),
    used("*.k_norm.weight", &[("*.k_norm.weight", Transform::PlusOne)]),
    used("model.norm.weight", &[("model.norm.weight", Transform::PlusOne)]),
    used("model.language_model.norm.weight", &[("model.language_model.norm.weight", Transform::PlusOne)]),
];

/// Experts of gpt-oss, as released (MXFP4) and as unpacked.
const GPT_OSS: &[StorageRule] = &[
    used(
        "*.mlp.experts.gate_up_proj_blocks",
        &[
            ("*.mlp.experts.gate_proj.weight", matrices(false, Outputs::Alternate(0))),
            ("*.mlp.experts.up_proj.weight", matrices(false, Outputs::Alternate(1))),
        ],
    ),
    used("*.mlp.experts.down_proj_blocks", &[("*.mlp.experts.down_proj.weight", OUTPUT_MAJOR)]),
    used(
        "*.mlp.experts.gate_up_proj",
        &[
            ("*.mlp.experts.gate_proj.weight", matrices(true, Outputs::Alternate(0))),
            ("*.mlp.experts.up_proj.weight", matrices(true, Outputs::Alternate(1))),
        ],
    ),
    used("*.mlp.experts.down_proj", &[("*.mlp.experts.down_proj.weight", INPUT_MAJOR)]),
    used(
        "*.mlp.experts.gate_up_proj_bias",
        &[
            ("*.mlp.experts.gate_proj.bias", Transform::Interleaved(0)),
            ("*.mlp.experts.up_proj.bias", Transform::Interleaved(1)),
        ],
    ),
    used("*.mlp.experts.down_proj_bias", &[("*.mlp.experts.down_proj.bias", Transform::Same)]),
];

/// Experts of Llama 4.
const LLAMA4: &[StorageRule] = &[
    used(
        "*.feed_forward.experts.gate_up_proj",
        &[
            ("*.feed_forward.experts.gate_proj.weight", matrices(true, Outputs::Half(0))),
            ("*.feed_forward.experts.up_proj.weight", matrices(true, Outputs::Half(1))),
        ],
    ),
    used("*.feed_forward.experts.down_proj", &[("*.feed_forward.experts.down_proj.weight", INPUT_MAJOR)]),
];

const GPT2: &[StorageRule] = &[
    used("*.attn.c_attn.weight", &[("*.attn.c_attn.weight", INPUT_MAJOR)]),
    used("*.attn.c_proj.weight", &[("*.attn.c_proj.weight", INPUT_MAJOR)]),
    used("*.mlp.c_fc.weight", &[("*.mlp.c_fc.weight", INPUT_MAJOR)]),
    used("*.mlp.c_proj.weight", &[("*.mlp.c_proj.weight", INPUT_MAJOR)]),
    buffer("*.attn.bias"),
    buffer("*.attn.masked_bias"),
    StorageRule { stored: "*lm_head.weight", becomes: Becomes::TiedHead },
];

/// The causal mask of GPT-NeoX is called like a bias.
const GPT_NEOX: &[StorageRule] = &[buffer("*.attention.bias"), buffer("*.attention.masked_bias")];

/// Convolutions, which `mlx-lm` stores with the channels last.
const MLX_LINEAR_ATTENTION: &[StorageRule] =
    &[used("*.linear_attn.conv1d.weight", &[("*.linear_attn.conv1d.weight", Transform::SwappedAxes)])];
const MLX_MAMBA2: &[StorageRule] =
    &[used("*.mixer.conv1d.weight", &[("*.mixer.conv1d.weight", Transform::SwappedAxes)])];

/// Keys and values of multi-head latent attention, which `mlx-lm` multiplies with queries and outputs.
const MLX_LATENT: &[StorageRule] = &[used(
    "*.self_attn.kv_b_proj.weight",
    &[
        ("*.self_attn.embed_q.weight", Transform::LatentKeys),
        ("*.self_attn.unembed_out.weight", Transform::LatentValues),
    ],
)];

/// A router that `mlx-lm` does not hold in a module.
const RAW_ROUTER: &[&str] = &["*.mlp.gate.weight"];

/// The language model within a larger one.
const LANGUAGE_MODEL: &[(&str, &str)] = &[
    ("model.language_model.", "language_model.model."),
    ("language_model.", "language_model."),
    ("", "language_model."),
];

/// What `mlx-lm` takes as it is released.
const MLX: MlxColumn = MlxColumn { prefixes: &[], experts: "experts", rules: &[], adds_one: false, raw: &[] };

/// The same with experts under `mlx-lm`'s usual name.
const MLX_SWITCH: MlxColumn = MlxColumn { experts: "switch_mlp", ..MLX };

/// A family whose tensors are stored as they are used.
const fn like_llama(model_type: &'static [&'static str], quirks: &'static [Quirk]) -> ModelFamily {
    ModelFamily { types: model_type, quirks: Some(quirks), storage: &[], mlx: MLX }
}

/// The families. A test makes, quantizes and loads a model of each type.
const FAMILIES: &[ModelFamily] = {
    use Quirk::{
        AdjacentPairs, AlternateWindows, ClampedGate, FusedByHead, GeluByDefault, NormalisedShares, Parallel,
        RoundedScale, ScaledEmbedding, SigmoidRouting, TanhGelu,
    };
    /// Gemma's norms add one to their gains, here and in `mlx-lm`.
    const fn gemma(model_type: &'static [&'static str], quirks: &'static [Quirk]) -> ModelFamily {
        let mlx = MlxColumn { adds_one: true, ..MLX };
        ModelFamily { storage: &[NORMS_MINUS_ONE], mlx, ..like_llama(model_type, quirks) }
    }
    &[
        like_llama(&["llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3", "granite", "stablelm"], &[]),
        like_llama(&["glm4"], &[AdjacentPairs]),
        like_llama(&["starcoder2"], &[GeluByDefault]),
        like_llama(&["phi"], &[Parallel, GeluByDefault]),
        like_llama(&["cohere"], &[Parallel, AdjacentPairs]),
        gemma(&["gemma"], &[ScaledEmbedding, TanhGelu]),
        gemma(&["gemma2"], &[ScaledEmbedding, TanhGelu, AlternateWindows]),
        gemma(&["gemma3_text"], &[ScaledEmbedding, RoundedScale, TanhGelu]),
        ModelFamily {
            types: &["mixtral"],
            quirks: Some(&[NormalisedShares]),
            storage: &[NUMBERED_EXPERTS],
            mlx: MLX_SWITCH,
        },
        ModelFamily { types: &["minimax_m2"], quirks: None, storage: &[NUMBERED_EXPERTS], mlx: MLX_SWITCH },
        ModelFamily {
            types: &["qwen2_moe", "qwen3_moe", "olmoe"],
            quirks: Some(&[]),
            storage: &[EXPERTS, FUSED_EXPERTS],
            mlx: MLX_SWITCH,
        },
        ModelFamily {
            types: &["glm4_moe"],
            quirks: Some(&[SigmoidRouting]),
            storage: &[EXPERTS, FUSED_EXPERTS],
            mlx: MlxColumn { raw: RAW_ROUTER, ..MLX_SWITCH },
        },
        ModelFamily {
            types: &["deepseek_v2"],
            quirks: None,
            storage: &[EXPERTS, FUSED_EXPERTS],
            mlx: MlxColumn { raw: RAW_ROUTER, ..MLX_SWITCH },
        },
        ModelFamily {
            types: &["deepseek_v3", "kimi_k2", "kimi_k25"],
            quirks: None,
            storage: &[EXPERTS, FUSED_EXPERTS],
            mlx: MlxColumn { raw: RAW_ROUTER, rules: &[MLX_LATENT], ..MLX_SWITCH },
        },
        ModelFamily {
            types: &["qwen3_next"],
            quirks: None,
            storage: &[EXPERTS, FUSED_EXPERTS, QWEN_NEXT_NORMS],
            mlx: MlxColumn { rules: &[MLX_LINEAR_ATTENTION], ..MLX_SWITCH },
        },
        ModelFamily {
            types: &["qwen3_5", "qwen3_5_moe"],
            quirks: None,
            storage: &[EXPERTS, FUSED_EXPERTS, QWEN_NEXT_NORMS],
            mlx: MlxColumn { prefixes: LANGUAGE_MODEL, rules: &[MLX_LINEAR_ATTENTION], ..MLX_SWITCH },
        },
        ModelFamily {
            types: &["gpt_oss"],
            quirks: Some(&[ClampedGate, NormalisedShares]),
            storage: &[GPT_OSS],
            mlx: MLX,
        },
        ModelFamily { types: &["llama4"], quirks: None, storage: &[LLAMA4], mlx: MLX },
        ModelFamily { types: &["mamba2"], quirks: None, storage: &[], mlx: MlxColumn { rules: &[MLX_MAMBA2], ..MLX } },
        ModelFamily {
            types: &["gpt2"],
            quirks: Some(&[GeluByDefault]),
            storage: &[GPT2],
            mlx: MlxColumn { prefixes: &[("model.", "model."), ("transformer.", "model."), ("", "model.")], ..MLX },
        },
        ModelFamily {
            types: &["gpt_neox"],
            quirks: Some(&[FusedByHead, GeluByDefault]),
            storage: &[GPT_NEOX],
            mlx: MlxColumn {
                prefixes: &[("gpt_neox.layers.", "model.h."), ("gpt_neox.", "model."), ("", "model.")],
                ..MLX
            },
        },
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_model_type_is_in_two_families() {
        let mut types: Vec<&str> = FAMILIES.iter().flat_map(|family| family.types).copied().collect();
        let count = types.len();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), count);
    }

    #[test]
    fn facts_of_storage_are_those_of_the_rules() {
        let of = |model_type: &str| family(model_type).unwrap();
        assert!(of("gpt2").is_input_major("transformer.h.3.attn.c_attn.weight"));
        assert!(!of("gpt2").is_input_major("transformer.wte.weight"));
        assert!(of("gpt_oss").is_input_major("model.layers.0.mlp.experts.down_proj"));
        assert!(!of("gpt_oss").is_input_major("model.layers.0.mlp.experts.down_proj_blocks"));
        assert!(of("gpt_oss").interleaves() && !of("llama4").interleaves() && !of("llama").interleaves());
        assert!(of("gemma3_text").is_minus_one("model.layers.0.self_attn.q_norm.weight"));
        assert!(of("qwen3_next").is_minus_one("model.norm.weight"));
        assert!(!of("qwen3_next").is_minus_one("model.layers.0.linear_attn.norm.weight"));
        assert!(of("gpt_neox").is_buffer("gpt_neox.layers.0.attention.bias"));
        assert!(of("llama").is_buffer("model.layers.0.self_attn.rotary_emb.inv_freq"));
        assert!(!of("llama").is_buffer("model.layers.0.attention.bias"));
    }
}

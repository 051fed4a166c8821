//! The table itself. Rules map the names of a release to the names that most releases use.

use super::{Becomes, MlxColumn, ModelFamily, Outputs, Quirk, StorageRule, Transform};

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

/// Buffers that releases of any family may contain.
pub(super) const BUFFERS: &[StorageRule] = &[
    buffer("*rotary_emb.inv_freq"),
    buffer("*rotary_emb.original_inv_freq"),
    buffer("*rotary_emb.cos_cached"),
    buffer("*rotary_emb.sin_cached"),
    buffer("*.position_ids"),
    buffer("*.masked_bias"),
    buffer("*.causal_mask"),
    buffer("*.num_batches_tracked"),
    buffer("*.attn_mask"),
    // Of GGUF files: factors of rotary frequencies, which are read into the configuration.
    buffer("rope_freqs.weight"),
    buffer("rope_factors_short.weight"),
    buffer("rope_factors_long.weight"),
];

/// All norms of a model, stored minus one.
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

/// The same as newer versions of transformers write them: stacked, next to a router, in a block called `mlp`.
const NEWER_NUMBERED_EXPERTS: &[StorageRule] = &[
    used(
        "*.mlp.experts.gate_up_proj",
        &[
            ("*.block_sparse_moe.experts.gate_proj.weight", matrices(false, Outputs::Half(0))),
            ("*.block_sparse_moe.experts.up_proj.weight", matrices(false, Outputs::Half(1))),
        ],
    ),
    used("*.mlp.experts.down_proj", &[("*.block_sparse_moe.experts.down_proj.weight", OUTPUT_MAJOR)]),
    used("*.mlp.gate.weight", &[("*.block_sparse_moe.gate.weight", Transform::Same)]),
    used("*.mlp.gate.e_score_correction_bias", &[("*.block_sparse_moe.e_score_correction_bias", Transform::Same)]),
    used("*.mlp.e_score_correction_bias", &[("*.block_sparse_moe.e_score_correction_bias", Transform::Same)]),
];

/// Stacked experts with fused gate and up, gate first.
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
    StorageRule { stored: "*lm_head.weight", becomes: Becomes::TiedHead },
];

/// The causal mask of GPT-NeoX, which is named like a bias.
const GPT_NEOX: &[StorageRule] = &[buffer("*.attention.bias")];

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

/// Families that `mlx-lm` loads in the form of the release.
const MLX: MlxColumn = MlxColumn { prefixes: &[], experts: "experts", rules: &[], plus_one: false, raw: &[] };

/// The same with experts under `mlx-lm`'s usual name.
const MLX_SWITCH: MlxColumn = MlxColumn { experts: "switch_mlp", ..MLX };

/// A family whose tensors are stored as they are used.
const fn like_llama(model_type: &'static [&'static str], quirks: &'static [Quirk]) -> ModelFamily {
    ModelFamily { types: model_type, quirks: Some(quirks), storage: &[], mlx: MLX }
}

/// The families. A test makes, quantizes and loads a model of each type.
pub(super) const FAMILIES: &[ModelFamily] = {
    use Quirk::{
        AdjacentPairs, AlternateWindows, ClampedGate, FusedByHead, GeluByDefault, NormalisedShares, Parallel,
        RoundedScale, ScaledEmbedding, SigmoidRouting, TanhGelu,
    };
    /// Gemma's norms add one to their gains, here and in `mlx-lm`.
    const fn gemma(model_type: &'static [&'static str], quirks: &'static [Quirk]) -> ModelFamily {
        let mlx = MlxColumn { plus_one: true, ..MLX };
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
            storage: &[NUMBERED_EXPERTS, NEWER_NUMBERED_EXPERTS],
            mlx: MLX_SWITCH,
        },
        ModelFamily {
            types: &["minimax_m2"],
            quirks: None,
            storage: &[NUMBERED_EXPERTS, NEWER_NUMBERED_EXPERTS],
            mlx: MLX_SWITCH,
        },
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
            types: &["qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text"],
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

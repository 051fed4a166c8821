//! Which models `mlx-lm` reads, and how: another family is another line of [`MODELS`].
//!
//! A line has the `model_type`s, what the beginnings of names become, the rules for tensors that are more than renamed,
//! and the modules that `mlx-lm` cannot read quantized. The first rule that fits a name counts; what none fits is written
//! as it is. In a pattern `*` in front stands for any beginning, `#` for a number: the index of an expert.

/// How a tensor of the source becomes one of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// As it is.
    Same,
    /// One matrix of a stack: number `#`.
    Expert,
    /// Matrices, stacked already or single.
    Matrices {
        /// They are stored with a row for each input.
        input_major: bool,
        /// Which outputs.
        outputs: Outputs,
    },
    /// Every second element of each row, from this one on.
    Turns(u64),
    /// With one added to each element.
    PlusOne,
    /// The last two dimensions exchanged.
    Swapped,
    /// Of keys and values of multi-head latent attention: head by head the keys' rows, transposed.
    LatentKeys,
    /// Of these: head by head the values' rows.
    LatentValues,
}

/// Outputs of fused matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outputs {
    All,
    /// The first half, or the second.
    Half(u64),
    /// Every second, from the first on, or from the second.
    Turn(u64),
}

/// What becomes of tensors whose names fit a pattern.
#[derive(Debug)]
pub(super) struct Rule {
    pub from: &'static str,
    pub into: Into,
}

/// What it becomes: tensors of the output, or nothing, for a reason.
#[derive(Debug)]
pub(super) enum Into {
    Targets(&'static [(&'static str, Take)]),
    Nothing(&'static str),
}

/// Models of one kind.
#[derive(Debug)]
pub(super) struct Model {
    pub types: &'static [&'static str],
    /// Beginnings of names of the output, and what they become; the first that fits counts.
    pub prefixes: &'static [(&'static str, &'static str)],
    pub rules: &'static [&'static [Rule]],
    /// Matrices that `mlx-lm` holds outside of any module.
    pub raw: &'static [&'static str],
}

const fn take(from: &'static str, into: &'static [(&'static str, Take)]) -> Rule {
    Rule { from, into: Into::Targets(into) }
}

const fn drop(from: &'static str, reason: &'static str) -> Rule {
    Rule { from, into: Into::Nothing(reason) }
}

const fn stored(input_major: bool, outputs: Outputs) -> Take {
    Take::Matrices { input_major, outputs }
}

const TRANSPOSED: Take = stored(true, Outputs::All);

/// The reason for dropping buffers.
const COMPUTED: &str = "mlx-lm computes it itself";

/// What older releases store, and `mlx-lm` computes.
pub(super) const BUFFERS: &[Rule] = &[drop("*rotary_emb.inv_freq", COMPUTED)];

/// Experts with a tensor each.
const EXPERTS: &[Rule] = &[
    take("*.mlp.experts.#.gate_proj.weight", &[("*.mlp.switch_mlp.gate_proj.weight", Take::Expert)]),
    take("*.mlp.experts.#.up_proj.weight", &[("*.mlp.switch_mlp.up_proj.weight", Take::Expert)]),
    take("*.mlp.experts.#.down_proj.weight", &[("*.mlp.switch_mlp.down_proj.weight", Take::Expert)]),
];

/// Experts with a tensor each, under Mixtral's names.
const NUMBERED_EXPERTS: &[Rule] = &[
    take("*.block_sparse_moe.experts.#.w1.weight", &[("*.block_sparse_moe.switch_mlp.gate_proj.weight", Take::Expert)]),
    take("*.block_sparse_moe.experts.#.w2.weight", &[("*.block_sparse_moe.switch_mlp.down_proj.weight", Take::Expert)]),
    take("*.block_sparse_moe.experts.#.w3.weight", &[("*.block_sparse_moe.switch_mlp.up_proj.weight", Take::Expert)]),
];

/// Experts in one tensor, the outputs of gate and up one after the other.
const FUSED_EXPERTS: &[Rule] = &[
    take(
        "*.mlp.experts.gate_up_proj",
        &[
            ("*.mlp.switch_mlp.gate_proj.weight", stored(false, Outputs::Half(0))),
            ("*.mlp.switch_mlp.up_proj.weight", stored(false, Outputs::Half(1))),
        ],
    ),
    take("*.mlp.experts.down_proj", &[("*.mlp.switch_mlp.down_proj.weight", stored(false, Outputs::All))]),
];

/// Keys and values of multi-head latent attention.
const LATENT: &[Rule] = &[take(
    "*.self_attn.kv_b_proj.weight",
    &[("*.self_attn.embed_q.weight", Take::LatentKeys), ("*.self_attn.unembed_out.weight", Take::LatentValues)],
)];

/// Recurrent layers, and norms that are stored less one.
const QWEN_NEXT: &[Rule] = &[
    take("*.linear_attn.conv1d.weight", &[("*.linear_attn.conv1d.weight", Take::Swapped)]),
    take("*.input_layernorm.weight", &[("*.input_layernorm.weight", Take::PlusOne)]),
    take("*.post_attention_layernorm.weight", &[("*.post_attention_layernorm.weight", Take::PlusOne)]),
    take("*.q_norm.weight", &[("*.q_norm.weight", Take::PlusOne)]),
    take("*.k_norm.weight", &[("*.k_norm.weight", Take::PlusOne)]),
    take("model.norm.weight", &[("model.norm.weight", Take::PlusOne)]),
    take("model.language_model.norm.weight", &[("model.language_model.norm.weight", Take::PlusOne)]),
];

/// Experts of gpt-oss, as released and as unpacked.
const GPT_OSS: &[Rule] = &[
    take(
        "*.mlp.experts.gate_up_proj_blocks",
        &[
            ("*.mlp.experts.gate_proj.weight", stored(false, Outputs::Turn(0))),
            ("*.mlp.experts.up_proj.weight", stored(false, Outputs::Turn(1))),
        ],
    ),
    take("*.mlp.experts.down_proj_blocks", &[("*.mlp.experts.down_proj.weight", stored(false, Outputs::All))]),
    take(
        "*.mlp.experts.gate_up_proj",
        &[
            ("*.mlp.experts.gate_proj.weight", stored(true, Outputs::Turn(0))),
            ("*.mlp.experts.up_proj.weight", stored(true, Outputs::Turn(1))),
        ],
    ),
    take("*.mlp.experts.down_proj", &[("*.mlp.experts.down_proj.weight", TRANSPOSED)]),
    take(
        "*.mlp.experts.gate_up_proj_bias",
        &[("*.mlp.experts.gate_proj.bias", Take::Turns(0)), ("*.mlp.experts.up_proj.bias", Take::Turns(1))],
    ),
    take("*.mlp.experts.down_proj_bias", &[("*.mlp.experts.down_proj.bias", Take::Same)]),
];

/// Experts of Llama 4.
const LLAMA4: &[Rule] = &[
    take(
        "*.feed_forward.experts.gate_up_proj",
        &[
            ("*.feed_forward.experts.gate_proj.weight", stored(true, Outputs::Half(0))),
            ("*.feed_forward.experts.up_proj.weight", stored(true, Outputs::Half(1))),
        ],
    ),
    take("*.feed_forward.experts.down_proj", &[("*.feed_forward.experts.down_proj.weight", TRANSPOSED)]),
];

/// Matrices of GPT-2.
const GPT2: &[Rule] = &[
    take("*.attn.c_attn.weight", &[("*.attn.c_attn.weight", TRANSPOSED)]),
    take("*.attn.c_proj.weight", &[("*.attn.c_proj.weight", TRANSPOSED)]),
    take("*.mlp.c_fc.weight", &[("*.mlp.c_fc.weight", TRANSPOSED)]),
    take("*.mlp.c_proj.weight", &[("*.mlp.c_proj.weight", TRANSPOSED)]),
    drop("*.attn.bias", COMPUTED),
    drop("*.attn.masked_bias", COMPUTED),
    drop("*lm_head.weight", "the embedding is the head"),
];

const GPT_NEOX: &[Rule] = &[drop("*.attention.bias", COMPUTED), drop("*.attention.masked_bias", COMPUTED)];

const MAMBA2: &[Rule] = &[take("*.mixer.conv1d.weight", &[("*.mixer.conv1d.weight", Take::Swapped)])];

/// A router that is no module: `mlx-lm` has no quantized form of it.
const RAW_ROUTER: &[&str] = &["*.mlp.gate.weight"];

/// The language model of a larger one, as `mlx-lm` calls it.
const LANGUAGE_MODEL: &[(&str, &str)] = &[
    ("model.language_model.", "language_model.model."),
    ("language_model.", "language_model."),
    ("", "language_model."),
];

/// Models whose tensors `mlx-lm` takes as they are.
const AS_IS: &[&str] = &[
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "smollm3",
    "granite",
    "glm4",
    "stablelm",
    "starcoder2",
    "phi",
    "cohere",
];

/// The models there are. Each type is made, quantized and loaded by a test.
const MODELS: &[Model] = &[
    Model { types: AS_IS, prefixes: &[], rules: &[], raw: &[] },
    Model { types: &["mixtral", "minimax_m2"], prefixes: &[], rules: &[NUMBERED_EXPERTS], raw: &[] },
    Model { types: &["qwen2_moe", "qwen3_moe", "olmoe"], prefixes: &[], rules: &[EXPERTS, FUSED_EXPERTS], raw: &[] },
    Model { types: &["glm4_moe", "deepseek_v2"], prefixes: &[], rules: &[EXPERTS, FUSED_EXPERTS], raw: RAW_ROUTER },
    Model {
        types: &["deepseek_v3", "kimi_k2", "kimi_k25"],
        prefixes: &[],
        rules: &[EXPERTS, FUSED_EXPERTS, LATENT],
        raw: RAW_ROUTER,
    },
    Model { types: &["qwen3_next"], prefixes: &[], rules: &[EXPERTS, FUSED_EXPERTS, QWEN_NEXT], raw: &[] },
    Model {
        types: &["qwen3_5", "qwen3_5_moe"],
        prefixes: LANGUAGE_MODEL,
        rules: &[EXPERTS, FUSED_EXPERTS, QWEN_NEXT],
        raw: &[],
    },
    Model { types: &["gpt_oss"], prefixes: &[], rules: &[GPT_OSS], raw: &[] },
    Model { types: &["llama4"], prefixes: &[], rules: &[LLAMA4], raw: &[] },
    Model { types: &["mamba2"], prefixes: &[], rules: &[MAMBA2], raw: &[] },
    Model {
        types: &["gpt2"],
        prefixes: &[("model.", "model."), ("transformer.", "model."), ("", "model.")],
        rules: &[GPT2],
        raw: &[],
    },
    Model {
        types: &["gpt_neox"],
        prefixes: &[("gpt_neox.layers.", "model.h."), ("gpt_neox.", "model."), ("", "model.")],
        rules: &[GPT_NEOX],
        raw: &[],
    },
];

/// The line of `model_type`.
pub(super) fn model(model_type: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.types.contains(&model_type))
}

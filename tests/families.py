"""Tiny random checkpoints of the model families, with the names, shapes and configurations of real releases.

The numbers are chosen so that every convention shows: gains far from one, an epsilon that is felt, attention far from
uniform, windows and original context lengths shorter than a test's text. Where mlx-lm and the releases' own code
disagree about a key, its value is one that both read alike; a comment says so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from conftest import Tensor, write_checkpoint

FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Family:
    """A model family: a release's configuration in small, and the tensors that go with it."""

    config: dict
    shapes: Callable[[dict], dict[str, tuple[int, ...]]]
    gain: float = 1.0
    """The mean of a norm's stored gains: 0 where the norm adds 1 to them."""
    renames: tuple[tuple[str, str], ...] = (("switch_mlp", "experts.*"),)
    """Patterns that turn a weight's name in mlx-lm into the checkpoint's; `*` stands for the expert."""
    convert: Callable[[dict], dict] | None = None
    """Turns the checkpoint's tensors into what mlx-lm loads, where mlx-lm does not do it itself."""


def write_family(name, directory, *, dtype="F32", seed=0, **config_overrides):
    """Write a checkpoint of a family."""
    config = FAMILIES[name].config | {"torch_dtype": FLOATS[dtype]} | config_overrides
    return write_checkpoint(directory, family_tensors(name, config, dtype, seed), config)


def family_tensors(name, config, dtype="F32", seed=0):
    """Draw the tensors of a family."""
    family, random = FAMILIES[name], np.random.default_rng(seed)
    return {
        tensor: Tensor.of(drawn(random, tensor, shape, family.gain), stored_as(tensor, dtype))
        for tensor, shape in family.shapes(config).items()
    }


def is_buffer(name):
    """Tell whether a tensor is a constant that older releases store and nothing reads."""
    return name.endswith((".attn.bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"))


def is_norm(name):
    """Tell whether a tensor belongs to a norm."""
    return "norm" in name or ".ln_" in name or name.startswith("ln_")


def is_embedding(name):
    """Tell whether rows of a tensor are looked up."""
    return name.endswith(("embed_tokens.weight", "embed_in.weight", "wte.weight", "wpe.weight"))


def is_router(name):
    """Tell whether a matrix chooses experts."""
    return name.endswith((".gate.weight", ".router.weight"))


def stored_as(name, dtype):
    """Return the dtype that releases store a tensor in."""
    if name.endswith(".attention.bias"):
        return "U8"
    return "F32" if is_buffer(name) or name.endswith("e_score_correction_bias") else dtype


def fan_in(name, shape):
    """Return over how many inputs a matrix sums."""
    transposed = name.startswith("h.") or len(shape) == 3
    return shape[-2] if transposed else shape[-1]


def spread(name):
    """Return the spread of a matrix's outputs for inputs of spread one."""
    if is_router(name):
        return 2.5
    if "experts.gate_up_proj" in name:
        return 3.0
    return 1.5 if any(part in name for part in ("q_proj", "k_proj", "qkv", "query_key", "c_attn")) else 1.0


def drawn(random, name, shape, gain):
    """Draw the values of a tensor: of a buffer that is no mask, such that whoever reads it gets nonsense."""
    if is_buffer(name):
        return np.tril(np.ones(shape)) if len(shape) == 4 else np.full(shape, -1e9)
    values = random.standard_normal(shape)
    if name.endswith("e_score_correction_bias"):
        return 0.1 * np.abs(values)  # below zero, an expert of a group that is left out would come before
    if name.endswith("bias"):
        return 0.3 * values
    if name.endswith("sinks"):
        return values
    if is_norm(name):
        return gain + 0.5 * (".self_attn." in name) + 0.3 * values
    if is_embedding(name):
        # Where embeddings are multiplied by the root of their width, they are small, lest a tied head be sure of all.
        return values * (0.1 if gain == 0 else 0.5)
    return values * spread(name) / fan_in(name, shape) ** 0.5


def linear(name, outputs, inputs, bias=False):
    """Return the tensors of a linear layer."""
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norms(config, *names, bias=False):
    """Return the tensors of norms over the hidden states."""
    parts = ("weight", "bias") if bias else ("weight",)
    return {f"{name}.{part}": (config["hidden_size"],) for name in names for part in parts}


def head_size(config):
    """Return the width of a head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def attention(config, biased="", output="o_proj"):
    """Return the tensors of an attention block: ``biased`` has the initials of the projections with a bias."""
    hidden, size = config["hidden_size"], head_size(config)
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    return (
        linear("self_attn.q_proj", queries, hidden, "q" in biased)
        | linear("self_attn.k_proj", keys, hidden, "k" in biased)
        | linear("self_attn.v_proj", keys, hidden, "v" in biased)
        | linear(f"self_attn.{output}", hidden, queries, "o" in biased)
    )


def head_norms(config):
    """Return the gains of the queries' and keys' norms over each head."""
    return {f"self_attn.{part}_norm.weight": (head_size(config),) for part in "qk"}


def wide_norms(config):
    """Return the gains of the queries' and keys' norms over all heads."""
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    return {f"self_attn.{part}_norm.weight": (count * head_size(config),) for part, count in heads.items()}


def gated(config, prefix="mlp", width=None, bias=False, names=("gate_proj", "up_proj", "down_proj")):
    """Return the tensors of a gated feed-forward block."""
    hidden, width = config["hidden_size"], width or config["intermediate_size"]
    gate, up, down = (f"{prefix}.{name}" for name in names)
    return linear(gate, width, hidden, bias) | linear(up, width, hidden, bias) | linear(down, hidden, width, bias)


def plain(config, first, second):
    """Return the tensors of a feed-forward block of two layers with biases."""
    hidden, width = config["hidden_size"], config["intermediate_size"]
    return linear(f"mlp.{first}", width, hidden, True) | linear(f"mlp.{second}", hidden, width, True)


def routed(config, count, width, prefix="mlp", **options):
    """Return the tensors of a router and its experts."""
    shapes = linear(f"{prefix}.gate", count, config["hidden_size"])
    for expert in range(count):
        shapes |= gated(config, f"{prefix}.experts.{expert}", width, **options)
    return shapes


def decoder(config, layer, norm="norm", norm_bias=False, head_bias=False):
    """Return the tensors of a whole model, of the layer function's tensors for each layer."""
    vocabulary, hidden = config["vocab_size"], config["hidden_size"]
    shapes = linear("model.embed_tokens", vocabulary, hidden)
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer(index).items()}
    shapes |= norms(config, f"model.{norm}", bias=norm_bias)
    tied = config.get("tie_word_embeddings", True)
    return shapes if tied else shapes | linear("lm_head", vocabulary, hidden, head_bias)


BEFORE = ("input_layernorm", "post_attention_layernorm")
AROUND = (*BEFORE, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def llama_shapes(config, biased=""):
    biased = "qkvo" if config.get("attention_bias") else biased
    block = attention(config, biased) | gated(config, bias=config.get("mlp_bias", False)) | norms(config, *BEFORE)
    return decoder(config, lambda _: block)


def qwen3_shapes(config):
    block = attention(config) | head_norms(config) | gated(config) | norms(config, *BEFORE)
    return decoder(config, lambda _: block)


def gemma2_shapes(config):
    return decoder(config, lambda _: attention(config) | gated(config) | norms(config, *AROUND))


def gemma3_shapes(config):
    block = attention(config) | head_norms(config) | gated(config) | norms(config, *AROUND)
    return decoder(config, lambda _: block)


def phi3_shapes(config):
    hidden, size, width = config["hidden_size"], head_size(config), config["intermediate_size"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    block = (
        linear("self_attn.qkv_proj", queries + 2 * keys, hidden)
        | linear("self_attn.o_proj", hidden, queries)
        | linear("mlp.gate_up_proj", 2 * width, hidden)
        | linear("mlp.down_proj", hidden, width)
        | norms(config, *BEFORE)
    )
    return decoder(config, lambda _: block)


def olmo2_shapes(config):
    after = ("post_attention_layernorm", "post_feedforward_layernorm")
    block = attention(config) | wide_norms(config) | gated(config) | norms(config, *after)
    return decoder(config, lambda _: block)


def gpt2_shapes(config):
    """`gpt2` has no prefix; later releases of the family have `transformer.` before every name, and some no mask."""
    width, positions = config["n_embd"], config["n_positions"]
    shapes = {"wte.weight": (config["vocab_size"], width), "wpe.weight": (positions, width)}
    for index in range(config["n_layer"]):
        shapes[f"h.{index}.attn.bias"] = (1, 1, positions, positions)
        layers = {"attn.c_attn": 3, "attn.c_proj": 1, "mlp.c_fc": 4}
        for name, factor in layers.items():
            shapes[f"h.{index}.{name}.weight"] = (width, factor * width)
            shapes[f"h.{index}.{name}.bias"] = (factor * width,)
        shapes |= {f"h.{index}.mlp.c_proj.weight": (4 * width, width), f"h.{index}.mlp.c_proj.bias": (width,)}
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{index}.{norm}.weight": (width,), f"h.{index}.{norm}.bias": (width,)}
    return shapes | {"ln_f.weight": (width,), "ln_f.bias": (width,)}


def mixtral_shapes(config):
    experts = partial(routed, config, config["num_local_experts"], config["intermediate_size"], "block_sparse_moe")
    block = attention(config) | experts(names=("w1", "w3", "w2")) | norms(config, *BEFORE)
    return decoder(config, lambda _: block)


def is_sparse(config, index):
    """Tell whether a layer of Qwen's has experts."""
    return index not in config.get("mlp_only_layers", []) and (index + 1) % config.get("decoder_sparse_step", 1) == 0


def qwen2_moe_shapes(config):
    block = attention(config, "qkv") | norms(config, *BEFORE)
    sparse = (
        routed(config, config["num_experts"], config["moe_intermediate_size"])
        | gated(config, "mlp.shared_expert", config["shared_expert_intermediate_size"])
        | linear("mlp.shared_expert_gate", 1, config["hidden_size"])
    )
    return decoder(config, lambda index: block | (sparse if is_sparse(config, index) else gated(config)))


def qwen3_moe_shapes(config):
    block = attention(config) | head_norms(config) | norms(config, *BEFORE)
    sparse = routed(config, config["num_experts"], config["moe_intermediate_size"])
    return decoder(config, lambda index: block | (sparse if is_sparse(config, index) else gated(config)))


def olmoe_shapes(config):
    experts = routed(config, config["num_experts"], config["intermediate_size"])
    block = attention(config) | wide_norms(config) | experts | norms(config, *BEFORE)
    return decoder(config, lambda _: block)


def starcoder2_shapes(config):
    block = attention(config, "qkvo") | plain(config, "c_fc", "c_proj") | norms(config, *BEFORE, bias=True)
    return decoder(config, lambda _: block, norm_bias=True)


def stablelm_shapes(config):
    block = attention(config, "qkv" if config["use_qkv_bias"] else "") | gated(config)
    block |= norms(config, *(BEFORE[:1] if config["use_parallel_residual"] else BEFORE), bias=True)
    if config["qk_layernorm"]:
        for part, count in (("q", config["num_attention_heads"]), ("k", config["num_key_value_heads"])):
            for head in range(count):
                block[f"self_attn.{part}_layernorm.norms.{head}.weight"] = (head_size(config),)
    return decoder(config, lambda _: block, norm_bias=True)


def phi_shapes(config):
    """The first releases of phi-2 (`phi-msft`) had other names, with `transformer.h.`, and a fused `Wqkv`."""
    block = attention(config, "qkvo", "dense") | plain(config, "fc1", "fc2") | norms(config, BEFORE[0], bias=True)
    return decoder(config, lambda _: block, "final_layernorm", norm_bias=True, head_bias=True)


def gpt_neox_shapes(config):
    """Later releases leave out the buffers."""
    hidden, positions = config["hidden_size"], config["max_position_embeddings"]
    rotated = int(head_size(config) * config["rotary_pct"])
    block = (
        norms(config, *BEFORE, bias=True)
        | {"attention.bias": (1, 1, positions, positions), "attention.masked_bias": ()}
        | {"attention.rotary_emb.inv_freq": (rotated // 2,)}
        | linear("attention.query_key_value", 3 * hidden, hidden, True)
        | linear("attention.dense", hidden, hidden, True)
        | plain(config, "dense_h_to_4h", "dense_4h_to_h")
    )
    shapes = linear("gpt_neox.embed_in", config["vocab_size"], hidden)
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"gpt_neox.layers.{index}.{name}": shape for name, shape in block.items()}
    shapes |= norms(config, "gpt_neox.final_layer_norm", bias=True)
    return shapes | linear("embed_out", config["vocab_size"], hidden)


def cohere_shapes(config):
    block = attention(config) | gated(config) | norms(config, BEFORE[0])
    if config["use_qk_norm"]:
        heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
        block |= {f"self_attn.{part}_norm.weight": (count, head_size(config)) for part, count in heads.items()}
    return decoder(config, lambda _: block)


def glm4_shapes(config):
    hidden, width = config["hidden_size"], config["intermediate_size"]
    block = (
        attention(config, "qkv" if config["attention_bias"] else "")
        | linear("mlp.gate_up_proj", 2 * width, hidden)
        | linear("mlp.down_proj", hidden, width)
        | norms(config, *BEFORE, "post_self_attn_layernorm", "post_mlp_layernorm")
    )
    return decoder(config, lambda _: block)


def glm4_moe_shapes(config):
    count, width = config["n_routed_experts"], config["moe_intermediate_size"]
    block = attention(config, "qkv" if config["attention_bias"] else "") | norms(config, *BEFORE)
    block |= head_norms(config) if config["use_qk_norm"] else {}
    sparse = (
        routed(config, count, width)
        | {"mlp.gate.e_score_correction_bias": (count,)}
        | gated(config, "mlp.shared_experts", width * config["n_shared_experts"])
    )
    dense = config["first_k_dense_replace"]
    return decoder(config, lambda index: block | (gated(config) if index < dense else sparse))


def gpt_oss_shapes(config):
    """The first releases are in MXFP4: `gate_up_proj_blocks`, `gate_up_proj_scales`, and so on."""
    hidden, width, count = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    block = (
        attention(config, "qkvo")
        | {"self_attn.sinks": (config["num_attention_heads"],)}
        | linear("mlp.router", count, hidden, True)
        | {"mlp.experts.gate_up_proj": (count, hidden, 2 * width), "mlp.experts.gate_up_proj_bias": (count, 2 * width)}
        | {"mlp.experts.down_proj": (count, width, hidden), "mlp.experts.down_proj_bias": (count, hidden)}
        | norms(config, *BEFORE)
    )
    return decoder(config, lambda _: block)


def convert_gpt_oss(tensors):
    """Separate the interleaved gate and up projections, and turn all experts to [out, in]."""
    converted = {}
    for name, values in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "gate_up_proj":
            for at, half in enumerate(("gate", "up")):
                converted[f"{module}.{half}_proj.weight"] = values.swapaxes(1, 2)[:, at::2]
        elif part == "gate_up_proj_bias":
            for at, half in enumerate(("gate", "up")):
                converted[f"{module}.{half}_proj.bias"] = values[:, at::2]
        elif part == "down_proj":
            converted[f"{module}.down_proj.weight"] = values.swapaxes(1, 2)
        elif part == "down_proj_bias":
            converted[f"{module}.down_proj.bias"] = values
        else:
            converted[name] = values
    return converted


SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 256,
}
"""What almost every configuration has."""

UNTOLD = SIZES | {"hidden_act": "silu", "rms_norm_eps": 0.01, "rope_theta": 10000.0}
"""What most configurations have: without `tie_word_embeddings`, as of families that are tied if nothing is said."""

COMMON = UNTOLD | {"tie_word_embeddings": False}
"""What most other configurations have."""

LLAMA = COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rope_scaling": None,
    "tie_word_embeddings": True,
}
LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}
YARN_SCALING = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}

# sqrt(96) is rounded in bfloat16, which sqrt(64) is not.
GEMMA = UNTOLD | {"hidden_size": 96, "head_dim": 32, "attention_bias": False}

# mlx-lm always takes the long factors, transformers the short ones up to the original length: here they are equal.
LONGROPE_SCALING = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.4, 1.7, 2.0, 2.4, 2.9, 3.5, 4.2, 5.0, 6.0],
    "long_factor": [1.0, 1.1, 1.2, 1.4, 1.7, 2.0, 2.4, 2.9, 3.5, 4.2, 5.0, 6.0],
}
PHI3 = COMMON | {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "attention_bias": False,
    "original_max_position_embeddings": 64,
    "rope_scaling": None,
    "sliding_window": 256,
}

QWEN2_MOE = COMMON | {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 32,
    "norm_topk_prob": False,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "rope_theta": 1000000.0,
    "shared_expert_intermediate_size": 96,
    "use_sliding_window": False,
}

STABLELM = SIZES | {
    "architectures": ["StableLmForCausalLM"],
    "model_type": "stablelm",
    "hidden_act": "silu",
    "layer_norm_eps": 0.01,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.25,
    "qk_layernorm": False,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "use_parallel_residual": False,
    "use_qkv_bias": True,
}

COHERE = SIZES | {
    "architectures": ["CohereForCausalLM"],
    "model_type": "cohere",
    "attention_bias": False,
    "hidden_act": "silu",
    "layer_norm_eps": 0.01,
    "logit_scale": 0.25,
    "rope_theta": 8000000.0,
    "use_qk_norm": False,
}

FAMILIES = {
    "llama": Family(LLAMA, llama_shapes),
    "llama_untied_bias": Family(
        LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}, llama_shapes
    ),
    "llama3": Family(LLAMA | {"rope_scaling": LLAMA3_SCALING, "rope_theta": 500000.0, "head_dim": 16}, llama_shapes),
    "llama_linear": Family(LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}}, llama_shapes),
    "llama_yarn": Family(LLAMA | {"rope_scaling": YARN_SCALING, "head_dim": 32}, llama_shapes),
    # Up to v0.1 with a `sliding_window`, which mlx-lm does not read; later ones have null.
    "mistral": Family(
        COMMON
        | {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "head_dim": 32,
            "rope_theta": 1000000.0,
            "sliding_window": None,
        },
        llama_shapes,
    ),
    "qwen2": Family(
        COMMON
        | {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "max_window_layers": 2,
            "rope_theta": 1000000.0,
            "sliding_window": 256,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
        partial(llama_shapes, biased="qkv"),
    ),
    "qwen3": Family(
        COMMON
        | {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": False,
            "head_dim": 32,
            "max_window_layers": 2,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "use_sliding_window": False,
        },
        qwen3_shapes,
    ),
    # Releases have "gelu_pytorch_tanh", or "gelu" and no `hidden_activation`, which means the same to transformers;
    # mlx-lm computes the exact function whatever they say.
    "gemma": Family(
        GEMMA
        | {
            "architectures": ["GemmaForCausalLM"],
            "model_type": "gemma",
            "hidden_act": "gelu",
            "hidden_activation": "gelu",
            "num_key_value_heads": 1,
        },
        llama_shapes,
        gain=0.0,
    ),
    # mlx-lm does not read `sliding_window`, which every other layer has, beginning with the first.
    "gemma2": Family(
        GEMMA
        | {
            "architectures": ["Gemma2ForCausalLM"],
            "model_type": "gemma2",
            "attn_logit_softcapping": 6.0,
            "final_logit_softcapping": 8.0,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 24,
            "sliding_window": 256,
        },
        gemma2_shapes,
        gain=0.0,
    ),
    # Without a pattern, it is 6; later configurations have `layer_types` in its place. The larger models, which see,
    # have `language_model.` before every name and all this in `text_config`.
    "gemma3_text": Family(
        GEMMA
        | {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "hidden_activation": "gelu_pytorch_tanh",
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "query_pre_attn_scalar": 24,
            "rope_local_base_freq": 10000,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "rope_theta": 1000000,
            "sliding_window": 8,
            "sliding_window_pattern": 2,
        },
        gemma3_shapes,
        gain=0.0,
    ),
    "phi3": Family(PHI3, phi3_shapes),
    "phi3_partial": Family(PHI3 | {"partial_rotary_factor": 0.75, "tie_word_embeddings": True}, phi3_shapes),
    "phi3_longrope": Family(
        PHI3 | {"num_attention_heads": 2, "partial_rotary_factor": 0.75, "rope_scaling": LONGROPE_SCALING},
        phi3_shapes,
    ),
    "olmo2": Family(
        COMMON
        | {
            "architectures": ["Olmo2ForCausalLM"],
            "model_type": "olmo2",
            "attention_bias": False,
            "rope_scaling": None,
            "rope_theta": 500000,
        },
        olmo2_shapes,
    ),
    "gpt2": Family(
        {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 0.01,
            "n_ctx": 64,
            "n_embd": 64,
            "n_head": 4,
            "n_layer": 2,
            "n_positions": 64,
            "vocab_size": 96,
        },
        gpt2_shapes,
        renames=((r"^model\.", ""),),
    ),
    "mixtral": Family(
        COMMON
        | {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "intermediate_size": 96,
            "num_experts_per_tok": 2,
            "num_local_experts": 4,
            "rope_theta": 1000000.0,
            "sliding_window": None,
        },
        mixtral_shapes,
        renames=(
            (r"switch_mlp\.gate_proj", "experts.*.w1"),
            (r"switch_mlp\.down_proj", "experts.*.w2"),
            (r"switch_mlp\.up_proj", "experts.*.w3"),
        ),
    ),
    # mlx-lm reads neither `norm_topk_prob` nor which layers are dense; no release has dense ones.
    "qwen2_moe": Family(QWEN2_MOE, qwen2_moe_shapes),
    "qwen2_moe_dense": Family(QWEN2_MOE | {"num_hidden_layers": 3, "mlp_only_layers": [1]}, qwen2_moe_shapes),
    "qwen3_moe": Family(
        COMMON
        | {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "head_dim": 32,
            "max_window_layers": 3,
            "mlp_only_layers": [1],
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "num_hidden_layers": 3,
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "use_sliding_window": False,
        },
        qwen3_moe_shapes,
    ),
    "olmoe": Family(
        COMMON
        | {
            "architectures": ["OlmoeForCausalLM"],
            "model_type": "olmoe",
            "attention_bias": False,
            "clip_qkv": None,
            "intermediate_size": 32,
            "norm_topk_prob": False,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "num_key_value_heads": 4,
            "rope_scaling": None,
        },
        olmoe_shapes,
    ),
    # Releases have "gelu_pytorch_tanh"; mlx-lm computes the exact function whatever they say.
    "starcoder2": Family(
        SIZES
        | {
            "architectures": ["Starcoder2ForCausalLM"],
            "model_type": "starcoder2",
            "hidden_act": "gelu",
            "mlp_type": "default",
            "norm_epsilon": 0.01,
            "norm_type": "layer_norm",
            "rope_theta": 999999.4420358813,
            "sliding_window": 256,
            "use_bias": True,
        },
        starcoder2_shapes,
    ),
    "stablelm": Family(STABLELM, stablelm_shapes),
    "stablelm_parallel": Family(
        STABLELM
        | {
            "num_attention_heads": 4,
            "qk_layernorm": True,
            "use_parallel_residual": True,
            "use_qkv_bias": False,
        },
        stablelm_shapes,
    ),
    "phi": Family(
        SIZES
        | {
            "architectures": ["PhiForCausalLM"],
            "model_type": "phi",
            "hidden_act": "gelu_new",
            "layer_norm_eps": 0.01,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "partial_rotary_factor": 0.4,
            "qk_layernorm": False,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
        },
        phi_shapes,
    ),
    # Pythia has "gelu", the exact function; mlx-lm computes the one with tanh whatever they say.
    "gpt_neox": Family(
        {
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "attention_bias": True,
            "hidden_act": "gelu_fast",
            "hidden_size": 64,
            "intermediate_size": 256,
            "layer_norm_eps": 0.01,
            "max_position_embeddings": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "rotary_emb_base": 10000,
            "rotary_pct": 0.25,
            "tie_word_embeddings": False,
            "use_parallel_residual": True,
            "vocab_size": 96,
        },
        gpt_neox_shapes,
        renames=((r"^model\.h\.", "gpt_neox.layers."), (r"^model\.embed_out", "embed_out"), (r"^model\.", "gpt_neox.")),
    ),
    "cohere": Family(COHERE, cohere_shapes),
    "cohere_qk_norm": Family(COHERE | {"use_qk_norm": True}, cohere_shapes),
    "granite": Family(
        COMMON
        | {
            "architectures": ["GraniteForCausalLM"],
            "model_type": "granite",
            "attention_bias": False,
            "attention_multiplier": 0.125,
            "embedding_multiplier": 3.0,
            "logits_scaling": 4.0,
            "mlp_bias": False,
            "residual_multiplier": 0.6,
            "rope_scaling": None,
            "tie_word_embeddings": True,
        },
        llama_shapes,
    ),
    "glm4": Family(
        COMMON
        | {
            "architectures": ["Glm4ForCausalLM"],
            "model_type": "glm4",
            "attention_bias": True,
            "head_dim": 32,
            "partial_rotary_factor": 0.5,
        },
        glm4_shapes,
    ),
    # Releases have one group; a last layer for the prediction of later tokens is not written here.
    "glm4_moe": Family(
        COMMON
        | {
            "architectures": ["Glm4MoeForCausalLM"],
            "model_type": "glm4_moe",
            "attention_bias": True,
            "first_k_dense_replace": 1,
            "head_dim": 32,
            "moe_intermediate_size": 32,
            "n_group": 4,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_experts_per_tok": 3,
            "num_hidden_layers": 3,
            "partial_rotary_factor": 0.5,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "routed_scaling_factor": 1.5,
            "topk_group": 2,
            "use_qk_norm": True,
        },
        glm4_moe_shapes,
    ),
    "smollm3": Family(
        UNTOLD
        | {
            "architectures": ["SmolLM3ForCausalLM"],
            "model_type": "smollm3",
            "attention_bias": False,
            "layer_types": ["full_attention"] * 4,
            "mlp_bias": False,
            "no_rope_layer_interval": 4,
            "no_rope_layers": [1, 1, 1, 0],
            "num_hidden_layers": 4,
            "rope_scaling": None,
            "rope_theta": 5000000.0,
            "sliding_window": None,
            "use_sliding_window": False,
        },
        llama_shapes,
    ),
    # Releases have `"truncate": false` in `rope_scaling`, which mlx-lm does not read.
    "gpt_oss": Family(
        COMMON
        | {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "attention_bias": True,
            "experts_per_token": 2,
            "head_dim": 32,
            "intermediate_size": 96,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_experts_per_tok": 2,
            "num_local_experts": 4,
            "rope_scaling": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 8.0,
                "original_max_position_embeddings": 512,
                "rope_type": "yarn",
            },
            "rope_theta": 150000,
            "sliding_window": 8,
            "swiglu_limit": 7.0,
        },
        gpt_oss_shapes,
        renames=(
            (r"experts\.(gate|up)_proj\.weight", "experts.gate_up_proj[*]"),
            (r"experts\.down_proj\.weight", "experts.down_proj[*]"),
        ),
        convert=convert_gpt_oss,
    ),
}
"""The families by name, some in several variants."""

"""Tiny random checkpoints as they are released: names, dtypes, encodings, configurations and files of the real ones.

The numbers are such that every convention shows; see `families`. Tensors that are read with another one are in other
files than it, and the experts of a layer in several.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import families
import numpy as np
from conftest import Tensor, write_checkpoint, write_shards
from decoders import E2M1, FP8, INT4_GROUP, decoded
from families import (
    BEFORE,
    FAMILIES,
    FLOATS,
    attention,
    convert_gpt_oss,
    decoder,
    gated,
    glm4_moe_shapes,
    gpt_oss_shapes,
    head_norms,
    linear,
    llama_shapes,
    norms,
    qwen3_shapes,
    routed,
    wide_norms,
)


@dataclass(frozen=True)
class Release:
    """A release: its configuration in small, the tensors that go with it, and how they are stored."""

    config: dict
    shapes: Callable[[dict], dict[str, tuple[int, ...]]]
    dtype: str = "BF16"
    float32: str = "(?!)"
    """Which tensors are in float32 all the same."""
    gain: float = 1.0
    """The mean of a norm's stored gains: 0 where the norm adds 1 to them."""
    encoded: str = "(?!)"
    """Which matrices are encoded."""
    encode: Callable[[str, np.ndarray], dict[str, Tensor]] | None = None
    """Turns a matrix into the tensors that it is stored as."""
    shards: int = 1
    error: str | None = None
    """What mlx-lm says when it is to load the release, if it does not."""
    loadable: Callable[[dict, dict], tuple[dict, dict]] | None = None
    """Turns tensors and configuration into such as mlx-lm loads."""
    budgets: tuple[str, str] = ("4.5", "6.5")


def write_release(name, directory, seed=0):
    """Write a release."""
    release = RELEASES[name]
    if release.shards == 1:
        return write_checkpoint(directory, release_tensors(name, seed), release.config)
    return write_shards(directory, release_tensors(name, seed), release.config, release.shards)


def release_tensors(name, seed=0):
    """Draw the tensors of a release: first what is a weight, then what is read with one."""
    release, random = RELEASES[name], np.random.default_rng(seed)
    weights, others = {}, {}
    for tensor, shape in release.shapes(release.config).items():
        values = drawn(random, tensor, shape, release)
        if re.search(release.encoded, tensor):
            first, *rest = release.encode(tensor, values).items()
            weights |= [first]
            others |= rest
        else:
            dtype = "F32" if re.search(release.float32, tensor) else families.stored_as(tensor, release.dtype)
            weights[tensor] = Tensor.of(values, dtype)
    return weights | others


def drawn(random, name, shape, release):
    """Draw the values of a tensor."""
    if name.endswith("A_log"):
        return np.log(random.uniform(1, 16, shape))
    if name.endswith(("mixer.D", "linear_attn.norm.weight")):
        return 1 + 0.3 * random.standard_normal(shape)
    if name.endswith("conv1d.weight"):
        return 0.5 * random.standard_normal(shape)
    return families.drawn(random, name, shape, release.gain)


def peaks(values, block):
    """Return the largest magnitude in each block."""
    for axis in (0, 1):
        values = np.maximum.reduceat(np.abs(values), range(0, values.shape[axis], block[axis]), axis)
    return values


def nearest(values, table):
    """Return the code of the number in a table that is nearest to each value."""
    codes = np.flatnonzero(np.isfinite(table))
    codes = codes[np.argsort(table[codes], kind="stable")]
    middles = (table[codes][1:] + table[codes][:-1]) / 2
    return codes[np.searchsorted(middles, values)].astype(np.uint8)


def encode_fp8(name, values, *, block=None, shape=None, dtype="F8_E4M3", scale="weight_scale_inv", scale_dtype="F32"):
    """Encode as floats of 8 bits with a scale for each block, which is all of the matrix if none is given."""
    table, block = FP8[dtype], block or values.shape
    largest = table[np.isfinite(table)].max()
    scales = Tensor.of(peaks(values, block) / largest, scale_dtype)
    spread = scales.values.repeat(block[0], 0).repeat(block[1], 1)[: values.shape[0], : values.shape[1]]
    codes = nearest(np.clip(values / spread, -largest, largest), table)
    scales.elements = scales.elements if shape is None else scales.elements.reshape(shape)
    return {name: Tensor(dtype, codes), f"{name.removesuffix('weight')}{scale}": scales}


def encode_fp8_rows(name, values):
    """Encode as floats of 8 bits with a scale for each row."""
    return encode_fp8(name, values, block=(1, values.shape[1]), scale="weight_scale", scale_dtype="BF16")


def encode_fp8_static(name, values):
    """Encode as floats of 8 bits with a scale for the matrix, and one for its inputs."""
    tensors = encode_fp8(name, values, shape=(), scale="weight_scale", scale_dtype="BF16")
    return tensors | {f"{name.removesuffix('weight')}input_scale": Tensor.of(np.array(0.02))}


def encode_int4(name, values):
    """Encode as integers of 4 bits, eight in a word, with a scale for each group."""
    module, grouped = name.removesuffix(".weight"), values.reshape(len(values), -1, INT4_GROUP)
    scales = Tensor.of(np.abs(grouped).max(-1) / 7.5)
    codes = np.clip(np.round(grouped / scales.values[..., None]), -8, 7).astype(np.int8) + 8
    codes = codes.astype(np.uint8).reshape(values.shape)
    return {
        f"{module}.weight_packed": Tensor("I32", (codes[:, ::2] | codes[:, 1::2] << 4).view("<i4")),
        f"{module}.weight_scale": scales,
        f"{module}.weight_shape": Tensor.of(values.shape, "I32"),
    }


def encode_mxfp4(name, values):
    """Encode experts [in, out] as floats of 4 bits [out, in], with a power of two for each block."""
    grouped = values.swapaxes(1, 2).reshape(len(values), values.shape[2], -1, 32)
    exponents = np.floor(np.log2(np.abs(grouped).max(-1))).astype(int) - 2
    codes = nearest(grouped / 2.0 ** exponents[..., None], E2M1)
    return {
        f"{name}_blocks": Tensor("U8", codes[..., ::2] | codes[..., 1::2] << 4),
        f"{name}_scales": Tensor.of(exponents + 127, "U8"),
    }


def with_predictor(shapes, config):
    """Add the layer after the last, which predicts the second next token."""
    vocabulary, hidden = config["vocab_size"], config["hidden_size"]
    last, layer = (f"model.layers.{config['num_hidden_layers'] + at}." for at in (-1, 0))
    block = {name.removeprefix(last): shape for name, shape in shapes.items() if name.startswith(last)}
    block |= linear("embed_tokens", vocabulary, hidden) | linear("shared_head.head", vocabulary, hidden)
    block |= linear("eh_proj", hidden, 2 * hidden) | norms(config, "enorm", "hnorm", "shared_head.norm")
    return shapes | {layer + name: shape for name, shape in block.items()}


def without_predictor(tensors, config):
    """Leave out that layer."""
    layer = f"model.layers.{config['num_hidden_layers']}."
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(layer)}, config


def plain(tensors, config):
    """Decode what is encoded."""
    return decoded(tensors, config), {key: value for key, value in config.items() if key != "quantization_config"}


def latent_attention(config):
    """Return the tensors of an attention block whose keys and values are of low rank, and maybe its queries."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    rank, keys = config["q_lora_rank"], config["kv_lora_rank"]
    nope, rope, value = (config[size] for size in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    if rank is None:
        queries = linear("self_attn.q_proj", heads * (nope + rope), hidden)
    else:
        queries = linear("self_attn.q_a_proj", rank, hidden) | {"self_attn.q_a_layernorm.weight": (rank,)}
        queries |= linear("self_attn.q_b_proj", heads * (nope + rope), rank)
    return (
        queries
        | {"self_attn.kv_a_layernorm.weight": (keys,)}
        | linear("self_attn.kv_a_proj_with_mqa", keys + rope, hidden)
        | linear("self_attn.kv_b_proj", heads * (nope + value), keys)
        | linear("self_attn.o_proj", hidden, heads * value)
    )


def deepseek_v2_shapes(config):
    count, width = config["n_routed_experts"], config["moe_intermediate_size"]
    block = latent_attention(config) | norms(config, *BEFORE)
    shared = gated(config, "mlp.shared_experts", width * config["n_shared_experts"])
    bias = {"mlp.gate.e_score_correction_bias": (count,)} if config["topk_method"] == "noaux_tc" else {}
    sparse = routed(config, count, width) | bias | shared
    dense = config["first_k_dense_replace"]
    return decoder(config, lambda index: block | (gated(config) if index < dense else sparse))


def deepseek_v3_shapes(config):
    shapes = deepseek_v2_shapes(config)
    return with_predictor(shapes, config) if config["num_nextn_predict_layers"] else shapes


def kimi_k25_shapes(config):
    vision, hidden = config["vision_config"], config["text_config"]["hidden_size"]
    shapes = {f"language_model.{name}": shape for name, shape in deepseek_v3_shapes(config["text_config"]).items()}
    width, inner = vision["vt_hidden_size"], vision["vt_intermediate_size"]
    places = (vision["init_pos_emb_height"], vision["init_pos_emb_width"])
    tower = {"patch_embed.proj.weight": (width, 3, vision["patch_size"], vision["patch_size"])}
    tower |= {"patch_embed.proj.bias": (width,), "patch_embed.pos_emb.weight": (*places, width)}
    sizes = {"hidden_size": width}
    for index in range(vision["vt_num_hidden_layers"]):
        block = f"encoder.blocks.{index}"
        tower |= (
            norms(sizes, f"{block}.norm0", f"{block}.norm1", bias=True)
            | linear(f"{block}.wqkv", 3 * width, width, True)
            | linear(f"{block}.wo", width, width, True)
            | linear(f"{block}.mlp.fc0", inner, width, True)
            | linear(f"{block}.mlp.fc1", width, inner, True)
        )
    tower |= norms(sizes, "encoder.final_layernorm", bias=True)
    merged = width * vision["merge_kernel_size"][0] * vision["merge_kernel_size"][1]
    projector = norms(sizes, "pre_norm", bias=True)
    projector |= linear("proj.0", merged, merged, True) | linear("proj.2", hidden, merged, True)
    shapes |= {f"vision_tower.{name}": shape for name, shape in tower.items()}
    return shapes | {f"mm_projector.{name}": shape for name, shape in projector.items()}


def minimax_shapes(config):
    count, width = config["num_local_experts"], config["intermediate_size"]
    block = attention(config) | wide_norms(config) | norms(config, *BEFORE)
    block |= routed(config, count, width, "block_sparse_moe", names=("w1", "w3", "w2"))
    block |= {"block_sparse_moe.e_score_correction_bias": (count,)}
    return decoder(config, lambda _: block)


def glm4_moe_release_shapes(config):
    return with_predictor(glm4_moe_shapes(config), config)


def gated_attention(config):
    """Return the tensors of an attention block whose queries come with a gate for the output."""
    block = attention(config) | head_norms(config)
    outputs, inputs = block["self_attn.q_proj.weight"]
    return block | linear("self_attn.q_proj", 2 * outputs, inputs)


def delta(config, projections):
    """Return the tensors of linear attention, its input projections by how often each part is in them."""
    heads, hidden = config["linear_num_value_heads"], config["hidden_size"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = heads * config["linear_value_head_dim"]
    block = {
        "linear_attn.A_log": (heads,),
        "linear_attn.dt_bias": (heads,),
        "linear_attn.conv1d.weight": (2 * keys + values, 1, config["linear_conv_kernel_dim"]),
        "linear_attn.norm.weight": (config["linear_value_head_dim"],),
    }
    for name, (of_keys, of_values, of_heads) in projections.items():
        block |= linear(f"linear_attn.{name}", of_keys * keys + of_values * values + of_heads * heads, hidden)
    return block | linear("linear_attn.out_proj", hidden, values)


def hybrid(config, projections, feed_forward):
    """Return the tensors of a decoder with linear attention in most layers, and with a predictor."""
    linear_block, full = delta(config, projections), gated_attention(config)

    def block(index):
        is_full = (index + 1) % config["full_attention_interval"] == 0
        return (full if is_full else linear_block) | feed_forward | norms(config, *BEFORE)

    predictor = {f"layers.0.{name}": shape for name, shape in (full | feed_forward | norms(config, *BEFORE)).items()}
    predictor |= linear("fc", config["hidden_size"], 2 * config["hidden_size"])
    predictor |= norms(config, "norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
    return decoder(config, block) | {f"mtp.{name}": shape for name, shape in predictor.items()}


def shared_expert(config):
    """Return the tensors of the expert that every token has, and of its gate."""
    width = config["shared_expert_intermediate_size"]
    return gated(config, "mlp.shared_expert", width) | linear("mlp.shared_expert_gate", 1, config["hidden_size"])


def qwen3_next_shapes(config):
    experts = routed(config, config["num_experts"], config["moe_intermediate_size"])
    return hybrid(config, {"in_proj_qkvz": (2, 2, 0), "in_proj_ba": (0, 0, 2)}, experts | shared_expert(config))


def qwen3_5_text_shapes(config):
    if "num_experts" in config:
        count, width, hidden = config["num_experts"], config["moe_intermediate_size"], config["hidden_size"]
        feed_forward = linear("mlp.gate", count, hidden) | shared_expert(config)
        feed_forward |= {"mlp.experts.gate_up_proj": (count, 2 * width, hidden)}
        feed_forward |= {"mlp.experts.down_proj": (count, hidden, width)}
    else:
        feed_forward = gated(config)
    parts = {"qkv": (2, 1, 0), "z": (0, 1, 0), "a": (0, 0, 1), "b": (0, 0, 1)}
    return hybrid(config, {f"in_proj_{part}": counts for part, counts in parts.items()}, feed_forward)


def qwen3_5_shapes(config):
    text, vision = config["text_config"], config["vision_config"]
    shapes = {
        re.sub(r"^model\.", "model.language_model.", name): shape for name, shape in qwen3_5_text_shapes(text).items()
    }
    hidden, width = vision["hidden_size"], vision["intermediate_size"]
    patch = (vision["in_channels"], vision["temporal_patch_size"], vision["patch_size"], vision["patch_size"])
    tower = {"patch_embed.proj.weight": (hidden, *patch), "patch_embed.proj.bias": (hidden,)}
    tower |= {"pos_embed.weight": (vision["num_position_embeddings"], hidden)}
    for index in range(vision["depth"]):
        tower |= (
            norms(vision, f"blocks.{index}.norm1", f"blocks.{index}.norm2", bias=True)
            | linear(f"blocks.{index}.attn.qkv", 3 * hidden, hidden, True)
            | linear(f"blocks.{index}.attn.proj", hidden, hidden, True)
            | linear(f"blocks.{index}.mlp.linear_fc1", width, hidden, True)
            | linear(f"blocks.{index}.mlp.linear_fc2", hidden, width, True)
        )
    merged = hidden * vision["spatial_merge_size"] ** 2
    tower |= norms(vision, "merger.norm", bias=True) | linear("merger.linear_fc1", merged, merged, True)
    tower |= linear("merger.linear_fc2", vision["out_hidden_size"], merged, True)
    return shapes | {f"model.visual.{name}": shape for name, shape in tower.items()}


def llama4_shapes(config):
    text, vision = config["text_config"], config["vision_config"]
    hidden, width, count = text["hidden_size"], text["intermediate_size"], text["num_local_experts"]
    block = attention(text) | norms(text, *BEFORE)
    sparse = (
        {"feed_forward.experts.gate_up_proj": (count, hidden, 2 * width)}
        | {"feed_forward.experts.down_proj": (count, width, hidden)}
        | linear("feed_forward.router", count, hidden)
        | gated(text, "feed_forward.shared_expert", width)
    )
    dense, step = gated(text, "feed_forward", text["intermediate_size_mlp"]), text["interleave_moe_layer_step"]
    shapes = decoder(text, lambda index: block | (dense if (index + 1) % step else sparse))
    return {f"language_model.{name}": shape for name, shape in shapes.items()} | {
        "multi_modal_projector.linear_1.weight": (hidden, vision["vision_output_dim"]),
        **{f"vision_model.{name}": shape for name, shape in llama4_vision_shapes(vision).items()},
    }


def llama4_vision_shapes(config):
    hidden, width, projected = (config[size] for size in ("hidden_size", "intermediate_size", "projector_output_dim"))
    patches = (config["image_size"] // config["patch_size"]) ** 2
    shapes = {"class_embedding": (hidden,), "positional_embedding_vlm": (patches + 1, hidden)}
    shapes |= linear("patch_embedding.linear", hidden, config["num_channels"] * config["patch_size"] ** 2)
    shapes |= norms(config, "layernorm_pre", "layernorm_post", bias=True)
    for index in range(config["num_hidden_layers"]):
        block = norms(config, *BEFORE, bias=True)
        for part in "qkvo":
            block |= linear(f"self_attn.{part}_proj", hidden, hidden, True)
        block |= linear("mlp.fc1", width, hidden, True) | linear("mlp.fc2", hidden, width, True)
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in block.items()}
    adapter = linear("vision_adapter.mlp.fc1", projected, width)
    return shapes | adapter | linear("vision_adapter.mlp.fc2", projected, projected)


def mamba2_shapes(config):
    hidden, heads = config["hidden_size"], config["num_heads"]
    inner, states = heads * config["head_dim"], config["n_groups"] * config["state_size"]
    convolved = inner + 2 * states
    block = {
        "norm.weight": (hidden,),
        **{f"mixer.{name}": (heads,) for name in ("dt_bias", "A_log", "D")},
        "mixer.conv1d.weight": (convolved, 1, config["conv_kernel"]),
        "mixer.conv1d.bias": (convolved,),
        "mixer.norm.weight": (inner,),
        **linear("mixer.in_proj", inner + convolved + heads, hidden),
        **linear("mixer.out_proj", hidden, inner),
    }
    shapes = linear("backbone.embeddings", config["vocab_size"], hidden)
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"backbone.layers.{index}.{name}": shape for name, shape in block.items()}
    return shapes | {"backbone.norm_f.weight": (hidden,)} | linear("lm_head", config["vocab_size"], hidden)


def with_inner_size(tensors, config):
    """Add what mlx-lm asks for, and releases leave to `expand`."""
    return tensors, config | {"intermediate_size": config["expand"] * config["hidden_size"]}


def with_separate_experts(tensors, config):
    """Take the experts of gpt-oss apart as mlx-lm has them."""
    elements = convert_gpt_oss({name: tensor.elements for name, tensor in tensors.items()})
    return {name: Tensor("BF16", np.ascontiguousarray(values)) for name, values in elements.items()}, config


PROJECTIONS = r"[a-z]_proj(_with_mqa)?\.weight$"
"""The matrices that releases encode: no router, no embedding, no head."""

WIDER = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 128}


def of_family(name, **changes):
    """Return the configuration of a family, of such sizes as can be grouped."""
    return FAMILIES[name].config | {"torch_dtype": "bfloat16", "vocab_size": 128} | changes


ROTARY = {
    "rope_theta": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "partial_rotary_factor": "partial_rotary_factor",
    "rotary_pct": "partial_rotary_factor",
}
"""What configurations call base and share of rotary positions, and what transformers does since its version 5."""


def with_rope_parameters(config):
    """Return a configuration as transformers 5 writes it: what is said of rotary positions is in one object."""
    if "text_config" in config:
        return config | {"text_config": with_rope_parameters(config["text_config"])}
    kept = {key: value for key, value in config.items() if key != "rope_scaling" and key not in ROTARY}
    scaling = dict(config.get("rope_scaling") or {"rope_type": "default"})
    scaling.setdefault("rope_type", scaling.get("type"))
    moved = {new: config[old] for old, new in ROTARY.items() if old in config}
    return kept | {"rope_parameters": scaling | moved}


BLOCKS = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}

DEEPSEEK_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 320,
    "kv_lora_rank": 128,
    "max_position_embeddings": 1024,
    "moe_intermediate_size": 192,
    "moe_layer_freq": 1,
    "n_group": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 64,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 4,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 256,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 64,
    "vocab_size": 128,
}

KIMI_K2 = DEEPSEEK_V3 | {
    "model_type": "kimi_k2",
    "aux_loss_alpha": 0.001,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 64,
    "n_group": 1,
    "num_hidden_layers": 2,
    "num_nextn_predict_layers": 0,
    "quantization_config": {
        "config_groups": {
            "group_0": {
                "input_activations": None,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": {
                    "actorder": None,
                    "block_structure": None,
                    "dynamic": False,
                    "group_size": 32,
                    "num_bits": 4,
                    "observer": "minmax",
                    "observer_kwargs": {},
                    "strategy": "group",
                    "symmetric": True,
                    "type": "int",
                },
            }
        },
        "format": "pack-quantized",
        "ignore": [
            "lm_head",
            "re:.*self_attn.*",
            "re:.*shared_experts.*",
            r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
        ],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    },
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
}

MINIMAX_M2 = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "model_type": "minimax_m2",
    "attention_dropout": 0.0,
    "attn_type_list": [1, 1],
    "auto_map": {"AutoConfig": "configuration_minimax_m2.MiniMaxM2Config"},
    "bos_token_id": None,
    "eos_token_id": None,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 192,
    "layernorm_full_attention_alpha": 1.0,
    "layernorm_full_attention_beta": 1.0,
    "max_position_embeddings": 1024,
    "mlp_intermediate_size": 512,
    "mtp_transformer_layers": 1,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_mtp_modules": 3,
    "output_router_logits": False,
    "qk_norm_type": "per_layer",
    "rms_norm_eps": 1e-06,
    "rope_theta": 5000000,
    "rotary_dim": 32,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 0,
    "shared_moe_mode": "sigmoid",
    "sliding_window": None,
    "tie_word_embeddings": False,
    "transformers_version": "4.57.1",
    "use_cache": True,
    "use_mtp": True,
    "use_qk_norm": True,
    "use_routing_bias": True,
    "vocab_size": 128,
}

LINEAR_ATTENTION = {
    "full_attention_interval": 2,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 32,
}

EXPERTS = {
    "moe_intermediate_size": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 64,
}

QWEN3_5_TEXT = LINEAR_ATTENTION | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_output_gate": True,
    "dtype": "bfloat16",
    "eos_token_id": 0,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "layer_types": ["linear_attention", "full_attention"],
    "mamba_ssm_dtype": "float32",
    "max_position_embeddings": 256,
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [3, 3, 2],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
    "use_cache": True,
    "vocab_size": 128,
}


def qwen3_5(model_type, architecture, tied, **text):
    """Return a configuration of the models that see."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "image_token_id": 120,
        "text_config": QWEN3_5_TEXT | {"model_type": f"{model_type}_text", "tie_word_embeddings": tied} | text,
        "tie_word_embeddings": tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": 121,
        "vision_config": {
            "deepstack_visual_indexes": [],
            "depth": 1,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 64,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 128,
            "model_type": model_type,
            "num_heads": 2,
            "num_position_embeddings": 16,
            "out_hidden_size": 128,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": 122,
        "vision_start_token_id": 123,
    }


GPT_OSS = of_family("gpt_oss", hidden_size=128, intermediate_size=192)

QWEN3_5_FLOAT32 = r"linear_attn\.(A_log|norm\.weight)$"


def float_quantized(weights, inputs):
    """Return the quantization block of compressed-tensors for floats of 8 bits."""
    common = {"block_structure": None, "group_size": None, "num_bits": 8, "symmetric": True, "type": "float"}
    return {
        "config_groups": {
            "group_0": {
                "input_activations": common | inputs,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": common | {"dynamic": False, "observer": "minmax", "observer_kwargs": {}} | weights,
            }
        },
        "format": "float-quantized",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


LLAMA = of_family("llama3", **WIDER, head_dim=32, tie_word_embeddings=False)

RELEASES = {
    "gpt2": Release(
        of_family("gpt2", n_embd=128, torch_dtype="float32"), FAMILIES["gpt2"].shapes, "F32", budgets=("6.5", "9")
    ),
    "gpt_neox": Release(
        of_family("gpt_neox", hidden_size=128, intermediate_size=512, torch_dtype=FLOATS["F16"]),
        FAMILIES["gpt_neox"].shapes,
        "F16",
    ),
    "mixtral": Release(
        of_family("mixtral", hidden_size=128, intermediate_size=192), FAMILIES["mixtral"].shapes, shards=3
    ),
    "qwen2_moe": Release(
        of_family("qwen2_moe", **WIDER, moe_intermediate_size=64, shared_expert_intermediate_size=128),
        FAMILIES["qwen2_moe"].shapes,
    ),
    "qwen3_moe": Release(
        of_family("qwen3_moe", **WIDER, moe_intermediate_size=64, mlp_only_layers=[], num_hidden_layers=2),
        FAMILIES["qwen3_moe"].shapes,
        shards=3,
    ),
    "olmoe": Release(of_family("olmoe", hidden_size=128, intermediate_size=64), FAMILIES["olmoe"].shapes),
    # mlx-lm leaves out layer 61, whatever the number of layers is.
    "deepseek_v3": Release(
        DEEPSEEK_V3,
        deepseek_v3_shapes,
        shards=3,
        error=r"Received \d+ parameters not in model: \s*model\.layers\.3\.",
        loadable=without_predictor,
    ),
    "deepseek_v3_fp8": Release(
        DEEPSEEK_V3 | {"quantization_config": BLOCKS},
        deepseek_v3_shapes,
        encoded=PROJECTIONS.replace("[a-z]", "(?<!eh)[a-z]"),
        encode=partial(encode_fp8, block=(128, 128)),
        shards=3,
        error=r"Received \d+ parameters not in model: \s*model\.layers\.3\.",
        loadable=without_predictor,
    ),
    # Moonshot's K2-Thinking; mlx-lm takes the words as they are.
    "kimi_k2": Release(
        KIMI_K2,
        deepseek_v3_shapes,
        encoded=r"\.experts\.\d+\.",
        encode=encode_int4,
        shards=3,
    ),
    # The encoding is described in the inner configuration.
    "kimi_k25": Release(
        {
            "architectures": ["KimiK25ForConditionalGeneration"],
            "model_type": "kimi_k25",
            "auto_map": {"AutoConfig": "configuration_kimi_k25.KimiK25Config"},
            "bos_token_id": 0,
            "dtype": "bfloat16",
            "eos_token_id": 1,
            "ignore_index": -100,
            "media_placeholder_token_id": 120,
            "pad_token_id": 2,
            "text_config": KIMI_K2 | {"tie_word_embeddings": False},
            "tie_word_embeddings": False,
            "transformers_version": "4.56.2",
            "use_unified_vision_chunk": True,
            "video_placeholder": "<|kimi_k25_video_placeholder|>",
            "vision_config": {
                "init_pos_emb_height": 4,
                "init_pos_emb_time": 4,
                "init_pos_emb_width": 4,
                "merge_kernel_size": [2, 2],
                "merge_type": "sd2_tpool",
                "mm_hidden_size": 64,
                "mm_projector_type": "patchmerger",
                "patch_size": 4,
                "pos_emb_type": "divided_fixed",
                "projector_hidden_act": "gelu",
                "projector_ln_eps": 1e-05,
                "text_hidden_size": 128,
                "video_attn_type": "spatial_temporal",
                "vt_hidden_size": 64,
                "vt_intermediate_size": 128,
                "vt_num_attention_heads": 2,
                "vt_num_hidden_layers": 1,
            },
        },
        kimi_k25_shapes,
        encoded=r"\.experts\.\d+\.",
        encode=encode_int4,
        shards=3,
    ),
    # The smaller one, V2-Lite: its queries are not of low rank.
    "deepseek_v2": Release(
        {key: value for key, value in DEEPSEEK_V3.items() if key != "num_nextn_predict_layers"}
        | {
            "architectures": ["DeepseekV2ForCausalLM"],
            "model_type": "deepseek_v2",
            "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
            "aux_loss_alpha": 0.001,
            "intermediate_size": 256,
            "moe_intermediate_size": 64,
            "n_group": 1,
            "n_shared_experts": 2,
            "norm_topk_prob": False,
            "q_lora_rank": None,
            "rope_scaling": DEEPSEEK_V3["rope_scaling"] | {"mscale": 0.707, "mscale_all_dim": 0.707},
            "routed_scaling_factor": 1.0,
            "scoring_func": "softmax",
            "seq_aux": True,
            "topk_method": "greedy",
        },
        deepseek_v2_shapes,
        shards=2,
    ),
    "minimax_m2": Release(
        MINIMAX_M2
        | {
            "quantization_config": BLOCKS
            | {"fmt": "float8_e4m3fn", "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"]}
        },
        minimax_shapes,
        float32=r"block_sparse_moe\.gate\.weight$",
        encoded=r"(\.w\d|_proj)\.weight$",
        encode=partial(encode_fp8, block=(128, 128)),
        shards=3,
    ),
    # The first name of M2, here as others unpack it.
    "glm4_moe": Release(
        of_family("glm4_moe", **WIDER, moe_intermediate_size=64, num_nextn_predict_layers=1),
        glm4_moe_release_shapes,
        shards=2,
    ),
    "qwen3_next": Release(
        of_family("qwen3_moe", **WIDER)
        | LINEAR_ATTENTION
        | EXPERTS
        | {
            "architectures": ["Qwen3NextForCausalLM"],
            "model_type": "qwen3_next",
            "head_dim": 64,
            "mlp_only_layers": [],
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
        },
        qwen3_next_shapes,
        gain=0.0,
        shards=2,
    ),
    "qwen3_5": Release(
        qwen3_5("qwen3_5", "Qwen3_5ForConditionalGeneration", True, intermediate_size=256),
        qwen3_5_shapes,
        float32=QWEN3_5_FLOAT32,
        gain=0.0,
    ),
    "qwen3_5_moe": Release(
        qwen3_5("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", False, **EXPERTS),
        qwen3_5_shapes,
        float32=QWEN3_5_FLOAT32,
        gain=0.0,
        shards=2,
    ),
    "gpt_oss": Release(
        GPT_OSS
        | {
            "quantization_config": {
                "modules_to_not_convert": [
                    "model.layers.*.self_attn",
                    "model.layers.*.mlp.router",
                    "model.embed_tokens",
                    "lm_head",
                ],
                "quant_method": "mxfp4",
            }
        },
        gpt_oss_shapes,
        encoded="experts.*_proj$",
        encode=encode_mxfp4,
        shards=2,
    ),
    # mlx-lm knows the experts in MXFP4 alone.
    "gpt_oss_bf16": Release(
        GPT_OSS,
        gpt_oss_shapes,
        error=r"Received 6 parameters not in model: \s*model\.layers\.0\.mlp\.experts\.down_proj,",
        loadable=with_separate_experts,
    ),
    "llama4": Release(
        {
            "architectures": ["Llama4ForConditionalGeneration"],
            "model_type": "llama4",
            "boi_token_index": 120,
            "eoi_token_index": 121,
            "image_token_index": 122,
            "text_config": {
                "attention_bias": False,
                "attention_chunk_size": 16,
                "attention_dropout": 0.0,
                "attn_scale": 0.1,
                "attn_temperature_tuning": 4,
                "floor_scale": 4,
                "for_llm_compressor": False,
                "head_dim": 32,
                "hidden_act": "silu",
                "hidden_size": 128,
                "initializer_range": 0.02,
                "interleave_moe_layer_step": 2,
                "intermediate_size": 64,
                "intermediate_size_mlp": 128,
                "max_position_embeddings": 1024,
                "model_type": "llama4_text",
                "moe_layers": [1, 3],
                "no_rope_layers": [1, 1, 1, 0],
                "num_attention_heads": 4,
                "num_experts_per_tok": 1,
                "num_hidden_layers": 4,
                "num_key_value_heads": 2,
                "num_local_experts": 4,
                "output_router_logits": False,
                "rms_norm_eps": 1e-05,
                "rope_scaling": None,
                "rope_theta": 500000.0,
                "tie_word_embeddings": False,
                "torch_dtype": "bfloat16",
                "use_cache": True,
                "use_qk_norm": False,
                "vocab_size": 128,
            },
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.51.0.dev0",
            "vision_config": {
                "attention_dropout": 0.0,
                "hidden_act": "gelu",
                "hidden_size": 64,
                "image_size": 16,
                "initializer_range": 0.02,
                "intermediate_size": 128,
                "model_type": "llama4_vision_model",
                "num_attention_heads": 2,
                "num_channels": 3,
                "num_hidden_layers": 1,
                "patch_size": 4,
                "pixel_shuffle_ratio": 0.5,
                "projector_input_dim": 64,
                "projector_output_dim": 64,
                "rope_theta": 10000,
                "vision_output_dim": 64,
            },
        },
        llama4_shapes,
        shards=2,
    ),
    # mlx-lm wants `intermediate_size`; releases have `expand`, and an infinity that JSON does not know.
    "mamba2": Release(
        {
            "architectures": ["Mamba2ForCausalLM"],
            "model_type": "mamba2",
            "bos_token_id": 0,
            "chunk_size": 16,
            "conv_kernel": 4,
            "eos_token_id": 0,
            "expand": 2,
            "head_dim": 32,
            "hidden_act": "silu",
            "hidden_size": 128,
            "initializer_range": 0.1,
            "layer_norm_epsilon": 1e-05,
            "n_groups": 2,
            "num_heads": 8,
            "num_hidden_layers": 2,
            "pad_token_id": 0,
            "rescale_prenorm_residual": False,
            "residual_in_fp32": True,
            "rms_norm": True,
            "state_size": 32,
            "tie_word_embeddings": False,
            "time_step_floor": 0.0001,
            "time_step_limit": [0.0, float("inf")],
            "time_step_max": 0.1,
            "time_step_min": 0.001,
            "time_step_rank": 8,
            "torch_dtype": "bfloat16",
            "use_bias": False,
            "use_cache": True,
            "use_conv_bias": True,
            "vocab_size": 128,
        },
        mamba2_shapes,
        error="missing 1 required positional argument: 'intermediate_size'",
        loadable=with_inner_size,
    ),
    # mlx-lm decodes floats of 8 bits for a few families only.
    "qwen3_fp8": Release(
        of_family("qwen3", **WIDER | {"intermediate_size": 320}, quantization_config=BLOCKS),
        qwen3_shapes,
        encoded=PROJECTIONS,
        encode=partial(encode_fp8, block=(128, 128), scale_dtype="BF16"),
        shards=2,
        error=r"Received 14 parameters not in model: \s*model\.layers\.0\.mlp\.down_proj\.weight_scale_inv,",
        loadable=plain,
    ),
    "llama_fp8": Release(
        LLAMA | {"quantization_config": float_quantized({"strategy": "tensor"}, {"dynamic": False})},
        llama_shapes,
        encoded=PROJECTIONS,
        encode=encode_fp8_static,
        error="unsupported compressed-tensors format 'float-quantized'",
        loadable=plain,
    ),
    "llama_fp8_dynamic": Release(
        LLAMA | {"quantization_config": float_quantized({"strategy": "channel"}, {"dynamic": True})},
        llama_shapes,
        encoded=PROJECTIONS,
        encode=encode_fp8_rows,
        shards=2,
        error="unsupported compressed-tensors format 'float-quantized'",
        loadable=plain,
    ),
    "llama_fp8_block": Release(
        LLAMA
        | {
            "intermediate_size": 320,
            "quantization_config": float_quantized(
                {"strategy": "block", "block_structure": [128, 128]},
                {"strategy": "group", "group_size": 128, "dynamic": True},
            ),
        },
        llama_shapes,
        encoded=PROJECTIONS,
        encode=partial(encode_fp8, block=(128, 128), scale="weight_scale", scale_dtype="BF16"),
        shards=2,
        error="unsupported compressed-tensors format 'float-quantized'",
        loadable=plain,
    ),
    # MLX itself does not read the type.
    "llama_fp8_e5m2": Release(
        LLAMA | {"quantization_config": {"activation_scheme": "dynamic", "fmt": "e5m2", "quant_method": "fp8"}},
        llama_shapes,
        encoded=PROJECTIONS,
        encode=partial(encode_fp8, dtype="F8_E5M2", scale="weight_scale", shape=(1,)),
        error="unsupported dtype F8_E5M2",
        loadable=plain,
    ),
}
"""The releases by name."""

"""A checkpoint of random weights in bfloat16, as large as is asked for: for measuring memory and speed, not quality.

    python benches/synthetic.py DIRECTORY [--gigabytes 4] [--width 2048] [--inner 8192] [--vocabulary 32768]

A model of type `llama` with as many layers as fit, at least one; each file holds one layer.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

HEADS, KV_HEADS = 32, 8


def layer(at: int, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one layer's tensors."""
    head = width // HEADS
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (KV_HEADS * head, width),
        "self_attn.v_proj": (KV_HEADS * head, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    return {f"model.layers.{at}.{name}.weight": shape for name, shape in shapes.items()}


def write(path: Path, shapes: dict[str, tuple[int, ...]], random: np.random.Generator) -> int:
    """Write one file of random tensors; the bytes of their data."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            spread = 1.0 if len(shape) == 1 else shape[-1] ** -0.5
            values = (
                np.ones(shape, np.float32) if len(shape) == 1 else random.standard_normal(shape, np.float32) * spread
            )
            file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())
    return end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="10⁹ bytes of tensor data, about")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--inner", type=int, default=8192, help="width within the feed-forward networks")
    parser.add_argument("--vocabulary", type=int, default=32768)
    options = parser.parse_args()
    width, inner = options.width, options.inner
    options.directory.mkdir(parents=True)
    ends = {"model.embed_tokens.weight": (options.vocabulary, width), "model.norm.weight": (width,)}
    each = sum(2 * int(np.prod(shape)) for shape in layer(0, width, inner).values())
    layers = max(1, round((options.gigabytes * 1e9 - 2 * options.vocabulary * width) / each))
    files = [ends, *(layer(at, width, inner) for at in range(layers))]
    random = np.random.default_rng(0)
    names, total = {}, 0
    for at, shapes in enumerate(files):
        name = f"model-{at + 1:05}-of-{len(files):05}.safetensors"
        total += write(options.directory / name, shapes, random)
        names |= dict.fromkeys(shapes, name)
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (options.directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": options.vocabulary,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (options.directory / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    print(f"{options.directory}: {total / 1e9:.2f} GB, {layers} layers")


if __name__ == "__main__":
    main()

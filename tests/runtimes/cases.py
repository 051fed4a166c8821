"""The checkpoints that the runtimes are tried on: models, and what is made of each."""

import json
import shutil
from dataclasses import dataclass, field

import numpy as np
from fixtures.checkpoints import Tensor, read_weights, write_checkpoint
from fixtures.configs import WIDER
from fixtures.models import write_variant
from fixtures.paths import ROOT
from oracles.compressed_tensors import group_of, read_decoded
from oracles.decoders import rounded

TARGETS = ("vllm", "sglang", "transformers", "all")
SMOLLM2 = ROOT / "models" / "smollm2-135m"

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}


@dataclass(frozen=True)
class Model:
    """A model: the variant of ``fixtures/models.py`` that it is, if it is tiny, and its budgets in bits per weight."""

    budgets: tuple[float, float]
    tiled: tuple[float, float] | None = None
    """The budgets for SGLang, if its kernel does not take all matrices."""
    variant: str | None = None
    changes: dict = field(default_factory=dict)
    """To the variant's configuration: the kernel of SGLang has tiles of 64 by 128."""
    dense: bool = True

    def budgets_for(self, target):
        """Return the budgets for a target."""
        return self.tiled if self.tiled and target in ("sglang", "all") else self.budgets

    def write(self, directory):
        """Write the checkpoint, and return its directory."""
        if self.variant is None:
            return SMOLLM2
        return write_variant(self.variant, directory, dtype="BF16", **self.changes)

    def write_calm(self, directory):
        """Write the checkpoint of a variant with all matrices halved.

        The variants are drawn such that every error shows. There vLLM's kernel for 4 bits, which in bfloat16 rounds
        activations to 8 bits, differs from exact arithmetic by up to 4e-3 nats, whoever rounded the weights.
        """
        drawn = self.write(directory / "drawn")
        halves = {
            name: Tensor.of(tensor.values / 2) if tensor.elements.ndim == 2 else tensor
            for name, tensor in read_weights(drawn).items()
        }
        return write_checkpoint(directory / "calm", halves, json.loads((drawn / "config.json").read_text()))


MODELS = {
    "llama": Model((5.5, 8.5), None, "llama", WIDER | HEADS),
    "qwen2": Model((5.5, 8.5), None, "qwen2", WIDER | HEADS),
    "qwen3": Model((6.0, 8.5), None, "qwen3", WIDER | HEADS),
    "gemma3_text": Model((5.5, 8.5), None, "gemma3_text", WIDER | HEADS | {"num_key_value_heads": 1, "head_dim": 64}),
    "mixtral": Model((5.5, 8.0), None, "mixtral", WIDER | HEADS | {"intermediate_size": 192}, dense=False),
    "qwen3_moe": Model(
        (6.0, 8.5), None, "qwen3_moe", WIDER | HEADS | {"moe_intermediate_size": 64, "mlp_only_layers": []}, dense=False
    ),
    "smollm2-135m": Model((7.0, 8.5), (9.5, 11.0)),
}


def described(checkpoint):
    """Return the block of a checkpoint's configuration that assigns schemes."""
    return json.loads((checkpoint / "config.json").read_text())["quantization_config"]


def as_transformers_holds(checkpoint):
    """Return the decoded weights as transformers holds them: float32 arrays by name.

    Transformers rounds the packed weights of experts, and those of NVFP4, to bfloat16.
    """
    block, weights = described(checkpoint), read_decoded(checkpoint)
    for name, values in weights.items():
        group = group_of(name.removesuffix(".weight"), block)
        if group is None:
            continue
        form = group.get("format") or block["format"]
        if form == "nvfp4-pack-quantized" or (".experts." in name and form != "float-quantized"):
            weights[name] = rounded(values)
    return weights


def write_decoded(directory, checkpoint):
    """Write the decoded weights of a checkpoint as one that is not quantized."""
    config = json.loads((checkpoint / "config.json").read_text())
    del config["quantization_config"]
    tensors = {name: Tensor.of(values, "F32") for name, values in as_transformers_holds(checkpoint).items()}
    write_checkpoint(directory, tensors, config | {"torch_dtype": "float32"})
    for extra in ("tokenizer.json", "tokenizer_config.json"):
        if (checkpoint / extra).exists():
            shutil.copy(checkpoint / extra, directory)
    return directory


def bits_per_weight(checkpoint, weights):
    """Return the bits of the weight files for each weight."""
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    return 8 * size / sum(np.asarray(values).size for values in weights.values())

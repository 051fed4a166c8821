"""Checkpoints in the compressed-tensors format that the tests make themselves, to try what a runtime takes.

They are rounded to nearest and independent of ramrs. A rule pairs modules with a scheme. Each rule becomes a group of
``config_groups``, in the order of the rules.
"""

import json
import re
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from fixtures.checkpoints import Tensor, read_weights, write_checkpoint
from fixtures.prequantized import nearest
from oracles.decoders import E2M1, E4M3


@dataclass(frozen=True)
class Scheme:
    """How matrices are quantized: the arguments in the configuration, the format, and the encoder."""

    arguments: dict
    format: str
    encode: object


@dataclass(frozen=True)
class Rule:
    """Which modules have a scheme, and how the group names them: by ``targets`` or each by its full name."""

    modules: str
    """A regular expression that is searched for in the names of modules."""
    scheme: Scheme
    targets: list[str] | None = None


@dataclass(frozen=True)
class Layout:
    """What the configuration says besides its groups."""

    ignore: list[str] | None = None
    """The entries of ``ignore``; None for the name of each matrix that no rule quantizes."""
    format: str | None = None
    """The format for the whole checkpoint; None for the one that all groups have, or ``mixed-precision``."""
    config: dict = field(default_factory=dict)
    """Changes to the model's configuration."""


def packed(codes, bits):
    """Pack signed integers of rows as a little-endian stream of bits in words of 32."""
    unsigned = (codes + 2 ** (bits - 1)).astype(np.uint8)
    stream = (unsigned[..., None] >> np.arange(bits) & 1).reshape(len(codes), -1).astype(np.uint8)
    padded = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 32)))
    return np.packbits(padded, axis=1, bitorder="little").view("<i4")


def encode_integers(values, bits, group, negative):
    """Encode as integers with a scale for each group, of which every other one is negative if asked for."""
    grouped = values.reshape(len(values), -1, group or values.shape[1])
    scales = np.abs(grouped).max(-1) / (2 ** (bits - 1) - 0.5)
    if negative:
        scales.reshape(-1)[::2] *= -1
    scales = Tensor.of(scales)
    codes = np.round(grouped / scales.values[..., None]).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return {
        "weight_packed": Tensor("I32", packed(codes.reshape(values.shape), bits)),
        "weight_scale": scales,
        "weight_shape": Tensor("I64", np.array(values.shape, np.int64)),
    }


def encode_fp8(values):
    """Encode as floats of 8 bits with a scale for each row."""
    scales = Tensor.of(np.abs(values).max(1, keepdims=True) / 448)
    codes = nearest((values / scales.values).clip(-448, 448), E4M3)
    return {"weight": Tensor("F8_E4M3", codes), "weight_scale": scales}


def encode_mxfp4(values):
    """Encode as floats of 4 bits with a power of two for each group of 32."""
    grouped = values.reshape(len(values), -1, 32)
    exponents = np.ceil(np.log2(np.abs(grouped).max(-1) / 6))
    codes = nearest(grouped / np.exp2(exponents)[..., None], E2M1).reshape(values.shape)
    return {
        "weight_packed": Tensor("U8", codes[:, ::2] | codes[:, 1::2] << 4),
        "weight_scale": Tensor("U8", (exponents + 127).astype(np.uint8)),
    }


def encode_nvfp4(values):
    """Encode as floats of 4 bits with a float of 8 bits for each group of 16, and a divisor for the matrix."""
    grouped = values.reshape(len(values), -1, 16)
    divisor = np.float32(448 * 6 / np.abs(values).max())
    scales = nearest((np.abs(grouped).max(-1) / 6 * divisor).clip(0, 448), E4M3)
    steps = E4M3[scales] / divisor
    codes = nearest(grouped / steps[..., None], E2M1).reshape(values.shape)
    return {
        "weight_packed": Tensor("U8", codes[:, ::2] | codes[:, 1::2] << 4),
        "weight_scale": Tensor("F8_E4M3", scales),
        "weight_global_scale": Tensor("F32", np.array([divisor], np.float32)),
    }


def integers(bits, group=None, negative=False):
    """Return the scheme of symmetric integers with a scale for each group, or for each row."""
    shared = {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, "group_size": group}
    encode = partial(encode_integers, bits=bits, group=group, negative=negative)
    return Scheme(shared | {"strategy": "group" if group else "channel"}, "pack-quantized", encode)


FLOAT = {"type": "float", "symmetric": True, "dynamic": False}
FP8 = Scheme(FLOAT | {"num_bits": 8, "strategy": "channel"}, "float-quantized", encode_fp8)
MXFP4 = Scheme(
    FLOAT | {"num_bits": 4, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    "mxfp4-pack-quantized",
    encode_mxfp4,
)
NVFP4 = Scheme(
    FLOAT | {"num_bits": 4, "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"},
    "nvfp4-pack-quantized",
    encode_nvfp4,
)


def write_handmade(directory, source, rules, layout=Layout()):
    """Write the quantized form of a checkpoint."""
    tensors, members, kept = {}, [[] for _ in rules], []
    for name, tensor in read_weights(source).items():
        module, matrix = name.removesuffix(".weight"), name.endswith(".weight") and tensor.elements.ndim == 2
        at = next((at for at, rule in enumerate(rules) if matrix and re.search(rule.modules, module)), None)
        if at is None:
            tensors[name] = tensor
            if matrix and "embed" not in module and "norm" not in module:
                kept.append(module)
            continue
        members[at].append(module)
        for part, encoded in rules[at].scheme.encode(tensor.values).items():
            tensors[f"{module}.{part}"] = encoded
    groups = {
        f"group_{at}": {
            "targets": rule.targets or members[at],
            "weights": rule.scheme.arguments,
            "input_activations": None,
            "output_activations": None,
            "format": rule.scheme.format,
        }
        for at, rule in enumerate(rules)
    }
    formats = {rule.scheme.format for rule in rules}
    description = {
        "quant_method": "compressed-tensors",
        "format": layout.format or (formats.pop() if len(formats) == 1 else "mixed-precision"),
        "quantization_status": "compressed",
        "ignore": kept if layout.ignore is None else layout.ignore,
        "config_groups": groups,
    }
    config = json.loads((source / "config.json").read_text()) | layout.config | {"quantization_config": description}
    return write_checkpoint(directory, tensors, config)

"""Decode a checkpoint in the compressed-tensors format with NumPy alone.

The code follows the descriptions of the format and shares nothing with ramrs. It reads ``config.json`` as the
compressed-tensors package does: a group applies to a module if one of its targets is the module's name, or is ``re:``
and a regular expression that matches from the start of the name, or is a class name. ``ignore`` wins over groups.
"""

import json
import re

import numpy as np
from fixtures.checkpoints import read_weights, widened
from oracles.decoders import E2M1, E4M3, nibbles

STORED_NAMES = ("weight_packed", "weight_scale", "weight_global_scale", "weight_shape", "weight_zero_point")
"""What a quantized module stores besides, or in place of, ``weight``."""


def matches(name, target):
    """Tell whether a target of a group, or an entry of ``ignore``, names a module."""
    return re.match(target[3:], name) is not None if target.startswith("re:") else target == name


def group_of(name, description):
    """Return the first group that names a module, or None if it is ignored or in no group."""
    if any(matches(name, entry) for entry in description["ignore"]):
        return None
    groups = description["config_groups"].values()
    for group in groups:
        if any(matches(name, target) for target in group["targets"]):
            return group
    return next((group for group in groups if "Linear" in group["targets"]), None)


def unpacked(words, bits, columns):
    """Return the signed integers of rows that are little-endian streams of ``bits`` bits each in words of 32."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    fields = stream[:, : columns * bits].reshape(len(words), columns, bits).astype(np.int64)
    return (fields << np.arange(bits)).sum(-1) - 2 ** (bits - 1)


def pack_quantized(stored, arguments):
    """Decode integers with a scale for each group of a row, or for each row."""
    rows, columns = (int(size) for size in stored["weight_shape"].elements)
    codes = unpacked(stored["weight_packed"].elements, arguments["num_bits"], columns)
    scales = stored["weight_scale"].values.reshape(rows, -1)
    return codes.astype(np.float32) * scales.repeat(columns // scales.shape[1], 1)


def float_quantized(stored, arguments):
    """Decode floats of 8 bits with a scale for each row, or for the matrix."""
    return E4M3[stored["weight"].elements] * stored["weight_scale"].values.reshape(-1, 1)


def mxfp4(stored, arguments):
    """Decode floats of 4 bits with a power of two for each group of 32, stored as its biased exponent."""
    values = E2M1[nibbles(stored["weight_packed"].elements)]
    scales = np.exp2(stored["weight_scale"].elements.astype(np.float32) - 127)
    return values * scales.repeat(32, 1)


def nvfp4(stored, arguments):
    """Decode floats of 4 bits with a float of 8 bits for each group of 16, divided by a number for the matrix."""
    values = E2M1[nibbles(stored["weight_packed"].elements)]
    scales = E4M3[stored["weight_scale"].elements] / stored["weight_global_scale"].values
    return values * scales.repeat(16, 1)


DECODERS = {
    "pack-quantized": pack_quantized,
    "float-quantized": float_quantized,
    "mxfp4-pack-quantized": mxfp4,
    "nvfp4-pack-quantized": nvfp4,
}


def decoded(tensors, description):
    """Decode the tensors of a checkpoint: float32 arrays by name.

    Raises:
        ValueError: A module is in a group and not quantized, or the other way round.
    """
    stored = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        stored.setdefault(module, {})[part] = tensor
    weights = {}
    for module, parts in stored.items():
        group, quantized = group_of(module, description), any(part in STORED_NAMES for part in parts)
        if quantized and group is None:
            raise ValueError(f"{module} is quantized and in no group")
        if group is not None and not quantized and parts["weight"].elements.ndim == 2:
            raise ValueError(f"{module} is in a group and not quantized")
        if quantized:
            decode = DECODERS[group.get("format") or description["format"]]
            weights[f"{module}.weight"] = decode(parts, group["weights"])
        for part, tensor in parts.items():
            if not quantized or part not in (*STORED_NAMES, "weight"):
                name = f"{module}.{part}".removeprefix(".")
                weights[name] = widened(tensor.elements, tensor.dtype)
    return weights


def read_decoded(directory):
    """Read and decode a checkpoint: float32 arrays by name."""
    config = json.loads((directory / "config.json").read_text())
    return decoded(read_weights(directory), config["quantization_config"])

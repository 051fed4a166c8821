"""The encodings that releases come in, decoded by NumPy and written from their descriptions: the tests' second opinion.

A weight is the product of a code and a scale in float32, rounded once to bfloat16. Of MXFP4 the product is exact.
"""

import re

import numpy as np
from fixtures.checkpoints import Tensor, to_bf16, widened

INT4_GROUP = 32


def small_floats(exponent_bits, fraction_bits):
    """Return the values of all codes of a small float with subnormals, and without infinities and NaNs."""
    codes = np.arange(2 ** (1 + exponent_bits + fraction_bits))
    exponent = codes >> fraction_bits & (2**exponent_bits - 1)
    fraction = (codes & (2**fraction_bits - 1)) / 2**fraction_bits
    bias = 2 ** (exponent_bits - 1) - 1
    magnitude = np.where(exponent > 0, (1 + fraction) * 2.0 ** (exponent - bias), fraction * 2.0 ** (1 - bias))
    return np.where(codes < len(codes) // 2, magnitude, -magnitude).astype(np.float32)


E2M1 = small_floats(2, 1)
E4M3 = small_floats(4, 3)
E4M3[[0x7F, 0xFF]] = np.nan
E5M2 = small_floats(5, 2)
E5M2[[0x7C, 0xFC]] = np.inf, -np.inf
E5M2[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = np.nan
E8M0 = np.append(2.0 ** np.arange(-127, 128), np.nan).astype(np.float32)
FP8 = {"F8_E4M3": E4M3, "F8_E5M2": E5M2}


def rounded(values):
    """Round float32 to the values that bfloat16 has."""
    return widened(to_bf16(values), "BF16")


def numbers(scale):
    """Return what a tensor of scales says, in float32."""
    return E8M0[scale.elements] if scale.dtype == "F8_E8M0" else scale.values


def fp8(weight, scale, block):
    """Decode a matrix of floats of 8 bits: ``block`` is the rows and columns that share a scale."""
    rows, columns = weight.elements.shape
    scales = np.atleast_2d(numbers(scale)).repeat(block[0], 0).repeat(block[1], 1)[:rows, :columns]
    return rounded(FP8[weight.dtype][weight.elements] * scales)


def nibbles(packed):
    """Return the codes of 4 bits in bytes, or in words of little-endian bytes: the lower one of a byte comes first."""
    data = np.ascontiguousarray(packed).view(np.uint8)
    return np.stack([data & 15, data >> 4], -1).reshape(*data.shape[:-1], -1)


def int4(packed, scale):
    """Decode a matrix of integers of 4 bits, stored with 8 added."""
    codes = nibbles(packed.elements).astype(np.float32) - 8
    return rounded(codes * scale.values.repeat(INT4_GROUP, -1))


def mxfp4(blocks, scales):
    """Decode experts ``[experts, outputs, inputs]`` of floats of 4 bits with a power of two for each block."""
    values = E2M1[nibbles(blocks.elements)] * E8M0[scales.elements][..., None]
    return values.reshape(*values.shape[:2], -1)


def block_of(weight, scale, config):
    """Return how many rows and columns share a scale: all of them, a row, or a block of the configuration's size."""
    if scale.elements.size == 1:
        return weight.elements.shape
    described = config["quantization_config"]
    block = described.get("weight_block_size")
    for group in described.get("config_groups", {}).values():
        block = group["weights"]["block_structure"]
    return block or (1, weight.elements.shape[1])


def decoded(tensors, config):
    """Return the weights of a release, by the names that they would have if they had not been encoded."""
    plain = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if tensor.dtype in FP8:
            scale = next(tensors[f"{name}{end}"] for end in ("_scale_inv", "_scale") if f"{name}{end}" in tensors)
            plain[name] = Tensor.of(fp8(tensor, scale, block_of(tensor, scale, config)))
        elif part == "weight_packed":
            plain[f"{module}.weight"] = Tensor.of(int4(tensor, tensors[f"{module}.weight_scale"]))
        elif part.endswith("_blocks"):
            whole = name.removesuffix("_blocks")
            plain[whole] = Tensor.of(mxfp4(tensor, tensors[f"{whole}_scales"]))
        elif not re.search(r"(_scale(s|_inv)?|\.weight_shape)$", name):
            plain[name] = tensor
    return plain

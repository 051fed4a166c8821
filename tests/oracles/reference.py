"""The MLX affine format in NumPy, written from its description and not from our code: the tests' second opinion.

A row of codes is one little-endian bit stream: element ``i`` has the bits ``[i b, i b + b)``. A weight decodes to
``code × scale + bias``, a product and a sum in float32. The plain encoder is the rule of ``mx.quantize`` on a CPU, in
float32 throughout: the grid is anchored at the edge of largest magnitude, and stretched so that zero lies on it.
"""

import json

import numpy as np
import ramrs
from fixtures.checkpoints import Tensor, read_weights, stored, write_checkpoint

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)


def unpack(words, bits):
    """Return the codes ``[rows, columns]`` of packed words ``[rows, columns · bits / 32]``."""
    rows = words.shape[0]
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return np.packbits(stream.reshape(rows, -1, bits), axis=-1, bitorder="little")[..., 0]


def pack(codes, bits):
    """Return the packed words of codes."""
    stream = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    data = np.packbits(stream.reshape(len(codes), -1), axis=1, bitorder="little")
    return data.view("<u4")


def decode(weight, scales, biases, bits):
    """Return the float32 weights of a quantized module's three tensors."""
    codes = unpack(weight.elements, bits).astype(np.float32)
    grouped = codes.reshape(*scales.elements.shape, -1)
    decoded = grouped * scales.values[..., None] + biases.values[..., None]
    return decoded.reshape(codes.shape)


def decoded_module(tensors, module, scheme):
    """Return the float32 weights of a module of ``tensors`` in a scheme such as ``4g64``."""
    weight, scales, biases = (tensors[f"{module}.{part}"] for part in ("weight", "scales", "biases"))
    bits, group_size = map(int, scheme.split("g"))
    decoded = decode(weight, scales, biases, bits)
    assert decoded.shape[1] == scales.elements.shape[1] * group_size
    return decoded


def encode_plain(values, dtype, bits, group_size):
    """Encode float32 values as ``mx.quantize`` does; the three tensors."""
    steps, epsilon = np.float32(2**bits - 1), np.float32(1e-7)
    grouped = values.astype(np.float32).reshape(len(values), -1, group_size)
    low, high = grouped.min(axis=-1), grouped.max(axis=-1)
    from_low = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / steps, epsilon)
    scale = np.where(from_low, scale, -scale)
    edge = np.where(from_low, low, high)
    to_zero = np.round(edge / scale)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(to_zero != 0, edge / to_zero, scale)
    bias = np.where(to_zero != 0, edge, np.float32(0))
    codes = np.clip(np.round((grouped - bias[..., None]) / scale[..., None]), 0, steps)
    weight = pack(codes.reshape(values.shape).astype(np.uint8), bits)
    return Tensor("U32", weight), Tensor(dtype, stored(scale, dtype)), Tensor(dtype, stored(bias, dtype))


def decoded_folder(output, directory, dtype):
    """Write the decoded weights of an output as an ordinary checkpoint, by the reference decoder."""
    manifest, found = ramrs.Manifest.read(output / "ramrs-manifest.json"), read_weights(output)
    schemes = {
        line.tensor.removesuffix(".weight"): line.quantized[0].scheme for line in manifest.ledger if line.quantized
    }
    parts = {f"{module}.{part}" for module in schemes for part in ("weight", "scales", "biases")}
    tensors = {name: tensor for name, tensor in found.items() if name not in parts}
    for module, scheme in schemes.items():
        tensors[f"{module}.weight"] = Tensor.of(decoded_module(found, module, scheme), dtype)
    config = json.loads((output / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("quantization", "quantization_config")}
    return write_checkpoint(directory, {name: Tensor.of(t.values, dtype) for name, t in tensors.items()}, config)

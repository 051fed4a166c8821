"""GPTQ, calibrated: the rival that sees text.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers": columns in order,
the error of each spread over the columns still to come by the Cholesky factor of the inverse of H = mean x xᵀ. A
group's grids are searched when the group is entered, on the weights as compensated until then, weighted by diag H: the
search that ramrs has. What it writes is an MLX checkpoint: a uniform one that ramrs wrote, with codes, scales and
biases overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grids
import numpy as np
from calibration import Group, visit


@dataclass(frozen=True)
class Damping:
    """What is done to H before it is inverted."""

    share: float
    """Share of the mean of the diagonal that is added to the diagonal."""
    shrinkage: float = 0.0
    """Share by which all else is reduced."""

    def __str__(self) -> str:
        return f"damping {self.share}" + (f", {self.shrinkage:.0%} shrinkage" if self.shrinkage else "")


DAMPINGS = (Damping(0.001, 0.1), Damping(0.01), Damping(0.1))


@dataclass(frozen=True)
class Target:
    """A uniform MLX checkpoint to overwrite."""

    folder: Path
    bits: int
    group_size: int
    damping: Damping


def _inverse_of_lower(lower: np.ndarray) -> np.ndarray:
    """Invert a lower triangular matrix, by halves."""
    size = len(lower)
    if size <= 64:
        return np.linalg.inv(lower)
    half = size // 2
    inverse = np.zeros_like(lower)
    inverse[:half, :half] = _inverse_of_lower(lower[:half, :half])
    inverse[half:, half:] = _inverse_of_lower(lower[half:, half:])
    inverse[half:, :half] = -inverse[half:, half:] @ (lower[half:, :half] @ inverse[:half, :half])
    return inverse


def factor(moments: np.ndarray, damping: Damping) -> np.ndarray:
    """Compute the upper factor U of the damped inverse, UᵀU = H⁻¹."""
    h = moments.astype(np.float64)
    diagonal = h.diagonal().copy()
    h *= 1 - damping.shrinkage
    np.fill_diagonal(h, diagonal + damping.share * diagonal.mean())
    # With rows and columns reversed, H = R Rᵀ with R upper; then U = R⁻¹.
    reverse = np.linalg.cholesky(h[::-1, ::-1])
    return np.ascontiguousarray(_inverse_of_lower(reverse)[::-1, ::-1], dtype=np.float32)


Coded = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Codes [columns, rows], scales and biases [groups, rows]."""


def encode(weight: np.ndarray, upper: np.ndarray, importance: np.ndarray, target: Target) -> Coded:
    """Encode a matrix [rows, columns] with error feedback."""
    w = np.ascontiguousarray(weight.T, dtype=np.float32)
    size, top = target.group_size, 2**target.bits - 1
    coded = np.empty(w.shape, np.uint8)
    scales, biases = np.empty((2, len(w) // size, w.shape[1]), np.float32)
    for at, start in enumerate(range(0, len(w), size)):
        stop = start + size
        group, inside = w[start:stop], upper[start:stop, start:stop]
        grid = grids.search(group, importance[start:stop], target.bits)
        scales[at], biases[at] = grid
        errors = np.empty_like(group)
        # The feedback inside a group goes by blocks, too.
        for first in range(0, size, 16):
            last = first + 16
            for j in range(first, last):
                code = grids.codes(group[j], grid, top)
                coded[start + j] = code
                errors[j] = (group[j] - (code * grid[0] + grid[1])) / inside[j, j]
                group[j + 1 : last] -= inside[j, j + 1 : last, None] * errors[j]
            group[last:] -= inside[first:last, last:].T @ errors[first:last]
        w[stop:] -= upper[start:stop, stop:].T @ errors
    return coded, scales, biases


def decode(coded: Coded) -> np.ndarray:
    """Decode to float32 [rows, columns]."""
    codes, scales, biases = coded
    grouped = codes.reshape(len(scales), -1, codes.shape[1]) * scales[:, None] + biases[:, None]
    return np.ascontiguousarray(grouped.reshape(codes.shape).T, dtype=np.float32)


class Tensors:
    """The tensors of a checkpoint, to overwrite in place."""

    def __init__(self, folder: Path) -> None:
        self._places: dict[str, tuple[Path, int, int]] = {}
        for path in folder.glob("*.safetensors"):
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header: dict[str, Any] = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, tensor in header.items():
                start, stop = tensor["data_offsets"]
                self._places[name] = (path, 8 + length + start, stop - start)

    def overwrite(self, name: str, data: bytes) -> None:
        """Replace the data of a tensor by as many bytes."""
        path, at, length = self._places[name]
        if len(data) != length:
            raise SystemExit(f"{name}: {len(data)} bytes in place of {length}")
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data)


def packed(codes: np.ndarray, bits: int) -> bytes:
    """Pack codes [rows, columns] as MLX does: each row a little-endian bit stream."""
    stream = np.unpackbits(codes[..., None], axis=2, count=bits, bitorder="little")
    return np.packbits(stream.reshape(len(codes), -1), axis=1, bitorder="little").tobytes()


def store(tensors: Tensors, name: str, coded: Coded, bits: int) -> None:
    """Overwrite the three tensors of a matrix."""
    codes, scales, biases = coded
    tensors.overwrite(f"{name}.weight", packed(np.ascontiguousarray(codes.T), bits))
    for part, values in (("scales", scales), ("biases", biases)):
        # Grids are bfloat16 numbers: the upper halves of their float32.
        halves = (np.ascontiguousarray(values.T).view(np.uint32) >> 16).astype("<u2")
        tensors.overwrite(f"{name}.{part}", halves.tobytes())


def write(load: Callable[[], Any], rows: np.ndarray, targets: list[Target], *, sequential: bool = False) -> None:
    """Overwrite the targets with what GPTQ makes of the model that ``load`` loads, calibrated on windows of tokens.

    Otherwise than in the paper, all layers see the inputs of the original model; with ``sequential``, those of the
    layers that were quantized before, which takes a pass of the model for each target.
    """
    for together in [[target] for target in targets] if sequential else [targets]:
        files = {target: Tensors(target.folder) for target in together}
        visit(load(), rows, partial(_quantize, files, replace=sequential), sequential=sequential)


def _quantize(files: dict[Target, Tensors], group: Group, *, replace: bool) -> None:
    """Overwrite the matrices of a group in the targets; with ``replace``, those of the running model, too."""
    importance = group.moments.diagonal()
    weight = np.concatenate([layer._weight for layer in group.layers])
    cuts = np.cumsum([len(layer._weight) for layer in group.layers])[:-1]
    factors = {target.damping: factor(group.moments, target.damping) for target in files}
    for target, tensors in files.items():
        coded = encode(weight, factors[target.damping], importance, target)
        parts = [np.split(part, cuts, axis=1) for part in coded]
        for name, layer, *matrix in zip(group.names, group.layers, *parts, strict=True):
            store(tensors, name, (matrix[0], matrix[1], matrix[2]), target.bits)
            if replace:
                layer._weight = decode((matrix[0], matrix[1], matrix[2]))

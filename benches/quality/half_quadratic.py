"""HQQ, from its authors' description: zero points by half-quadratic splitting.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models": the scale of a group is that of its
range, and its zero point minimizes the ℓp norm of the error, p < 1, which outliers influence little. Two steps by
turns: the error shrinks by a generalized soft threshold, and the zero point is the mean of what it should be. Scales
and zero points are kept in float32 here, and counted as 16 bits each: the bytes are those of MLX's affine codes.
"""

from __future__ import annotations

import numpy as np

STEPS = 20
P = 0.7
#: Weight of the quadratic term, and its growth in each step.
BETA, GROWTH = 10.0, 1.01


def dequantized(weight: np.ndarray, bits: int, group_size: int) -> np.ndarray:
    """Quantize a matrix and decode it."""
    top = np.float32(2**bits - 1)
    w = weight.reshape(-1, group_size)
    low = w.min(axis=1, keepdims=True)
    # Codes per unit of weight.
    scale = top / np.maximum(w.max(axis=1, keepdims=True) - low, 1e-8)
    zero = -low * scale
    scaled, beta, best = w * scale, BETA, np.inf
    kept = zero
    for _ in range(STEPS):
        codes = np.clip(np.rint(scaled + zero), 0, top)
        error = w - (codes - zero) / scale
        found = float(np.abs(error).mean())
        if found >= best:
            break
        best, kept = found, zero
        size = np.abs(error)
        shrunk = np.sign(error) * np.maximum(size - np.maximum(size, 1e-12) ** (P - 1) / beta, 0)
        zero = (codes - (w - shrunk) * scale).mean(axis=1, keepdims=True)
        beta *= GROWTH
    codes = np.clip(np.rint(scaled + kept), 0, top)
    return np.ascontiguousarray(((codes - kept) / scale).reshape(weight.shape), dtype=np.float32)

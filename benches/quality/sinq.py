"""SINQ, from its paper: two scales for each weight, one of its row and one of its column, then round to nearest.

Müller et al., "SINQ: Sinkhorn-Normalized Quantization for Calibration-Free Low-Precision LLM Weights". Each block of
``group_size`` columns is normalized: the standard deviations of its columns and of its rows are divided out in turns,
and the step with the least imbalance is kept. What is left is quantized between the minimum and the maximum of each
row. A row's scale merges with that of the quantization; the scales of columns take 16 bits per column of a matrix more
than other methods do. Scales are kept in float32 here, and counted as 16 bits.
"""

from __future__ import annotations

import numpy as np

STEPS = 24
#: How much a step divides at most and at least.
LEAST, MOST = 0.7, 2.0


def _balanced(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the scales [columns] and [rows, 1] whose product balances a block [rows, columns]."""
    columns, rows = np.zeros(w.shape[1], np.float32), np.zeros((len(w), 1), np.float32)
    target = max(float(min(w.std(axis=0).min(), w.std(axis=1).min())), 1e-8)
    best, kept = np.inf, (columns, rows)
    for _ in range(STEPS + 1):
        divided = w * np.exp(-columns) * np.exp(-rows)
        by_column, by_row = divided.std(axis=0), divided.std(axis=1, keepdims=True)
        largest = max(by_column.max(), by_row.max())
        imbalance = largest / max(min(by_column.min(), by_row.min()), 1e-12)
        if imbalance < best:
            best, kept = imbalance, (columns, rows)
        columns = columns + np.log(np.clip(by_column / target, LEAST, MOST))
        rows = rows + np.log(np.clip(by_row / target, LEAST, MOST))
    return np.exp(kept[0]), np.exp(kept[1])


def dequantized(weight: np.ndarray, bits: int, group_size: int) -> np.ndarray:
    """Quantize a matrix and decode it."""
    top = np.float32(2**bits - 1)
    out = np.empty_like(weight)
    for start in range(0, weight.shape[1], group_size):
        block = weight[:, start : start + group_size]
        columns, rows = _balanced(block)
        w = block / columns / rows
        low = w.min(axis=1, keepdims=True)
        step = np.maximum((w.max(axis=1, keepdims=True) - low) / top, 1e-8)
        codes = np.clip(np.rint((w - low) / step), 0, top)
        out[:, start : start + group_size] = (codes * step + low) * rows * columns
    return out


def more_bytes(columns: int) -> int:
    """Count the bytes that a matrix takes beyond those of MLX's affine codes."""
    return 2 * columns

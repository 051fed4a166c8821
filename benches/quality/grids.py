"""MLX's affine grids in NumPy: the weighted search of ``rust/codec/affine/search.rs``, for rivals that need it inside.

A group is an array [columns of the group, rows of the matrix]; every row has a grid of its own. Grids are stored in
bfloat16. What differs from the core: the codes of MLX's rule are the nearest on its stored grid, too.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

Grid = tuple[np.ndarray, np.ndarray]
"""Scale and bias of each row."""

ROWS = 512
"""Rows to search at a time: their group stays in the cache."""

MIN_DETERMINANT = np.float32(1e-6)
MLX_EPSILON = np.float32(1e-7)
CODE_WIDTHS = (2, 3, 4, 5, 6, 8)


def _clips() -> dict[int, np.ndarray]:
    """Read the shares of the range that are clipped at both ends, from the core's own table."""
    source = Path(__file__).parents[2] / "rust/codec/affine/clip_grid.rs"
    table = source.read_text(encoding="utf-8").partition("CLIP_GRID: [")[2]
    lists = re.findall(r"&\[((?:\s*\[\d+, \d+\],?)+)\s*\]", table)
    pairs = [np.array(re.findall(r"\d+", found), dtype=np.float32).reshape(-1, 2) for found in lists]
    return dict(zip(CODE_WIDTHS, pairs, strict=True))


CLIPS = _clips()


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Round to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


def other_neighbour(x: np.ndarray) -> np.ndarray:
    """Of the two bfloat16 numbers on either side, take the one further away; ``x`` itself if it is one."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    inner, outer = bits & 0xFFFF0000, (bits & 0xFFFF0000) + 0x10000
    nearest = bfloat16(x).view(np.uint32)
    return np.where(bits == inner, bits, np.where(nearest == inner, outer, inner)).astype(np.uint32).view(np.float32)


def codes(w: np.ndarray, grid: Grid, top: int) -> np.ndarray:
    """Code by the nearest point of the grid, in float32."""
    t = (w - grid[1]) * (np.float32(1) / grid[0])
    return np.rint(np.clip(t, 0, top, out=t), out=t)


def mlx_rule(w: np.ndarray, top: int) -> Grid:
    """Return the stored grid of ``mx.quantize``."""
    low, high = w.min(axis=0), w.max(axis=0)
    from_low = np.abs(low) > np.abs(high)
    step = np.maximum((high - low) / np.float32(top), MLX_EPSILON)
    step, edge = np.where(from_low, step, -step), np.where(from_low, low, high)
    to_zero = np.rint(edge / step)
    anchored = to_zero != 0
    scale = np.where(anchored, edge / np.where(anchored, to_zero, 1), step)
    return bfloat16(scale), bfloat16(np.where(anchored, edge, 0))


def _fit(w: np.ndarray, k: np.ndarray, grid: Grid, top: int) -> tuple[np.ndarray, Grid]:
    """Fit the weighted least-squares grid for the codes on ``grid``; its error."""
    scale, bias = grid
    t = (w - bias) * (np.float32(1) / scale)
    q = np.rint(np.clip(t, 0, top))
    e = t - q
    k_sum, q1, e1 = k.sum(), k @ q, k @ e
    q2, eq, e2 = k @ (q * q), k @ (q * e), k @ (e * e)
    product = k_sum * q2
    determinant = product - q1 * q1
    solvable = product * MIN_DETERMINANT < determinant
    determinant = np.where(solvable, determinant, 1)
    alpha = np.where(solvable, (e1 * q2 - eq * q1) / determinant, 0)
    beta = np.where(solvable, (eq * k_sum - e1 * q1) / determinant, 0)
    error = np.maximum(e2 - alpha * e1 - beta * eq, 0) * scale * scale
    fitted = scale * (1 + beta)
    valid = fitted > 0
    return np.where(valid, error, np.inf), (np.where(valid, fitted, 1), np.where(valid, bias + scale * alpha, 0))


def _better(one: tuple[np.ndarray, Grid], other: tuple[np.ndarray, Grid]) -> tuple[np.ndarray, Grid]:
    """Take ``other`` where its error is smaller, else ``one``."""
    ahead = other[0] < one[0]
    scale, bias = (np.where(ahead, theirs, ours) for ours, theirs in zip(one[1], other[1], strict=True))
    return np.where(ahead, other[0], one[0]), (scale, bias)


def _measured(w: np.ndarray, k: np.ndarray, grid: Grid, top: int) -> tuple[np.ndarray, Grid]:
    """Measure the weighted error of a stored grid; infinite without a scale."""
    off = codes(w, grid, top) * grid[0] + grid[1] - w
    error = k @ (off * off)
    return np.where((grid[0] != 0) & np.isfinite(error), error, np.inf), grid


def _refined(w: np.ndarray, k: np.ndarray, grid: Grid, top: int) -> tuple[np.ndarray, Grid]:
    """Find the best stored grid next to ``grid``."""
    best = (np.full(w.shape[1], np.inf, np.float32), grid)
    # At few bits a step is far wider than the spacing of stored biases: the nearest bias is enough.
    for rounded in (bfloat16, other_neighbour)[: 1 if top <= 15 else 2]:
        bias = rounded(grid[1])
        offset = w - bias
        q = codes(w, (grid[0], bias), top)
        kq = k[:, None] * q
        squares = (kq * q).sum(axis=0)
        scale = (kq * offset).sum(axis=0) / np.where(squares > 0, squares, 1)
        scale = np.where(scale > 0, scale, grid[0])
        for side in (bfloat16, other_neighbour):
            best = _better(best, _measured(w, k, (side(scale), bias), top))
    return best


def _searched(w: np.ndarray, k: np.ndarray, bits: int) -> Grid:
    top = 2**bits - 1
    low = w.min(axis=0)
    width = w.max(axis=0) - low
    # A group of equal weights has no range to clip; MLX's rule stores it.
    width = np.where(width > 0, width, MLX_EPSILON)
    first = second = (np.full(w.shape[1], np.inf, np.float32), (np.ones_like(low), np.zeros_like(low)))
    for from_low, from_high in CLIPS[bits] * np.float32(1e-4):
        step = width * ((1 - from_low - from_high) / np.float32(top))
        found = _fit(w, k, (step, low + width * from_low), top)
        behind = _better(found, first), found[0] < first[0]
        second = _better(second, (np.where(behind[1], first[0], found[0]), _where(behind[1], first[1], found[1])))
        first = behind[0]
    best = _measured(w, k, mlx_rule(w, top), top)
    for finalist in (first, second):
        again = _better(finalist, _fit(w, k, finalist[1], top))
        best = _better(best, _refined(w, k, again[1], top))
    return best[1]


def _where(mask: np.ndarray, one: Grid, other: Grid) -> Grid:
    return np.where(mask, one[0], other[0]), np.where(mask, one[1], other[1])


def search(w: np.ndarray, k: np.ndarray, bits: int) -> Grid:
    """Search the stored grid of each row of a group for the least error weighted by ``k``."""
    k = np.maximum(k, k.mean() * np.float32(1e-6) + np.float32(1e-30)).astype(np.float32)
    k /= k.mean()
    # One float32 array; without a copy where rows are few.
    parts = [np.ascontiguousarray(w[:, at : at + ROWS]) for at in range(0, w.shape[1], ROWS)]
    found = [_searched(part, k, bits) for part in parts]
    scale, bias = (np.concatenate(each).astype(np.float32) for each in zip(*found, strict=True))
    return scale, bias

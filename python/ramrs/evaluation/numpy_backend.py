"""An MLX model whose matrix products run in NumPy, in float32 on decoded weights.

For evaluation on a CPU. Layers with matrices are replaced by layers with the decoded matrix, and attention is replaced
while a context lasts. A test compares both with the originals.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map, tree_map_with_path
from numpy.typing import NDArray

__all__ = ["attention", "decoded"]

Array = NDArray[np.float32]


class _Linear(nn.Module):  # type: ignore[misc]
    """``x @ W.T + b``."""

    def __init__(self, weight: Array, bias: Array | None) -> None:
        super().__init__()
        # The leading underscore hides it from MLX, which would take it for a parameter.
        self._weight, self._bias = weight, bias

    def __call__(self, x: mx.array) -> mx.array:
        out = _product(x, self._weight)
        return out if self._bias is None else out + mx.array(self._bias)


class _Embedding(nn.Module):  # type: ignore[misc]
    """Rows of a matrix by token; a tied head multiplies with the same matrix."""

    def __init__(self, weight: Array) -> None:
        super().__init__()
        self._weight = weight

    def __call__(self, tokens: mx.array) -> mx.array:
        return mx.array(self._weight[np.array(tokens)])

    def as_linear(self, x: mx.array) -> mx.array:
        """Multiply with the matrix."""
        return _product(x, self._weight)


def _product(x: mx.array, weight: Array) -> mx.array:
    rows = np.array(x.astype(mx.float32), copy=False).reshape(-1, x.shape[-1])
    return mx.array(rows @ weight.T).reshape(*x.shape[:-1], weight.shape[0])


def _matrix(layer: Any) -> Array:  # noqa: ANN401
    """Decode the matrix of a layer, exactly: scales and biases are widened before they are used."""
    if "scales" not in layer:
        return np.array(layer.weight.astype(mx.float32))
    biases = layer.get("biases")
    affine = layer.mode == "affine"
    decoded = mx.dequantize(
        layer.weight,
        layer.scales.astype(mx.float32) if affine else layer.scales,
        None if biases is None else biases.astype(mx.float32),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )
    return np.array(decoded.astype(mx.float32))


def decoded(model: Any) -> Any:  # noqa: ANN401
    """Replace the layers of ``model`` that hold matrices, and widen everything else to float32."""

    def replaced(_: str, layer: Any) -> Any:  # noqa: ANN401
        if isinstance(layer, nn.Linear | nn.QuantizedLinear):
            bias = layer.get("bias")
            return _Linear(_matrix(layer), None if bias is None else np.array(bias.astype(mx.float32)))
        if isinstance(layer, nn.Embedding | nn.QuantizedEmbedding):
            return _Embedding(_matrix(layer))
        return layer

    leaves = tree_map_with_path(replaced, model.leaf_modules(), is_leaf=nn.Module.is_module)
    model.update_modules(leaves)

    def widened(value: mx.array) -> mx.array:
        return value.astype(mx.float32) if mx.issubdtype(value.dtype, mx.floating) else value

    model.update(tree_map(widened, model.parameters()))
    return model


@contextlib.contextmanager
def attention() -> Iterator[None]:
    """Replace ``mx.fast.scaled_dot_product_attention`` by NumPy's while the context lasts."""
    original = mx.fast.scaled_dot_product_attention

    def replacement(
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        scale: float,
        mask: Any = None,  # noqa: ANN401
        **others: Any,  # noqa: ANN401
    ) -> mx.array:
        if any(other is not None for other in others.values()):
            return original(q, k, v, scale=scale, mask=mask, **others)
        return _attention(q, k, v, scale, mask)

    mx.fast.scaled_dot_product_attention = replacement
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention = original


def _attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Any) -> mx.array:  # noqa: ANN401
    """Compute attention of ``q`` [batch, heads, queries, size] over ``k``, ``v`` [batch, kv heads, keys, size]."""
    batch, heads, queries, _ = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    grouped = np.array(q, dtype=np.float32).reshape(batch, kv_heads, heads // kv_heads, queries, -1)
    keyed, valued = (np.array(each, dtype=np.float32)[:, :, None] for each in (k, v))
    scores = (grouped * np.float32(scale)) @ keyed.swapaxes(-1, -2)
    if isinstance(mask, str):
        scores = np.where(np.tri(queries, keys, keys - queries, dtype=bool), scores, np.float32(-np.inf))
    elif mask is not None:
        given = np.array(mask)
        shape = (batch, kv_heads, heads // kv_heads, queries, keys)
        given = np.broadcast_to(given, (batch, heads, queries, keys)).reshape(shape)
        scores = np.where(given, scores, np.float32(-np.inf)) if given.dtype == bool else scores + given
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return mx.array((scores @ valued).reshape(batch, heads, queries, -1).astype(np.float32))

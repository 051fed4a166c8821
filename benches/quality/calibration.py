"""Second moments of the inputs of a model's linear layers on calibration text, layer by layer, as mlx-lm runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from ramrs.evaluation import numpy_backend

Linear = numpy_backend._Linear

WINDOW = 512
"""Tokens of a window, the first one included."""


def windows(ids: np.ndarray, tokens: int, first: int | None) -> np.ndarray:
    """Cut windows of about ``tokens`` tokens in all, spread evenly over the ids, each with ``first`` in front."""
    body = WINDOW - (first is not None)
    count = -(-tokens // WINDOW)
    if len(ids) < body * count:
        raise SystemExit(f"calibration needs {body * count} tokens, and {len(ids)} are left")
    starts = [(len(ids) - body) * at // max(1, count - 1) for at in range(count)]
    rows = np.stack([ids[start : start + body] for start in starts])
    return rows if first is None else np.insert(rows, 0, first, axis=1)


class Group:
    """Linear layers with the same input."""

    def __init__(self, x: mx.array) -> None:
        self.names: list[str] = []
        self.layers: list[Any] = []
        self.x = x
        rows = np.array(x.astype(mx.float32), copy=False).reshape(-1, x.shape[-1])
        self.moments: np.ndarray = rows.T @ rows / np.float32(len(rows))
        """The mean of x xᵀ over tokens."""


class Recorder:
    """Groups of the layer that runs."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self.runs = False


class Recorded(Linear):
    """A linear layer that records its input."""

    def __call__(self, x: mx.array) -> mx.array:  # noqa: D102
        recorder = self._recorder
        if recorder.runs:
            if not recorder.groups or recorder.groups[-1].x is not x:
                recorder.groups.append(Group(x))
            recorder.groups[-1].names.append(self._name)
            recorder.groups[-1].layers.append(self)
        return super().__call__(x)


def linears(model: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the linear layers in the layers of a decoded model, by their names in the model."""
    return {
        f"model.layers.{at}.{name}": each
        for at, layer in enumerate(model.layers)
        for name, each in layer.named_modules()
        if isinstance(each, Linear)
    }


def visit(model: Any, rows: np.ndarray, quantize: Callable[[Group], None], *, sequential: bool) -> None:  # noqa: ANN401
    """Run a decoded model on the windows and call ``quantize`` with every group, one layer after the other.

    With ``sequential``, weights that ``quantize`` replaces count for all later layers; otherwise it must not replace
    any.
    """
    recorder = Recorder()
    for name, each in linears(model).items():
        each.__class__ = Recorded
        each._name, each._recorder = name, recorder

    def visited(kind: type) -> type:
        def call(layer: Any, *given: Any, **options: Any) -> Any:  # noqa: ANN401
            recorder.groups, recorder.runs = [], True
            out = kind.__call__(layer, *given, **options)
            mx.eval(out)
            recorder.runs = False
            for group in recorder.groups:
                quantize(group)
            return kind.__call__(layer, *given, **options) if sequential else out

        return type("Visited", (kind,), {"__call__": call})

    for layer in model.layers:
        layer.__class__ = visited(type(layer))
    # The logits are not needed.
    mx.eval(model.model(mx.array(rows)))

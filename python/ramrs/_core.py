"""Calls of the native module: JSON in, a report out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from ramrs import _native
from ramrs.types import Progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Callback", "call", "logits"]

Callback = Callable[[Progress], object]
Report = TypeVar("Report")


def call(verb: str, request: dict[str, Any], report: type[Report], progress: Callback | None = None) -> Report:
    """Run a verb of the core, and decode its report once."""
    callback = None if progress is None else lambda *moment: progress(Progress(*moment))
    return msgspec.json.decode(_native.call(verb, msgspec.json.encode(request), callback), type=report)


def logits(model: Path, tokens: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
    """Run the model of a checkpoint or output in float32: the logits of all tokens, window after window.

    Returns an array ``[tokens, vocabulary]``. Each window is a text of its own; they may have different lengths.
    """
    import numpy as np

    windows = [[int(token) for token in window] for window in tokens]
    shape, data = _native.logits(msgspec.json.encode({"model": str(model), "tokens": windows}))
    return np.frombuffer(data, "<f4").reshape(shape)

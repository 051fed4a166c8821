"""The Python half of the output formats: layouts of models that the core does not know, by other programs."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramrs._core import Callback, call
from ramrs.errors import CheckpointError
from ramrs.types import QuantizeReport

__all__ = ["Layout", "quantize"]


@dataclass(frozen=True, slots=True)
class Layout:
    """A checkpoint with the names and shapes of a format."""

    directory: Path
    by: str
    """The program that laid it out."""
    kept: list[str]
    """Rules for the weights that the program has no quantized form of."""


LaidOut = Callable[[Path, Path, CheckpointError, Callback | None], contextlib.AbstractContextManager[Layout]]
"""Lays a model out for an output while a context lasts; raises the core's error if it does not know the model."""

#: The module of each format that has a ``laid_out`` of type :data:`LaidOut`.
_LAYOUTS = {"mlx": "ramrs.formats.mlx_lm"}


def quantize(request: dict[str, Any], progress: Callback | None) -> QuantizeReport:
    """Quantize. Where the core has no layout for the model, the format's own program lays it out first."""
    plan = request["plan"]
    module = _LAYOUTS.get(plan["model"]["format"])
    try:
        return call("quantize", request, QuantizeReport, progress)
    except CheckpointError as fault:
        # A saved analysis is of the checkpoint as it is.
        if fault.slug != "unknown-model" or module is None or "analysis" in plan:
            raise
        unknown = fault
    laid_out: LaidOut = importlib.import_module(module).laid_out
    model, output = plan["model"]["model"], request["output"]
    if Path(model).is_dir() and not request["dry_run"]:
        # The core would refuse the output at the end of the work on the layout.
        call("check_output", {"model": model, "output": output, "overwrite": request["overwrite"]}, type(None))
    with laid_out(Path(model), Path(output), unknown, progress) as layout:
        source = plan["model"] | {"model": str(layout.directory), "generic": True}
        # The last rule that matches counts.
        policy = plan["policy"] | {"tensor": [*plan["policy"]["tensor"], *layout.kept]}
        of_layout = {"plan": plan | {"model": source, "policy": policy}, "laid_out_by": layout.by}
        return call("quantize", request | of_layout, QuantizeReport, progress)

"""The Python half of the output formats: layouts of models that the core does not know, by other programs."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ramrs._core import Callback, call
from ramrs.errors import CheckpointError
from ramrs.types import Plan, QuantizeReport, VerifyReport

__all__ = ["Layout", "quantize", "verify"]


@dataclass(frozen=True, slots=True)
class Layout:
    """A checkpoint with the names and shapes of a format."""

    directory: Path
    said: dict[str, Any]
    """What the program says of it, as the core takes it: its name, stacks, routers, what it cannot quantize."""


LaidOut = Callable[[Path, Path, CheckpointError, Callback | None], contextlib.AbstractContextManager[Layout]]
"""Lays a model out for an output while a context lasts; raises the core's error if it does not know the model."""

#: The module of each format that has a ``laid_out`` of type :data:`LaidOut`.
_LAYOUTS = {"mlx": "ramrs.formats.mlx_lm"}

MANIFEST = "ramrs-manifest.json"

_LOG = logging.getLogger("ramrs")


def quantize(request: dict[str, Any], progress: Callback | None) -> QuantizeReport:
    """Quantize. Where the core has no layout for the model, the format's own program lays it out first."""
    plan = request["plan"]
    model, output = plan["model"]["model"], request["output"]
    chosen = plan["model"]["format"]
    module = _LAYOUTS.get("mlx" if chosen == "auto" else chosen)
    unknown = _made_of_a_layout(request["saved_plan"], model)
    if unknown is None:
        try:
            return call("quantize", request, QuantizeReport, progress)
        except CheckpointError as fault:
            # A saved analysis is of the checkpoint as it is.
            if fault.slug != "unknown-model" or module is None or "analysis" in plan:
                raise
            unknown = fault
    laid_out: LaidOut = importlib.import_module(module or _LAYOUTS["mlx"]).laid_out
    if Path(model).is_dir() and not request["dry_run"]:
        # The core would refuse the output at the end of the work on the layout.
        call("check_output", {"model": model, "output": output, "overwrite": request["overwrite"]}, type(None))
    with laid_out(Path(model), Path(output), unknown, progress) as layout:
        source = plan["model"] | {"model": str(layout.directory), "generic": True, "layout": layout.said}
        return call("quantize", request | {"plan": plan | {"model": source}}, QuantizeReport, progress)


def verify(request: dict[str, Any], progress: Callback | None) -> VerifyReport:
    """Verify. A source that a program laid out for the output is laid out again."""
    output, source = Path(request["output"]), request["source"]
    by = _laid_out_by(output / MANIFEST) if source is not None and Path(source).is_dir() else None
    if by is None:
        return call("verify", request, VerifyReport, progress)
    message = f"{output} is made of what {by} makes of its source"
    unknown = CheckpointError(message, slug="unknown-model", path=str(output))
    laid_out: LaidOut = importlib.import_module(_LAYOUTS["mlx"]).laid_out
    with laid_out(Path(source), output, unknown, progress) as layout:
        again = {"source": str(layout.directory), "layout": layout.said}
        report = call("verify", request | again, VerifyReport, progress)
    if not report.ok and layout.said["by"] != by:
        _LOG.warning("the source was laid out by %s for the output, and by %s to compare it", by, layout.said["by"])
    return report


def _made_of_a_layout(saved_plan: object, model: str) -> CheckpointError | None:
    """Return an error about the model, if a plan is of what a program made of it."""
    by = _laid_out_by(Path(saved_plan)) if isinstance(saved_plan, str) else None
    if isinstance(saved_plan, Plan):
        by = saved_plan.settings.laid_out_by
    message = f"the plan is of what {by} makes of {model}"
    return None if by is None else CheckpointError(message, slug="unknown-model", path=model)


def _laid_out_by(document: Path) -> str | None:
    """Return the program that laid out what a document is about. The core complains of documents that are not sound."""
    try:
        found = msgspec.json.decode(document.read_bytes())["settings"].get("laid_out_by")
    except (OSError, msgspec.DecodeError, LookupError, TypeError, AttributeError):
        return None
    return found if isinstance(found, str) else None

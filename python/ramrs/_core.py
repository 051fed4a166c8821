"""Calls of the native module: JSON in, a report out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from ramrs import _native
from ramrs.types import Progress

__all__ = ["Callback", "call"]

Callback = Callable[[Progress], object]
Report = TypeVar("Report")


def call(verb: str, request: dict[str, Any], report: type[Report], progress: Callback | None = None) -> Report:
    """Run a verb of the core, and decode its report once."""
    callback = None if progress is None else lambda *moment: progress(Progress(*moment))
    return msgspec.json.decode(_native.call(verb, msgspec.json.encode(request), callback), type=report)

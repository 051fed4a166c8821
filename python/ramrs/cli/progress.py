"""The progress bar, on terminals only."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress

from ramrs.types import Progress

_LABELS = {
    "layout": "laying out",
    "open": "opening",
    "write": "generating",
    "probe": "probing",
    "gradients": "gradients",
    "measure": "measuring",
    "curves": "curves",
    "plan": "planning",
    "feedback": "error feedback",
    "resume": "checking",
    "encode": "encoding",
    "verify": "verifying",
    "eval": "evaluating",
}


class ProgressBar:
    """A callback that draws a bar for each stage, with time left and speed."""

    def __init__(self, console: Console, *, wanted: bool) -> None:
        self._console = console
        self._wanted = wanted and sys.stderr.isatty()
        self._bar: RichProgress | None = None
        self._stage = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, now: Progress) -> None:
        """Draw the state of the job."""
        if not self._wanted or now.total_bytes == 0:
            return
        if self._bar is None:
            amount = (
                DownloadColumn() if now.stage != "eval" else TextColumn("{task.completed:.0f}/{task.total:.0f} tokens")
            )
            columns = [TextColumn("{task.description:>10}"), BarColumn(), amount]
            if now.stage != "eval":
                columns.append(TransferSpeedColumn())
            self._bar = RichProgress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
            self._bar.start()
        if now.stage != self._stage:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(_LABELS.get(now.stage, now.stage), total=now.total_bytes)
            self._stage = now.stage
        self._bar.update(self._bar.task_ids[0], completed=now.done_bytes, total=now.total_bytes)

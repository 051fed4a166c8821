"""Where the command line prints: results to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import typer
from rich.console import Console

from ramrs.cli.options import flag
from ramrs.cli.progress import ProgressBar
from ramrs.errors import KEPT, BudgetError, InternalError, RamrsError, VerifyError, spell

__all__ = ["Screen", "Table"]

DONE, NO, FAILED, BUG, INTERRUPTED = 0, 1, 2, 101, 130


class Report(Protocol):
    """A result with a JSON form."""

    def to_dict(self) -> dict[str, object]:
        """Return its JSON form."""


def _console(*, stderr: bool) -> Console:
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


@dataclass(kw_only=True)
class Screen:
    """The streams of one command, and how it wants them used."""

    out: Console = field(default_factory=lambda: _console(stderr=False))
    err: Console = field(default_factory=lambda: _console(stderr=True))
    as_json: bool = False
    """Whether results and errors are JSON."""
    quiet: bool = False
    """Whether warnings, notes and progress are left out."""
    has_bar: bool = True
    """Whether there is a progress bar, on a terminal."""
    exit_code: int = DONE

    def progress(self) -> ProgressBar:
        """Make a progress bar."""
        return ProgressBar(self.err, wanted=self.has_bar and not self.quiet)

    @contextlib.contextmanager
    def notes(self) -> Iterator[None]:
        """Print what the API logs."""
        log, handler = logging.getLogger("ramrs"), _Notes(self)
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.setLevel(logging.NOTSET)

    def show(self, report: Report | Sequence[Report], print_text: Callable[[], None]) -> None:
        """Print a report, or several, as JSON, or as text by ``print_text``."""
        if self.as_json:
            form = [each.to_dict() for each in report] if isinstance(report, Sequence) else report.to_dict()
            sys.stdout.write(json.dumps(form, indent=2, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        else:
            print_text()

    def line(self, text: str = "", *, style: str | None = None) -> None:
        """Print a line of the result."""
        self.out.print(text, markup=False, style=style)

    def facts(self, rows: list[tuple[str, str]]) -> None:
        """Print names and values, the names in bold."""
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            self.out.print(f"[bold]{name.ljust(width)}[/]  ", end="")
            self.line(value)

    def warn(self, warnings: Iterable[str]) -> None:
        """Print warnings."""
        if not self.quiet:
            for warning in warnings:
                self._labelled("bold yellow", "warning", warning)

    def note(self, text: str) -> None:
        """Print something that is not the result."""
        if not self.quiet:
            self.err.print(text, markup=False)

    def fail(self, slug: str, message: str) -> None:
        """Print why the result is not what it should be, and exit with the code for that."""
        self._error(slug, message, None)
        self.exit_code = NO

    def failure(self, fault: BaseException) -> int:
        """Print an error, and return the exit code for it."""
        match fault:
            case KeyboardInterrupt() | typer.Abort():
                self._error("interrupted", f"interrupted: {_kept(fault) or 'nothing was left behind'}", None)
                return INTERRUPTED
            case SystemExit(code=code) | typer.Exit(exit_code=code):
                return code if isinstance(code, int) and code else self.exit_code
            case typer.TyperException():
                if fault.format_message():  # `ramrs` alone has printed the help
                    self._error("usage", fault.format_message(), "ramrs COMMAND --help lists the options")
                return FAILED
            case RamrsError():
                message, hint = fault.marked
                self._error(fault.slug, message, hint, path=fault.path, tensor=fault.tensor)
                if isinstance(fault, BudgetError | VerifyError):
                    return NO
                return BUG if isinstance(fault, InternalError) else FAILED
            case OSError():
                message, hint = getattr(fault, "marked", (str(fault), None))
                hint = "; ".join(filter(None, [hint, _kept(fault)])) or None
                self._error(getattr(fault, "slug", "io"), message, hint, path=str(fault.filename or ""))
                return FAILED
        if not self.as_json:
            self.err.print_exception()
        self._error("bug", f"{type(fault).__name__}: {fault}", "please report this, with the command")
        return BUG

    def _error(
        self, slug: str, message: str, hint: str | None, *, path: str | None = None, tensor: str | None = None
    ) -> None:
        message, hint = spell(message, flag), None if hint is None else spell(hint, flag)
        if self.as_json:
            fields = {"slug": slug, "message": message, "hint": hint, "path": path, "tensor": tensor}
            sys.stderr.write(json.dumps({"error": fields}, ensure_ascii=False) + "\n")
            return
        self._labelled("bold red", "error", message)
        if hint:
            self._labelled("bold cyan", "hint", hint)

    def _labelled(self, style: str, label: str, text: str) -> None:
        self.err.print(f"[{style}]{label}[/]: ", end="")
        self.err.print(text, markup=False)


def _kept(fault: BaseException) -> str | None:
    """Return where the finished work of a stopped job is, if any is kept."""
    return next((note for note in getattr(fault, "__notes__", ()) if note.endswith(KEPT)), None)


class _Notes(logging.Handler):
    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.note(record.getMessage())


class Table:
    """Rows in columns as wide as their cells.

    Rich's tables fit a width: they cut or fold the cells of a pipe, which has none.
    """

    def __init__(self, *columns: str) -> None:
        """Take the names of the columns; those that end in ``>`` are aligned to the right."""
        self._right = [column.endswith(">") for column in columns]
        self._rows = [[column.removesuffix(">") for column in columns]]

    def add_row(self, *cells: str) -> None:
        """Add a row."""
        self._rows.append(list(cells))

    def print(self, screen: Screen) -> None:
        """Print the table, its head in bold."""
        widths = [max(map(len, column)) for column in zip(*self._rows, strict=True)]
        for at, row in enumerate(self._rows):
            cells = zip(row, widths, self._right, strict=True)
            line = "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells)
            screen.line(line.rstrip(), style="bold" if at == 0 else None)

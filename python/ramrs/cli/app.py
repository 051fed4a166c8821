"""The entry point: standard streams, the run of a command, and what becomes of its exceptions."""

from __future__ import annotations

import os
import signal
import sys
from io import TextIOWrapper
from pathlib import Path

__all__ = ["main", "run"]


def main() -> None:
    """Run the command line, and exit."""
    # Pipelines and job schedulers stop a job by SIGTERM: the same as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A closed stream discards what is written to it. A terminal with few characters must not end a job.
    nowhere = Path(os.devnull)
    sys.stdout = sys.stdout or nowhere.open("w", encoding="utf-8")  # noqa: SIM115: open until the process ends
    sys.stderr = sys.stderr or nowhere.open("w", encoding="utf-8")  # noqa: SIM115: the same
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line with these arguments, and return its exit code."""
    from typer.main import get_command

    from ramrs.cli.commands import app
    from ramrs.cli.output import Screen

    screen = Screen()
    command = get_command(app)
    try:
        # Without `app()`, which turns some exceptions into exits with codes of its own.
        with command.make_context("ramrs", arguments, obj=screen) as context:
            command.invoke(context)
        sys.stdout.flush()
    except BaseException as fault:
        if isinstance(fault, BrokenPipeError) or isinstance(fault.__context__, BrokenPipeError):
            # The reader has seen enough. Python would complain when it flushes the stream at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return screen.exit_code
        return screen.failure(fault)
    return screen.exit_code

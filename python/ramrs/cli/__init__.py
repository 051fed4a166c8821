"""The command line: a thin caller of the API.

stdout carries the result and nothing else; progress, warnings and hints go to stderr. Exit codes: 0 done, 1 done and
the answer is no, 2 could not do it, 130 interrupted, 101 a bug of ours.
"""

from __future__ import annotations

import os
import signal
import sys
from io import TextIOWrapper
from pathlib import Path

__all__ = ["main"]


def main() -> None:
    """Run the command line, and exit."""
    # A pipeline's way to say Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Whoever closed them wants to hear nothing; and a terminal of few letters should not end a job.
    nowhere = Path(os.devnull)
    sys.stdout = sys.stdout or nowhere.open("w", encoding="utf-8")  # noqa: SIM115: open as long as we run
    sys.stderr = sys.stderr or nowhere.open("w", encoding="utf-8")  # noqa: SIM115: the same
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line with these arguments, and return its exit code."""
    from ramrs.cli import output
    from ramrs.cli.commands import CarriedError, app

    output.begin()
    as_json = "--json" in arguments
    try:
        code = app(arguments, prog_name="ramrs", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as caught:
        fault = caught.fault if isinstance(caught, CarriedError) else caught
        if isinstance(fault, BrokenPipeError) or isinstance(fault.__context__, BrokenPipeError):
            # Whoever read our output has seen enough. Python would complain while it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return output.exit_code()
        return output.failure(fault, as_json=as_json)
    # Typer returns the code of an early exit: --help, --version.
    return code if isinstance(code, int) and code else output.exit_code()

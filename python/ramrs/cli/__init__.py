"""The command line: a thin caller of the API.

stdout carries the result and nothing else. Progress, warnings and hints go to stderr. Exit codes: 0 success, 1 the
answer is no, 2 failure, 130 interrupted, 101 a bug in ramrs.
"""

from ramrs.cli.app import main, run

__all__ = ["main", "run"]

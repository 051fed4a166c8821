"""The exceptions of ramrs.

Every exception carries a ``slug`` that stays the same between releases, and where they apply a ``hint`` that
says what to do, the ``path`` of the file and the name of the ``tensor`` it is about. What the operating system refuses
is an ordinary :class:`OSError`, with the same attributes. A stopped job raises :class:`KeyboardInterrupt`.
"""

from __future__ import annotations

import errno as _errno
import os
import re
from collections.abc import Callable, Mapping

__all__ = [
    "BudgetError",
    "CheckpointError",
    "ConfigError",
    "InternalError",
    "RamrsError",
    "TensorError",
    "VerifyError",
    "from_native",
]


_MARK = re.compile(r"⟨(\w+)(?:=([^⟩]*))?⟩")


def spell(text: str, spelling: Callable[[str, str | None], str]) -> str:
    """Replace the marks of options in a message, ``⟨min_bits⟩`` and ``⟨min_bits=2⟩``, by a front's spelling."""
    return _MARK.sub(lambda mark: spelling(mark[1], mark[2]), text)


def keyword(name: str, value: str | None) -> str:
    """Spell an option as Python does: ``min_bits=2``."""
    name = "bits" if name == "uniform" else name
    if value is None:
        return f"{name}="
    if value in ("true", "false"):
        return f"{name}={value.title()}"
    return f"{name}={value}" if value.replace(".", "", 1).isdigit() else f'{name}="{value}"'


class RamrsError(Exception):
    """Base of all exceptions of ramrs, except those of the operating system."""

    slug: str = "error"
    hint: str | None = None
    path: str | None = None
    tensor: str | None = None
    marked: tuple[str, str | None]
    """Message and hint with the options as marks, for a front with a spelling of its own."""

    def __init__(
        self,
        message: str,
        *,
        slug: str | None = None,
        hint: str | None = None,
        path: str | None = None,
        tensor: str | None = None,
    ) -> None:
        super().__init__(spell(message, keyword))
        self.slug = slug or type(self).slug
        self.hint = None if hint is None else spell(hint, keyword)
        self.marked = (message, hint)
        self.path = path
        self.tensor = tensor

    def __reduce__(self) -> tuple[type[RamrsError], tuple[str, ...], dict[str, object]]:
        return type(self), (str(self),), self.__dict__


class ConfigError(RamrsError, ValueError):
    """An option is not valid, or does not go with the others."""


class CheckpointError(RamrsError):
    """The checkpoint is damaged, or of a kind that ramrs does not read."""


class TensorError(RamrsError):
    """A tensor cannot be processed."""


class BudgetError(RamrsError):
    """The budget is below the smallest possible size."""


class VerifyError(RamrsError):
    """A file does not hold what it should."""


class InternalError(RamrsError):
    """A bug in ramrs."""


KEPT = "keeps what is finished: the same command continues it"
"""The end of a note on an exception: the partial output of a job that was stopped."""


def renamed(fault: ConfigError, names: Mapping[str, str]) -> ConfigError:
    """Return the same error with options under the names that a verb has for them."""

    def mark(name: str, value: str | None) -> str:
        return f"⟨{names.get(name, name)}{'' if value is None else f'={value}'}⟩"

    message, hint = fault.marked
    hint = None if hint is None else spell(hint, mark)
    return ConfigError(spell(message, mark), slug=fault.slug, hint=hint, path=fault.path, tensor=fault.tensor)


_KINDS: dict[str, type[RamrsError]] = {
    "config": ConfigError,
    "checkpoint": CheckpointError,
    "tensor": TensorError,
    "budget": BudgetError,
    "verify": VerifyError,
    "bug": InternalError,
}


def from_native(
    kind: str,
    *,
    slug: str,
    message: str,
    hint: str | None,
    path: str | None,
    tensor: str | None,
    errno: int | None,
) -> BaseException:
    """Make the exception for an error of the native module."""
    if kind == "interrupted":
        return KeyboardInterrupt()
    if kind != "io":
        return _KINDS[kind](message, slug=slug, hint=hint, path=path, tensor=tensor)
    if errno is None:
        errno = _errno.ENOSPC if slug == "disk-full" else _errno.EIO
    # OSError picks its own subclass by the number: FileNotFoundError, PermissionError…
    fault = OSError(errno, os.strerror(errno), path)
    fault.slug = slug  # type: ignore[attr-defined]
    fault.hint = None if hint is None else spell(hint, keyword)  # type: ignore[attr-defined]
    fault.marked = (message, hint)  # type: ignore[attr-defined]
    fault.tensor = tensor  # type: ignore[attr-defined]
    fault.path = path  # type: ignore[attr-defined]
    fault.add_note(spell(message, keyword))
    return fault

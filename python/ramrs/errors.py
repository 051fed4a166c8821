"""What can go wrong.

Every exception of ramrs carries a ``slug`` that stays the same between releases, and where they apply a ``hint`` that
says what to do, the ``path`` of the file and the name of the ``tensor`` it is about. What the operating system refuses
is an ordinary :class:`OSError`, with the same attributes. A stopped job raises :class:`KeyboardInterrupt`.
"""

from __future__ import annotations

import errno as _errno
import os

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


class RamrsError(Exception):
    """Anything that stops ramrs, but for what the operating system refuses."""

    slug: str = "error"
    hint: str | None = None
    path: str | None = None
    tensor: str | None = None

    def __init__(
        self,
        message: str,
        *,
        slug: str | None = None,
        hint: str | None = None,
        path: str | None = None,
        tensor: str | None = None,
    ) -> None:
        super().__init__(message)
        self.slug = slug or type(self).slug
        self.hint = hint
        self.path = path
        self.tensor = tensor

    def __reduce__(self) -> tuple[type[RamrsError], tuple[str, ...], dict[str, str | None]]:
        return type(self), (str(self),), self.__dict__


class ConfigError(RamrsError, ValueError):
    """What was asked for makes no sense."""


class CheckpointError(RamrsError):
    """The checkpoint is not sound, or not one that ramrs reads."""


class TensorError(RamrsError):
    """A tensor cannot be dealt with."""


class BudgetError(RamrsError):
    """The budget is below the smallest possible size."""


class VerifyError(RamrsError):
    """What is there is not what should be."""


class InternalError(RamrsError):
    """A bug in ramrs."""


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
    fault.hint = hint  # type: ignore[attr-defined]
    fault.tensor = tensor  # type: ignore[attr-defined]
    fault.path = path  # type: ignore[attr-defined]
    fault.add_note(message)
    return fault

"""The native module."""

from collections.abc import Callable

__all__ = ["call", "cpu_level", "defaults", "logits", "options", "version", "weights"]

def call(verb: str, request: bytes, progress: Callable[[str, int, int], object] | None = None) -> bytes:
    """Run ``verb`` on the JSON text ``request``; return the report as JSON text."""

def defaults() -> bytes:
    """Return the defaults of all verbs' requests as JSON text."""

def logits(request: bytes) -> tuple[tuple[int, int], bytes]:
    """Run the model of the JSON text ``request``; return the shape of the logits, and them as little-endian float32."""

def options() -> list[str]:
    """Return the options that messages may name, by a mark ``⟨name⟩`` or ``⟨name=value⟩``."""

def version() -> str:
    """Version of the crate."""

def cpu_level() -> str:
    """Instruction set that kernels run with on this CPU."""

def weights(model: str, tensor: str) -> tuple[list[int], bytes]:
    """Shape of a tensor of the checkpoint at ``model``, and its elements as little-endian float32, decoded."""

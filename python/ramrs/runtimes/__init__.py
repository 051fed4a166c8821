"""Outputs in the runtimes that read them: their own strict loaders, and a forward pass beside that of ramrs."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ramrs._core import call, logits
from ramrs.errors import CheckpointError, ConfigError
from ramrs.evaluation.gguf_tokenizer import NORMAL, Vocabulary
from ramrs.types import RuntimeCheck

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Found", "Runtime", "check", "find"]

TOKENS = 32
"""Length of the text that a model is run on."""

BOUND = 3e-4
"""The largest difference of logits, as a share of their range: both runs compute in float32."""

ROUNDED = 1e-2
"""The same where a runtime rounds decoded weights to 16 bits."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a runtime made of an output."""

    logits: npt.NDArray[np.float32] | None
    """Of all tokens: ``[tokens, vocabulary]``; nothing if it does not load the output."""
    problems: list[str]
    """What its strict loader complains of."""
    bound: float = BOUND
    """The largest difference from exact arithmetic on the decoded weights."""


class Runtime(Protocol):
    """The module of a runtime."""

    FORMAT: str
    """The format of the outputs that it reads."""
    MODULES: tuple[str, ...]
    """The modules that it needs."""
    PACKAGES: str
    """What pip installs for them."""

    def version(self) -> str:
        """Return the version of the runtime."""

    def run(self, output: Path, tokens: list[int]) -> Found:
        """Load an output strictly, and run it in float32 on the CPU."""


_MODULES = {
    "mlx": "ramrs.runtimes.mlx",
    "transformers": "ramrs.runtimes.transformers",
    "llama.cpp": "ramrs.runtimes.llama_cpp",
}


def find(name: str, output: Path) -> Runtime:
    """Return the runtime ``name``, if it is installed and reads the format of ``output``.

    Raises:
        ConfigError: It does not read the format, or is not installed.
    """
    written = _format(output)
    fitting = [other for other, where in _MODULES.items() if written == _load(where).FORMAT]
    runtime = _load(_MODULES[name])
    if written is not None and written != runtime.FORMAT:
        message = f"⟨runtime={name}⟩: it reads the format {runtime.FORMAT}, and {output} is in the format {written}"
        hint = f"⟨runtime={fitting[0]}⟩ reads it" if fitting else None
        raise ConfigError(message, slug="bad-option", hint=hint)
    for module in runtime.MODULES:
        with _quiet():
            try:
                importlib.import_module(module)
            except ImportError as fault:
                message = f"⟨runtime={name}⟩: it is not installed: {fault}"
                raise ConfigError(message, slug="bad-option", hint=f"pip install {runtime.PACKAGES}") from fault
    return runtime


def check(name: str, runtime: Runtime, output: Path) -> RuntimeCheck:
    """Run an output in a runtime, and compare with ramrs' own forward pass.

    Args:
        name: Name of the runtime.
        runtime: Its module, of :func:`find`.
        output: Directory that ramrs wrote.
    """
    import numpy as np

    tokens = _tokens(output)
    with _quiet():
        found = runtime.run(output, tokens)
    made = RuntimeCheck(
        name,
        runtime.version(),
        loads=not found.problems,
        tokens=len(tokens),
        finite=None,
        difference=None,
        bound=found.bound,
        not_compared=None,
        problems=tuple(found.problems),
    )
    if found.logits is None:
        return made
    if not np.isfinite(found.logits).all():
        return replace(made, finite=False, problems=(*made.problems, "its logits are not finite"))
    try:
        expected = logits(output, [tokens])
    except CheckpointError as fault:
        return replace(made, finite=True, not_compared=f"ramrs does not run the model itself: {fault}")
    if expected.shape != found.logits.shape:
        what = f"its logits are {list(found.logits.shape)}, and those of ramrs {list(expected.shape)}"
        return replace(made, finite=True, problems=(*made.problems, what))
    difference = float(np.abs(found.logits - expected).max() / max(np.ptp(expected), 1e-30))
    problems = made.problems
    if not difference <= found.bound:
        what = (
            f"a logit differs from that of ramrs by {difference:.2g} of their range, and {found.bound:g} is the bound"
        )
        problems = (*problems, what)
    return replace(made, finite=True, difference=difference, problems=problems)


def _load(module: str) -> Runtime:
    runtime: Any = importlib.import_module(module)
    return runtime  # type: ignore[no-any-return]


def _format(output: Path) -> str | None:
    """Return the format of an output; the core complains of what is not one."""
    if output.suffix == ".gguf":
        return "gguf"
    try:
        found = json.loads((output / "ramrs-manifest.json").read_bytes())["settings"]["format"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _tokens(output: Path) -> list[int]:
    """Return a text of tokens that the model has.

    Of a GGUF they are normal ones. With those that stand for no text, which a model has hardly seen, numbers become so
    large that rounded activations change logits by a quarter of their range (Gemma 3).
    """
    if _format(output) == "gguf":
        kinds = call("gguf_tokenizer", {"model": str(output)}, Vocabulary).types
        normal = [at for at, kind in enumerate(kinds) if kind == NORMAL] or list(range(128))
        return [normal[(7919 * at + 13) % len(normal)] for at in range(TOKENS)]
    config = json.loads((output / "config.json").read_bytes())
    inner = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    vocabulary = next((size for block in (inner, config) if isinstance(size := block.get("vocab_size"), int)), 128)
    return [(7919 * at + 13) % max(vocabulary, 1) for at in range(TOKENS)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep runtimes from the network, and their words from stdout, which is for results."""
    settings = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value

"""The Python half of GGUF: a header by llama.cpp's converter, and the override file of llama-quantize."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ramrs.errors import ConfigError
from ramrs.types import Plan

__all__ = ["tensor_types", "with_header"]


@contextlib.contextmanager
def with_header(model: str, analysis: dict[str, Any], converter: Path | None) -> Iterator[dict[str, Any]]:
    """Give a request for an analysis whose header ``converter`` has made, if there is one; the header lasts as long.

    Raises:
        ConfigError: Both a header and a converter are given, or the converter fails.
    """
    if converter is None:
        yield analysis
        return
    if analysis.get("header") is not None:
        raise ConfigError("⟨converter⟩: a ⟨header⟩ is given, too", slug="bad-option")
    if not converter.is_file():
        raise ConfigError(f"⟨converter⟩ `{converter}`: no such file", slug="bad-option")
    with tempfile.TemporaryDirectory(prefix="ramrs-") as scratch:
        header = Path(scratch) / "header.gguf"
        command = [sys.executable, str(converter), "--vocab-only", "--outfile", str(header), model]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not header.is_file():
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            by_hand = f"python {converter} --vocab-only --outfile header.gguf {model}"
            raise ConfigError(
                f"⟨converter⟩ `{converter}`: {said[-1]}",
                slug="bad-option",
                hint=f"run `{by_hand}` where it works, and give the file with ⟨header⟩",
            )
        yield {**analysis, "header": str(header)}


def tensor_types(plan: Plan) -> str:
    """Return a plan as llama-quantize's ``--tensor-type-file`` takes it: a pattern and a type in each line.

    Raises:
        ConfigError: The plan is not for GGUF.
    """
    if plan.settings.format != "gguf":
        message = f"a plan for {plan.settings.format} has no types of ggml"
        raise ConfigError(message, slug="bad-option", hint="plan with ⟨format=gguf⟩")
    lines = [
        f"^{tensor.name.replace('.', '[.]')}$={tensor.scheme.removeprefix('gguf-')}\n"
        for tensor in plan.tensors
        if tensor.scheme != "kept"
    ]
    return "".join(lines)

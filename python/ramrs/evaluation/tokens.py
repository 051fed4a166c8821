"""The tokens of an evaluation: ids from a file, or of a text by the reference's own tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramrs.errors import CheckpointError, ConfigError
from ramrs.evaluation import gguf_tokenizer
from ramrs.options import PathLike

__all__ = ["json_object", "read", "tokenizer"]


def read(reference: Path, text: PathLike | None, tokens: PathLike | None) -> NDArray[np.int64]:
    """Read the token ids of a text, or those that are saved."""
    if tokens is not None and text is None:
        return _saved_ids(Path(tokens))
    if text is not None and tokens is None:
        return _encoded(reference, Path(text))
    raise ConfigError("⟨text⟩ or ⟨tokens⟩: give the one or the other", slug="bad-option")


def _saved_ids(path: Path) -> NDArray[np.int64]:
    try:
        ids = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as fault:
        message = f"⟨tokens⟩ `{path}`: not an .npy file: {fault}"
        raise ConfigError(message, slug="bad-option", path=str(path)) from fault
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
        message = f"⟨tokens⟩ `{path}`: not a list of token ids, which is an array of integers of one dimension"
        raise ConfigError(message, slug="bad-option", path=str(path))
    if ids.size and ids.min() < 0:
        raise ConfigError(f"⟨tokens⟩ `{path}`: token id {ids.min()} is negative", slug="bad-option", path=str(path))
    return np.asarray(ids, dtype=np.int64)


def _encoded(reference: Path, text: Path) -> NDArray[np.int64]:
    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as fault:
        message = f"⟨text⟩ `{text}`: not UTF-8: {fault.reason} at byte {fault.start}"
        raise ConfigError(message, slug="bad-option", path=str(text)) from fault
    encoder = tokenizer(reference)
    if encoder is None:
        what = "no tokenizer.json" if reference.is_dir() else "no tokenizer in its key-values"
        message = f"{reference}: {what}"
        hint = "give token ids with ⟨tokens=FILE.npy⟩"
        raise CheckpointError(message, slug="no-tokenizer", hint=hint, path=str(reference / "tokenizer.json"))
    return np.asarray(encoder.encode(content, add_special_tokens=False).ids, dtype=np.int64)


def tokenizer(reference: Path) -> Any | None:  # noqa: ANN401
    """Return the tokenizer of a model, if it has one."""
    try:
        from tokenizers import Tokenizer
    except ImportError as fault:
        raise ConfigError(
            f"⟨text⟩ needs a tokenizer: {fault}", slug="no-tokenizers", hint="pip install 'ramrs[text]'"
        ) from fault
    path = reference / "tokenizer.json"
    if not path.exists():
        return gguf_tokenizer.of_model(reference)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as fault:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{path}: not a tokenizer: {fault}", slug="no-tokenizer", path=str(path)) from fault


def json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file; without one, or with anything else in it, return nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as fault:
        raise CheckpointError(f"{path}: not JSON: {fault}", slug="config-syntax", path=str(path)) from fault
    return found if isinstance(found, dict) else {}

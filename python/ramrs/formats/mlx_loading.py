"""A checkpoint in mlx-lm's own model of its type: lazily, strictly, and with the names that the model expects."""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramrs._core import call
from ramrs.formats import mlx_config
from ramrs.formats.mlx_config import value_of
from ramrs.formats.mlx_modules import failure, parameters
from ramrs.formats.mlx_names import MismatchError, RefusedError, explanation, listed, spellings
from ramrs.types import Inspection

if TYPE_CHECKING:
    import mlx.core as mx

__all__ = ["Loaded", "load"]

_TIE = "tie_word_embeddings"
_NO_HEAD = "the checkpoint has no head, and config.json does not say that it is tied: it is taken as tied"
_ENCODINGS = ("quantization", "quantization_config", "compression_config")
"""Keys under which configurations say how weights are stored."""


@dataclass(frozen=True)
class _Attempt:
    """One way to hand a checkpoint to mlx-lm."""

    model: Path
    config: dict[str, Any] = field(default_factory=dict)
    """Keys of the configuration, instead of those of the file."""
    names: dict[str, str] = field(default_factory=dict)
    """Other names for stored tensors."""
    dropped: frozenset[str] = frozenset()
    """Stored tensors that are left out."""
    spare: frozenset[str] = frozenset()
    """Parameters that the model has no place for, and that are left out."""

    def load(self) -> tuple[Any, dict[str, Any]]:
        """Load a model, or raise :class:`MismatchError`."""
        from mlx_lm.utils import _get_classes, load_model

        def classes(config: dict[str, Any]) -> tuple[type, type]:
            model_class, args_class = _get_classes(config)
            return self._strict(model_class), args_class

        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results: models may print
            loaded: tuple[Any, dict[str, Any]] = load_model(
                self.model, lazy=True, model_config=self.config, get_model_classes=classes
            )
        return loaded

    def _strict(self, model_class: Any) -> type:  # noqa: ANN401
        """Make a class that loads what the attempt gives it, and says what does not fit."""
        attempt = self

        class Strict(model_class):  # type: ignore[misc]
            def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
                names = attempt.names
                kept = {name: array for name, array in weights.items() if name not in attempt.dropped}
                kept = {names.get(name, name): array for name, array in kept.items()}
                own = getattr(super(), "sanitize", None)
                return kept if own is None else own(kept)

            def load_weights(self, weights: list[tuple[str, mx.array]], strict: bool = True) -> Any:  # noqa: ANN401
                kept = {name: array for name, array in weights if name not in attempt.spare}
                if mismatch := MismatchError(self, kept):
                    raise mismatch
                return super().load_weights(list(kept.items()), strict=strict)

        return Strict


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in a model of mlx-lm."""

    model: Any
    config: dict[str, Any]
    """Its configuration, with all that mlx-lm reads, and nothing about codes."""
    notes: list[str]
    """What was changed so that the model fits."""
    again: Callable[[], Any]
    """Loads the model once more."""


def load(model: Path, source: Inspection) -> Loaded:
    """Load a checkpoint lazily, with nothing in it quantized.

    Args:
        model: Directory of the checkpoint.
        source: What is in it.

    Raises:
        RefusedError: mlx-lm does not load it.
    """
    from mlx_lm.utils import _get_classes, load_config

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    # Checked here, whatever mlx-lm's version does by default.
    if "model_file" in load_config(model):
        raise RefusedError("the model is code of the checkpoint's own, which is not run")
    shards = {shard.name for shard in source.shards}
    read = {path.name for path in model.glob("model*.safetensors")}
    if shards != read:
        raise RefusedError(f"it would read {sorted(read)[:3]} where the checkpoint is {sorted(shards)[:3]}")
    with _explained():
        keys = mlx_config.read_keys(_get_classes(config)[1])
    more = mlx_config.changes(config, keys)
    notes: list[str] = []
    is_own_head = _has_own_head(model, source)
    if _TIE in keys.every:
        more |= _tied(config | more, source, keys, notes, is_own_head=is_own_head)
    complete = config | more
    if reason := mlx_config.complaint(complete, keys):
        raise RefusedError(reason, remedy="correct config.json")
    dropped = {tensor.name: tensor.why for tensor in source.tensors if tensor.becomes == "dropped"}
    for why in dict.fromkeys(dropped.values()):
        names = [name for name in dropped if dropped[name] == why]
        notes.append(f"{len(names)} tensors are left out ({listed(names)}): {why}")
    attempt = _Attempt(model, _decoded(more), dropped=frozenset(dropped))
    loaded, config, attempt = _fitted(attempt, source, complete, notes)
    if is_own_head and not any(name.endswith("lm_head.weight") for name in parameters(loaded)):
        reason = "the head that is stored is not the embedding, and mlx-lm's code for the type has no other"
        raise RefusedError(reason, remedy="remove the head if it is not the model's", tensor="lm_head.weight")
    nulls = mlx_config.nulls(config, keys)
    if nulls and (fault := failure(loaded)):
        named = ", ".join(f"`{key}`" for key in nulls)
        reason = f"config.json has null for {named}, and with that the model does not run: {_shortened(fault)}"
        raise RefusedError(reason, remedy="write numbers in the place of null")
    with _explained():
        loaded = _decoded_model(loaded, config)
    return Loaded(loaded, config, notes, lambda: attempt.load()[0])


def _tied(
    config: dict[str, Any], source: Inspection, keys: mlx_config.ReadKeys, notes: list[str], *, is_own_head: bool
) -> dict[str, Any]:
    """Return the changes of a configuration that make it say of the head what the weights do."""
    tied = value_of(config, _TIE)
    if is_own_head and tied is not False:
        if tied:
            notes.append("config.json ties the head to the embedding, and their bytes differ: both are kept")
        return _everywhere(config, _TIE, value=False)
    if tied is None and _TIE in keys.own:
        has_head = any(tensor.name.endswith("lm_head.weight") for tensor in source.tensors)
        if not has_head:
            notes.append(_NO_HEAD)
        return _everywhere(config, _TIE, value=not has_head)
    return {}


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn any error into a refusal: the code of models fails in many ways on what it was not written for."""
    try:
        yield
    except (MismatchError, RefusedError):
        raise
    except (Exception, SystemExit) as fault:
        raise RefusedError(_shortened(fault)) from fault


def _shortened(fault: BaseException) -> str:
    kind = "" if isinstance(fault, ValueError | OSError) else f"{type(fault).__name__}: "
    return textwrap.shorten(f"{kind}{fault}", 200, placeholder=" …")


def _decoded(config: dict[str, Any]) -> dict[str, Any]:
    """Decode the numbers that JSON has no text for, as mlx-lm does."""
    from mlx_lm import utils

    decode = getattr(utils, "_decode_tagged_floats", lambda found: found)
    decoded: dict[str, Any] = decode(config)
    return decoded


def _decoded_model(model: Any, config: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return a model without codes, and take them out of its configuration."""
    import mlx.core as mx
    from mlx_lm.utils import dequantize_model

    if "quantization" in config:
        model = dequantize_model(model)
    for block in (config, config.get("text_config")):
        for key in _ENCODINGS:
            if isinstance(block, dict):
                block.pop(key, None)
    for name, array in parameters(model).items():
        if name.endswith(".weight") and not mx.issubdtype(array.dtype, mx.floating):
            raise RefusedError(f"it holds `{name}` in codes")
    return model


def _fitted(
    attempt: _Attempt, source: Inspection, config: dict[str, Any], notes: list[str]
) -> tuple[Any, dict[str, Any], _Attempt]:
    """Load with the first spelling of the names that fits, and without what has no place and is not needed."""
    best: tuple[MismatchError, _Attempt] | None = None
    fault: Exception | SystemExit | None = None
    for names in spellings(source):
        spelled = replace(attempt, names=names)
        try:
            loaded = spelled.load()
        except MismatchError as mismatch:
            try:
                mended = _mended(spelled, mismatch, config, notes)
                if mended is not None:
                    loaded = mended.load()
                    notes.extend(_said_of(names))
                    return (*loaded, mended)
            except MismatchError as left:
                mismatch = left
            if best is None or mismatch.size < best[0].size:
                best = mismatch, spelled
        except (Exception, SystemExit) as found:
            fault = fault or found
        else:
            notes.extend(_said_of(names))
            return (*loaded, spelled)
    if best is not None:
        raise explanation(best[0], config)
    assert fault is not None
    raise RefusedError(_shortened(fault)) from fault


def _said_of(names: dict[str, str]) -> list[str]:
    first = next(iter(names.items()), None)
    return [] if first is None else [f"mlx-lm has other names for {len(names)} tensors: `{first[0]}` is `{first[1]}`"]


def _mended(attempt: _Attempt, mismatch: MismatchError, config: dict[str, Any], notes: list[str]) -> _Attempt | None:
    """Correct what has one right answer; ``None`` if something else does not fit, either."""
    changed = {}
    tied = value_of(config, _TIE)
    # The bytes were compared: an untied head would have been declared.
    spare = {name for name in mismatch.extra if tied is True and name.endswith("lm_head.weight")}
    missing = mismatch.missing
    if tied is not False and len(missing) == 1 and missing[0].endswith("lm_head.weight"):
        changed, missing = _everywhere(config, _TIE, value=True), []
        notes.append(_NO_HEAD)
    if missing or mismatch.reshaped or len(spare) < len(mismatch.extra) or not (spare or changed):
        return None
    if spare:
        notes.append(f"mlx-lm has no place for {len(spare)} tensors that it does not need: {listed(sorted(spare))}")
    return replace(attempt, spare=frozenset(spare), config=attempt.config | changed)


def _everywhere(config: dict[str, Any], key: str, *, value: object) -> dict[str, Any]:
    """Return the changes that set a key in a configuration, and in that of the language model in it."""
    inner = {name: config[name] | {key: value} for name in mlx_config.INNER if isinstance(config.get(name), dict)}
    return {key: value, **inner}


def _has_own_head(model: Path, source: Inspection) -> bool:
    """Say whether a head is stored with other bytes than those of the embedding."""
    heads = [tensor for tensor in source.tensors if tensor.name.endswith("lm_head.weight")]
    embeddings = [tensor for tensor in source.tensors if tensor.role == "embedding"]
    if len(heads) != 1 or len(embeddings) != 1:
        return False
    head, embedding = heads[0], embeddings[0]
    names = [head.name, embedding.name]
    return not call("same_elements", {"model": str(model), "tensors": names}, bool)

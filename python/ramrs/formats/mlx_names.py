"""The names of a checkpoint's tensors: the ways to spell them, and what does not fit mlx-lm's model of the type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ramrs.formats.mlx_config import value_of
from ramrs.formats.mlx_modules import parameters
from ramrs.types import Inspection

if TYPE_CHECKING:
    import mlx.core as mx

__all__ = ["MismatchError", "RefusedError", "explanation", "listed", "spellings"]

_LAYER = re.compile(r"\b(?:layers|h|blocks)\.(\d+)\.")

#: Top-level components of models with more than text.
_PARTS = (
    "vision_tower",
    "vision_model",
    "visual",
    "multi_modal_projector",
    "audio_tower",
    "embed_vision",
    "embed_audio",
)


class RefusedError(Exception):
    """mlx-lm does not load the checkpoint, for a reason that the user can mend."""

    def __init__(self, reason: str, *, remedy: str | None = None, tensor: str | None = None) -> None:
        super().__init__(reason)
        self.remedy = remedy
        self.tensor = tensor


class MismatchError(Exception):
    """The names or shapes of the weights are not those of the model."""

    def __init__(self, model: Any, weights: dict[str, mx.array]) -> None:  # noqa: ANN401
        super().__init__()
        expected = {name: tuple(array.shape) for name, array in parameters(model).items()}
        found = {name: tuple(array.shape) for name, array in weights.items()}
        self.missing = [name for name in expected if name not in found]
        self.extra = [name for name in found if name not in expected]
        self.reshaped = [
            (name, found[name], shape) for name, shape in expected.items() if found.get(name, shape) != shape
        ]
        self.expected = expected
        self.found = found

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.reshaped)

    @property
    def size(self) -> int:
        """The number of tensors that do not fit."""
        return len(self.missing) + len(self.extra) + len(self.reshaped)


def spellings(source: Inspection) -> list[dict[str, str]]:
    """List the ways to spell the names of a checkpoint, as new names of stored tensors. The first is as stored.

    Releases differ in where the language model lies within a larger model, and tools wrap names.
    """
    stored = [tensor.name for tensor in source.tensors]
    found: list[dict[str, str]] = [{}]
    for names in (dict(zip(stored, stored, strict=True)), {name: source.renamed.get(name, name) for name in stored}):
        for spelled in (
            lambda name: name,
            _inner_first,
            _outer_first,
            _text_alone,
            _with_model,
            _without_model,
            _in_text,
        ):
            new = {old: spelled(name) for old, name in names.items()}
            changed = {old: name for old, name in new.items() if old != name}
            if changed not in found and len(set(new.values())) == len(new):
                found.append(changed)
    return found


def _inner_first(name: str) -> str:
    """`model.language_model.layers` as `language_model.model.layers`, the order before transformers 4.52."""
    if name.startswith("model.language_model."):
        return "language_model.model." + name.removeprefix("model.language_model.")
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    part = name.removeprefix("model.")
    return part if part.startswith(_PARTS) else name


def _outer_first(name: str) -> str:
    """`language_model.model.layers` as `model.language_model.layers`, the order since transformers 4.52."""
    if name.startswith("language_model.model."):
        return "model.language_model." + name.removeprefix("language_model.model.")
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    return f"model.{name}" if name.startswith(_PARTS) else name


def _text_alone(name: str) -> str:
    """The language model without the larger one around it."""
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name.removeprefix("language_model.")


def _with_model(name: str) -> str:
    return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"


def _without_model(name: str) -> str:
    return name.removeprefix("model.")


def _in_text(name: str) -> str:
    """The language model within a larger one."""
    return name if name.startswith("language_model.") else f"language_model.{name}"


def explanation(mismatch: MismatchError, config: dict[str, Any]) -> RefusedError:
    """Say what does not fit, by the first tensor, and what can be done."""
    layers, expected = _layers(mismatch.found), _layers(mismatch.expected)
    both = layers and expected and not mismatch.reshaped
    if (
        both
        and layers != expected
        and all(_beyond(name, layers, expected) for name in mismatch.missing + mismatch.extra)
    ):
        counted = value_of(config, "num_hidden_layers") or value_of(config, "num_layers") or value_of(config, "n_layer")
        reason = f"the weights have {layers} layers, and config.json counts {counted or expected}"
        remedy = "complete the checkpoint, or correct the number in config.json"
        return RefusedError(reason, remedy=remedy, tensor=(mismatch.missing + mismatch.extra)[0])
    if mismatch.reshaped:
        name, found, shape = mismatch.reshaped[0]
        more = _and_more(len(mismatch.reshaped) - 1, "of another shape")
        reason = f"`{name}` is {list(found)}, and config.json makes it {list(shape)}{more}"
        return RefusedError(reason, remedy="take config.json and the weights from one release", tensor=name)
    if mismatch.missing:
        name = mismatch.missing[0]
        reason = f"`{name}` {list(mismatch.expected[name])} is missing{_and_more(len(mismatch.missing) - 1, 'as well')}"
        if mismatch.extra:
            reason += f", and `{mismatch.extra[0]}` has no place{_and_more(len(mismatch.extra) - 1, 'like it')}"
        return RefusedError(reason, remedy="complete the checkpoint: download or save it again", tensor=name)
    name = mismatch.extra[0]
    reason = f"`{name}` has no place in its model{_and_more(len(mismatch.extra) - 1, 'like it')}"
    is_adapter = any("lora_" in name or "adapter" in name for name in mismatch.extra)
    remedy = "merge the adapter first" if is_adapter else "remove what is not part of the language model"
    return RefusedError(reason, remedy=remedy, tensor=name)


def _layers(names: Mapping[str, object]) -> int:
    return max((int(found[1]) + 1 for name in names if (found := _LAYER.search(name))), default=0)


def _beyond(name: str, layers: int, expected: int) -> bool:
    found = _LAYER.search(name)
    return found is not None and int(found[1]) >= min(layers, expected)


def _and_more(count: int, how: str) -> str:
    return f" ({count} more are {how})" if count > 1 else f" (1 more is {how})" if count else ""


def listed(names: list[str]) -> str:
    """Name a few tensors of several."""
    return ", ".join(f"`{name}`" for name in names[:3]) + (", …" if len(names) > 3 else "")

"""What mlx-lm's code for a model type reads of ``config.json``, and configurations that have it elsewhere."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import TYPE_CHECKING, Any

from ramrs._core import call

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["ReadKeys", "changes", "complaint", "nulls", "read_keys", "value_of"]

#: Keys under which a configuration has that of its language model.
INNER = ("text_config", "language_config", "llm_config")


@dataclasses.dataclass(frozen=True, slots=True)
class ReadKeys:
    """Keys of ``config.json`` that the code for a model type reads."""

    own: frozenset[str]
    """Those that the model's own arguments require."""
    required: frozenset[str]
    """Those that the arguments of any part of the model require."""
    every: frozenset[str]


def read_keys(args_class: type) -> ReadKeys:
    """List the keys that the arguments of a model are made of, with those of the models that it contains."""
    own = frozenset(name for name, field in inspect.signature(args_class).parameters.items() if _is_required(field))
    required, every = set(own), set(inspect.signature(args_class).parameters)
    for kind in _dataclasses(sys.modules[args_class.__module__], set()):
        for field in dataclasses.fields(kind):
            every.add(field.name)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                required.add(field.name)
    return ReadKeys(own, frozenset(required), frozenset(every))


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD


def _dataclasses(module: ModuleType, seen: set[str]) -> set[type]:
    """Find the arguments of models in a module of mlx-lm, and in those that it imports."""
    if module.__name__ in seen:
        return set()
    seen.add(module.__name__)
    found: set[type] = set()
    for value in list(vars(module).values()):
        where = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
        if not isinstance(where, str) or not where.startswith("mlx_lm.models."):
            continue
        if isinstance(value, type) and dataclasses.is_dataclass(value):
            found.add(value)
        if where in sys.modules:
            found |= _dataclasses(sys.modules[where], seen)
    return found


def changes(config: dict[str, Any], keys: ReadKeys) -> dict[str, Any]:
    """Return the keys to add to a configuration, or to replace, so that mlx-lm finds what it reads.

    Args:
        config: The configuration, as ``config.json`` has it.
        keys: What the code for its type reads.
    """
    required = keys.required if any(isinstance(config.get(key), dict) for key in INNER) else keys.own
    read = {"required": sorted(required), "optional": sorted(keys.every - required)}
    complete: dict[str, Any] = call("complete_config", {"format": "mlx", "config": config, "read": read}, dict)
    return {key: value for key, value in complete.items() if key not in config or config[key] != value}


def complaint(config: dict[str, Any], keys: ReadKeys) -> str | None:
    """Say what mlx-lm cannot do of what a completed configuration asks for, if there is anything."""
    missing = sorted(keys.own - config.keys())
    if missing:
        named = ", ".join(f"`{key}`" for key in missing)
        return f"config.json lacks {named}, which mlx-lm requires for the type"
    inner = next((config[key] for key in INNER if isinstance(config.get(key), dict)), config)
    rope = inner.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_parameters" in keys.every:
        return None
    kinds = {name: value for name, value in rope.items() if isinstance(value, dict)}
    bases = {str(value.get("rope_theta")) for value in kinds.values()}
    if len(bases) > 1 and keys.every.isdisjoint({"rope_local_base_freq", "swa_rope_theta"}):
        return (
            f"rope_parameters has the bases {' and '.join(sorted(bases))} for {' and '.join(sorted(kinds))}, and "
            "mlx-lm's code for the type knows one base only"
        )
    scaling = inner.get("rope_scaling")
    if scaling and "rope_scaling" not in keys.every:
        kind = scaling.get("rope_type", scaling.get("type"))
        return f"rope_parameters asks for positions of type `{kind}`, which mlx-lm's code for the type does not read"
    return None


def nulls(config: dict[str, Any], keys: ReadKeys) -> list[str]:
    """List the keys that a model reads and that are null."""
    blocks = [config, *(config[key] for key in INNER if isinstance(config.get(key), dict))]
    return sorted({key for block in blocks for key, value in block.items() if value is None and key in keys.every})


def value_of(config: dict[str, Any], key: str) -> Any:  # noqa: ANN401
    """Return a value of a configuration, or of that of the language model in it."""
    for block in (config, *(config.get(inner) for inner in INNER)):
        if isinstance(block, dict) and block.get(key) is not None:
            return block[key]
    return None

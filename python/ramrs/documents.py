"""What the verbs return: frozen dataclasses that mirror the JSON documents, field by field.

Each has ``to_dict()``, and the ones that are files of their own have ``read(path)`` and ``write(path)``. The fields and
their units are described in ``docs/formats.md``.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from ramrs.errors import ConfigError

__all__ = [
    "Analysis",
    "AnalyzedTensor",
    "Curve",
    "CurvePoint",
    "FileDigest",
    "InspectedTensor",
    "Inspection",
    "LedgerLine",
    "LeftOut",
    "Manifest",
    "Plan",
    "PlannedTensor",
    "Policy",
    "ProbeReport",
    "Probed",
    "Problem",
    "Progress",
    "QuantizeReport",
    "Quantized",
    "RoleSummary",
    "Settings",
    "Shard",
    "Size",
    "SourceId",
    "StackedMatrix",
    "TensorDigest",
    "Tool",
    "Totals",
    "Uniform",
    "VerifyReport",
    "Written",
]

Scheme = str
"""``kept``, or bits and group size: ``4g64``."""


class _Document:
    """Conversion between a dataclass and the JSON it mirrors."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make one from its JSON form."""
        return typing.cast(Self, _build(cls, data))

    def to_dict(self) -> dict[str, Any]:
        """Return its JSON form."""
        return typing.cast("dict[str, Any]", _plain(self))


def _build(kind: Any, value: Any) -> Any:  # noqa: ANN401
    """Make a value of type ``kind`` from JSON data."""
    if value is None or kind is Any:
        return value
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return _build(next(arm for arm in typing.get_args(kind) if arm is not type(None)), value)
    if origin is tuple:
        item = typing.get_args(kind)[0]
        return tuple(_build(item, element) for element in value)
    if dataclasses.is_dataclass(kind):
        make = typing.cast("type[Any]", kind)
        if isinstance(value, list):
            return make(*value)
        hints = _hints(make)
        return make(**{name: _build(hints[name], element) for name, element in value.items()})
    return value


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(kind: type) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind)
    return _HINTS[kind]


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, CurvePoint | StackedMatrix):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(element) for element in value]
    return value


class _File(_Document):
    """A document that is a file of its own."""

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read one from a file."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (TypeError, KeyError, ValueError) as fault:
            message = f"{path}: not a {cls.__name__.lower()} of this version of ramrs: {fault}"
            raise ConfigError(message, slug="bad-document", path=str(path)) from fault

    def write(self, path: str | Path) -> None:
        """Write it to a file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Tool(_Document):
    """Who made a document."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class SourceId(_Document):
    """Which checkpoint a document is about."""

    headers_sha256: str
    parameters: int
    tensor_bytes: int
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Probed(_Document):
    """How a model was probed."""

    version: int
    tokens: int
    mode: Literal["random", "self"]
    draws: int


@dataclass(frozen=True, slots=True)
class Settings(_Document):
    """What decides the curves, beside the checkpoint."""

    format: str
    generic: bool
    effort: Literal["fast", "normal"]
    objective: Literal["output", "mse", "mint"]
    sensitivity: str
    sensitivity_sha256: str
    probe: Probed | None
    prior: Literal["roles", "none"]
    prior_version: int


@dataclass(frozen=True, slots=True)
class Policy(_Document):
    """Limits on the schemes of a plan."""

    min_bits: int | None = None
    max_bits: int | None = None
    floor_db: float | None = None
    keep: tuple[str, ...] = ()
    tensor: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shard(_Document):
    """A file of weights."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class RoleSummary(_Document):
    """The tensors of one role and type."""

    role: str
    dtype: str
    tensors: int
    parameters: int
    bytes: int
    quantizable: int


@dataclass(frozen=True, slots=True)
class InspectedTensor(_Document):
    """A tensor of a checkpoint."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    role: str
    layer: int | None
    becomes: Literal["quantizable", "kept", "converted", "consumed", "tied", "dropped"]
    why: str | None
    into: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inspection(_Document):
    """What is in a checkpoint."""

    path: str
    model_type: str | None
    source: SourceId
    shards: tuple[Shard, ...]
    roles: tuple[RoleSummary, ...]
    tensors: tuple[InspectedTensor, ...]
    other_files: tuple[str, ...]
    smallest_bpw: float
    unsupported: str | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StackedMatrix(_Document):
    """What a matrix of a stack amounts to: the loss of dropping it whole, and its sum of squares."""

    signal: float
    energy: float


@dataclass(frozen=True, slots=True)
class CurvePoint(_Document):
    """What one scheme costs a matrix: loss in the objective's unit, signal over noise at its output in decibels."""

    scheme: Scheme
    loss: float
    sqnr_db: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class Curve(_Document):
    """What the schemes of a matrix cost."""

    family: str
    origin: Literal["propagated", "flat", "probe", "file", "unweighted"]
    signal: float
    energy: float
    matrices: tuple[StackedMatrix, ...]
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True, slots=True)
class AnalyzedTensor(_Document):
    """A tensor that is written, and the tensors of the source that it is made of, if not the one of its name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    packed: str | None
    bytes: int
    role: str
    layer: int | None
    sources: tuple[str, ...]
    kept: str | None
    curve: Curve | None


@dataclass(frozen=True, slots=True)
class Analysis(_File):
    """The rate–distortion curve of every matrix, good for any budget and policy."""

    ramrs_analysis: int
    tool: Tool
    source: SourceId
    settings: Settings
    tensors: tuple[AnalyzedTensor, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Uniform(_Document):
    """The best that one scheme for all matrices would do within the budget."""

    scheme: Scheme
    loss: float
    is_the_plan: bool


@dataclass(frozen=True, slots=True)
class Totals(_Document):
    """What a plan amounts to."""

    tensor_bytes: int
    file_bytes: int
    budget_bytes: int | None
    effective_bpw: float
    payload_bpw: float
    loss: float
    lower_bound: float | None
    best_uniform: Uniform | None


@dataclass(frozen=True, slots=True)
class Size(_Document):
    """A size that could be had, and its loss."""

    effective_bpw: float
    tensor_bytes: int
    loss: float


@dataclass(frozen=True, slots=True)
class PlannedTensor(_Document):
    """A tensor of a plan."""

    name: str
    role: str
    layer: int | None
    scheme: Scheme
    bytes: int
    loss: float
    sqnr_db: float | None
    why: str


@dataclass(frozen=True, slots=True)
class Plan(_File):
    """Which scheme every tensor gets, and what that amounts to."""

    ramrs_plan: int
    tool: Tool
    source: SourceId
    settings: Settings
    policy: Policy
    budget: str | None
    totals: Totals
    trade_off: tuple[Size, ...]
    schemes_sha256: str
    tensors: tuple[PlannedTensor, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileDigest(_Document):
    """A file, by its digest."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TensorDigest(_Document):
    """A stored tensor, by its digest."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class LeftOut(_Document):
    """A file of the source that is not in the output."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Quantized(_Document):
    """How a tensor was quantized, or what of it went into one of several, and the error of exactly what was written."""

    into: str
    scheme: Scheme
    origin: str
    loss: float
    sqnr_db: float
    squared_error: float
    nrmse: float


@dataclass(frozen=True, slots=True)
class LedgerLine(_Document):
    """What became of a tensor of the source."""

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    sha256: str
    role: str
    became: Literal["quantized", "kept", "converted", "consumed", "tied", "dropped"]
    why: str
    bytes: int
    into: tuple[str, ...]
    quantized: tuple[Quantized, ...]


@dataclass(frozen=True, slots=True)
class Manifest(_File):
    """What was done to which bytes."""

    ramrs_manifest: int
    tool: Tool
    source: SourceId
    source_files: tuple[FileDigest, ...]
    settings: Settings
    policy: Policy
    budget: str | None
    totals: Totals
    ledger: tuple[LedgerLine, ...]
    tensors: tuple[TensorDigest, ...]
    files: tuple[FileDigest, ...]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QuantizeReport(_Document):
    """What ``quantize`` did."""

    output: str
    written: bool
    plan: Plan
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class Problem(_Document):
    """Something that is not as the manifest says."""

    file: str
    tensor: str | None
    what: str


@dataclass(frozen=True, slots=True)
class VerifyReport(_Document):
    """What ``verify`` found."""

    ok: bool
    files: int
    tensors: int
    decoded: int
    compared_with_source: int
    unlisted: tuple[str, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Written(_Document):
    """A file that was written."""

    path: str
    format: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ProbeReport(_Document):
    """What ``probe`` found."""

    model_type: str
    probe: Probed
    tokens: int
    """Tokens that went through the model: more than were asked for, where experts needed more."""
    matrices: int
    """Matrices that were measured."""
    multiply_adds: int
    """Multiplications with additions that it took."""
    loads: dict[str, list[int]]
    """Tokens of each expert, by layer."""
    written: Written | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a job, as a ``progress=`` callback gets it."""

    stage: str
    """``layout``, ``open``, ``write``, ``probe``, ``gradients``, ``measure``, ``curves``, ``plan``, ``encode``,
    ``verify`` or ``eval``."""
    done_bytes: int
    """Bytes of this stage that are done."""
    total_bytes: int
    """Bytes this stage has; 0 if that is not known."""

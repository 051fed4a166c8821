"""What the verbs return: frozen dataclasses that mirror the JSON documents, field by field.

Each has ``to_dict()`` and ``from_dict()``. Documents that are files have ``read(path)`` and ``write(path)``, too.
msgspec converts them and checks the types. ``docs/formats.md`` describes the fields and their units.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import msgspec

from ramrs.errors import ConfigError

__all__ = [
    "Analysis",
    "AnalyzedTensor",
    "Check",
    "Curve",
    "CurvePoint",
    "Estimate",
    "EvalReport",
    "EvaluatedOutput",
    "Evaluation",
    "FileDigest",
    "HeadSize",
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
    "Quantiles",
    "QuantizeReport",
    "Quantized",
    "RoleSummary",
    "RuntimeCheck",
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
"""How a tensor is stored: ``kept``, or a scheme of the output format, such as ``4g64``."""

Origin = Literal["propagated", "flat", "probe", "file", "unweighted"]
"""Where a matrix's sensitivity is from."""


class _Document:
    """A dataclass with a JSON form, to and from which msgspec converts it."""

    __slots__ = ()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make one from its JSON form.

        Raises:
            ConfigError: It is not one of this version.
        """
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as fault:
            raise ConfigError(f"not a {_name(cls)} of this version of ramrs: {fault}", slug="bad-document") from fault

    def to_dict(self) -> dict[str, Any]:
        """Return its JSON form."""
        form: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return form


class _File(_Document):
    """A document that is a file of its own."""

    __slots__ = ()

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read one from a file. Fields that this version does not know are ignored."""
        try:
            return msgspec.json.decode(Path(path).read_bytes(), type=cls)
        except msgspec.DecodeError as fault:
            message = f"{path}: not a {_name(cls)} of this version of ramrs: {fault}"
            raise ConfigError(message, slug="bad-document", path=str(path)) from fault

    def write(self, path: str | Path) -> None:
        """Write it to a file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _name(kind: type) -> str:
    return kind.__name__.lower()


@dataclass(frozen=True, slots=True)
class Tool(_Document):
    """The program that made a document."""

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
    seed: int = 0


@dataclass(frozen=True, slots=True)
class HeadSize(_Document):
    """The size of the key-values that an output states."""

    key_values: int
    bytes: int
    alignment: int


@dataclass(frozen=True, slots=True)
class Settings(_Document):
    """The settings of an analysis: with the checkpoint, they decide its curves."""

    format: str
    target: str | None
    tensor_parallel: int
    generic: bool
    effort: Literal["fast", "normal", "high"]
    objective: Literal["output", "mse", "mint"]
    sensitivity: str
    sensitivity_sha256: str
    probe: Probed | None
    prior: Literal["roles", "none"]
    prior_version: int
    laid_out_by: str | None = None
    head: HeadSize | None = None


@dataclass(frozen=True, slots=True)
class Policy(_Document):
    """Limits on the schemes of a plan."""

    min_bits: int | None = None
    max_bits: int | None = None
    floor_db: float | None = None
    keep: tuple[str, ...] = ()
    tensor: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()


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
    renamed: dict[str, str] = field(default_factory=dict)
    """The tensors that are read under other names than they are stored, such as without the wrappers of tools."""


class StackedMatrix(NamedTuple):
    """A matrix of a stack, ``[signal, energy]`` in JSON: the loss of dropping it whole, and its sum of squares."""

    signal: float
    energy: float


class CurvePoint(NamedTuple):
    """One scheme of a matrix, ``[scheme, loss, sqnr_db, standard_error]`` in JSON.

    ``loss`` is in the objective's unit. ``sqnr_db`` is the ratio of signal to noise at the matrix's output, in
    decibels. ``standard_error`` is that of the loss, relative to it.
    """

    scheme: Scheme
    loss: float
    sqnr_db: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class Curve(_Document):
    """The rate–distortion curve of a matrix: the loss of each scheme."""

    family: str
    origin: Origin
    signal: float
    energy: float
    matrices: tuple[StackedMatrix, ...]
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True, slots=True)
class AnalyzedTensor(_Document):
    """A tensor of the output. ``sources`` names the tensors it is made of, unless that is the one of its name."""

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

    ramrs_analysis: Literal[2]
    tool: Tool
    source: SourceId
    settings: Settings
    tensors: tuple[AnalyzedTensor, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Uniform(_Document):
    """The best plan within the budget that gives all matrices one scheme."""

    scheme: Scheme
    loss: float
    is_the_plan: bool


@dataclass(frozen=True, slots=True)
class Totals(_Document):
    """The totals of a plan."""

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
    """A point of the trade-off: the size of another plan, and its loss."""

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
    """The scheme of every tensor, and the totals."""

    ramrs_plan: Literal[1]
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
    """How a tensor, or a part of it, was quantized, and the error of the bytes that were written."""

    into: str
    scheme: Scheme
    origin: Origin
    loss: float
    sqnr_db: float
    squared_error: float
    nrmse: float
    feedback: int = 0


@dataclass(frozen=True, slots=True)
class LedgerLine(_Document):
    """The fate of a tensor of the source."""

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
class Estimate(_Document):
    """A measured number, and its standard error."""

    value: float
    error: float | None


@dataclass(frozen=True, slots=True)
class Check(_Document):
    """The divergence of an output from its source, on tokens that the source wrote.

    ``kl`` and ``predicted`` are in nats per token.
    """

    windows: int
    window: int
    origin: Literal["given", "written", "random"]
    kl: Estimate
    agreement: Estimate
    predicted: float | None


@dataclass(frozen=True, slots=True)
class Manifest(_File):
    """What was done to which bytes: digests of the source and the output, and the ledger between them."""

    ramrs_manifest: Literal[2]
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
    check: Check | None = None
    """What the output computes; ``None`` if it was not run."""


@dataclass(frozen=True, slots=True)
class QuantizeReport(_Document):
    """What ``quantize`` did."""

    output: str
    written: bool
    continued: bool
    """Whether work of an earlier run, which was stopped, was used."""
    part: str | None
    """The part that was done, if that was not all."""
    plan: Plan
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class Problem(_Document):
    """A difference from the manifest."""

    file: str
    tensor: str | None
    what: str


@dataclass(frozen=True, slots=True)
class RuntimeCheck(_Document):
    """What a runtime made of an output."""

    runtime: str
    version: str
    loads: bool
    """Whether its strict loader takes all tensors, and misses none."""
    tokens: int
    """Tokens that it was run on, in float32 on the CPU."""
    finite: bool | None
    """Whether all logits are finite numbers; ``None`` if there are none."""
    difference: float | None
    """The largest difference of a logit from ramrs' own, as a share of their range."""
    bound: float
    """The largest difference that is the same model."""
    not_compared: str | None
    """Why nothing was compared, if nothing was."""
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VerifyReport(_Document):
    """What ``verify`` found."""

    ok: bool
    files: int
    tensors: int
    decoded: int
    compared_with_source: int
    recomputed: int
    """Matrices and copied tensors that were encoded again and compared byte for byte."""
    unlisted: tuple[str, ...]
    problems: tuple[Problem, ...]
    runtime: RuntimeCheck | None = None


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
    """Tokens that ran through the model: more than asked for where experts needed more."""
    matrices: int
    """Matrices that were measured."""
    multiply_adds: int
    """Multiply–add operations."""
    loads: dict[str, list[int]]
    """Tokens of each expert, by layer."""
    written: Written | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evaluation(_Document):
    """How far a model is from its reference on the same tokens.

    KL divergences are in nats per token, of the model from the reference. Perplexities are over windows: ``mean`` is
    the exponential of the mean negative log-likelihood of all tokens, ``median`` that of the median window. Each
    ``…_error`` is the standard error of what it is named after, from the differences between windows; ``None`` if it is
    not known, as with one window.
    """

    output: str
    kl_mean: float
    kl_median: float
    kl_p99: float
    perplexity_mean: float
    perplexity_median: float
    reference_perplexity_mean: float
    reference_perplexity_median: float
    top1_agreement: float
    windows: int
    window: int
    tokens: int
    bos: int | None
    bos_note: str
    computed: str
    origin: Literal["given", "written", "random"] = "given"
    """Where the tokens come from: the user, the reference itself, or the random generator."""
    kl_mean_error: float | None = None
    kl_median_error: float | None = None
    kl_p99_error: float | None = None
    perplexity_mean_error: float | None = None
    reference_perplexity_mean_error: float | None = None
    top1_agreement_error: float | None = None
    failures: tuple[str, ...] = ()
    """The limits that it does not keep."""

    @property
    def ok(self) -> bool:
        """Whether it keeps all limits."""
        return not self.failures


@dataclass(frozen=True, slots=True)
class Quantiles(_Document):
    """The distribution of a number over positions."""

    mean: Estimate
    median: Estimate
    p99: Estimate


@dataclass(frozen=True, slots=True)
class EvaluatedOutput(_Document):
    """What the core measured of an output."""

    output: str
    kl: Quantiles
    reference_perplexity: Estimate
    reference_perplexity_median: float
    perplexity: Estimate
    perplexity_median: float
    agreement: Estimate


@dataclass(frozen=True, slots=True)
class EvalReport(_Document):
    """What the core measured of several outputs on the same tokens."""

    windows: int
    window: int
    tokens: int
    bos: int | None
    origin: Literal["given", "written", "random"]
    multiply_adds: int
    outputs: tuple[EvaluatedOutput, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a job, as a ``progress=`` callback gets it."""

    stage: str
    """``layout``, ``open``, ``write``, ``probe``, ``gradients``, ``measure``, ``curves``, ``plan``, ``encode``,
    ``verify`` or ``eval``."""
    done_bytes: int
    """Bytes of this stage that are done."""
    total_bytes: int
    """Bytes this stage has; 0 if that is not known."""

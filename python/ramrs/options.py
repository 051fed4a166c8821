"""The options of the verbs, each defined once.

A ``TypedDict`` lists the options of a verb with their types, and annotates each with an :class:`Option`: its help, its
place in the request, its spellings on the command line. All fronts follow from that: the keywords of the API, its
signatures and docstrings, the parameters of the command line, and the requests to the core. The core has the defaults.

They are no dataclasses: mypy checks keywords against a ``TypedDict`` alone (by ``Unpack``), and with both every option
would be written twice. To share options between calls, keep them in a dictionary of one of these types::

    options: PlanOptions = {"budget": 4.0, "min_bits": 3}
    ramrs.quantize(model, **options)
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict, TypeVar, cast, get_args, get_type_hints

from ramrs import _native
from ramrs.errors import ConfigError, keyword, spell

__all__ = [
    "AnalyzeOptions",
    "EvalOptions",
    "FinishOptions",
    "InspectOptions",
    "Option",
    "PlanOptions",
    "ProbeOptions",
    "QuantizeOptions",
    "ResourceOptions",
    "VerifyOptions",
]

PathLike = str | Path
Effort = Literal["fast", "normal", "high"]
Objective = Literal["output", "mse", "mint"]
Prior = Literal["roles", "none"]
ProbeMode = Literal["auto", "random", "self"]
EvalRuntime = Literal["mlx", "mlx-float32"]
VerifyRuntime = Literal["mlx", "transformers", "llama.cpp"]
Rules = Mapping[str, str] | str | Sequence[str]

DEFAULTS: Mapping[str, Any] = json.loads(_native.defaults())
"""The core's requests with every option at its default."""

FORMATS: Mapping[str, Mapping[str, Any]] = {facts["name"]: facts for facts in DEFAULTS["formats"]}
"""The output formats: for each, the runtimes that read it, and the default size of groups."""


def _by_format(fact: Callable[[Mapping[str, Any]], Any]) -> str:
    """Tell a fact of each format, for help."""
    return ", ".join(f"{name}: {fact(facts)}" for name, facts in FORMATS.items())


#: Where the sections of :attr:`Option.at` are in the core's requests.
_SECTIONS: dict[str, tuple[str, ...]] = {
    "analysis": ("analyze",),
    "eval": ("eval",),
    "plan": ("quantize", "plan"),
    "probe": ("probe",),
    "quantize": ("quantize",),
    "resources": ("analyze", "resources"),
    "verify": ("verify",),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """What the fronts must know of an option, besides its name and type."""

    help: str
    """A sentence for docstrings and ``--help``. Other options are in it as marks: ``⟨bits⟩``."""
    at: str | None = None
    """Its place in a request: a section, and the path in it. ``None`` if the API makes something else of it."""
    default: Any = None
    """Its default, if it has no place in a request."""
    json: Callable[[Any], Any] | None = None
    """Makes its JSON form; by default that is the value, or the text of a path."""
    flags: tuple[str, ...] = ()
    """Further spellings on the command line."""
    cli: Any = None
    """Its type on the command line, if not that of the API."""
    least: int | None = None
    """The least number that the command line takes."""
    metavar: str | None = None
    """What the command line's help calls its value."""
    hidden: bool = False
    """Whether the command line's help leaves it out."""
    answered_by: tuple[Literal["plan", "analysis"], ...] = ()
    """The saved documents that hold its value: given with one of them, the option is refused."""


def _texts(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _rules(value: Rules) -> list[str]:
    return [f"{regex}={spec}" for regex, spec in value.items()] if isinstance(value, Mapping) else _texts(value)


def _seed(option: str) -> Callable[[int], int]:
    """Make the check of a seed."""

    def checked(value: int) -> int:
        if not 0 <= value < 2**32:
            raise ConfigError(f"⟨{option}⟩ `{value}`: not between 0 and {2**32 - 1}", slug="bad-option")
        return value

    return checked


_BOTH: Any = ("plan", "analysis")


class ResourceOptions(TypedDict, total=False):
    """What a job may use. None of it changes a byte of any output."""

    threads: Annotated[
        int | None,
        Option(
            help="Number of threads. Default: all that the process may use.",
            at="resources.threads",
            flags=("-j",),
            least=1,
        ),
    ]
    max_memory: Annotated[
        str | None,
        Option(
            help="Memory that the job may take (2GB, 900MiB). A job that needs more is refused at the start.",
            at="resources.max_memory",
        ),
    ]
    chunk_bytes: Annotated[
        int,
        Option(help="Bytes of source that a thread reads at a time.", at="resources.chunk_bytes", least=1, hidden=True),
    ]
    record_seconds: Annotated[
        float,
        Option(
            help="Seconds of work that a kill may cost: how often finished work is recorded.",
            at="resources.record_seconds",
            hidden=True,
        ),
    ]
    simd: Annotated[
        bool,
        Option(
            help="Use the CPU's vector instructions. The results are the same without.",
            at="resources.simd",
            hidden=True,
        ),
    ]


class InspectOptions(TypedDict, total=False):
    """The target of a conversion."""

    format: Annotated[
        str,
        Option(
            help=f"Output format: {', '.join(FORMATS)}. auto: gguf for a GGUF file, else mlx. Its schemes are the "
            "candidates.",
            at="analysis.format",
            answered_by=_BOTH,
        ),
    ]
    target: Annotated[
        str | None,
        Option(
            help="Runtime that the output is for. "
            + " ".join(f"{name}: {', '.join(f['targets'])}." for name, f in FORMATS.items() if f["targets"])
            + " Default: the first.",
            at="analysis.target",
            answered_by=_BOTH,
        ),
    ]
    tensor_parallel: Annotated[
        int,
        Option(
            help="Number of devices that the runtime divides each layer among: every division is checked.",
            at="analysis.tensor_parallel",
            least=1,
            answered_by=_BOTH,
        ),
    ]
    header: Annotated[
        PathLike | None,
        Option(
            help="For GGUF of a release: a file with the hyperparameters and the tokenizer as key-values. llama.cpp's "
            "`convert_hf_to_gguf.py --vocab-only` writes it.",
            at="analysis.header",
            cli=Path | None,
        ),
    ]
    converter: Annotated[
        PathLike | None,
        Option(
            help="Instead of ⟨header⟩: llama.cpp's convert_hf_to_gguf.py, which is run to make one.",
            cli=Path | None,
            answered_by=_BOTH,
        ),
    ]
    generic: Annotated[
        bool,
        Option(
            help="Keep the names of the tensors, whatever the model is. No runtime is promised.",
            at="analysis.generic",
            answered_by=_BOTH,
        ),
    ]


class _AnalysisOptions(InspectOptions, total=False):
    """What decides the rate–distortion curves."""

    strict: Annotated[
        bool,
        Option(help="Refuse tensors with unknown names. Default: treat them by shape, and warn.", at="analysis.strict"),
    ]
    effort: Annotated[
        Effort,
        Option(
            help="Encoder. fast: the format's own rule. normal: search scale and bias of each group. high: feed errors "
            "back, under the covariance of each layer's inputs in text that the model writes; takes minutes more.",
            at="analysis.effort",
            answered_by=_BOTH,
        ),
    ]
    objective: Annotated[
        Objective,
        Option(
            help="Quantity to minimize. output: the model's loss, by its sensitivity. mse: squared error. mint: the "
            "published MINT objective. The last two are for comparison.",
            at="analysis.objective",
            answered_by=_BOTH,
        ),
    ]
    sensitivity: Annotated[
        PathLike,
        Option(
            help="Source of the sensitivity. probe: run the model on tokens of its own. weights: do not run it. auto: "
            "probe if ramrs can run the model. Otherwise the path of a sensitivity file.",
            at="analysis.sensitivity",
            cli=str,
            answered_by=("analysis",),
        ),
    ]
    probe_tokens: Annotated[
        int, Option(help="Number of tokens to probe with.", at="analysis.probe.tokens", least=1, answered_by=_BOTH)
    ]
    probe_mode: Annotated[
        ProbeMode,
        Option(
            help="Source of the probe's tokens. self: the model generates them. random: uniform over the vocabulary. "
            "auto: self for models up to 16 GiB.",
            at="analysis.probe.mode",
            answered_by=_BOTH,
        ),
    ]
    probe_seed: Annotated[
        int,
        Option(
            help="Seed of the probe's tokens. Two seeds show how much of a result is due to the choice of tokens.",
            at="analysis.probe.seed",
            json=_seed("probe_seed"),
            least=0,
            answered_by=_BOTH,
        ),
    ]
    prior: Annotated[
        Prior,
        Option(
            help="Gain of a matrix where the sensitivity has none of its own: by role, or none.",
            at="analysis.prior",
            answered_by=_BOTH,
        ),
    ]
    sample_bands: Annotated[
        int,
        Option(
            help="Least number of bands of 8 rows to sample of each matrix for its curve. 0: all.",
            at="analysis.sample_bands",
            least=0,
            answered_by=("analysis",),
        ),
    ]


class AnalyzeOptions(_AnalysisOptions, ResourceOptions, total=False):
    """The options of :func:`ramrs.analyze`."""


class _ProbeOptions(TypedDict, total=False):
    """How a model is probed, and the form of the output."""

    format: Annotated[
        Literal["ramrs", "imatrix"],
        Option(
            help="Form of the output. ramrs: a file for ⟨sensitivity⟩. imatrix: an importance matrix for "
            "llama-quantize --imatrix.",
            at="probe.format",
        ),
    ]
    tokens: Annotated[
        int,
        Option(help="Number of tokens, in windows of 64.", at="probe.probe.tokens", flags=("--probe-tokens",), least=1),
    ]
    mode: Annotated[
        ProbeMode,
        Option(
            help="Source of the tokens. self: the model generates them. random: uniform over the vocabulary. auto: "
            "self for models up to 16 GiB.",
            at="probe.probe.mode",
            flags=("--probe-mode",),
        ),
    ]
    seed: Annotated[
        int,
        Option(
            help="Seed of the tokens.",
            at="probe.probe.seed",
            json=_seed("seed"),
            flags=("--probe-seed",),
            least=0,
        ),
    ]
    trace: Annotated[
        PathLike | None,
        Option(
            help="Safetensors file for the tokens, the logits and their gradients, to compare with another runtime.",
            at="probe.trace",
            cli=Path | None,
            hidden=True,
        ),
    ]


class ProbeOptions(_ProbeOptions, ResourceOptions, total=False):
    """The options of :func:`ramrs.probe`."""


class _PlanOptions(TypedDict, total=False):
    """The target of a plan, and its limits."""

    budget: Annotated[
        float | str | None,
        Option(
            help="Size of the output: bits per weight, everything counted (4.0), a file size (24GB, 24GiB), or a share "
            "of the source (30%).",
            at="plan.budget",
            json=lambda value: None if value is None else str(value),
            flags=("-b", "--target-bpw", "--target-size"),
            cli=list[str] | None,
            answered_by=("plan",),
        ),
    ]
    bits: Annotated[
        int | None,
        Option(
            help="Instead of ⟨budget⟩: one scheme for all matrices, with codes of this many bits.",
            flags=("--q-bits",),
            answered_by=("plan",),
        ),
    ]
    group_size: Annotated[
        int | None,
        Option(
            help="With ⟨bits⟩: the weights in a group. -1: one group for each output channel, where formats have that. "
            f"Default: {_by_format(lambda facts: facts['group_size'])}.",
            flags=("--q-group-size",),
            answered_by=("plan",),
        ),
    ]
    min_bits: Annotated[
        int | None,
        Option(
            help="Fewest bits of a code in any matrix. 2 turns off the signal-to-noise floor on 2-bit codes.",
            at="plan.policy.min_bits",
            answered_by=("plan",),
        ),
    ]
    max_bits: Annotated[
        int | None,
        Option(
            help="Most bits of a code in any matrix. No matrix is kept unquantized.",
            at="plan.policy.max_bits",
            answered_by=("plan",),
        ),
    ]
    floor_db: Annotated[
        float | None,
        Option(
            help="Signal-to-noise ratio below which 2-bit codes are ruled out, in decibels. Default: "
            f"{DEFAULTS['floor_db']:g}.",
            at="plan.policy.floor_db",
            answered_by=("plan",),
        ),
    ]
    keep: Annotated[
        str | Sequence[str],
        Option(
            help="Regular expression of tensors to keep unquantized. May be given several times.",
            at="plan.policy.keep",
            json=_texts,
            flags=("--ignore",),
            cli=list[str],
            answered_by=("plan",),
        ),
    ]
    tensor: Annotated[
        Rules,
        Option(
            help="Rule for the tensors that match a regular expression, REGEX=SPEC. SPEC is kept, 4, 4g64, 4channel or "
            "3-6. The last rule that matches counts. May be given several times.",
            at="plan.policy.tensor",
            json=_rules,
            cli=list[str],
            metavar="REGEX=SPEC",
            answered_by=("plan",),
        ),
    ]
    schemes: Annotated[
        str | Sequence[str],
        Option(
            help="Regular expression of the schemes to use, by their whole names: 4g.* or int[48].*. Default: all. May "
            "be given several times.",
            at="plan.policy.schemes",
            json=_texts,
            cli=list[str],
            answered_by=("plan",),
        ),
    ]
    shard_bytes: Annotated[int, Option(help="Bytes of tensor data in a file, at most.", at="plan.shard_bytes", least=1)]


class PlanOptions(_PlanOptions, _AnalysisOptions, ResourceOptions, total=False):
    """The options of :func:`ramrs.plan`."""


class _WriteOptions(TypedDict, total=False):
    """How an output is written."""

    overwrite: Annotated[
        bool,
        Option(
            help="Replace the output, once the new one is complete, and what another job has left of one.",
            at="quantize.overwrite",
        ),
    ]
    part: Annotated[
        str | None,
        Option(
            help="Do a part of a ⟨plan⟩, as 3/16: the third of sixteen, on any machine that has source and output. "
            "When all are done, `ramrs finish OUTPUT` makes the output.",
            at="quantize.part",
            metavar="K/N",
        ),
    ]
    dry_run: Annotated[bool, Option(help="Plan, and write nothing.", at="quantize.dry_run")]
    check: Annotated[
        bool | None,
        Option(
            help="Run source and output at the end, report the measured divergence, and fail if the output is not the "
            "model. Default: if the job ran the probe, which costs more.",
            at="quantize.check",
        ),
    ]


class QuantizeOptions(_PlanOptions, _WriteOptions, _AnalysisOptions, ResourceOptions, total=False):
    """The options of :func:`ramrs.quantize`, except for the documents that it takes."""


class _VerifyOptions(TypedDict, total=False):
    """What an output is compared with."""

    source: Annotated[
        PathLike | None,
        Option(
            help="Checkpoint that the output was made of. Its errors are measured again, and must be those of the "
            "manifest, exactly.",
            at="verify.source",
            cli=Path | None,
        ),
    ]
    recompute: Annotated[
        bool,
        Option(
            help="Encode the ⟨source⟩ again as the manifest says, and compare every byte of the output.",
            at="verify.recompute",
        ),
    ]
    sample: Annotated[
        str | None,
        Option(
            help="With ⟨recompute⟩: the share of the matrices to encode again (1%). Default: all.",
            at="verify.sample",
            metavar="SHARE",
        ),
    ]
    sensitivity: Annotated[
        PathLike | None,
        Option(
            help="With ⟨recompute⟩: the sensitivity file that the output was made with, if it was made with one.",
            at="verify.sensitivity",
            cli=Path | None,
        ),
    ]
    runtime: Annotated[
        VerifyRuntime | None,
        Option(
            help="Load the output in a runtime, strictly, and run a few tokens in float32 on the CPU. The logits must "
            "be those of ramrs.",
        ),
    ]


class FinishOptions(ResourceOptions, total=False):
    """The options of :func:`ramrs.finish`."""


class VerifyOptions(_VerifyOptions, ResourceOptions, total=False):
    """The options of :func:`ramrs.verify`."""


class _EvalOptions(TypedDict, total=False):
    """What models are compared on, and by what."""

    text: Annotated[
        PathLike | None,
        Option(
            help="File of plain text, in the reference's own tokens. Default: the reference writes tokens itself.",
            cli=Path | None,
        ),
    ]
    tokens: Annotated[
        PathLike | None, Option(help="NumPy file (.npy) of token ids, instead of ⟨text⟩.", cli=Path | None)
    ]
    window: Annotated[
        int | None,
        Option(help="Tokens in a window, BOS included. Default: 256.", at="eval.window", least=2),
    ]
    max_tokens: Annotated[
        int | None,
        Option(
            help="Number of tokens, at most. Default: all of the text, or 1024 of the reference's own.",
            at="eval.max_tokens",
            least=1,
        ),
    ]
    bos: Annotated[
        int | Literal["auto", "none"],
        Option(
            help="First token of every window: an id, auto for the tokenizer's own, or none.", at="eval.bos", cli=str
        ),
    ]
    max_kl: Annotated[
        float | None,
        Option(help="Fail if the mean KL divergence is above this, in nats per token."),
    ]
    min_agreement: Annotated[
        float | None,
        Option(help="Fail if the top-1 agreement is below this share, such as 0.95."),
    ]
    runtime: Annotated[
        EvalRuntime | bool | None,
        Option(
            help="Let mlx-lm run the models: with its own kernels (mlx), or in float32 on decoded weights "
            "(mlx-float32). Default: ramrs runs them, in float32.",
            cli=EvalRuntime | None,
        ),
    ]


class EvalOptions(_EvalOptions, ResourceOptions, total=False):
    """The options of :func:`ramrs.eval`."""


class Field(NamedTuple):
    """An option of a verb."""

    name: str
    type: Any
    option: Option

    @property
    def default(self) -> Any:  # noqa: ANN401
        """The value that the core, or the API, gives it."""
        if self.option.at is None:
            return self.option.default
        section, *path = self.option.at.split(".")
        found: Any = DEFAULTS
        for key in (*_SECTIONS[section], *path):
            found = found[key]
        return tuple(found) if isinstance(found, list) else found


def fields(kind: type) -> Iterator[Field]:
    """List the options of a verb."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        plain, option = get_args(hint)
        yield Field(name, plain, option)


Options = TypeVar("Options", bound=Mapping[str, Any])
Verb = TypeVar("Verb", bound=Callable[..., Any])


def resolve(kind: type[Options], verb: str, given: Options) -> Options:
    """Add the defaults of the options that are not given.

    Raises:
        TypeError: The verb has no such option.
    """
    defaults = {field.name: field.default for field in fields(kind)}
    for name in given:
        if name not in defaults:
            raise TypeError(f"{verb}() got an unexpected keyword argument '{name}'")
    return cast("Options", {**defaults, **given})


def section(kind: type, options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Make the section ``name`` of a request from resolved options."""
    made: dict[str, Any] = {}
    for field in fields(kind):
        if field.option.at is None or not field.option.at.startswith(f"{name}."):
            continue
        *above, last = field.option.at.split(".")[1:]
        place = made
        for key in above:
            place = place.setdefault(key, {})
        value = options[field.name]
        make = field.option.json or (lambda value: str(value) if isinstance(value, Path) else value)
        place[last] = make(value)
    return made


def accepts(kind: type) -> Callable[[Verb], Verb]:
    """Give a function that takes ``**options`` of ``kind`` their signature, and list them in its docstring."""

    def described(verb: Verb) -> Verb:
        signature = inspect.signature(verb)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        more = [
            inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type)
            for each in fields(kind)
        ]
        verb.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        lines = []
        for line in (verb.__doc__ or "").splitlines():
            lines.append(line)
            if line.lstrip().startswith("**options:"):
                indent = " " * (len(line) - len(line.lstrip()) + 4)
                lines += [f"{indent}{each.name}: {spell(each.option.help, keyword)}" for each in fields(kind)]
        verb.__doc__ = "\n".join(lines)
        return verb

    return described

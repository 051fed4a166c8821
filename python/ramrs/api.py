"""The verbs as functions.

Every option is a keyword, and means what the command line's option of the same name means. :mod:`ramrs.options` defines
them. A ``progress=`` callback gets a :class:`~ramrs.types.Progress` about twenty times a second, from the calling
thread. An exception that it raises stops the job, and so does Ctrl-C. What a stopped :func:`quantize` has finished
stays in ``<output>.partial``: the same call continues it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from ramrs import _native, formats, runtimes
from ramrs import options as opts
from ramrs._core import Callback, call
from ramrs.errors import KEPT, ConfigError, RamrsError, renamed
from ramrs.formats import gguf
from ramrs.options import (
    AnalyzeOptions,
    EvalOptions,
    FinishOptions,
    InspectOptions,
    PathLike,
    PlanOptions,
    ProbeOptions,
    QuantizeOptions,
    VerifyOptions,
)
from ramrs.types import Analysis, Evaluation, Inspection, Plan, ProbeReport, Problem, QuantizeReport, VerifyReport

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["analyze", "eval", "finish", "inspect", "plan", "probe", "quantize", "verify", "weights"]


@opts.accepts(InspectOptions)
def inspect(model: PathLike, **options: Unpack[InspectOptions]) -> Inspection:
    """Look at a checkpoint: roles, dtypes, shapes, sizes, and which tensors can be quantized. Reads headers only.

    Args:
        model: Directory of a checkpoint, or a single ``.safetensors`` file.
        **options: Those of :class:`~ramrs.options.InspectOptions`:

    Raises:
        CheckpointError: The checkpoint is not sound.
    """
    given = opts.resolve(InspectOptions, "inspect", options)
    with _headed(model, opts.section(InspectOptions, given, "analysis"), given) as analysis:
        return call("inspect", {"model": str(model), **analysis}, Inspection)


@opts.accepts(AnalyzeOptions)
def analyze(
    model: PathLike,
    output: PathLike | None = None,
    *,
    progress: Callback | None = None,
    **options: Unpack[AnalyzeOptions],
) -> Analysis:
    """Measure the loss of every scheme on every matrix: one streamed pass, good for any budget.

    With an ``output``, a stopped analysis is continued by the same call, and the sensitivity is kept beside it, in a
    file of the same name that ends in ``.sensitivity``: :func:`quantize` with the analysis' path, or with that of a
    plan in the same directory, measures nothing again.

    Args:
        model: Directory of a checkpoint.
        output: File to write; without it, only the analysis is returned.
        progress: Called with the state of the job.
        **options: Those of :class:`~ramrs.options.AnalyzeOptions`:

    Raises:
        CheckpointError: The checkpoint is not sound, or has no layout in the format.
        TensorError: A weight is not a finite number, or the sensitivity does not fit.
    """
    given = opts.resolve(AnalyzeOptions, "analyze", options)
    with _headed(model, _analysis(AnalyzeOptions, model, given), given) as source:
        if output is None:
            return call("analyze", {"model": source}, Analysis, progress)
        with _kept(Path(output)):
            return call("analyze", {"model": source, "output": str(output)}, Analysis, progress)


@opts.accepts(ProbeOptions)
def probe(
    model: PathLike,
    output: PathLike | None = None,
    *,
    progress: Callback | None = None,
    **options: Unpack[ProbeOptions],
) -> ProbeReport:
    """Run a model on tokens of its own vocabulary, forward and back, and write where its weights are sensitive.

    No text is needed. :func:`quantize` and :func:`analyze` do the same by themselves, unless they are given the file.

    Args:
        model: Directory of a checkpoint.
        output: File to write; without it, only the report is returned.
        progress: Called with the state of the job.
        **options: Those of :class:`~ramrs.options.ProbeOptions`:

    Raises:
        CheckpointError: The checkpoint is not sound, or its model is not one that the probe can run.
        TensorError: A weight is not a finite number.
    """
    given = opts.resolve(ProbeOptions, "probe", options)
    request = {
        "model": str(model),
        "output": None if output is None else str(output),
        **opts.section(ProbeOptions, given, "probe"),
        "resources": opts.section(ProbeOptions, given, "resources"),
    }
    try:
        return call("probe", request, ProbeReport, progress)
    except ConfigError as fault:
        raise renamed(fault, {"probe_tokens": "tokens"}) from None


@opts.accepts(PlanOptions)
def plan(model: PathLike | Analysis, *, progress: Callback | None = None, **options: Unpack[PlanOptions]) -> Plan:
    """Choose a scheme for every tensor; nothing is written.

    Args:
        model: Directory of a checkpoint, an analysis, or the path of one. An analysis has answered the options that it
            was made with; they are refused.
        progress: Called with the state of the job.
        **options: Those of :class:`~ramrs.options.PlanOptions`:

    Raises:
        BudgetError: The budget is below the smallest possible size.
        ConfigError: The budget, a limit or a rule is not valid.
    """
    given = opts.resolve(PlanOptions, "plan", options)
    request = _plan(PlanOptions, given)
    if isinstance(model, Analysis) or (Path(model).is_file() and Path(model).suffix == ".json"):
        _refuse(PlanOptions, given, "analysis")
        request["analysis"] = _saved(model)
        return call("plan", request, Plan, progress)
    with _headed(model, _analysis(PlanOptions, model, given), given) as analysis:
        return call("plan", request | {"model": analysis}, Plan, progress)


@opts.accepts(QuantizeOptions)
def quantize(
    model: PathLike,
    output: PathLike | None = None,
    *,
    plan: PathLike | Plan | None = None,
    analysis: PathLike | Analysis | None = None,
    progress: Callback | None = None,
    **options: Unpack[QuantizeOptions],
) -> QuantizeReport:
    """Quantize a checkpoint to a budget, into a directory or a GGUF file that the runtime loads as it is.

    A stopped job leaves what it has finished in ``<output>.partial``, and the same call continues from there, to the
    same bytes. :func:`~ramrs.quantize_sizes` makes several sizes of a model.

    mlx-lm lays out models that ramrs has no layout for, if the extra ``ramrs[mlx]`` is installed. Rules then go by
    mlx-lm's names, and the directory ``<output>.layout`` holds the unquantized weights while the job runs.

    Args:
        model: Directory of a checkpoint, or a GGUF file.
        output: Directory to write, or the name of a GGUF file; ``<model>-ramrs-<budget>`` in the working directory, if
            not given.
        plan: A plan, or the path of one, instead of a budget. It has answered the options that it was made with; they
            are refused.
        analysis: A saved analysis of the same checkpoint with the same options, to save its work.
        progress: Called with the state of the job.
        **options: Those of :class:`~ramrs.options.QuantizeOptions`:

    Raises:
        BudgetError: The budget is below the smallest possible size.
        CheckpointError: The checkpoint is not sound, or has no layout in the format.
        ConfigError: An option is not valid, the output exists, or a saved plan or analysis is of something else.
        OSError: The operating system refused, or the disk is full.
        TensorError: A weight is not a finite number.
    """
    given = opts.resolve(QuantizeOptions, "quantize", options)
    if plan is not None:
        _refuse(QuantizeOptions, given, "plan")
        if analysis is not None:
            raise ConfigError("⟨analysis⟩: a saved plan has its own", slug="bad-option")
    with _headed(model, _analysis(QuantizeOptions, model, given), given) as source:
        planned = _plan(QuantizeOptions, given) | {"model": source}
        if analysis is not None:
            planned["analysis"] = _saved(analysis)
        path = default_output(model, given, plan) if output is None else Path(output)
        request = {
            **opts.section(QuantizeOptions, given, "quantize"),
            "plan": planned,
            "saved_plan": None if plan is None else _saved(plan),
            "output": str(path),
        }
        with _kept(path):
            return formats.quantize(request, progress)


@opts.accepts(FinishOptions)
def finish(output: PathLike, *, progress: Callback | None = None, **options: Unpack[FinishOptions]) -> QuantizeReport:
    """Make the output of a job that was done in parts: fold what they recorded, verify it, and give it its name.

    Args:
        output: The output that all parts were given.
        progress: Called with the state of the job.
        **options: Those of :class:`~ramrs.options.FinishOptions`:

    Raises:
        ConfigError: A part is not done, or is at work.
        OSError: The operating system refused, or the disk is full.
    """
    given = opts.resolve(FinishOptions, "finish", options)
    request = {"output": str(output), "resources": opts.section(FinishOptions, given, "resources")}
    with _kept(Path(output)):
        return call("finish", request, QuantizeReport, progress)


@opts.accepts(VerifyOptions)
def verify(output: PathLike, *, progress: Callback | None = None, **options: Unpack[VerifyOptions]) -> VerifyReport:
    """Check an output against its manifest: digests, decoding, and with a ``source`` the error of every tensor.

    Args:
        output: Directory that ramrs wrote.
        progress: Called with the state of the job.
        **options: Those of :class:`~ramrs.options.VerifyOptions`:

    Returns:
        The report; ``ok`` says whether the output is what the manifest says, and loads and computes the same in the
        ``runtime``, if one is asked for.

    Raises:
        ConfigError: The runtime is not installed, or does not read the output's format.
    """
    given = opts.resolve(VerifyOptions, "verify", options)
    name = given["runtime"]
    # Said before the work.
    runtime = None if name is None else runtimes.find(name, Path(output))
    request = {
        "output": str(output),
        **opts.section(VerifyOptions, given, "verify"),
        "resources": opts.section(VerifyOptions, given, "resources"),
    }
    report = formats.verify(request, progress)
    if name is None or runtime is None or not report.ok:
        return report
    found = runtimes.check(name, runtime, Path(output))
    problems = [Problem(name, None, what) for what in found.problems]
    return replace(report, ok=not problems, problems=(*report.problems, *problems), runtime=found)


@overload
def eval(  # noqa: A001
    output: PathLike, *, reference: PathLike, progress: Callback | None = None, **options: Unpack[EvalOptions]
) -> Evaluation: ...


@overload
def eval(  # noqa: A001
    output: list[PathLike] | tuple[PathLike, ...],
    *,
    reference: PathLike,
    progress: Callback | None = None,
    **options: Unpack[EvalOptions],
) -> tuple[Evaluation, ...]: ...


@opts.accepts(EvalOptions)
def eval(  # noqa: A001
    output: PathLike | list[PathLike] | tuple[PathLike, ...],
    *,
    reference: PathLike,
    progress: Callback | None = None,
    **options: Unpack[EvalOptions],
) -> Evaluation | tuple[Evaluation, ...]:
    """Measure how far models are from their reference, by running all of them on the same tokens.

    Without a text the reference writes the tokens itself, so that nothing but the two checkpoints is needed.

    Args:
        output: Directory of an output, or of any checkpoint in a format that ramrs writes; or several.
        reference: Directory of the original model. It is run once for all outputs.
        progress: Called with the state of the job.
        **options: Those of :class:`~ramrs.options.EvalOptions`:

    Returns:
        KL divergence per token in nats (mean, median, 99th percentile), perplexities, top-1 agreement, each with its
        standard error; one report for each output. ``ok`` says whether it keeps the limits ``max_kl`` and
        ``min_agreement``.

    Raises:
        CheckpointError: A checkpoint is not sound, its model is not one that ramrs runs, or has another vocabulary.
        ConfigError: An option is not valid, or an extra that it needs is not installed.
    """
    from ramrs.evaluation import evaluate

    given = opts.resolve(EvalOptions, "eval", options)
    if isinstance(output, list | tuple):
        return evaluate([Path(each) for each in output], Path(reference), given, progress)
    return evaluate([Path(output)], Path(reference), given, progress)[0]


def weights(model: PathLike, tensor: str) -> npt.NDArray[np.float32]:
    """Return a tensor of a checkpoint as float32, in the shape and order in which it is stored.

    A weight that is stored as codes and scales is decoded: :func:`quantize` measures its errors against these numbers.
    FP8 and INT4 decode to products of code and scale, rounded once to 16 bits.

    Args:
        model: Directory of a checkpoint, or a single ``.safetensors`` file.
        tensor: Its name: in an output of ramrs that of the weight (``….weight``), in a packed release that of the codes
            (``…_blocks``, ``…weight_packed``).

    Raises:
        ConfigError: No weight has that name.
        TensorError: It holds non-finite values.
        CheckpointError: It cannot be decoded.
    """
    import numpy as np

    shape, data = _native.weights(str(model), tensor)
    return np.frombuffer(data, "<f4").reshape(shape)


def spelled(budget: float | str | None) -> str:
    """Spell a budget as a part of a name."""
    return str(budget).strip().replace(" ", "").replace("%", "pct").replace("/", "-")


def default_output(model: PathLike, given: QuantizeOptions, plan: PathLike | Plan | None) -> Path:
    """Name the output directory where the user did not."""
    uniform = _uniform(given)
    if plan is not None:
        what = "plan" if isinstance(plan, Plan) else Path(plan).stem
    elif uniform is not None:
        facts = opts.FORMATS.get("mlx" if given["format"] == "auto" else given["format"])
        what = f"{uniform}g{facts['group_size']}" if facts and uniform.isdigit() else uniform
    else:
        what = spelled(given["budget"])
        what = f"{what}bpw" if what.replace(".", "", 1).isdigit() else what
    path = Path(model).resolve()
    if given["format"] == "gguf" or (given["format"] == "auto" and (path.suffix == ".gguf" or given["header"])):
        return Path(f"{path.name.removesuffix('.gguf')}-ramrs-{what}.gguf")
    return Path(f"{path.name}-ramrs-{what}")


@contextlib.contextmanager
def _kept(output: Path) -> Iterator[None]:
    """Have an exception that stops a job say where its finished work is."""
    try:
        yield
    except RamrsError:
        raise
    except BaseException as fault:
        partial = output.with_name(f"{output.name}.partial")
        if partial.exists():
            fault.add_note(f"{partial} {KEPT}")
        raise


def _analysis(kind: type, model: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """Make the request for an analysis."""
    return {
        "model": str(model),
        **opts.section(kind, given, "analysis"),
        "resources": opts.section(kind, given, "resources"),
    }


def _headed(
    model: PathLike | Analysis, analysis: dict[str, Any], given: Mapping[str, Any]
) -> AbstractContextManager[dict[str, Any]]:
    """Return a context with the request for an analysis, with a header that a converter makes if one is given."""
    converter = given["converter"]
    return gguf.with_header(str(model), analysis, None if converter is None else Path(converter))


def _plan(kind: type, given: PlanOptions) -> dict[str, Any]:
    """Make the request for a plan, without the model."""
    return {**opts.section(kind, given, "plan"), "uniform": _uniform(given)}


def _uniform(given: PlanOptions) -> str | None:
    """Return the one scheme for all matrices, if that is asked for."""
    bits, group_size = given["bits"], given["group_size"]
    if bits is None:
        if group_size is not None:
            raise ConfigError("⟨group_size⟩: goes with ⟨bits⟩, not with a budget", slug="bad-option")
        return None
    if group_size is None:
        return str(bits)
    return f"{bits}channel" if group_size == -1 else f"{bits}g{group_size}"


def _refuse(kind: type, given: Mapping[str, Any], by: Literal["plan", "analysis"]) -> None:
    """Refuse options that a saved document has answered, and that would be ignored."""
    for field in sorted(opts.fields(kind)):
        if by in field.option.answered_by and given[field.name] != field.default:
            raise ConfigError(f"⟨{field.name}⟩: a saved {by} has its own", slug="bad-option")


def _saved(document: PathLike | Plan | Analysis) -> str | Plan | Analysis:
    """Return a document as a request holds it: its path, or itself."""
    return document if isinstance(document, Plan | Analysis) else str(document)

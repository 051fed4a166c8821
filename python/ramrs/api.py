"""The verbs as functions.

Every option is a keyword, and means what the command line's option of the same name means. A ``progress=`` callback
gets a :class:`~ramrs.documents.Progress` about twenty times a second, from the calling thread; an exception that it
raises stops the job. Ctrl-C stops a job, too, and leaves nothing behind.
"""

from __future__ import annotations

import inspect as inspect_module
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ramrs import _native
from ramrs.documents import Analysis, Inspection, Plan, ProbeReport, Progress, QuantizeReport, VerifyReport
from ramrs.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ramrs.evaluation import Evaluation

__all__ = ["analyze", "eval", "inspect", "plan", "probe", "quantize", "verify", "weights"]

PathLike = str | Path
Callback = Callable[[Progress], object]
Effort = Literal["fast", "normal"]
Objective = Literal["output", "mse", "mint"]
Prior = Literal["roles", "none"]
ProbeMode = Literal["auto", "random", "self"]
Rules = Mapping[str, str] | str | Sequence[str]

CHUNK_BYTES = 1 << 20
SHARD_BYTES = 5 << 30
SAMPLE_BANDS = 64
PROBE_TOKENS = 512
GROUP_SIZE = 64

#: Options that a saved plan, and a saved analysis, has answered already.
_PLANNED = {"budget", "bits", "group_size", "analysis", "min_bits", "max_bits", "floor_db", "keep", "tensor"}
_ANALYZED = {
    "format",
    "generic",
    "effort",
    "objective",
    "sensitivity",
    "probe_tokens",
    "probe_mode",
    "prior",
    "sample_bands",
}


def inspect(model: PathLike, *, format: str = "mlx", generic: bool = False) -> Inspection:  # noqa: A002
    """Look at a checkpoint: roles, dtypes, shapes, sizes, and what could be quantized. Reads headers only.

    Args:
        model: Directory of a checkpoint, or a single ``.safetensors`` file.
        format: Output format that it is looked at for.
        generic: Leave names alone, whatever the model is.

    Raises:
        CheckpointError: The checkpoint is not sound.
    """
    return Inspection.from_dict(_call("inspect", {"model": str(model), "format": format, "generic": generic}, None))


def analyze(
    model: PathLike,
    *,
    format: str = "mlx",  # noqa: A002
    generic: bool = False,
    strict: bool = False,
    effort: Effort = "normal",
    objective: Objective = "output",
    sensitivity: PathLike = "auto",
    probe_tokens: int = PROBE_TOKENS,
    probe_mode: ProbeMode = "auto",
    prior: Prior = "roles",
    sample_bands: int = SAMPLE_BANDS,
    threads: int | None = None,
    max_memory: str | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    simd: bool = True,
    progress: Callback | None = None,
) -> Analysis:
    """Measure what every scheme would do to every matrix: one streamed pass, good for any budget.

    Args:
        model: Directory of a checkpoint.
        format: Output format; its schemes are the candidates.
        generic: Leave names alone, whatever the model is.
        strict: Refuse tensors whose names say nothing, which otherwise are treated by their shape, with a warning.
        effort: The encoder: ``fast`` is the format's own rule, ``normal`` searches scale and bias of each group.
        objective: What is minimised: ``output`` the model's loss by its sensitivity, ``mse`` squared error, ``mint``
            the published MINT objective.
        sensitivity: Where it is from: ``probe`` runs the model on tokens of its own, ``weights`` does not run it,
            ``auto`` probes the models that can be, and a path is that of a sensitivity file.
        probe_tokens: Tokens that the probe takes.
        probe_mode: Where they are from: the model itself writes them (``self``), or they are drawn from its vocabulary
            (``random``); ``auto`` lets models of up to 16 GiB write.
        prior: Whether the gain of a matrix follows its role (``roles``) or not (``none``), where the sensitivity has
            no gains of its own.
        sample_bands: Bands of eight rows of each matrix that are encoded; 0 for all.
        threads: Number of threads; all that the process may use, if not given.
        max_memory: How much memory the job may take (``"2GB"``, ``"900MiB"``); refused if it cannot do with that.
        chunk_bytes: Bytes of source that a thread reads at a time.
        simd: Whether to use the CPU's vector instructions; the results are the same.
        progress: Called with the state of the job.

    Raises:
        CheckpointError: The checkpoint is not sound, or has no layout in the format.
        TensorError: A weight is not a finite number, or the sensitivity does not fit.
    """
    request = _analysis(locals())
    return Analysis.from_dict(_call("analyze", request, progress))


def probe(
    model: PathLike,
    output: PathLike | None = None,
    *,
    format: Literal["ramrs", "imatrix"] = "ramrs",  # noqa: A002
    tokens: int = PROBE_TOKENS,
    mode: ProbeMode = "auto",
    trace: PathLike | None = None,
    threads: int | None = None,
    max_memory: str | None = None,
    simd: bool = True,
    progress: Callback | None = None,
) -> ProbeReport:
    """Run a model on tokens of its own vocabulary, forward and back, and write where its weights are sensitive.

    No text is needed. :func:`quantize` and :func:`analyze` do the same by themselves, unless they are given the file.

    Args:
        model: Directory of a checkpoint.
        output: File to write; without it, only the report is returned.
        format: ``ramrs`` for a sensitivity file, ``imatrix`` for an importance matrix that ``llama-quantize`` reads.
        tokens: Tokens that it takes, in windows of 64.
        mode: Where they are from: the model itself writes them (``self``), or they are drawn from its vocabulary
            (``random``); ``auto`` lets models of up to 16 GiB write.
        trace: A safetensors file to write tokens, logits and the gradients there to, to hold against another runtime.
        threads: See :func:`analyze`.
        max_memory: See :func:`analyze`.
        simd: See :func:`analyze`.
        progress: Called with the state of the job.

    Raises:
        CheckpointError: The checkpoint is not sound, or its model is not one that the probe can run.
        TensorError: A weight is not a finite number.
    """
    request = {
        "model": str(model),
        "output": None if output is None else str(output),
        "format": format,
        "probe": {"tokens": tokens, "mode": mode},
        "trace": None if trace is None else str(trace),
        "resources": {"threads": threads, "max_memory": max_memory, "simd": simd},
    }
    return ProbeReport.from_dict(_call("probe", request, progress))


def plan(
    model: PathLike | Analysis,
    *,
    budget: float | str | None = None,
    bits: int | None = None,
    group_size: int | None = None,
    min_bits: int | None = None,
    max_bits: int | None = None,
    floor_db: float | None = None,
    keep: str | Sequence[str] = (),
    tensor: Rules = (),
    shard_bytes: int = SHARD_BYTES,
    format: str = "mlx",  # noqa: A002
    generic: bool = False,
    strict: bool = False,
    effort: Effort = "normal",
    objective: Objective = "output",
    sensitivity: PathLike = "auto",
    probe_tokens: int = PROBE_TOKENS,
    probe_mode: ProbeMode = "auto",
    prior: Prior = "roles",
    sample_bands: int = SAMPLE_BANDS,
    threads: int | None = None,
    max_memory: str | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    simd: bool = True,
    progress: Callback | None = None,
) -> Plan:
    """Choose a scheme for every tensor; nothing is written.

    Args:
        model: Directory of a checkpoint, an analysis, or the path of one.
        budget: Bits per weight of all that is written (``4.0``), size of the files (``"24GB"``, ``"24GiB"``), or their
            share of the source's (``"30%"``).
        bits: In place of a budget, one scheme for all matrices: its bits.
        group_size: And its group size.
        min_bits: No fewer bits for any matrix; 2 lifts the floor.
        max_bits: No more bits for any matrix, and none kept.
        floor_db: Signal-to-noise ratio below which 2-bit codes are ruled out, in decibels.
        keep: Regular expressions of tensors to keep as they are.
        tensor: Rules ``REGEX=SPEC`` (or a mapping of the two), with a spec of ``kept``, ``4``, ``4g64`` or ``3-6``; of
            those that match, the last counts.
        shard_bytes: Tensor data per file.
        format: As for :func:`analyze`, like all that follow, if ``model`` is not an analysis.
        generic: See :func:`analyze`.
        strict: See :func:`analyze`.
        effort: See :func:`analyze`.
        objective: See :func:`analyze`.
        sensitivity: See :func:`analyze`.
        probe_tokens: See :func:`analyze`.
        probe_mode: See :func:`analyze`.
        prior: See :func:`analyze`.
        sample_bands: See :func:`analyze`.
        threads: See :func:`analyze`.
        max_memory: See :func:`analyze`.
        chunk_bytes: See :func:`analyze`.
        simd: See :func:`analyze`.
        progress: Called with the state of the job.

    Raises:
        BudgetError: The budget is below the smallest possible size.
        ConfigError: The budget, a limit or a rule makes no sense.
    """
    options = locals()
    request = _plan(options)
    if isinstance(model, Analysis) or (Path(model).is_file() and Path(model).suffix == ".json"):
        _refuse(options, "plan", _ANALYZED, "a saved analysis")
        request["analysis"] = _saved(model)
    else:
        request["model"] = _analysis(options)
    return Plan.from_dict(_call("plan", request, progress))


def quantize(
    model: PathLike,
    output: PathLike | None = None,
    *,
    budget: float | str | None = None,
    bits: int | None = None,
    group_size: int | None = None,
    plan: PathLike | Plan | None = None,
    analysis: PathLike | Analysis | None = None,
    min_bits: int | None = None,
    max_bits: int | None = None,
    floor_db: float | None = None,
    keep: str | Sequence[str] = (),
    tensor: Rules = (),
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    dry_run: bool = False,
    format: str = "mlx",  # noqa: A002
    generic: bool = False,
    strict: bool = False,
    effort: Effort = "normal",
    objective: Objective = "output",
    sensitivity: PathLike = "auto",
    probe_tokens: int = PROBE_TOKENS,
    probe_mode: ProbeMode = "auto",
    prior: Prior = "roles",
    sample_bands: int = SAMPLE_BANDS,
    threads: int | None = None,
    max_memory: str | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    simd: bool = True,
    progress: Callback | None = None,
) -> QuantizeReport:
    """Quantize a checkpoint to a budget, into a directory that the runtime loads as it is.

    A model type that ramrs has no layout for is laid out by mlx-lm, if the extra ``ramrs[mlx]`` is installed: rules go
    by its names then, and ``<output>.layout`` holds the weights, not quantized, for as long as it takes.

    Args:
        model: Directory of a checkpoint.
        output: Directory to write; ``<model>-ramrs-<budget>`` in the working directory, if not given.
        budget: See :func:`plan`.
        bits: See :func:`plan`.
        group_size: See :func:`plan`.
        plan: A plan, or the path of one, in place of a budget.
        analysis: A saved analysis of the same checkpoint with the same options, to save its work.
        min_bits: See :func:`plan`.
        max_bits: See :func:`plan`.
        floor_db: See :func:`plan`.
        keep: See :func:`plan`.
        tensor: See :func:`plan`.
        shard_bytes: Tensor data per file.
        overwrite: Replace the output, once the new one is complete.
        dry_run: Plan, and write nothing.
        format: See :func:`analyze`.
        generic: See :func:`analyze`.
        strict: See :func:`analyze`.
        effort: See :func:`analyze`.
        objective: See :func:`analyze`.
        sensitivity: See :func:`analyze`.
        probe_tokens: See :func:`analyze`.
        probe_mode: See :func:`analyze`.
        prior: See :func:`analyze`.
        sample_bands: See :func:`analyze`.
        threads: See :func:`analyze`.
        max_memory: See :func:`analyze`.
        chunk_bytes: See :func:`analyze`.
        simd: See :func:`analyze`.
        progress: Called with the state of the job.

    Raises:
        BudgetError: The budget is below the smallest possible size.
        CheckpointError: The checkpoint is not sound, or has no layout in the format.
        ConfigError: An option makes no sense, the output exists, or a saved plan or analysis is of something else.
        OSError: The operating system refused, or the disk is full.
        TensorError: A weight is not a finite number.
    """
    options = locals()
    if plan is not None:
        _refuse(options, "quantize", _PLANNED | _ANALYZED - {"sensitivity", "sample_bands"}, "a saved plan")
    request = _plan(options)
    request["model"] = _analysis(options)
    if analysis is not None:
        request["analysis"] = _saved(analysis)
    saved_plan = None if plan is None else _saved(plan)
    place = str(output if output is not None else default_output(model, budget, bits, group_size, plan))
    whole = {
        "plan": request,
        "saved_plan": saved_plan,
        "output": place,
        "overwrite": overwrite,
        "dry_run": dry_run,
    }
    try:
        return QuantizeReport.from_dict(_call("quantize", whole, progress))
    except CheckpointError as fault:
        # A saved analysis is of the checkpoint as it is.
        if fault.slug != "unknown-model" or analysis is not None:
            raise
        unknown = fault
    from ramrs.mlx_layout import laid_out

    with laid_out(
        Path(model), Path(place), unknown, overwrite=overwrite, dry_run=dry_run, progress=progress
    ) as layout:
        request["model"] |= {"model": str(layout.directory), "generic": True}
        whole["laid_out_by"] = layout.by
        # The last rule that matches counts.
        request["policy"]["tensor"] += layout.kept
        return QuantizeReport.from_dict(_call("quantize", whole, progress))


def verify(
    output: PathLike,
    *,
    source: PathLike | None = None,
    threads: int | None = None,
    max_memory: str | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    simd: bool = True,
    progress: Callback | None = None,
) -> VerifyReport:
    """Check an output against its manifest: digests, decoding, and with a ``source`` the error of every tensor.

    Args:
        output: Directory that ramrs wrote.
        source: The checkpoint it was made of. Errors are measured again, and must be those of the manifest, exactly.
        threads: See :func:`analyze`.
        max_memory: See :func:`analyze`.
        chunk_bytes: See :func:`analyze`.
        simd: See :func:`analyze`.
        progress: Called with the state of the job.

    Returns:
        The report; ``ok`` says whether everything is as it should be.
    """
    request = {
        "output": str(output),
        "source": None if source is None else str(source),
        "resources": {"threads": threads, "max_memory": max_memory, "chunk_bytes": chunk_bytes, "simd": simd},
    }
    return VerifyReport.from_dict(_call("verify", request, progress))


def eval(  # noqa: A001
    output: PathLike,
    *,
    reference: PathLike,
    text: PathLike | None = None,
    tokens: PathLike | None = None,
    window: int = 256,
    max_tokens: int | None = None,
    bos: int | Literal["auto", "none"] = "auto",
    runtime: bool = False,
    progress: Callback | None = None,
) -> Evaluation:
    """Measure how far a model is from its reference on a text. Needs the extra ``ramrs[eval]``.

    Args:
        output: Directory that ``mlx_lm`` loads.
        reference: Directory of the original model.
        text: File of plain text, tokenized by the reference's tokenizer.
        tokens: ``.npy`` file of token ids, in place of a text.
        window: Tokens in a window, the BOS included.
        max_tokens: Tokens in all, at most; all of the text, if not given.
        bos: The token that every window begins with: an id, ``auto`` for the tokenizer's own, or ``none``.
        runtime: Use the runtime's own kernels on the stored weights, in place of float32 on decoded weights.
        progress: Called with stage ``eval``, and tokens in place of bytes.

    Returns:
        KL divergence per token in nats (mean, median, 99th percentile), perplexities, top-1 agreement.
    """
    from ramrs.evaluation import evaluate

    return evaluate(
        Path(output),
        reference=Path(reference),
        text=None if text is None else Path(text),
        tokens=None if tokens is None else Path(tokens),
        window=window,
        max_tokens=max_tokens,
        bos=bos,
        runtime=runtime,
        progress=progress,
    )


def default_output(
    model: PathLike,
    budget: float | str | None,
    bits: int | None,
    group_size: int | None,
    plan: PathLike | Plan | None,
) -> Path:
    """Name the output directory where the user did not."""
    if plan is not None:
        what = Path(plan).stem if not isinstance(plan, Plan) else "plan"
    elif bits is not None:
        what = f"{bits}g{group_size or GROUP_SIZE}"
    else:
        what = str(budget).strip().replace(" ", "").replace("%", "pct").replace("/", "-")
        what = f"{what}bpw" if what.replace(".", "", 1).isdigit() else what
    return Path(f"{Path(model).resolve().name}-ramrs-{what}")


def _call(verb: str, request: dict[str, Any], progress: Callback | None) -> dict[str, Any]:
    """Do a verb of the native module."""
    callback = None if progress is None else lambda *moment: progress(Progress(*moment))
    report: dict[str, Any] = json.loads(_native.call(verb, json.dumps(request), callback))
    return report


#: Options of an analysis that are handed on as they are.
_ABOUT = ("format", "generic", "strict", "effort", "objective", "prior", "sample_bands")


def _analysis(options: Mapping[str, Any]) -> dict[str, Any]:
    """Make the request for an analysis from a function's arguments."""
    return {
        "model": str(options["model"]),
        **{name: options[name] for name in _ABOUT},
        "sensitivity": str(options["sensitivity"]),
        "probe": {"tokens": options["probe_tokens"], "mode": options["probe_mode"]},
        "resources": {name: options[name] for name in ("threads", "max_memory", "chunk_bytes", "simd")},
    }


def _plan(options: Mapping[str, Any]) -> dict[str, Any]:
    """Make the request for a plan from a function's arguments."""
    rules, keep = options["tensor"], options["keep"]
    keep = [keep] if isinstance(keep, str) else list(keep)
    rules = [rules] if isinstance(rules, str) else rules
    rules = [f"{regex}={spec}" for regex, spec in rules.items()] if isinstance(rules, Mapping) else list(rules)
    policy = {name: options[name] for name in ("min_bits", "max_bits", "floor_db")}
    bits, budget = options["bits"], options["budget"]
    if bits is None and options["group_size"] is not None:
        raise ConfigError("⟨group_size⟩: goes with ⟨bits⟩, not with a budget", slug="bad-option")
    return {
        "budget": None if budget is None else str(budget),
        "uniform": None if bits is None else f"{bits}g{options['group_size'] or GROUP_SIZE}",
        "policy": {**policy, "keep": keep, "tensor": rules},
        "shard_bytes": options["shard_bytes"],
    }


def _refuse(options: Mapping[str, Any], verb: str, answered: set[str], by: str) -> None:
    """Refuse options that would be ignored."""
    defaults = inspect_module.signature(globals()[verb]).parameters
    for name in sorted(answered & defaults.keys()):
        if options[name] != defaults[name].default:
            raise ConfigError(f"⟨{name}⟩: {by} has its own", slug="bad-option")


def _saved(document: PathLike | Plan | Analysis) -> str | dict[str, Any]:
    """Return a document as a request holds it: its path, or itself."""
    return document.to_dict() if isinstance(document, (Plan, Analysis)) else str(document)


def weights(model: PathLike, tensor: str) -> npt.NDArray[np.float32]:
    """Return a tensor of a checkpoint as float32, in the shape and order of the release.

    A weight that is stored as codes beside scales is decoded: what :func:`quantize` measures its errors against. FP8
    and INT4 decode to products of code and scale, rounded once to 16 bits.

    Args:
        model: Directory of a checkpoint, or a single ``.safetensors`` file.
        tensor: Its name; of a packed weight, that of its codes (``…_blocks``, ``…weight_packed``).

    Raises:
        ConfigError: No weight has that name.
        TensorError: It holds values that are no numbers.
        CheckpointError: It cannot be decoded.
    """
    import numpy as np

    shape, data = _native.weights(str(model), tensor)
    return np.frombuffer(data, "<f4").reshape(shape)

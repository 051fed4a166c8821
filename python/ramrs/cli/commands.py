"""The commands and their options."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

import ramrs
from ramrs import api
from ramrs.cli import output
from ramrs.cli.progress import ProgressBar


class CarriedError(Exception):
    """What a command raised, where Typer would make something else of it."""

    def __init__(self, fault: BaseException) -> None:
        super().__init__(fault)
        self.fault = fault


class _Group(typer.core.TyperGroup):
    """Commands whose exceptions come out as they are: Typer exits for some of them, with codes of its own."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, OSError, EOFError) as fault:
            raise CarriedError(fault) from fault


app = typer.Typer(
    name="ramrs",
    cls=_Group,
    help="Compress LLM checkpoints from their weights alone, to a size you name.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


class Effort(StrEnum):
    """How hard the encoder tries."""

    fast = "fast"
    normal = "normal"


class Objective(StrEnum):
    """What is minimised."""

    output = "output"
    mse = "mse"
    mint = "mint"


class ProbeMode(StrEnum):
    """Where the probe's tokens come from."""

    auto = "auto"
    random = "random"
    self = "self"


class ProbeFormat(StrEnum):
    """What the probe writes."""

    ramrs = "ramrs"
    imatrix = "imatrix"


class Prior(StrEnum):
    """Whether gains follow roles."""

    roles = "roles"
    none = "none"


Model = Annotated[Path, typer.Argument(help="Directory of the checkpoint.", show_default=False)]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        "-b",
        "--target-bpw",
        "--target-size",
        help="How large the result may be: bits per weight of all that is written (4.0), a file size (24GB, 24GiB), or "
        "a share of the source (30%).",
        show_default=False,
    ),
]
Bits = Annotated[
    int | None, typer.Option("--bits", "--q-bits", help="In place of a budget: these bits for all.", show_default=False)
]
GroupSize = Annotated[
    int | None,
    typer.Option("--group-size", "--q-group-size", help="With --bits: groups of this size (64).", show_default=False),
]
Format = Annotated[str, typer.Option("--format", help="Output format.")]
Generic = Annotated[
    bool, typer.Option("--generic", help="Leave names alone, whatever the model is; no runtime is promised.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse tensors whose names say nothing, instead of going by their shapes.")
]
EffortOption = Annotated[
    Effort, typer.Option("--effort", help="fast: the format's own rule. normal: search scale and bias of each group.")
]
ObjectiveOption = Annotated[
    Objective, typer.Option("--objective", help="What is minimised; mse and mint are there to compare with.")
]
Sensitivity = Annotated[
    str,
    typer.Option(
        "--sensitivity",
        help="probe: run the model on tokens of its own. weights: do not run it. auto: probe what can be. Or a "
        "sensitivity file.",
    ),
]
ProbeTokens = Annotated[int, typer.Option("--probe-tokens", min=1, help="Tokens that the probe takes.")]
_PROBE_MODE = "self: text that the model writes. random tokens. auto: self, up to 16 GiB."
ProbeModeOption = Annotated[ProbeMode, typer.Option("--probe-mode", help=_PROBE_MODE)]
PriorOption = Annotated[Prior, typer.Option("--prior", help="Whether gains follow the matrices' roles.")]
SampleBands = Annotated[
    int, typer.Option("--sample-bands", min=0, help="Bands of 8 rows of each matrix measured for its curve; 0: all.")
]
MinBits = Annotated[
    int | None, typer.Option("--min-bits", help="No fewer bits; 2 lifts the floor on 2-bit codes.", show_default=False)
]
MaxBits = Annotated[int | None, typer.Option("--max-bits", help="No more bits, and nothing kept.", show_default=False)]
FloorDb = Annotated[
    float | None,
    typer.Option(
        "--floor-db", help="Rule out 2-bit codes below this ratio of signal to noise (9).", show_default=False
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", "--ignore", help="Keep the tensors that match this regular expression.", show_default=False),
]
Tensor = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor",
        metavar="REGEX=SPEC",
        help="What matching tensors get: kept, 4, 4g64 or 3-6; the last that matches counts.",
        show_default=False,
    ),
]
ShardBytes = Annotated[int, typer.Option("--shard-bytes", min=1, help="Tensor data per file.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "-j", "--threads", min=1, help="Threads; all that the process may use by default.", show_default=False
    ),
]
MaxMemory = Annotated[
    str | None, typer.Option("--max-memory", help="Memory that the job may take: 2GB, 900MiB.", show_default=False)
]
ChunkBytes = Annotated[
    int, typer.Option("--chunk-bytes", min=1, help="Bytes that a thread reads at a time.", hidden=True)
]
Simd = Annotated[bool, typer.Option("--simd/--no-simd", help="Use the CPU's vector instructions.", hidden=True)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, warnings or hints.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bar.")]


def _version(wanted: bool) -> None:
    if wanted:
        output.OUT.print(f"ramrs {ramrs.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        output.note(record.getMessage())


@contextlib.contextmanager
def _notes() -> Iterator[None]:
    """Print what the API tells of its doings."""
    log, handler = logging.getLogger("ramrs"), _Notes()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


def _show(data: Any, as_json: bool, show: Any) -> None:  # noqa: ANN401
    """Print a report, one way or the other."""
    if as_json:
        output.print_json(data.to_dict())
    else:
        show()


@app.command()
def inspect(
    model: Model,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    format: Format = "mlx",  # noqa: A002
    generic: Generic = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What is in a checkpoint, and what could be quantized."""
    output.set_quiet(quiet)
    found = api.inspect(model, format=format, generic=generic)
    _show(found, json, lambda: output.inspection(found, tensors=tensors))


@app.command()
def analyze(
    model: Model,
    out: Annotated[Path | None, typer.Option("-o", "--output", help="File to write it to.", show_default=False)] = None,
    format: Format = "mlx",  # noqa: A002
    generic: Generic = False,
    strict: Strict = False,
    effort: EffortOption = Effort.normal,
    objective: ObjectiveOption = Objective.output,
    sensitivity: Sensitivity = "auto",
    probe_tokens: ProbeTokens = api.PROBE_TOKENS,
    probe_mode: ProbeModeOption = ProbeMode.auto,
    prior: PriorOption = Prior.roles,
    sample_bands: SampleBands = api.SAMPLE_BANDS,
    threads: Threads = None,
    max_memory: MaxMemory = None,
    chunk_bytes: ChunkBytes = api.CHUNK_BYTES,
    simd: Simd = True,
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Measure what every scheme would do to every matrix: one analysis, any budget."""
    output.set_quiet(quiet)
    with ProgressBar(wanted=not (quiet or no_progress)) as bar:
        found = api.analyze(
            model,
            format=format,
            generic=generic,
            strict=strict,
            effort=effort.value,
            objective=objective.value,
            sensitivity=sensitivity,
            probe_tokens=probe_tokens,
            probe_mode=probe_mode.value,
            prior=prior.value,
            sample_bands=sample_bands,
            threads=threads,
            max_memory=max_memory,
            chunk_bytes=chunk_bytes,
            simd=simd,
            progress=bar,
        )
    if out is not None:
        found.write(out)
    _show(found, json, lambda: output.analysis(found, None if out is None else str(out)))


@app.command()
def probe(
    model: Model,
    out: Annotated[Path | None, typer.Option("-o", "--output", help="File to write it to.", show_default=False)] = None,
    format: Annotated[  # noqa: A002
        ProbeFormat,
        typer.Option("--format", help="ramrs: for --sensitivity. imatrix: for llama-quantize --imatrix."),
    ] = ProbeFormat.ramrs,
    tokens: Annotated[
        int, typer.Option("--probe-tokens", "--tokens", min=1, help="Tokens that it takes, in windows of 64.")
    ] = api.PROBE_TOKENS,
    mode: Annotated[ProbeMode, typer.Option("--probe-mode", "--mode", help=_PROBE_MODE)] = ProbeMode.auto,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="File for tokens, logits and gradients there.", show_default=False, hidden=True),
    ] = None,
    threads: Threads = None,
    max_memory: MaxMemory = None,
    simd: Simd = True,
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Run a model on tokens of its own vocabulary: where is it sensitive? No text is needed."""
    output.set_quiet(quiet)
    with ProgressBar(wanted=not (quiet or no_progress)) as bar:
        found = api.probe(
            model,
            out,
            format=format.value,
            tokens=tokens,
            mode=mode.value,
            trace=trace,
            threads=threads,
            max_memory=max_memory,
            simd=simd,
            progress=bar,
        )
    _show(found, json, lambda: output.probed(found))


@app.command()
def plan(
    model: Annotated[
        Path, typer.Argument(help="Directory of the checkpoint, or a saved analysis.", show_default=False)
    ],
    budget: Budget = None,
    out: Annotated[Path | None, typer.Option("-o", "--output", help="File to write it to.", show_default=False)] = None,
    bits: Bits = None,
    group_size: GroupSize = None,
    min_bits: MinBits = None,
    max_bits: MaxBits = None,
    floor_db: FloorDb = None,
    keep: Keep = None,
    tensor: Tensor = None,
    shard_bytes: ShardBytes = api.SHARD_BYTES,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    format: Format = "mlx",  # noqa: A002
    generic: Generic = False,
    strict: Strict = False,
    effort: EffortOption = Effort.normal,
    objective: ObjectiveOption = Objective.output,
    sensitivity: Sensitivity = "auto",
    probe_tokens: ProbeTokens = api.PROBE_TOKENS,
    probe_mode: ProbeModeOption = ProbeMode.auto,
    prior: PriorOption = Prior.roles,
    sample_bands: SampleBands = api.SAMPLE_BANDS,
    threads: Threads = None,
    max_memory: MaxMemory = None,
    chunk_bytes: ChunkBytes = api.CHUNK_BYTES,
    simd: Simd = True,
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Which scheme every tensor would get, the size and the predicted loss; nothing is written but the plan."""
    output.set_quiet(quiet)
    with ProgressBar(wanted=not (quiet or no_progress)) as bar:
        made = api.plan(
            model,
            budget=budget,
            bits=bits,
            group_size=group_size,
            min_bits=min_bits,
            max_bits=max_bits,
            floor_db=floor_db,
            keep=keep or (),
            tensor=tensor or (),
            shard_bytes=shard_bytes,
            format=format,
            generic=generic,
            strict=strict,
            effort=effort.value,
            objective=objective.value,
            sensitivity=sensitivity,
            probe_tokens=probe_tokens,
            probe_mode=probe_mode.value,
            prior=prior.value,
            sample_bands=sample_bands,
            threads=threads,
            max_memory=max_memory,
            chunk_bytes=chunk_bytes,
            simd=simd,
            progress=bar,
        )
    if out is not None:
        made.write(out)
    _show(made, json, lambda: output.plan(made, tensors=tensors))
    if out is not None and not json:
        output.OUT.print(f"\nplan written to {out}", markup=False)


@app.command()
def quantize(
    model: Model,
    budget: Budget = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Directory to write; named after model and budget.", show_default=False),
    ] = None,
    bits: Bits = None,
    group_size: GroupSize = None,
    saved_plan: Annotated[
        Path | None, typer.Option("--plan", help="A saved plan, in place of a budget.", show_default=False)
    ] = None,
    analysis: Annotated[
        Path | None, typer.Option("--analysis", help="A saved analysis, to save its work.", show_default=False)
    ] = None,
    min_bits: MinBits = None,
    max_bits: MaxBits = None,
    floor_db: FloorDb = None,
    keep: Keep = None,
    tensor: Tensor = None,
    shard_bytes: ShardBytes = api.SHARD_BYTES,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan, and write nothing.")] = False,
    format: Format = "mlx",  # noqa: A002
    generic: Generic = False,
    strict: Strict = False,
    effort: EffortOption = Effort.normal,
    objective: ObjectiveOption = Objective.output,
    sensitivity: Sensitivity = "auto",
    probe_tokens: ProbeTokens = api.PROBE_TOKENS,
    probe_mode: ProbeModeOption = ProbeMode.auto,
    prior: PriorOption = Prior.roles,
    sample_bands: SampleBands = api.SAMPLE_BANDS,
    threads: Threads = None,
    max_memory: MaxMemory = None,
    chunk_bytes: ChunkBytes = api.CHUNK_BYTES,
    simd: Simd = True,
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Quantize a checkpoint to a budget."""
    output.set_quiet(quiet)
    with _notes(), ProgressBar(wanted=not (quiet or no_progress)) as bar:
        report = api.quantize(
            model,
            out,
            budget=budget,
            bits=bits,
            group_size=group_size,
            plan=saved_plan,
            analysis=analysis,
            min_bits=min_bits,
            max_bits=max_bits,
            floor_db=floor_db,
            keep=keep or (),
            tensor=tensor or (),
            shard_bytes=shard_bytes,
            overwrite=overwrite,
            dry_run=dry_run,
            format=format,
            generic=generic,
            strict=strict,
            effort=effort.value,
            objective=objective.value,
            sensitivity=sensitivity,
            probe_tokens=probe_tokens,
            probe_mode=probe_mode.value,
            prior=prior.value,
            sample_bands=sample_bands,
            threads=threads,
            max_memory=max_memory,
            chunk_bytes=chunk_bytes,
            simd=simd,
            progress=bar,
        )
    _show(report, json, lambda: output.quantized(report))


@app.command()
def verify(
    out: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Directory that ramrs wrote.", show_default=False)],
    source: Annotated[
        Path | None, typer.Option("--source", help="The checkpoint it was made of.", show_default=False)
    ] = None,
    threads: Threads = None,
    max_memory: MaxMemory = None,
    chunk_bytes: ChunkBytes = api.CHUNK_BYTES,
    simd: Simd = True,
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Check an output against its manifest, and against its source."""
    output.set_quiet(quiet)
    with ProgressBar(wanted=not (quiet or no_progress)) as bar:
        report = api.verify(
            out, source=source, threads=threads, max_memory=max_memory, chunk_bytes=chunk_bytes, simd=simd, progress=bar
        )
    _show(report, json, lambda: output.verified(report))
    if not report.ok:
        output.answer_is_no()


@app.command(name="eval")
def eval_(
    out: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Directory that mlx_lm loads.", show_default=False)],
    reference: Annotated[Path, typer.Option("--reference", help="Directory of the original.", show_default=False)],
    text: Annotated[Path | None, typer.Option("--text", help="File of plain text.", show_default=False)] = None,
    tokens: Annotated[
        Path | None, typer.Option("--tokens", help=".npy file of token ids, in place of a text.", show_default=False)
    ] = None,
    window: Annotated[int, typer.Option("--window", min=2, help="Tokens in a window, BOS included.")] = 256,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Tokens in all, at most.", show_default=False)
    ] = None,
    bos: Annotated[str, typer.Option("--bos", help="Token id each window begins with, 'auto' or 'none'.")] = "auto",
    runtime: Annotated[
        bool, typer.Option("--runtime", help="The runtime's own kernels, in place of float32 on decoded weights.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """KL divergence, perplexity and top-1 agreement of a model against its reference."""
    output.set_quiet(quiet)
    first: Any = bos if bos in ("auto", "none") else _token(bos)
    with ProgressBar(wanted=not (quiet or no_progress)) as bar:
        found = api.eval(
            out,
            reference=reference,
            text=text,
            tokens=tokens,
            window=window,
            max_tokens=max_tokens,
            bos=first,
            runtime=runtime,
            progress=bar,
        )
    _show(found, json, lambda: output.evaluated(found))


def _token(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter("is a token id, 'auto' or 'none'", param_hint="--bos") from None

"""The commands: each calls the verb of its name, and prints the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import ramrs
from ramrs.cli import reports
from ramrs.cli.options import command
from ramrs.cli.output import NO, Screen
from ramrs.formats.gguf import tensor_types
from ramrs.options import (
    AnalyzeOptions,
    EvalOptions,
    FinishOptions,
    InspectOptions,
    PlanOptions,
    ProbeOptions,
    QuantizeOptions,
    VerifyOptions,
)
from ramrs.sizes import quantize_sizes

app = typer.Typer(
    name="ramrs",
    help="Compress LLM checkpoints from their weights alone, to a size you name.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Model = Annotated[Path, typer.Argument(help="Directory of the checkpoint, or a GGUF file.", show_default=False)]
ModelOrAnalysis = Annotated[
    Path, typer.Argument(help="Directory of the checkpoint, a GGUF file, or a saved analysis.", show_default=False)
]
Output = Annotated[
    Path, typer.Argument(metavar="OUTPUT", help="Directory or GGUF file that ramrs wrote.", show_default=False)
]
Outputs = Annotated[
    list[Path],
    typer.Argument(metavar="OUTPUT...", help="Directories or GGUF files to measure.", show_default=False),
]
OutFile = Annotated[Path | None, typer.Option("-o", "--output", help="File to write.", show_default=False)]
OutDirectory = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        help="Directory to write, or name of a GGUF file. Default: named after the model and the budget.",
        show_default=False,
    ),
]
ListTensors = Annotated[bool, typer.Option("--tensors", help="List every tensor.")]
Emit = Annotated[
    Literal["tensor-types"] | None,
    typer.Option(
        "--emit",
        help="tensor-types: write a plan for GGUF in the form of llama-quantize's --tensor-type-file.",
        show_default=False,
    ),
]
SavedPlan = Annotated[
    Path | None, typer.Option("--plan", help="A saved plan, instead of a budget.", show_default=False)
]
SavedAnalysis = Annotated[
    Path | None, typer.Option("--analysis", help="A saved analysis, to save its work.", show_default=False)
]
Reference = Annotated[
    Path, typer.Option("--reference", help="Directory or GGUF file of the original model.", show_default=False)
]


def _version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        context.obj.line(f"ramrs {ramrs.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@command(app, InspectOptions, has_progress=False)
def inspect(screen: Screen, model: Model, tensors: ListTensors = False, *, options: InspectOptions) -> None:
    """List the content of a checkpoint, and what can be quantized."""
    found = ramrs.inspect(model, **options)
    screen.show(found, lambda: reports.inspection(screen, found, tensors=tensors))


@command(app, AnalyzeOptions)
def analyze(screen: Screen, model: Model, out: OutFile = None, *, options: AnalyzeOptions) -> None:
    """Measure the loss of every scheme on every matrix: one analysis serves any budget."""
    with screen.progress() as bar:
        found = ramrs.analyze(model, out, progress=bar, **options)
    screen.show(found, lambda: reports.analysis(screen, found, out))


@command(app, ProbeOptions)
def probe(screen: Screen, model: Model, out: OutFile = None, *, options: ProbeOptions) -> None:
    """Run a model on tokens of its own vocabulary to measure its sensitivity. No text is needed."""
    with screen.progress() as bar:
        found = ramrs.probe(model, out, progress=bar, **options)
    screen.show(found, lambda: reports.probed(screen, found))


@command(app, PlanOptions)
def plan(
    screen: Screen,
    model: ModelOrAnalysis,
    out: OutFile = None,
    tensors: ListTensors = False,
    emit: Emit = None,
    *,
    options: PlanOptions,
) -> None:
    """Choose a scheme for every tensor, and predict size and loss. Nothing but the plan is written."""
    if len(_budgets(options)) > 1:
        raise typer.BadParameter("a plan has one", param_hint="--budget")
    with screen.progress() as bar:
        made = ramrs.plan(model, progress=bar, **options)
    if emit is not None:
        _emit(screen, tensor_types(made), out)
        return
    if out is not None:
        made.write(out)
    screen.show(made, lambda: reports.planned(screen, made, out, tensors=tensors))


def _budgets(options: PlanOptions | QuantizeOptions) -> tuple[str, ...]:
    """Return the budgets that are given. The options keep one that is alone."""
    given: Any = options
    budgets: tuple[str, ...] = given["budget"] or ()
    given["budget"] = budgets[0] if len(budgets) == 1 else None
    return budgets


def _emit(screen: Screen, text: str, out: Path | None) -> None:
    """Write a text to a file, or print it."""
    if out is None:
        screen.line(text.removesuffix("\n"))
    else:
        out.write_text(text, encoding="utf-8")
        screen.line(f"written to {out}")


@command(app, QuantizeOptions)
def quantize(
    screen: Screen,
    model: Model,
    out: OutDirectory = None,
    saved_plan: SavedPlan = None,
    analysis: SavedAnalysis = None,
    *,
    options: QuantizeOptions,
) -> None:
    """Quantize a checkpoint to a budget, or to several: -b 3.5 -b 4.0 -o 'out-{budget}'."""
    budgets = _budgets(options)
    if len(budgets) > 1:
        if saved_plan is not None:
            raise typer.BadParameter("a saved plan has its own", param_hint="--budget")
        with screen.notes(), screen.progress() as bar:
            name = None if out is None else str(out)
            all_sizes = quantize_sizes(model, budgets, name, analysis=analysis, progress=bar, **options)
        screen.show(all_sizes, lambda: reports.all_quantized(screen, all_sizes))
        return
    with screen.notes(), screen.progress() as bar:
        report = ramrs.quantize(model, out, plan=saved_plan, analysis=analysis, progress=bar, **options)
    screen.show(report, lambda: reports.quantized(screen, report))


@command(app, FinishOptions)
def finish(screen: Screen, out: Output, *, options: FinishOptions) -> None:
    """Make the output of a job that was done in parts, by quantize --part."""
    with screen.notes(), screen.progress() as bar:
        report = ramrs.finish(out, progress=bar, **options)
    screen.show(report, lambda: reports.quantized(screen, report))


@command(app, VerifyOptions)
def verify(screen: Screen, out: Output, *, options: VerifyOptions) -> None:
    """Check an output against its manifest, and against its source."""
    with screen.progress() as bar:
        report = ramrs.verify(out, progress=bar, **options)
    screen.show(report, lambda: reports.verified(screen, report))
    if not report.ok:
        screen.exit_code = NO


@command(app, EvalOptions, name="eval")
def evaluate(screen: Screen, out: Outputs, reference: Reference, *, options: EvalOptions) -> None:
    """Measure KL divergence, perplexity and top-1 agreement of models against their reference."""
    given: Any = options
    if given["bos"] not in ("auto", "none"):
        given["bos"] = _token(given["bos"])
    with screen.progress() as bar:
        found = ramrs.eval(tuple(out), reference=reference, progress=bar, **options)
    if len(found) == 1:
        screen.show(found[0], lambda: reports.evaluated(screen, found[0]))
    else:
        screen.show(found, lambda: reports.all_evaluated(screen, found))
    for each in found:
        for failure in each.failures:
            screen.fail("limit", failure if len(found) == 1 else f"{each.output}: {failure}")


def _token(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter("is a token id, 'auto' or 'none'", param_hint="--bos") from None

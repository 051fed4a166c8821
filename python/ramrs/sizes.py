"""Several sizes of one model: one analysis, and an output for each budget."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import msgspec

from ramrs import api, formats
from ramrs import options as opts
from ramrs._core import Callback
from ramrs.errors import ConfigError
from ramrs.options import PathLike, QuantizeOptions
from ramrs.types import Manifest, Plan, QuantizeReport

__all__ = ["quantize_sizes"]

FIELD = "{budget}"

ANALYSIS = "analysis.json"
REQUEST = "request.json"


@opts.accepts(QuantizeOptions)
def quantize_sizes(
    model: PathLike,
    budgets: Sequence[float | str],
    output: str | None = None,
    *,
    analysis: PathLike | None = None,
    progress: Callback | None = None,
    **options: Unpack[QuantizeOptions],
) -> tuple[QuantizeReport, ...]:
    """Quantize a checkpoint to several budgets, with one analysis for all.

    Every budget is planned before anything is written. A stopped job leaves the analysis in ``<output>.sizes``, with
    ``sizes`` for the budget, and the same call continues it.

    Args:
        model: Directory of a checkpoint, or a GGUF file.
        budgets: The sizes, each as :func:`~ramrs.quantize` takes it.
        output: Where to write: ``{budget}`` in it stands for each. ``<model>-ramrs-{budget}`` in the working directory,
            if not given.
        analysis: Path of a saved analysis of the same checkpoint with the same options, to save its work.
        progress: Called with the state of the job.
        **options: Those of :class:`~ramrs.options.QuantizeOptions`, without a budget:

    Returns:
        A report for each budget, in their order.

    Raises:
        BudgetError: A budget is below the smallest possible size.
        ConfigError: An option is not valid, an output exists, or two budgets have the same output.
    """
    given = opts.resolve(QuantizeOptions, "quantize", options)
    if given["budget"] is not None or given["bits"] is not None:
        raise ConfigError("⟨budget⟩: several budgets are given, and another size", slug="bad-option")
    if not budgets:
        raise ConfigError("⟨budget⟩: none is given", slug="bad-option")
    outputs = {budget: _output(model, given, output, budget) for budget in budgets}
    if len(outputs) < len(budgets) or len(set(outputs.values())) < len(outputs):
        raise ConfigError("⟨budget⟩: two of the budgets have the same output", slug="bad-option")
    work = _output(model, given, output, "sizes")
    work = work.with_name(f"{work.name}.sizes")
    is_continued = (work / REQUEST).exists()
    for path in outputs.values():
        if path.exists() and not given["overwrite"] and not is_continued:
            message = f"{path} exists already"
            raise ConfigError(message, slug="output-exists", hint="give another ⟨output⟩", path=str(path))
    source = Path(analysis) if analysis is not None else _analyzed(model, work, progress, options)
    plans = {budget: api.plan(source, budget=budget, **_planning(options)) for budget in outputs}
    reports = []
    for budget, path in outputs.items():
        report = _finished(path, plans[budget]) if is_continued else None
        if report is None:
            each: Any = {**options, "budget": budget}
            report = api.quantize(model, path, analysis=source, progress=progress, **each)
        reports.append(report)
    shutil.rmtree(work, ignore_errors=True)
    return tuple(reports)


def _output(model: PathLike, given: QuantizeOptions, output: str | None, budget: float | str) -> Path:
    if output is None:
        return api.default_output(model, QuantizeOptions(**{**given, "budget": budget}), None)
    if FIELD not in output:
        message = f"⟨output⟩ `{output}`: has no {FIELD}, which stands for each of several budgets"
        raise ConfigError(message, slug="bad-option")
    return Path(output.replace(FIELD, api.spelled(budget)))


def _finished(path: Path, plan: Plan) -> QuantizeReport | None:
    """Return the report of an output that an earlier run has written by the same plan, if there is one."""
    manifest = path / formats.MANIFEST if path.is_dir() else path.with_name(f"{path.stem}.{formats.MANIFEST}")
    if not (path.exists() and manifest.is_file()):
        return None
    found = Manifest.read(manifest)
    is_same = (found.source, found.settings, found.budget) == (plan.source, plan.settings, plan.budget)
    is_same = is_same and (found.policy, found.totals.file_bytes) == (plan.policy, plan.totals.file_bytes)
    return QuantizeReport(str(path), True, True, None, plan, found) if is_same else None


def _analyzed(model: PathLike, work: Path, progress: Callback | None, options: QuantizeOptions) -> Path:
    """Return the path of the analysis for all sizes, of this run or an earlier one."""
    path = work / ANALYSIS
    fields = {field.name: field.option for field in opts.fields(opts.AnalyzeOptions)}
    asked: Any = {name: value for name, value in options.items() if name in fields}
    work.mkdir(parents=True, exist_ok=True)
    request = work / REQUEST
    # Resources decide nothing of an analysis.
    decides = sorted(name for name in asked if not (fields[name].at or "").startswith("resources."))
    text = msgspec.json.encode({name: str(asked[name]) for name in decides})
    if path.exists() and request.exists() and request.read_bytes() == text:
        return path
    path.unlink(missing_ok=True)
    request.write_bytes(text)
    api.analyze(model, path, progress=progress, **asked)
    return path


def _planning(options: QuantizeOptions) -> Any:  # noqa: ANN401
    """Return the options that a plan from an analysis takes."""
    names = {field.name for field in opts.fields(opts.PlanOptions) if "analysis" not in field.option.answered_by}
    return {name: value for name, value in options.items() if name in names - {"budget"}}

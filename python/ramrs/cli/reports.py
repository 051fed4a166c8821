"""The reports of the verbs as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ramrs.cli.output import Screen, Table
from ramrs.options import FORMATS
from ramrs.types import Analysis, Evaluation, Inspection, Plan, ProbeReport, QuantizeReport, RuntimeCheck, VerifyReport

_MOST_COLUMNS = 8


def size(count: int) -> str:
    """Say a number of bytes in the unit that fits."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count} B"


def inspection(screen: Screen, found: Inspection, *, tensors: bool) -> None:
    """Print what is in a checkpoint."""
    source = found.source
    screen.facts(
        [
            ("checkpoint", found.path),
            ("model_type", found.model_type or "-"),
            ("weights", f"{source.parameters:,}"),
            ("files", f"{len(found.shards)}, {size(source.file_bytes)}"),
            ("smallest", f"{found.smallest_bpw:.3f} bits per weight, everything counted, were all schemes allowed"),
        ]
    )
    screen.line()
    table = Table("role", "dtype", "tensors>", "weights>", "bytes>", "quantizable>")
    for role in found.roles:
        weights = f"{role.parameters:,}"
        table.add_row(role.role, role.dtype, str(role.tensors), weights, size(role.bytes), str(role.quantizable))
    table.print(screen)
    consumed = "scales and shapes, read with their weights"
    kept = Counter(
        consumed if tensor.becomes == "consumed" else tensor.why for tensor in found.tensors if tensor.why is not None
    )
    if kept:
        screen.line()
        table = Table("tensors>", "not quantized, because")
        for why, count in kept.most_common():
            table.add_row(str(count), why)
        table.print(screen)
    if tensors:
        screen.line()
        table = Table("tensor", "dtype", "shape", "bytes>", "role", "becomes", "as")
        for tensor in found.tensors:
            shape = "×".join(map(str, tensor.shape))
            into = ", ".join(name for name in tensor.into if name != tensor.name)
            table.add_row(tensor.name, tensor.dtype, shape, size(tensor.bytes), tensor.role, tensor.becomes, into)
        table.print(screen)
    screen.warn([*found.warnings, *([found.unsupported] if found.unsupported else [])])


def analysis(screen: Screen, found: Analysis, path: Path | None) -> None:
    """Print what an analysis found, in short."""
    screen.warn(found.warnings)
    curves = [(tensor, tensor.curve) for tensor in found.tensors if tensor.curve is not None]
    schemes = _columns([point.scheme for _, curve in curves for point in curve.points], found.settings.format)
    table = Table("role", "matrices>", *(f"{scheme}>" for scheme in schemes))
    for role in dict.fromkeys(tensor.role for tensor, _ in curves):
        here = [curve for tensor, curve in curves if tensor.role == role]
        cells = []
        for scheme in schemes:
            losses = [point.loss for curve in here for point in curve.points if point.scheme == scheme]
            cells.append(f"{sum(losses):.3g}" if losses else "-")
        table.add_row(role, str(len(here)), *cells)
    table.print(screen)
    settings = found.settings
    screen.note(f"loss by role and scheme; objective {settings.objective}, sensitivity {settings.sensitivity}")
    if path:
        screen.line(f"\nanalysis written to {path}")


def _columns(schemes: list[str], format: str) -> list[str]:  # noqa: A002
    """Choose the schemes that a table has room for: those of the default group size, if there are any."""
    found = list(dict.fromkeys(schemes))
    usual = [scheme for scheme in found if scheme.endswith(f"g{FORMATS[format]['group_size']}")]
    return sorted(usual or found[:_MOST_COLUMNS])


def planned(screen: Screen, made: Plan, path: Path | None, *, tensors: bool) -> None:
    """Print a plan, its trade-off of size and loss, and where it was written."""
    _plan(screen, made)
    if made.trade_off:
        screen.line()
        _trade_off(screen, made)
    if tensors:
        screen.line()
        table = Table("tensor", "scheme", "bytes>", "loss>", "dB>", "why")
        for tensor in made.tensors:
            ratio = "-" if tensor.sqnr_db is None else f"{tensor.sqnr_db:.1f}"
            table.add_row(tensor.name, tensor.scheme, size(tensor.bytes), f"{tensor.loss:.3g}", ratio, tensor.why)
        table.print(screen)
    screen.warn(made.warnings)
    if path is not None:
        screen.line(f"\nplan written to {path}")


def _plan(screen: Screen, made: Plan) -> None:
    """Print what a plan amounts to."""
    totals = made.totals
    weights = f"{totals.effective_bpw:.4f} bits per weight, everything counted ({totals.payload_bpw:.3f} in codes)"
    rows = [] if made.settings.target is None else [("for", f"{made.settings.target}, in {made.settings.format}")]
    rows.append(("size", f"{size(totals.file_bytes)}, {weights}"))
    if made.budget is not None and totals.budget_bytes:
        used = totals.tensor_bytes if _is_bits(made.budget) else totals.file_bytes
        rows.append(("budget", f"{made.budget}, {100 * used / totals.budget_bytes:.3f} % used"))
    unit = {"output": "nats per token, predicted", "mse": "squared error", "mint": "sum of NRMSE"}
    rows.append(("loss", f"{totals.loss:.4g} ({unit[made.settings.objective]})"))
    if totals.lower_bound is not None:
        gap = totals.loss - totals.lower_bound
        share = 100 * gap / totals.lower_bound if totals.lower_bound > 0 else 0.0
        proved = f"{totals.lower_bound:.4g}: no plan of this size has less"
        rows.append(("bound", proved if share < 0.001 else f"{proved}; the gap is {share:.3f} %"))
    if totals.best_uniform is not None:
        uniform = totals.best_uniform
        rows.append(("uniform", f"{uniform.loss:.4g} with {uniform.scheme} for all, the best that fits"))
    screen.facts(rows)
    screen.line()
    _by_role(screen, made)


def _is_bits(budget: str) -> bool:
    try:
        float(budget.lower().removesuffix("bpw"))
    except ValueError:
        return False
    return True


def _by_role(screen: Screen, made: Plan) -> None:
    table = Table("role", "tensors>", "bytes>", "loss>", "schemes")
    for role in dict.fromkeys(tensor.role for tensor in made.tensors):
        here = [tensor for tensor in made.tensors if tensor.role == role]
        schemes = Counter(tensor.scheme for tensor in here)
        told = ", ".join(f"{count} × {scheme}" for scheme, count in sorted(schemes.items()))
        loss = sum(tensor.loss for tensor in here)
        table.add_row(role, str(len(here)), size(sum(tensor.bytes for tensor in here)), f"{loss:.3g}", told)
    table.print(screen)


def _trade_off(screen: Screen, made: Plan) -> None:
    """Print the curve of size and loss: a dozen of its points."""
    points = made.trade_off
    step = max(1, len(points) // 12)
    table = Table("bits per weight>", "tensor data>", "loss>")
    shown = [*points[::step], points[-1]] if (len(points) - 1) % step else points[::step]
    for point in shown:
        table.add_row(f"{point.effective_bpw:.3f}", size(point.tensor_bytes), f"{point.loss:.4g}")
    table.print(screen)


def probed(screen: Screen, found: ProbeReport) -> None:
    """Print what a probe took."""
    asked = f", {found.probe.tokens:,} were asked for" if found.tokens > found.probe.tokens + 63 else ""
    tokens = "written by the model itself" if found.probe.mode == "self" else "of its own vocabulary"
    rows = [
        ("model", found.model_type),
        ("tokens", f"{found.tokens:,} {tokens}{asked}"),
        ("matrices", f"{found.matrices:,} measured"),
        ("work", f"{found.multiply_adds / 1e9:,.1f} billion multiplications and additions"),
    ]
    if found.loads:
        loads = [load for layer in found.loads.values() for load in layer]
        rows.append(("experts", f"{min(loads):,} to {max(loads):,} tokens each"))
    if found.written is not None:
        rows.append(("written", f"{found.written.path}, {size(found.written.bytes)}, SHA-256 {found.written.sha256}"))
    screen.facts(rows)
    screen.warn(found.warnings)


def quantized(screen: Screen, report: QuantizeReport) -> None:
    """Print what was written."""
    _plan(screen, report.plan)
    screen.warn(report.plan.warnings)
    if report.manifest is None:
        screen.note("dry run: nothing was written" if report.part is None else f"part {report.part} is done")
        return
    screen.line()
    measured = report.manifest.totals.loss
    screen.line(f"written and verified: {report.output} (loss of what was written: {measured:.4g})")
    if report.continued:
        screen.note("continued from what an earlier run had finished")
    if (check := report.manifest.check) is not None:
        kl = _measured(check.kl.value, check.kl.error, ".4g")
        tokens = check.windows * check.window
        screen.line(f"run on {tokens} tokens of its own: it diverges by {kl} nats per token")


def all_quantized(screen: Screen, found: tuple[QuantizeReport, ...]) -> None:
    """Print what was written for several budgets."""
    for report in found:
        screen.warn(report.plan.warnings)
        totals = report.plan.totals if report.manifest is None else report.manifest.totals
        written = "would be written" if report.manifest is None else "written and verified"
        bits = f"{totals.effective_bpw:.3f} bits per weight"
        screen.line(f"{written}: {report.output} ({size(totals.file_bytes)}, {bits}, loss {totals.loss:.4g})")


def verified(screen: Screen, report: VerifyReport) -> None:
    """Print what a verification found."""
    screen.facts(
        [
            ("digests", f"{report.files} files, {report.tensors} tensors"),
            ("decoded", f"{report.decoded} quantized tensors"),
            ("compared", f"{report.compared_with_source} tensors with the source"),
        ]
    )
    if report.recomputed:
        screen.facts([("encoded", f"{report.recomputed} matrices and other tensors again, compared byte for byte")])
    if report.runtime is not None:
        screen.facts([(report.runtime.runtime, _in_runtime(report.runtime))])
    if report.unlisted:
        screen.line(f"files that the manifest does not list: {', '.join(report.unlisted)}")
    for problem in report.problems:
        where = problem.file if problem.tensor is None else f"{problem.file}: {problem.tensor}"
        screen.line(f"{where}: {problem.what}")
    count = len(report.problems)
    at_fault = report.runtime is not None and len(report.runtime.problems) == count
    wrong = f"not {'the same in the runtime' if at_fault else 'as the manifest says'}: "
    wrong += f"{count} problem{'s' if count > 1 else ''}"
    screen.line("as the manifest says" if report.ok else wrong)


def _in_runtime(found: RuntimeCheck) -> str:
    """Say what a runtime made of an output."""
    words = f"{found.version} loads it" if found.loads else f"{found.version} does not load it"
    if found.difference is not None:
        same = found.difference <= found.bound
        words += f", and computes {'the same' if same else 'something else'} on {found.tokens} tokens: "
        words += f"logits differ by {found.difference:.1g} of their range, and may by {found.bound:g}"
    elif found.not_compared is not None:
        words += f", and its logits of {found.tokens} tokens are finite. Nothing was compared: {found.not_compared}"
    return words


def evaluated(screen: Screen, found: Evaluation) -> None:
    """Print how far a model is from its reference."""
    reference = _measured(found.reference_perplexity_mean, found.reference_perplexity_mean_error, ".3f")
    perplexity = _measured(found.perplexity_mean, found.perplexity_mean_error, ".3f")
    error = found.top1_agreement_error
    agreement = _measured(100 * found.top1_agreement, None if error is None else 100 * error, ".2f")
    screen.facts(
        [
            ("windows", _windows(found)),
            ("computed", found.computed),
            (
                "KL",
                f"{_measured(found.kl_mean, found.kl_mean_error, '.5f')} mean, "
                f"{_measured(found.kl_median, found.kl_median_error, '.5f')} median, "
                f"{_measured(found.kl_p99, found.kl_p99_error, '.5f')} 99th percentile (nats)",
            ),
            ("perplexity", f"{perplexity} mean, {found.perplexity_median:.3f} median"),
            ("reference", f"{reference} mean, {found.reference_perplexity_median:.3f} median"),
            ("top-1", f"{agreement} % agreement"),
        ]
    )


def all_evaluated(screen: Screen, found: Sequence[Evaluation]) -> None:
    """Print how far several models are from their reference."""
    first = found[0]
    reference = _measured(first.reference_perplexity_mean, first.reference_perplexity_mean_error, ".3f")
    screen.facts(
        [("windows", _windows(first)), ("computed", first.computed), ("reference", f"perplexity {reference} mean")]
    )
    screen.line()
    table = Table("output", "KL mean>", "median>", "99th percentile>", "perplexity>", "top-1 %>")
    for each in found:
        error = each.top1_agreement_error
        table.add_row(
            each.output,
            _measured(each.kl_mean, each.kl_mean_error, ".5f"),
            _measured(each.kl_median, each.kl_median_error, ".5f"),
            _measured(each.kl_p99, each.kl_p99_error, ".5f"),
            _measured(each.perplexity_mean, each.perplexity_mean_error, ".3f"),
            _measured(100 * each.top1_agreement, None if error is None else 100 * error, ".2f"),
        )
    table.print(screen)


def _windows(found: Evaluation) -> str:
    """Say what a model was run on."""
    origin = {"given": "", "written": ", written by the reference", "random": ", random"}[found.origin]
    return f"{found.windows} of {found.window} tokens{origin}, {found.bos_note}; {found.tokens:,} predictions"


def _measured(value: float, error: float | None, form: str) -> str:
    """Say a number with its standard error."""
    return f"{value:{form}}" if error is None else f"{value:{form}} ± {error:{form}}"

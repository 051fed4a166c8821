"""Everything that the command line prints."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from ramrs.errors import BudgetError, InternalError, RamrsError, VerifyError, spell

if TYPE_CHECKING:
    from ramrs.documents import Analysis, Inspection, Plan, ProbeReport, QuantizeReport, VerifyReport
    from ramrs.evaluation import Evaluation

OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)

DONE, NO, FAILED, BUG, INTERRUPTED = 0, 1, 2, 101, 130

# Typer carries click within it in newer releases, and used click itself before: the exceptions are found from Typer's.
_ClickException: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

_state = {"exit": DONE, "quiet": False}


def flag(name: str, value: str | None) -> str:
    """Spell an option as the command line does: ``--min-bits 2``."""
    name = "--bits" if name == "uniform" else f"--{name.replace('_', '-')}"
    return name if value in (None, "true") else f"{name} {value}"


def begin() -> None:
    """Forget an earlier command of this process."""
    _state.update(exit=DONE, quiet=False)


def exit_code() -> int:
    """Return the exit code of a command that ran to its end."""
    return _state["exit"]


def answer_is_no() -> None:
    """Make the exit code say that the answer is no."""
    _state["exit"] = NO


def set_quiet(quiet: bool) -> None:
    """Keep warnings and hints to ourselves."""
    _state["quiet"] = quiet


def failure(fault: BaseException, *, as_json: bool) -> int:
    """Print what went wrong, and return the exit code for it."""
    if isinstance(fault, KeyboardInterrupt | typer.Abort):
        _fault("interrupted", "interrupted: nothing was left behind", None, as_json=as_json)
        return INTERRUPTED
    if isinstance(fault, SystemExit | typer.Exit):
        code = fault.exit_code if isinstance(fault, typer.Exit) else fault.code
        return code if isinstance(code, int) else FAILED
    if isinstance(fault, _ClickException):
        if not fault.format_message():  # `ramrs` alone: the help was printed
            return FAILED
        _fault("usage", fault.format_message(), "ramrs COMMAND --help lists the options", as_json=as_json)
        return FAILED
    if isinstance(fault, RamrsError):
        message, hint = (None if text is None else spell(text, flag) for text in fault.marked)
        _fault(fault.slug, message or "", hint, as_json=as_json, path=fault.path, tensor=fault.tensor)
        if isinstance(fault, BudgetError | VerifyError):
            return NO
        return BUG if isinstance(fault, InternalError) else FAILED
    if isinstance(fault, OSError):
        marked, hint = getattr(fault, "marked", (str(fault), None))
        hint = None if hint is None else spell(hint, flag)
        _fault(getattr(fault, "slug", "io"), spell(marked, flag), hint, as_json=as_json, path=str(fault.filename or ""))
        return FAILED
    if not as_json:
        ERR.print_exception()
    _fault("bug", f"{type(fault).__name__}: {fault}", "please report this, with the command", as_json=as_json)
    return BUG


def _fault(
    slug: str, message: str, hint: str | None, *, as_json: bool, path: str | None = None, tensor: str | None = None
) -> None:
    if as_json:
        fields = {"slug": slug, "message": message, "hint": hint, "path": path, "tensor": tensor}
        sys.stderr.write(json.dumps({"error": fields}, ensure_ascii=False) + "\n")
        return
    ERR.print("[bold red]error[/]: ", end="")
    ERR.print(message, markup=False)
    if hint:
        ERR.print("[bold cyan]hint[/]: ", end="")
        ERR.print(hint, markup=False)


def warn(warnings: Iterable[str]) -> None:
    """Print warnings."""
    if not _state["quiet"]:
        for warning in warnings:
            ERR.print("[bold yellow]warning[/]: ", end="")
            ERR.print(warning, markup=False)


def note(text: str) -> None:
    """Print something that is not the result."""
    if not _state["quiet"]:
        ERR.print(text, markup=False)


def print_json(data: dict[str, Any]) -> None:
    """Print the result as JSON."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def size(count: int) -> str:
    """Say a number of bytes in the unit that fits."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count} B"


class _Table:
    """Rows in columns, as wide as they need to be: a pipe has no width, and a terminal can wrap by itself."""

    def __init__(self, *columns: str) -> None:
        """Take the names of the columns; those that end in ``>`` are aligned to the right."""
        self._right = [column.endswith(">") for column in columns]
        self._rows = [[column.removesuffix(">") for column in columns]]

    def add_row(self, *cells: str) -> None:
        """Add a row."""
        self._rows.append(list(cells))

    def print(self) -> None:
        """Print it, the head in bold."""
        widths = [max(map(len, column)) for column in zip(*self._rows, strict=True)]
        for at, row in enumerate(self._rows):
            cells = zip(row, widths, self._right, strict=True)
            line = "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells)
            OUT.print(line.rstrip(), markup=False, style="bold" if at == 0 else None)


def _facts(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        OUT.print(f"[bold]{name.ljust(width)}[/]  ", end="")
        OUT.print(value, markup=False)


def inspection(found: Inspection, *, tensors: bool) -> None:
    """Print what is in a checkpoint."""
    source = found.source
    _facts(
        [
            ("checkpoint", found.path),
            ("model_type", found.model_type or "-"),
            ("weights", f"{source.parameters:,}"),
            ("files", f"{len(found.shards)}, {size(source.file_bytes)}"),
            ("smallest", f"{found.smallest_bpw:.3f} bits per weight, everything counted, were all schemes allowed"),
        ]
    )
    OUT.print()
    table = _Table("role", "dtype", "tensors>", "weights>", "bytes>", "quantizable>")
    for role in found.roles:
        weights = f"{role.parameters:,}"
        table.add_row(role.role, role.dtype, str(role.tensors), weights, size(role.bytes), str(role.quantizable))
    table.print()
    consumed = "scales and shapes, read with their weights"
    kept = Counter(
        consumed if tensor.becomes == "consumed" else tensor.why for tensor in found.tensors if tensor.why is not None
    )
    if kept:
        OUT.print()
        table = _Table("tensors>", "not quantized, because")
        for why, count in kept.most_common():
            table.add_row(str(count), why)
        table.print()
    if tensors:
        OUT.print()
        table = _Table("tensor", "dtype", "shape", "bytes>", "role", "becomes", "as")
        for tensor in found.tensors:
            shape = "×".join(map(str, tensor.shape))
            into = ", ".join(name for name in tensor.into if name != tensor.name)
            table.add_row(tensor.name, tensor.dtype, shape, size(tensor.bytes), tensor.role, tensor.becomes, into)
        table.print()
    warn([*found.warnings, *([found.unsupported] if found.unsupported else [])])


def analysis(found: Analysis, path: str | None) -> None:
    """Print what an analysis found, in short."""
    warn(found.warnings)
    curves = [(tensor, tensor.curve) for tensor in found.tensors if tensor.curve is not None]
    schemes = ["2g64", "3g64", "4g64", "5g64", "6g64", "8g64"]
    table = _Table("role", "matrices>", *(f"{scheme}>" for scheme in schemes))
    for role in dict.fromkeys(tensor.role for tensor, _ in curves):
        here = [curve for tensor, curve in curves if tensor.role == role]
        cells = []
        for scheme in schemes:
            losses = [point.loss for curve in here for point in curve.points if point.scheme == scheme]
            cells.append(f"{sum(losses):.3g}" if losses else "-")
        table.add_row(role, str(len(here)), *cells)
    table.print()
    settings = found.settings
    note(f"loss by role and scheme; objective {settings.objective}, sensitivity {settings.sensitivity}")
    if path:
        OUT.print(f"\nanalysis written to {path}", markup=False)


def plan(made: Plan, *, curve: bool = True, tensors: bool = False) -> None:
    """Print a plan."""
    totals = made.totals
    weights = f"{totals.effective_bpw:.4f} bits per weight, everything counted ({totals.payload_bpw:.3f} in codes)"
    rows = [("size", f"{size(totals.file_bytes)}, {weights}")]
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
    _facts(rows)
    OUT.print()
    _by_role(made)
    if curve and made.trade_off:
        OUT.print()
        _trade_off(made)
    if tensors:
        OUT.print()
        table = _Table("tensor", "scheme", "bytes>", "loss>", "dB>", "why")
        for tensor in made.tensors:
            ratio = "-" if tensor.sqnr_db is None else f"{tensor.sqnr_db:.1f}"
            table.add_row(tensor.name, tensor.scheme, size(tensor.bytes), f"{tensor.loss:.3g}", ratio, tensor.why)
        table.print()
    warn(made.warnings)


def _is_bits(budget: str) -> bool:
    try:
        float(budget.lower().removesuffix("bpw"))
    except ValueError:
        return False
    return True


def _by_role(made: Plan) -> None:
    table = _Table("role", "tensors>", "bytes>", "loss>", "schemes")
    for role in dict.fromkeys(tensor.role for tensor in made.tensors):
        here = [tensor for tensor in made.tensors if tensor.role == role]
        schemes = Counter(tensor.scheme for tensor in here)
        told = ", ".join(f"{count} × {scheme}" for scheme, count in sorted(schemes.items()))
        loss = sum(tensor.loss for tensor in here)
        table.add_row(role, str(len(here)), size(sum(tensor.bytes for tensor in here)), f"{loss:.3g}", told)
    table.print()


def _trade_off(made: Plan) -> None:
    """Print the curve of size and loss: a dozen of its points."""
    points = made.trade_off
    step = max(1, len(points) // 12)
    table = _Table("bits per weight>", "tensor data>", "loss>")
    shown = [*points[::step], points[-1]] if (len(points) - 1) % step else points[::step]
    for point in shown:
        table.add_row(f"{point.effective_bpw:.3f}", size(point.tensor_bytes), f"{point.loss:.4g}")
    table.print()


def probed(found: ProbeReport) -> None:
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
    _facts(rows)
    warn(found.warnings)


def quantized(report: QuantizeReport) -> None:
    """Print what was written."""
    plan(report.plan, curve=False)
    if report.manifest is None:
        note("dry run: nothing was written")
        return
    OUT.print()
    measured = report.manifest.totals.loss
    OUT.print(f"written and verified: {report.output} (loss of what was written: {measured:.4g})", markup=False)


def verified(report: VerifyReport) -> None:
    """Print what a verification found."""
    _facts(
        [
            ("digests", f"{report.files} files, {report.tensors} tensors"),
            ("decoded", f"{report.decoded} quantized tensors"),
            ("compared", f"{report.compared_with_source} tensors with the source"),
        ]
    )
    if report.unlisted:
        OUT.print(f"files that the manifest does not list: {', '.join(report.unlisted)}", markup=False)
    for problem in report.problems:
        where = problem.file if problem.tensor is None else f"{problem.file}: {problem.tensor}"
        OUT.print(f"{where}: {problem.what}", markup=False)
    count = len(report.problems)
    wrong = f"not as the manifest says: {count} problem{'s' if count > 1 else ''}"
    OUT.print("as the manifest says" if report.ok else wrong, markup=False)


def evaluated(found: Evaluation) -> None:
    """Print how far a model is from its reference."""
    _facts(
        [
            ("windows", f"{found.windows} of {found.window} tokens, {found.bos_note}; {found.tokens:,} predictions"),
            ("computed", found.computed),
            (
                "KL",
                f"{found.kl_mean:.5f} mean, {found.kl_median:.5f} median, {found.kl_p99:.5f} 99th percentile (nats)",
            ),
            ("perplexity", f"{found.perplexity_mean:.3f} mean, {found.perplexity_median:.3f} median"),
            (
                "reference",
                f"{found.reference_perplexity_mean:.3f} mean, {found.reference_perplexity_median:.3f} median",
            ),
            ("top-1", f"{100 * found.top1_agreement:.2f} % agreement"),
        ]
    )

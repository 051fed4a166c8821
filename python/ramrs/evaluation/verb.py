"""The verb ``eval``: the tokens, the choice of who runs the models, and the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ramrs import options as opts
from ramrs._core import Callback, call
from ramrs.errors import CheckpointError, ConfigError
from ramrs.options import EvalOptions
from ramrs.types import EvalReport, Evaluation

__all__ = ["evaluate"]


def evaluate(
    outputs: Sequence[Path], reference: Path, options: EvalOptions, progress: Callback | None
) -> tuple[Evaluation, ...]:
    """Evaluate ``outputs`` against ``reference`` with resolved options: see :func:`ramrs.eval`."""
    text, ids = (None if path is None else Path(path) for path in (options["text"], options["tokens"]))
    if text is not None and ids is not None:
        raise ConfigError("⟨text⟩ or ⟨tokens⟩: give the one or the other", slug="bad-option")
    if options["runtime"]:
        # Imported here: it needs MLX.
        from ramrs.evaluation import compare

        if text is None and ids is None:
            message = "⟨text⟩ or ⟨tokens⟩: mlx-lm needs one of them, since ramrs does not run the reference"
            raise ConfigError(message, slug="bad-option")
        found = compare.evaluate(outputs, reference, options, progress)
    else:
        found = _native(outputs, reference, options, progress)
    return tuple(replace(each, failures=_failures(each, options)) for each in found)


def _native(
    outputs: Sequence[Path], reference: Path, options: EvalOptions, progress: Callback | None
) -> list[Evaluation]:
    """Evaluate by the core."""
    text, ids = options["text"], options["tokens"]
    given = None
    if text is not None or ids is not None:
        # Imported here: nothing else needs NumPy.
        from ramrs.evaluation import tokens

        given = tokens.read(reference, text, ids)
    request = {
        **opts.section(EvalOptions, options, "eval"),
        "outputs": [str(output) for output in outputs],
        "reference": str(reference),
        "tokens": None if given is None else given.tolist(),
        "resources": opts.section(EvalOptions, options, "resources"),
    }
    try:
        report = call("eval", request, EvalReport, progress)
    except CheckpointError as fault:
        if fault.slug != "unrunnable":
            raise
        message, _ = fault.marked
        hint = "⟨runtime=mlx⟩ lets mlx-lm run the models, on a ⟨text⟩ or on ⟨tokens⟩"
        raise CheckpointError(message, slug=fault.slug, hint=hint, path=fault.path) from None
    return [
        Evaluation(
            output=each.output,
            kl_mean=each.kl.mean.value,
            kl_median=each.kl.median.value,
            kl_p99=each.kl.p99.value,
            perplexity_mean=each.perplexity.value,
            perplexity_median=each.perplexity_median,
            reference_perplexity_mean=each.reference_perplexity.value,
            reference_perplexity_median=each.reference_perplexity_median,
            top1_agreement=each.agreement.value,
            windows=report.windows,
            window=report.window,
            tokens=report.tokens,
            bos=report.bos,
            bos_note="no BOS" if report.bos is None else f"BOS {report.bos}",
            computed="float32 on decoded weights, by ramrs",
            origin=report.origin,
            kl_mean_error=each.kl.mean.error,
            kl_median_error=each.kl.median.error,
            kl_p99_error=each.kl.p99.error,
            perplexity_mean_error=each.perplexity.error,
            reference_perplexity_mean_error=each.reference_perplexity.error,
            top1_agreement_error=each.agreement.error,
        )
        for each in report.outputs
    ]


def _failures(found: Evaluation, options: EvalOptions) -> tuple[str, ...]:
    """Return the limits that an evaluation does not keep, and by how much."""
    failures = []
    most, least = options["max_kl"], options["min_agreement"]
    # Not `>`: NaN keeps no limit.
    if most is not None and not found.kl_mean <= most:
        failures.append(f"the mean KL divergence is {found.kl_mean:.5g}, {found.kl_mean - most:.5g} above {most:g}")
    if least is not None and not found.top1_agreement >= least:
        share, missing = found.top1_agreement, least - found.top1_agreement
        failures.append(f"the top-1 agreement is {share:.5g}, {missing:.5g} below {least:g}")
    return tuple(failures)

"""Compress LLM checkpoints from their weights alone, to a size you name.

>>> import ramrs
>>> report = ramrs.quantize("path/to/model", "out", budget=4.0)  # doctest: +SKIP
>>> report.plan.totals.effective_bpw  # doctest: +SKIP
3.9997

The verbs are :func:`inspect`, :func:`probe`, :func:`analyze`, :func:`plan`, :func:`quantize`, :func:`verify` and, with
the extra ``ramrs[eval]``, :func:`eval`. They take paths and keyword options, and return frozen dataclasses. No data is
needed, no GPU is used, nothing is downloaded. :mod:`ramrs.options` lists the options, :mod:`ramrs.types` the reports.
"""

from ramrs._native import version as _version
from ramrs.api import analyze, eval, finish, inspect, plan, probe, quantize, verify, weights  # noqa: A004
from ramrs.errors import (
    BudgetError,
    CheckpointError,
    ConfigError,
    InternalError,
    RamrsError,
    TensorError,
    VerifyError,
)
from ramrs.sizes import quantize_sizes
from ramrs.types import (
    Analysis,
    Evaluation,
    Inspection,
    Manifest,
    Plan,
    Policy,
    ProbeReport,
    Progress,
    QuantizeReport,
    VerifyReport,
)

__version__ = _version()

__all__ = [
    "Analysis",
    "BudgetError",
    "CheckpointError",
    "ConfigError",
    "Evaluation",
    "Inspection",
    "InternalError",
    "Manifest",
    "Plan",
    "Policy",
    "ProbeReport",
    "Progress",
    "QuantizeReport",
    "RamrsError",
    "TensorError",
    "VerifyError",
    "VerifyReport",
    "__version__",
    "analyze",
    "eval",
    "finish",
    "inspect",
    "plan",
    "probe",
    "quantize",
    "quantize_sizes",
    "verify",
    "weights",
]

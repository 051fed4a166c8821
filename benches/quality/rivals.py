"""Published methods as rows of the quality table: GPTQ with calibration text, SINQ and HQQ, each uniform.

All take embeddings and head from the uniform checkpoint that ramrs writes (searched, probe), so that only the matrices
of the layers differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gptq
import half_quadratic
import numpy as np
import ramrs
import sinq
from calibration import linears

NAMES = ("gptq", "sinq", "hqq")

Load = Callable[[Path], Any]


@dataclass(frozen=True)
class Measured:
    """A rival, ready to run."""

    name: str
    setting: str
    model: Any
    totals: ramrs.types.Totals
    more_bytes: int
    """Bytes of its file beyond those of the uniform checkpoint."""


class Rivals:
    """The rivals of a model."""

    def __init__(self, model: Path, load: Load, scratch: Path, keep: list[str], sensitivity: Callable[[], str]) -> None:
        self._model, self._load, self._scratch = model, load, scratch
        self._keep, self._sensitivity = keep, sensitivity
        self._plans: dict[Path, ramrs.types.Plan] = {}
        self._targets: list[gptq.Target] = []

    def _uniform(self, folder: str, size: tuple[int, int]) -> Path:
        """Write the uniform checkpoint."""
        out = self._scratch / folder
        report = ramrs.quantize(
            self._model,
            out,
            bits=size[0],
            group_size=size[1],
            keep=self._keep,
            sensitivity=self._sensitivity(),
            overwrite=True,
        )
        self._plans[out] = report.plan
        return out

    def calibrate(self, sizes: list[tuple[int, int]], rows: np.ndarray, *, sequential: bool) -> None:
        """Write what GPTQ makes of the model at every size, with every damping."""
        for size in sizes:
            for damping in gptq.DAMPINGS:
                out = self._uniform(f"gptq-{len(self._targets)}", size)
                self._targets.append(gptq.Target(out, *size, damping))
        gptq.write(lambda: self._load(self._model), rows, self._targets, sequential=sequential)

    def measured(self, names: list[str], size: tuple[int, int]) -> Iterator[Measured]:
        """Yield the rivals of a size, one model at a time."""
        for target in self._targets:
            if (target.bits, target.group_size) == size:
                totals = self._plans[target.folder].totals
                yield Measured("GPTQ, calibrated", str(target.damping), self._load(target.folder), totals, 0)
        for name in names:
            if name != "gptq":
                yield self._decoded(name, size)

    def _decoded(self, name: str, size: tuple[int, int]) -> Measured:
        """Put what SINQ or HQQ decode to into the uniform checkpoint."""
        out = self._uniform("uniform", size)
        model, sources = self._load(out), linears(self._load(self._model))
        dequantized = sinq.dequantized if name == "sinq" else half_quadratic.dequantized
        more = 0
        for at, layer in linears(model).items():
            weight = sources[at]._weight
            layer._weight = dequantized(weight, *size)
            more += sinq.more_bytes(weight.shape[1]) if name == "sinq" else 0
        return Measured(name.upper(), "", model, self._plans[out].totals, more)

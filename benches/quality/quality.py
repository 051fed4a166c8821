"""The quality table: models × sizes × rivals, KL divergence at equal bytes of the whole file.

    python benches/quality/quality.py MODEL... [--text FILE | --tokens FILE.npy] [--sizes 3g64,4g64] [--body]
        [--rivals gptq,sinq,hqq --calibration FILE] [--seeds 1,2] [--only REGEX]

A size is that of a uniform scheme. Every rival gets the bytes that the uniform scheme takes, file headers included, and
each row says what it took and what loss was predicted. The rivals: the uniform scheme by MLX's rule (what
`mlx_lm.convert` writes), the same with the searched encoder, the published MINT objective, plain squared error,
ramrs' own objective with each source of sensitivities, and with error feedback (`--effort high`). With `--body`
embeddings and head are kept, for all alike. `--seeds` makes the rows that the probe informs once for each seed of its
tokens: the table has their mean, `--json` has each.

`--rivals` adds published methods, uniform, from code of this folder: GPTQ with the searched grids, SINQ and HQQ. GPTQ
is calibrated on 8,000 tokens of the file `--calibration` (text, or token ids in `.npy`); if that is the text to measure
on, on its second half. The table has the best of its dampings on the measured windows, `--json` has all. `--sequential`
calibrates each layer behind the quantized ones, at one pass of the model for each damping.
SINQ's second scales count in its bytes, so that its file is larger than the others.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import calibration
import numpy as np
import ramrs
import rivals
from ramrs.evaluation import compare as evaluation
from ramrs.evaluation import tokens as token_ids

ROWS: list[tuple[str, dict[str, Any]]] = [
    ("uniform, MLX rule", {"uniform": True, "effort": "fast"}),
    ("uniform, searched, all channels alike", {"uniform": True, "objective": "mse"}),
    ("uniform, searched, weights", {"uniform": True, "sensitivity": "weights"}),
    ("uniform, searched, probe", {"uniform": True, "sensitivity": "self"}),
    ("MINT, MLX rule", {"objective": "mint", "effort": "fast"}),
    ("MINT, searched", {"objective": "mint"}),
    ("squared error, searched", {"objective": "mse"}),
    ("weights, searched", {"sensitivity": "weights"}),
    ("probe, MLX rule", {"sensitivity": "self", "effort": "fast"}),
    ("probe, random tokens, searched", {"sensitivity": "random"}),
    ("probe, searched", {"sensitivity": "self"}),
    ("uniform, error feedback", {"uniform": True, "sensitivity": "self", "effort": "high"}),
    ("error feedback", {"sensitivity": "self", "effort": "high"}),
]
EMBEDDINGS = "embed_tokens|lm_head"


PROBED = ("self", "random")
CALIBRATION_TOKENS = 8000


@dataclass(frozen=True)
class Comparison:
    """What to measure, and on what."""

    model: Path
    rows: np.ndarray
    calibration: np.ndarray | None
    sizes: list[tuple[int, int]]
    keep: list[str]
    rivals: list[str]
    sequential: bool
    seeds: list[int]
    only: re.Pattern[str]


def tokens_of(model: Path, path: Path) -> np.ndarray:
    """Read a text, or token ids."""
    return token_ids.read(model, *((None, path) if path.suffix == ".npy" else (path, None)))


def windows(model: Path, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray | None]:
    """Cut the first windows of the text, and those to calibrate on."""
    path = options.text or options.tokens
    first, _ = evaluation._bos(model, "auto")
    ids = tokens_of(model, path)
    rows = evaluation._windows(ids, options.window, None, first)[: options.windows]
    if options.calibration is None:
        return rows, None
    is_measured = options.calibration.resolve() == path.resolve()
    # Not right behind the measured windows, where the text is about the same things.
    ids = ids[max(rows.size, len(ids) // 2) :] if is_measured else tokens_of(model, options.calibration)
    return rows, calibration.windows(ids, CALIBRATION_TOKENS, first)


class Measure:
    """Rows of the table of a model."""

    def __init__(self, reference: Any, model: Path, rows: np.ndarray) -> None:  # noqa: ANN401
        self._model, self._rows = model, rows
        self._wanted = [evaluation._logits(reference, row) for row in rows]

    def row(self, model: Any, totals: ramrs.types.Totals, more_bytes: int = 0) -> dict[str, Any]:  # noqa: ANN401
        """Measure a loaded model, whose file has ``more_bytes`` more than the totals."""
        sums = evaluation._Sums()
        for logits, row in zip(self._wanted, self._rows, strict=True):
            sums.add([logits, evaluation._logits(model, row)], row)
        found = sums.evaluation(self._model, self._rows.shape[1], None, "", "")
        return {
            "model": self._model.name,
            "file_bytes": totals.file_bytes + more_bytes,
            "effective_bpw": totals.effective_bpw * (1 + more_bytes / totals.file_bytes),
            "kl_mean": found.kl_mean,
            "kl_median": found.kl_median,
            "kl_p99": found.kl_p99,
            "top1_agreement": found.top1_agreement,
            "perplexity_mean": found.perplexity_mean,
            "perplexity_median": found.perplexity_median,
            "reference_perplexity_mean": found.reference_perplexity_mean,
        }


class Sensitivities:
    """Sensitivity files of a model, each made when it is first asked for."""

    def __init__(self, model: Path, scratch: Path) -> None:
        self._model, self._scratch = model, scratch

    def file(self, mode: str, seed: int) -> str:
        """Run the probe, unless it ran in this way before."""
        path = self._scratch / f"{mode}-{seed}.safetensors"
        if not path.exists():
            ramrs.probe(self._model, path, mode=mode, seed=seed)
        return str(path)

    def of(self, row: dict[str, Any], seed: int) -> dict[str, Any]:
        """Give the options of a row their sensitivity."""
        mode = row.get("sensitivity")
        if mode not in PROBED:
            return {"sensitivity": "weights"} | row
        if row.get("effort") == "high":
            # Error feedback needs more of the model's run than a file holds.
            return row | {"sensitivity": "probe", "probe_mode": mode, "probe_seed": seed}
        return row | {"sensitivity": self.file(mode, seed)}


def rows_of(of: Comparison, size: tuple[int, int]) -> Iterator[tuple[str, dict[str, Any], int | None]]:
    """Yield the wanted rows of a size with their options; those that the probe informs for every seed."""
    for name, options in ROWS:
        if of.only.search(name):
            for seed in of.seeds if options.get("sensitivity") in PROBED else [None]:
                how = dict(options)
                if how.pop("uniform", False):
                    how |= {"bits": size[0], "group_size": size[1]}
                yield name, how, seed


def table(of: Comparison) -> Iterator[dict[str, Any]]:
    """Measure every rival at every size."""
    with tempfile.TemporaryDirectory() as scratch, evaluation._runtime(False) as load:
        measure, out = Measure(load(of.model), of.model, of.rows), Path(scratch) / "out"
        sources = Sensitivities(of.model, Path(scratch))
        others = rivals.Rivals(of.model, load, Path(scratch), of.keep, lambda: sources.file("self", of.seeds[0]))
        if of.calibration is not None and "gptq" in of.rivals:
            others.calibrate(of.sizes, of.calibration, sequential=of.sequential)
        for size in of.sizes:
            common_fields = {"size": f"{size[0]}g{size[1]}", "setting": "", "predicted": None}
            uniform = ramrs.plan(of.model, bits=size[0], group_size=size[1], keep=of.keep, sensitivity="weights")
            budget = f"{uniform.totals.file_bytes}B"
            for name, how, seed in rows_of(of, size):
                how = how if "bits" in how else {**how, "budget": budget}
                how = sources.of(how, seed or 0)
                report = ramrs.quantize(of.model, out, **how, keep=of.keep, check=False, overwrite=True)
                row = common_fields | {"rival": name, "seed": seed} | measure.row(load(out), report.plan.totals)
                if how.get("objective", "output") == "output":
                    # Only ramrs' own objective predicts nats per token.
                    row["predicted"] = report.plan.totals.loss
                yield row
            for other in others.measured(of.rivals, size):
                found = measure.row(other.model, other.totals, other.more_bytes)
                yield common_fields | {"rival": other.name, "setting": other.setting, "seed": None} | found


def best(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the best setting of each rival that has several, in the first one's place."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in results:
        key = (row["model"], row["size"], row["rival"], row["seed"])
        if key not in kept or row["kl_mean"] < kept[key]["kl_mean"]:
            kept[key] = row
    return list(kept.values())


def averaged(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace the rows of several seeds by their mean, in the first one's place."""
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in results:
        alike.setdefault((row["model"], row["size"], row["rival"], row["setting"]), []).append(row)
    means = []
    for rows in alike.values():
        mean = dict(rows[0])
        if len(rows) > 1:
            for key, value in rows[0].items():
                if key not in ("seed", "model", "size", "rival", "setting") and value is not None:
                    mean[key] = sum(row[key] for row in rows) / len(rows)
            mean |= {"file_bytes": round(mean["file_bytes"]), "setting": f"mean of {len(rows)} seeds", "seed": None}
        means.append(mean)
    return means


def named(row: dict[str, Any]) -> str:
    """Name a row: rival, setting, and seed if it is not the default."""
    seed = f"seed {row['seed']}" if row["seed"] else ""
    return ", ".join(part for part in (row["rival"], row["setting"], seed) if part)


def shown(loss: float | None) -> str:
    """Write a predicted loss, if there is one."""
    return "" if loss is None else f"{loss:.4f}"


def markdown(results: list[dict[str, Any]]) -> str:
    """Make a table of the results."""
    columns = "| model | size of | rival | file bytes | bpw | predicted | KL mean | median | p99 | top-1 "
    columns += "| perplexity mean | median |"
    lines = [columns, "|---" * (columns.count("|") - 1) + "|"]
    lines.extend(
        f"| {row['model']} | {row['size']} | {named(row)} | {row['file_bytes']:,} | {row['effective_bpw']:.3f} "
        f"| {shown(row['predicted'])} | {row['kl_mean']:.4f} | {row['kl_median']:.4f} | {row['kl_p99']:.3f} "
        f"| {row['top1_agreement']:.3f} | {row['perplexity_mean']:.2f} | {row['perplexity_median']:.2f} |"
        for row in results
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--window", type=int, default=384)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--sizes", default="3g64,4g64")
    parser.add_argument("--body", action="store_true", help="keep embeddings and head")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    parser.add_argument("--rivals", default="", help=f"of {', '.join(rivals.NAMES)}, separated by commas")
    parser.add_argument("--calibration", type=Path, help="text or token ids for GPTQ")
    parser.add_argument("--sequential", action="store_true", help="GPTQ: let layers see what quantized layers give")
    parser.add_argument("--seeds", default="0", help="seeds of the probe, separated by commas")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="rows of ramrs to make")
    options = parser.parse_args()
    wanted = [name for name in options.rivals.split(",") if name]
    if unknown := set(wanted) - set(rivals.NAMES):
        parser.error(f"no such rivals: {', '.join(sorted(unknown))}")
    if "gptq" in wanted and options.calibration is None:
        parser.error("gptq needs --calibration")
    results = []
    for model in options.models:
        rows, calibrating = windows(model, options)
        comparison = Comparison(
            model=model,
            rows=rows,
            calibration=calibrating,
            sizes=[(int(bits), int(group)) for bits, group in (size.split("g") for size in options.sizes.split(","))],
            keep=[EMBEDDINGS] if options.body else [],
            rivals=wanted,
            sequential=options.sequential,
            seeds=[int(seed) for seed in options.seeds.split(",")],
            only=options.only,
        )
        for row in table(comparison):
            results.append(row)
            found = f"KL {row['kl_mean']:.4f}, predicted {shown(row['predicted'])}"
            print(f"{row['model']} {row['size']} {named(row)}: {found}", flush=True)
    print("\n" + markdown(averaged(best(results))))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

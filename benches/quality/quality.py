"""The quality table: models × sizes × rivals, KL divergence at equal bytes of the whole file.

    python benches/quality/quality.py MODEL... [--text FILE | --tokens FILE.npy] [--sizes 3g64,4g64] [--body]

A size is that of a uniform scheme. Every rival gets the bytes that the uniform scheme takes, file headers included, and
each row says what it took and what loss was predicted. The rivals: the uniform scheme by MLX's rule (what
`mlx_lm.convert` writes), the same with the searched encoder, the published MINT objective, plain squared error, and
ramrs' own objective with each source of sensitivities. With `--body` embeddings and head are kept, for all alike.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ramrs
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
]
EMBEDDINGS = "embed_tokens|lm_head"


def windows(model: Path, text: Path | None, tokens: Path | None, window: int, count: int) -> np.ndarray:
    """Cut the first ``count`` windows of the text."""
    ids = token_ids.read(model, text, tokens)
    first, _ = evaluation._bos(model, "auto")
    return evaluation._windows(ids, window, None, first)[:count]


def table(model: Path, rows: np.ndarray, sizes: list[str], keep: list[str]) -> Iterator[dict[str, Any]]:
    """Measure every rival at every size."""
    with tempfile.TemporaryDirectory() as scratch, evaluation._runtime(False) as load:
        reference = load(model)
        wanted = [evaluation._logits(reference, row) for row in rows]
        del reference
        sources = {"weights": "weights"}
        for mode in ("random", "self"):
            sources[mode] = f"{scratch}/{mode}.safetensors"
            ramrs.probe(model, sources[mode], mode=mode)
        for size in sizes:
            bits, group_size = map(int, size.split("g"))
            uniform = ramrs.plan(model, bits=bits, group_size=group_size, keep=keep, sensitivity="weights")
            budget = f"{uniform.totals.file_bytes}B"
            for name, options in ROWS:
                options = {**options, "sensitivity": sources[options.get("sensitivity", "weights")], "keep": keep}
                how = {"bits": bits, "group_size": group_size} if options.pop("uniform", False) else {"budget": budget}
                out = Path(scratch) / "out"
                report = ramrs.quantize(model, out, overwrite=True, **how, **options)
                sums, quantized = evaluation._Sums(), load(out)
                for logits, row in zip(wanted, rows, strict=True):
                    sums.add([logits, evaluation._logits(quantized, row)], row)
                found = sums.evaluation(out, rows.shape[1], None, "", "")
                totals = report.plan.totals
                yield {
                    "model": model.name,
                    "size": size,
                    "rival": name,
                    "file_bytes": totals.file_bytes,
                    "effective_bpw": totals.effective_bpw,
                    # Only ramrs' own objective predicts nats per token.
                    "predicted": totals.loss if options.get("objective", "output") == "output" else None,
                    "kl_mean": found.kl_mean,
                    "kl_median": found.kl_median,
                    "kl_p99": found.kl_p99,
                    "top1_agreement": found.top1_agreement,
                    "perplexity_mean": found.perplexity_mean,
                    "perplexity_median": found.perplexity_median,
                    "reference_perplexity_mean": found.reference_perplexity_mean,
                }


def shown(loss: float | None) -> str:
    """Write a predicted loss, if there is one."""
    return "" if loss is None else f"{loss:.4f}"


def markdown(results: list[dict[str, Any]]) -> str:
    """Make a table of the results."""
    columns = "| model | size of | rival | file bytes | bpw | predicted | KL mean | median | p99 | top-1 "
    columns += "| perplexity mean | median |"
    lines = [columns, "|---" * (columns.count("|") - 1) + "|"]
    lines.extend(
        f"| {row['model']} | {row['size']} | {row['rival']} | {row['file_bytes']:,} | {row['effective_bpw']:.3f} "
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
    options = parser.parse_args()
    results = []
    keep = [EMBEDDINGS] if options.body else []
    for model in options.models:
        rows = windows(model, options.text, options.tokens, options.window, options.windows)
        for row in table(model, rows, options.sizes.split(","), keep):
            results.append(row)
            found = f"KL {row['kl_mean']:.4f}, predicted {shown(row['predicted'])}"
            print(f"{row['model']} {row['size']} {row['rival']}: {found}", flush=True)
    print("\n" + markdown(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

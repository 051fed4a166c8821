"""What quantization does to the sentence embeddings of a BERT: uniform schemes, and plans of the same bytes.

    python benches/quality/embeddings.py models/minilm-l6 --text tests/data/text/tinystories.txt [--float16]

`benches/quality/models.py` makes the model. MLX has no layout for it, hence `generic=True`, and the probe does not know
its forward pass, hence sensitivities from the weights, which is what the default comes to; its warnings are printed.
Every output is decoded and run over sentences of the text: cosines between a sentence's embedding (mean over tokens, of
unit length) and that of the original model, and Spearman's correlation of the cosines of all pairs of sentences.
Scales and biases have the type of the weights, here float32; with `--float16` the weights are cast first.

The forward pass is NumPy's. Each run checks it on the original model against the three similarities that the
documentation of Sentence Transformers (sbert.net, "Usage") prints for all-MiniLM-L6-v2, to the four digits printed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ramrs
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

ROWS: list[tuple[str, dict[str, Any]]] = [
    ("uniform, MLX rule", {"uniform": True, "effort": "fast"}),
    ("uniform, searched", {"uniform": True}),
    ("planned, searched", {}),
]
KNOWN_SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
KNOWN = np.array([[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]])

Weights = dict[str, np.ndarray]


def decoded(out: Path) -> Weights:
    """Decode an output: codes are a little-endian bit stream, weights are code × scale + bias in float32."""
    weights = load_file(out / "model.safetensors")
    for line in ramrs.Manifest.read(out / "ramrs-manifest.json").ledger:
        for matrix in line.quantized:
            stem = matrix.into.removesuffix(".weight")
            bits = int(matrix.scheme.split("g")[0])
            parts = (weights.pop(f"{stem}.{part}").astype(np.float32) for part in ("scales", "biases"))
            scales, biases = (part[..., None] for part in parts)
            stream = np.unpackbits(weights[matrix.into].view(np.uint8), axis=1, bitorder="little")
            codes = np.packbits(stream.reshape(len(stream), -1, bits), axis=2, bitorder="little")
            grouped = codes.reshape(*scales.shape[:2], -1).astype(np.float32)
            weights[matrix.into] = (grouped * scales + biases).reshape(len(stream), -1)
    return weights


def gelu(x: np.ndarray) -> np.ndarray:
    """GELU by the error function, that of Abramowitz and Stegun, 7.1.26, which is off by 1.5e-7 at most."""
    z = np.abs(x) / math.sqrt(2)
    t = 1 / (1 + 0.3275911 * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return x * (1 + np.copysign(1 - series * np.exp(-z * z), x)) / 2


def embedding(weights: Weights, config: dict[str, Any], ids: list[int]) -> np.ndarray:
    """Run the model on the tokens of one sentence; its embedding."""

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        apart = x - x.mean(axis=-1, keepdims=True)
        unit = apart / np.sqrt(np.square(apart).mean(axis=-1, keepdims=True) + config["layer_norm_eps"])
        return unit * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(ids), config["num_attention_heads"], -1).swapaxes(0, 1)

    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm(x + weights["embeddings.position_embeddings.weight"][: len(ids)], "embeddings.LayerNorm")
    for at in (f"encoder.layer.{layer}" for layer in range(config["num_hidden_layers"])):
        query, key, value = (heads(linear(x, f"{at}.attention.self.{part}")) for part in ("query", "key", "value"))
        scores = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (shares / shares.sum(axis=-1, keepdims=True) @ value).swapaxes(0, 1).reshape(x.shape)
        attended = linear(mixed, f"{at}.attention.output.dense")
        x = norm(x + attended, f"{at}.attention.output.LayerNorm")
        inner = gelu(linear(x, f"{at}.intermediate.dense"))
        x = norm(x + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    pooled = x.mean(axis=0)
    return pooled / np.linalg.norm(pooled)


def sentences(text: str, count: int) -> list[str]:
    """Take ``count`` distinct sentences, evenly from the whole text."""
    found = re.split(r'(?<=[.!?])\s+|(?<=[.!?]")\s+|\s*<\|endoftext\|>\s*|\n+', text)
    distinct = list(dict.fromkeys(sentence for sentence in found if len(sentence.split()) > 2))
    return distinct[:: max(1, len(distinct) // count)][:count]


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank the values."""
    return values.argsort(kind="stable").argsort(kind="stable")


def halved(model: Path, out: Path) -> Path:
    """Write the checkpoint with its weights in float16."""
    out.mkdir()
    shutil.copy(model / "config.json", out)
    weights = load_file(model / "model.safetensors")
    half = {name: held.astype(np.float16) if held.dtype == np.float32 else held for name, held in weights.items()}
    save_file(half, out / "model.safetensors", metadata={"format": "pt"})
    return out


def table(model: Path, wanted: list[str], sizes: list[str], half: bool) -> Iterator[dict[str, Any]]:
    """Measure every rival at every size."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()

    def embed(weights: Weights, texts: list[str]) -> np.ndarray:
        return np.stack([embedding(weights, config, tokenizer.encode(text).ids) for text in texts])

    original = load_file(model / "model.safetensors")
    known = embed(original, KNOWN_SENTENCES)
    if np.abs(known @ known.T - KNOWN).max() > 5.1e-5:  # half of the last digit, and float32's own
        raise SystemExit(f"not the similarities that are documented: {known @ known.T}")
    reference = embed(original, wanted)
    pairs = np.triu_indices(len(wanted), 1)
    order = ranks((reference @ reference.T)[pairs])
    with tempfile.TemporaryDirectory() as scratch:
        out, source = Path(scratch) / "out", halved(model, Path(scratch) / "half") if half else model
        for size in sizes:
            bits, group_size = map(int, size.split("g"))
            uniform = ramrs.plan(source, bits=bits, group_size=group_size, generic=True, sensitivity="weights")
            budget = f"{uniform.totals.file_bytes}B"
            for name, options in ROWS:
                options = {**options, "generic": True, "sensitivity": "weights", "overwrite": True}
                how = {"bits": bits, "group_size": group_size} if options.pop("uniform", False) else {"budget": budget}
                report = ramrs.quantize(source, out, **how, **options)
                found = embed(decoded(out), wanted)
                cosines = (found * reference).sum(axis=1)
                yield {
                    "size": size,
                    "rival": name,
                    "file_bytes": report.plan.totals.file_bytes,
                    "effective_bpw": report.plan.totals.effective_bpw,
                    "cosine_mean": float(cosines.mean()),
                    "cosine_p1": float(np.percentile(cosines, 1)),
                    "spearman": float(np.corrcoef(order, ranks((found @ found.T)[pairs]))[0, 1]),
                }


def markdown(results: list[dict[str, Any]]) -> str:
    """Make a table of the results."""
    columns = "| size of | rival | file bytes | bpw | cosine mean | p1 | Spearman |"
    lines = [columns, "|---" * (columns.count("|") - 1) + "|"]
    lines.extend(
        f"| {row['size']} | {row['rival']} | {row['file_bytes']:,} | {row['effective_bpw']:.3f} "
        f"| {row['cosine_mean']:.5f} | {row['cosine_p1']:.5f} | {row['spearman']:.5f} |"
        for row in results
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--sentences", type=int, default=300)
    parser.add_argument("--sizes", default="3g64,4g64,8g64")
    parser.add_argument("--float16", action="store_true", help="cast the weights to float16 first")
    options = parser.parse_args()
    wanted = sentences(options.text.read_text(encoding="utf-8"), options.sentences)
    print(f"{len(wanted)} sentences")
    for warning in ramrs.plan(options.model, bits=4, generic=True).warnings:
        print(f"warning: {warning}")
    results = []
    for row in table(options.model, wanted, options.sizes.split(","), options.float16):
        results.append(row)
        print(f"{row['size']} {row['rival']}: cosine {row['cosine_mean']:.4f}", flush=True)
    print("\n" + markdown(results))


if __name__ == "__main__":
    main()

"""KL divergence of compressed-tensors outputs from their original, computed by transformers in float32.

    P=build/runtimes/transformers/bin/python
    $P benches/quality/in_transformers.py REFERENCE OUTPUT... --text FILE...

It runs in the environment that ``make runtimes`` makes. A text gives ``--windows`` windows of 256 tokens, spread
evenly, each with BOS first. The table has the bytes of the weight files, and the mean KL of each text in nats per
token.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

WINDOW = 256
CHARACTERS = 200_000
"""Characters of a text that are encoded."""


def windows_of(text: Path, tokenizer: Any, count: int) -> list[list[int]]:  # noqa: ANN401
    """Return evenly spread windows of a text."""
    ids = tokenizer(text.read_text(encoding="utf-8")[:CHARACTERS])["input_ids"]
    starts = [(len(ids) - WINDOW + 1) * at // count for at in range(count)]
    return [[tokenizer.bos_token_id or 0, *ids[start : start + WINDOW - 1]] for start in starts]


def log_probabilities(checkpoint: Path, windows: list[list[int]]) -> list[torch.Tensor]:
    """Return the log-probabilities ``[positions, vocabulary]`` of each window."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)
    if getattr(model, "hf_quantizer", None) is not None:
        # Some weights would stay in bfloat16.
        model.hf_quantizer.compressor.decompress_model(model)
        model.to(torch.float32)
    with torch.no_grad():
        return [model.eval()(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in windows]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("outputs", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--windows", type=int, default=4)
    given = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(given.reference, local_files_only=True)
    windows = [ids for text in given.text for ids in windows_of(text, tokenizer, given.windows)]
    reference = log_probabilities(given.reference, windows)
    print("| output | bytes |", " | ".join(text.stem for text in given.text), "| mean |")
    print("|---|---|" + "---|" * (len(given.text) + 1))
    for output in given.outputs:
        size = sum(path.stat().st_size for path in output.glob("*.safetensors"))
        pairs = zip(reference, log_probabilities(output, windows), strict=True)
        found = np.array([float((one.exp() * (one - other)).sum(-1).mean()) for one, other in pairs])
        by_text = found.reshape(len(given.text), given.windows).mean(1)
        print(
            f"| {output.name} | {size} |", " | ".join(f"{kl:.4f}" for kl in [*by_text, found.mean()]), "|", flush=True
        )


if __name__ == "__main__":
    main()

"""Transformers."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from ramrs.runtimes import BOUND, ROUNDED, Found

FORMAT = "compressed-tensors"
MODULES = ("torch", "transformers", "compressed_tensors")
PACKAGES = "torch transformers compressed-tensors"


def version() -> str:
    """Return the versions of the runtime."""
    import compressed_tensors
    import transformers

    return f"transformers {transformers.__version__}, compressed-tensors {compressed_tensors.__version__}"


def run(output: Path, tokens: list[int]) -> Found:
    """Load an output strictly, and run it in float32 on the CPU.

    Weights are decompressed by the runtime's own function before, and converted: at the first forward pass it would
    leave some of them in bfloat16.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            output, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        if getattr(model, "hf_quantizer", None) is not None:
            model.hf_quantizer.compressor.decompress_model(model)
        model = model.to(device="cpu", dtype=torch.float32).eval()
        with torch.no_grad():
            found = model(torch.tensor([tokens])).logits[0].float().numpy()
    except Exception as fault:  # of any kind: this is model code
        reason = textwrap.shorten(f"{type(fault).__name__}: {fault}", 300, placeholder=" …")
        return Found(None, [f"it does not load and run the output: {reason}"])
    return Found(found, _complaints(loading), ROUNDED if _is_rounded(output) else BOUND)


def _complaints(loading: dict[str, Any]) -> list[str]:
    """Say what is missing or of another shape. What is left over is not read: heads that predict further tokens."""
    words = {"missing_keys": "it misses", "mismatched_keys": "it has another shape for", "error_msgs": "it says"}
    found = {word: sorted(map(str, loading.get(key) or ())) for key, word in words.items()}
    return [f"{word} {', '.join(names[:3])}{', …' if len(names) > 3 else ''}" for word, names in found.items() if names]


def _is_rounded(output: Path) -> bool:
    """Tell whether transformers rounds decoded weights to bfloat16: packed experts, and NVFP4."""
    ledger = json.loads((output / "ramrs-manifest.json").read_bytes())["ledger"]
    quantized = [entry for line in ledger for entry in line["quantized"]]
    return any("experts" in entry["into"] or "nvfp4" in entry["scheme"] for entry in quantized)

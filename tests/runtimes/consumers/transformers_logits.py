"""Compute logits with transformers: runs in an environment of its own, without ramrs.

    python transformers_logits.py JOB.json

The job is ``{"tokens": [...], "runs": [{"checkpoint": PATH, "output": PATH, "dtype": "float32"}, ...]}``. A run writes
the logits ``[tokens, vocabulary]`` to OUTPUT.npy in float32, and what happened to OUTPUT.json: ``loaded``, the names of
weights that the checkpoint lacks or that the model does not take, or the type and message of the error.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging


def logits_of(checkpoint: str, tokens: list[int], dtype: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Load a checkpoint and compute the logits of a text.

    Transformers decompresses dense modules at the first forward pass and, whatever the dtype asked for, leaves some
    weights in bfloat16: packed experts, floats of 4 bits. For arithmetic in float32 throughout, the model is
    decompressed by the same function before, and converted. In bfloat16 it runs as it is loaded.
    """
    number = getattr(torch, dtype)
    model, loading = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=number, output_loading_info=True, local_files_only=True
    )
    if number == torch.float32 and getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.compressor.decompress_model(model)
        model.to(number)
    with torch.no_grad():
        logits = model.eval()(torch.tensor([tokens])).logits[0].float().numpy()
    return logits, {key: sorted(map(str, names)) for key, names in loading.items() if names}


def run(tokens: list[int], checkpoint: str, output: str, dtype: str) -> None:
    """Write the logits of a checkpoint, or why there are none."""
    began = time.monotonic()
    try:
        logits, problems = logits_of(checkpoint, tokens, dtype)
        np.save(f"{output}.npy", logits)
        report: dict[str, Any] = {"loaded": True, "problems": problems}
    except Exception as error:  # whatever the runtime raises is its answer
        report = {"loaded": False, "type": type(error).__name__, "message": str(error)}
    report["seconds"] = round(time.monotonic() - began, 2)
    Path(f"{output}.json").write_text(json.dumps(report), encoding="utf-8")


def main() -> None:
    """Run a job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    job = json.loads(parser.parse_args().job.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    for item in job["runs"]:
        run(job["tokens"], **item)


if __name__ == "__main__":
    main()

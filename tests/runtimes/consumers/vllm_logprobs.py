"""Compute log-probabilities with vLLM on a CPU: runs in an environment of its own, without ramrs.

    python vllm_logprobs.py JOB.json

The job is ``{"tokens": [...], "runs": [{"checkpoint": PATH, "output": PATH, "dtype": "bfloat16"}, ...]}``. A run
writes log-probabilities ``[tokens, vocabulary]`` to OUTPUT.npy in float32, and what happened to OUTPUT.json: ``loaded``
and the tokens generated, or the type and message of the error. What vLLM prints goes to OUTPUT.log.

vLLM is imported once. Each run is a child process, because vLLM does not free all that a model took.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

TIME_LIMIT = 240
"""Seconds for one run."""

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def logprobs_of(checkpoint: str, tokens: list[int], dtype: str) -> tuple[np.ndarray, list[int]]:
    """Load a checkpoint, compute the log-probabilities of a text, and generate a few tokens after it."""
    from vllm import LLM, SamplingParams

    model = LLM(
        model=checkpoint,
        dtype=dtype,
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=len(tokens) + 8,
        max_logprobs=-1,
        enable_prefix_caching=False,
        disable_log_stats=True,
        seed=0,
    )
    wanted = SamplingParams(max_tokens=4, temperature=0, prompt_logprobs=-1, logprobs=-1, detokenize=False)
    (result,) = model.generate([{"prompt_token_ids": tokens}], wanted, use_tqdm=False)
    # The first token has no prediction; the prediction after the last token is that of the first generated one.
    rows = [row for row in result.prompt_logprobs if row] + [result.outputs[0].logprobs[0]]
    values = np.full((len(rows), max(map(max, rows)) + 1), -np.inf, np.float32)
    for at, row in enumerate(rows):
        for token, entry in row.items():
            values[at, token] = entry.logprob
    return values, list(result.outputs[0].token_ids)


def run(tokens: list[int], checkpoint: str, output: str, dtype: str) -> None:
    """Write the log-probabilities of a checkpoint, or why there are none."""
    began = time.monotonic()
    # By default the kernel for 4 bits rounds activations to 8 bits. Without that it is exact in float16; in bfloat16 it
    # ends the process on small matrices (vLLM 0.32).
    os.environ["VLLM_CPU_INT4_W4A8"] = "0" if dtype == "float16" else "1"
    try:
        values, generated = logprobs_of(checkpoint, tokens, dtype)
        np.save(f"{output}.npy", values)
        report: dict[str, Any] = {"loaded": True, "generated": generated}
    except BaseException as error:  # whatever the runtime raises is its answer
        report = {"loaded": False, "type": type(error).__name__, "message": str(error)}
    report["seconds"] = round(time.monotonic() - began, 2)
    Path(f"{output}.json").write_text(json.dumps(report), encoding="utf-8")


def in_child(tokens: list[int], item: dict[str, str]) -> None:
    """Do a run in a child process; end it after the time limit."""
    child = os.fork()
    if child == 0:
        log = os.open(f"{item['output']}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        run(tokens, **item)
        sys.stdout.flush()
        os._exit(0)
    began = time.monotonic()
    ended, status = os.waitpid(child, os.WNOHANG)
    while not ended:
        if time.monotonic() - began > TIME_LIMIT:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.1)
        ended, status = os.waitpid(child, os.WNOHANG)
    result = Path(f"{item['output']}.json")
    if not result.exists():
        code = os.waitstatus_to_exitcode(status)
        reason = f"signal {-code}" if code < 0 else f"status {code}"
        report = {"loaded": False, "type": "Crash", "message": f"{reason} after {time.monotonic() - began:.0f} s"}
        result.write_text(json.dumps(report), encoding="utf-8")


def main() -> None:
    """Run a job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    job = json.loads(parser.parse_args().job.read_text(encoding="utf-8"))
    os.environ.update(SETTINGS)
    # Children inherit what is imported here. The modules are those that loading a model would import.
    import vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors
    import vllm.model_executor.models.llama
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.cpu_worker  # noqa: F401

    for item in job["runs"]:
        in_child(job["tokens"], item)


if __name__ == "__main__":
    main()

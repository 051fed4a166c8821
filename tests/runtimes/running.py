"""Run the consumers in their environments."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fixtures.paths import ROOT

CONSUMERS = Path(__file__).parent / "consumers"
PROGRAMS = {
    "transformers": "transformers_logits.py",
    "vllm": "vllm_logprobs.py",
    "llama-cpp": "llama_cpp_logits.py",
}
TOKENS = list(range(3, 40))
"""A text that every fixture's vocabulary has."""
# fmt: off
STORY = [
    2705, 1194, 28, 253, 1838, 8180, 3365, 14176, 983, 253, 12668, 281, 874, 3589, 30, 2306, 5341, 357,
    436, 1990, 288, 1238, 351, 357, 975, 357, 436, 7858, 30, 14176, 4146, 288, 2419, 260, 12668, 351,
    874,
]
# fmt: on
"""The beginning of `tests/data/text/tinystories.txt` in tokens of SmolLM2."""


@dataclass(frozen=True)
class Outcome:
    """What a runtime made of a checkpoint."""

    loaded: bool
    values: np.ndarray | None = None
    """Logits of transformers and llama.cpp, log-probabilities of vLLM: [tokens, vocabulary]."""
    words: str = ""
    """The type and the message of the error."""
    problems: dict | None = None
    """Weights that transformers missed or left over."""
    generated: list | None = None
    """Tokens that vLLM or llama.cpp generated after the text."""


def environment(name):
    """Return the Python of a runtime: of ``make runtimes``, or below the folder that RAMRS_RUNTIMES names."""
    folder = Path(os.environ.get("RAMRS_RUNTIMES", ROOT / "build" / "runtimes"))
    return folder / name / "bin" / "python"


def consume(runtime, checkpoints, scratch, dtype="float32", tokens=TOKENS):
    """Run a consumer once for all ``checkpoints``, a dictionary of directories; outcomes by the same keys."""
    scratch.mkdir(parents=True, exist_ok=True)
    outputs = {key: scratch / str(at) for at, key in enumerate(checkpoints)}
    runs = [
        {"checkpoint": str(directory), "output": str(outputs[key]), "dtype": dtype}
        for key, directory in checkpoints.items()
    ]
    job = scratch / "job.json"
    job.write_text(json.dumps({"tokens": tokens, "runs": runs}))
    settings = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    program = subprocess.run(
        [environment(runtime), CONSUMERS / PROGRAMS[runtime], job],
        capture_output=True,
        text=True,
        check=False,
        env=settings,
    )
    if program.returncode:
        raise RuntimeError(f"{runtime} ended with {program.returncode}: {program.stderr[-2000:]}")
    return {key: outcome(output) for key, output in outputs.items()}


def outcome(output):
    """Read what a consumer wrote."""
    report = json.loads(output.with_suffix(".json").read_text())
    if not report["loaded"]:
        return Outcome(False, words=f"{report['type']}: {report['message']}")
    values = np.load(output.with_suffix(".npy"))
    return Outcome(True, values, problems=report.get("problems"), generated=report.get("generated"))


def log_softmax(logits):
    """Return log-probabilities in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def divergence(reference, other):
    """Return the mean KL divergence of log-probabilities from those of the reference, in nats per token."""
    return float((np.exp(reference) * (reference - other)).sum(-1).mean())


def difference(reference, other):
    """Return the largest difference of logits as a share of the reference's range."""
    return float(np.abs(reference - other).max() / (reference.max() - reference.min()))

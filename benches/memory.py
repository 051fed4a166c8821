"""Peak memory of quantizing and of probing a checkpoint, above that of a bare interpreter.

    python benches/memory.py MODEL [--budget 4.0] [--threads 2] [--limit-mib 128] [--probe-limit-mib 1024]
                             [--feedback] [--feedback-limit-mib 2048]

`--feedback` adds a row for `--effort high`. Exits with 1 above a limit. Peak resident memory as the kernel counts it,
of one process for each row: a bare interpreter, one that has imported ramrs, one that quantizes by the weights alone,
and one for each way to probe. `benches/synthetic.py` makes checkpoints of any size. One layer as wide as those of an 8B
model:

    python benches/synthetic.py WIDE --gigabytes 0.45 --width 4096 --inner 14336 --vocabulary 4096
    python benches/memory.py WIDE --feedback
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def peak_mib(code: str, *arguments: str) -> float:
    """Run ``code`` in a fresh interpreter; the most memory it held, in MiB."""
    process = subprocess.Popen([sys.executable, "-c", code, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"exit code {process.returncode}: {code}")
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--budget", default="4.0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit-mib", type=float, default=128.0)
    parser.add_argument("--probe-limit-mib", type=float, default=1024.0)
    parser.add_argument("--feedback", action="store_true", help="quantize with error feedback, too")
    parser.add_argument("--feedback-limit-mib", type=float, default=2048.0)
    options = parser.parse_args()
    model, threads = str(options.model), f"threads={options.threads}"
    quantize = (
        f"import sys, ramrs; ramrs.quantize(sys.argv[1], sys.argv[2], budget=sys.argv[3], overwrite=True, {threads}, "
    )
    probe = f"import sys, ramrs; ramrs.probe(sys.argv[1], sys.argv[2], mode=sys.argv[3], {threads})"
    bare = peak_mib("pass")
    print(f"bare interpreter          {bare:7.1f} MiB")
    within = True
    with tempfile.TemporaryDirectory() as scratch:
        to = (model, f"{scratch}/out", options.budget)
        rows = [
            ("with ramrs imported", math.inf, "import ramrs"),
            ("quantizing", options.limit_mib, quantize + "sensitivity='weights')", *to),
            ("probing, random tokens", options.probe_limit_mib, probe, model, f"{scratch}/found", "random"),
            ("probing, its own text", options.probe_limit_mib, probe, model, f"{scratch}/found", "self"),
        ]
        if options.feedback:
            rows.append(("error feedback", options.feedback_limit_mib, quantize + "effort='high', check=False)", *to))
        for what, limit, code, *arguments in rows:
            peak = peak_mib(code, *arguments)
            within &= peak - bare <= limit
            limited = f" (limit {limit:+.0f})" if math.isfinite(limit) else ""
            print(f"{what:24}  {peak:7.1f} MiB, {peak - bare:+.1f}{limited}", flush=True)
    sys.exit(not within)


if __name__ == "__main__":
    main()

"""Peak memory of quantizing a checkpoint, above that of a bare interpreter.

    python benches/memory.py MODEL [--budget 4.0] [--threads 2] [--limit-mib 128]

Exits with 1 above the limit. Peak resident memory as the kernel counts it, of one process for each row: a bare
interpreter, one that has imported ramrs, and one that quantizes.
"""

from __future__ import annotations

import argparse
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
    options = parser.parse_args()
    quantize = (
        "import sys, ramrs; "
        "ramrs.quantize(sys.argv[1], sys.argv[2], budget=sys.argv[3], threads=int(sys.argv[4]), overwrite=True)"
    )
    with tempfile.TemporaryDirectory() as scratch:
        bare = peak_mib("pass")
        imported = peak_mib("import ramrs")
        working = peak_mib(quantize, str(options.model), f"{scratch}/out", options.budget, str(options.threads))
    print(f"bare interpreter      {bare:7.1f} MiB")
    print(f"with ramrs imported   {imported:7.1f} MiB, {imported - bare:+.1f}")
    print(f"quantizing            {working:7.1f} MiB, {working - bare:+.1f} (limit {options.limit_mib:+.0f})")
    sys.exit(working - bare > options.limit_mib)


if __name__ == "__main__":
    main()

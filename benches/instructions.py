"""Count the instructions of each kernel under callgrind, and compare them with the record: more are a regression.

    python benches/instructions.py [--record]

A count does not depend on the clock or on the load of the machine, so a change of one per cent comes from the code
(or from the compiler, which the record names). Counts are per weight, the difference of a longer and a shorter run.
valgrind is needed; it has no AVX-512, so these are the counts of AVX2.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benches" / "record" / "instructions.json"
KERNELS = ["load", "energy", "encode-fast-4g64", "encode-normal-4g64", "errors-fast", "errors-normal", "pack-4"]
WEIGHTS = 8 * 1024
SHORT, LONG = 2, 12
ALLOWED = 1.02


def built() -> Path:
    """Build the benchmark, and return its program."""
    command = ["cargo", "bench", "--locked", "--bench", "instructions", "--no-run", "--message-format", "json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    return Path(next(message["executable"] for message in messages if message.get("executable")))


def counted(program: Path, kernel: str, times: int) -> int:
    """Return how many instructions a run takes."""
    with tempfile.TemporaryDirectory() as scratch:
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={scratch}/out"]
        done = subprocess.run([*valgrind, program, kernel, str(times)], check=True, capture_output=True, text=True)
    return int(re.search(r"Collected : (\d+)", done.stderr)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="record the counts instead of comparing them")
    options = parser.parse_args()
    compiler = subprocess.run(["rustc", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    program = built()
    found = {}
    for kernel in KERNELS:
        more = counted(program, kernel, LONG) - counted(program, kernel, SHORT)
        found[kernel] = round(more / (LONG - SHORT) / WEIGHTS, 3)
    if options.record:
        RECORD.write_text(json.dumps({"compiler": compiler, "instructions_per_weight": found}, indent=2) + "\n")
    recorded = json.loads(RECORD.read_text())
    print(f"instructions per weight; on record with {recorded['compiler']}, here {compiler}")
    worse = []
    for kernel, count in found.items():
        before = recorded["instructions_per_weight"][kernel]
        print(f"{kernel:20} {count:9.3f}   {before:9.3f}   {count / before:6.3f}")
        if count > ALLOWED * before:
            worse.append(kernel)
    sys.exit(f"more instructions than on record: {', '.join(worse)}" if worse else 0)


if __name__ == "__main__":
    main()

"""Kill a quantization at random moments, continue it, and compare what comes out with that of an undisturbed run.

    python benches/kills.py MODEL --kills 200 [--options "--budget 4.0 --effort high"] [--signal KILL]

A run is killed after a random time, up to that of the undisturbed one, and started again with the same command, until
it comes to its end. Then the output is compared byte for byte, and the next job begins. With ``--seconds 0`` finished
work is recorded at every step.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def digests(path: Path) -> dict[str, str]:
    """Digest every file of an output: a directory, or a file with its manifest."""
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.stem}*")
    return {
        file.relative_to(path.parent).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if file.is_file()
    }


def stage_of(partial: Path) -> str:
    """Tell what a killed run was doing, by what it left."""
    if not partial.is_dir():
        return "before or after"
    journal = partial / "journal"
    names = journal.read_bytes() if journal.is_file() else b""
    marks = [
        (b"complete", "naming"),
        (b"source/", "encoded"),
        (b"units/", "encoding"),
        (b"curves/", "curves"),
        (b"sensitivity", "sensitivity"),
        (b"probe/back/", "gradients"),
        (b"probe/head", "gradients"),
        (b"probe/forward/", "probe"),
    ]
    return next((stage for mark, stage in marks if mark in names), "begun")


def main() -> None:
    """Run the kills and print what they hit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--options", default="--budget 4.0")
    parser.add_argument("--output", default="out", help="name of the output: out, or out.gguf")
    parser.add_argument("--seconds", default="0")
    parser.add_argument("--signal", default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    command = [sys.executable, "-m", "ramrs", "quantize", "--quiet", str(given.model), *shlex.split(given.options)]
    command += ["--record-seconds", given.seconds]
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        undisturbed = directory / "undisturbed" / given.output
        undisturbed.parent.mkdir()
        start = time.monotonic()
        subprocess.run([*command, "-o", str(undisturbed)], check=True, stdout=subprocess.DEVNULL)
        took = time.monotonic() - start
        expected = digests(undisturbed)
        print(f"undisturbed: {took:.1f} s, {len(expected)} files", flush=True)
        kills, jobs, hit = 0, 0, collections.Counter[str]()
        while kills < given.kills:
            output = directory / "killed" / given.output
            while True:
                with subprocess.Popen(
                    [*command, "-o", str(output)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                ) as run:
                    try:
                        _, said = run.communicate(timeout=draw.uniform(0.1, took))
                    except subprocess.TimeoutExpired:
                        run.send_signal(getattr(signal, f"SIG{given.signal}"))
                        run.communicate()
                        kills += 1
                        hit[stage_of(output.with_name(f"{output.name}.partial"))] += 1
                        continue
                if run.returncode != 0 and "exists already" not in said:
                    sys.exit(f"after {kills} kills: {said}")
                break
            jobs += 1
            found = digests(output)
            left = sorted(
                path.name for path in output.parent.iterdir() if path.name not in {Path(n).parts[0] for n in found}
            )
            if found != expected or left:
                sys.exit(f"after {kills} kills: another output, or something was left: {left}")
            shutil.rmtree(output.parent)
        print(f"{kills} kills, {jobs} identical outputs; killed in: {dict(hit.most_common())}")


if __name__ == "__main__":
    main()

"""Make the environments that the runtimes run in.

    python tests/runtimes/environments.py [transformers] [vllm] [--to build/runtimes]

Everything comes from PyPI, pinned by ``locks/``. PyPI's torch is a build for CUDA. Its dependencies are left out and
replaced by stubs (``cuda_stubs.py``), which saves 2.5 GB of downloads for each environment. An environment that is
already made of the same lock is kept. It needs x86-64 Linux with glibc, ``gcc`` and ``readelf``.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cuda_stubs import write_stubs

LOCKS = Path(__file__).parent / "locks"
SIZES = {"transformers": ("0.6 GB", "1.5 GB"), "vllm": ("1.0 GB", "2.7 GB")}
"""What is downloaded, and what it takes on the disk: measured in November 2026."""

CHECKS = {
    "transformers": "import compressed_tensors, torch, transformers; assert not torch.cuda.is_available()",
    "vllm": "import torch, vllm; assert not torch.cuda.is_available()",
}
"""What an environment must be able to do."""


def digest(lock):
    """Return what identifies an environment: its lock, the stubs' source and the version of Python."""
    contents = lock.read_bytes() + LOCKS.with_name("cuda_stubs.py").read_bytes() + sys.version.encode()
    return hashlib.sha256(contents).hexdigest()


def make(name, folder):
    """Make an environment, unless it is there."""
    lock, target = LOCKS / f"{name}.txt", folder / name
    stamp = target / "made.json"
    if stamp.exists() and json.loads(stamp.read_text())["digest"] == digest(lock):
        print(f"{target}: there")
        return
    downloads, disk = SIZES[name]
    packages = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    print(f"{target}: {len(packages)} packages, {downloads} to download, {disk} on the disk", flush=True)
    began = time.monotonic()
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", target], check=True)
    python = target / "bin" / "python"
    # The locks are complete, so nothing is resolved. torch would ask for its libraries of CUDA.
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", lock], check=True)
    (site_packages,) = target.glob("lib/python*/site-packages")
    stubs = write_stubs(site_packages)
    subprocess.run([python, "-c", CHECKS[name]], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stamp.write_text(json.dumps({"digest": digest(lock), "stubs": stubs}))
    print(f"{target}: made in {time.monotonic() - began:.0f} s, with {len(stubs)} stubs of CUDA's libraries")


def main():
    """Make the environments asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="transformers|vllm")
    parser.add_argument("--to", type=Path, default=Path("build/runtimes"))
    options = parser.parse_args()
    for name in options.names or list(CHECKS):
        if name not in CHECKS:
            parser.error(f"no such environment: {name}")
        make(name, options.to)


if __name__ == "__main__":
    main()

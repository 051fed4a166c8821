"""Make the environments that the runtimes run in.

    python tests/runtimes/environments.py [transformers] [vllm] [llama-cpp] [--to build/runtimes]

Everything comes from PyPI, pinned by ``locks/``. PyPI's torch is a build for CUDA. Its dependencies are left out and
replaced by stubs (``cuda_stubs.py``), which saves 2.5 GB of downloads for each environment. llama.cpp's library is
made to load with an older glibc (``glibc.py``). An environment that is already made of the same lock is kept. It needs
x86-64 Linux with glibc, and, but for llama.cpp, ``gcc`` and ``readelf``.
"""

import argparse
import hashlib
import inspect
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cuda_stubs import write_stubs
from glibc import lower_glibc

LOCKS = Path(__file__).parent / "locks"
SIZES = {"transformers": ("0.6 GB", "1.5 GB"), "vllm": ("1.0 GB", "2.7 GB"), "llama-cpp": ("25 MB", "0.1 GB")}
"""What is downloaded, and what it takes on the disk: measured in November 2026."""

CHECKS = {
    "transformers": "import compressed_tensors, torch, transformers; assert not torch.cuda.is_available()",
    "vllm": "import torch, vllm; assert not torch.cuda.is_available()",
    "llama-cpp": "from llama_cpp_py_sync import _cffi_bindings; _cffi_bindings.get_lib()",
}
"""What an environment must be able to do."""

REPAIRS = {"transformers": write_stubs, "vllm": write_stubs, "llama-cpp": lower_glibc}
"""What is done to the packages after they were installed."""


def digest(name, lock):
    """Return what identifies an environment: its lock, the source of its repair and the version of Python."""
    repair = Path(inspect.getfile(REPAIRS[name]))
    contents = lock.read_bytes() + repair.read_bytes() + sys.version.encode()
    return hashlib.sha256(contents).hexdigest()


def make(name, folder):
    """Make an environment, unless it is there."""
    lock, target = LOCKS / f"{name}.txt", folder / name
    stamp = target / "made.json"
    if stamp.exists() and json.loads(stamp.read_text())["digest"] == digest(name, lock):
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
    repaired = REPAIRS[name](site_packages)
    subprocess.run([python, "-c", CHECKS[name]], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stamp.write_text(json.dumps({"digest": digest(name, lock), "repaired": repaired}))
    print(f"{target}: made in {time.monotonic() - began:.0f} s; stubs, or functions renamed: {len(repaired)}")


def main():
    """Make the environments asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="transformers|vllm|llama-cpp")
    parser.add_argument("--to", type=Path, default=Path("build/runtimes"))
    options = parser.parse_args()
    for name in options.names or list(CHECKS):
        if name not in CHECKS:
            parser.error(f"no such environment: {name}")
        make(name, options.to)


if __name__ == "__main__":
    main()

"""A copy of a checkpoint whose weights lie on no lattice: noise on every matrix, as large as the error of 4-bit codes.

    python benches/quality/dither.py MODEL OUT [--share 0.08] [--seed 0]

The models of `models.py` are dequantized GGUF files. A quantizer whose types have the same lattices finds the stored
codes again and has almost no error, which says nothing about other models. With noise of 0.08 of the RMS of each group
of 32 weights, about the error of 4-bit integers, the copy is a model of nearly the same quality, and no type fits it
better than it would fit a released checkpoint. The copy is then the reference of a comparison, not the original.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from safetensors import deserialize

from models import bfloat16, write

GROUP = 32
"""Weights of a row, one after another, whose noise has one variance."""

STORED = {"F32": np.float32, "F16": np.float16}


def values(stored: dict[str, object]) -> np.ndarray:
    """Return a tensor of a file in float32."""
    kind, data = stored["dtype"], stored["data"]
    if kind == "BF16":
        found = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        found = np.frombuffer(data, STORED[kind]).astype(np.float32)
    return found.reshape(stored["shape"])


def dithered(weight: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Return a matrix with noise on it, whose deviation is a share of the RMS of each group of a row."""
    starts = np.arange(0, weight.shape[-1], GROUP)
    lengths = np.diff([*starts, weight.shape[-1]])
    rms = np.sqrt(np.add.reduceat(weight * weight, starts, axis=-1) / lengths)
    deviation = np.float32(share) * np.repeat(rms, lengths, axis=-1)
    return weight + deviation.astype(np.float32) * random.standard_normal(weight.shape, np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.08, help="deviation of the noise, of the RMS of a group")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random = np.random.default_rng(options.seed)
    options.out.mkdir(parents=True)
    for path in sorted(options.model.iterdir()):
        if path.suffix != ".safetensors":
            shutil.copy(path, options.out)
            continue
        weights = {}
        for name, stored in sorted(deserialize(path.read_bytes())):
            weight = values(stored)
            weights[name] = bfloat16(weight if weight.ndim == 1 else dithered(weight, options.share, random))
        write(options.out / path.name, weights)


if __name__ == "__main__":
    main()

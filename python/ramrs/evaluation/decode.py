"""Decoded copies of outputs, for evaluation by a runtime that does not read their format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx

from ramrs import api

__all__ = ["write"]


def write(output: Path, reference: Path, directory: Path) -> None:
    """Write the weights of ``output``, decoded to float32, with the configuration of ``reference``.

    It takes 4 bytes per weight of disk space.
    """
    shutil.copyfile(reference / "config.json", directory / "config.json")
    manifest = json.loads((output / "ramrs-manifest.json").read_text(encoding="utf-8"))
    stored = [tensor["name"] for tensor in manifest["tensors"]]
    names = [name for name in stored if ".weight_" not in name]
    names += [name.removesuffix("_packed") for name in stored if name.endswith(".weight_packed")]
    for at, name in enumerate(names):
        # One file for each tensor, so that one is in memory at a time.
        weight = mx.array(api.weights(output, name))
        mx.save_safetensors(str(directory / f"model-{at:06}.safetensors"), {name: weight})

"""Checkpoints of model types that only mlx-lm knows: mlx-lm lays the tensors out, and ramrs does everything else.

mlx-lm loads the checkpoint lazily, with the conversions that it would run it with. The resulting parameters are written
to ``<output>.layout`` as plain floats, a shard at a time: an ordinary checkpoint with MLX's names, which exists only
while it is being quantized. Code that comes with a checkpoint is never run.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ramrs._core import Callback, call
from ramrs.errors import CheckpointError, ConfigError, from_native
from ramrs.formats import Layout, mlx_modules
from ramrs.formats.mlx_loading import Loaded, load
from ramrs.formats.mlx_modules import parameters
from ramrs.formats.mlx_names import RefusedError
from ramrs.types import Inspection, Progress

__all__ = ["laid_out"]

SHARD_GIGABYTES = 1
"""A shard is in memory as a whole."""

_LOG = logging.getLogger("ramrs")


@contextlib.contextmanager
def laid_out(
    model: Path,
    output: Path,
    unknown: CheckpointError,
    progress: Callback | None,
) -> Iterator[Layout]:
    """Lay a model out next to the output, while the context lasts.

    Args:
        model: Directory of the checkpoint.
        output: The output that it is for.
        unknown: The core's error about the model type. It is raised if mlx-lm does not know the model, either.
        progress: Called with stage ``layout``.

    Raises:
        CheckpointError: mlx-lm is not installed, or does not load the checkpoint.
        ConfigError: The layout is there already.
        OSError: The disk has no room for the layout.
    """
    if not model.is_dir():
        raise unknown
    try:
        import mlx.core  # noqa: F401
        import mlx_lm.utils  # noqa: F401
        from mlx_lm import __version__ as version
    except ImportError as fault:
        hint = f"pip install 'ramrs[mlx]' has mlx-lm lay it out, if it knows the model; {unknown.marked[1]}"
        raise CheckpointError(unknown.marked[0], slug=unknown.slug, hint=hint, path=unknown.path) from fault
    output = output.absolute()
    if not output.name:
        raise ConfigError(f"the output {output} is no directory of its own", slug="bad-option", path=str(output))
    directory = output.with_name(f"{output.name}.layout")
    if os.path.lexists(directory):
        message = f"{directory} is there: another run is at work in it, or one was killed"
        hint = "wait for the other run, remove what is there, or give another ⟨output⟩"
        raise ConfigError(message, slug="output-busy", hint=hint, path=str(directory))
    call("check_output", {"model": str(model), "output": str(directory)}, type(None))
    source = call("inspect", {"model": str(model), "format": "mlx"}, Inspection)
    loaded = _loaded(model, source, f"{unknown}, and mlx-lm {version} does not load it", unknown)
    _LOG.info("model_type `%s` is laid out by mlx-lm %s", source.model_type, version)
    said = _said(loaded) | {"by": f"mlx-lm {version}"}
    made = [parent for parent in directory.parents if not parent.exists()]
    directory.mkdir(parents=True)
    try:
        _check_room(model, source, loaded.model, directory)
        _write(loaded.model, loaded.config, directory, progress)
        for file in source.other_files:
            _link(model / file, directory / file)
        yield Layout(directory, said)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # something is in it
                parent.rmdir()


def _loaded(model: Path, source: Inspection, message: str, unknown: CheckpointError) -> Loaded:
    try:
        return load(model, source)
    except RefusedError as fault:
        hint = "; ".join(filter(None, [fault.remedy, unknown.marked[1]]))
        slug = "wrong-tensors" if fault.tensor else unknown.slug
        raise CheckpointError(
            f"{message}: {fault}", slug=slug, hint=hint, path=unknown.path, tensor=fault.tensor
        ) from fault


def _said(loaded: Loaded) -> dict[str, Any]:
    """Return what mlx-lm's modules say of the weights, as the core takes it."""
    can_be = mlx_modules.quantizable(loaded.model) - mlx_modules.bare_embeddings(loaded.again)
    weights = {
        name.removesuffix(".weight") for name in mlx_modules.parameters(loaded.model) if name.endswith(".weight")
    }
    return {
        "stacks": sorted(mlx_modules.stacks(loaded.model)),
        "routers": sorted(mlx_modules.routers(loaded.model)),
        "unquantizable": sorted(weights - can_be),
        "notes": loaded.notes,
    }


def _check_room(model: Path, source: Inspection, loaded: Any, directory: Path) -> None:  # noqa: ANN401
    """Raise an error if the layout does not fit on the disk."""
    needed = sum(array.nbytes for array in parameters(loaded).values())
    if model.stat().st_dev != directory.stat().st_dev:
        needed += sum((model / file).stat().st_size for file in source.other_files)
    free = shutil.disk_usage(directory).free
    if free < needed:
        message = f"{directory}: the layout takes {needed} bytes, and the file system has {free} left"
        hint = "free some space, or give an ⟨output⟩ on another file system"
        path = str(directory)
        raise from_native("io", slug="disk-full", message=message, hint=hint, path=path, tensor=None, errno=None)


def _write(
    model: Any,  # noqa: ANN401
    config: dict[str, Any],
    directory: Path,
    progress: Callback | None,
) -> None:
    """Write a model's parameters and its configuration; the model is empty afterwards."""
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm.utils import make_shards, save_config

    tower = {"keep_vision_config": True} if "vision_tower" in getattr(model, "model", {}) else {}
    save_config(config, directory / "config.json", **tower)
    arrays = parameters(model)
    total = sum(array.nbytes for array in arrays.values())
    shards = make_shards(arrays, SHARD_GIGABYTES)
    # Each shard is freed once it is written.
    model.update(tree_map(lambda _: mx.array([]), model.parameters()))
    arrays.clear()
    done = 0
    weight_map: dict[str, str] = {}
    for at in range(len(shards)):
        if progress is not None:
            progress(Progress("layout", done, total))
        shard, shards[at] = shards[at], {}
        file = f"model-{at + 1:05}-of-{len(shards):05}.safetensors"
        try:
            mx.save_safetensors(str(directory / file), shard, {"format": "mlx"})
        except RuntimeError as fault:
            message, path = f"{directory / file}: {fault}", str(directory / file)
            raise from_native(
                "io", slug="io", message=message, hint=None, path=path, tensor=None, errno=None
            ) from fault
        done += sum(array.nbytes for array in shard.values())
        weight_map |= dict.fromkeys(shard, file)
        shard.clear()
        mx.clear_cache()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    """Link a file to another place, or copy it where links are not possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

"""Checkpoints of model types that only mlx-lm knows: mlx-lm lays the tensors out, and ramrs does everything else.

mlx-lm loads the checkpoint lazily, with the conversions that it would run it with. The resulting parameters are written
to ``<output>.layout`` as plain floats, a shard at a time: an ordinary checkpoint with MLX's names, which exists only
while it is being quantized. Code that comes with a checkpoint is never run.
"""

from __future__ import annotations

import contextlib
import inspect as inspect_module
import json
import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramrs._core import Callback, call
from ramrs.errors import CheckpointError, ConfigError, from_native
from ramrs.formats import Layout
from ramrs.types import Inspection, Progress

if TYPE_CHECKING:
    import mlx.core as mx

__all__ = ["laid_out"]

SHARD_GIGABYTES = 1
"""A shard is in memory as a whole."""

_ROUTERS = {"router", "gate", "classifier"}
"""Path components of routers, which mlx-lm may give more bits than the rest."""

_ENCODINGS = ("quantization", "quantization_config", "compression_config")
"""Keys under which configurations say how weights are stored."""

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
        from mlx_lm import __version__ as version
        from mlx_lm.utils import load_model
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
    source = _inspected(model, generic=False)
    loaded, config = _load(model, source, f"{unknown}, and mlx-lm {version} does not load it", unknown)
    _LOG.info("model_type `%s` is laid out by mlx-lm %s", source.model_type, version)
    quantizable = _quantizable(loaded)
    with contextlib.redirect_stdout(sys.stderr):
        quantizable -= _bare_embeddings(load_model(model, lazy=True)[0])
    made = [parent for parent in directory.parents if not parent.exists()]
    directory.mkdir(parents=True)
    try:
        _check_room(model, source, loaded, directory)
        _write(loaded, config, directory, progress)
        for file in source.other_files:
            _link(model / file, directory / file)
        found = _inspected(directory, generic=True)
        kept = [each.name for each in found.tensors if each.becomes == "quantizable" and each.name not in quantizable]
        yield Layout(directory, f"mlx-lm {version}", [f"^{re.escape(name)}$=kept" for name in kept])
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # something is in it
                parent.rmdir()


def _inspected(model: Path, *, generic: bool) -> Inspection:
    return call("inspect", {"model": str(model), "format": "mlx", "generic": generic}, Inspection)


def _load(model: Path, source: Inspection, message: str, unknown: CheckpointError) -> tuple[Any, dict[str, Any]]:
    """Load a model lazily, with nothing in it quantized."""
    import mlx.core as mx
    from mlx_lm.utils import dequantize_model, load_config, load_model

    def refusal(reason: str) -> CheckpointError:
        reason = textwrap.shorten(reason, 400, placeholder=" …")
        return CheckpointError(f"{message}: {reason}", slug=unknown.slug, hint=unknown.marked[1], path=unknown.path)

    # Checked here, whatever mlx-lm's version does by default.
    if "model_file" in load_config(model):
        raise refusal("the model is code of the checkpoint's own, which is not run")
    shards = {shard.name for shard in source.shards}
    read = {path.name for path in model.glob("model*.safetensors")}
    if shards != read:
        raise refusal(f"it would read {sorted(read)[:3]} where the checkpoint is {sorted(shards)[:3]}")
    try:
        # stdout is for results: models may print.
        with contextlib.redirect_stdout(sys.stderr):
            loaded, config = load_model(model, lazy=True)
            if "quantization" in config:
                loaded = dequantize_model(loaded)
    except (Exception, SystemExit) as fault:
        # Of any kind: model code may fail in any way on a checkpoint that it was not written for, even by an exit.
        kind = "" if isinstance(fault, ValueError | OSError) else f"{type(fault).__name__}: "
        raise refusal(f"{kind}{fault}") from fault
    for block in (config, config.get("text_config")):
        for key in _ENCODINGS:
            if isinstance(block, dict):
                block.pop(key, None)
    for name, array in _parameters(loaded).items():
        if name.endswith(".weight") and not mx.issubdtype(array.dtype, mx.floating):
            raise refusal(f"it holds `{name}` in codes")
    return loaded, config


def _parameters(model: Any) -> dict[str, mx.array]:  # noqa: ANN401
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.parameters()))


def _quantizable(model: Any) -> set[str]:  # noqa: ANN401
    """Name the weights that mlx-lm can load quantized, and that its own predicate would quantize."""
    predicate = getattr(model, "quant_predicate", None) or (lambda _path, _module: True)
    found = set()
    for path, module in _leaves(model):
        quantize = getattr(module, "to_quantized", None)
        # The configuration that ramrs writes has a mode for every module.
        if quantize is None or "mode" not in inspect_module.signature(quantize).parameters:
            continue
        asked, parts = predicate(path, module), path.split(".")
        is_router = "router" in parts or (isinstance(asked, dict) and not _ROUTERS.isdisjoint(parts))
        if asked and not is_router:
            found.add(f"{path}.weight")
    return found


def _bare_embeddings(model: Any) -> set[str]:  # noqa: ANN401
    """Name the embeddings that a model uses as plain matrices, by a run on their quantized forms.

    The run is lazy: it computes shapes only. It may change the model.
    """
    import mlx.core as mx
    from mlx import nn
    from mlx.utils import tree_unflatten

    def runs() -> bool:
        try:
            model(mx.array([[0]]))
        except (Exception, SystemExit):  # of any kind: this is model code
            return False
        return True

    found: set[str] = set()
    if not runs():
        return found
    for path, module in _leaves(model):
        if isinstance(module, nn.Embedding) and module.weight.shape[-1] % 32 == 0:
            model.update_modules(tree_unflatten([(path, module.to_quantized(32, 8))]))
            if not runs():
                found.add(f"{path}.weight")
            model.update_modules(tree_unflatten([(path, module)]))
    return found


def _leaves(model: Any) -> list[tuple[str, Any]]:  # noqa: ANN401
    from mlx import nn
    from mlx.utils import tree_flatten

    leaves: list[tuple[str, Any]] = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    return leaves


def _check_room(model: Path, source: Inspection, loaded: Any, directory: Path) -> None:  # noqa: ANN401
    """Raise an error if the layout does not fit on the disk."""
    needed = sum(array.nbytes for array in _parameters(loaded).values())
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
    arrays = _parameters(model)
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

"""Checkpoints of model types that only mlx-lm knows: it lays the tensors out, and ramrs does everything else.

mlx-lm loads the checkpoint as it would to run it, its conversions and all, but lazily. The parameters that come of it
are written, as plain floats and a shard at a time, to ``<output>.layout``: an ordinary checkpoint with MLX's names, which
is there only as long as it is being quantized. No code of a checkpoint's own is ever run.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect as inspect_module
import json
import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramrs import api
from ramrs.documents import Inspection, Progress
from ramrs.errors import CheckpointError, ConfigError, from_native

if TYPE_CHECKING:
    import mlx.core as mx

__all__ = ["Layout", "laid_out"]

SHARD_GIGABYTES = 1
"""Of a shard all is in memory at once."""

_ROUTERS = {"router", "gate", "classifier"}
"""Parts of the names of what chooses experts."""

_ENCODINGS = ("quantization", "quantization_config", "compression_config")
"""Keys under which configurations say how weights are stored."""

_LOG = logging.getLogger("ramrs")


@dataclass(frozen=True, slots=True)
class Layout:
    """A checkpoint with the names and shapes of MLX."""

    directory: Path
    kept: list[str]
    """Rules for the weights that mlx-lm has no quantized form of."""


@contextlib.contextmanager
def laid_out(
    model: Path,
    output: Path,
    unknown: CheckpointError,
    *,
    overwrite: bool,
    dry_run: bool,
    progress: Callable[[Progress], object] | None,
) -> Iterator[Layout]:
    """Lay a model out beside the output, for as long as the context lasts.

    Args:
        model: Directory of the checkpoint.
        output: The output that it is for.
        unknown: What ramrs says of the model type; what is raised if mlx-lm does not know it, either.
        overwrite: Whether the output may be there already.
        dry_run: Whether there will be no output.
        progress: Called with stage ``layout``.

    Raises:
        CheckpointError: mlx-lm is not installed, or does not load the checkpoint.
        ConfigError: The output, or the layout, is there already.
        OSError: The disk has no room for the layout.
    """
    if not model.is_dir():
        raise unknown
    try:
        lm = importlib.import_module("mlx_lm")
        utils = importlib.import_module("mlx_lm.utils")
    except ImportError as fault:
        hint = f"pip install 'ramrs[mlx]' has mlx-lm lay it out, if it knows the model; {unknown.hint}"
        raise CheckpointError(str(unknown), slug=unknown.slug, hint=hint, path=unknown.path) from fault
    name = Path(os.path.abspath(output))  # noqa: PTH100: `resolve` would follow a link that is to be replaced
    directory = name.with_name(f"{name.name}.layout")
    _check_output(model, name, directory, overwrite=overwrite or dry_run)
    source = api.inspect(model)
    loaded, config = _load(utils, model, source, f"{unknown}, and mlx-lm {lm.__version__} does not load it", unknown)
    _LOG.info("model_type `%s` is laid out by mlx-lm %s", source.model_type, lm.__version__)
    quantizable = _quantizable(loaded)
    made = [parent for parent in directory.parents if not parent.exists()]
    try:
        directory.mkdir(parents=True)
        _write(utils, loaded, config, directory, progress)
        for file in source.other_files:
            _link(model / file, directory / file)
        found = api.inspect(directory, generic=True)
        kept = [each.name for each in found.tensors if each.becomes == "quantizable" and each.name not in quantizable]
        yield Layout(directory, [f"^{re.escape(name)}$=kept" for name in kept])
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # something is in it
                parent.rmdir()


def _check_output(model: Path, output: Path, directory: Path, *, overwrite: bool) -> None:
    """Refuse what would be refused in the end, before the work."""
    source, existing = model.resolve(), output
    while not existing.exists():
        existing = existing.parent
    existing = existing.resolve()
    if existing.is_relative_to(source) or (output.exists() and source.is_relative_to(existing)):
        message = f"the output {output} is the source, or lies inside it"
        raise ConfigError(message, slug="output-is-source", hint="give another -o", path=str(output))
    if os.path.lexists(output) and not overwrite:
        hint = "give another -o, or --overwrite to replace it"
        raise ConfigError(f"{output} exists already", slug="output-exists", hint=hint, path=str(output))
    if os.path.lexists(directory):
        message = f"{directory} is there: another run is at work in it, or one was killed"
        hint = "wait for the other run, remove what is there, or give another -o"
        raise ConfigError(message, slug="output-busy", hint=hint, path=str(directory))


def _load(
    utils: Any,  # noqa: ANN401
    model: Path,
    source: Inspection,
    message: str,
    unknown: CheckpointError,
) -> tuple[Any, dict[str, Any]]:
    """Load a model lazily, with nothing in it quantized."""

    def refusal(reason: str) -> CheckpointError:
        reason = textwrap.shorten(reason, 400, placeholder=" …")
        return CheckpointError(f"{message}: {reason}", slug=unknown.slug, hint=unknown.hint, path=unknown.path)

    # Whatever its version does by default.
    if "model_file" in utils.load_config(model):
        raise refusal("the model is code of the checkpoint's own, which is not run")
    shards = {shard.name for shard in source.shards}
    read = {path.name for path in model.glob("model*.safetensors")}
    if shards != read:
        raise refusal(f"it would read {sorted(read)[:3]} where the checkpoint is {sorted(shards)[:3]}")
    try:
        # What models print is not our result.
        with contextlib.redirect_stdout(sys.stderr):
            loaded, config = utils.load_model(model, lazy=True)
            if "quantization" in config:
                loaded = utils.dequantize_model(loaded)
    except Exception as fault:  # of any kind: the model's code meets a checkpoint that it may not be made for
        kind = "" if isinstance(fault, ValueError | OSError) else f"{type(fault).__name__}: "
        raise refusal(f"{kind}{fault}") from fault
    for block in (config, config.get("text_config")):
        for key in _ENCODINGS:
            if isinstance(block, dict):
                block.pop(key, None)
    import mlx.core as mx

    for name, array in _parameters(loaded).items():
        if name.endswith(".weight") and not mx.issubdtype(array.dtype, mx.floating):
            raise refusal(f"it holds `{name}` in codes")
    return loaded, config


def _parameters(model: Any) -> dict[str, mx.array]:  # noqa: ANN401
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.parameters()))


def _quantizable(model: Any) -> set[str]:  # noqa: ANN401
    """Name the weights that mlx-lm can load quantized, and that are fit for few bits by what it says itself."""
    from mlx import nn
    from mlx.utils import tree_flatten

    predicate = getattr(model, "quant_predicate", None) or (lambda _path, _module: True)
    found = set()
    for path, module in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
        quantize = getattr(module, "to_quantized", None)
        # Every entry of the configuration has a mode.
        if quantize is None or "mode" not in inspect_module.signature(quantize).parameters:
            continue
        asked = predicate(path, module)
        is_router = isinstance(asked, dict) and not _ROUTERS.isdisjoint(path.split("."))
        if asked and not is_router:
            found.add(f"{path}.weight")
    return found


def _write(
    utils: Any,  # noqa: ANN401
    model: Any,  # noqa: ANN401
    config: dict[str, Any],
    directory: Path,
    progress: Callable[[Progress], object] | None,
) -> None:
    """Write a model's parameters and its configuration, and empty it."""
    import mlx.core as mx
    from mlx.utils import tree_map

    arrays = _parameters(model)
    total = sum(array.nbytes for array in arrays.values())
    free = shutil.disk_usage(directory).free
    if free < total:
        message = f"{directory}: the layout takes {total} bytes, and the file system has {free} left"
        hint = "free some space, or give an -o on another file system"
        raise from_native(
            "io", slug="disk-full", message=message, hint=hint, path=str(directory), tensor=None, errno=None
        )
    tower = {"keep_vision_config": True} if "vision_tower" in getattr(model, "model", {}) else {}
    utils.save_config(config, directory / "config.json", **tower)
    shards = utils.make_shards(arrays, SHARD_GIGABYTES)
    # What is written is let go, shard by shard.
    model.update(tree_map(lambda _: mx.array([]), model.parameters()))
    arrays.clear()
    done, weight_map = 0, {}
    for at in range(len(shards)):
        if progress is not None:
            progress(Progress("layout", done, total))
        shard, shards[at] = shards[at], {}
        file = f"model-{at + 1:05}-of-{len(shards):05}.safetensors"
        mx.save_safetensors(str(directory / file), shard, {"format": "mlx"})
        done += sum(array.nbytes for array in shard.values())
        weight_map |= dict.fromkeys(shard, file)
        shard.clear()
        mx.clear_cache()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    """Have a file in another place, too: by a link if that can be, else by a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

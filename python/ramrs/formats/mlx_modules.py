"""What the modules of a model in mlx-lm are: which can be quantized, which are stacks of experts, which choose them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mlx.core as mx

__all__ = ["bare_embeddings", "failure", "leaves", "parameters", "quantizable", "routers", "stacks"]

_ROUTERS = {"router", "gate", "classifier", "wg"}
"""Path components of routers."""


def parameters(model: Any) -> dict[str, mx.array]:  # noqa: ANN401
    """List the parameters of a model by their names."""
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.parameters()))


def leaves(model: Any) -> list[tuple[str, Any]]:  # noqa: ANN401
    """List the modules of a model that contain no other, by their paths."""
    from mlx import nn
    from mlx.utils import tree_flatten

    found: list[tuple[str, Any]] = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    return found


def quantizable(model: Any) -> set[str]:  # noqa: ANN401
    """Name the modules that mlx-lm can load quantized, and that its own predicate would quantize."""
    predicate = getattr(model, "quant_predicate", None) or (lambda _path, _module: True)
    found = set()
    for path, module in leaves(model):
        quantize = getattr(module, "to_quantized", None)
        # The configuration that ramrs writes has a mode for every module.
        if quantize is None or "mode" not in inspect.signature(quantize).parameters:
            continue
        if predicate(path, module):
            found.add(path)
    return found


def stacks(model: Any) -> set[str]:  # noqa: ANN401
    """Name the modules whose weight is a stack of matrices."""
    return {path for path, module in leaves(model) if hasattr(module, "to_quantized") and module.weight.ndim == 3}


def routers(model: Any) -> set[str]:  # noqa: ANN401
    """Name the linear modules whose output chooses experts.

    Their layer has stacks of experts, and they have an output for each expert. Some have more: for experts that do
    nothing. Their path says what they are, or they lie next to the stacks.
    """
    from mlx_lm.models.switch_layers import SwitchLinear

    found_leaves = leaves(model)
    experts = {path: module.weight.shape[0] for path, module in found_leaves if isinstance(module, SwitchLinear)}
    blocks = {path.rsplit(".", 2)[0]: count for path, count in experts.items() if path.count(".") > 1}
    counts = {_layer(path): count for path, count in experts.items()}
    found = set()
    for path, module in found_leaves:
        count = counts.get(_layer(path))
        if count is None or not hasattr(module, "to_quantized") or module.weight.ndim != 2:
            continue
        outputs = module.weight.shape[0]
        within = path.removeprefix(_layer(path)).split(".")
        is_named = not _ROUTERS.isdisjoint(within) and count <= outputs <= 2 * count
        is_beside = blocks.get(path.rpartition(".")[0]) == outputs
        if is_named or is_beside:
            found.add(path)
    return found


def _layer(path: str) -> str:
    """Return the path of the layer that a module is in: up to the last number."""
    parts = path.split(".")
    at = max((at for at, part in enumerate(parts) if part.isdecimal()), default=-1)
    return ".".join(parts[: at + 1])


def failure(model: Any) -> Exception | SystemExit | None:  # noqa: ANN401
    """Run a model on one token, lazily: shapes are computed, and no weight is read. Return what went wrong."""
    import mlx.core as mx

    try:
        model(mx.array([[0]]))
    except (Exception, SystemExit) as fault:  # of any kind: this is model code
        return fault
    return None


def bare_embeddings(make: Callable[[], Any]) -> set[str]:
    """Name the embeddings that a model uses as plain matrices, by a lazy run on their quantized forms.

    Args:
        make: Makes a model that may be changed.
    """
    from mlx import nn
    from mlx.utils import tree_unflatten

    found: set[str] = set()
    model = make()
    if failure(model):
        return found
    for path, module in leaves(model):
        if isinstance(module, nn.Embedding) and module.weight.shape[-1] % 32 == 0:
            model.update_modules(tree_unflatten([(path, module.to_quantized(32, 8))]))
            if failure(model):
                found.add(path)
            model.update_modules(tree_unflatten([(path, module)]))
    return found

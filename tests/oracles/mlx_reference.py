"""What mlx-lm computes of a checkpoint in float32: logits, and the inputs and gradients of every linear layer."""

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from fixtures.models import VARIANTS
from fixtures.shapes import is_sparse
from mlx_lm.models import glm4_moe, qwen2_moe
from mlx_lm.models.switch_layers import SwitchGLU, SwitchLinear
from mlx_lm.utils import _get_classes, load_model


@dataclass
class Trace:
    """What a linear layer, or a lookup, saw of a pass forward and back; one row for each use."""

    g: np.ndarray
    """The gradient of the scalar with respect to the output: rows × outputs."""
    row: np.ndarray
    """Where the row is in the tokens: window × length + position."""
    x: np.ndarray | None = None
    """The input of a linear layer: rows × inputs."""
    token: np.ndarray | None = None
    """The index that a lookup got: of a token, or of a position."""


def variant_of(directory, variant=None):
    """Return a variant by its name, or the one of the type of the model in a directory."""
    if variant is not None:
        return VARIANTS[variant]
    model_type = json.loads((Path(directory) / "config.json").read_text())["model_type"]
    return next(found for found in VARIANTS.values() if found.config["model_type"] == model_type)


def load(directory, variant=None):
    """Load a checkpoint with mlx-lm, to compute in float32 on the CPU."""
    convert = variant_of(directory, variant).convert

    def classes(config):
        model_class, args_class = _get_classes(config)

        class Adapted(model_class):
            def __init__(self, args):
                super().__init__(args)
                if config["model_type"] == "qwen2_moe":
                    for index, layer in enumerate(self.layers):
                        if not is_sparse(config, index):
                            layer.mlp = qwen2_moe.MLP(args.hidden_size, args.intermediate_size)

            def sanitize(self, weights):
                weights = weights if convert is None else convert(weights)
                return super().sanitize(weights) if hasattr(model_class, "sanitize") else weights

        return Adapted, args_class

    model, _ = load_model(Path(directory), get_model_classes=classes)
    model.set_dtype(mx.float32)
    return model


def logits(directory, tokens, variant=None):
    """Compute the logits of windows of tokens: windows × length × vocabulary."""
    with mx.stream(mx.cpu):
        return np.array(load(directory, variant)(mx.array(tokens)))


def traced(directory, tokens, cotangents, variant=None):
    """Return what every linear layer saw, by the name of its tensor in the checkpoint.

    The scalar is the sum of logits × cotangents. Lookups have `#lookup` after the tensor's name; experts in one tensor
    have their index in brackets after it, and their outputs in the tensor's order.
    """
    cotangents = np.asarray(cotangents, np.float32)
    with mx.stream(mx.cpu):
        return _traced(load(directory, variant), variant_of(directory, variant), mx.array(tokens), mx.array(cotangents))


def _traced(model, variant, tokens, cotangents):
    paths = {id(module): path for path, module in model.named_modules()}

    def scalar(shifts):
        taps = {}

        def tap(module, output, suffix="", **inputs):
            path = paths[id(module)] + suffix
            assert path not in taps, f"{path} is called twice"
            taps[path] = inputs | {"output": output}
            return output + shifts[path] if path in shifts else output

        with _tapped(tap, tokens.shape):
            return (model(tokens) * cotangents).sum(), taps

    _, taps = scalar({})
    shifts = {path: mx.zeros(saw["output"].shape) for path, saw in taps.items()}
    (_, taps), gradients = mx.value_and_grad(scalar)(shifts)
    found = {}
    for path, saw in taps.items():
        module, lookup, _ = path.partition("#")
        name = f"{module}.weight"
        for pattern, replacement in variant.renames:
            name = re.sub(pattern, replacement, name)
        for each, trace in _traces(saw, gradients[path], tokens.size):
            key = name.replace("*", str(each)) + ("#lookup" if lookup else "")
            if key in found:
                # The gate, then the up projection of gpt-oss: their outputs alternate.
                trace.g = np.stack([found[key].g, trace.g], -1).reshape(len(trace.g), -1)
            found[key] = trace
    return found


def _traces(saw, gradient, rows):
    """Yield what a layer saw, or each of its experts with its index."""
    saw = {part: np.array(values) for part, values in saw.items()}
    gradient, everything = np.array(gradient), np.arange(rows)
    if "token" in saw:
        yield 0, Trace(gradient.reshape(rows, -1), everything, token=saw["token"].reshape(rows))
    elif "expert" in saw:
        chosen = saw["expert"].reshape(rows, -1)
        gradient = gradient.reshape(*chosen.shape, -1)
        inputs = np.broadcast_to(saw["x"].reshape(rows, -1, saw["x"].shape[-1]), (*chosen.shape, saw["x"].shape[-1]))
        for expert in range(saw["experts"]):
            row, place = np.nonzero(chosen == expert)
            yield expert, Trace(gradient[row, place], row, inputs[row, place])
    else:
        yield 0, Trace(gradient.reshape(rows, -1), everything, saw["x"].reshape(rows, -1))


def _tapped(tap, shape):
    """Let a function see, and change, the outputs of all linear layers and lookups while the context lasts."""
    linear, lookup, as_linear = nn.Linear.__call__, nn.Embedding.__call__, nn.Embedding.as_linear
    switch = SwitchLinear.__call__

    def looked_up(self, indices):
        # GPT-2 looks its positions up once for all windows.
        output = mx.broadcast_to(lookup(self, indices), (*shape, self.weight.shape[-1]))
        return tap(self, output, "#lookup", token=mx.broadcast_to(indices, shape))

    def switched(self, x, indices, sorted_indices=False):
        experts = mx.array(self.num_experts)
        return tap(self, switch(self, x, indices, sorted_indices), x=x, expert=indices, experts=experts)

    def unsorted(self, x, indices):
        """Compute without the sorting by expert, which is for speed only and loses the rows' order."""
        x = mx.expand_dims(x, (-2, -3))
        gate, up = self.gate_proj(x, indices), self.up_proj(x, indices)
        return self.down_proj(self.activation(up, gate), indices).squeeze(-2)

    def gated(self, x):
        return glm4_moe.group_expert_select(
            tap(self, x @ self.weight.T, x=x),
            self.e_score_correction_bias,
            self.top_k,
            self.n_group,
            self.topk_group,
            self.routed_scaling_factor,
            self.norm_topk_prob,
        )

    stack = ExitStack()
    for owner, name, function in (
        (nn.Linear, "__call__", lambda self, x: tap(self, linear(self, x), x=x)),
        (nn.Embedding, "__call__", looked_up),
        (nn.Embedding, "as_linear", lambda self, x: tap(self, as_linear(self, x), x=x)),
        (SwitchLinear, "__call__", switched),
        (SwitchGLU, "__call__", unsorted),
        (glm4_moe.MoEGate, "__call__", gated),
    ):
        stack.enter_context(mock.patch.object(owner, name, function))
    return stack

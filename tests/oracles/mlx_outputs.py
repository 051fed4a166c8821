"""What mlx-lm makes of an output: its parameters, decoded or as they are, and its logits in float32."""

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, load_model

TOKENS = np.random.default_rng(21).integers(0, 128, (2, 24))


def raw(array):
    """Return what tells arrays apart: type, shape and bytes."""
    return str(array.dtype), array.shape, np.array(array.view(mx.uint8)).tobytes()


def parameters(model):
    """Return the parameters of a model by name."""
    return dict(tree_flatten(model.parameters()))


def quantized_modules(model):
    """Return the quantized modules of a model by their paths."""
    return {path: module for path, module in model.named_modules() if "scales" in module}


def decoded_parameters(model):
    """Return the parameters of a model, in float32 where they were quantized."""
    found = parameters(model)
    for path, module in quantized_modules(model).items():
        weight, scales, biases = (found.pop(f"{path}.{part}", None) for part in ("weight", "scales", "biases"))
        if biases is not None:
            scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        found[f"{path}.weight"] = mx.dequantize(
            weight, scales, biases, module.group_size, module.bits, module.mode, dtype=mx.float32
        )
    return found


def decoded_model(output):
    """Return mlx-lm's model of an output with nothing in it quantized."""
    quantized, config = load_model(output)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    model.load_weights(list(decoded_parameters(quantized).items()))
    return model


def logits(model):
    """Compute logits in float32, which is all that experts on a CPU are computed in."""
    model.set_dtype(mx.float32)
    return np.array(model(mx.array(TOKENS)))

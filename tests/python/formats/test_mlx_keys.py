"""Configurations that have what mlx-lm reads elsewhere: as transformers 5 writes them, renamed, with nulls."""

import dataclasses
import json

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import Tensor, llama_tensors, write_checkpoint
from fixtures.draw import drawn, stored_as
from fixtures.models import RELEASES, VARIANTS, write_release
from fixtures.shapes import llama_shapes
from fixtures.transformers5 import modern
from ramrs._core import call

mx = pytest.importorskip("mlx.core", reason="needs ramrs[mlx]")
pytest.importorskip("mlx_lm", reason="needs ramrs[mlx]")
from mlx_lm.utils import _get_classes, load_model  # noqa: E402
from oracles.mlx_outputs import logits  # noqa: E402
from ramrs.formats import mlx_config  # noqa: E402

# mlx-lm has no model of these types: ramrs writes them as the language model of a larger one.
WRAPPED = {"qwen3_5_text", "qwen3_5_moe_text"}
NATIVE = {
    name: model.config for name, model in (VARIANTS | RELEASES).items() if model.config["model_type"] not in WRAPPED
}

TINY = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}

LAID_OUT = {
    "ernie4_5": {"use_bias": False},
    "seed_oss": {"attention_bias": False, "attention_out_bias": False, "mlp_bias": False},
    "helium": {"attention_bias": False, "mlp_bias": False},
    "internlm3": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "iquestcoder": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    "xverse": {"rope_scaling": None},
}
"""Types that mlx-lm lays out and whose tensors are Llama's; what else their configuration has."""


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    mx.set_default_device(mx.cpu)


def arguments(config):
    """Return what mlx-lm's model of a configuration is made of. The type of positions is spelled in two ways."""
    _, args_class = _get_classes(config)
    found = dataclasses.asdict(args_class.from_dict(config))
    return plain(found)


def plain(value):
    """Leave out the keys that mlx-lm reads only where it has no others."""
    if not isinstance(value, dict):
        return value
    inner = {key: plain(each) for key, each in value.items() if key not in ("rope_parameters", "dtype", "torch_dtype")}
    scaling = inner.get("rope_scaling")
    kind = scaling.get("type", scaling.get("rope_type")) if isinstance(scaling, dict) else "default"
    if kind != "default":
        known = {key: each for key, each in scaling.items() if key not in ("rope_theta", "partial_rotary_factor")}
        inner["rope_scaling"] = known | {"type": kind, "rope_type": kind}
    else:
        inner.pop("rope_scaling", None)
    return inner


def completed(config):
    """Return a configuration as an output has it."""
    return call("complete_config", {"format": "mlx", "config": config}, dict)


def declared(config):
    """Leave out what transformers 5 adds to a configuration: the layers' kinds that follow from an interval."""
    return {key: value for key, value in config.items() if key != "layer_types"}


@pytest.mark.parametrize("name", NATIVE)
def test_what_transformers_5_writes_gives_the_same_model(name):
    old, new = NATIVE[name], modern(NATIVE[name])
    expected, found = arguments(completed(old)), arguments(completed(new))
    if "layer_types" not in old:
        expected, found = declared(expected), declared(found)
    inner = expected.get("text_config")
    if isinstance(inner, dict):
        # The whole block is passed on: what is read of it must be there.
        assert inner.items() <= found.pop("text_config").items()
        expected.pop("text_config")
    assert found == expected


@pytest.mark.parametrize("name", NATIVE)
def test_null_stands_for_what_transformers_computes(name):
    config = NATIVE[name]
    inner = config.get("text_config", config)
    heads, width = inner.get("num_attention_heads"), inner.get("hidden_size")
    nulls = {"num_key_value_heads": heads, "head_dim": heads and width // heads}
    nulls = {key: None for key, value in nulls.items() if key in inner and inner[key] == value}
    null = inner | nulls if inner is config else config | {"text_config": inner | nulls}
    assert arguments(completed(null)) == arguments(completed(config))


@pytest.mark.parametrize("name", ["qwen3_moe", "minimax_m2", "gpt2", "gpt_neox"])
def test_an_output_of_such_a_configuration_is_the_same_model(name, tmp_path):
    source = write_release(name, tmp_path / "source")
    expected = logits(load_model(source)[0])
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(modern(config)))
    ramrs.quantize(source, tmp_path / "out", budget="32")
    assert np.abs(logits(load_model(tmp_path / "out")[0]) - expected).max() <= 1e-5 * np.ptp(expected)


def write_llama(directory, config):
    """Write a model with Llama's tensors under a configuration."""
    random = np.random.default_rng(5)
    shapes = llama_shapes(TINY | {"attention_bias": False}, "")
    tensors = {
        name: Tensor.of(drawn(random, name, shape, 1.0), stored_as(name, "BF16")) for name, shape in shapes.items()
    }
    return write_checkpoint(directory, tensors, config)


@pytest.mark.parametrize("model_type", LAID_OUT)
def test_a_type_that_mlx_lm_lays_out_computes_the_same(model_type, tmp_path):
    config = TINY | LAID_OUT[model_type] | {"model_type": model_type}
    clean, source = write_llama(tmp_path / "clean", config), write_llama(tmp_path / "source", modern(config))
    ramrs.quantize(source, tmp_path / "out", budget="32")
    expected = logits(load_model(clean)[0])
    assert np.array_equal(logits(load_model(tmp_path / "out")[0]), expected)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_theta"] == 500000.0
    wrong = config | {"rope_theta": 10000.0}
    assert not np.array_equal(logits(load_model(write_llama(tmp_path / "wrong", wrong))[0]), expected)


def test_what_a_null_stands_for_is_written(tmp_path):
    config = TINY | {"model_type": "helium", "attention_bias": False, "mlp_bias": False, "num_key_value_heads": 4}
    tensors = llama_tensors(config)
    source = write_checkpoint(tmp_path / "source", tensors, config | {"head_dim": None, "num_key_value_heads": None})
    ramrs.quantize(source, tmp_path / "out", budget="32")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["head_dim"], written["num_key_value_heads"]) == (32, 4)
    expected = logits(load_model(write_checkpoint(tmp_path / "clean", tensors, config))[0])
    assert np.array_equal(logits(load_model(tmp_path / "out")[0]), expected)


REFUSED = {
    "a key that nothing stands for": ({"rms_norm_eps": ...}, "config.json lacks `rms_norm_eps`"),
    "a null with which nothing runs": ({"rope_theta": None}, "has null for `rope_theta`"),
    "one base where there are two": (
        {
            "rope_theta": ...,
            "rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}},
        },
        "rope_parameters has the bases 10000.0 and 1000000.0",
    ),
    "positions that are not read": (
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}},
        "positions of type `linear`",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_mlx_lm_cannot_be_told_is_refused(case, tmp_path):
    changes, said = REFUSED[case]
    config = TINY | LAID_OUT["ernie4_5"] | {"model_type": "ernie4_5"} | changes
    source = write_llama(tmp_path / "source", {key: value for key, value in config.items() if value is not ...})
    with pytest.raises(ramrs.CheckpointError, match=said) as caught:
        ramrs.quantize(source, tmp_path / "out", budget="32")
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_keys_of_the_models_within_a_model_are_read():
    keys = mlx_config.read_keys(_get_classes({"model_type": "gemma3"})[1])
    assert "text_config" in keys.own
    assert {"rope_local_base_freq", "sliding_window_pattern", "vocab_size"} <= keys.every

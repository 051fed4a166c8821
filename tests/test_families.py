"""The tiny models of each family and what mlx-lm makes of them: what the tests of the probe stand on."""

import json

import numpy as np
import pytest
from conftest import Tensor, read_weights, write_checkpoint
from families import FAMILIES, family_tensors, is_buffer, is_embedding, is_norm, is_router, write_family

mx = pytest.importorskip("mlx.core", reason="needs ramrs[eval]")
pytest.importorskip("mlx_lm", reason="needs ramrs[eval]")
from mlx_reference import load, logits, traced  # noqa: E402

TOKENS = np.random.default_rng(11).integers(0, 96, (2, 24))
COTANGENTS = np.random.default_rng(12).standard_normal((2, 24, 96)).astype(np.float32)

every_family = pytest.mark.parametrize("name", FAMILIES)
DENSE = [name for name, family in FAMILIES.items() if not any(map(is_router, family.shapes(family.config)))]


def with_tensor(directory, name, tensor, values):
    """Write a family with one tensor replaced, and return its logits."""
    tensors = family_tensors(name, FAMILIES[name].config)
    tensors[tensor] = Tensor(tensors[tensor].dtype, values.astype(tensors[tensor].elements.dtype))
    return logits(write_checkpoint(directory, tensors, FAMILIES[name].config), TOKENS, name)


def slope(directory, name, tensor, values, step):
    """Return how much the scalar grows by a step of a tensor, of a central difference."""
    ahead, behind = (with_tensor(directory, name, tensor, values + sign * step) for sign in (1, -1))
    return np.sum((ahead.astype(np.float64) - behind) * COTANGENTS) / 2


def is_transposed(name, values):
    """Tell whether a matrix is stored as inputs × outputs."""
    return name.startswith("h.") or values.ndim == 3


def gradients(traces, tensors):
    """Assemble the gradient of every traced tensor, in its own shape."""
    found = {}
    for key, trace in traces.items():
        name, _, lookup = key.partition("#")
        name, _, expert = name.partition("[")
        values = tensors[name].elements
        gradient = found.setdefault(name, np.zeros(values.shape))
        if lookup:
            np.add.at(gradient, trace.token, trace.g)
        else:
            product = trace.g.T.astype(np.float64) @ trace.x
            product = product.T if is_transposed(name, values) else product
            gradient[int(expert[:-1]) if expert else ...] += product
    return found


@every_family
def test_a_family_is_loaded_and_computes_what_is_causal(name, tmp_path):
    directory = write_family(name, tmp_path / "model")
    found = logits(directory, TOKENS, name)
    assert found.dtype == np.float32
    assert found.shape == (2, 24, 96)
    assert np.isfinite(found).all()
    assert found.std() > 0.1
    changed = TOKENS.copy()
    changed[:, -1] = (changed[:, -1] + 1) % 96
    difference = np.abs(logits(directory, changed, name) - found).max(-1)
    assert difference[:, :-1].max() <= 1e-5
    assert difference[:, -1].min() > 0.1


@every_family
def test_a_family_is_what_its_configuration_says(name, tmp_path):
    directory = write_family(name, tmp_path / "model", dtype="BF16", seed=1, vocab_size=128)
    config = json.loads((directory / "config.json").read_text())
    assert config == FAMILIES[name].config | {"vocab_size": 128, "torch_dtype": "bfloat16"}
    found = {tensor: values.elements.shape for tensor, values in read_weights(directory).items()}
    assert found == FAMILIES[name].shapes(config)
    assert np.isfinite(logits(directory, TOKENS, name)).all()


@every_family
def test_every_tensor_matters(name, tmp_path):
    tensors, random = family_tensors(name, FAMILIES[name].config), np.random.default_rng(13)
    expected = logits(write_family(name, tmp_path / "model"), TOKENS, name)
    influence = {}
    for tensor, held in tensors.items():
        # Signs at random: a gain that a later norm takes away would not be seen.
        changed = held.elements * (1 + 0.05 * random.choice([-1, 1], held.elements.shape))
        if tensor.endswith("e_score_correction_bias"):
            changed = held.elements[::-1]  # it only chooses
        influence[tensor] = np.abs(with_tensor(tmp_path / "changed", name, tensor, changed) - expected).max()
    assert {tensor for tensor, moved in influence.items() if moved <= 1e-3} == set(filter(is_buffer, tensors))


@every_family
def test_the_traces_make_up_the_gradients(name, tmp_path):
    tensors, random = family_tensors(name, FAMILIES[name].config), np.random.default_rng(14)
    found = gradients(traced(write_family(name, tmp_path / "model"), TOKENS, COTANGENTS, name), tensors)
    matrices = [
        tensor
        for tensor, held in tensors.items()
        if held.elements.ndim > 1 and not (is_buffer(tensor) or is_norm(tensor) or tensor.endswith("bias"))
    ]
    assert sorted(found) == sorted(matrices)
    fused = [tensor for tensor in matrices if tensors[tensor].elements.ndim == 3]
    some = random.choice(matrices, 6, replace=False)
    chosen = {matrices[0], matrices[-1], *filter(is_router, matrices), *fused, *some}
    for tensor in sorted(chosen):
        values, gradient = tensors[tensor].elements, found[tensor]
        other = random.standard_normal(values.shape)
        direction = gradient / np.linalg.norm(gradient) + other / np.linalg.norm(other)
        expected = np.sum(gradient * direction)
        # A step by which a token goes to other experts says nothing: a shorter one does.
        steps = (min(each / expected, 1e-3 * np.linalg.norm(values)) for each in (0.2, 0.02, 0.005))
        slopes = (slope(tmp_path / "moved", name, tensor, values, step * direction) / step for step in steps)
        assert any(each == pytest.approx(expected, rel=0.01) for each in slopes), tensor


@every_family
def test_the_rows_say_where_they_are_from(name, tmp_path):
    traces = traced(write_family(name, tmp_path / "model"), TOKENS, COTANGENTS, name)
    positions = np.broadcast_to(np.arange(24), TOKENS.shape)
    for key, trace in traces.items():
        assert trace.g.dtype == np.float32
        if ".experts." not in key:
            np.testing.assert_array_equal(trace.row, np.arange(TOKENS.size))
        if key.endswith("#lookup"):
            assert is_embedding(key.removesuffix("#lookup"))
            np.testing.assert_array_equal(trace.token, (positions if key.startswith("wpe") else TOKENS).reshape(-1))
    for router in filter(is_router, traces):
        block = router.removesuffix(".weight").rpartition(".")[0]
        experts = {key: trace for key, trace in traces.items() if key.startswith(f"{block}.experts.")}
        down = {key: trace for key, trace in experts.items() if "down_proj" in key or ".w2." in key}
        uses = np.bincount(np.concatenate([trace.row for trace in down.values()]), minlength=TOKENS.size)
        assert (uses == FAMILIES[name].config["num_experts_per_tok"]).all()
        for key in experts.keys() - down.keys():
            np.testing.assert_array_equal(experts[key].x, traces[router].x[experts[key].row])


@pytest.mark.parametrize("name", DENSE)
def test_rounding_leaves_room_for_a_comparison(name, tmp_path):
    directory = write_family(name, tmp_path / "model")
    with mx.stream(mx.cpu):
        model = load(directory, name)
        model.set_dtype(mx.float64)  # there are no experts in float64
        exact = np.array(model(mx.array(TOKENS)))
    assert exact.dtype == np.float64
    assert np.abs(logits(directory, TOKENS, name) - exact).max() <= 4e-5


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt_neox", "glm4_moe", "gpt_oss"])
def test_a_family_of_16_bits_is_computed_in_float32(dtype, name, tmp_path):
    directory = write_family(name, tmp_path / "short", dtype=dtype)
    widened = {tensor: Tensor.of(held.values, "F32") for tensor, held in read_weights(directory).items()}
    exact = logits(write_checkpoint(tmp_path / "long", widened, FAMILIES[name].config), TOKENS)
    np.testing.assert_array_equal(logits(directory, TOKENS), exact)

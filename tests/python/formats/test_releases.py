"""Releases of every model type and encoding: an output is what mlx-lm makes of its release, and nothing gets lost."""

import json
import re
from functools import cached_property

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import Tensor, read_weights, write_checkpoint
from fixtures.models import RELEASES, write_release
from fixtures.paths import ROOT
from fixtures.process import sees_everything
from fixtures.tiers import slow_but_for

mx = pytest.importorskip("mlx.core", reason="needs ramrs[eval]")
pytest.importorskip("mlx_lm", reason="needs ramrs[eval]")
from mlx.utils import tree_map  # noqa: E402
from mlx_lm.utils import load_config, load_model  # noqa: E402
from oracles.mlx_outputs import (  # noqa: E402
    decoded_model,
    decoded_parameters,
    logits,
    parameters,
    quantized_modules,
    raw,
)

LOSSLESS = "32"

PROTECTED = {
    "norm": r"norm|ln_",
    "convolution": r"conv1d",
    "state": r"\.(A_log|D|dt_bias)$",
    "sinks": r"sinks$",
    "bias": r"bias$",
    "positions": r"wpe|pos_embed|positional_embedding",
    "gates of linear attention": r"in_proj_(a|b|ba)\.",
}
"""What is never quantized, by parts of names."""

ROUTERS = r"(mlp|block_sparse_moe)\.(gate|router|shared_expert_gate)\.weight$|feed_forward\.router\.weight$"
"""What is quantized to no fewer than 8 bits."""

RAW_ROUTERS = ("deepseek_v2", "deepseek_v3", "deepseek_v3_fp8", "kimi_k2", "kimi_k25", "glm4_moe")
"""Releases whose routers are no layers of mlx-lm's, and not quantized at all."""

CONSUMED = r"weight_scale(_inv)?$|weight_shape$|input_scale$|_scales$"
DROPPED = (
    r"^mtp\.|^model\.visual\.|^vision_(model|tower)\.|^(multi_modal|mm)_projector\."
    r"|\.attn\.bias$|\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$"
)


class Released:
    """A release on disk, and what becomes of it."""

    def __init__(self, name, directory):
        self.name, self.release, self.directory = name, RELEASES[name], directory
        self.source = write_release(name, directory / "source")
        self.tensors = read_weights(self.source)

    @cached_property
    def reference(self):
        """The release, or what mlx-lm would load in its place."""
        if self.release.loadable is None:
            return self.source
        return write_checkpoint(self.directory / "loadable", *self.release.loadable(self.tensors, self.release.config))

    def output(self, budget):
        """What ramrs writes within a budget."""
        output = self.directory / f"at {budget}"
        if not output.exists():
            ramrs.quantize(self.source, output, budget=budget)
        return output

    def is_dropped(self, name):
        """Tell whether mlx-lm has no use for a tensor."""
        predictor = f"model.layers.{self.release.config.get('num_hidden_layers')}."
        return re.search(DROPPED, name) is not None or name.startswith(predictor)

    def is_protected(self, name):
        """Tell whether a tensor must not be quantized."""
        patterns = [*PROTECTED.values(), *([ROUTERS] if self.name in RAW_ROUTERS else [])]
        return any(re.search(pattern, name) for pattern in patterns)


@pytest.fixture(scope="module", params=slow_but_for(["gpt_oss"], RELEASES))
def released(request, tmp_path_factory):
    return Released(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(params=["smaller", "larger", "lossless"])
def budget(request, released):
    """Each of the budgets of a release."""
    return dict(zip(("smaller", "larger"), released.release.budgets, strict=True)).get(request.param, LOSSLESS)


@pytest.fixture
def output(released, budget):
    """What ramrs writes within each of them."""
    return released.output(budget)


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    mx.set_default_device(mx.cpu)


def ledger_of(output):
    """Return what became of each tensor, by its name."""
    lines = json.loads((output / "ramrs-manifest.json").read_text())["ledger"]
    assert len({line["tensor"] for line in lines}) == len(lines)
    return {line["tensor"]: line for line in lines}


def entry_of(output, module):
    """Return how the configuration says that a module is quantized."""
    block = json.loads((output / "config.json").read_text())["quantization"]
    return block.get(module, {key: block[key] for key in ("group_size", "bits", "mode")})


def is_same(one, other):
    """Tell whether two tensors are stored alike."""
    alike = one.dtype == other.dtype and one.elements.shape == other.elements.shape
    return alike and one.elements.tobytes() == other.elements.tobytes()


def test_every_model_type_has_a_release():
    text = (ROOT / "rust" / "arch" / "families" / "table.rs").read_text()
    lists = re.findall(r"types: &\[(.*?)\]", text, re.DOTALL)
    listed = {model_type for types in lists for model_type in re.findall(r'"(\w+)"', types)}
    assert len(listed) > 10
    assert listed <= {release.config["model_type"] for release in RELEASES.values()}


def test_mlx_lm_loads_a_release_or_says_what_is_written_here(released):
    if released.release.error is None:
        load_model(released.source)
    else:
        with pytest.raises((RuntimeError, TypeError, ValueError), match=released.release.error):
            load_model(released.source)


def test_the_numbers_are_such_that_differences_show(released):
    model, _ = load_model(released.reference)
    found = logits(model)
    assert np.isfinite(found).all()
    assert 0.5 < found.std() < 10
    assert np.abs(found[:, 1:] - found[:, :-1]).max(-1).min() > 0.5


@pytest.mark.parametrize("name", [name for name, release in RELEASES.items() if release.shards > 1])
def test_what_belongs_together_is_in_several_files(name, tmp_path):
    where = json.loads((write_release(name, tmp_path) / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(where.values())) == RELEASES[name].shards
    parts = {}
    for tensor, file in where.items():
        together = re.sub(r"(?<=experts)\.\d+\..*|(_scale(_inv|s)?|_blocks|_packed|_shape)$", "", tensor)
        parts.setdefault(together, []).append(file)
    assert any(len(set(files)) > 1 for files in parts.values()) == any(len(files) > 1 for files in parts.values())


def test_what_is_kept_is_what_mlx_lm_loads_bit_for_bit(released):
    ours, _ = load_model(released.output(LOSSLESS))
    theirs, _ = load_model(released.reference)
    found, expected = parameters(ours), parameters(theirs)
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert raw(found[name]) == raw(array), name
    # What was transposed without being moved is multiplied in another order.
    theirs.update(tree_map(mx.contiguous, theirs.parameters()))
    np.testing.assert_array_equal(logits(ours), logits(theirs))


def test_the_configuration_is_kept_but_for_the_encoding(released, output):
    before, after = load_config(released.source), load_config(output)
    if released.name in ("qwen3_5_text", "qwen3_5_moe_text"):  # which mlx-lm reads within a larger model only
        assert after["text_config"].items() >= before.items()
        return
    inner, text = before.pop("text_config", {}), after.pop("text_config", {})
    inner.pop("quantization_config", None)
    assert "quantization_config" not in text
    assert text.items() >= inner.items()
    for key in before.keys() - {"quantization_config", "vision_config"}:
        assert after[key] == before[key], key
    assert after.get("quantization_config") == after.get("quantization")


def test_an_output_computes_with_what_it_decodes_to(released, output):
    expected, found = logits(decoded_model(output)), logits(load_model(output)[0])
    assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)


def test_quantized_weights_are_near_those_of_the_release_and_the_others_are_the_same(released, output):
    model, _ = load_model(output)
    modules = quantized_modules(model)
    ours, theirs = decoded_parameters(model), decoded_parameters(load_model(released.reference)[0])
    assert sorted(ours) == sorted(theirs)
    for name, expected in theirs.items():
        module = modules.get(name.removesuffix(".weight"))
        if module is None:
            assert raw(ours[name]) == raw(expected.astype(ours[name].dtype)), name
        else:
            expected = np.array(expected.astype(mx.float32))
            error = np.linalg.norm(np.array(ours[name]) - expected) / np.linalg.norm(expected)
            assert error <= 2 / (2**module.bits - 1) + 2**-7, name  # of codes, and of scales in bfloat16


def test_the_ledger_has_every_tensor_once_and_every_byte(released, budget):
    output = released.output(budget)
    ledger, written = ledger_of(output), read_weights(output)
    assert ledger.keys() == released.tensors.keys()
    assert {name for line in ledger.values() for name in line["into"]} == written.keys()
    assert sum(line["bytes"] for line in ledger.values()) == sum(each.elements.nbytes for each in written.values())
    for name, line in ledger.items():
        tensor = released.tensors[name]
        assert (line["dtype"], tuple(line["shape"])) == (tensor.dtype, tensor.elements.shape)
        assert line["why"]
        if released.is_dropped(name):
            assert (line["became"], line["into"], line["bytes"]) == ("dropped", [], 0), name
        elif re.search(CONSUMED, name):
            assert line["became"] == "consumed", name
        elif line["into"] == [name] and is_same(written[name], tensor):
            assert line["became"] == "kept", name
        else:
            assert line["became"] in ("converted", "quantized"), name
            assert line["bytes"] > 0


def test_nothing_is_quantized_that_must_not_be(released, output):
    with_scales = {
        name: line
        for name, line in ledger_of(output).items()
        if line["became"] == "quantized" or any(into.endswith(".scales") for into in line["into"])
    }
    assert not list(filter(released.is_protected, with_scales))
    for name, line in with_scales.items():
        if re.search(ROUTERS, name):
            assert all(int(each["scheme"].split("g")[0]) >= 8 for each in line["quantized"]), name


def test_everything_else_is_quantized(released):
    ledger = ledger_of(released.output(released.release.budgets[0]))
    kinds = {}
    for name, tensor in released.tensors.items():
        spared = released.is_protected(name) or released.is_dropped(name) or re.search(f"{ROUTERS}|{CONSUMED}", name)
        if tensor.elements.ndim > 1 and not spared:
            kinds.setdefault(re.sub(r"\d+", "N", name), set()).add(ledger[name]["became"])
    passed_on = {"converted"} if released.name in ("gpt_oss", "kimi_k2", "kimi_k25") else set()
    for kind, became in kinds.items():
        assert "quantized" in became or became == passed_on, kind


def test_an_output_is_verified_against_its_release(released, budget):
    report = ramrs.verify(released.output(budget), source=released.source)
    assert report.ok, report.problems


@pytest.mark.parametrize("what", [*PROTECTED, "routers"])
def test_there_is_such_a_tensor(what):
    pattern = PROTECTED.get(what, ROUTERS)
    names = (name for release in RELEASES.values() for name in release.shapes(release.config))
    assert any(re.search(pattern, name) for name in names)


def test_mxfp4_is_passed_on_byte_for_byte(tmp_path):
    source, output = write_release("gpt_oss", tmp_path / "source"), tmp_path / "out"
    ramrs.quantize(source, output, budget=LOSSLESS)
    before, after = read_weights(source), read_weights(output)
    for name, blocks in before.items():
        if not name.endswith("_blocks"):
            continue
        whole = name.removesuffix("_blocks")
        scales, words = before[f"{whole}_scales"], blocks.elements.reshape(*blocks.elements.shape[:2], -1).view("<u4")
        halves = (
            {"gate_proj": np.s_[:, ::2], "up_proj": np.s_[:, 1::2]} if "gate_up" in whole else {"down_proj": np.s_[:]}
        )
        for half, rows in halves.items():
            module = f"{whole.rpartition('.')[0]}.{half}"
            assert is_same(after[f"{module}.weight"], Tensor("U32", words[rows]))
            assert is_same(after[f"{module}.scales"], Tensor("U8", scales.elements[rows]))
            assert f"{module}.biases" not in after
            assert entry_of(output, module) == {"group_size": 32, "bits": 4, "mode": "mxfp4"}


def test_int4_is_passed_on_with_the_zero_point_as_bias(tmp_path):
    source, output = write_release("kimi_k2", tmp_path / "source"), tmp_path / "out"
    ramrs.quantize(source, output, budget=LOSSLESS)
    before, after = read_weights(source), read_weights(output)
    for projection in ("gate_proj", "up_proj", "down_proj"):
        module, experts = f"model.layers.1.mlp.switch_mlp.{projection}", "model.layers.1.mlp.experts"
        words, scales = (
            np.stack([before[f"{experts}.{expert}.{projection}.weight_{part}"].elements for expert in range(4)])
            for part in ("packed", "scale")
        )
        assert is_same(after[f"{module}.weight"], Tensor("U32", words.view(np.uint32)))
        assert is_same(after[f"{module}.scales"], Tensor("BF16", scales))
        assert is_same(after[f"{module}.biases"], Tensor.of(-8 * Tensor("BF16", scales).values))
        assert entry_of(output, module) == {"group_size": 32, "bits": 4, "mode": "affine"}


@pytest.mark.parametrize("name", ["deepseek_v3_fp8", "qwen3_5_moe"])
def test_the_threads_do_not_change_a_byte(name, tmp_path):
    source = write_release(name, tmp_path / "source")
    for threads in (1, 2):
        ramrs.quantize(source, tmp_path / f"{threads}", budget=RELEASES[name].budgets[0], threads=threads)
    assert sees_everything(tmp_path / "1") == sees_everything(tmp_path / "2")

"""Outputs in compressed-tensors: their tensors, their configuration, and what is refused for a runtime."""

import json
import re

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import read_weights, write_checkpoint
from fixtures.configs import WIDER
from fixtures.models import RELEASES, write_release, write_variant
from fixtures.paths import DATA, EXAMPLE
from fixtures.prequantized import encode_fp8_rows, encode_fp8_static, encode_int4
from fixtures.process import sees_everything
from fixtures.tiers import slow_but_for
from oracles.compressed_tensors import group_of, read_decoded

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
TARGETS = ("vllm", "sglang", "transformers", "all")

WIDE = {
    "llama": (5.5, HEADS),
    "gemma3_text": (5.5, HEADS | {"num_key_value_heads": 1, "head_dim": 64}),
    "mixtral": (5.5, HEADS | {"intermediate_size": 192}),
    "qwen3_moe": (6.0, HEADS | {"moe_intermediate_size": 64, "mlp_only_layers": []}),
}
"""Models whose matrices fill the tiles of every kernel, and budgets in bits per weight."""


def write_wide(model, directory):
    return write_variant(model, directory, dtype="BF16", **(WIDER | WIDE[model][1]))


def block_of(output):
    return json.loads((output / "config.json").read_text())["quantization_config"]


def schemes_of(report):
    return {tensor.name: tensor.scheme for tensor in report.plan.tensors}


@pytest.mark.parametrize(
    "case", slow_but_for(["llama vllm", "qwen3_moe all"], [f"{model} {target}" for model in WIDE for target in TARGETS])
)
def test_an_output_decodes_to_what_ramrs_says_it_holds(case, tmp_path):
    model, target = case.split()
    source, output = write_wide(model, tmp_path / "source"), tmp_path / "out"
    report = ramrs.quantize(
        source, output, format="compressed-tensors", target=target, budget=WIDE[model][0], sensitivity="weights"
    )
    assert report.plan.settings.target == target
    assert ramrs.verify(output, source=source).ok
    decoded, schemes = read_decoded(output), schemes_of(report)
    assert len(set(schemes.values())) > 2
    assert decoded.keys() == schemes.keys()
    for name, weights in decoded.items():
        assert np.array_equal(ramrs.weights(output, name), weights), name
    # Every module is in one group that has its scheme, or in none; routers and what is kept are ignored.
    block = block_of(output)
    for name, scheme in schemes.items():
        module = name.removesuffix(".weight")
        groups = [
            group
            for group in block["config_groups"].values()
            if group_of(module, {"ignore": [], "config_groups": {"": group}})
        ]
        assert len(groups) == (scheme != "kept"), name
        if scheme == "kept" and name.endswith("proj.weight"):
            assert any(re.match(pattern.removeprefix("re:"), module) for pattern in block["ignore"]), name
    assert len(block["config_groups"]) == len(set(schemes.values()) - {"kept"})
    assert all(len(group["targets"]) < 20 for group in block["config_groups"].values())


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_runtime_fuses_shares_a_scheme(target, tmp_path):
    source = write_wide("qwen3_moe", tmp_path / "source")
    report = ramrs.plan(source, format="compressed-tensors", target=target, budget=6.0, sensitivity="weights")
    groups = {}
    for tensor in report.tensors:
        layer = tensor.name.split(".")[2] if ".layers." in tensor.name else ""
        if re.search(r"self_attn\.[qkv]_proj", tensor.name):
            groups.setdefault(f"{layer} qkv", set()).add(tensor.scheme)
        if ".experts." in tensor.name:
            groups.setdefault(f"{layer} experts", set()).add(tensor.scheme)
            groups.setdefault("experts of all layers", set()).add(tensor.scheme)
        if re.search(r"experts\.|self_attn", tensor.name) is None or tensor.name.endswith("mlp.gate.weight"):
            assert tensor.scheme == "kept" or "lm_head" in tensor.name, tensor.name
    of_all = groups.pop("experts of all layers")
    assert (len(of_all) == 1) == (target in ("transformers", "all"))
    fused = [
        len(schemes) == 1 for name, schemes in groups.items() if name.endswith("experts") or target != "transformers"
    ]
    assert all(fused)


def test_an_output_is_the_same_for_any_way_to_run(tmp_path):
    source, outputs = write_wide("llama", tmp_path / "source"), []
    ways = [{"threads": 1}, {"threads": 3, "chunk_bytes": 5_000}, {"simd": False}]
    for at, way in enumerate(ways):
        ramrs.quantize(source, tmp_path / f"{at}", format="compressed-tensors", budget=5.0, sample_bands=4, **way)
        outputs.append(sees_everything(tmp_path / f"{at}"))
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize(
    "scheme",
    slow_but_for(
        ["4g64", "nvfp4"], ["4g64", "2g128", "3g32", "4channel", "5g64", "6g32", "8g64", "fp8", "nvfp4", "mxfp4"]
    ),
)
def test_each_scheme_is_stored_as_it_is_described(scheme, tmp_path):
    output = tmp_path / "out"
    report = ramrs.quantize(
        DATA / "tiny-llama-bf16",
        output,
        format="compressed-tensors",
        budget=10.0,
        min_bits=2,
        sensitivity="weights",
        tensor={"_proj": scheme},
    )
    found = {value for name, value in schemes_of(report).items() if "_proj" in name}
    assert len(found) == 1
    decoded, source = read_decoded(output), read_weights(DATA / "tiny-llama-bf16")
    for name, weights in decoded.items():
        assert np.array_equal(ramrs.weights(output, name), weights), name
        off = np.abs(weights - source[name].values).max() / np.abs(source[name].values).max()
        assert off < (0.8 if scheme[0] == "2" else 0.3), name


def test_a_head_is_quantized_where_it_is_its_own(tmp_path):
    report = ramrs.quantize(
        DATA / "tiny-llama-bf16",
        tmp_path / "out",
        format="compressed-tensors",
        bits=8,
        group_size=64,
        sensitivity="weights",
    )
    schemes = schemes_of(report)
    assert (schemes["lm_head.weight"], schemes["model.embed_tokens.weight"]) == ("int8g64", "kept")
    assert read_decoded(tmp_path / "out")["lm_head.weight"].shape == (128, 128)


def test_the_default_group_is_that_of_the_format(tmp_path):
    for options, scheme in [({}, "int4g128"), ({"group_size": 32}, "int4g32"), ({"group_size": -1}, "int4channel")]:
        plan = ramrs.plan(
            DATA / "tiny-llama-bf16", format="compressed-tensors", bits=4, sensitivity="weights", **options
        )
        assert {tensor.scheme for tensor in plan.tensors} == {"kept", scheme}


def test_eight_and_four_bits_of_releases_are_passed_through(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    tensors, config = (
        read_weights(DATA / "tiny-llama-bf16"),
        json.loads((DATA / "tiny-llama-bf16/config.json").read_text()),
    )
    stored = {}
    for name, tensor in tensors.items():
        if "down_proj" in name:
            stored |= encode_fp8_rows(name, tensor.values)
        elif "up_proj" in name:
            stored |= encode_fp8_static(name, tensor.values)
        elif "o_proj" in name:
            stored |= encode_int4(name, tensor.values)
        else:
            stored[name] = tensor
    write_checkpoint(source, stored, config)
    options = {
        "format": "compressed-tensors",
        "budget": 16,
        "keep": ["_proj"],
        "target": "transformers",
        "sensitivity": "weights",
    }
    ramrs.quantize(source, tmp_path / "out", **options)
    written = read_weights(tmp_path / "out")
    for name, tensor in stored.items():
        if "up_proj.weight_scale" in name:
            assert written[name].elements.shape == (128, 1)
            assert (written[name].elements == tensor.elements).all(), name
        elif "_proj.weight" in name and not name.endswith("weight_shape"):
            assert np.array_equal(written[name].elements.reshape(-1), tensor.elements.reshape(-1)), name
    assert ramrs.verify(tmp_path / "out", source=source).ok
    # What the runtime does not read is decoded.
    ramrs.quantize(source, tmp_path / "sglang", **(options | {"target": "sglang"}))
    assert read_weights(tmp_path / "sglang")["model.layers.0.mlp.down_proj.weight"].dtype == "BF16"


def refused(model, **options):
    with pytest.raises(ramrs.RamrsError) as refusal:
        ramrs.plan(model, **({"format": "compressed-tensors", "sensitivity": "weights"} | options))
    return str(refusal.value)


def test_wrong_options_are_refused_with_what_is_right():
    assert "not one of: vllm, sglang, transformers, all" in refused(EXAMPLE, target="tgi", budget=8)
    assert "the format mlx has one runtime only" in refused(EXAMPLE, format="mlx", target="vllm", budget=8)
    assert "no runtime of the format mlx divides" in refused(EXAMPLE, format="mlx", tensor_parallel=2, budget=8)
    assert "not one of: mlx, compressed-tensors" in refused(EXAMPLE, format="gptq", budget=8)
    assert "none of int4channel, int4g128" in refused(EXAMPLE, target="sglang", bits=3)


def test_a_model_that_does_not_divide_is_refused():
    said = refused(DATA / "tiny-llama-bf16", tensor_parallel=4, budget=8)
    assert "num_attention_heads of 2 does not divide by it" in said


def test_groups_do_not_cross_devices(tmp_path):
    source = write_wide("llama", tmp_path / "source")
    for devices in (1, 2):
        analysis = ramrs.analyze(source, format="compressed-tensors", tensor_parallel=devices, sensitivity="weights")
        [down] = [tensor for tensor in analysis.tensors if tensor.name == "model.layers.0.mlp.down_proj.weight"]
        columns = down.shape[1] // devices
        found = {int(point.scheme.split("g")[1]) for point in down.curve.points if "g" in point.scheme}
        assert found == {group for group in (32, 64, 128) if columns % group == 0}


def test_rules_that_part_what_is_fused_are_refused_with_both_tensors(tmp_path):
    source = write_wide("llama", tmp_path / "source")
    said = refused(source, budget=8, tensor={"q_proj": "4g64", "[kv]_proj": "8g64"})
    assert "q_proj" in said and "k_proj" in said and "--tensor" in said
    assert ramrs.plan(
        source,
        format="compressed-tensors",
        target="transformers",
        budget=9,
        sensitivity="weights",
        tensor={"q_proj": "4g64", "[kv]_proj": "8g64"},
    )


def test_an_edited_plan_that_a_runtime_refuses_is_refused(tmp_path):
    source = write_wide("llama", tmp_path / "source")
    plan = ramrs.plan(source, format="compressed-tensors", bits=4, group_size=64, sensitivity="weights").to_dict()
    [query] = [tensor for tensor in plan["tensors"] if tensor["name"] == "model.layers.0.self_attn.q_proj.weight"]
    query["scheme"] = "int8g64"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ramrs.TensorError, match=r"takes one scheme for it and `model.layers.0.self_attn.*int8g64"):
        ramrs.quantize(source, tmp_path / "out", plan=tmp_path / "plan.json", sensitivity="weights")
    assert not (tmp_path / "out").exists()


UNREAD = {
    "gpt2": ("another class", TARGETS),
    "gpt_oss": ("experts in one tensor", TARGETS),
    "llama4": ("experts in one tensor", TARGETS),
    "mamba2": ("plain weights", TARGETS),
    "qwen3_5_text": ("on its own", TARGETS),
    "qwen3_5_moe_text": ("on its own", TARGETS),
    "kimi_k2": ("no causal language model", ("transformers", "all")),
    "kimi_k25": ("no causal language model", ("transformers", "all")),
}


@pytest.mark.parametrize("release", slow_but_for(["gpt2", "mixtral", "qwen3_5"], sorted(RELEASES)))
def test_every_release_is_written_or_refused_with_the_reason(release, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    write_release(release, source)
    model = json.loads((source / "config.json").read_text())["model_type"]
    for target in ("vllm", "transformers"):
        reason, by = UNREAD.get(model, ("", ()))
        if target in by:
            assert reason in refused(source, target=target, bits=4, group_size=32)
            continue
        output = tmp_path / target
        ramrs.quantize(
            source, output, format="compressed-tensors", target=target, bits=4, group_size=32, sensitivity="weights"
        )
        assert ramrs.verify(output, source=source).ok
        read_decoded(output)


def test_heads_that_transformers_renames_are_kept(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    write_release("gpt_neox", source)
    plan = ramrs.plan(source, format="compressed-tensors", bits=4, group_size=32, sensitivity="weights")
    assert {tensor.name: tensor.scheme for tensor in plan.tensors}["embed_out.weight"] == "kept"


def test_schemes_are_chosen_by_their_names(tmp_path):
    source = write_wide("llama", tmp_path / "source")
    options = {"format": "compressed-tensors", "budget": 6.0, "sensitivity": "weights"}
    plan = ramrs.plan(source, schemes="int[48].*", **options)
    assert {tensor.scheme[:4] for tensor in plan.tensors} == {"kept", "int4", "int8"}
    assert plan.policy.schemes == ("int[48].*",)
    assert "matches none of" in refused(source, schemes="4g.*", budget=6.0)


def test_the_group_of_routed_experts_comes_before_that_of_shared_ones(tmp_path):
    """Transformers takes the first group whose target has the word "experts" for the routed experts."""
    source = tmp_path / "source"
    source.mkdir()
    write_release("deepseek_v3", source)
    ramrs.quantize(
        source,
        tmp_path / "out",
        format="compressed-tensors",
        target="transformers",
        budget=12.0,
        sensitivity="weights",
        tensor={"shared_experts": "4g64", r"mlp\.experts": "8g32"},
    )
    groups = block_of(tmp_path / "out")["config_groups"]
    [first, *_] = [
        groups[name] for name in sorted(groups) if any("experts" in target for target in groups[name]["targets"])
    ]
    assert (first["weights"]["num_bits"], first["weights"]["group_size"]) == (8, 32)
    assert any("[.]experts[.]" in target for target in first["targets"])
    assert ramrs.verify(tmp_path / "out", source=source).ok

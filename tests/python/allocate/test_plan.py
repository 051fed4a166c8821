"""Policies, saved analyses, edited plans, the curve of size and loss."""

import dataclasses
import itertools
import json
import time

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import (
    LLAMA,
    Tensor,
    header_of,
    llama_tensors,
    read_weights,
    write_checkpoint,
    write_safetensors,
)
from fixtures.paths import EXAMPLE
from fixtures.process import sees_everything
from oracles.reference import decoded_module


@pytest.fixture(scope="module")
def analysis():
    return ramrs.analyze(EXAMPLE)


def schemes(made):
    """Scheme of every tensor that could be quantized, by name."""
    return {tensor.name: tensor.scheme for tensor in made.tensors if tensor.role != "norm"}


def bits(scheme):
    return 16 if scheme == "kept" else int(scheme.split("g")[0])


@pytest.mark.parametrize("least", [3, 4, 6])
def test_min_bits_is_the_least_that_any_matrix_gets(least, analysis):
    budget = least + 1.2
    made = ramrs.plan(analysis, budget=budget, min_bits=least)
    assert min(map(bits, schemes(made).values())) == least
    assert made.totals.effective_bpw <= budget


@pytest.mark.parametrize("most", [3, 5, 8])
def test_max_bits_is_the_most_that_any_matrix_gets(most, analysis):
    made = ramrs.plan(analysis, budget=12, max_bits=most)
    assert set(map(bits, schemes(made).values())) == {most}


def test_two_bits_are_for_those_who_ask_where_they_are_noise(analysis):
    floor = ramrs.plan(analysis, budget="2.6")
    assert all(tensor.sqnr_db >= 9 for tensor in floor.tensors if tensor.scheme.startswith("2g"))
    asked = ramrs.plan(analysis, budget="2.54", min_bits=2)
    assert set(schemes(asked).values()) <= {"2g64", "2g32", "2g128"}
    with pytest.raises(ramrs.BudgetError, match="floor"):
        ramrs.plan(analysis, budget="2.54")
    higher = ramrs.plan(analysis, budget=4, floor_db=12)
    assert all(tensor.sqnr_db >= 12 for tensor in higher.tensors if tensor.scheme.startswith("2g"))


def test_what_is_to_be_kept_is_kept_and_the_ledger_says_by_whom(tmp_path):
    report = ramrs.quantize(EXAMPLE, tmp_path / "out", budget=6, keep=["layers.[01].*q_proj"])
    kept = [line for line in report.manifest.ledger if "q_proj" in line.tensor and line.became == "kept"]
    assert [line.tensor for line in kept] == [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)]
    assert all(line.why == "asked for by --keep layers.[01].*q_proj" for line in kept)
    assert 0.999 * 6 <= report.plan.totals.effective_bpw <= 6
    assert report.manifest.policy.keep == ("layers.[01].*q_proj",)
    source, written = read_weights(EXAMPLE), read_weights(tmp_path / "out")
    for line in kept:
        assert written[line.tensor].elements.tobytes() == source[line.tensor].elements.tobytes()


@pytest.mark.parametrize(
    ("spec", "holds"),
    [
        ("5", lambda scheme: bits(scheme) == 5),
        ("5g32", lambda scheme: scheme == "5g32"),
        ("3-4", lambda scheme: bits(scheme) in (3, 4)),
        ("4-6g32", lambda scheme: bits(scheme) in (4, 5, 6) and scheme.endswith("g32")),
        ("kept", lambda scheme: scheme == "kept"),
        ("2", lambda scheme: bits(scheme) == 2),
    ],
)
def test_a_rule_gives_a_tensor_what_it_says(spec, holds, analysis):
    made = ramrs.plan(analysis, budget=6, tensor=[f"up_proj={spec}"])
    found = [scheme for name, scheme in schemes(made).items() if "up_proj" in name]
    assert len(found) == 5
    assert all(map(holds, found))
    assert made.policy.tensor == (f"up_proj={spec}",)


def test_a_rule_is_told_as_the_reason(analysis):
    made = ramrs.plan(analysis, budget=6, tensor=["up_proj=5g32"])
    whys = {tensor.why for tensor in made.tensors if "up_proj" in tensor.name}
    assert len(whys) == 1
    assert "--tensor up_proj=5g32" in whys.pop()


def test_the_last_rule_that_matches_counts(analysis):
    made = ramrs.plan(analysis, budget=6, keep=["up_proj"], tensor=["proj=4-8", "layers.3.mlp.up_proj=3g64"])
    assert schemes(made)["model.layers.3.mlp.up_proj.weight"] == "3g64"
    assert 4 <= bits(schemes(made)["model.layers.2.mlp.up_proj.weight"]) <= 8


def test_limits_that_leave_nothing_are_an_error_that_names_the_tensor(analysis):
    with pytest.raises(ramrs.TensorError, match="no scheme is left") as caught:
        ramrs.plan(analysis, budget=6, tensor=["embed_tokens=4g128"])
    assert caught.value.tensor == "model.embed_tokens.weight"


def test_a_saved_analysis_gives_the_same_plan_and_the_same_bytes(analysis, tmp_path):
    analysis.write(tmp_path / "analysis.json")
    for budget in ("3.3", "180KB"):
        at_once = ramrs.plan(EXAMPLE, budget=budget)
        assert ramrs.plan(analysis, budget=budget) == at_once
        assert ramrs.plan(tmp_path / "analysis.json", budget=budget) == at_once
    ramrs.quantize(EXAMPLE, tmp_path / "one go", budget="3.3")
    ramrs.quantize(EXAMPLE, tmp_path / "saved", budget="3.3", analysis=tmp_path / "analysis.json")
    made = ramrs.plan(analysis, budget="3.3")
    ramrs.quantize(EXAMPLE, tmp_path / "planned", plan=made)
    expected = sees_everything(tmp_path / "one go")
    assert sees_everything(tmp_path / "saved") == expected
    assert sees_everything(tmp_path / "planned") == expected


@pytest.mark.parametrize("option", [{"effort": "fast"}, {"objective": "mse"}, {"prior": "none"}])
def test_an_analysis_with_other_options_is_refused(option, analysis, tmp_path):
    with pytest.raises(ramrs.ConfigError, match="other options") as caught:
        ramrs.quantize(EXAMPLE, tmp_path / "out", budget=4, analysis=analysis, **option)
    assert caught.value.slug == "stale-document"


def test_an_edited_plan_is_written_as_it_was_edited(analysis, tmp_path):
    made = ramrs.plan(analysis, budget=4).to_dict()
    edits = {"model.embed_tokens.weight": "8g32", "model.layers.1.mlp.up_proj.weight": "kept"}
    for tensor in made["tensors"]:
        tensor["scheme"] = edits.get(tensor["name"], tensor["scheme"])
    (tmp_path / "plan.json").write_text(json.dumps(made))
    report = ramrs.quantize(EXAMPLE, tmp_path / "out", plan=tmp_path / "plan.json")
    lines = {line.tensor: line for line in report.manifest.ledger}
    assert lines["model.embed_tokens.weight"].quantized[0].scheme == "8g32"
    assert lines["model.layers.1.mlp.up_proj.weight"].became == "kept"
    for tensor in made["tensors"]:
        if tensor["name"] not in edits and tensor["scheme"] != "kept":
            assert lines[tensor["name"]].quantized[0].scheme == tensor["scheme"]
    totals = report.plan.totals
    assert totals.tensor_bytes == sum(line.bytes for line in report.manifest.ledger)
    assert totals.file_bytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert totals.effective_bpw == 8 * totals.tensor_bytes / 279_232
    assert ramrs.verify(tmp_path / "out", source=EXAMPLE).ok


@pytest.mark.parametrize(
    ("name", "scheme", "why"),
    [
        ("model.embed_tokens.weight", "4g128", "4g128 does not fit it"),
        ("model.norm.weight", "4g64", "norm: never quantized"),
        ("model.embed_tokens.weight", "7g64", "7g64"),
    ],
)
def test_a_plan_edited_to_the_impossible_is_refused(name, scheme, why, analysis, tmp_path):
    made = ramrs.plan(analysis, budget=4).to_dict()
    for tensor in made["tensors"]:
        if tensor["name"] == name:
            tensor["scheme"] = scheme
    (tmp_path / "plan.json").write_text(json.dumps(made))
    with pytest.raises(ramrs.RamrsError, match=why):
        ramrs.quantize(EXAMPLE, tmp_path / "out", plan=tmp_path / "plan.json")
    assert not (tmp_path / "out").exists()


def test_a_plan_without_a_tensor_or_with_two_swapped_is_refused(analysis, tmp_path):
    made = ramrs.plan(analysis, budget=4)
    fewer = dataclasses.replace(made, tensors=made.tensors[:-1])
    swapped = dataclasses.replace(made, tensors=(made.tensors[1], made.tensors[0], *made.tensors[2:]))
    for spoilt in (fewer, swapped):
        with pytest.raises(ramrs.ConfigError) as caught:
            ramrs.quantize(EXAMPLE, tmp_path / "out", plan=spoilt)
        assert caught.value.slug == "stale-document"


def test_the_curve_of_size_and_loss_falls(analysis):
    for options in ({}, {"min_bits": 4}, {"max_bits": 5}, {"keep": ["down_proj"]}):
        curve = ramrs.plan(analysis, budget=12, **options).trade_off
        assert len(curve) > 5
        for smaller, larger in itertools.pairwise(curve):
            assert smaller.tensor_bytes < larger.tensor_bytes
            assert smaller.effective_bpw < larger.effective_bpw
            assert smaller.loss > larger.loss
    assert ramrs.plan(analysis, budget=12).trade_off[-1].loss == 0


def test_a_point_of_the_curve_can_be_had(analysis):
    curve = ramrs.plan(analysis, budget=12).trade_off
    for point in curve[:: max(1, len(curve) // 6)]:
        made = ramrs.plan(analysis, budget=point.effective_bpw)
        assert made.totals.tensor_bytes <= point.tensor_bytes
        assert made.totals.loss <= point.loss * (1 + 1e-12) + 1e-15


def test_more_bytes_never_lose_more(analysis):
    losses = [ramrs.plan(analysis, budget=budget).totals.loss for budget in np.arange(2.6, 10, 0.2)]
    assert all(more <= less for less, more in itertools.pairwise(losses))


def synthetic(analysis, count):
    """An analysis of ``count`` tensors, made of the example's curves."""
    random = np.random.default_rng(0)
    patterns = [tensor for tensor in analysis.tensors if tensor.curve is not None]
    tensors = []
    for at in range(count):
        pattern = patterns[at % len(patterns)]
        factor = float(random.lognormal())
        points = tuple(point._replace(loss=point.loss * factor) for point in pattern.curve.points)
        name = f"model.layers.{at}.{pattern.role}.weight"
        curve = dataclasses.replace(pattern.curve, family=name, points=points)
        tensors.append(dataclasses.replace(pattern, name=name, layer=at, curve=curve))
    weights = sum(int(np.prod(tensor.shape)) for tensor in tensors)
    source = dataclasses.replace(
        analysis.source, parameters=weights, tensor_bytes=2 * weights, file_bytes=2 * weights + 100_000
    )
    return dataclasses.replace(analysis, source=source, tensors=tuple(tensors))


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["3.7", "25%"])
def test_twenty_thousand_tensors_are_planned_within_the_budget(budget, analysis, tmp_path):
    synthetic(analysis, 20_000).write(tmp_path / "analysis.json")
    started = time.perf_counter()
    made = ramrs.plan(tmp_path / "analysis.json", budget=budget)
    print(f"planned in {time.perf_counter() - started:.2f} s, with reading and returning 20,000 tensors")  # noqa: T201
    assert len(made.tensors) == 20_000
    used = made.totals.tensor_bytes if budget == "3.7" else made.totals.file_bytes
    assert 0.999 * made.totals.budget_bytes <= used <= made.totals.budget_bytes
    assert made.totals.loss <= made.totals.lower_bound * 1.001


@pytest.mark.parametrize("objective", ["output", "mse", "mint"])
def test_each_objective_is_minimised(objective):
    analyses = {each: ramrs.analyze(EXAMPLE, objective=each, sample_bands=0) for each in ("output", "mse", "mint")}
    losses = {}
    for each, found in analyses.items():
        made = schemes(ramrs.plan(found, budget=4))
        curves = {tensor.name: tensor.curve for tensor in analyses[objective].tensors if tensor.curve}
        losses[each] = sum(
            next(point.loss for point in curve.points if point.scheme == made[name])
            for name, curve in curves.items()
            if made[name] != "kept"
        )
    assert losses[objective] <= min(losses.values()) * 1.02
    assert len({round(loss, 9) for loss in losses.values()}) > 1


def test_a_sensitivity_file_decides_where_the_bits_go(tmp_path):
    model = write_checkpoint(tmp_path / "model", llama_tensors(LLAMA))
    tensors = {}
    for name, tensor in llama_tensors(LLAMA).items():
        if tensor.elements.ndim == 2:
            rows, columns = tensor.elements.shape
            important = 1000.0 if "layers.1.mlp.up_proj" in name else 1.0
            tensors[f"{name}.k"] = Tensor.of(np.ones(columns), "F32")
            tensors[f"{name}.r"] = Tensor.of(np.full(rows, important), "F32")
    header = {"__metadata__": {"format": "ramrs-sensitivity", "version": "1"}}
    write_safetensors(tmp_path / "sensitivity.safetensors", tensors, header | header_of(tensors))
    made = ramrs.plan(model, budget=4.5, sensitivity=tmp_path / "sensitivity.safetensors")
    found = {name: bits(scheme) for name, scheme in schemes(made).items()}
    assert max(found, key=found.get) == "model.layers.1.mlp.up_proj.weight"
    assert made.settings.sensitivity != "weights"
    report = ramrs.quantize(model, tmp_path / "out", plan=made, sensitivity=tmp_path / "sensitivity.safetensors")
    assert report.written
    with pytest.raises(ramrs.ConfigError, match="made with a sensitivity file: give that with sensitivity="):
        ramrs.quantize(model, tmp_path / "other", plan=made)
    with pytest.raises(ramrs.ConfigError, match="another sensitivity"):
        ramrs.quantize(model, tmp_path / "other", plan=made, sensitivity="weights")


def test_columns_that_matter_are_encoded_with_less_error(tmp_path):
    random = np.random.default_rng(2)
    tensors = {"m.weight": Tensor.of(random.standard_normal((64, 128), np.float32))}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    k = np.ones(128)
    k[::8] = 100
    vectors = {"m.weight.k": Tensor.of(k, "F32")}
    header = {"__metadata__": {"format": "ramrs-sensitivity", "version": "1"}} | header_of(vectors)
    write_safetensors(tmp_path / "k.safetensors", vectors, header)
    errors = {}
    for name, sensitivity in (("with", tmp_path / "k.safetensors"), ("without", "weights")):
        out = tmp_path / name / "out"
        source = tmp_path / "model.safetensors"
        ramrs.quantize(source, out, bits=3, group_size=64, generic=True, sensitivity=sensitivity)
        off = decoded_module(read_weights(out), "m", "3g64") - tensors["m.weight"].values
        errors[name] = (off**2).sum(axis=0)
    assert errors["with"][::8].sum() < 0.7 * errors["without"][::8].sum()
    assert (k * errors["with"]).sum() < (k * errors["without"]).sum()


def test_a_floor_that_is_asked_for_holds_beside_min_bits():
    made = ramrs.plan(EXAMPLE, budget=4.0, min_bits=2, floor_db=40)
    assert not [tensor.name for tensor in made.tensors if str(tensor.scheme).startswith("2")]


def test_a_plan_that_other_shards_would_take_over_its_budget_is_promised_nothing(tmp_path):
    made = ramrs.plan(EXAMPLE, budget="151.7KB")
    report = ramrs.quantize(EXAMPLE, tmp_path / "out", plan=made, shard_bytes=3000)
    assert report.plan.budget is None
    assert any("the plan was edited" in warning for warning in report.plan.warnings)


def test_a_single_pattern_is_one_pattern():
    one = ramrs.plan(EXAMPLE, budget=6.0, keep=r"layers\.0\.self_attn", tensor="up_proj=5g32")
    several = ramrs.plan(EXAMPLE, budget=6.0, keep=[r"layers\.0\.self_attn"], tensor=["up_proj=5g32"])
    assert one == several


def test_options_that_a_saved_analysis_has_answered_are_refused(tmp_path):
    analysis = ramrs.analyze(EXAMPLE)
    with pytest.raises(ramrs.ConfigError, match="effort=: a saved analysis has its own"):
        ramrs.plan(analysis, budget=4.0, effort="fast")

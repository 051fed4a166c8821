"""Transformers loads what ramrs writes for each target, and computes with exactly the weights that it decodes to."""

import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import ramrs
from fixtures.models import RELEASES, VARIANTS, write_release, write_variant
from fixtures.paths import DATA
from oracles.compressed_tensors import group_of, read_decoded
from runtimes.cases import MODELS, SMOLLM2, TARGETS, bits_per_weight, described, write_decoded
from runtimes.handmade import FP8, MXFP4, NVFP4, Rule, integers, write_handmade
from runtimes.running import consume, difference

BOUND = 1e-3
"""The largest difference of logits, as a share of their range."""

CASES = [(name, target, budget) for name in MODELS for target in TARGETS for budget in MODELS[name].budgets_for(target)]


PER_LAYER = ("vllm", "sglang")
"""The targets that take another scheme for the experts of each layer."""


def experts_differ(output):
    """Tell whether the experts of a checkpoint have several schemes."""
    block = described(output)
    groups = [group_of(name.removesuffix(".weight"), block) for name in read_decoded(output) if ".experts." in name]
    return any(group != groups[0] for group in groups)


@dataclass
class Made:
    """An output of ramrs, and what transformers computes with it and with its decoded weights."""

    output: Path
    decoded: object
    loaded: object


def scheme_name(group):
    """Return a short name for a group's scheme."""
    arguments = group["weights"]
    size = f"g{arguments['group_size']}" if arguments["group_size"] else "channel"
    return f"{arguments['type']}{arguments['num_bits']}{size}"


def scheme_counts(output):
    """Return how many modules have each scheme, as text."""
    block = described(output)
    modules = {name.removesuffix(".weight") for name in read_decoded(output)}
    groups = [group_of(module, block) for module in modules]
    counts = Counter(scheme_name(group) for group in groups if group)
    return ", ".join(f"{count} × {name}" for name, count in sorted(counts.items()))


def made_of(name, folder):
    """Make all outputs of a model, and start transformers once for all of them."""
    model, checkpoints = MODELS[name], {}
    source = model.write(folder / "source")
    for target in TARGETS:
        settings = {"format": "compressed-tensors", "target": target}
        analysis = ramrs.analyze(source, **settings)
        for budget in model.budgets_for(target):
            output = folder / f"{target}-{budget}"
            ramrs.quantize(source, output, analysis=analysis, budget=budget, **settings)
            checkpoints[target, budget] = output
            checkpoints[target, budget, "decoded"] = write_decoded(folder / f"{target}-{budget}-decoded", output)
    results = consume("transformers", checkpoints, folder / "logits")
    keys = [key for key in checkpoints if len(key) == 2]
    return {key: Made(checkpoints[key], results[(*key, "decoded")], results[key]) for key in keys}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Return a function for an output, which makes all those of its model at the first call."""
    of_models = {}

    def output(name, target, budget):
        if name == "smollm2-135m" and not (SMOLLM2 / "config.json").exists():
            pytest.skip("models/smollm2-135m is not there: run `make models`")
        if name not in of_models:
            of_models[name] = made_of(name, tmp_path_factory.mktemp(name))
        return of_models[name][target, budget]

    return output


@pytest.mark.parametrize(("name", "target", "budget"), CASES)
def test_transformers_computes_with_the_decoded_weights(outputs, record, name, target, budget):
    made = outputs(name, target, budget)
    width = bits_per_weight(made.output, read_decoded(made.output))
    row = (name, target, budget, f"{width:.3f}", scheme_counts(made.output))
    if target in PER_LAYER and experts_differ(made.output):
        record.logits.append((*row, "not for transformers: experts of layers differ"))
        pytest.skip(
            "transformers computes wrongly with experts of several schemes, and ramrs does not write them for it"
        )
    assert made.loaded.loaded, made.loaded.words
    assert made.loaded.problems == made.decoded.problems, "weights are missing, or left over"
    share = difference(made.decoded.values, made.loaded.values)
    record.logits.append((*row, f"{share:.1e}"))
    assert share <= BOUND


@pytest.mark.parametrize(("name", "target", "budget"), CASES)
def test_ramrs_verifies_its_output(outputs, name, target, budget):
    output = outputs(name, target, budget).output
    report = ramrs.verify(output)
    assert report.ok, report.problems
    assert report.decoded


@pytest.mark.parametrize(("name", "target", "budget"), CASES)
def test_each_module_is_in_one_group_or_ignored(outputs, name, target, budget):
    """SGLang demands it of every linear layer. Overlapping targets would depend on the order of groups."""
    output = outputs(name, target, budget).output
    block, config = described(output), json.loads((output / "config.json").read_text())
    if target in ("sglang", "all"):
        assert block["format"] == "pack-quantized", "SGLang reads packed experts in no other"
    for tensor, values in read_decoded(output).items():
        module = tensor.removesuffix(".weight")
        if values.ndim != 2 or "embed" in module:
            continue
        named = [group_of(module, block | {"config_groups": {0: group}}) for group in block["config_groups"].values()]
        only_ignored = {"ignore": block["ignore"], "config_groups": {0: {"targets": ["re:.*"]}}}
        is_ignored = group_of(module, only_ignored) is None
        assert sum(group is not None for group in named) + is_ignored == 1, module
    if config.get("tie_word_embeddings"):
        assert "lm_head.weight" not in read_decoded(output)


FAMILIES = {f"{name}, release": partial(write_release, name) for name in RELEASES}
FAMILIES |= {name: partial(write_variant, name, dtype="BF16") for name in VARIANTS}
UNREAD = ("gpt2", "gpt_oss", "llama4", "mamba2", "kimi_k2", "kimi_k25")
"""The model types that ramrs does not write for transformers."""


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Write every model of the tests in groups of 32, and start transformers once for all of them."""
    folder, checkpoints = tmp_path_factory.mktemp("families"), {}
    for at, (name, write) in enumerate(FAMILIES.items()):
        source = folder / f"{at}"
        source.mkdir()
        write(source)
        config = json.loads((source / "config.json").read_text())
        if config["model_type"] in UNREAD:
            continue
        # The vocabularies of the tests are smaller than the default of some families.
        (source / "config.json").write_text(json.dumps({"pad_token_id": None} | config))
        output = folder / f"{at}-out"
        ramrs.quantize(
            source,
            output,
            format="compressed-tensors",
            target="transformers",
            bits=4,
            group_size=32,
            sensitivity="weights",
        )
        checkpoints[name] = output
        checkpoints[name, "decoded"] = write_decoded(folder / f"{at}-decoded", output)
    return consume("transformers", checkpoints, folder / "logits")


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_computes_with_the_decoded_weights_of_every_family(families, record, name):
    if name not in families:
        pytest.skip("ramrs does not write it for transformers")
    loaded, decoded = families[name], families[name, "decoded"]
    assert loaded.loaded, loaded.words
    assert loaded.problems == decoded.problems, "weights are missing, or left over"
    share = difference(decoded.values, loaded.values)
    record.families.append((name, f"{share:.1e}"))
    assert share <= BOUND


PROJECTIONS = r"(self_attn|mlp)\..*_proj$"
SCHEMES = {f"int{bits}g32": integers(bits, 32) for bits in range(2, 9)}
SCHEMES |= {"int4channel": integers(4), "int4g64, negative scales": integers(4, 64, negative=True)}
SCHEMES |= {"FP8": FP8, "MXFP4": MXFP4, "NVFP4": NVFP4}


@pytest.fixture(scope="module")
def handmade(tmp_path_factory):
    """The golden checkpoint and such as the tests make themselves, with the results of transformers."""
    folder, checkpoints = tmp_path_factory.mktemp("handmade"), {"golden": DATA / "tiny-llama-ct-mixed"}
    for at, (name, scheme) in enumerate(SCHEMES.items()):
        checkpoints[name] = write_handmade(folder / str(at), DATA / "tiny-llama-bf16", [Rule(PROJECTIONS, scheme)])
    for at, (name, checkpoint) in enumerate(list(checkpoints.items())):
        checkpoints[name, "decoded"] = write_decoded(folder / f"{at}-decoded", checkpoint)
    return consume("transformers", checkpoints, folder / "logits")


@pytest.mark.parametrize("name", ["golden", *SCHEMES])
def test_the_independent_decoder_reads_as_transformers_does(handmade, name):
    assert handmade[name].loaded, handmade[name].words
    assert (handmade[name].values == handmade[name, "decoded"].values).all()

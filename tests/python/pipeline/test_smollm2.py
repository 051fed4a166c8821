"""A real model of 30 layers: SmolLM2-135M, made by `make models`; or where `RAMRS_SMOLLM2` says."""

import os
from pathlib import Path

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import read_safetensors
from fixtures.paths import ROOT, STORY_TEXT
from oracles.reference import decoded_folder

mx = pytest.importorskip("mlx.core", reason="needs ramrs[eval]")
mlx_lm = pytest.importorskip("mlx_lm", reason="needs ramrs[eval]")

SMOLLM2 = Path(os.environ.get("RAMRS_SMOLLM2", ROOT / "models" / "smollm2-135m"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.smollm2,
    pytest.mark.skipif(
        not (SMOLLM2 / "model.safetensors").exists(),
        reason=f"no SmolLM2-135M in {SMOLLM2}: `make models` makes it, RAMRS_SMOLLM2 says where else it is",
    ),
]

BUDGETS = [3.5, 4.5, 6.0]
at_one_budget = pytest.mark.parametrize("quantized", [4.5], indirect=True)


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    mx.set_default_device(mx.cpu)


@pytest.fixture(scope="module")
def sensitivity(tmp_path_factory):
    """What the default probes, saved: running the model is most of a job."""
    path = tmp_path_factory.mktemp("probe") / "sensitivity.safetensors"
    ramrs.probe(SMOLLM2, path)
    return path


@pytest.fixture(scope="module")
def analysis(sensitivity):
    return ramrs.analyze(SMOLLM2, sensitivity=sensitivity)


@pytest.fixture(scope="module", params=BUDGETS)
def quantized(request, analysis, sensitivity, tmp_path_factory):
    """A budget, the output, and the report."""
    output = tmp_path_factory.mktemp("smollm2") / "out"
    options = {"budget": request.param, "analysis": analysis, "sensitivity": sensitivity}
    return request.param, output, ramrs.quantize(SMOLLM2, output, **options)


def logits(directory, tokens):
    """Logits in float32 of what is stored."""
    from mlx_lm.utils import load_model

    model, _ = load_model(directory)
    model.set_dtype(mx.float32)
    return np.array(model(mx.array([tokens]))[0])


def test_the_budget_is_met_and_used_up_and_the_plan_is_what_is_written(quantized):
    budget, output, report = quantized
    totals = report.plan.totals
    assert 0.999 * budget <= totals.effective_bpw <= budget
    assert totals.file_bytes == sum(path.stat().st_size for path in output.glob("*.safetensors"))
    assert totals.tensor_bytes == sum(line.bytes for line in report.manifest.ledger)
    assert totals.lower_bound <= totals.loss <= totals.best_uniform.loss


def test_the_output_is_what_its_manifest_says(quantized):
    _, output, _ = quantized
    report = ramrs.verify(output, source=SMOLLM2)
    assert report.ok, report.problems
    assert report.compared_with_source == 272


@at_one_budget
def test_mlx_lm_loads_it_and_generates(quantized):
    model, tokenizer = mlx_lm.load(str(quantized[1]))
    text = mlx_lm.generate(model, tokenizer, prompt="The capital of France is", max_tokens=2)
    assert text.strip()


def text_tokens(count):
    """Token ids of a story, after a BOS."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(SMOLLM2 / "tokenizer.json"))
    return [1, *tokenizer.encode(STORY_TEXT.read_text()[:2000], add_special_tokens=False).ids[: count - 1]]


@at_one_budget
def test_the_logits_are_those_of_a_folder_of_the_decoded_weights(quantized, tmp_path):
    tokens = text_tokens(16)
    found = logits(quantized[1], tokens)
    expected = logits(decoded_folder(quantized[1], tmp_path / "decoded", "F32"), tokens)
    assert np.abs(found - expected).max() <= 1e-4 * (expected.max() - expected.min())


@pytest.fixture(scope="module")
def kl(tmp_path_factory):
    """Mean KL divergence of SmolLM2, quantized with some options, over a window of a story, in nats per token."""

    def measure(**options):
        output = tmp_path_factory.mktemp("rival") / "out"
        ramrs.quantize(SMOLLM2, output, **options)
        return ramrs.eval(output, reference=SMOLLM2, text=STORY_TEXT, window=256, max_tokens=256).kl_mean

    return measure


def test_at_equal_bytes_the_searched_encoder_and_the_plan_lose_much_less(kl, sensitivity):
    """The claims of the quality table, on another text; 3 bits in groups of 64 take 3.5 bits per weight."""
    uniform = ramrs.plan(SMOLLM2, bits=3, group_size=64, sensitivity="weights")
    same_size = f"{uniform.totals.file_bytes}B"
    by_the_mlx_rule = kl(bits=3, group_size=64, effort="fast", sensitivity="weights")
    by_the_weights = kl(budget=same_size, sensitivity="weights")
    by_mint = kl(budget=same_size, objective="mint", sensitivity=sensitivity)
    searched = kl(bits=3, group_size=64, sensitivity=sensitivity)
    planned = kl(budget=same_size, sensitivity=sensitivity)
    assert searched < 0.5 * by_the_mlx_rule
    assert planned < 0.95 * searched
    assert planned < 0.7 * by_the_weights
    assert planned < 0.3 * by_mint


def test_the_loss_of_the_body_is_about_what_was_predicted_and_less_than_half_of_the_mlx_rules(sensitivity, tmp_path):
    """Embeddings kept, at the bytes of 3 bits in groups of 64."""

    def quantized(name, **options):
        report = ramrs.quantize(SMOLLM2, tmp_path / name, keep=["embed_tokens"], **options)
        kl = ramrs.eval(tmp_path / name, reference=SMOLLM2, text=STORY_TEXT, window=256, max_tokens=768).kl_mean
        return report.plan.totals, kl

    uniform, by_the_mlx_rule = quantized("uniform", bits=3, group_size=64, effort="fast", sensitivity="weights")
    planned, kl = quantized("planned", budget=f"{uniform.file_bytes}B", sensitivity=sensitivity)
    assert kl < 0.45 * by_the_mlx_rule
    assert 0.6 * kl < planned.loss < 1.4 * kl


def test_the_probe_finds_the_moments_that_mlx_lm_has(tmp_path):
    """All 30 layers of them; logits are up to 40."""
    from oracles.probe_reference import assert_probed

    output, trace = tmp_path / "sensitivity.safetensors", tmp_path / "trace.safetensors"
    report = ramrs.probe(SMOLLM2, output, tokens=64, trace=trace)
    assert report.matrices == 211
    # The tokenizer's special tokens are the first 17, and 1 is the one that texts begin with.
    special = [1, 0, *range(2, 17)]
    assert_probed(SMOLLM2, report, read_safetensors(output), read_safetensors(trace), "llama", special, within=1e-3)


@pytest.mark.parametrize("output_format", ["mlx", "compressed-tensors"])
def test_it_diverges_as_mlx_lm_says_and_by_what_was_predicted(output_format, sensitivity, tmp_path):
    options = {"format": output_format, "sensitivity": sensitivity, "overwrite": True}
    for budget in (9, 5.5):
        found = ramrs.quantize(SMOLLM2, tmp_path / "out", budget=budget, check=True, **options).manifest.check
        assert 0.4 < found.kl.value / found.predicted < 2
    short = {"reference": SMOLLM2, "text": STORY_TEXT, "window": 128, "max_tokens": 256}
    ours, theirs = (ramrs.eval(tmp_path / "out", **short, runtime=runtime) for runtime in (None, "mlx-float32"))
    for field in ("kl_mean", "perplexity_mean", "reference_perplexity_mean"):
        assert getattr(ours, field) == pytest.approx(getattr(theirs, field), rel=1e-4), field
    assert ramrs.eval(tmp_path / "out", **short, threads=1) == ours

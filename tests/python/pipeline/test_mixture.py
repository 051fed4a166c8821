"""The bundled mixture of experts, of which 2 of 16 answer: it is trained, as its card says, and so is every expert."""

import json
import re

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import read_safetensors
from fixtures.paths import DOCS_TEXT, MIXTURE

CARD = (MIXTURE / "README.md").read_text(encoding="utf-8")
SHORT = {"text": DOCS_TEXT, "max_tokens": 2048}


def stated(pattern):
    """The number that the card gives."""
    return float(re.search(pattern, CARD)[1].replace(",", ""))


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """An output, and the report of making it."""
    directory = tmp_path_factory.mktemp("mixture") / "at 4"
    return directory, ramrs.quantize(MIXTURE, directory, budget=4.0, check=False)


@pytest.fixture(scope="module")
def found(output):
    return ramrs.eval(output[0], reference=MIXTURE, **SHORT)


def test_the_card_gives_the_size_of_the_model():
    tensors = read_safetensors(MIXTURE / "model.safetensors")
    assert sum(tensor.elements.size for tensor in tensors.values()) == stated(r"([\d,]+) parameters")
    config = json.loads((MIXTURE / "config.json").read_text(encoding="utf-8"))
    assert (config["num_experts"], config["num_experts_per_tok"]) == (16, 2)


@pytest.mark.slow
def test_the_loss_on_held_out_text_is_what_the_card_gives():
    found = ramrs.eval(MIXTURE, reference=MIXTURE, text=DOCS_TEXT)
    loss = np.log(found.reference_perplexity_mean)
    assert loss == pytest.approx(stated(r"python-docs\.txt` it is (\d\.\d+) nats"), abs=0.002)
    assert loss < 0.5 * np.log(4096), "an untrained model has log(4096)"


def test_at_4_bits_it_stays_near(output, found):
    assert 3.99 < output[1].plan.totals.effective_bpw <= 4.0
    assert 0 < found.kl_mean < 0.01
    assert found.perplexity_mean < 1.02 * found.reference_perplexity_mean
    assert found.reference_perplexity_mean < 64, "an untrained model has 4096"
    assert found.top1_agreement > 0.9


@pytest.mark.slow
def test_a_plan_is_nearer_than_one_scheme_for_all(output, tmp_path):
    """At the bytes of the uniform scheme, on text that neither has seen."""
    uniform = ramrs.quantize(MIXTURE, tmp_path / "uniform", bits=3, group_size=64, effort="fast", check=False)
    options = {"budget": f"{uniform.plan.totals.file_bytes}B", "check": False}
    planned = ramrs.quantize(MIXTURE, tmp_path / "planned", **options)
    assert planned.plan.totals.file_bytes <= uniform.plan.totals.file_bytes
    outputs = [tmp_path / "uniform", tmp_path / "planned"]
    ones = ramrs.eval(outputs, reference=MIXTURE, **SHORT)
    assert ones[1].kl_mean < 0.5 * ones[0].kl_mean


@pytest.mark.slow
def test_every_expert_answers():
    report = ramrs.probe(MIXTURE, tokens=1024)
    loads = np.array(list(report.loads.values()))
    assert loads.shape == (6, 16)
    assert (loads.sum(axis=1) == 2 * report.tokens).all()
    assert loads.min() > 0


@pytest.mark.slow
def test_mlx_lm_computes_the_same(output):
    pytest.importorskip("mlx_lm", reason="needs ramrs[eval]")
    by_ramrs, by_mlx = (
        ramrs.eval(output[0], reference=MIXTURE, **SHORT, runtime=runtime) for runtime in (None, "mlx-float32")
    )
    for field in ("kl_mean", "perplexity_mean", "reference_perplexity_mean"):
        assert getattr(by_ramrs, field) == pytest.approx(getattr(by_mlx, field), rel=1e-3), field

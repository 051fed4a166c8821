"""The probe, model by model, against mlx-lm in float32: logits, and the moments of every matrix."""

import re

import pytest
import ramrs
from fixtures.checkpoints import read_safetensors
from fixtures.models import VARIANTS, write_variant
from fixtures.tiers import slow_but_for

pytest.importorskip("mlx_lm", reason="needs ramrs[eval]")
from oracles.probe_reference import assert_probed

REFUSED = {"stablelm_parallel": "layers.0.self_attn.q_layernorm.norms.0.weight` has no place"}
"""Variants that the probe says it cannot run, and why."""


PROBED = [name for name in VARIANTS if name not in REFUSED]


def assert_is_that_of_mlx_lm(name, mode, tmp_path):
    """Probe a model, and hold what it computed against mlx-lm."""
    model = write_variant(name, tmp_path / "model")
    output, trace = tmp_path / "sensitivity.safetensors", tmp_path / "trace.safetensors"
    report = ramrs.probe(model, output, tokens=128, mode=mode, trace=trace)
    assert_probed(model, report, read_safetensors(output), read_safetensors(trace), name)


@pytest.mark.parametrize("name", slow_but_for(["llama"], PROBED))
def test_logits_and_moments_are_those_of_mlx_lm(name, tmp_path):
    assert_is_that_of_mlx_lm(name, "self", tmp_path)


def test_moments_of_random_tokens_are_those_of_mlx_lm(tmp_path):
    assert_is_that_of_mlx_lm("llama", "random", tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_a_variant_that_cannot_be_run_is_refused_by_what_is_unknown(name, tmp_path):
    model = write_variant(name, tmp_path / "model")
    with pytest.raises(ramrs.CheckpointError, match=re.escape(REFUSED[name])):
        ramrs.probe(model)

"""The probe, family by family, against mlx-lm in float32: logits, and the moments of every matrix."""

import re

import pytest
import ramrs
from fixtures.checkpoints import read_safetensors
from fixtures.models import VARIANTS, write_variant

pytest.importorskip("mlx_lm", reason="needs ramrs[eval]")
from oracles.probe_reference import assert_probed

REFUSED = {"stablelm_parallel": "layers.0.self_attn.q_layernorm.norms.0.weight` has no place"}
"""Variants that the probe says it cannot run, and why."""


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "self") for name in VARIANTS if name not in REFUSED), ("llama", "random")]
)
def test_logits_and_moments_are_those_of_mlx_lm(name, mode, tmp_path):
    model = write_variant(name, tmp_path / "model")
    output, trace = tmp_path / "sensitivity.safetensors", tmp_path / "trace.safetensors"
    report = ramrs.probe(model, output, tokens=128, mode=mode, trace=trace)
    assert_probed(model, report, read_safetensors(output), read_safetensors(trace), name)


@pytest.mark.parametrize("name", REFUSED)
def test_a_variant_that_cannot_be_run_is_refused_by_what_is_unknown(name, tmp_path):
    model = write_variant(name, tmp_path / "model")
    with pytest.raises(ramrs.CheckpointError, match=re.escape(REFUSED[name])):
        ramrs.probe(model)

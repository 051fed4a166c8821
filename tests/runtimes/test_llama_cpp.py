"""llama.cpp loads what ramrs writes as GGUF, generates, and computes what ramrs does."""

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import ramrs
from fixtures.gguf import CASES, FUSED, QKV, header, write_fused
from ramrs._core import logits
from runtimes.running import TOKENS, consume, difference, environment

pytestmark = pytest.mark.skipif(not environment("llama-cpp").exists(), reason="needs the environment llama-cpp")

BOUND = 1e-3
"""The largest difference of logits, as a share of their range, with all weights decoded to float32."""

ROUNDED = 0.1
"""The same with the kernels for quantized weights, which round activations to 8 bits. Not of mixtures: tokens of these
random models go to other experts."""

MIXTURES = (
    "mixtral",
    "qwen2_moe",
    "qwen2_moe.fused",
    "qwen3_moe",
    "olmoe",
    "gpt_oss",
    "gpt_oss_bf16",
    "gpt_oss_bf16.fused",
)

BUDGETS = (3.5, 5.5)
LEAST = {"gpt_oss": 4.8}
"""Budgets below which there is no type: rows of 128."""

RUN = [name for name in CASES if CASES[name].runs and CASES[name].changes.get("hidden_size")]
RUN += ["gpt_oss", *(f"{name}.fused" for name in FUSED)]


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Return a folder with ramrs and what it needs, to be put beside the environment's packages."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "ramrs").symlink_to(Path(find_spec("ramrs").origin).parent)
    return folder


OF_GPUS = ("iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "gguf-nvfp4")
"""Types that only `--target cuda` and `metal` choose. CPUs compute with them, too."""


@pytest.fixture(scope="module")
def of_one_type(tmp_path_factory):
    """An output of one type, by the type, and one of many."""
    folder = tmp_path_factory.mktemp("types")
    source = CASES["llama"].write(folder / "llama")
    settings = {"format": "gguf", "header": header("llama"), "target": "cuda", "check": False}
    made = {}
    for scheme in OF_GPUS:
        made[scheme] = folder / f"{scheme}.gguf"
        ramrs.quantize(source, made[scheme], tensor={".*": scheme}, budget=8, **settings)
    made["mixed"] = folder / "mixed.gguf"
    ramrs.quantize(source, made["mixed"], budget=3.0, **settings)
    return made


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """All outputs by family and budget."""
    made, folder = {}, tmp_path_factory.mktemp("outputs")
    for name in RUN:
        case = name.removesuffix(".fused")
        source = CASES[case].write(folder / name)
        settings = {"format": "gguf", "header": header(case)}
        if case != name:
            plain = folder / f"{case}-plain.gguf"
            ramrs.quantize(source, plain, budget=33, sensitivity="weights", **settings)
            source, settings = write_fused(plain, folder / f"{name}-plain.gguf", QKV), {}
        analysis = ramrs.analyze(source, **settings)
        for budget in BUDGETS:
            output = folder / f"{name}-{budget}.gguf"
            # Random models are chaotic: a fine one would be taken for another.
            bits = max(budget, LEAST.get(name, 0))
            ramrs.quantize(source, output, analysis=analysis, budget=bits, check=False, **settings)
            made[name, budget] = output
    return made


@pytest.fixture(scope="module")
def outcomes(outputs, packages, tmp_path_factory):
    """What llama.cpp computes with the outputs as they are, and with their weights decoded before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(packages))
        return {
            dtype: consume("llama-cpp", outputs, tmp_path_factory.mktemp(dtype), dtype=dtype)
            for dtype in ("stored", "float32")
        }


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", RUN)
def test_llama_cpp_computes_what_ramrs_does(name, budget, outputs, outcomes):
    expected = logits(outputs[name, budget], [TOKENS])
    for dtype, bound in (("float32", BOUND), ("stored", ROUNDED)):
        outcome = outcomes[dtype][name, budget]
        assert outcome.loaded, outcome.words
        if dtype == "float32" or name not in MIXTURES:
            assert difference(expected, outcome.values) <= bound, dtype


def test_llama_cpp_computes_with_types_for_gpus_what_ramrs_does(of_one_type, packages, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(packages))
    for dtype, bound in (("float32", BOUND), ("stored", ROUNDED)):
        outcomes = consume("llama-cpp", of_one_type, tmp_path / dtype, dtype=dtype)
        for scheme, outcome in outcomes.items():
            assert outcome.loaded, (scheme, outcome.words)
            expected = logits(of_one_type[scheme], [TOKENS])
            assert difference(expected, outcome.values) <= bound, (scheme, dtype)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", RUN)
def test_llama_cpp_generates_the_likeliest_tokens(name, budget, outputs, outcomes):
    """Each token is the likeliest by ramrs' logits of all before it, or as good as it."""
    text = list(TOKENS)
    for token in outcomes["float32"][name, budget].generated:
        row = logits(outputs[name, budget], [text])[-1]
        assert row.max() - row[token] <= BOUND * np.ptp(row)
        text.append(token)


def test_verify_runs_llama_cpp(outputs, packages):
    program = "import sys, ramrs; report = ramrs.verify(sys.argv[1], runtime='llama.cpp'); print(report.runtime)"
    settings = os.environ | {"PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"}
    command = [environment("llama-cpp"), "-c", f"{program}; sys.exit(not report.ok)", outputs["llama", BUDGETS[0]]]
    job = subprocess.run(command, capture_output=True, text=True, check=False, env=settings)
    assert job.returncode == 0, job.stdout + job.stderr

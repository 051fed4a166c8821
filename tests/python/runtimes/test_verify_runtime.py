"""`verify --runtime`: the output in its runtime, strictly, and beside ramrs' own forward pass."""

import json
import shutil
import sys
from hashlib import sha256

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import llama_tensors, write_checkpoint
from fixtures.configs import ERNIE
from fixtures.models import write_release
from ramrs import runtimes

SMALL = ERNIE | {"num_hidden_layers": 1}


@pytest.fixture
def on_the_cpu():
    pytest.importorskip("mlx_lm", reason="needs ramrs[mlx]")
    mx = pytest.importorskip("mlx.core", reason="needs ramrs[mlx]")
    mx.set_default_device(mx.cpu)


@pytest.mark.usefixtures("on_the_cpu")
def test_an_output_computes_the_same_in_mlx_lm(example_at_4, ramrs_cli):
    report = ramrs.verify(example_at_4[0], runtime="mlx")
    found = report.runtime
    assert (report.ok, found.loads, found.finite, found.not_compared, found.problems) == (True, True, True, None, ())
    assert 0 < found.difference <= 3e-5
    assert ramrs.types.VerifyReport.from_dict(report.to_dict()) == report
    job = ramrs_cli("verify", example_at_4[0], "--runtime", "mlx")
    assert job.returncode == 0, job.stderr
    assert "loads it, and computes the same on 32 tokens" in job.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("name", ["mixtral", "gpt2", "gpt_oss", "glm4_moe"])
def test_releases_compute_the_same(name, tmp_path):
    ramrs.quantize(write_release(name, tmp_path / "source"), tmp_path / "out", budget="5", sensitivity="weights")
    report = ramrs.verify(tmp_path / "out", runtime="mlx")
    assert report.ok, report.problems
    assert report.runtime.difference <= 1e-5


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("release", ["mamba2", "ernie4_5"])
def test_a_model_that_ramrs_does_not_run_is_loaded_alone(release, tmp_path):
    if release == "ernie4_5":
        source = write_checkpoint(tmp_path / "source", llama_tensors(SMALL), SMALL)
    else:
        source = write_release(release, tmp_path / "source")
    ramrs.quantize(source, tmp_path / "out", budget="32")
    report = ramrs.verify(tmp_path / "out", runtime="mlx")
    assert report.ok, report.problems
    found = report.runtime
    assert (found.loads, found.finite, found.difference) == (True, True, None)
    assert "ramrs does not run the model itself" in found.not_compared


def forged(output, **changes):
    """Change an output's configuration, and its digest in the manifest."""
    path, manifest = output / "config.json", output / "ramrs-manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    document = json.loads(manifest.read_text())
    for file in document["files"]:
        if file["name"] == "config.json":
            file |= {"bytes": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(document))


@pytest.mark.usefixtures("on_the_cpu")
def test_an_output_that_does_not_load_is_a_problem(example_at_4, ramrs_cli, tmp_path):
    output = shutil.copytree(example_at_4[0], tmp_path / "out")
    layers = json.loads((output / "config.json").read_text())["num_hidden_layers"]
    forged(output, num_hidden_layers=layers + 1)
    assert ramrs.verify(output).ok
    job = ramrs_cli("verify", output, "--runtime", "mlx")
    assert job.returncode == 1
    assert "does not load and run the output: ValueError: Missing" in job.stdout
    assert "Traceback" not in job.stdout + job.stderr


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("by", [1e-2, np.nan])
def test_an_output_that_computes_something_else_is_a_problem(by, example_at_4, monkeypatch):
    native = runtimes.logits

    def other(output, tokens):
        found = np.array(native(output, tokens))
        found[3, 5] += by * np.ptp(found)
        return found

    monkeypatch.setattr(runtimes, "logits", other)
    report = ramrs.verify(example_at_4[0], runtime="mlx")
    assert not report.ok
    assert "a logit differs from that of ramrs by" in report.problems[0].what


def test_a_runtime_that_does_not_read_the_format_is_refused(example_at_4, ramrs_cli):
    for name, reads in (("transformers", "compressed-tensors"), ("llama.cpp", "gguf")):
        job = ramrs_cli("verify", example_at_4[0], "--runtime", name)
        assert job.returncode == 2
        assert f"--runtime {name}: it reads the format {reads}" in job.stderr
        assert "hint: --runtime mlx reads it" in job.stderr


@pytest.mark.parametrize(
    ("runtime", "hidden", "packages"),
    [
        ("mlx", "mlx_lm", "'ramrs[mlx]'"),
        ("mlx", "mlx.core", "'ramrs[mlx]'"),
        ("transformers", "transformers", "torch transformers compressed-tensors"),
    ],
)
def test_a_runtime_that_is_not_installed_is_named_with_what_installs_it(
    runtime, hidden, packages, example, example_at_4, tmp_path, monkeypatch
):
    output = example_at_4[0]
    if runtime == "transformers":
        output = tmp_path / "out"
        ramrs.quantize(example, output, budget=6, format="compressed-tensors", sensitivity="weights")
    for name in [name for name in sys.modules if name == hidden or name.startswith(f"{hidden}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(ramrs.ConfigError, match="it is not installed") as caught:
        ramrs.verify(output, runtime=runtime)
    assert caught.value.hint == f"pip install {packages}"


def test_llama_cpp_reads_gguf_and_is_named_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp_py_sync", None)
    with pytest.raises(ramrs.ConfigError, match="it is not installed") as caught:
        runtimes.find("llama.cpp", tmp_path / "model.gguf")
    assert caught.value.hint == "pip install llama-cpp-py-sync"

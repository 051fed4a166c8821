"""`ramrs verify --runtime transformers`, run where transformers is installed."""

import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import ramrs
from fixtures.models import write_release, write_variant
from fixtures.paths import EXAMPLE
from runtimes.running import environment

SOURCES = {"example": None, "qwen3": write_variant, "gemma2": write_variant, "mixtral": write_release}


def verified(output, scratch):
    """Run the command in the environment, with ramrs and what it needs beside it."""
    scratch.mkdir(exist_ok=True)
    for package in ("ramrs", "msgspec"):
        link = scratch / package
        if not link.exists():
            link.symlink_to(Path(find_spec(package).origin).parent)
    settings = os.environ | {"PYTHONPATH": str(scratch), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [environment("transformers"), "-m", "ramrs", "verify", output, "--runtime", "transformers", "--json"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=settings)


@pytest.mark.parametrize("name", SOURCES)
def test_transformers_computes_what_ramrs_does(name, tmp_path):
    source = EXAMPLE if SOURCES[name] is None else SOURCES[name](name, tmp_path / "source")
    settings = {"format": "compressed-tensors", "target": "transformers", "sensitivity": "weights"}
    ramrs.quantize(source, tmp_path / "out", budget=6, **settings)
    job = verified(tmp_path / "out", tmp_path / "packages")
    assert job.returncode == 0, job.stdout + job.stderr
    found = json.loads(job.stdout)["runtime"]
    assert found["loads"]
    assert found["difference"] <= (3e-4 if name != "mixtral" else 1e-2)


def test_an_output_with_a_layer_less_is_not_loaded(tmp_path):
    ramrs.quantize(EXAMPLE, tmp_path / "out", budget=6, format="compressed-tensors", target="transformers")
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 99}))
    manifest = tmp_path / "out" / "ramrs-manifest.json"
    document = json.loads(manifest.read_text())
    # Without its digest the file would be a problem before transformers is asked.
    document["files"] = [file for file in document["files"] if file["name"] != "config.json"]
    manifest.write_text(json.dumps(document))
    job = verified(tmp_path / "out", tmp_path / "packages")
    assert job.returncode == 1
    assert "it misses" in job.stdout or "does not load" in job.stdout

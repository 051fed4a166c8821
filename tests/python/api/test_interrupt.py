"""Stopping a job: it stops soon, says so, and keeps what is finished."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import Tensor, header_of, write_safetensors
from fixtures.models import write_variant
from fixtures.paths import EXAMPLE
from fixtures.process import sees_everything

pytestmark = pytest.mark.slow

STAGES = ["open", "write", "probe", "gradients", "measure", "curves", "plan", "encode", "verify"]


SLOWLY = {"bits": 8, "effort": "fast", "generic": True, "simd": False, "threads": 1}
"""So that every stage takes longer than from one look at the clock to the next."""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint of 134 MB: one random matrix, many times."""
    matrix = Tensor.of(np.random.default_rng(1).standard_normal((2048, 2048), np.float32) * 0.02)
    tensors = {f"model.layers.{layer}.mlp.up_proj.weight": matrix for layer in range(16)}
    directory = tmp_path_factory.mktemp("large")
    write_safetensors(directory / "model.safetensors", tensors, header_of(tensors))
    return directory


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.mark.parametrize("when", ["at the start", "while it encodes"])
@pytest.mark.parametrize(("stop", "as_json"), [("SIGINT", False), ("SIGINT", True), ("SIGTERM", False)])
def test_ctrl_c_ends_the_command_and_the_same_one_continues(when, stop, as_json, large, tmp_path):
    arguments = ["quantize", large, "--generic", "--budget", "4", "-o", "out", "-j", "1", *["--json"][:as_json]]
    job = subprocess.Popen(
        [sys.executable, "-m", "ramrs", *map(str, arguments)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with job:
        if when == "while it encodes":
            wait_until(
                lambda: (tmp_path / "out.partial" / "output" / "model.safetensors").exists() or job.poll() is not None
            )
        else:
            # Once the job has a thread of its own, what came before it is loaded.
            wait_until(lambda: len(list(Path(f"/proc/{job.pid}/task").iterdir())) > 1 or job.poll() is not None)
        assert job.poll() is None, "it was done before it could be interrupted"
        sent = time.monotonic()
        job.send_signal(signal.Signals[stop])
        stdout, stderr = job.communicate(timeout=60)
    assert job.returncode == 130
    assert time.monotonic() - sent < 5
    assert stdout == ""
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    left = [path.name for path in tmp_path.iterdir()]
    assert left in ([], ["out.partial"])
    assert ("out.partial keeps what is finished" in stderr) == bool(left)
    if when == "while it encodes":
        assert left
        report = ramrs.quantize(large, tmp_path / "out", budget="4", generic=True, threads=1)
        assert report.continued
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert ramrs.verify(tmp_path / "out").ok


def test_what_a_killed_job_leaves_is_not_taken_by_another_one(large, tmp_path):
    arguments = ["quantize", large, "--generic", "--bits", "4", "-o", "out", "-j", "1"]
    with subprocess.Popen([sys.executable, "-m", "ramrs", *map(str, arguments)], cwd=tmp_path) as job:
        wait_until(
            lambda: (tmp_path / "out.partial" / "output" / "model.safetensors").exists() or job.poll() is not None
        )
        job.kill()
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    before = sees_everything(tmp_path)
    with pytest.raises(ramrs.ConfigError, match=r"out\.partial is the unfinished output of another job") as caught:
        ramrs.quantize(EXAMPLE, tmp_path / "out", budget=4)
    assert caught.value.slug == "other-job"
    with pytest.raises(ramrs.ConfigError, match=r"it was begun with uniform `4`"):
        ramrs.quantize(large, tmp_path / "out", generic=True, bits=5, threads=1)
    assert sees_everything(tmp_path) == before
    ramrs.quantize(EXAMPLE, tmp_path / "out", budget=4, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert ramrs.verify(tmp_path / "out").ok


def test_two_jobs_do_not_write_the_same_output(large, tmp_path):
    arguments = ["quantize", large, "--generic", "--bits", "4", "-o", "out", "-j", "1"]
    with subprocess.Popen([sys.executable, "-m", "ramrs", *map(str, arguments)], cwd=tmp_path) as job:
        wait_until(
            lambda: (tmp_path / "out.partial" / "output" / "model.safetensors").exists() or job.poll() is not None
        )
        with pytest.raises(ramrs.ConfigError, match=r"out\.partial"):
            ramrs.quantize(EXAMPLE, tmp_path / "out", budget=4)
        assert (tmp_path / "out.partial" / "output" / "model.safetensors").exists()
        job.send_signal(signal.SIGINT)
    assert job.returncode == 130


def test_a_signal_raises_keyboard_interrupt_in_the_api(large, tmp_path):
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        ramrs.quantize(large, tmp_path / "out", budget=4, generic=True, threads=1)
    timer.join()
    assert {path.name for path in tmp_path.iterdir()} <= {"out.partial"}


@pytest.mark.parametrize(
    "fault", [ValueError("mine"), KeyboardInterrupt(), SystemExit(7)], ids=lambda fault: repr(fault)
)
def test_what_the_callback_raises_comes_out(fault, large, tmp_path):
    moments = []

    def stop(now):
        moments.append(now)
        raise fault

    with pytest.raises(type(fault)) as caught:
        ramrs.quantize(large, tmp_path / "out", budget=4, generic=True, progress=stop)
    assert caught.value is fault
    assert len(moments) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"out.partial"}


@pytest.mark.parametrize("stage", ["curves", "encode", "verify"])
def test_a_callback_may_stop_the_job_in_any_stage(stage, large, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ramrs-manifest.json").write_text("still here")

    def stop(now):
        if now.stage == stage:
            raise LookupError(stage)

    with pytest.raises(LookupError, match=stage) as caught:
        ramrs.quantize(large, tmp_path / "out", **SLOWLY, overwrite=True, progress=stop)
    assert (tmp_path / "out" / "ramrs-manifest.json").read_text() == "still here"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial"]
    assert caught.value.__notes__ == [f"{tmp_path}/out.partial keeps what is finished: the same command continues it"]


@pytest.mark.parametrize("stage", ["write", "probe", "gradients"])
def test_a_callback_may_stop_the_probe_in_any_stage(stage, tmp_path):
    model = write_variant("llama", tmp_path / "model", num_hidden_layers=24, vocab_size=4096)

    def stop(now):
        if now.stage == stage:
            raise LookupError(stage)

    with pytest.raises(LookupError, match=stage):
        ramrs.quantize(model, tmp_path / "out", budget=4, probe_tokens=4096, threads=1, progress=stop)
    assert {path.name for path in tmp_path.iterdir()} <= {"model", "out.partial"}


def test_progress_goes_forward_and_arrives(large, tmp_path):
    moments = []
    ramrs.quantize(large, tmp_path / "out", **SLOWLY, progress=moments.append)
    stages = list(dict.fromkeys(now.stage for now in moments))
    assert stages == [stage for stage in STAGES if stage in stages]
    assert {"curves", "encode", "verify"} <= set(stages)
    for before, after in itertools.pairwise(moments):
        if before.stage == after.stage and before.total_bytes == after.total_bytes:
            assert before.done_bytes <= after.done_bytes
        assert after.done_bytes <= after.total_bytes or after.total_bytes == 0
    assert max(now.total_bytes for now in moments if now.stage == "encode") == 16 * 2048 * 2048 * 2
    assert moments[-1].done_bytes == moments[-1].total_bytes

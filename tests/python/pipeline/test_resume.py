"""A job that was stopped continues from what it had finished, to the same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import ramrs
from fixtures.gguf import CASES, header
from fixtures.models import write_variant
from fixtures.paths import EXAMPLE
from fixtures.process import sees_everything

ALWAYS = {"record_seconds": 0.0}
"""Finished work is recorded at every step."""


class StopError(Exception):
    """Stops a job."""


def stopped_in(stage):
    """Return a callback that stops a job in a stage."""

    def stop(now):
        if now.stage == stage:
            raise StopError(stage)

    return stop


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that takes long enough in every stage to be stopped in it."""
    directory = tmp_path_factory.mktemp("model") / "model"
    return write_variant("llama", directory, num_hidden_layers=24, vocab_size=2048)


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    """The outputs of jobs that nothing happened to, by effort."""
    made = {}

    def output(effort):
        if effort not in made:
            directory = tmp_path_factory.mktemp(effort)
            ramrs.quantize(model, directory / "out", budget=4, effort=effort, threads=1, probe_tokens=2048)
            made[effort] = sees_everything(directory)
        return made[effort]

    return output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("effort", "stage"),
    [("normal", "probe"), ("normal", "gradients"), ("normal", "curves"), ("normal", "encode"), ("high", "feedback")],
)
def test_a_job_stopped_in_any_stage_continues_to_the_same_bytes(effort, stage, model, undisturbed, tmp_path):
    given = {"budget": 4, "effort": effort, "threads": 1, "probe_tokens": 2048, **ALWAYS}
    if stage in ("curves", "encode"):
        # Slowly, so that the stage is seen.
        given |= {"simd": False, "chunk_bytes": 5000}
    with pytest.raises(StopError):
        ramrs.quantize(model, tmp_path / "out", progress=stopped_in(stage), **given)
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    moments = []
    report = ramrs.quantize(model, tmp_path / "out", progress=moments.append, **given)
    assert report.continued
    assert sees_everything(tmp_path) == undisturbed(effort)
    if stage not in ("probe", "gradients"):
        assert not {now.stage for now in moments} & {"probe", "gradients", "measure"}


def test_a_killed_job_continues_to_the_same_bytes(tmp_path):
    """A short form of benches/kills.py; docs/reliability.md has the long one."""
    draw = random.Random(1)
    command = [sys.executable, "-m", "ramrs", "quantize", str(EXAMPLE), "-b", "4", "--record-seconds", "0", "-o"]
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "undisturbed" / "out")], check=True, capture_output=True)
    took = time.monotonic() - start
    kills = 0
    output = tmp_path / "killed" / "out"
    for _ in range(40):
        with subprocess.Popen([*command, str(output)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as job:
            try:
                _, said = job.communicate(timeout=draw.uniform(0.3, 1.0) * took if kills < 4 else None)
            except subprocess.TimeoutExpired:
                job.send_signal(signal.SIGKILL)
                job.communicate()
                kills += 1
                continue
        assert job.returncode == 0 or b"exists already" in said, said.decode()
        break
    assert kills
    assert sees_everything(output.parent) == sees_everything(tmp_path / "undisturbed")


NOTES = "notes.txt"
"""A file of the source that is copied after all weights are written."""


@pytest.fixture
def copied(tmp_path):
    """A model that may be changed."""
    directory = tmp_path / "model"
    directory.mkdir()
    for file in EXAMPLE.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    (directory / NOTES).write_text("notes")
    return directory


def stopped(model, output, **options):
    """Stop a job after it has written all weights, and return what it leaves."""
    notes, aside = model / NOTES, model.with_name("aside")

    def take_away(now):
        if now.stage != "open" and not aside.exists():
            notes.rename(aside)
            notes.mkdir()

    with pytest.raises(IsADirectoryError) as caught:
        ramrs.quantize(model, output, progress=take_away, **ALWAYS, **options)
    notes.rmdir()
    aside.rename(notes)
    partial = output.with_name(f"{output.name}.partial")
    assert f"{partial} keeps what is finished: the same command continues it" in caught.value.__notes__
    return partial


def test_data_that_was_damaged_since_is_written_again(copied, tmp_path):
    ramrs.quantize(copied, tmp_path / "undisturbed" / "out", budget=4)
    partial = stopped(copied, tmp_path / "out", budget=4)
    weights = partial / "output" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    for at in range(1000, len(damaged), 1000):
        damaged[at] ^= 1
    weights.write_bytes(bytes(damaged[: len(damaged) // 2]))
    (partial / "output" / "config.json").write_text("{}")
    assert ramrs.quantize(copied, tmp_path / "out", budget=4).continued
    (tmp_path / "continued").mkdir()
    (tmp_path / "out").rename(tmp_path / "continued" / "out")
    assert sees_everything(tmp_path / "continued") == sees_everything(tmp_path / "undisturbed")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_journal_cut_short_costs_time_only(share, copied, tmp_path):
    ramrs.quantize(copied, tmp_path / "undisturbed" / "out", budget=4)
    journal = stopped(copied, tmp_path / "out", budget=4) / "journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole[: int(share * len(whole))])
    ramrs.quantize(copied, tmp_path / "out", budget=4)
    (tmp_path / "continued").mkdir()
    (tmp_path / "out").rename(tmp_path / "continued" / "out")
    assert sees_everything(tmp_path / "continued") == sees_everything(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"budget": 5}, "it was begun with budget `4"),
        ({"effort": "fast"}, "it was begun with effort `normal`"),
        ({"probe_seed": 7}, "it was begun with seed 0"),
        ({"min_bits": 3}, "it was begun with min_bits not given"),
    ],
)
def test_a_job_with_other_options_is_another_job(change, says, copied, tmp_path):
    partial = stopped(copied, tmp_path / "out", budget=4)
    before = sees_everything(partial)
    with pytest.raises(ramrs.ConfigError) as caught:
        ramrs.quantize(copied, tmp_path / "out", **({"budget": 4} | change))
    assert caught.value.slug == "other-job"
    assert says in str(caught.value)
    assert sees_everything(partial) == before


def test_options_that_decide_no_byte_do_not_make_another_job(copied, tmp_path):
    stopped(copied, tmp_path / "out", budget=4, threads=2)
    again = {"threads": 1, "simd": False, "chunk_bytes": 5000, "max_memory": "1GB", "record_seconds": 9.0}
    assert ramrs.quantize(copied, tmp_path / "out", budget=4, **again).continued
    assert ramrs.verify(tmp_path / "out", source=copied).ok


def test_a_source_that_was_written_since_is_another_source(copied, tmp_path):
    stopped(copied, tmp_path / "out", budget=4)
    weights = copied / "model.safetensors"
    changed = weights.stat().st_mtime_ns + 1_000_000_000
    os.utime(weights, ns=(changed, changed))
    with pytest.raises(ramrs.ConfigError, match=r"`model\.safetensors` of the source was written since"):
        ramrs.quantize(copied, tmp_path / "out", budget=4)


def test_the_work_of_a_fault_that_stays_is_not_kept(copied, tmp_path):
    weights = copied / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2:] = b"\xc0\x7f"  # NaN in bfloat16
    weights.write_bytes(bytes(content))
    with pytest.raises(ramrs.TensorError):
        ramrs.quantize(copied, tmp_path / "out", budget=4, **ALWAYS)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_job_is_readable(copied, tmp_path):
    job = json.loads((stopped(copied, tmp_path / "out", budget=4) / "job.json").read_text())
    assert job["tool"]["name"] == "ramrs"
    assert job["request"]["budget"] == "4"
    assert {file["name"] for file in job["files"]} == {path.name for path in copied.iterdir()}


def test_a_file_is_continued_too(tmp_path):
    source = CASES["llama"].write(tmp_path / "model")
    (source / NOTES).write_text("notes")
    given = {"budget": 5.0, "header": header("llama"), "check": False}
    ramrs.quantize(source, tmp_path / "undisturbed" / "m.gguf", **given)
    with pytest.raises(StopError):
        ramrs.quantize(source, tmp_path / "m" / "m.gguf", progress=stopped_late, **given, **ALWAYS)
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["m.gguf.partial"]
    assert ramrs.quantize(source, tmp_path / "m" / "m.gguf", **given).continued
    assert sees_everything(tmp_path / "m") == sees_everything(tmp_path / "undisturbed")


def stopped_late(now):
    """Stop a job once something is recorded."""
    if now.stage not in ("open", "write"):
        raise StopError(now.stage)

"""A plan that is carried out in parts, by any number of processes and in any order, makes the output of one process."""

import random
import shutil
import subprocess
import sys

import pytest
import ramrs
from fixtures.models import write_variant
from fixtures.paths import EXAMPLE
from fixtures.process import sees_everything


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A directory with an analysis, its sensitivity, a plan, and the output of one process, by source."""
    made = {}

    def directory(source, effort="normal"):
        if (source, effort) not in made:
            place = tmp_path_factory.mktemp("planned")
            model = EXAMPLE if source == "example" else write_variant(source, place / "model")
            ramrs.analyze(model, place / "analysis.json", effort=effort)
            ramrs.plan(place / "analysis.json", budget=4.5).write(place / "plan.json")
            ramrs.quantize(model, place / "whole" / "out", plan=place / "plan.json", check=False, **SHARDS)
            made[source, effort] = (model, place)
        return made[source, effort]

    return directory


SHARDS = {"shard_bytes": 60_000}
"""So that there are several files to write."""


def in_parts(model, place, output, count, order):
    for number in order:
        report = ramrs.quantize(
            model, output, plan=place / "plan.json", part=f"{number}/{count}", check=False, threads=1, **SHARDS
        )
        assert not report.written
        assert report.part == f"{number}/{count}"


@pytest.mark.parametrize(
    ("source", "effort", "count"),
    [
        ("example", "normal", 16),
        ("example", "high", 2),
        ("qwen3_moe", "normal", 3),
        pytest.param("example", "high", 16, marks=pytest.mark.slow),
        pytest.param("qwen3_moe", "normal", 16, marks=pytest.mark.slow),
    ],
)
def test_parts_make_the_output_of_one_process(source, effort, count, planned, tmp_path):
    model, place = planned(source, effort)
    order = list(range(1, count + 1))
    random.Random(count).shuffle(order)
    in_parts(model, place, tmp_path / "out", count, [*order, order[0]])
    report = ramrs.finish(tmp_path / "out")
    assert report.written
    assert sees_everything(tmp_path) == sees_everything(place / "whole")


def test_parts_at_the_same_time_make_the_output_of_one_process(planned, tmp_path):
    model, place = planned("example")
    command = [sys.executable, "-m", "ramrs", "quantize", model, "--plan", place / "plan.json", "-o", tmp_path / "out"]
    command += ["--no-check", "--shard-bytes", SHARDS["shard_bytes"]]
    runs = [subprocess.Popen([*map(str, command), "--part", f"{number}/4"]) for number in (1, 2, 3, 4)]
    assert [run.wait() for run in runs] == [0, 0, 0, 0]
    ramrs.finish(tmp_path / "out")
    assert sees_everything(tmp_path) == sees_everything(place / "whole")


def test_a_part_that_is_lost_is_named_and_done_again(planned, tmp_path):
    model, place = planned("example")
    in_parts(model, place, tmp_path / "out", 5, [1, 2, 3, 4, 5])
    (tmp_path / "out.partial" / "journal-2-of-5").unlink()
    journal = tmp_path / "out.partial" / "journal-4-of-5"
    journal.write_bytes(journal.read_bytes()[:-70])
    before = sees_everything(tmp_path)
    with pytest.raises(ramrs.ConfigError, match="not done: 2/5, 4/5") as caught:
        ramrs.finish(tmp_path / "out")
    assert caught.value.slug == "missing-parts"
    assert before.keys() <= sees_everything(tmp_path).keys()
    in_parts(model, place, tmp_path / "out", 5, [4, 2])
    ramrs.finish(tmp_path / "out")
    assert sees_everything(tmp_path) == sees_everything(place / "whole")


def test_data_that_a_part_has_lost_is_written_by_the_end(planned, tmp_path):
    model, place = planned("example")
    in_parts(model, place, tmp_path / "out", 2, [2, 1])
    for file in (tmp_path / "out.partial" / "output").iterdir():
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
    ramrs.finish(tmp_path / "out")
    assert sees_everything(tmp_path) == sees_everything(place / "whole")


def test_a_part_of_another_job_is_refused(planned, tmp_path):
    model, place = planned("example")
    in_parts(model, place, tmp_path / "out", 2, [1])
    shutil.copytree(place, tmp_path / "other", ignore=shutil.ignore_patterns("whole", "model"))
    ramrs.plan(place / "analysis.json", budget=5).write(tmp_path / "other" / "plan.json")
    with pytest.raises(ramrs.ConfigError, match="another job: it was begun with plan") as caught:
        in_parts(model, tmp_path / "other", tmp_path / "out", 2, [2])
    assert caught.value.slug == "other-job"
    with pytest.raises(ramrs.ConfigError, match="different divisions"):
        in_parts(model, place, tmp_path / "out", 3, [1])
        ramrs.finish(tmp_path / "out")


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b"])
def test_what_is_no_part_is_refused(part, planned, tmp_path):
    model, place = planned("example")
    with pytest.raises(ramrs.ConfigError, match=rf"part= `{part}`: write a part as 3/16"):
        ramrs.quantize(model, tmp_path / "out", plan=place / "plan.json", part=part)
    assert not list(tmp_path.iterdir())


def test_a_part_needs_a_plan_and_its_sensitivity(planned, tmp_path):
    model, place = planned("example")
    with pytest.raises(ramrs.ConfigError, match="it is a part of a plan"):
        ramrs.quantize(model, tmp_path / "out", budget=4, part="1/2")
    shutil.copy(place / "plan.json", tmp_path / "plan.json")
    with pytest.raises(ramrs.ConfigError, match="its plan has no sensitivity beside it"):
        ramrs.quantize(model, tmp_path / "out", plan=tmp_path / "plan.json", part="1/2")
    with pytest.raises(ramrs.ConfigError, match="no parts are there"):
        ramrs.finish(tmp_path / "nothing")


def test_a_gguf_file_is_written_in_parts(tmp_path):
    from fixtures.gguf import CASES, header

    model = CASES["qwen3_moe"].write(tmp_path / "model")
    ramrs.analyze(model, tmp_path / "a.json", header=header("qwen3_moe"))
    ramrs.plan(tmp_path / "a.json", budget=6).write(tmp_path / "p.json")
    given = {"plan": tmp_path / "p.json", "header": header("qwen3_moe"), "check": False}
    ramrs.quantize(model, tmp_path / "whole" / "m.gguf", **given)
    for number in (3, 1, 2):
        ramrs.quantize(model, tmp_path / "parts" / "m.gguf", part=f"{number}/3", **given)
    ramrs.finish(tmp_path / "parts" / "m.gguf")
    assert sees_everything(tmp_path / "parts") == sees_everything(tmp_path / "whole")

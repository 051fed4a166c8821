"""One analysis for all sizes of a model, which measures nothing again."""

import shutil

import pytest
import ramrs
from fixtures.paths import EXAMPLE
from fixtures.process import sees_everything

MEASURING = {"probe", "gradients", "measure", "curves"}
"""The stages that an analysis saves. The check at the end lets the model write a text, too."""


def stages(moments):
    return {now.stage for now in moments}


@pytest.fixture(scope="module", params=["normal", "high"])
def analyzed(request, tmp_path_factory):
    """A directory with an analysis and its sensitivity."""
    place = tmp_path_factory.mktemp("analyzed")
    ramrs.analyze(EXAMPLE, place / "a.json", effort=request.param)
    return place, request.param


def test_an_analysis_is_written_with_its_sensitivity(analyzed):
    place, effort = analyzed
    assert sorted(path.name for path in place.iterdir()) == ["a.json", "a.sensitivity"]
    assert ramrs.Analysis.read(place / "a.json") == ramrs.analyze(EXAMPLE, effort=effort)


@pytest.mark.parametrize("by", ["analysis", "plan"])
def test_a_saved_document_measures_nothing_again(by, analyzed, tmp_path):
    place, effort = analyzed
    moments = []
    given = {"analysis": place / "a.json", "budget": 4, "effort": effort}
    if by == "plan":
        ramrs.plan(place / "a.json", budget=4).write(place / "p.json")
        given = {"plan": place / "p.json"}
    ramrs.quantize(EXAMPLE, tmp_path / "saved" / "out", progress=moments.append, **given)
    assert not stages(moments) & MEASURING
    ramrs.quantize(EXAMPLE, tmp_path / "direct" / "out", budget=4, effort=effort)
    assert sees_everything(tmp_path / "saved") == sees_everything(tmp_path / "direct")


def test_a_document_without_its_sensitivity_measures_it_again(analyzed, tmp_path):
    place, effort = analyzed
    shutil.copy(place / "a.json", tmp_path / "a.json")
    moments = []
    ramrs.quantize(
        EXAMPLE, tmp_path / "out", analysis=tmp_path / "a.json", budget=4, effort=effort, progress=moments.append
    )
    with_it = ramrs.quantize(EXAMPLE, tmp_path / "with", analysis=place / "a.json", budget=4, effort=effort)
    assert ramrs.Manifest.read(tmp_path / "out" / "ramrs-manifest.json") == with_it.manifest


def test_the_sensitivity_of_another_analysis_is_not_taken(analyzed, tmp_path):
    place, effort = analyzed
    shutil.copy(place / "a.json", tmp_path / "a.json")
    ramrs.analyze(EXAMPLE, tmp_path / "b.json", effort=effort, probe_seed=1)
    (tmp_path / "c.sensitivity").write_bytes((place / "a.sensitivity").read_bytes()[:-100])
    (tmp_path / "d.sensitivity").write_bytes(b"nothing of the kind")
    report = ramrs.quantize(EXAMPLE, tmp_path / "out", analysis=tmp_path / "a.json", budget=4, effort=effort)
    direct = ramrs.quantize(EXAMPLE, tmp_path / "direct", budget=4, effort=effort)
    assert report.manifest == direct.manifest


def test_several_sizes_are_those_of_single_jobs(tmp_path):
    moments = []
    found = ramrs.quantize_sizes(
        EXAMPLE, [3.5, "5", "160KB"], str(tmp_path / "sizes" / "m-{budget}"), progress=moments.append
    )
    assert [report.output for report in found] == [str(tmp_path / "sizes" / f"m-{of}") for of in ("3.5", "5", "160KB")]
    for budget in (3.5, "5", "160KB"):
        ramrs.quantize(EXAMPLE, tmp_path / "single" / f"m-{budget}", budget=budget)
    assert sees_everything(tmp_path / "sizes") == sees_everything(tmp_path / "single")


def test_several_sizes_are_continued(tmp_path):
    output = str(tmp_path / "m-{budget}")

    class StopError(Exception):
        pass

    def stop(now):
        if (tmp_path / "m-3.5").exists():
            raise StopError

    with pytest.raises(StopError):
        ramrs.quantize_sizes(EXAMPLE, [3.5, 5], output, progress=stop)
    assert (tmp_path / "m-sizes.sizes").is_dir()
    moments = []
    first, second = ramrs.quantize_sizes(EXAMPLE, [3.5, 5], output, progress=moments.append)
    assert not stages(moments) & {"curves"}
    assert first.written
    assert second.written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m-3.5", "m-5"]


def test_several_sizes_on_the_command_line(ramrs_cli):
    done = ramrs_cli("quantize", EXAMPLE, "-b", "4", "-b", "40%", "-o", "m-{budget}")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in sorted(ramrs_cli.directory.iterdir())] == ["m-4", "m-40pct"]
    assert "written and verified: m-40pct" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-b", "4", "-b", "4.0", "-o", "m-{budget}", "--bits", "4"], "--budget: several budgets are given"),
        (["-b", "4", "-b", "4", "-o", "m-{budget}"], "two of the budgets have the same output"),
        (["-b", "4", "-b", "5", "-o", "m"], "has no {budget}"),
        (["-b", "4", "-b", "1", "-o", "m-{budget}"], "below the smallest possible size"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_anything_is_written(arguments, says, ramrs_cli):
    done = ramrs_cli("quantize", EXAMPLE, *arguments)
    assert done.returncode != 0
    assert says in done.stderr
    assert not list(ramrs_cli.directory.glob("m-[0-9]*"))

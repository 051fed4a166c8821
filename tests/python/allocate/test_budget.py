"""The main job: a checkpoint of the size that was asked for."""

import json
import re

import pytest
import ramrs
from fixtures.paths import EXAMPLE, STORIES
from fixtures.process import ramrs_process

FORMS = {
    "4": lambda source: ("tensor_bytes", 4 * source.parameters // 8),
    "4.0": lambda source: ("tensor_bytes", 4 * source.parameters // 8),
    "3.3bpw": lambda source: ("tensor_bytes", int(3.3 * source.parameters / 8)),
    "200KB": lambda source: ("file_bytes", 200_000),
    "200 kb": lambda source: ("file_bytes", 200_000),
    "0.0002GB": lambda source: ("file_bytes", 200_000),
    "160KiB": lambda source: ("file_bytes", 160 * 1024),
    "150000B": lambda source: ("file_bytes", 150_000),
    "30%": lambda source: ("file_bytes", int(0.30 * source.file_bytes)),
}


def stored_bytes(directory):
    """Bytes of the files of weights."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


@pytest.mark.parametrize("budget", FORMS)
def test_every_form_of_a_budget_is_met_and_used_up(budget, tmp_path):
    report = ramrs.quantize(EXAMPLE, tmp_path / "out", budget=budget)
    totals = report.plan.totals
    counted, limit = FORMS[budget](report.plan.source)
    used = getattr(totals, counted)
    assert totals.budget_bytes == limit
    assert 0.999 * limit <= used <= limit


@pytest.mark.parametrize("budget", ["4.0", "200KB"])
def test_the_planned_bytes_are_the_written_bytes(budget, tmp_path):
    planned = ramrs.plan(EXAMPLE, budget=budget).totals
    report = ramrs.quantize(EXAMPLE, tmp_path / "out", budget=budget)
    assert report.plan.totals.file_bytes == planned.file_bytes == stored_bytes(tmp_path / "out")
    assert report.plan.totals.tensor_bytes == planned.tensor_bytes
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == planned.tensor_bytes


def test_bits_per_weight_count_everything_that_is_written(example_at_4):
    output, report = example_at_4
    totals = report.plan.totals
    assert totals.effective_bpw == 8 * totals.tensor_bytes / report.plan.source.parameters
    assert 0.999 * 4.0 <= totals.effective_bpw <= 4.0
    assert totals.payload_bpw < totals.effective_bpw
    assert totals.tensor_bytes < stored_bytes(output)


def test_a_budget_that_is_too_small_says_what_the_least_is_and_what_sets_it(ramrs_cli):
    done = ramrs_cli("quantize", EXAMPLE, "--budget", "1.0", "-o", "out")
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.search(
        r"budget of 1 bits per weight is below the smallest possible size, 2\.5\d+ bits per weight: "
        r"36 matrices at their smallest take 87\.\d\d KB",
        done.stderr,
    )
    assert "--min-bits 2 lifts it" in done.stderr
    assert "11 tensors that are kept as they are 1.41 KB" in done.stderr
    assert "hint: raise the budget" in done.stderr
    assert not list(ramrs_cli.directory.iterdir())


@pytest.mark.parametrize(
    ("budget", "form"), [("1.0", r"([0-9.]+) bits per weight:"), ("50KB", r"([0-9]+B) \("), ("5%", r"([0-9.]+%):")]
)
def test_the_least_that_the_message_names_is_possible(budget, form):
    analysis = ramrs.analyze(EXAMPLE)
    with pytest.raises(ramrs.BudgetError) as caught:
        ramrs.plan(analysis, budget=budget)
    assert caught.value.slug == "budget-too-small"
    least = re.search(f"smallest possible size, {form}", str(caught.value))[1]
    assert ramrs.plan(analysis, budget=least).totals.tensor_bytes < 90_000


def test_the_least_file_size_counts_the_headers_in_what_sets_it():
    with pytest.raises(ramrs.BudgetError, match=r"10[01]\.\d\d KB\): .*headers 1[12]\.\d\d KB"):
        ramrs.plan(EXAMPLE, budget="50KB")


def test_a_budget_above_the_source_keeps_everything_and_says_so(tmp_path):
    done = ramrs_process("quantize", EXAMPLE, "--budget", "20", "-o", tmp_path / "out")
    assert done.returncode == 0
    assert "nothing is quantized" in done.stderr
    source = EXAMPLE / "model.safetensors"
    assert ramrs.verify(tmp_path / "out", source=EXAMPLE).ok
    assert {line.became for line in ramrs.Manifest.read(tmp_path / "out" / "ramrs-manifest.json").ledger} == {"kept"}
    assert stored_bytes(tmp_path / "out") <= source.stat().st_size + 4096
    assert "quantization" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize(
    ("budget", "why"),
    [
        ("0", "a budget is more than nothing"),
        ("-1", "a budget is more than nothing"),
        ("0GB", "a budget is more than nothing"),
        ("nan", "write bits per weight (4.0), a size (24GB, 24GiB, 900MB) or a share of the source (30%)"),
        ("abc", "write bits per weight (4.0)"),
        ("4GBB", "write bits per weight (4.0)"),
        ("1e400", "write bits per weight (4.0)"),
        ("inf", "write bits per weight (4.0)"),
        ("", "write bits per weight (4.0)"),
        ("%", "write bits per weight (4.0)"),
        ("24G", "write bits per weight (4.0)"),
        ("1000", "more bits than any weight has"),
    ],
)
def test_nonsense_for_a_budget_is_refused_with_what_to_write(budget, why, ramrs_cli):
    done = ramrs_cli("quantize", EXAMPLE, f"--budget={budget}", "-o", "out")
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"error: --budget `{budget}`: " in done.stderr
    assert why in done.stderr
    assert not list(ramrs_cli.directory.iterdir())


@pytest.mark.parametrize(
    ("options", "why"),
    [({}, "budget="), ({"budget": 4, "bits": 4}, "bits="), ({"bits": 7}, "7"), ({"bits": 4, "group_size": 48}, "48")],
)
def test_there_must_be_one_target_and_a_sound_one(options, why):
    with pytest.raises(ramrs.ConfigError, match=why):
        ramrs.plan(EXAMPLE, **options)


def test_rows_that_fit_no_scheme_are_kept_and_the_ledger_says_why(tmp_path):
    report = ramrs.quantize(STORIES, tmp_path / "out", budget="12")
    down = [line for line in report.manifest.ledger if line.role == "down"]
    assert len(down) == 5
    assert {line.became for line in down} == {"kept"}
    assert {line.why for line in down} == {"rows of 172 do not divide into groups of 32, 64 or 128"}
    assert {line.became for line in report.manifest.ledger if line.role in ("query", "up")} == {"quantized"}
    source = {tensor.name for tensor in ramrs.inspect(STORIES).tensors}
    assert {line.tensor for line in report.manifest.ledger} == source
    assert 0.999 * 12 <= report.plan.totals.effective_bpw <= 12


def test_a_budget_that_unquantizable_rows_make_impossible_says_that_they_do():
    done = ramrs_process("quantize", STORIES, "--budget", "4.0", "--dry-run")
    assert done.returncode == 1
    assert "smallest possible size, 9.2" in done.stderr
    assert "rows of 172 do not divide into groups of 32, 64 or 128" in done.stderr


def test_a_plan_is_never_worse_than_the_best_uniform_one_nor_better_than_the_bound():
    analysis = ramrs.analyze(EXAMPLE)
    for budget in ("2.6", "3.0", "3.5", "4.5", "6.0", "9.0"):
        totals = ramrs.plan(analysis, budget=budget).totals
        assert totals.lower_bound <= totals.loss
        if totals.best_uniform is not None:
            assert totals.loss <= totals.best_uniform.loss


def test_a_uniform_scheme_in_place_of_a_budget():
    made = ramrs.plan(EXAMPLE, bits=3, group_size=32)
    assert {tensor.scheme for tensor in made.tensors if tensor.role != "norm"} == {"3g32"}
    assert made.budget is None

"""`--effort high`: what it gains, where it applies, what it refuses, and that its bytes depend on nothing else."""

import json

import pytest
import ramrs
from fixtures.checkpoints import LLAMA, llama_tensors, write_shards
from fixtures.models import write_release
from fixtures.paths import EXAMPLE
from fixtures.process import ramrs_process, sees_everything

UNIFORM = {"bits": 3, "group_size": 64, "check": False}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The example model in uniform schemes of equal bytes, with each effort."""
    directory = tmp_path_factory.mktemp("efforts")
    reports = {
        effort: ramrs.quantize(EXAMPLE, directory / effort, effort=effort, **UNIFORM) for effort in ("normal", "high")
    }
    return directory, reports


def test_feedback_diverges_less_at_equal_bytes(outputs):
    directory, reports = outputs
    assert reports["high"].plan.totals.file_bytes == reports["normal"].plan.totals.file_bytes
    with_search, with_feedback = ramrs.eval(
        [directory / "normal", directory / "high"], reference=EXAMPLE, max_tokens=2048
    )
    assert with_feedback.kl_mean < 0.9 * with_search.kl_mean


def test_the_ledger_says_which_matrices_have_feedback(outputs):
    directory, reports = outputs
    ledger = {line.tensor: line for line in reports["high"].manifest.ledger}
    for name, line in ledger.items():
        for quantized in line.quantized:
            assert quantized.feedback == 1, name
    assert all(not quantized.feedback for line in reports["normal"].manifest.ledger for quantized in line.quantized)
    assert ramrs.verify(directory / "high", source=EXAMPLE).ok


def test_predicted_and_written_losses_are_those_of_feedback(outputs):
    _, reports = outputs
    high, normal = reports["high"], reports["normal"]
    assert high.plan.totals.loss < normal.plan.totals.loss
    assert 0.7 < high.plan.totals.loss / high.manifest.totals.loss < 1.3


def test_every_way_to_run_writes_the_same_bytes(tmp_path):
    config = LLAMA | {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "vocab_size": 512}
    model = write_shards(tmp_path / "model", llama_tensors(config, "F16"), config)
    seen = []
    ways = [{"threads": 1}, {"threads": 3}, {"chunk_bytes": 5_000}, {"simd": False, "threads": 2}]
    for at, way in enumerate(ways):
        ramrs.quantize(model, tmp_path / f"{at}", budget=4.0, effort="high", probe_tokens=128, **way)
        seen.append(sees_everything(tmp_path / f"{at}"))
    assert all(other == seen[0] for other in seen[1:])


@pytest.mark.parametrize("release", ["qwen3_moe", "mixtral", "gpt_oss", "gpt2", "qwen2_moe", "llama_fp8"])
@pytest.mark.slow
def test_experts_stacks_and_fused_matrices_have_feedback(release, tmp_path):
    model, output = tmp_path / "model", tmp_path / "out"
    write_release(release, model)
    report = ramrs.quantize(model, output, budget=5.0, effort="high", max_bits=6)
    assert sum(quantized.feedback for line in report.manifest.ledger for quantized in line.quantized) > 0
    assert ramrs.verify(output, source=model).ok


@pytest.mark.slow
def test_symmetric_integers_have_feedback_too(tmp_path):
    options = {"format": "compressed-tensors", "target": "transformers", "bits": 4, "group_size": 64, "check": False}
    for effort in ("normal", "high"):
        ramrs.quantize(EXAMPLE, tmp_path / effort, effort=effort, **options)
    with_search, with_feedback = ramrs.eval(
        [tmp_path / "normal", tmp_path / "high"], reference=EXAMPLE, max_tokens=2048
    )
    assert with_feedback.kl_mean < 0.9 * with_search.kl_mean


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sensitivity": "weights"}, ["--effort `high`", "--sensitivity weights", "auto"]),
        ({"objective": "mse"}, ["--effort `high`", "--objective mse", "output"]),
    ],
)
def test_high_needs_a_run_of_the_model(options, words, tmp_path):
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    run = ramrs_process("quantize", EXAMPLE, "-b", "4", "-o", tmp_path / "out", "--effort", "high", *given)
    assert run.returncode == 2
    assert all(word in run.stderr for word in words), run.stderr
    assert not (tmp_path / "out").exists()


def test_high_refuses_a_model_that_cannot_be_run(tmp_path):
    config = LLAMA | {"model_type": "nobody_knows", "architectures": ["Nobody"]}
    model = write_shards(tmp_path / "model", llama_tensors(config, "F16"), config)
    run = ramrs_process("quantize", model, "-b", "5", "-o", tmp_path / "out", "--effort", "high", "--generic")
    assert run.returncode == 2
    assert "normal" in run.stderr


def test_memory_is_counted(tmp_path):
    run = ramrs_process(
        "quantize", EXAMPLE, "-b", "4", "-o", tmp_path / "out", "--effort", "high", "--max-memory", "100MB", "-j", "1"
    )
    assert run.returncode == 2
    assert "--max-memory" in run.stderr


def test_a_saved_analysis_of_high_makes_the_same_output(tmp_path):
    analysis = ramrs.analyze(EXAMPLE, effort="high", probe_tokens=128)
    path = tmp_path / "analysis.json"
    path.write_text(json.dumps(analysis.to_dict()))
    options = {"budget": 4.0, "effort": "high", "probe_tokens": 128, "check": False}
    ramrs.quantize(EXAMPLE, tmp_path / "a", analysis=path, **options)
    ramrs.quantize(EXAMPLE, tmp_path / "b", **options)
    assert sees_everything(tmp_path / "a") == sees_everything(tmp_path / "b")

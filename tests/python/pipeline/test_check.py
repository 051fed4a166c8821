"""The check at the end of `quantize`: right outputs pass at any size, and outputs that are not the model do not."""

import json

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import Tensor, header_of, read_header, read_safetensors, write_safetensors
from fixtures.models import RELEASES, VARIANTS, write_release, write_variant
from fixtures.paths import EXAMPLE
from fixtures.process import ramrs_process
from fixtures.tiers import slow_but_for
from ramrs._core import call
from ramrs.types import Check

RUN = [name for name in VARIANTS if name != "stablelm_parallel"]


def check(output, source):
    """Check a finished output as `quantize` does."""
    return call("check", {"output": str(output), "source": str(source)}, Check)


def rewrite(output, change):
    path = output / "model.safetensors"
    tensors = read_safetensors(path)
    change(tensors)
    write_safetensors(path, tensors, header_of(tensors) | {"__metadata__": {"format": "mlx"}})


def without_the_one_of_a_norm(output):
    def change(tensors):
        name = next(name for name in tensors if ".1." in name and name.endswith("norm.weight"))
        tensors[name] = Tensor.of(tensors[name].values - 1, tensors[name].dtype)

    rewrite(output, change)


def with_another_rope_base(output):
    path = output / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"rope_theta": 10 * config.get("rope_theta", 10000.0)}))


def with_two_experts_swapped(output):
    def change(tensors):
        stacks = [name for name in tensors if ".layers.0." in name and "switch_mlp" in name]
        assert stacks
        for name in stacks:
            swapped = tensors[name].elements.copy()
            swapped[[0, 1]] = swapped[[1, 0]]
            tensors[name] = Tensor(tensors[name].dtype, swapped)

    rewrite(output, change)


def with_a_transposed_square_matrix(output):
    def change(tensors):
        name = "model.layers.0.self_attn.o_proj.weight"
        rows, columns = tensors[name].elements.shape
        assert rows == columns
        assert tensors[name].dtype == "BF16"
        tensors[name] = Tensor("BF16", tensors[name].elements.T)

    rewrite(output, change)


def with_gate_and_up_swapped(output):
    def change(tensors):
        gates = [name for name in tensors if ".0." in name and "gate_proj." in name]
        assert gates
        for gate in gates:
            up = gate.replace("gate_proj", "up_proj")
            tensors[gate], tensors[up] = tensors[up], tensors[gate]

    rewrite(output, change)


KEPT_RELEASES = ["gpt2", "gpt_neox", "gpt_oss", "gpt_oss_bf16", "llama_fp8"]
KEPT = {"budget": 32}
FAULTS = [
    ("llama", KEPT, without_the_one_of_a_norm),
    ("llama", {"budget": 5}, without_the_one_of_a_norm),
    ("gemma", KEPT, without_the_one_of_a_norm),
    ("llama", KEPT, with_another_rope_base),
    ("llama", {"budget": 5}, with_another_rope_base),
    ("mixtral", KEPT, with_two_experts_swapped),
    ("mixtral", {"bits": 5, "group_size": 32}, with_two_experts_swapped),
    ("qwen3_moe", KEPT, with_two_experts_swapped),
    ("mixtral", KEPT, with_a_transposed_square_matrix),
    ("llama", {"budget": 5, "keep": ["o_proj"]}, with_a_transposed_square_matrix),
    ("llama", KEPT, with_gate_and_up_swapped),
    ("llama", {"bits": 5, "group_size": 32}, with_gate_and_up_swapped),
    ("gemma", KEPT, with_gate_and_up_swapped),
]


@pytest.mark.parametrize(
    ("name", "options", "fault"), FAULTS, ids=[f"{name}-{fault.__name__}-{options}" for name, options, fault in FAULTS]
)
def test_an_output_that_is_another_model_is_found(name, options, fault, tmp_path):
    model = write_variant(name, tmp_path / "model", dtype="BF16")
    ramrs.quantize(model, tmp_path / "out", **options)
    assert check(tmp_path / "out", model).kl.value < 0.2
    fault(tmp_path / "out")
    with pytest.raises(ramrs.VerifyError, match=r"the output is not the model: .* nats per token, and") as caught:
        check(tmp_path / "out", model)
    assert caught.value.slug == "wrong-model"


@pytest.mark.parametrize("format_", ["mlx", "compressed-tensors"])
@pytest.mark.parametrize("name", slow_but_for(["llama"], RUN))
def test_a_right_output_passes_at_any_size(name, format_, tmp_path):
    model = write_variant(name, tmp_path / "model", dtype="BF16")
    try:
        smallest = ramrs.inspect(model, format=format_).smallest_bpw
        ramrs.plan(model, budget=32, format=format_, probe_tokens=64)
    except ramrs.CheckpointError:
        pytest.skip("the format has no layout for it")
    for budget in (smallest + 0.02, smallest + 0.3, 4, 6, 9, 32):
        options = {"overwrite": True, "format": format_, "min_bits": 2}
        try:
            report = ramrs.quantize(model, tmp_path / "out", budget=budget, **options)
        except ramrs.BudgetError:
            continue
        found = report.manifest.check
        assert found is not None
        assert found.predicted == pytest.approx(report.manifest.totals.loss, abs=1e-300)
        if budget == 32:
            assert 0 <= found.kl.value < 1e-6
    # Found again by the verb, to the bit.
    assert check(tmp_path / "out", model) == found


@pytest.mark.parametrize(
    "name", slow_but_for(["gpt_oss"], ["gpt2", "gpt_neox", "gpt_oss", "gpt_oss_bf16", "llama_fp8"])
)
def test_a_release_that_is_kept_diverges_by_nothing(name, tmp_path):
    assert name in RELEASES
    found = ramrs.quantize(write_release(name, tmp_path / "model"), tmp_path / "out", budget="32").manifest.check
    assert 0 <= found.kl.value < 1e-4
    assert found.predicted == 0


def test_the_check_is_made_by_default_if_the_probe_ran(tmp_path):
    def made(**options):
        return ramrs.quantize(EXAMPLE, tmp_path / "out", budget=5, overwrite=True, **options).manifest.check

    by_default = made()
    assert by_default == made(check=True)
    assert (by_default.windows, by_default.window, by_default.origin) == (3, 128, "written")
    assert by_default.kl.error > 0
    assert by_default.kl.value == pytest.approx(by_default.predicted, rel=0.6)
    assert made(check=False) is None
    assert made(sensitivity="weights") is None
    assert made(sensitivity="weights", check=True).kl.value > 0
    assert made(objective="mse", check=True).predicted is None
    assert made(probe_tokens=64) is None


def test_what_was_measured_is_told(tmp_path):
    done = ramrs_process("quantize", EXAMPLE, "-b", "5", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "run on 384 tokens of its own: it diverges by 0." in done.stdout
    found = ramrs.Manifest.read(tmp_path / "out" / "ramrs-manifest.json").check
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        f"| measured on 384 tokens of its own (nats per token) | {found.kl.value:.4f} ± {found.kl.error:.4f} |" in card
    )
    assert ramrs.verify(tmp_path / "out", source=EXAMPLE).ok


def test_a_model_that_is_not_run_is_checked_only_by_request(tmp_path):
    model = write_variant("stablelm_parallel", tmp_path / "model")
    assert ramrs.quantize(model, tmp_path / "out", budget=5).manifest.check is None
    with pytest.raises(ramrs.CheckpointError, match="cannot be run"):
        ramrs.quantize(model, tmp_path / "checked", budget=5, check=True)
    assert not (tmp_path / "checked").exists()
    assert not list(tmp_path.glob("checked*"))


def test_nothing_is_left_of_an_output_that_is_not_the_model(tmp_path):
    """A sensitivity of nearly nothing predicts no divergence, so that of few bits cannot be explained."""
    path = tmp_path / "sensitivity.safetensors"
    ramrs.probe(EXAMPLE, path)
    header, _ = read_header(path)
    tensors = read_safetensors(path)
    for name, tensor in tensors.items():
        if name.endswith(".r"):
            tensors[name] = Tensor("F32", tensor.elements * np.float32(1e-6))
    write_safetensors(path, tensors, header_of(tensors) | {"__metadata__": header["__metadata__"]})
    options = {"bits": 3, "group_size": 32, "sensitivity": path}
    with pytest.raises(ramrs.VerifyError, match="out: the output is not the model") as caught:
        ramrs.quantize(EXAMPLE, tmp_path / "out", **options, check=True)
    assert caught.value.slug == "wrong-model"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    flags = ["--bits", "3", "--group-size", "32", "--sensitivity", path, "-o", tmp_path / "out"]
    done = ramrs_process("quantize", EXAMPLE, *flags, "--check")
    assert done.returncode == 1
    assert "--no-check" in done.stderr
    assert ramrs_process("quantize", EXAMPLE, *flags, "--no-check").returncode == 0

"""An output is derived again from its source and its manifest, byte for byte."""

import hashlib
import json
import shutil

import pytest
import ramrs
from fixtures.gguf import CASES, header
from fixtures.models import write_variant
from fixtures.paths import EXAMPLE


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    path = tmp_path_factory.mktemp("output") / "out"
    ramrs.quantize(EXAMPLE, path, budget=4)
    return path


@pytest.mark.parametrize("effort", ["fast", "normal", "high"])
@pytest.mark.parametrize("model", ["example", "qwen3_moe"])
def test_what_was_written_is_derived_again(model, effort, tmp_path):
    source = EXAMPLE if model == "example" else write_variant(model, tmp_path / "model")
    ramrs.quantize(source, tmp_path / "out", budget=4.5, effort=effort, check=False)
    report = ramrs.verify(tmp_path / "out", source=source, recompute=True)
    assert report.problems == ()
    assert report.recomputed > 0


@pytest.mark.parametrize("given", [{"format": "compressed-tensors"}, {"sensitivity": "weights"}, {"objective": "mse"}])
def test_other_formats_and_sensitivities_are_derived_again(given, tmp_path):
    ramrs.quantize(EXAMPLE, tmp_path / "out", budget=5, check=False, **given)
    assert ramrs.verify(tmp_path / "out", source=EXAMPLE, recompute=True).ok


def test_a_gguf_file_is_derived_again(tmp_path):
    release = CASES["llama"].write(tmp_path / "release")
    ramrs.quantize(release, tmp_path / "source.gguf", budget=33, header=header("llama"), check=False)
    ramrs.quantize(tmp_path / "source.gguf", tmp_path / "out.gguf", budget=6, check=False)
    assert ramrs.verify(tmp_path / "out.gguf", source=tmp_path / "source.gguf", recompute=True).ok


def test_a_sensitivity_file_is_asked_for(tmp_path):
    ramrs.probe(EXAMPLE, tmp_path / "s.safetensors")
    file = tmp_path / "s.safetensors"
    ramrs.quantize(EXAMPLE, tmp_path / "out", budget=4, sensitivity=file, check=False)
    assert ramrs.verify(tmp_path / "out", source=EXAMPLE, recompute=True, sensitivity=file).ok


def flip(directory, tensor, position, *, is_covered_up):
    """Flip one bit of a tensor, and, if asked, write the digests of the result into the manifest."""
    weights = directory / "model.safetensors"
    data = bytearray(weights.read_bytes())
    head = 8 + int.from_bytes(data[:8], "little")
    start, end = (head + offset for offset in json.loads(data[8:head])[tensor]["data_offsets"])
    at = int(position * (end - start - 1))
    data[start + at] ^= 1
    weights.write_bytes(bytes(data))
    if is_covered_up:
        path = directory / "ramrs-manifest.json"
        manifest = json.loads(path.read_text())
        for line in manifest["tensors"]:
            if line["name"] == tensor:
                line["sha256"] = hashlib.sha256(data[start:end]).hexdigest()
        for file in manifest["files"]:
            if file["name"] == weights.name:
                file["sha256"] = hashlib.sha256(data).hexdigest()
        path.write_text(json.dumps(manifest))
    return at


@pytest.mark.parametrize("is_covered_up", [False, True], ids=["flipped", "covered up"])
@pytest.mark.parametrize(
    "kind", ["weight", "scales", "biases", "input_layernorm.weight", "model.norm.weight", "embed_tokens.weight"]
)
def test_one_flipped_bit_anywhere_is_found(kind, is_covered_up, output, tmp_path):
    shutil.copytree(output, tmp_path / "out")
    manifest = ramrs.Manifest.read(output / "ramrs-manifest.json")
    tensor = next(stored.name for stored in manifest.tensors if stored.name.endswith(kind))
    for position in (0.0, 0.4, 1.0):
        shutil.copy(output / "model.safetensors", tmp_path / "out" / "model.safetensors")
        shutil.copy(output / "ramrs-manifest.json", tmp_path / "out" / "ramrs-manifest.json")
        at = flip(tmp_path / "out", tensor, position, is_covered_up=is_covered_up)
        report = ramrs.verify(tmp_path / "out", source=EXAMPLE, recompute=True)
        assert not report.ok
        found = [problem for problem in report.problems if "differs from what the source is encoded to" in problem.what]
        assert [problem.tensor for problem in found] == [tensor]
        assert f"from byte {at} on" in found[0].what


def test_a_sample_is_stated_by_a_rule(output, tmp_path):
    whole = ramrs.verify(output, source=EXAMPLE, recompute=True).recomputed
    some = ramrs.verify(output, source=EXAMPLE, recompute=True, sample="20%").recomputed
    assert 0 < some < whole
    assert ramrs.verify(output, source=EXAMPLE, recompute=True, sample="0.2").recomputed == some
    assert ramrs.verify(output, source=EXAMPLE, recompute=True, sample="100%").recomputed == whole
    with pytest.raises(ramrs.ConfigError, match="write a share"):
        ramrs.verify(output, source=EXAMPLE, recompute=True, sample="0")
    with pytest.raises(ramrs.ConfigError, match="source="):
        ramrs.verify(output, recompute=True)


def test_a_file_next_to_the_weights_that_was_changed_and_covered_up_is_found(output, tmp_path):
    shutil.copytree(output, tmp_path / "out")
    config = tmp_path / "out" / "config.json"
    config.write_text(config.read_text() + "\n")
    path = tmp_path / "out" / "ramrs-manifest.json"
    manifest = json.loads(path.read_text())
    for file in manifest["files"]:
        if file["name"] == "config.json":
            file.update(bytes=config.stat().st_size, sha256=hashlib.sha256(config.read_bytes()).hexdigest())
    path.write_text(json.dumps(manifest))
    report = ramrs.verify(tmp_path / "out", source=EXAMPLE, recompute=True)
    assert [problem.file for problem in report.problems] == ["config.json"]

"""What `mlx-lm` makes of an output: it loads, it generates, and it computes with the weights that were meant."""

import json
import re
import shutil

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import (
    LLAMA,
    Tensor,
    llama_tensors,
    read_weights,
    write_checkpoint,
    write_safetensors,
    write_shards,
)
from fixtures.models import MODELS, write_variant
from fixtures.paths import DATA, EXAMPLE, ROOT
from fixtures.tiers import slow_but_for
from oracles.reference import decoded_folder, decoded_module

mx = pytest.importorskip("mlx.core", reason="needs ramrs[eval]")
mlx_lm = pytest.importorskip("mlx_lm", reason="needs ramrs[eval]")
from mlx_lm.utils import load_model  # noqa: E402

AS_IS = [name for name, model in MODELS.items() if model.probed and name not in model.releases]
"""The model types whose tensors have the names and shapes in MLX that their releases have."""


def listed_types():
    text = (ROOT / "rust" / "arch" / "families" / "table.rs").read_text()
    lists = re.findall(r"(?:like_llama|gemma)\(\s*&\[(.*?)\]", text, re.DOTALL)
    return [model_type for types in lists for model_type in re.findall(r'"(\w+)"', types)]


def logits(directory, tokens, dtype=None):
    """Load a checkpoint as `mlx-lm` does, and compute logits: in ``dtype``, if one is given."""
    model, _ = load_model(directory)
    if dtype is not None:
        model.set_dtype(dtype)
    return np.array(model(mx.array([tokens]))[0].astype(mx.float32))


def assert_same_model(output, tmp_path, vocabulary):
    """Assert that the runtime computes with the weights that the reference decodes."""
    tokens = np.random.default_rng(5).integers(0, vocabulary, 64).tolist()
    expected = logits(decoded_folder(output, tmp_path / "decoded", "F32"), tokens)
    span = expected.max() - expected.min()
    assert np.isfinite(expected).all()
    assert np.abs(logits(output, tokens, mx.float32) - expected).max() <= 1e-4 * span
    return span


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    mx.set_default_device(mx.cpu)


def test_every_model_type_of_the_list_has_a_model():
    assert sorted(AS_IS) == sorted(listed_types())


@pytest.mark.parametrize("name", slow_but_for(["llama"], AS_IS))
def test_a_model_of_each_type_is_loaded_and_computes_with_what_was_written(name, tmp_path):
    source = write_variant(name, tmp_path / "model", dtype="BF16")
    output = tmp_path / "out"
    report = ramrs.quantize(source, output, budget=5, sensitivity="weights")
    assert report.plan.totals.effective_bpw <= 5
    schemes = {tensor.scheme for tensor in report.plan.tensors if tensor.scheme != "kept"}
    assert len(schemes) > 1
    assert_same_model(output, tmp_path, MODELS[name].config["vocab_size"])


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_every_float_type_of_a_source_is_loaded(dtype, tmp_path):
    source = write_checkpoint(tmp_path / "model", llama_tensors(LLAMA, dtype))
    ramrs.quantize(source, tmp_path / "out", budget=5)
    scales = {tensor.dtype for name, tensor in read_weights(tmp_path / "out").items() if name.endswith(".scales")}
    assert scales == {dtype}
    assert_same_model(tmp_path / "out", tmp_path, LLAMA["vocab_size"])


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64])
def test_every_scheme_is_loaded(bits, group_size, tmp_path):
    ramrs.quantize(EXAMPLE, tmp_path / "out", bits=bits, group_size=group_size)
    assert_same_model(tmp_path / "out", tmp_path, 512)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_runtime_decodes_every_scheme_to_the_reference_bit_for_bit(dtype, tmp_path):
    source = write_checkpoint(tmp_path / "model", llama_tensors(LLAMA, dtype))
    for bits in (2, 3, 4, 5, 6, 8):
        ramrs.quantize(source, tmp_path / "out", bits=bits, group_size=64, overwrite=True)
        found = mx.load(str(tmp_path / "out" / "model.safetensors"))
        modules = [name.removesuffix(".scales") for name in found if name.endswith(".scales")]
        assert len(modules) == 15
        for module in modules:
            scales, biases = (found[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
            theirs = mx.dequantize(found[f"{module}.weight"], scales, biases, group_size=64, bits=bits)
            ours = decoded_module(read_weights(tmp_path / "out"), module, f"{bits}g64")
            assert np.array(theirs).tobytes() == ours.tobytes()


def test_the_example_is_loaded_and_generates(example_at_4):
    model, tokenizer = mlx_lm.load(str(example_at_4[0]))
    text = mlx_lm.generate(model, tokenizer, prompt="Once upon a time", max_tokens=12)
    assert len(text.split()) >= 4


def test_the_runtimes_own_16_bit_arithmetic_is_as_near_as_it_is_on_an_ordinary_folder(example_at_4, tmp_path):
    tokens = np.random.default_rng(6).integers(3, 512, 64).tolist()
    exact = logits(decoded_folder(example_at_4[0], tmp_path / "f32", "F32"), tokens)
    ordinary = np.abs(logits(decoded_folder(example_at_4[0], tmp_path / "bf16", "BF16"), tokens) - exact)
    quantized = np.abs(logits(example_at_4[0], tokens) - exact)
    # MLX rounds more in bfloat16 where codes are coarse: 3.0 times as much with the 2-bit codes of this plan.
    assert quantized.max() <= 4 * ordinary.max()
    assert quantized.mean() <= 4 * ordinary.mean() <= 1e-2 * (exact.max() - exact.min())


def test_shards_of_an_output_are_loaded(tmp_path):
    source = write_shards(tmp_path / "model", llama_tensors(LLAMA))
    ramrs.quantize(source, tmp_path / "out", budget=5, shard_bytes=30_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert_same_model(tmp_path / "out", tmp_path, LLAMA["vocab_size"])


def test_fast_and_uniform_is_what_mlx_writes_itself(tmp_path):
    ramrs.quantize(EXAMPLE, tmp_path / "ours", bits=4, group_size=64, effort="fast")
    mlx_lm.convert(str(EXAMPLE), str(tmp_path / "theirs"), quantize=True, q_bits=4, q_group_size=64, dtype="bfloat16")
    ours, theirs = mx.load(str(tmp_path / "ours" / "model.safetensors")), {}
    for path in (tmp_path / "theirs").glob("model*.safetensors"):
        theirs |= mx.load(str(path))
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype, name
        assert mx.array_equal(ours[name], theirs[name]).item(), name
    configs = [json.loads((tmp_path / each / "config.json").read_text()) for each in ("ours", "theirs")]
    assert configs[0]["quantization"] == configs[1]["quantization"]


def test_mixed_schemes_are_described_as_mlx_does_it_itself(tmp_path):
    """A checkpoint that `mlx_lm.convert` made with a predicate, made again by rules."""
    golden = DATA / "tiny-llama-mlx-mixed"
    block = json.loads((golden / "config.json").read_text())["quantization"]
    # An entry without a mode is affine, too; ours say so.
    affine = {
        path: {"mode": "affine"} | entry
        for path, entry in block.items()
        if isinstance(entry, dict) and entry.get("mode", "affine") == "affine"
    }
    rules = [".=4g64", *(f"^{path}[.]={entry['bits']}g{entry['group_size']}" for path, entry in affine.items())]
    rules.append("layers.0.self_attn.q_proj=kept")
    ramrs.quantize(DATA / "tiny-llama-bf16", tmp_path / "out", budget=16, tensor=rules, effort="fast")
    ours, theirs = read_weights(tmp_path / "out"), mx.load(str(golden / "model.safetensors"))
    compared = 0
    for path in [*affine, "model.layers.1.mlp.gate_proj", "model.layers.1.self_attn.k_proj"]:
        for part in ("weight", "scales", "biases"):
            expected = np.array(theirs[f"{path}.{part}"].view(mx.uint16))
            np.testing.assert_array_equal(ours[f"{path}.{part}"].elements.view(np.uint16), expected)
            compared += 1
    assert compared >= 3 * 7
    described = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert (described["bits"], described["group_size"], described["mode"]) == (4, 64, "affine")
    for path, entry in affine.items():
        assert described[path] == entry
    assert described["model.layers.0.self_attn.q_proj"] is False


def test_the_configuration_names_every_module_that_differs(example_at_4):
    output, report = example_at_4
    source = json.loads((EXAMPLE / "config.json").read_text())
    text = (output / "config.json").read_text()
    config = json.loads(text)
    block = config.pop("quantization")
    assert config.pop("quantization_config") == block
    assert config == source
    assert list(json.loads(text)) == sorted(json.loads(text))
    top = {key: block.pop(key) for key in ("group_size", "bits", "mode")}
    schemes = {line.tensor.removesuffix(".weight"): line for line in report.manifest.ledger if line.quantized}
    for module, line in schemes.items():
        entry = block.pop(module, top)
        assert set(entry) == {"group_size", "bits", "mode"}
        assert f"{entry['bits']}g{entry['group_size']}" == line.quantized[0].scheme
        assert entry["mode"] == "affine"
    assert block == {}


def test_kept_modules_are_named_and_left_alone(tmp_path):
    ramrs.quantize(EXAMPLE, tmp_path / "out", budget=8, keep=["layers.2.mlp.up_proj"])
    block = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert block["model.layers.2.mlp.up_proj"] is False
    name = "model.layers.2.mlp.up_proj.weight"
    kept, source = read_weights(tmp_path / "out")[name], read_weights(EXAMPLE)[name]
    assert kept.elements.tobytes() == source.elements.tobytes()
    assert_same_model(tmp_path / "out", tmp_path, 512)


def test_the_index_is_complete_and_sorted(example_at_4):
    output, _ = example_at_4
    index = json.loads((output / "model.safetensors.index.json").read_text())
    found = read_weights(output)
    assert list(index["weight_map"]) == sorted(found)
    assert set(index["weight_map"].values()) == {"model.safetensors"}
    assert index["metadata"]["total_size"] == sum(tensor.elements.nbytes for tensor in found.values())
    assert index["metadata"]["total_parameters"] == 279_232


def test_all_other_files_are_there_byte_for_byte(tmp_path, example):
    (example / "extra").mkdir()
    (example / "extra" / "notes.txt").write_bytes(b"\x00\xff notes")
    (example / "modeling_custom.py").write_text("raise SystemExit('never run')")
    (example / "chat_template.jinja").write_text("{{ messages }}")
    (example / "generation_config.json").write_text('{"eos_token_id": 2}')
    output = tmp_path / "out"
    report = ramrs.quantize(example, output, budget=4)
    for path in example.rglob("*"):
        name = str(path.relative_to(example))
        if path.is_dir() or name in ("model.safetensors", "config.json"):
            continue
        there = "README.source.md" if name == "README.md" else name
        assert (output / there).read_bytes() == path.read_bytes(), name
    card = (output / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: mlx\nlicense: mit\n")
    assert f"{report.plan.totals.effective_bpw:.4f}" in card
    assert "`README.source.md`" in card


def test_weights_in_another_form_are_left_out_and_listed(tmp_path, example):
    for name in ("pytorch_model.bin", "model.onnx", "consolidated.00.pth", "extra.safetensors"):
        (example / name).write_bytes(b"weights")
    report = ramrs.quantize(example, tmp_path / "out", budget=4)
    left_out = {file.name for file in report.manifest.left_out}
    assert left_out == {"pytorch_model.bin", "model.onnx", "consolidated.00.pth", "extra.safetensors"}
    assert not any((tmp_path / "out" / name).exists() for name in left_out)
    load_model(tmp_path / "out")


def test_a_stored_head_that_is_tied_is_left_out_with_its_reason(tmp_path):
    tensors = llama_tensors(LLAMA)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = Tensor.of(np.ones(8), "F32")
    source = write_checkpoint(tmp_path / "model", tensors)
    report = ramrs.quantize(source, tmp_path / "out", budget=6)
    lines = {line.tensor: line for line in report.manifest.ledger}
    assert lines["lm_head.weight"].became == "tied"
    assert "model.embed_tokens.weight" in lines["lm_head.weight"].why
    assert lines["model.layers.0.self_attn.rotary_emb.inv_freq"].became == "dropped"
    assert_same_model(tmp_path / "out", tmp_path, LLAMA["vocab_size"])


def test_a_single_file_is_written_generically_and_beside_it(tmp_path):
    write_safetensors(tmp_path / "weights.safetensors", llama_tensors(LLAMA))
    ramrs.quantize(tmp_path / "weights.safetensors", tmp_path / "out", budget=6, generic=True)
    assert ramrs.verify(tmp_path / "out", source=tmp_path / "weights.safetensors").ok
    shutil.copy(EXAMPLE / "config.json", tmp_path / "out")
    assert ramrs.verify(tmp_path / "out").unlisted == ("config.json",)

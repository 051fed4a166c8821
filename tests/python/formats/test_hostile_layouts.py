"""Releases that are not what they seem: refused by name, or written as they are, but never written wrong."""

import json
from hashlib import sha256

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import Tensor, read_weights, write_checkpoint
from fixtures.models import RELEASES, release_tensors, write_release

EXPERTS = "model.layers.0.block_sparse_moe.experts"
INT4 = "model.layers.1.mlp.experts.0.gate_proj"


def zeros(dtype, *shape):
    """Return a tensor of zeros, stored in a type that NumPy has or of so many bytes."""
    widths = {"F64": np.float64, "I32": np.int32, "BF16": np.uint16, "F32": np.float32, "U8": np.uint8}
    return Tensor(dtype, np.zeros(shape, widths[dtype]))


SPOILT = {
    "codes in another order": ("kimi_k2", {f"{INT4}.weight_g_idx": zeros("I32", 64)}, f"{INT4}.weight_g_idx"),
    "an expert twice": ("mixtral", {f"{EXPERTS}.00.w1.weight": "of 0"}, "are both expert 0"),
    "an expert more": (
        "mixtral",
        {f"{EXPERTS}.4.{w}.weight": f"{w} of 0" for w in ("w1", "w2", "w3")},
        "counts 4 experts, and the layer has 5",
    ),
    "a norm that is no float": ("qwen3_next", {"model.layers.0.input_layernorm.weight": zeros("F64", 128)}, "F64"),
    "blocks of no rows": ("gpt_oss", {"x_blocks": zeros("U8", 0, 1, 16), "x_scales": zeros("U8", 0, 2)}, "x_blocks"),
    "a shape of no integers": ("kimi_k2", {f"{INT4}.weight_shape": zeros("F32", 2)}, "is F32"),
    "experts without rows": (
        "gpt_oss_bf16",
        {"model.layers.0.mlp.experts.gate_up_proj": zeros("BF16", 4, 64, 0)},
        "is empty",
    ),
    "biases without elements": (
        "gpt_oss_bf16",
        {"model.layers.0.mlp.experts.gate_up_proj_bias": zeros("BF16", 0)},
        "is empty",
    ),
}
"""What is spoilt, by which tensors, and what the error names."""


@pytest.mark.parametrize("fault", SPOILT)
def test_what_is_spoilt_is_refused_by_name(fault, tmp_path):
    name, extra, message = SPOILT[fault]
    tensors = release_tensors(name)
    for tensor, value in extra.items():
        # Or one that is like another expert's.
        tensors[tensor] = value if isinstance(value, Tensor) else tensors[f"{EXPERTS}.0.{tensor.split('.')[-2]}.weight"]
    model = write_checkpoint(tmp_path / "model", tensors, RELEASES[name].config)
    with pytest.raises(ramrs.CheckpointError, match=message):
        ramrs.quantize(model, tmp_path / "out", budget="32")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_next", "gpt2", "mamba2", "mixtral", "llama4"])
def test_what_is_laid_out_already_is_not_laid_out_again(name, tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    ramrs.quantize(write_release(name, tmp_path / "source"), once, budget="32")
    ramrs.quantize(once, twice, budget="32")
    before, after = read_weights(once), read_weights(twice)
    assert before.keys() == after.keys()
    for tensor, value in before.items():
        assert value.dtype == after[tensor].dtype
        assert value.elements.tobytes() == after[tensor].elements.tobytes(), tensor


@pytest.mark.parametrize("name", ["gpt_oss", "kimi_k2"])
def test_an_output_that_is_packed_is_no_source(name, tmp_path):
    ramrs.quantize(write_release(name, tmp_path / "source"), tmp_path / "out", budget="32")
    with pytest.raises(ramrs.CheckpointError, match="quantized already"):
        ramrs.quantize(tmp_path / "out", tmp_path / "again", budget="32")


@pytest.mark.parametrize("name", ["kimi_k2", "gpt_oss", "qwen3_next", "gpt2", "deepseek_v3_fp8"])
def test_verify_compares_what_was_laid_out_anew(name, tmp_path):
    source, output = write_release(name, tmp_path / "source"), tmp_path / "out"
    ramrs.quantize(source, output, budget="32")
    assert ramrs.verify(output, source=source).ok
    manifest = ramrs.Manifest.read(output / "ramrs-manifest.json")
    converted = next(line for line in manifest.ledger if line.became == "converted" and line.into)
    document = json.loads((output / "ramrs-manifest.json").read_text())
    weights = output / document["tensors"][0]["file"]
    data = bytearray(weights.read_bytes())
    length = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + length])[converted.into[0]]
    data[8 + length + entry["data_offsets"][0]] ^= 1
    # Whoever forges the file forges its digests, too.
    weights.write_bytes(data)
    found = data[8 + length + entry["data_offsets"][0] : 8 + length + entry["data_offsets"][1]]
    for tensor in document["tensors"]:
        if tensor["name"] == converted.into[0]:
            tensor["sha256"] = sha256(found).hexdigest()
    for file in document["files"]:
        if file["name"] == weights.name:
            file["sha256"] = sha256(data).hexdigest()
    (output / "ramrs-manifest.json").write_text(json.dumps(document))
    assert ramrs.verify(output).ok
    report = ramrs.verify(output, source=source)
    assert [problem.tensor for problem in report.problems] == [converted.into[0]]


def test_a_configuration_of_absurd_numbers_is_no_reason_to_crash(tmp_path):
    for number in (2**63, 10**12, 0):
        config = RELEASES["mixtral"].config | {"num_hidden_layers": number, "num_key_value_heads": 2**63}
        model = write_checkpoint(tmp_path / str(number), release_tensors("mixtral"), config)
        with pytest.raises(ramrs.CheckpointError, match=f"counts {number} layers, and the checkpoint has 2"):
            ramrs.quantize(model, tmp_path / f"out {number}", budget="32")

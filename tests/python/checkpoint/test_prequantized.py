"""Sources as they are released: what encoded tensors decode to, newer configurations, and what cannot be read."""

import resource
from functools import partial

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import LLAMA, Tensor, llama_tensors, read_weights, write_checkpoint, write_shards
from fixtures.configs import ROTARY, with_rope_parameters
from fixtures.models import RELEASES, release_tensors, write_release
from fixtures.prequantized import BLOCKS, float_quantized
from fixtures.process import ramrs_process
from fixtures.tiers import slow_but_for
from oracles.decoders import E4M3, FP8, decoded, int4, mxfp4

DOWN = "model.layers.1.mlp.down_proj.weight"
ROWS, COLUMNS = 200, 328
"""Of that matrix: no multiples of any block."""
SMALL = LLAMA | {"hidden_size": ROWS, "intermediate_size": COLUMNS}

EXPERT = "model.layers.1.mlp.experts.2.up_proj"
FUSED = "model.layers.0.mlp.experts.gate_up_proj"

NO_BLOCK = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
ENCODINGS = {
    "blocks": ("F8_E4M3", "weight_scale_inv", "F32", (2, 3), BLOCKS),
    "blocks, scales in bfloat16": ("F8_E4M3", "weight_scale_inv", "BF16", (2, 3), BLOCKS),
    "blocks, powers of two": ("F8_E4M3", "weight_scale_inv", "F8_E8M0", (2, 3), BLOCKS | {"scale_fmt": "ue8m0"}),
    "small blocks": ("F8_E4M3", "weight_scale_inv", "F32", (7, 11), BLOCKS | {"weight_block_size": [32, 32]}),
    "small blocks, powers of two": (
        "F8_E4M3",
        "weight_scale_inv",
        "F8_E8M0",
        (7, 11),
        BLOCKS | {"weight_block_size": [32, 32], "scale_fmt": "ue8m0"},
    ),
    "blocks of E5M2": ("F8_E5M2", "weight_scale_inv", "F32", (2, 3), BLOCKS | {"fmt": "e5m2"}),
    "blocks of compressed-tensors": (
        "F8_E4M3",
        "weight_scale",
        "BF16",
        (2, 3),
        float_quantized({"strategy": "block", "block_structure": [128, 128]}, {"dynamic": True}),
    ),
    "small blocks of compressed-tensors": (
        "F8_E4M3",
        "weight_scale",
        "F32",
        (7, 11),
        float_quantized({"strategy": "block", "block_structure": [32, 32]}, {"dynamic": True}),
    ),
    "rows": ("F8_E4M3", "weight_scale", "BF16", (ROWS, 1), float_quantized({"strategy": "channel"}, {"dynamic": True})),
    "rows, scales in float32": (
        "F8_E4M3",
        "weight_scale",
        "F32",
        (ROWS, 1),
        float_quantized({"strategy": "channel"}, {"dynamic": True}),
    ),
    "matrix": ("F8_E4M3", "weight_scale", "F32", (), float_quantized({"strategy": "tensor"}, {"dynamic": False})),
    "matrix, a list of one": (
        "F8_E4M3",
        "weight_scale",
        "BF16",
        (1,),
        float_quantized({"strategy": "tensor"}, {"dynamic": False}),
    ),
    "matrix, called as blocks are": ("F8_E4M3", "weight_scale_inv", "BF16", (), NO_BLOCK),
    "matrix of E5M2": ("F8_E5M2", "weight_scale", "F32", (1,), NO_BLOCK | {"fmt": "e5m2"}),
}
"""Floats of 8 bits: their type, their scales' name, type and shape, and the quantization block."""


def encoded(encoding, code=None):
    """Make a model with one matrix of floats of 8 bits: all finite ones, and ``code`` in one place."""
    dtype, part, scale_dtype, shape, block = ENCODINGS[encoding]
    random = np.random.default_rng(31)
    codes = random.permutation(np.resize(np.flatnonzero(np.isfinite(FP8[dtype])), ROWS * COLUMNS))
    codes = codes.reshape(ROWS, COLUMNS).astype(np.uint8)
    if code is not None:
        codes[ROWS // 2, COLUMNS // 2] = code
    if scale_dtype == "F8_E8M0":
        scale = Tensor(scale_dtype, random.integers(100, 135, shape, np.uint8))
    else:
        scale = Tensor.of(np.exp(random.uniform(-12, 2, shape)), scale_dtype)
    tensors = llama_tensors(SMALL) | {DOWN: Tensor(dtype, codes), DOWN.removesuffix("weight") + part: scale}
    return tensors, SMALL | {"quantization_config": block}


def assert_decoded(directory, tensors, config, names):
    """Assert that tensors are read as the reference decodes them, bit for bit."""
    expected = decoded(tensors, config)
    for name in names:
        found = ramrs.weights(directory, name)
        values = expected[name.replace("weight_packed", "weight").removesuffix("_blocks")].values
        assert (found.dtype, found.shape) == (np.float32, values.shape), name
        assert found.tobytes() == values.tobytes(), name


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_code_is_decoded_bit_for_bit(encoding, tmp_path):
    tensors, config = encoded(encoding)
    assert len(np.unique(tensors[DOWN].elements)) == np.isfinite(FP8[tensors[DOWN].dtype]).sum()
    assert_decoded(write_checkpoint(tmp_path, tensors, config), tensors, config, [DOWN])


@pytest.mark.parametrize(
    ("encoding", "code"),
    [
        (name, code)
        for name in ("blocks", "matrix of E5M2")
        for code in np.flatnonzero(~np.isfinite(FP8[ENCODINGS[name][0]]))
    ],
)
def test_a_code_that_is_no_number_is_an_error(encoding, code, tmp_path):
    directory = write_checkpoint(tmp_path / "model", *encoded(encoding, code))
    with pytest.raises(ramrs.TensorError, match=DOWN) as caught:
        ramrs.weights(directory, DOWN)
    assert caught.value.tensor == DOWN
    with pytest.raises(ramrs.TensorError, match=DOWN):
        ramrs.quantize(directory, tmp_path / "out", budget=16)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["I32", "I64"])
def test_every_integer_of_4_bits_is_decoded_bit_for_bit(dtype, tmp_path):
    tensors, random = release_tensors("kimi_k2"), np.random.default_rng(32)
    names = [name for name in tensors if name.endswith("weight_packed")]
    for name in names:
        module = name.removesuffix("weight_packed")
        packed, scale = tensors[name], tensors[f"{module}weight_scale"]
        packed.elements = random.integers(-(2**31), 2**31, packed.elements.shape).astype(np.int32)
        scale.elements = Tensor.of(np.exp(random.uniform(-12, 2, scale.elements.shape))).elements
        tensors[f"{module}weight_shape"] = Tensor.of(tensors[f"{module}weight_shape"].elements, dtype)
    config = RELEASES["kimi_k2"].config
    assert_decoded(write_checkpoint(tmp_path, tensors, config), tensors, config, names)


def test_every_float_of_4_bits_is_decoded_bit_for_bit(tmp_path):
    tensors, random = release_tensors("gpt_oss"), np.random.default_rng(33)
    names = [name for name in tensors if name.endswith("_blocks")]
    for name in names:
        blocks, scales = tensors[name], tensors[name.replace("_blocks", "_scales")]
        blocks.elements = random.integers(0, 256, blocks.elements.shape, np.uint8)
        scales.elements = random.integers(0, 250, scales.elements.shape, np.uint8)
    config = RELEASES["gpt_oss"].config
    assert_decoded(write_checkpoint(tmp_path, tensors, config), tensors, config, names)


@pytest.mark.parametrize("name", slow_but_for(["kimi_k2"], RELEASES))
def test_every_weight_of_a_release_is_read(name, tmp_path):
    source = write_release(name, tmp_path)
    tensors, config = read_weights(source), RELEASES[name].config
    weights = decoded(tensors, config)
    stored = [tensor for tensor in tensors if tensor in weights or tensor.endswith(("weight_packed", "_blocks"))]
    assert len(stored) == len(weights)
    assert_decoded(
        source, tensors, config, [tensor for tensor in stored if tensors[tensor].dtype != "U8" or "_blocks" in tensor]
    )


def without(name, tensors, config):
    """Leave a tensor out."""
    del tensors[name]


def with_tensors(extra, tensors, config):
    """Add tensors."""
    tensors |= extra


def without_weight(extra, method, tensors, config):
    """Put other tensors in the place of the weight and its scale, and name another method."""
    for name in (DOWN, f"{DOWN}_scale_inv"):
        del tensors[name]
    tensors |= {DOWN.removesuffix("weight") + part: tensor for part, tensor in extra.items()}
    config["quantization_config"] = method


PACKED = {
    "qweight": Tensor("I32", np.zeros((COLUMNS // 8, ROWS), np.int32)),
    "qzeros": Tensor("I32", np.zeros((1, ROWS // 8), np.int32)),
    "scales": Tensor.of(np.ones((1, ROWS)), "F16"),
}
NVFP4 = {
    "weight": Tensor("U8", np.zeros((ROWS, COLUMNS // 2), np.uint8)),
    "weight_scale": Tensor("F8_E4M3", np.ones((ROWS, COLUMNS // 16), np.uint8)),
    "weight_scale_2": Tensor.of(np.array(1.0), "F32"),
}
NF4 = {
    "weight": Tensor("U8", np.zeros((ROWS * COLUMNS // 2, 1), np.uint8)),
    "weight.absmax": Tensor.of(np.ones(ROWS * COLUMNS // 64), "F32"),
}
ELSEWHERE = "model.layers.0.mlp.down_proj.weight_scale_inv"
ZERO_POINT = Tensor("I32", np.zeros((8, 4), np.int32))

FILE = "model.safetensors"
UNREADABLE = {
    "blocks without scales": ("fp8", partial(without, f"{DOWN}_scale_inv"), [DOWN, FILE]),
    "scales of another shape": (
        "fp8",
        partial(with_tensors, {f"{DOWN}_scale_inv": Tensor.of(np.ones((3, 2)), "F32")}),
        [f"{DOWN}_scale_inv", FILE],
    ),
    "scales of no weight": ("fp8", partial(without, DOWN), [f"{DOWN}_scale_inv", FILE]),
    "scales of a weight that is not encoded": (
        "fp8",
        partial(with_tensors, {ELSEWHERE: Tensor.of(np.ones((2, 3)), "F32")}),
        [ELSEWHERE, FILE],
    ),
    "scales that are no numbers": (
        "fp8",
        partial(with_tensors, {f"{DOWN}_scale_inv": Tensor.of(np.full((2, 3), np.nan), "F32")}),
        [DOWN, FILE],
    ),
    "scales that are too large": (
        "fp8",
        partial(with_tensors, {f"{DOWN}_scale_inv": Tensor.of(np.full((2, 3), 1e38), "F32")}),
        [DOWN, FILE],
    ),
    "integers without scales": (
        "kimi_k2",
        partial(without, f"{EXPERT}.weight_scale"),
        [f"{EXPERT}.weight_packed", FILE],
    ),
    "scales of no integers": ("kimi_k2", partial(without, f"{EXPERT}.weight_packed"), [f"{EXPERT}.weight_scale", FILE]),
    "integers of another shape": (
        "kimi_k2",
        partial(with_tensors, {f"{EXPERT}.weight_shape": Tensor.of([64, 256], "I64")}),
        [EXPERT, FILE],
    ),
    "integers with zero points": (
        "kimi_k2",
        partial(with_tensors, {f"{EXPERT}.weight_zero_point": ZERO_POINT}),
        [f"{EXPERT}.weight_zero_point", FILE],
    ),
    "blocks of 4 bits without scales": ("gpt_oss", partial(without, f"{FUSED}_scales"), [f"{FUSED}_blocks", FILE]),
    "scales without blocks of 4 bits": ("gpt_oss", partial(without, f"{FUSED}_blocks"), [f"{FUSED}_scales", FILE]),
    "NVFP4": (
        "fp8",
        partial(without_weight, NVFP4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
        [f"{DOWN}_scale_2", FILE],
    ),
    "GPTQ": (
        "fp8",
        partial(without_weight, PACKED, {"quant_method": "gptq", "bits": 4, "group_size": 128}),
        [DOWN.replace("weight", "qweight"), FILE],
    ),
    "AWQ": (
        "fp8",
        partial(without_weight, PACKED, {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}),
        [DOWN.replace("weight", "qweight"), FILE],
    ),
    "bitsandbytes": (
        "fp8",
        partial(without_weight, NF4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        [f"bitsandbytes, NF4: `{DOWN}.absmax`", FILE],
    ),
}
"""What is spoilt, how, and what must be named."""


@pytest.mark.parametrize("fault", slow_but_for(["NVFP4"], UNREADABLE))
def test_an_encoding_that_cannot_be_read_is_refused_by_name(fault, tmp_path, ramrs_cli):
    source, spoil, expected = UNREADABLE[fault]
    tensors, config = encoded("blocks") if source == "fp8" else (release_tensors(source), dict(RELEASES[source].config))
    spoil(tensors, config)
    model = write_checkpoint(tmp_path / "model", tensors, config)
    done = ramrs_cli("quantize", model, "--budget", "16", "-o", "out")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    for part in [*expected, "hint: "]:
        assert part in done.stderr
    assert not list(ramrs_cli.directory.iterdir())


def test_sixty_files_are_read_with_few_of_them_open(tmp_path):
    tensors, config = release_tensors("deepseek_v3_fp8"), RELEASES["deepseek_v3_fp8"].config
    few = write_shards(tmp_path / "few", tensors, config, 2)
    many = write_shards(tmp_path / "many", tensors, config, 60)
    for source, limit in ((few, 1024), (many, 40)):
        done = ramrs_process(
            *("quantize", source, "--budget", "4.5", "-o", tmp_path / f"{source.name}-out", "--threads", "2"),
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (limit, limit)),
        )
        assert done.returncode == 0, done.stderr
    one, other = (read_weights(tmp_path / f"{source.name}-out") for source in (few, many))
    assert one.keys() == other.keys()
    assert all(one[name].elements.tobytes() == other[name].elements.tobytes() for name in one)


def test_the_decoders_agree_with_mlx():
    mx = pytest.importorskip("mlx.core", reason="needs ramrs[eval]")
    mx.set_default_device(mx.cpu)
    random = np.random.default_rng(34)
    np.testing.assert_array_equal(np.array(mx.from_fp8(mx.arange(256).astype(mx.uint8), mx.float32)), E4M3)
    packed, scale = random.integers(0, 2**32, (8, 16), np.uint32), Tensor.of(np.exp(random.uniform(-12, 2, (8, 4))))
    theirs = mx.dequantize(*map(mx.array, (packed, scale.values, -8 * scale.values)), group_size=32, bits=4)
    np.testing.assert_array_equal(
        int4(Tensor("U32", packed), scale), np.array(theirs.astype(mx.bfloat16).astype(mx.float32))
    )
    scales = random.integers(0, 250, (2, 8, 4), np.uint8)
    blocks = random.integers(0, 256, (2, 8, 4, 16), np.uint8)
    words = mx.array(blocks.reshape(2, 8, 64).view(np.uint32))
    theirs = mx.dequantize(words, mx.array(scales), group_size=32, bits=4, mode="mxfp4", dtype=mx.float32)
    np.testing.assert_array_equal(mxfp4(Tensor("U8", blocks), Tensor("U8", scales)), np.array(theirs))


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_next", "llama4", "gpt_neox", "glm4_moe", "gpt_oss", "kimi_k2"])
def test_rotary_positions_in_one_object_are_written_as_the_older_keys(name, tmp_path):
    mx = pytest.importorskip("mlx.core", reason="needs ramrs[eval]")
    utils = pytest.importorskip("mlx_lm.utils", reason="needs ramrs[eval]")
    mx.set_default_device(mx.cpu)
    tensors, tokens = release_tensors(name), np.random.default_rng(35).integers(0, 128, (1, 24))
    older = RELEASES[name].config
    logits = []
    for form, config in (("older", older), ("newer", with_rope_parameters(older))):
        source, output = write_checkpoint(tmp_path / form, tensors, config), tmp_path / f"{form} written"
        ramrs.quantize(source, output, budget=32, sensitivity="weights")
        model, written = utils.load_model(output)
        model.set_dtype(mx.float32)
        logits.append(np.array(model(mx.array(tokens))))
    before, after = (each.get("text_config", each) for each in (older, written))
    for key in ROTARY.keys() & before.keys():
        assert after[key] == before[key]
    np.testing.assert_array_equal(*logits)

"""The contract: a runtime's strict loader takes what is written, and computes the same, or nothing is written."""

import json
import re

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import Tensor, read_weights, write_checkpoint, write_shards
from fixtures.models import RELEASES, release_tensors, write_release, write_variant
from fixtures.tiers import slow_but_for

OPTIONS = {"budget": "32", "sensitivity": "weights", "effort": "fast"}

KINDS = ["llama_fp8", "gpt2", "mixtral", "qwen3_5_moe"]
"""Releases that ``make check`` tries."""


def refused(model, output):
    """Return the error of a checkpoint that is refused, or nothing if it would be written."""
    try:
        ramrs.quantize(model, output, dry_run=True, **OPTIONS)
    except ramrs.CheckpointError as fault:
        assert fault.hint, fault
        return fault
    return None


def is_of_the_language_model(name, config):
    """Tell whether a tensor is one that the runtimes read, under its own name."""
    layers = (config.get("text_config") or config).get("num_hidden_layers", 0)
    aside = r"^mtp\.|visual|vision|projector|rotary_emb\.inv_freq$|\.attn\.bias$|\.attention\.(bias|masked_bias)$"
    return re.search(aside, name) is None and f"model.layers.{layers}." not in name


def one_of_each_kind(names):
    """Leave one name of those that differ in numbers only."""
    return list({re.sub(r"\d+", "N", name): name for name in names}.values())


@pytest.fixture(scope="module", params=slow_but_for(KINDS, RELEASES))
def released(request):
    """A release: name, tensors, configuration, and the tensors to spoil."""
    tensors, config = release_tensors(request.param), RELEASES[request.param].config
    names = one_of_each_kind(name for name in tensors if is_of_the_language_model(name, config))
    return request.param, tensors, config, names


def test_a_release_is_taken_as_it_is(released, tmp_path):
    _, tensors, config, _ = released
    assert refused(write_checkpoint(tmp_path / "model", tensors, config), tmp_path / "out") is None


def test_a_tensor_that_is_missing_is_named(released, tmp_path):
    _, tensors, config, names = released
    for at, name in enumerate(names):
        if re.search(r"weight_shape$|input_scale$", name):  # which need not be there
            continue
        rest = {other: tensor for other, tensor in tensors.items() if other != name}
        fault = refused(write_checkpoint(tmp_path / f"{at}", rest, config), tmp_path / "out")
        assert fault is not None, name
        layer = re.match(r".*?layers\.\d+|h\.\d+|", name)[0]
        assert layer in str(fault), (name, str(fault))


def test_a_tensor_under_another_name_is_refused(released, tmp_path):
    _, tensors, config, names = released
    for at, name in enumerate(names):
        if re.search(r"weight_shape$|input_scale$", name):
            continue
        module, _, part = name.rpartition(".")
        renamed = {f"{module}_x.{part}" if other == name else other: tensor for other, tensor in tensors.items()}
        assert refused(write_checkpoint(tmp_path / f"{at}", renamed, config), tmp_path / "out") is not None, name


def test_a_tensor_of_another_shape_is_refused(released, tmp_path):
    _, tensors, config, names = released
    for at, name in enumerate(names):
        elements = tensors[name].elements
        if elements.size < 2 or re.search(r"weight_shape$|input_scale$", name):
            continue
        halved = Tensor(
            tensors[name].dtype, elements[: len(elements) // 2] if len(elements) > 1 else elements[..., :-1]
        )
        model = write_checkpoint(tmp_path / f"{at}", tensors | {name: halved}, config)
        assert refused(model, tmp_path / "out") is not None, name


def test_a_layer_more_or_less_is_refused_with_both_numbers(tmp_path):
    tensors, config = release_tensors("llama_fp8"), RELEASES["llama_fp8"].config
    layers = config["num_hidden_layers"]
    for stated in (layers - 1, layers + 2):
        model = write_checkpoint(tmp_path / f"{stated}", tensors, config | {"num_hidden_layers": stated})
        fault = refused(model, tmp_path / "out")
        assert f"config.json counts {stated} layers, and the checkpoint has {layers}" in str(fault)
        assert "num_hidden_layers" in fault.hint


def test_matrices_that_were_not_gathered_are_named(tmp_path):
    tensors, config = release_tensors("gpt2"), RELEASES["gpt2"].config
    tensors["h.1.mlp.c_fc.weight"] = Tensor("BF16", np.zeros(0, np.uint16))
    fault = refused(write_checkpoint(tmp_path / "model", tensors, config), tmp_path / "out")
    assert fault.tensor == "h.1.mlp.c_fc.weight"
    assert "is empty" in str(fault)
    assert "gathered" in fault.hint


def test_an_output_as_a_source_is_held_to_the_same(tmp_path):
    ramrs.quantize(write_release("qwen3_5", tmp_path / "source"), tmp_path / "once", **OPTIONS)
    config = json.loads((tmp_path / "once" / "config.json").read_text())
    weights = read_weights(tmp_path / "once")
    assert refused(tmp_path / "once", tmp_path / "out") is None
    for name in one_of_each_kind(weights):
        rest = {other: tensor for other, tensor in weights.items() if other != name}
        model = tmp_path / name
        write_checkpoint(model, rest, config)
        mark_for_mlx(model / "model.safetensors")
        fault = refused(model, tmp_path / "out")
        assert fault is not None, name
        assert name in str(fault)


def mark_for_mlx(path):
    """Say in a file's header that it is laid out for MLX."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length]) | {"__metadata__": {"format": "mlx"}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def written(directory, tensors, config, options=OPTIONS):
    """Quantize a checkpoint; return its weights, its configuration and the warnings."""
    model = write_checkpoint(directory / "model", tensors, config)
    report = ramrs.quantize(model, directory / "out", **options)
    assert ramrs.verify(directory / "out", source=model).ok
    return read_weights(directory / "out"), config_of(directory), report


def config_of(directory):
    """Read the configuration of the output in a directory."""
    return json.loads((directory / "out" / "config.json").read_text())


def assert_same(one, other):
    """Check that two outputs hold the same model."""
    assert one[1] == other[1]
    assert one[0].keys() == other[0].keys()
    for name, tensor in one[0].items():
        assert tensor.dtype == other[0][name].dtype
        assert tensor.elements.tobytes() == other[0][name].elements.tobytes(), name


def prefixed(prefix):
    """Return a function that puts a prefix in front of a name."""
    return lambda name: prefix + name


WRAPPED = {
    "torch.compile": prefixed("_orig_mod."),
    "data parallel": prefixed("module."),
    "PEFT": prefixed("base_model.model."),
    "several at once": prefixed("module._orig_mod.base_model.model."),
    "compiled layers": lambda name: re.sub(r"(layers\.\d+)\.", r"\1._orig_mod.", name),
    "FSDP": lambda name: "_fsdp_wrapped_module." + re.sub(r"(layers\.\d+)\.", r"\1._fsdp_wrapped_module.", name),
    "within a larger model": prefixed("language_model."),
    "within a newer larger model": lambda name: re.sub(r"^model\.", "model.language_model.", name),
    "the body alone": lambda name: name.removeprefix("model."),
    "Lightning": prefixed("model."),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("name", slow_but_for(["llama_fp8"], ["llama_fp8", "mixtral", "glm4_moe", "deepseek_v3"]))
def test_wrappers_of_names_are_taken_off_and_said_once(wrapper, name, tmp_path):
    tensors, config = release_tensors(name), RELEASES[name].config
    wrapped = {WRAPPED[wrapper](other): tensor for other, tensor in tensors.items()}
    expected, found = written(tmp_path / "clean", tensors, config), written(tmp_path / "wrapped", wrapped, config)
    assert_same(expected, found)
    said = [warning for warning in found[2].plan.warnings if "under other names" in warning]
    assert len(said) == 1
    ledger = found[2].manifest.ledger
    assert {line.tensor for line in ledger} == wrapped.keys()
    assert all(line.became != "kept" for line in ledger if line.tensor not in expected[0])


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_norms_are_stored_as_they_are_used_under_any_spelling(name, tmp_path):
    tensors, config = release_tensors(name), RELEASES[name].config
    for at, (pattern, other) in enumerate(
        [("model.language_model.", "language_model.model."), ("model.language_model.", "model.")]
    ):
        older = {re.sub(f"^{re.escape(pattern)}", other, tensor): value for tensor, value in tensors.items()}
        if other == "language_model.model.":
            older = {f"language_model.{n}" if n.startswith("lm_head") else n: value for n, value in older.items()}
        expected, found = written(tmp_path / f"{at}", tensors, config), written(tmp_path / f"{at}x", older, config)
        assert_same(expected, found)


def test_names_that_would_become_the_same_are_left_alone(tmp_path):
    tensors, config = release_tensors("llama_fp8"), RELEASES["llama_fp8"].config
    twice = tensors | {f"module.{name}": tensor for name, tensor in tensors.items()}
    fault = refused(write_checkpoint(tmp_path / "model", twice, config), tmp_path / "out")
    assert fault.tensor.startswith("module.")
    assert "has no place" in str(fault)


def untied(name="llama_fp8"):
    """Return the tensors and the configuration of a model with a head of its own."""
    return release_tensors(name), RELEASES[name].config


def test_a_missing_head_is_the_embedding_unless_the_configuration_says_no(tmp_path):
    tensors, config = untied()
    headless = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    fault = refused(write_checkpoint(tmp_path / "model", headless, config | {"tie_word_embeddings": False}), tmp_path)
    assert fault.tensor == "lm_head.weight"
    assert "tie_word_embeddings" in fault.hint
    silent = {key: value for key, value in config.items() if key != "tie_word_embeddings"}
    weights, after, report = written(tmp_path / "silent", headless, silent)
    assert after["tie_word_embeddings"] is True
    assert "lm_head.weight" not in weights
    assert any("tie_word_embeddings = true" in warning for warning in report.plan.warnings)


def test_a_head_that_differs_from_a_tied_embedding_is_kept_and_said(tmp_path):
    tensors, config = untied()
    weights, after, report = written(tmp_path / "differs", tensors, config | {"tie_word_embeddings": True})
    assert after["tie_word_embeddings"] is False
    assert "lm_head.weight" in weights
    assert any("differs from the embedding" in warning for warning in report.plan.warnings)
    copied = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    weights, after, report = written(tmp_path / "same", copied, config | {"tie_word_embeddings": True})
    assert after["tie_word_embeddings"] is True
    assert "lm_head.weight" not in weights
    (line,) = (line for line in report.manifest.ledger if line.tensor == "lm_head.weight")
    assert (line.became, line.why) == ("tied", "the same as model.embed_tokens.weight")


def test_a_head_that_no_runtime_reads_is_refused(tmp_path):
    tensors, config = release_tensors("gpt2"), RELEASES["gpt2"].config
    head = Tensor.of(np.ones(tensors["wte.weight"].elements.shape), "F32")
    fault = refused(write_checkpoint(tmp_path / "model", tensors | {"lm_head.weight": head}, config), tmp_path / "out")
    assert fault.tensor == "lm_head.weight"


EXTRA = {
    "a value head": ("v_head.summary.weight", "value head"),
    "a wrapped value head": ("module.v_head.summary.bias", "value head"),
    "the state of an optimizer": ("optimizer.state.0.exp_avg", "state of training"),
    "a buffer": ("model.layers.0.self_attn.rotary_emb.cos_cached", "buffer"),
    "frequencies": ("model.layers.1.self_attn.rotary_emb.inv_freq", "buffer|computes it itself"),
    "positions": ("model.embeddings.position_ids", "buffer"),
}


@pytest.mark.parametrize("extra", EXTRA)
def test_what_no_language_model_needs_is_left_out_with_a_reason(extra, tmp_path):
    name, why = EXTRA[extra]
    tensors, config = untied()
    more = tensors | {name: Tensor.of(np.ones((4, 32)), "BF16")}
    expected, found = written(tmp_path / "clean", tensors, config), written(tmp_path / "more", more, config)
    assert_same(expected, found)
    (line,) = (line for line in found[2].manifest.ledger if line.tensor == name)
    assert line.became == "dropped"
    assert re.search(why, line.why)


OTHER_MODELS = {
    "an adapter within": ({"model.layers.0.self_attn.q_proj.lora_A.weight": (8, 128)}, "not merged", "merge"),
    "a base layer": ({"model.layers.0.self_attn.q_proj.base_layer.weight": (128, 128)}, "not merged", "merge"),
    "a classifier": ({"score.weight": (2, 128)}, "classifier or reward model", "predict tokens"),
    "a bias too many": ({"model.layers.0.mlp.up_proj.bias": (256,)}, "has no place", "config.json"),
}


@pytest.mark.parametrize("other", OTHER_MODELS)
def test_another_model_is_refused_and_named(other, tmp_path):
    extra, message, hint = OTHER_MODELS[other]
    tensors, config = untied()
    tensors |= {name: Tensor.of(np.ones(shape), "BF16") for name, shape in extra.items()}
    fault = refused(write_checkpoint(tmp_path / "model", tensors, config), tmp_path / "out")
    assert fault.tensor in extra
    assert message in str(fault)
    assert hint in fault.hint


def test_a_folder_with_an_adapter_only_is_named(tmp_path):
    adapter = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": Tensor.of(np.ones((8, 16)), "F32")}
    model = write_checkpoint(tmp_path / "model", adapter)
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    (model / "config.json").rename(model / "adapter_config.json")
    fault = refused(model, tmp_path / "out")
    assert "adapter" in str(fault)
    assert "merge" in fault.hint


def test_rows_beyond_the_vocabulary_are_counted_and_said(tmp_path):
    tensors, config = untied()
    rows = config["vocab_size"]
    weights, after, report = written(tmp_path / "more", tensors, config | {"vocab_size": rows - 3})
    assert after["vocab_size"] == rows == len(weights["model.embed_tokens.weight"].elements)
    assert any(f"vocab_size is written as {rows}" in warning for warning in report.plan.warnings)
    fault = refused(write_checkpoint(tmp_path / "less", tensors, config | {"vocab_size": rows + 3}), tmp_path / "out")
    assert f"[{rows}, 128], and config.json makes it [{rows + 3}, 128]" in str(fault)


CODES = {
    "bitsandbytes, 8-bit integers": ({"SCB": ("F32", (128,)), "weight": ("I8", (128, 128))}, "SCB"),
    "bitsandbytes, NF4": ({"weight.absmax": ("F32", (256,)), "weight": ("U8", (8192, 1))}, "absmax"),
    "MLX": ({"weight": ("U32", (128, 16)), "scales": ("BF16", (128, 2)), "biases": ("BF16", (128, 2))}, "weight"),
    "int-quantized": ({"weight": ("I8", (128, 128)), "weight_scale": ("BF16", (128, 1))}, "weight"),
    "GPTQ": ({"qweight": ("I32", (16, 128)), "qzeros": ("I32", (1, 16)), "g_idx": ("I32", (128,))}, "g_idx"),
}


@pytest.mark.parametrize("codes", CODES)
def test_codes_without_a_configuration_are_named_by_their_tensors(codes, tmp_path):
    parts, tensor = CODES[codes]
    tensors, config = untied("qwen3_moe")
    module = "model.layers.0.self_attn.q_proj"
    del tensors[f"{module}.weight"]
    widths = {"F32": np.float32, "I8": np.int8, "U8": np.uint8, "U32": np.uint32, "I32": np.int32, "BF16": np.uint16}
    for part, (dtype, shape) in parts.items():
        tensors[f"{module}.{part}"] = Tensor(dtype, np.zeros(shape, widths[dtype]))
    fault = refused(write_checkpoint(tmp_path / "model", tensors, config), tmp_path / "out")
    assert fault.slug == "already-quantized"
    assert codes in str(fault)
    assert f"{module}" in str(fault)
    assert tensor in str(fault)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "fp8"])
def test_a_configuration_of_codes_that_are_not_there_is_a_warning(method, tmp_path):
    tensors, config = untied("mixtral")
    stale = config | {"quantization_config": {"quant_method": method, "load_in_4bit": True}}
    expected, found = written(tmp_path / "clean", tensors, config), written(tmp_path / "stale", tensors, stale)
    assert_same(expected, found)
    assert any(f"({method})" in warning for warning in found[2].plan.warnings)


def test_an_index_of_other_files_is_ignored_beside_a_whole_one(tmp_path):
    tensors, config = untied()
    model = write_checkpoint(tmp_path / "model", tensors, config)
    stale = {name: f"model-{1 + at % 3:05}-of-00003.safetensors" for at, name in enumerate(tensors)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": stale}))
    report = ramrs.quantize(model, tmp_path / "out", **OPTIONS)
    assert any("index.json is ignored" in warning for warning in report.plan.warnings)
    assert_same(written(tmp_path / "clean", tensors, config), (read_weights(tmp_path / "out"), config_of(tmp_path)))


def test_an_index_that_is_wrong_about_places_is_corrected(tmp_path):
    tensors, config = untied()
    model = write_shards(tmp_path / "model", tensors, config)
    index = model / "model.safetensors.index.json"
    listed = json.loads(index.read_text())["weight_map"]
    last, other, *_ = (name for name, file in listed.items() if file.startswith("model-00002"))
    listed[last] = "model-00001-of-00002.safetensors"
    del listed[other]
    index.write_text(json.dumps({"weight_map": listed}))
    report = ramrs.quantize(model, tmp_path / "out", **OPTIONS)
    assert any("is wrong about 2 tensors" in warning for warning in report.plan.warnings)
    assert ramrs.verify(tmp_path / "out", source=model).ok


def test_shards_of_another_set_are_ignored(tmp_path):
    tensors, config = untied()
    model = write_shards(tmp_path / "model", tensors, config)
    (model / "model.safetensors.index.json").unlink()
    (model / "model-00001-of-00003.safetensors").write_bytes((model / "model-00001-of-00002.safetensors").read_bytes())
    report = ramrs.quantize(model, tmp_path / "out", **OPTIONS)
    assert any("1 shards of other sets are ignored" in warning for warning in report.plan.warnings)


@pytest.mark.parametrize("written_as", ["mlx", "compressed-tensors"])
@pytest.mark.parametrize("name", ["mixtral"])
def test_stacked_experts_of_newer_releases_are_as_those_of_older_ones(name, written_as, tmp_path):
    plain, config = untied(name)
    newer = {n: t for n, t in plain.items() if "block_sparse_moe" not in n}
    for layer in range(config["num_hidden_layers"]):
        old, new = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
        experts = range(config["num_local_experts"])
        w1, w2, w3 = (np.stack([plain[f"{old}.experts.{e}.w{w}.weight"].elements for e in experts]) for w in (1, 2, 3))
        dtype = plain[f"{old}.gate.weight"].dtype
        newer[f"{new}.gate.weight"] = plain[f"{old}.gate.weight"]
        newer[f"{new}.experts.gate_up_proj"] = Tensor(dtype, np.concatenate([w1, w3], 1))
        newer[f"{new}.experts.down_proj"] = Tensor(dtype, w2)
    options = OPTIONS | {"format": written_as}
    assert_same(written(tmp_path / "old", plain, config, options), written(tmp_path / "new", newer, config, options))


UNLIKE_MLX = {"qwen2_moe": {"mlp_only_layers": [1]}, "gpt2": {"n_inner": 96}, "gpt_neox": {"intermediate_size": 96}}


@pytest.mark.parametrize("name", UNLIKE_MLX)
def test_a_configuration_that_mlx_lm_has_no_model_of_is_refused(name, tmp_path):
    tensors, config = untied(name)
    fault = refused(write_checkpoint(tmp_path / "model", tensors, config | UNLIKE_MLX[name]), tmp_path / "out")
    assert fault is not None


def test_dense_layers_among_experts_are_refused_by_name(tmp_path):
    with pytest.raises(ramrs.CheckpointError, match="experts in all of its layers"):
        ramrs.quantize(write_variant("qwen2_moe_dense", tmp_path / "model"), tmp_path / "out", **OPTIONS)


def test_dead_weights_are_named(tmp_path):
    tensors, config = untied()
    shape = tensors["model.layers.0.mlp.up_proj.weight"].elements.shape
    dead = {"model.layers.0.mlp.up_proj": np.zeros(shape), "model.layers.1.mlp.up_proj": np.full(shape, 0.5)}
    partly = np.random.default_rng(0).standard_normal(shape)
    partly[3:7] = 0
    dead["model.layers.0.mlp.gate_proj"] = partly
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    plain = {n: t for n, t in tensors.items() if not re.search(r"_scale(_inv)?$|input_scale$", n)}
    plain = {n: t if t.dtype != "F8_E4M3" else Tensor.of(np.ones(t.elements.shape), "BF16") for n, t in plain.items()}
    rng = np.random.default_rng(1)
    plain = {n: Tensor.of(rng.standard_normal(t.elements.shape), "BF16") for n, t in plain.items()}
    plain |= {f"{module}.weight": Tensor.of(values, "BF16") for module, values in dead.items()}
    warnings = ramrs.analyze(write_checkpoint(tmp_path / "model", plain, config), sensitivity="weights").warnings
    assert "1 matrices are all zero: `model.layers.0.mlp.up_proj`" in warnings
    assert "1 matrices are constant: `model.layers.1.mlp.up_proj`" in warnings
    assert f"1 matrices are zero in some rows: `model.layers.0.mlp.gate_proj (4 of {shape[0]} rows)`" in warnings

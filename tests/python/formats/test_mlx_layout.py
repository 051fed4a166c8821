"""Models that only mlx-lm knows: it lays them out, the output is one that it loads, and nothing is left behind."""

import json
import shutil
import sys
from functools import cached_property

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import Tensor, llama_tensors, read_weights, write_checkpoint, write_shards
from fixtures.draw import drawn, stored_as
from fixtures.newer_configs import DEEPSEEK_V3
from fixtures.newer_shapes import deepseek_v3_shapes
from fixtures.process import sees_everything
from fixtures.shapes import BEFORE, attention, decoder, llama_shapes, norms

mx = pytest.importorskip("mlx.core", reason="needs ramrs[mlx]")
mlx_lm = pytest.importorskip("mlx_lm", reason="needs ramrs[mlx]")
from mlx_lm.utils import load_model  # noqa: E402
from oracles.mlx_outputs import decoded_model, decoded_parameters, logits, parameters, quantized_modules, raw  # noqa: E402
from ramrs.formats import mlx_lm as mlx_layout  # noqa: E402

pytestmark = pytest.mark.slow

TINY = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
}


def granitemoe_shapes(config):
    """Experts in one tensor for gate and up, and one for down; the router is a layer of a module of its own."""
    count, hidden, width = config["num_local_experts"], config["hidden_size"], config["intermediate_size"]
    experts = {
        "block_sparse_moe.input_linear.weight": (count, 2 * width, hidden),
        "block_sparse_moe.output_linear.weight": (count, hidden, width),
        "block_sparse_moe.router.layer.weight": (count, hidden),
    }
    return decoder(config, lambda _: attention(config) | experts | norms(config, *BEFORE))


def lfm2_shapes(config):
    """A layer of short convolutions, and one of attention."""
    hidden, width = config["hidden_size"], config["block_ff_dim"]
    block = norms(config, "operator_norm", "ffn_norm")
    block |= {"feed_forward.w1.weight": (width, hidden), "feed_forward.w3.weight": (width, hidden)}
    block |= {"feed_forward.w2.weight": (hidden, width)}
    convolution = {"conv.conv.weight": (hidden, 1, 3)}
    convolution |= {"conv.in_proj.weight": (3 * hidden, hidden), "conv.out_proj.weight": (hidden, hidden)}
    full = attention(config, output="out_proj") | {f"self_attn.{part}_layernorm.weight": (32,) for part in "qk"}
    return decoder(config, lambda index: block | (full if index else convolution), "embedding_norm")


MODELS = {
    # Tied, and mlx-lm multiplies by the embedding as it is.
    "seed_oss": (
        TINY | {"attention_bias": True, "head_dim": 32, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
        lambda config: llama_shapes(config | {"attention_bias": False}, "qkv"),
        {"model.embed_tokens.weight"},
    ),
    "granitemoe": (
        TINY
        | {
            "attention_bias": False,
            "attention_multiplier": 0.125,
            "embedding_multiplier": 3.0,
            "logits_scaling": 4.0,
            "num_experts_per_tok": 2,
            "num_local_experts": 4,
            "residual_multiplier": 0.6,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
        },
        granitemoe_shapes,
        set(),
    ),
    "glm4_moe_lite": (
        {key: value for key, value in DEEPSEEK_V3.items() if key not in ("architectures", "auto_map", "rope_scaling")}
        | {"n_group": 1, "num_hidden_layers": 2},
        deepseek_v3_shapes,
        {"model.layers.1.mlp.gate.weight"},
    ),
    "lfm2": (
        TINY
        | {
            "block_auto_adjust_ff_dim": False,
            "block_dim": 128,
            "block_ff_dim": 192,
            "block_ffn_dim_multiplier": 1.0,
            "block_multiple_of": 32,
            "conv_L_cache": 3,
            "conv_bias": False,
            "layer_types": ["conv", "full_attention"],
            "norm_eps": 1e-6,
        },
        lfm2_shapes,
        set(),
    ),
}
"""Configuration, shapes, and which matrices must not be quantized although ramrs would."""

NO_LAYOUT = "model_type `granitemoe` has no MLX layout in this version of ramrs"

OTHERS = {
    "README.md": "---\nlicense: mit\n---\n",
    "tokenizer.json": "{}",
    "assets/merges.txt": "a b",
    "pytorch_model.bin": "weights",
    "modeling.py": "raise SystemExit('never run')",
}


def write_model(name, directory):
    """Write a release of a model."""
    config, shapes, _ = MODELS[name]
    config, random = config | {"model_type": name}, np.random.default_rng(7)
    tensors = {
        tensor: Tensor.of(drawn(random, tensor, shape, 1.0), stored_as(tensor, "BF16"))
        for tensor, shape in shapes(config).items()
    }
    write_shards(directory, tensors, config)
    for file, text in OTHERS.items():
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_text(text)
    return directory


class Model:
    """A model on disk, and what becomes of it."""

    def __init__(self, name, directory):
        self.name, self.directory = name, directory
        self.source = write_model(name, directory / "source")
        self.spared = MODELS[name][2]

    def output(self, budget):
        """What ramrs writes within a budget."""
        output = self.directory / f"at {budget}"
        if not output.exists():
            ramrs.quantize(self.source, output, budget=budget)
        return output

    @cached_property
    def reference(self):
        """What mlx-lm makes of the release."""
        return load_model(self.source)[0]


@pytest.fixture(scope="module", params=MODELS)
def known(request, tmp_path_factory):
    return Model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def source(tmp_path):
    """One of the models, to be spoilt."""
    return write_model("granitemoe", tmp_path / "source")


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    mx.set_default_device(mx.cpu)


def test_ramrs_alone_has_no_layout_for_it(known):
    assert f"`{known.name}` has no MLX layout" in ramrs.inspect(known.source).unsupported
    with pytest.raises(ramrs.CheckpointError, match="has no MLX layout"):
        ramrs.analyze(known.source)


@pytest.mark.parametrize("budget", [5, 8])
def test_an_output_computes_with_what_it_decodes_to(budget, known):
    output = known.output(budget)
    expected, found = logits(decoded_model(output)), logits(load_model(output)[0])
    assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)


def test_quantized_weights_are_near_those_of_the_release_and_the_others_are_the_same(known):
    model, _ = load_model(known.output(5))
    modules, ours, theirs = quantized_modules(model), decoded_parameters(model), parameters(known.reference)
    assert sorted(ours) == sorted(theirs)
    assert len(modules) > 8
    for name, expected in theirs.items():
        module = modules.get(name.removesuffix(".weight"))
        if module is None:
            assert raw(ours[name]) == raw(expected), name
        else:
            expected = np.array(expected.astype(mx.float32))
            error = np.linalg.norm(np.array(ours[name]) - expected) / np.linalg.norm(expected)
            assert error <= 2 / (2**module.bits - 1) + 2**-7, name


def test_all_matrices_are_quantized_but_those_that_mlx_lm_takes_for_something_else(known):
    quantized = {f"{path}.weight" for path in quantized_modules(load_model(known.output(5))[0])}
    modules = dict(known.reference.named_modules())
    for name, array in parameters(known.reference).items():
        module = modules.get(name.removesuffix(".weight"))
        could = module is not None and hasattr(module, "to_quantized") and name.endswith(".weight")
        assert (name in quantized) == (could and array.ndim > 1 and name not in known.spared), name
    assert known.spared.isdisjoint(quantized)


def test_what_is_kept_is_what_mlx_lm_loads_bit_for_bit(known):
    found, expected = parameters(load_model(known.output(32))[0]), parameters(known.reference)
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert raw(found[name]) == raw(array), name


def test_an_output_is_complete_and_alone(known):
    output = known.output(5)
    report = ramrs.verify(output)
    assert report.ok, report.problems
    assert not report.unlisted
    assert not list(known.directory.glob("*.layout"))
    for file, text in OTHERS.items():
        there = "README.source.md" if file == "README.md" else file
        assert file == "pytorch_model.bin" or (output / there).read_text() == text
    manifest = ramrs.Manifest.read(output / "ramrs-manifest.json")
    assert [file.name for file in manifest.left_out] == ["pytorch_model.bin"]
    assert sees_everything(known.source) == sees_everything(write_model(known.name, known.directory / "again"))


@pytest.mark.parametrize("options", [{"bits": 4}, {"budget": 6, "tensor": [".=4g64"]}, {"budget": 6, "max_bits": 6}])
def test_no_option_quantizes_what_cannot_be(options, known, tmp_path):
    ramrs.quantize(known.source, tmp_path / "out", **options)
    model, _ = load_model(tmp_path / "out")
    assert known.spared.isdisjoint(f"{path}.weight" for path in quantized_modules(model))
    assert np.isfinite(logits(model)).all()


def test_rules_go_by_the_names_of_mlx(source, tmp_path):
    rule, module = "switch_mlp.gate_proj", "model.layers.0.block_sparse_moe.switch_mlp.gate_proj"
    ramrs.quantize(source, tmp_path / "out", budget=8, keep=rule)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization"][module] is False


def test_a_dry_run_plans_the_same_and_leaves_nothing(known, tmp_path):
    report = ramrs.quantize(known.source, tmp_path / "new" / "out", budget=5, dry_run=True)
    assert not report.written
    assert not list(tmp_path.iterdir())
    written = ramrs.Manifest.read(known.output(5) / "ramrs-manifest.json")
    assert report.plan.source == written.source
    assert report.plan.totals.effective_bpw == written.totals.effective_bpw


def test_the_layout_is_written_shard_by_shard(source, tmp_path, monkeypatch):
    ramrs.quantize(source, tmp_path / "one", budget=5)
    monkeypatch.setattr(mlx_layout, "SHARD_GIGABYTES", 0)
    moments = []
    ramrs.quantize(source, tmp_path / "many", budget=5, progress=moments.append)
    layout = [now for now in moments if now.stage == "layout"]
    assert len(layout) > 20
    assert [now.done_bytes for now in layout] == sorted({now.done_bytes for now in layout})
    assert layout[0].total_bytes > layout[-1].done_bytes > layout[0].done_bytes == 0
    one, many = (read_weights(tmp_path / name) for name in ("one", "many"))
    assert {name: tensor.elements.tobytes() for name, tensor in one.items()} == {
        name: tensor.elements.tobytes() for name, tensor in many.items()
    }


def test_the_command_line_says_who_laid_it_out(source, ramrs_cli):
    job = ramrs_cli("quantize", source, "--budget", "5", "--json")
    assert job.returncode == 0, job.stderr
    assert f"model_type `granitemoe` is laid out by mlx-lm {mlx_lm.__version__}" in job.stderr
    assert json.loads(job.stdout)["written"]
    assert [path.name for path in ramrs_cli.directory.iterdir()] == ["source-ramrs-5bpw"]


@pytest.mark.parametrize("fault", [LookupError(), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("when", ["it is laid out", "it is quantized"])
def test_a_job_that_is_stopped_leaves_nothing(when, fault, source, tmp_path, monkeypatch):
    native, seen = ramrs.api._native.call, []

    def stop(verb, request, callback):
        if verb == "quantize" and b".layout" in request:
            seen.extend(path.name for path in (tmp_path / "new").iterdir())
            raise fault
        return native(verb, request, callback)

    def stop_earlier(now):
        if now.stage == "layout" and now.done_bytes > 0:
            seen.extend(path.name for path in (tmp_path / "new").iterdir())
            raise fault

    monkeypatch.setattr(mlx_layout, "SHARD_GIGABYTES", 0)
    progress = stop_earlier if when == "it is laid out" else None
    if progress is None:
        monkeypatch.setattr(ramrs.api._native, "call", stop)
    with pytest.raises(type(fault)) as caught:
        ramrs.quantize(source, tmp_path / "new" / "out", budget=5, progress=progress)
    assert caught.value is fault
    assert seen == ["out.layout"]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_budget_that_is_too_small_leaves_nothing(source, tmp_path):
    with pytest.raises(ramrs.BudgetError):
        ramrs.quantize(source, tmp_path / "out", budget=1)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_layout_that_is_there_is_left_alone(source, tmp_path):
    (tmp_path / "out.layout").mkdir()
    (tmp_path / "out.layout" / "file").write_text("still here")
    with pytest.raises(ramrs.ConfigError, match=r"out\.layout is there") as caught:
        ramrs.quantize(source, tmp_path / "out", budget=5)
    assert caught.value.slug == "output-busy"
    assert "remove what is there" in caught.value.hint
    assert (tmp_path / "out.layout" / "file").read_text() == "still here"


@pytest.mark.parametrize(
    ("output", "overwrite", "slug"),
    [
        ("source", True, "output-is-source"),
        ("source/out", False, "output-is-source"),
        ("there", False, "output-exists"),
        ("there", True, "output-foreign"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(output, overwrite, slug, source, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.tex").write_text("still here")
    before, moments = sees_everything(tmp_path), []
    with pytest.raises(ramrs.ConfigError) as caught:
        ramrs.quantize(source, tmp_path / output, budget=5, overwrite=overwrite, progress=moments.append)
    assert caught.value.slug == slug
    assert "layout" not in {now.stage for now in moments}
    assert sees_everything(tmp_path) == before


def test_an_output_is_replaced_if_asked(source, tmp_path):
    for budget in (5, 8):
        report = ramrs.quantize(source, tmp_path / "out", budget=budget, overwrite=True)
    assert report.plan.totals.effective_bpw > 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_full_disk_is_told_of_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 0, 1000))
    with pytest.raises(OSError, match="No space left") as caught:
        ramrs.quantize(source, tmp_path / "out", budget=5)
    assert caught.value.slug == "disk-full"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def rewrite_config(source, **changes):
    config = json.loads((source / "config.json").read_text()) | changes
    (source / "config.json").write_text(json.dumps(config))


def refused(source, tmp_path, slug="unknown-model"):
    """Assert that nothing becomes of a model, and return what is said."""
    with pytest.raises(ramrs.CheckpointError) as caught:
        ramrs.quantize(source, tmp_path / "out", budget=5)
    assert caught.value.slug == slug
    assert "generic=True" in caught.value.hint
    assert not list(tmp_path.glob("out*"))
    return str(caught.value)


@pytest.mark.parametrize("model_type", ["abacus", "base", "cache", "../llama", "switch_layers"])
def test_a_type_that_nobody_knows_is_refused(model_type, source, ramrs_cli, tmp_path):
    rewrite_config(source, model_type=model_type)
    said = refused(source, tmp_path)
    assert said.startswith(f"model_type `{model_type}` has no MLX layout in this version of ramrs, and mlx-lm ")
    if model_type == "abacus":
        assert said.endswith(" does not load it: Model type abacus not supported.")
        job = ramrs_cli("quantize", source, "--budget", "5")
        assert (job.returncode, job.stdout) == (2, "")
        assert f"error: {said}\nhint: --generic" in job.stderr
        assert "Traceback" not in job.stderr


def test_what_mlx_lm_misses_is_said(tmp_path):
    config = MODELS["seed_oss"][0] | {"model_type": "seed_oss"}
    source = write_checkpoint(tmp_path / "source", llama_tensors(config | {"tie_word_embeddings": True}), config)
    said = refused(source, tmp_path, slug="wrong-tensors")
    assert "`model.layers.0.self_attn.q_proj.bias` [128] is missing (5 more are as well)" in said
    rewrite_config(source, vocab_size=[])
    assert "TypeError: " in refused(source, tmp_path)


def test_code_of_a_checkpoint_is_never_run(source, tmp_path):
    (source / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    rewrite_config(source, model_file="evil.py")
    assert "code of the checkpoint's own" in refused(source, tmp_path)
    assert not (tmp_path / "run").exists()


def test_files_that_mlx_lm_would_read_besides_are_refused(source, tmp_path):
    shutil.copy(source / "model-00001-of-00002.safetensors", source / "model-old.safetensors")
    assert "'model-old.safetensors'" in refused(source, tmp_path)


@pytest.mark.parametrize("hidden", ["mlx", "mlx.core", "mlx_lm", "mlx_lm.utils"])
def test_a_missing_extra_is_named(hidden, source, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name == hidden or name.startswith(hidden + ".")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(ramrs.CheckpointError) as caught:
        ramrs.quantize(source, tmp_path / "out", budget=5)
    assert (str(caught.value), caught.value.slug) == (NO_LAYOUT, "unknown-model")
    assert caught.value.hint.startswith("pip install 'ramrs[mlx]' ")
    assert "generic=True" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["source"]

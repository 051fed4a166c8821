"""`ramrs probe`, and what the other verbs make of it."""

import json
import signal
import subprocess
import sys

import gguf
import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import LLAMA, llama_tensors, read_header, read_safetensors, read_weights, write_checkpoint
from fixtures.models import VARIANTS, write_variant
from fixtures.paths import EXAMPLE
from fixtures.process import ramrs_process, sees_everything
from fixtures.tiers import slow_but_for
from safetensors.numpy import load_file

TOKENS = 128


def novel(directory):
    """A sound Llama under a name that nobody knows."""
    return write_checkpoint(directory, llama_tensors(LLAMA), LLAMA | {"model_type": "novel"})


def test_the_command_says_what_it_did_and_writes_vectors_for_every_matrix(ramrs_cli):
    done = ramrs_cli("probe", EXAMPLE, "-o", "s.safetensors")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "llama" in done.stdout and "512 written by the model itself" in done.stdout
    path = ramrs_cli.directory / "s.safetensors"
    assert [file.name for file in ramrs_cli.directory.iterdir()] == ["s.safetensors"]
    vectors = load_file(path)
    for name, tensor in read_weights(EXAMPLE).items():
        if tensor.elements.ndim == 2:
            rows, columns = tensor.elements.shape
            assert vectors[f"{name}.k"].shape == (columns,)
            assert vectors[f"{name}.r"].shape == (rows,)
            assert vectors[f"{name}.x2"].shape == (columns,)
            assert all(np.isfinite(vectors[f"{name}.{which}"]).all() for which in ("k", "r", "x2"))
            assert abs(vectors[f"{name}.k"].mean() - 1) < 1e-5
    metadata = read_header(path)[0]["__metadata__"]
    assert (metadata["format"], metadata["version"]) == ("ramrs-sensitivity", "1")
    assert json.loads(metadata["probe"]) == {"version": 1, "tokens": 512, "mode": "self", "draws": 1}


def test_the_report_as_json_is_the_report(ramrs_cli):
    done = ramrs_cli("probe", EXAMPLE, "--json", "--probe-mode", "random", "--probe-tokens", "64")
    report = json.loads(done.stdout)
    assert report == ramrs.probe(EXAMPLE, mode="random", tokens=64).to_dict()
    assert (report["tokens"], report["matrices"], report["written"]) == (64, 36, None)
    assert report["probe"]["mode"] == "random"


def test_a_saved_probe_is_as_good_as_probing(tmp_path):
    """The whole output, manifest and card included, is the same."""
    ramrs.probe(EXAMPLE, tmp_path / "s", tokens=TOKENS)
    ramrs.quantize(EXAMPLE, tmp_path / "probed", budget=4, probe_tokens=TOKENS)
    ramrs.quantize(EXAMPLE, tmp_path / "saved", budget=4, sensitivity=tmp_path / "s")
    assert sees_everything(tmp_path / "probed") == sees_everything(tmp_path / "saved")
    settings = ramrs.Manifest.read(tmp_path / "saved" / "ramrs-manifest.json").settings
    assert (settings.sensitivity, settings.probe.tokens, settings.probe.mode) == ("probe", TOKENS, "self")


def test_what_was_saved_says_which_sensitivity_it_wants(tmp_path):
    """A plan and an analysis are carried out under the sensitivity that they were made with."""
    s = tmp_path / "s"
    ramrs.probe(EXAMPLE, s, tokens=TOKENS)
    for options in ({"sensitivity": "weights"}, {"probe_tokens": TOKENS, "probe_mode": "random"}, {"objective": "mse"}):
        plan = ramrs.plan(EXAMPLE, budget=4, **options)
        report = ramrs.quantize(EXAMPLE, tmp_path / "out", plan=plan, overwrite=True)
        assert report.manifest.settings == plan.settings
        analysis = ramrs.analyze(EXAMPLE, **options)
        options.pop("sensitivity", None), options.pop("probe_tokens", None), options.pop("probe_mode", None)
        report = ramrs.quantize(EXAMPLE, tmp_path / "out", analysis=analysis, budget=4, overwrite=True, **options)
        assert report.manifest.settings == analysis.settings
    # That of a foreign file has to be given again.
    foreign = tmp_path / "foreign"
    header, start = read_header(s)
    del header["__metadata__"]["probe"]
    text = json.dumps(header).encode()
    foreign.write_bytes(len(text).to_bytes(8, "little") + text + s.read_bytes()[start:])
    plan = ramrs.plan(EXAMPLE, budget=4, sensitivity=foreign)
    assert plan.settings.sensitivity == "file"
    with pytest.raises(ramrs.ConfigError, match="give that with sensitivity="):
        ramrs.quantize(EXAMPLE, tmp_path / "out", plan=plan, overwrite=True)
    report = ramrs.quantize(EXAMPLE, tmp_path / "out", plan=plan, sensitivity=foreign, overwrite=True)
    assert report.manifest.settings == plan.settings


def test_a_seed_chooses_the_tokens_and_is_recorded(ramrs_cli, tmp_path):
    """Files of the default say nothing of it: they are what they were."""
    for name, options in (("default", {}), ("zero", {"seed": 0}), ("one", {"seed": 1})):
        ramrs.probe(EXAMPLE, tmp_path / name, tokens=TOKENS, **options)
    done = ramrs_cli("probe", EXAMPLE, "-o", tmp_path / "cli", "--tokens", str(TOKENS), "--probe-seed", "1")
    assert done.returncode == 0, done.stderr
    made = {name: (tmp_path / name).read_bytes() for name in ("default", "zero", "one", "cli")}
    assert made["default"] == made["zero"] != made["one"] == made["cli"]
    records = {name: json.loads(read_header(tmp_path / name)[0]["__metadata__"]["probe"]) for name in made}
    assert "seed" not in records["default"] and records["one"]["seed"] == 1


@pytest.mark.parametrize("effort", ["normal", "high"])
def test_outputs_of_another_seed_record_it_and_can_be_made_again(effort, tmp_path):
    options = {"budget": 4, "probe_tokens": TOKENS, "effort": effort}
    for name, seed in (("default", {}), ("zero", {"probe_seed": 0}), ("one", {"probe_seed": 1})):
        ramrs.quantize(EXAMPLE, tmp_path / name, check=False, **options, **seed)
    plan = ramrs.plan(EXAMPLE, **options, probe_seed=1)
    ramrs.quantize(EXAMPLE, tmp_path / "planned", plan=plan, check=False)
    seen = {name: sees_everything(tmp_path / name) for name in ("default", "zero", "one", "planned")}
    assert seen["default"] == seen["zero"] != seen["one"] == seen["planned"]
    manifests = {name: (tmp_path / name / "ramrs-manifest.json").read_text() for name in seen}
    settings = {name: json.loads(text)["settings"] for name, text in manifests.items()}
    assert "seed" not in settings["default"]["probe"] and settings["one"]["probe"]["seed"] == 1
    assert settings["default"]["sensitivity_sha256"] != settings["one"]["sensitivity_sha256"]
    assert ramrs.Manifest.read(tmp_path / "one" / "ramrs-manifest.json").settings.probe.seed == 1


def test_a_model_that_cannot_be_run_is_quantized_by_its_weights_and_that_is_said_once(ramrs_cli):
    model = novel(ramrs_cli.directory / "model")
    done = ramrs_cli("quantize", model, "--generic", "-b", "5", "-o", "out")
    assert done.returncode == 0
    warning = "the probe cannot run model_type `novel`: its forward pass is not one of those that are known"
    assert done.stderr.count(warning) == 1
    manifest = ramrs.Manifest.read(ramrs_cli.directory / "out" / "ramrs-manifest.json")
    assert manifest.settings.sensitivity == "weights" and manifest.settings.probe is None
    assert sum(warning in line for line in manifest.warnings) == 1
    assert warning in (ramrs_cli.directory / "out" / "README.md").read_text()
    for verb in (["probe", model], ["quantize", model, "--generic", "-b", "5", "--sensitivity", "probe", "-o", "no"]):
        done = ramrs_cli(*verb)
        assert done.returncode == 2
        assert warning in done.stderr and "--sensitivity weights" in done.stderr
    assert not (ramrs_cli.directory / "no").exists()


def test_the_weights_alone_are_never_run(tmp_path):
    stages = []
    ramrs.analyze(EXAMPLE, sensitivity="weights", progress=lambda now: stages.append(now.stage))
    assert not {"probe", "gradients", "write"} & set(stages)
    assert ramrs.analyze(EXAMPLE, sensitivity="weights").settings.probe is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--probe-tokens", "0"], "--probe-tokens"),
        (["--probe-tokens", "70000"], "--tokens `70000`: not between 1 and 65536"),
        (["--probe-mode", "text"], "'text' is not one of"),
        (["--seed", "-1"], "--seed"),
        (["--seed", "4294967296"], "--seed `4294967296`: not between 0 and 4294967295"),
        (["--format", "npz"], "'npz' is not one of"),
        (["-o", "not/there/s.safetensors"], "No such file or directory"),
        (["-o", "."], "--output `.`"),
        (["-j", "0"], "--threads"),
    ],
)
def test_options_that_make_no_sense_are_named(options, said, ramrs_cli):
    done = ramrs_cli("probe", EXAMPLE, *options)
    assert done.returncode == 2
    assert said in done.stderr, done.stderr
    assert not list(ramrs_cli.directory.iterdir())


def test_the_api_refuses_what_the_command_line_refuses():
    for options in ({"tokens": 0}, {"mode": "text"}, {"format": "npz"}, {"tokens": "many"}, {"tokens": -1}):
        with pytest.raises(ramrs.ConfigError):
            ramrs.probe(EXAMPLE, **options)


@pytest.mark.parametrize("content", ["{", "7", '{"model": {"vocab": 7}}', '{"added_tokens": [{"id": "x"}]}'])
def test_a_tokenizer_that_is_none_is_named(content, example):
    (example / "tokenizer.json").write_text(content)
    with pytest.raises(ramrs.CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        ramrs.probe(example)


def test_a_model_without_a_tokenizer_is_probed_all_the_same(example):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (example / name).unlink()
    assert ramrs.probe(example, tokens=64).tokens == 64


@pytest.mark.slow
def test_ctrl_c_leaves_what_was_there(tmp_path):
    model = write_variant("llama", tmp_path / "model", num_hidden_layers=24, vocab_size=4096)
    (tmp_path / "s").write_text("still here")
    command = [sys.executable, "-m", "ramrs", "probe", model, "-o", tmp_path / "s", "--tokens", "8192", "-j", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as job:
        with pytest.raises(subprocess.TimeoutExpired):
            job.wait(2)
        job.send_signal(signal.SIGINT)
        _, stderr = job.communicate(timeout=30)
    assert job.returncode == 130
    assert "interrupted" in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "s"]
    assert (tmp_path / "s").read_text() == "still here"


def test_experts_that_see_too_little_count_like_the_others_and_are_listed(tmp_path, ramrs_cli):
    model = write_variant("qwen3_moe", tmp_path / "model", num_experts=64, num_experts_per_tok=1)
    report = ramrs.probe(model, tmp_path / "s", tokens=64, mode="random")
    # As many times the tokens as it may be, and still not enough for all.
    assert report.tokens == 8 * 64
    assert {layer: sum(loads) for layer, loads in report.loads.items()} == dict.fromkeys(report.loads, 512)
    vectors = read_safetensors(tmp_path / "s")
    for layer, loads in report.loads.items():
        poor = [expert for expert, load in enumerate(loads) if load < 16]
        rich = [expert for expert, load in enumerate(loads) if load >= 16]
        assert poor and rich
        (warning,) = [line for line in report.warnings if line.startswith(f"layer {layer}:")]
        assert f"expert {', '.join(map(str, poor[:12]))}" in warning
        of = [vectors[f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight.r"].values for expert in range(64)]
        mean = np.mean([of[expert] for expert in rich], axis=0)
        for expert in poor:
            assert np.allclose(of[expert], mean, rtol=1e-4, atol=1e-4 * mean.max())
    done = ramrs_cli("probe", model, "--tokens", "64", "--mode", "random")
    assert "512 of its own vocabulary, 64 were asked for" in done.stdout
    assert done.stderr.count("warning") == len(report.loads)


ARCHITECTURES = {
    "gemma3_text": "GEMMA3",
    "gpt_neox": "GPTNEOX",
    "cohere": "COMMAND_R",
    "phi": "PHI2",
    "mistral": "LLAMA",
    "mixtral": "LLAMA",
    "qwen2_moe": "QWEN2MOE",
    "qwen3_moe": "QWEN3MOE",
}
"""What gguf calls a model type, where that is not the same in capitals."""


def gguf_names(model, config):
    """The names that llama.cpp's converter gives the matrices of a model, each with the checkpoint's."""
    model_type = config["model_type"]
    architecture = gguf.MODEL_ARCH[ARCHITECTURES.get(model_type, model_type.upper())]
    names = gguf.get_tensor_name_map(architecture, config.get("num_hidden_layers", config.get("n_layer")))
    found = {}
    for name, shape in VARIANTS[model].shapes(config).items():
        if len(shape) < 2 or "norm" in name or "wpe" in name or name.endswith("bias"):
            continue
        parts = name.split(".")
        if "experts" in parts and parts[parts.index("experts") + 1].isdigit():
            del parts[parts.index("experts") + 1]
        whole = ".".join(parts).removesuffix(".weight")
        # What is fused for experts is taken apart by the converter.
        is_fused = "experts.gate_up_proj" in whole
        spelt = [whole.replace("gate_up", half) for half in ("gate", "up")] if is_fused else [whole]
        for each in spelt:
            mapped = names.get_name(f"{each}.weight", try_suffixes=(".weight",))
            assert mapped, f"gguf has no name for {each}"
            found.setdefault(mapped, []).append(name)
    if "output.weight" in found:
        del found["token_embd.weight"]
    return found


@pytest.mark.parametrize("name", slow_but_for(["llama"], [name for name in VARIANTS if name != "stablelm_parallel"]))
def test_an_importance_matrix_has_the_names_and_sums_that_llama_cpp_looks_for(name, tmp_path):
    # llama.cpp has no names for layers without experts among those with them, for Qwen.
    model = write_variant(name, tmp_path / "model", mlp_only_layers=[])
    config = json.loads((model / "config.json").read_text())
    options = {"tokens": 256, "mode": "random"}
    report = ramrs.probe(model, tmp_path / "imatrix.gguf", format="imatrix", **options)
    ramrs.probe(model, tmp_path / "s", **options)
    reader = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert len(reader.fields["imatrix.datasets"].contents()) == 1
    assert reader.fields["imatrix.chunk_size"].contents() == 64
    assert reader.fields["imatrix.chunk_count"].contents() == report.tokens // 64
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    expected = gguf_names(name, config)
    assert set(tensors) == {f"{matrix}.{which}" for matrix in expected for which in ("in_sum2", "counts")}
    vectors = read_safetensors(tmp_path / "s")
    for matrix, sources in expected.items():
        sums, counts = tensors[f"{matrix}.in_sum2"], tensors[f"{matrix}.counts"]
        assert sums.dtype == np.float32 and counts.dtype == np.float32
        means = [vectors[f"{source}.x2"].values for source in sources]
        means = means[0] if means[0].ndim == 2 else np.stack(means)
        assert sums.shape == means.shape and counts.shape == (len(means), 1)
        for at in range(len(means)):
            if counts[at, 0] >= 16:
                assert np.allclose(sums[at] / counts[at, 0], means[at], rtol=1e-5), matrix
        assert "exps" in matrix or counts[0, 0] == report.tokens


def test_the_same_importance_matrix_every_time(tmp_path):
    for name, threads in (("a", 1), ("b", 3)):
        ramrs.probe(EXAMPLE, tmp_path / name, format="imatrix", tokens=TOKENS, threads=threads)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_trace_is_not_left_half_written_where_the_probe_fails(tmp_path):
    model = novel(tmp_path / "model")
    done = ramrs_process("probe", model, "-o", tmp_path / "s", "--trace", tmp_path / "t")
    assert done.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

"""`eval` by ramrs' own forward pass: the same numbers as mlx-lm in float32, for every model that the probe runs."""

import json
import re
import shutil

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import (
    LLAMA,
    Tensor,
    header_of,
    llama_tensors,
    read_safetensors,
    write_checkpoint,
    write_safetensors,
)
from fixtures.models import MODELS, RELEASES, VARIANTS, write_release, write_variant
from fixtures.paths import EXAMPLE, STORY_TEXT
from fixtures.process import ramrs_process
from fixtures.tiers import slow_but_for

RUN = [name for name in VARIANTS if name != "stablelm_parallel"]
"""The variants that are run. The other one has a part that is unknown."""

LOADED = [name for name in RUN if name != "qwen2_moe_dense"]
"""Those whose outputs mlx-lm loads, too."""

RUN_RELEASES = [name for name, release in RELEASES.items() if MODELS[release.config["model_type"]].probed]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The example model at 4 and 6 bits, and in compressed-tensors."""
    directory = tmp_path_factory.mktemp("outputs")
    ramrs.quantize(EXAMPLE, directory / "4", budget=4.0)
    ramrs.quantize(EXAMPLE, directory / "6", budget=6.0)
    ramrs.quantize(EXAMPLE, directory / "ct", budget=6.5, format="compressed-tensors")
    return [directory / "4", directory / "6", directory / "ct"]


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def save(path, rows):
    np.save(path, rows.ravel().astype(np.uint32))
    return path


def assert_is_that_of_mlx_lm(name, tmp_path, length):
    """Evaluate a quantized variant, and hold the numbers against mlx-lm's logits in float32."""
    import mlx.core as mx
    from mlx_lm.utils import load_model
    from oracles import mlx_reference

    model = write_variant(name, tmp_path / "model")
    ramrs.quantize(model, tmp_path / "out", budget=6.5)
    vocabulary = VARIANTS[name].config["vocab_size"]
    rows = np.random.default_rng(1).integers(0, vocabulary, (3, length))
    with mx.stream(mx.cpu):
        runtime, _ = load_model(tmp_path / "out")
        runtime.set_dtype(mx.float32)
        computed = np.array(runtime(mx.array(rows)))
    reference, output = (log_softmax(each)[:, :-1] for each in (mlx_reference.logits(model, rows, name), computed))
    kl = (np.exp(reference) * (reference - output)).sum(axis=-1)
    tokens = save(tmp_path / "tokens.npy", rows)
    found = ramrs.eval(tmp_path / "out", reference=model, tokens=tokens, window=length, bos="none")
    assert found.kl_mean == pytest.approx(kl.mean(), rel=1e-4)
    assert found.kl_median == pytest.approx(np.median(kl), rel=1e-4)
    assert found.kl_p99 == pytest.approx(np.percentile(kl, 99), rel=1e-4)
    assert found.kl_mean_error == pytest.approx(kl.mean(axis=1).std(ddof=1) / 3**0.5, rel=1e-3)
    for each, mean in ((reference, found.reference_perplexity_mean), (output, found.perplexity_mean)):
        nll = -np.take_along_axis(each, rows[:, 1:, None], axis=-1).mean()
        assert mean == pytest.approx(np.exp(nll), rel=1e-5)
    agreement = (reference.argmax(-1) == output.argmax(-1)).mean()
    assert found.top1_agreement == pytest.approx(agreement, abs=1.5 / kl.size)


@pytest.mark.parametrize("name", slow_but_for(["llama", "gpt2", "qwen3_moe"], LOADED))
def test_every_model_diverges_as_mlx_lm_says(name, tmp_path):
    pytest.importorskip("mlx_lm", reason="needs ramrs[eval]")
    assert_is_that_of_mlx_lm(name, tmp_path, 40)


@pytest.mark.parametrize("name", slow_but_for(["gemma3_text"], ["llama_yarn", "gemma3_text", "gpt_oss", "gpt2"]))
def test_windows_are_longer_than_those_of_the_probe(name, tmp_path):
    """Of these, the second and the third have sliding windows of 8 tokens, and the last has learned positions."""
    pytest.importorskip("mlx_lm", reason="needs ramrs[eval]")
    assert_is_that_of_mlx_lm(name, tmp_path, 200 if name != "gpt2" else VARIANTS[name].config["n_positions"])


@pytest.mark.parametrize("name", slow_but_for(["gpt_oss", "gpt_neox"], RUN_RELEASES))
def test_a_release_that_is_kept_is_the_same_model(name, tmp_path):
    """Nothing is quantized, so whatever was renamed, stacked, turned or added must compute the same."""
    model = write_release(name, tmp_path / "model")
    ramrs.quantize(model, tmp_path / "out", budget="32", overwrite=True)
    found = ramrs.eval(tmp_path / "out", reference=model, max_tokens=160, window=64)
    # Scales of 8-bit floats are applied in float32 here, and rounded to 16 bits where the source is decoded.
    assert 0 <= found.kl_mean < (1e-4 if "fp8" in name else 1e-9)
    assert found.top1_agreement > 0.97


@pytest.mark.parametrize("name", slow_but_for(["llama"], ["llama", "gemma2", "qwen3_moe", "mixtral", "phi3"]))
def test_outputs_in_compressed_tensors_are_read_in_all_their_schemes(name, tmp_path):
    model = write_variant(name, tmp_path / "model", dtype="BF16")
    kl = {}
    # A head of its own is read in integers of 4 and 8 bits only.
    head = [] if VARIANTS[name].config.get("tie_word_embeddings", True) else ["lm_head"]
    # Experts are read in integers only.
    floats = {} if "num_experts_per_tok" in VARIANTS[name].config else {"fp8": 8, "mxfp4": 4, "nvfp4": 4}
    for scheme, bits in {"int3g32": 3, "int4g32": 4, "int8g32": 8, **floats}.items():
        how = {"schemes": [scheme], "budget": 20, "max_bits": bits, "format": "compressed-tensors", "keep": head}
        ramrs.quantize(model, tmp_path / scheme, **how)
        kl[scheme] = ramrs.eval(tmp_path / scheme, reference=model, max_tokens=128, window=64).kl_mean
    assert 0 < kl["int8g32"] < kl["int4g32"] < kl["int3g32"] < 1
    if floats:
        assert kl["int8g32"] < kl["fp8"] < kl["mxfp4"] < kl["int3g32"]
        assert 0 < kl["nvfp4"] < kl["mxfp4"]


def test_an_output_that_another_tool_made_is_read_from_its_configuration(outputs, tmp_path):
    shutil.copytree(outputs[0], tmp_path / "out")
    (tmp_path / "out" / "ramrs-manifest.json").unlink()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for block in ("quantization", "quantization_config"):
        for entry in [config[block], *config[block].values()]:
            if isinstance(entry, dict):
                entry.pop("mode", None)
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    told, found = ramrs.eval([outputs[0], tmp_path / "out"], reference=EXAMPLE, max_tokens=128, window=64)
    assert found.kl_mean == told.kl_mean > 0


@pytest.mark.slow
def test_an_output_of_mlx_lm_is_read(tmp_path):
    convert = pytest.importorskip("mlx_lm.convert", reason="needs ramrs[eval]").convert
    model = write_variant("llama", tmp_path / "model", dtype="BF16")
    shutil.copy(EXAMPLE / "tokenizer.json", model)
    shutil.copy(EXAMPLE / "tokenizer_config.json", model)
    convert(str(model), str(tmp_path / "out"), quantize=True, q_bits=4, q_group_size=32)
    ramrs.quantize(model, tmp_path / "ours", bits=4, group_size=32, effort="fast")
    theirs, ours = ramrs.eval(
        [tmp_path / "out", tmp_path / "ours"], reference=model, max_tokens=128, window=64, bos="none"
    )
    assert theirs.kl_mean == pytest.approx(ours.kl_mean, rel=1e-6)


def test_a_model_is_no_way_from_itself(tmp_path):
    found = ramrs.eval(EXAMPLE, reference=EXAMPLE, max_tokens=256, window=64)
    assert found.kl_mean == found.kl_p99 == 0
    assert found.top1_agreement == 1
    assert found.perplexity_mean == found.reference_perplexity_mean


@pytest.mark.slow
def test_text_gives_what_mlx_lm_gives(outputs):
    pytest.importorskip("mlx_lm", reason="needs ramrs[eval]")
    short = {"reference": EXAMPLE, "text": STORY_TEXT, "max_tokens": 400, "window": 64}
    for output in outputs:
        ours, theirs = (ramrs.eval(output, **short, runtime=runtime) for runtime in (None, "mlx-float32"))
        for field in ("kl_mean", "kl_median", "kl_p99", "perplexity_mean", "reference_perplexity_median"):
            assert getattr(ours, field) == pytest.approx(getattr(theirs, field), rel=1e-4), field
        assert (ours.windows, ours.tokens, ours.bos) == (theirs.windows, theirs.tokens, theirs.bos)
        assert ours.kl_mean_error == pytest.approx(theirs.kl_mean_error, rel=1e-3)


def test_several_outputs_have_the_numbers_that_each_has_alone(outputs):
    together = ramrs.eval(outputs, reference=EXAMPLE, max_tokens=256, window=64)
    alone = tuple(ramrs.eval(each, reference=EXAMPLE, max_tokens=256, window=64) for each in outputs)
    assert together == alone
    assert together[0].kl_mean > together[1].kl_mean > 0


def test_numbers_do_not_depend_on_threads_chunks_or_instructions(outputs):
    short = {"reference": EXAMPLE, "max_tokens": 320, "window": 160}
    found = ramrs.eval(outputs, **short, threads=1)
    assert ramrs.eval(outputs, **short, threads=2, chunk_bytes=8192) == found
    assert ramrs.eval(outputs, **short, simd=False) == found


def test_the_reference_writes_other_tokens_than_the_probe(outputs, tmp_path):
    found = ramrs.eval(outputs[0], reference=EXAMPLE)
    assert (found.origin, found.windows, found.window, found.tokens) == ("written", 4, 256, 1020)
    assert 5 < found.reference_perplexity_mean < 60
    ramrs.probe(EXAMPLE, tmp_path / "s.safetensors", tokens=64, trace=tmp_path / "trace.safetensors")
    # The first window of the probe, as given tokens, is another text.
    probed = read_safetensors(tmp_path / "trace.safetensors")["tokens"].elements.ravel()[1:]
    given = ramrs.eval(outputs[0], reference=EXAMPLE, tokens=save(tmp_path / "t.npy", probed), window=64)
    written = ramrs.eval(outputs[0], reference=EXAMPLE, max_tokens=63, window=64)
    assert (given.origin, written.tokens) == ("given", given.tokens)
    assert given.reference_perplexity_mean != written.reference_perplexity_mean


def test_a_limit_that_is_not_kept_is_exit_code_1_and_says_by_how_much(outputs):
    limits = ["--max-kl", "0.05", "--min-agreement", "0.9", "--max-tokens", "256", "--window", "64"]
    done = ramrs_process("eval", *outputs[:2], "--reference", EXAMPLE, *limits)
    assert done.returncode == 1
    assert re.search(r"4: the mean KL divergence is 0\.\d+, 0\.\d+ above 0\.05", done.stderr)
    assert re.search(r"4: the top-1 agreement is 0\.\d+, 0\.\d+ below 0\.9", done.stderr)
    assert "6: the mean" not in done.stderr
    done = ramrs_process("eval", outputs[1], "--reference", EXAMPLE, *limits, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == (1 if found["failures"] else 0)
    kept = ramrs.eval(outputs[1], reference=EXAMPLE, max_kl=1, min_agreement=0.1, max_tokens=256, window=64)
    assert kept.ok
    assert not kept.failures


def test_a_model_that_is_not_run_is_told_of_the_runtime(tmp_path):
    model = write_variant("stablelm_parallel", tmp_path / "model")
    with pytest.raises(ramrs.CheckpointError, match=r"cannot be run: .*q_layernorm") as caught:
        ramrs.eval(model, reference=model)
    assert caught.value.slug == "unrunnable"
    assert 'runtime="mlx"' in caught.value.hint


def test_codes_that_no_configuration_describes_are_refused(outputs, tmp_path):
    shutil.copytree(outputs[0], tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["quantization"], config["quantization_config"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ramrs.CheckpointError, match=r"config\.json does not describe its codes"):
        ramrs.eval(tmp_path / "out", reference=EXAMPLE)


def test_models_of_two_vocabularies_are_not_compared(tmp_path):
    other = write_checkpoint(tmp_path / "other", llama_tensors(LLAMA))
    with pytest.raises(ramrs.CheckpointError, match=r"other: has a vocabulary of 128, and the reference one of 512"):
        ramrs.eval(other, reference=EXAMPLE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "TEXT", "--tokens", "TOKENS"], "--text or --tokens: give the one or the other"),
        (["--tokens", "LARGE"], "is a token id, and the vocabulary of"),
        (["--tokens", "NEGATIVE"], "token id -1 is negative"),
        (["--tokens", "TOKENS", "--window", "64", "--max-tokens", "3"], "the text has 3 tokens only"),
        (["--window", "1"], "--window"),
        (["--bos", "512"], "is a token id, and the vocabulary of"),
        (["--bos", "first"], "is a token id, 'auto' or 'none'"),
        (["--runtime", "mlx"], "mlx-lm needs one of them"),
        (["--runtime", "vllm"], "--runtime"),
    ],
)
def test_what_cannot_be_evaluated_is_named(options, message, tmp_path):
    for name, ids in (("tokens", [1] * 99), ("large", [600] * 99), ("negative", [-1] * 99)):
        np.save(tmp_path / f"{name}.npy", np.asarray(ids))
    names = {each.upper(): tmp_path / f"{each}.npy" for each in ("tokens", "large", "negative")}
    names["TEXT"] = STORY_TEXT
    done = ramrs_process("eval", EXAMPLE, "--reference", EXAMPLE, *(names.get(option, option) for option in options))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_learned_positions_limit_the_window(tmp_path):
    model = write_variant("gpt2", tmp_path / "model")
    most = VARIANTS["gpt2"].config["n_positions"]
    assert ramrs.eval(model, reference=model, max_tokens=2 * most).window == min(most, 256)
    with pytest.raises(ramrs.ConfigError, match=f"has {most} positions"):
        ramrs.eval(model, reference=model, window=most + 1)


def test_a_probe_of_a_model_laid_out_for_mlx_is_that_of_its_release(tmp_path):
    """Stacks, transposes and interleaved rows are those of mlx-lm in it, not those of the release."""
    for name in ("gpt2", "gpt_oss", "gemma"):
        model = write_variant(name, tmp_path / name)
        ramrs.quantize(model, tmp_path / f"{name}-mlx", budget=32)
        reports = [
            ramrs.probe(each, tokens=64, trace=tmp_path / f"{at}.safetensors")
            for at, each in enumerate((model, tmp_path / f"{name}-mlx"))
        ]
        first, second = (read_safetensors(tmp_path / f"{at}.safetensors")["logits"].elements for at in (0, 1))
        assert np.allclose(first, second, rtol=1e-4, atol=1e-4), name
        assert reports[0].tokens == reports[1].tokens


def test_no_mlx_is_needed(outputs):
    import subprocess
    import sys

    hidden = ["mlx", "mlx.core", "mlx_lm", "tokenizers", "transformers", "torch"]
    block = f"import sys; sys.modules.update(dict.fromkeys({hidden}))"
    code = f"{block}; from ramrs.cli import run; sys.exit(run(sys.argv[1:]))"
    arguments = ["eval", outputs[0], "--reference", EXAMPLE, "--max-tokens", "130", "--window", "64"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_logits_are_those_of_each_window_alone():
    from ramrs._core import logits

    windows = [[1, 5, 9, 400], [1, 7, 300, 2], [1, 3]]
    together = logits(EXAMPLE, windows)
    assert together.shape == (10, 512)
    alone = np.concatenate([logits(EXAMPLE, [window]) for window in windows])
    assert np.array_equal(together, alone)


def test_a_weight_that_is_wrong_is_seen(tmp_path, outputs):
    """A norm without a part of its gain diverges far."""
    shutil.copytree(outputs[1], tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    tensors = read_safetensors(path)
    name = "model.layers.2.post_attention_layernorm.weight"
    tensors[name] = Tensor.of(tensors[name].values - 1, tensors[name].dtype)
    write_safetensors(path, tensors, header_of(tensors) | {"__metadata__": {"format": "mlx"}})
    right, wrong = ramrs.eval([outputs[1], tmp_path / "out"], reference=EXAMPLE, max_tokens=256, window=64)
    assert wrong.kl_mean > 10 * right.kl_mean

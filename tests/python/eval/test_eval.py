"""`eval --runtime`: the numbers of mlx-lm, on the right windows, with an answer for whatever is missing."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import LLAMA, llama_tensors, write_checkpoint
from fixtures.paths import EXAMPLE, STORY_TEXT
from fixtures.process import ramrs_process

mx = pytest.importorskip("mlx.core", reason="needs ramrs[eval]")
mlx_lm = pytest.importorskip("mlx_lm", reason="needs ramrs[eval]")

pytestmark = pytest.mark.slow

RUNTIME = "mlx-float32"
SHORT = {"max_tokens": 400, "window": 64, "runtime": RUNTIME}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    directory = tmp_path_factory.mktemp("eval") / "out"
    ramrs.quantize(EXAMPLE, directory, budget=4.0)
    return directory


@pytest.fixture(scope="module")
def token_ids(tmp_path_factory):
    """The first token ids of the story text, as a file."""
    from tokenizers import Tokenizer

    ids = (
        Tokenizer.from_file(str(EXAMPLE / "tokenizer.json"))
        .encode(STORY_TEXT.read_text(), add_special_tokens=False)
        .ids
    )
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    np.save(path, np.asarray(ids[:400], np.uint32))
    return path


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def logits_of(directory, rows):
    """Logits by the runtime, in float32 on whatever is stored."""
    from mlx_lm.utils import load_model

    model, _ = load_model(directory)
    model.set_dtype(mx.float32)
    return np.concatenate([np.array(model(mx.array(row[None]))) for row in rows])


def test_the_numbers_are_those_of_a_second_opinion(output, token_ids):
    found = ramrs.eval(output, reference=EXAMPLE, tokens=token_ids, window=64, runtime=RUNTIME)
    ids = np.load(token_ids).astype(np.int64)
    rows = np.insert(ids[: len(ids) // 63 * 63].reshape(-1, 63), 0, 1, axis=1)
    reference, model = (log_softmax(logits_of(each, rows))[:, :-1] for each in (EXAMPLE, output))
    kl = (np.exp(reference) * (reference - model)).sum(axis=-1).ravel()
    assert found.windows == len(rows) == 6
    assert found.tokens == kl.size == 6 * 63
    assert found.kl_mean == pytest.approx(kl.mean(), rel=1e-3)
    assert found.kl_median == pytest.approx(np.median(kl), rel=1e-3)
    assert found.kl_p99 == pytest.approx(np.percentile(kl, 99), rel=1e-3)
    for each, mean, median in (
        (reference, found.reference_perplexity_mean, found.reference_perplexity_median),
        (model, found.perplexity_mean, found.perplexity_median),
    ):
        nll = -np.take_along_axis(each, rows[:, 1:, None], axis=-1)[..., 0].mean(axis=-1)
        assert mean == pytest.approx(np.exp(nll.mean()), rel=1e-3)
        assert median == pytest.approx(np.exp(np.median(nll)), rel=1e-3)
    assert found.top1_agreement == pytest.approx((reference.argmax(-1) == model.argmax(-1)).mean(), abs=0.01)


def test_a_model_is_no_way_from_itself():
    found = ramrs.eval(EXAMPLE, reference=EXAMPLE, text=STORY_TEXT, **SHORT)
    assert found.kl_mean == found.kl_p99 == 0
    assert found.top1_agreement == 1
    assert found.perplexity_mean == found.reference_perplexity_mean
    assert 5 < found.perplexity_mean < 50


def test_more_bits_are_nearer(output, tmp_path):
    ramrs.quantize(EXAMPLE, tmp_path / "at 6", budget=6.0)
    kl = [ramrs.eval(each, reference=EXAMPLE, text=STORY_TEXT, **SHORT).kl_mean for each in (output, tmp_path / "at 6")]
    assert 0 < kl[1] < 0.3 * kl[0]


def test_text_and_its_token_ids_give_the_same(output, token_ids):
    by_text = ramrs.eval(output, reference=EXAMPLE, text=STORY_TEXT, **SHORT)
    assert ramrs.eval(output, reference=EXAMPLE, tokens=token_ids, **SHORT) == by_text


def test_the_runtimes_own_kernels_agree_with_numpy(tmp_path, token_ids):
    source = write_checkpoint(
        tmp_path / "model", llama_tensors(LLAMA | {"vocab_size": 512}, "F32"), LLAMA | {"vocab_size": 512}
    )
    ramrs.quantize(source, tmp_path / "out", budget=5)
    by_numpy, by_runtime = (
        ramrs.eval(tmp_path / "out", reference=source, tokens=token_ids, bos="none", **SHORT | {"runtime": runtime})
        for runtime in (RUNTIME, True)
    )
    assert (by_numpy.computed, by_runtime.computed) == (
        "mlx-lm, in float32 on decoded weights",
        "mlx-lm, with its own kernels",
    )
    assert by_numpy.kl_mean > 1e-4
    for field in ("kl_mean", "kl_p99", "perplexity_mean", "reference_perplexity_mean"):
        assert getattr(by_numpy, field) == pytest.approx(getattr(by_runtime, field), rel=1e-3), field


@pytest.mark.parametrize(
    "config", [{"num_key_value_heads": 4}, {"num_key_value_heads": 1}, {"tie_word_embeddings": False}]
)
def test_the_numpy_layers_compute_what_mlx_computes(config, tmp_path):
    from mlx_lm.utils import load_model
    from ramrs.evaluation import numpy_backend

    config = LLAMA | config
    ramrs.quantize(
        write_checkpoint(tmp_path / "model", llama_tensors(config, "F32"), config), tmp_path / "out", budget=5
    )
    tokens = mx.array([list(range(3, 60))])
    own = load_model(tmp_path / "out")[0](tokens)
    with numpy_backend.attention():
        ours = numpy_backend.decoded(load_model(tmp_path / "out")[0])(tokens)
    assert mx.abs(own - ours).max().item() <= 1e-4 * mx.abs(own).max().item()


def test_the_runtime_is_itself_again_afterwards(output):
    before = mx.fast.scaled_dot_product_attention, mx.default_device()
    ramrs.eval(output, reference=EXAMPLE, text=STORY_TEXT, **SHORT)
    with pytest.raises(ramrs.CheckpointError):
        ramrs.eval(STORY_TEXT.parent, reference=EXAMPLE, text=STORY_TEXT, **SHORT)
    assert (mx.fast.scaled_dot_product_attention, mx.default_device()) == before


@pytest.mark.parametrize(
    ("bos", "spoil", "expected", "note"),
    [
        ("auto", None, 1, "BOS <s> (1) of the tokenizer"),
        ("none", None, None, "no BOS"),
        (2, None, 2, "BOS 2"),
        ("auto", "tokenizer without one", None, "no BOS: the tokenizer has none"),
        ("auto", "token with settings of its own", 1, "BOS <s> (1) of the tokenizer"),
        ("auto", "no tokenizer", 1, "BOS 1 of config.json"),
        ("auto", "neither", None, "no BOS: none is known"),
    ],
)
def test_windows_begin_with_the_right_token(bos, spoil, expected, note, example, token_ids):
    settings = json.loads((example / "tokenizer_config.json").read_text())
    config = json.loads((example / "config.json").read_text())
    if spoil == "tokenizer without one":
        del settings["bos_token"]
    elif spoil == "token with settings of its own":
        settings["bos_token"] = {"content": "<s>", "lstrip": False}
    (example / "tokenizer_config.json").write_text(json.dumps(settings))
    if spoil in ("no tokenizer", "neither"):
        (example / "tokenizer.json").unlink()
        (example / "tokenizer_config.json").unlink()
    if spoil == "neither":
        del config["bos_token_id"]
        (example / "config.json").write_text(json.dumps(config))
    found = ramrs.eval(example, reference=example, tokens=token_ids, bos=bos, max_tokens=64, window=32, runtime=RUNTIME)
    assert (found.bos, found.bos_note) == (expected, note)
    assert found.windows == 64 // (32 - (expected is not None))


def test_the_windows_and_the_arithmetic_are_told(output):
    told = ramrs_process(
        *("eval", output, "--reference", EXAMPLE, "--text", STORY_TEXT, "--max-tokens", 130, "--window", 64),
        *("--runtime", RUNTIME),
    )
    assert told.returncode == 0
    assert "2 of 64 tokens, BOS <s> (1) of the tokenizer; 126 predictions" in told.stdout


def test_progress_counts_tokens(output):
    moments = []
    ramrs.eval(output, reference=EXAMPLE, text=STORY_TEXT, progress=moments.append, **SHORT)
    assert {now.stage for now in moments} == {"eval"}
    done = [now.done_bytes for now in moments]
    assert done == sorted(done)
    assert done[-1] == moments[-1].total_bytes == 6 * 64


def test_an_exception_of_the_callback_comes_out(output):
    def stop(now):
        raise LookupError

    with pytest.raises(LookupError):
        ramrs.eval(output, reference=EXAMPLE, text=STORY_TEXT, progress=stop, **SHORT)


@pytest.mark.parametrize(
    ("hidden", "message", "extra"),
    [(name, "eval needs MLX", "eval") for name in ("mlx", "mlx.core", "mlx_lm", "mlx_lm.utils")]
    + [("tokenizers", "text= needs a tokenizer", "text")],
)
def test_a_missing_extra_is_named_with_what_to_install(hidden, message, extra, output, monkeypatch):
    for name in [name for name in sys.modules if name == hidden or name.startswith(hidden + ".")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(ramrs.ConfigError, match=message) as caught:
        ramrs.eval(output, reference=EXAMPLE, text=STORY_TEXT, **SHORT)
    assert caught.value.hint == f"pip install 'ramrs[{extra}]'"


def test_all_other_verbs_work_without_the_extra(tmp_path):
    hidden = ["mlx", "mlx.core", "mlx_lm", "tokenizers", "transformers", "torch"]
    block = f"import sys; sys.modules.update(dict.fromkeys({hidden}))"
    code = f"{block}; from ramrs.cli import run; sys.exit(run(sys.argv[1:]))"
    for arguments in (["quantize", EXAMPLE, "-b", "4", "-o", tmp_path / "out"], ["verify", tmp_path / "out"]):
        done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "mlx-lm needs one of them"),
        (["--text", "TEXT", "--tokens", "TOKENS"], "--text or --tokens: give the one or the other"),
        (["--text", "none.txt"], "none.txt"),
        (["--tokens", "none.npy"], "none.npy"),
        (["--tokens", "TEXT"], "not an .npy file"),
        (["--tokens", "MATRIX"], "not a list of token ids"),
        (["--tokens", "LARGE"], "the vocabulary of"),
        (["--text", "BINARY"], "not UTF-8"),
        (["--text", "TEXT", "--window", "1"], "--window"),
        (["--text", "TEXT", "--window", "64", "--max-tokens", "3"], "the text has 3 tokens only"),
        (["--text", "TEXT", "--bos", "first"], "is a token id, 'auto' or 'none'"),
    ],
)
def test_what_cannot_be_evaluated_is_named(options, message, output, tmp_path, token_ids):
    np.save(tmp_path / "matrix.npy", np.ones((2, 2)))
    np.save(tmp_path / "large.npy", np.arange(400, 600))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    names = {
        "TEXT": STORY_TEXT,
        "TOKENS": token_ids,
        "MATRIX": tmp_path / "matrix.npy",
        "LARGE": tmp_path / "large.npy",
        "BINARY": tmp_path / "binary.txt",
    }
    given = [names.get(option, option) for option in options]
    done = ramrs_process("eval", output, "--reference", EXAMPLE, "--runtime", RUNTIME, *given)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: (model / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda model: (model / "tokenizer.json").write_text("{}"), "tokenizer.json: not a tokenizer"),
        (lambda model: (model / "tokenizer_config.json").write_text("{"), "tokenizer_config.json: not JSON"),
        (lambda model: (model / "config.json").unlink(), "no config.json"),
        (lambda model: (model / "model.safetensors").unlink(), "No safetensors found"),
        (lambda model: (model / "config.json").write_text('{"model_type": "nobody"}'), "mlx-lm cannot load it"),
    ],
)
def test_a_reference_that_is_not_one_is_named(spoil, message, output, example, ramrs_cli):
    spoil(example)
    done = ramrs_cli(
        *("eval", output, "--reference", example, "--text", STORY_TEXT, "--max-tokens", "200", "--window", "64"),
        *("--runtime", RUNTIME),
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_models_of_two_vocabularies_are_not_compared(example, tmp_path):
    other = write_checkpoint(tmp_path / "other", llama_tensors(LLAMA))
    shutil.copy(EXAMPLE / "tokenizer.json", other)
    with pytest.raises(ramrs.ConfigError, match=r"vocabulary of .*other has 128"):
        ramrs.eval(other, reference=EXAMPLE, text=STORY_TEXT, **SHORT)

"""Damaged, hostile and unsuitable input: what the command line says about it, and that it leaves nothing behind."""

import ctypes
import errno
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import sys

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import (
    LLAMA,
    Tensor,
    header_of,
    llama_tensors,
    read_header,
    write_checkpoint,
    write_safetensors,
    write_shards,
)
from fixtures.paths import EXAMPLE
from fixtures.process import sees_everything

QUERY = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


def truncated(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return ["model.safetensors: tensor `", "data end at byte", "hint: the file is truncated: fetch it again"]


def cut_off_in_the_header(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    return ["model.safetensors: claims a header of", "but at most 192 are possible here"]


def shorter_than_its_length(model):
    (model / "model.safetensors").write_bytes(b"abc")
    return ["model.safetensors: 3 bytes long", "hint: the download is incomplete"]


def empty_file(model):
    (model / "model.safetensors").write_bytes(b"")
    return ["model.safetensors: 0 bytes long", "hint: the download is incomplete"]


def longer_than_its_tensors(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"more")
    return ["model.safetensors: 4 bytes after the end of the last tensor"]


def header_without_end(model):
    file = model / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**63) + file.read_bytes()[8:])
    return ["model.safetensors: claims a header of 9223372036854775808 bytes"]


def header_that_is_no_json(model):
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 8) + b"{broken!" + bytes(64))
    return ["model.safetensors: the header is not valid"]


def changed_header(change):
    def spoil(model):
        tensors = llama_tensors(LLAMA)
        header = header_of(tensors)
        expected = change(header)
        write_safetensors(model / "model.safetensors", tensors, header)
        return expected

    return spoil


def overlapping(header):
    begin, end = header[DOWN]["data_offsets"]
    header[DOWN]["data_offsets"] = [begin - 64, end - 64]
    return [f"model.safetensors: tensor `{DOWN}`: overlaps `"]


def gap(header):
    del header[QUERY]
    return ["model.safetensors: tensor `", "starts 8192 bytes after the end of the tensor before it"]


def backwards(header):
    header[DOWN]["data_offsets"].reverse()
    return [f"tensor `{DOWN}`: data_offsets [", "run backwards"]


def other_length(header):
    header[DOWN]["shape"][0] += 1
    return [f"tensor `{DOWN}`: data_offsets span 16384 bytes, but shape [65, 128] of BF16 takes 16640"]


def endless_shape(header):
    header[DOWN]["shape"] = [2**40, 2**40]
    return [f"tensor `{DOWN}`: shape [1099511627776, 1099511627776] of BF16 has no size in bytes"]


def unknown_dtype(header):
    header[DOWN]["dtype"] = "BF17"
    return [f"model.safetensors: tensor `{DOWN}`: unknown dtype `BF17`"]


def entry_without_offsets(header):
    del header[DOWN]["data_offsets"]
    return [f"tensor `{DOWN}`: not a tensor entry: ", "data_offsets"]


def twice_in_the_header(model):
    tensors = {"a.weight": Tensor.of(np.ones((32, 32)))}
    text = json.dumps(header_of(tensors))
    text = (text[:-1] + ", " + text[1:]).encode()
    data = tensors["a.weight"].elements.tobytes()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return ["tensor `a.weight`: listed twice in one header"]


def value(number, index=(3, 7), name=QUERY, dtype="BF16"):
    def spoil(model):
        tensors = llama_tensors(LLAMA, dtype)
        values = tensors[name].values.copy()
        values[index] = number
        tensors[name] = Tensor.of(values, dtype)
        write_safetensors(model / "model.safetensors", tensors)
        at = str(list(index))
        return [
            f"tensor `{name}` in ",
            "model.safetensors: 1 non-finite value",
            f"first at {at}",
            "hint: the checkpoint is",
        ]

    return spoil


def too_large(model):
    value(np.float32(1e30), dtype="F32")(model)
    return [f"tensor `{QUERY}` in ", "is too large to be a weight"]


def pickle_under_a_wrong_name(model):
    (model / "model.safetensors").write_bytes(pickle.dumps({"weights": list(range(100))}))
    return ["model.safetensors: ", "pickle"]


def pickle_only(model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": [1]}))
    return ["pytorch_model.bin: is a pickle, which runs code when it is loaded", "hint: convert it in a sandbox"]


def gguf_only(model):
    (model / "model.safetensors").unlink()
    (model / "model.gguf").write_bytes(b"GGUF" + bytes(64))
    return ["model.gguf: is a GGUF file of version 0", "hint: convert the model with a current llama.cpp"]


def no_weights(model):
    (model / "model.safetensors").unlink()
    return ["no .safetensors file in it", "hint: give the model's directory"]


def no_config(model):
    (model / "config.json").unlink()
    return ["config.json: is missing", "hint: the format needs the model's config.json"]


def config_that_is_no_json(model):
    (model / "config.json").write_text('{"model_type": "llama",')
    return ["config.json: not a model configuration: EOF"]


def config_that_is_a_list(model):
    (model / "config.json").write_text("[]")
    return ["config.json: not a model configuration: "]


def config_without_a_type(model):
    (model / "config.json").write_text("{}")
    return ["config.json: has no model_type"]


def unknown_model(model):
    (model / "config.json").write_text(json.dumps(LLAMA | {"model_type": "perceptron"}))
    return ["model_type `perceptron` has no MLX layout", "hint: --generic writes"]


def quantized_already(model):
    config = LLAMA | {"quantization_config": {"quant_method": "bitnet"}}
    codes = Tensor("U8", np.zeros((16, 128), np.uint8))
    write_checkpoint(model, llama_tensors(LLAMA) | {DOWN: codes}, config)
    return [
        f"quantized already (bitnet, bytes of codes: `{DOWN}` is U8 [16, 128])",
        "hint: give the original checkpoint",
    ]


def link_out_of_the_directory(model):
    outside = model.parent / "outside.safetensors"
    shutil.move(model / "model.safetensors", outside)
    (model / "model.safetensors").symlink_to(outside)
    return ["model.safetensors: is a symbolic link that leaves the checkpoint, to ", "hint: copy the file into"]


def in_shards(change):
    def spoil(model):
        shutil.rmtree(model)
        write_shards(model, llama_tensors(LLAMA))
        index = json.loads((model / "model.safetensors.index.json").read_text())
        expected = change(model, index["weight_map"])
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        return expected

    return spoil


def missing_shard(model, _):
    (model / "model-00002-of-00002.safetensors").unlink()
    return [
        "index.json: lists the shard `model-00002-of-00002.safetensors` (",
        "which is missing",
        "hint: the download",
    ]


def missing_shard_without_an_index(model):
    in_shards(missing_shard)(model)
    (model / "model.safetensors.index.json").unlink()
    return ["no model.safetensors.index.json", "hint: the download is incomplete"]


def shard_outside(model, weight_map):
    weight_map[DOWN] = "../x.safetensors"
    return ["index.json: names the shard `../x.safetensors`, which is not a plain file name"]


def shard_anywhere(model, weight_map):
    weight_map[DOWN] = "/etc/passwd"
    return ["index.json: names the shard `/etc/passwd`, which is not a plain file name"]


def tensor_that_is_nowhere(model, weight_map):
    weight_map["model.ghost.weight"] = "model-00001-of-00002.safetensors"
    return ["index.json: says that tensor `model.ghost.weight` is in `model-00001-of-00002.safetensors`, but"]


def tensor_in_two_shards(model, _):
    tensors = llama_tensors(LLAMA)
    write_safetensors(model / "model-00001-of-00002.safetensors", tensors)
    return ["tensor `", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def index_that_is_no_json(model):
    in_shards(lambda model, weight_map: [])(model)
    (model / "model.safetensors.index.json").write_text("{")
    return ["model.safetensors.index.json: not a checkpoint index: "]


SPOILT = {
    "truncated": truncated,
    "cut off in the header": cut_off_in_the_header,
    "shorter than its length": shorter_than_its_length,
    "empty file": empty_file,
    "longer than its tensors": longer_than_its_tensors,
    "header of 2^63 bytes": header_without_end,
    "header that is no JSON": header_that_is_no_json,
    "overlapping tensors": changed_header(overlapping),
    "gap between tensors": changed_header(gap),
    "offsets backwards": changed_header(backwards),
    "other length than the shape": changed_header(other_length),
    "endless shape": changed_header(endless_shape),
    "unknown dtype": changed_header(unknown_dtype),
    "entry without offsets": changed_header(entry_without_offsets),
    "twice in the header": twice_in_the_header,
    "NaN": value(np.nan),
    "infinity": value(np.inf),
    "minus infinity in float16": value(-np.inf, dtype="F16"),
    "NaN in a norm": value(np.nan, (5,), "model.norm.weight"),
    "too large to square": too_large,
    "pickle under a wrong name": pickle_under_a_wrong_name,
    "pickle": pickle_only,
    "GGUF": gguf_only,
    "no weights": no_weights,
    "no config.json": no_config,
    "config.json that is no JSON": config_that_is_no_json,
    "config.json that is a list": config_that_is_a_list,
    "config.json without a type": config_without_a_type,
    "unknown model": unknown_model,
    "quantized already": quantized_already,
    "link out of the directory": link_out_of_the_directory,
    "missing shard": in_shards(missing_shard),
    "missing shard without an index": missing_shard_without_an_index,
    "shard outside": in_shards(shard_outside),
    "shard anywhere": in_shards(shard_anywhere),
    "tensor that is nowhere": in_shards(tensor_that_is_nowhere),
    "tensor in two shards": in_shards(tensor_in_two_shards),
    "index that is no JSON": index_that_is_no_json,
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_checkpoint_is_refused_by_name_and_nothing_is_left(fault, model, ramrs_cli):
    expected = SPOILT[fault](model)
    done = ramrs_cli("quantize", model, "--budget", "6", "-o", "out")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    for part in expected:
        assert part in done.stderr
    assert not list(ramrs_cli.directory.iterdir())


def test_the_unspoilt_checkpoint_is_quantized(model, ramrs_cli):
    done = ramrs_cli("quantize", model, "--budget", "6", "-o", "out")
    assert done.returncode == 0
    assert [path.name for path in ramrs_cli.directory.iterdir()] == ["out"]


def test_a_missing_directory_is_named(ramrs_cli):
    done = ramrs_cli("quantize", "no/such/model", "--budget", "4")
    assert done.returncode == 2
    assert "error: no/such/model: No such file or directory" in done.stderr
    assert "hint: give the model's directory" in done.stderr


def test_a_name_of_a_hub_is_not_downloaded(ramrs_cli):
    done = ramrs_cli("quantize", "someone/some-model", "--budget", "4")
    assert done.returncode == 2
    assert "hint: ramrs never downloads: fetch the repository first" in done.stderr


def test_a_file_that_is_no_checkpoint(ramrs_cli, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    done = ramrs_cli("inspect", tmp_path / "notes.txt")
    assert done.returncode == 2
    assert "notes.txt: not a directory, and no .safetensors or .gguf file" in done.stderr


def test_an_output_is_not_quantized_again(example_at_4, ramrs_cli):
    done = ramrs_cli("quantize", example_at_4[0], "--budget", "4", "-o", "out")
    assert done.returncode == 2
    assert "the checkpoint is quantized already (MLX: `model.embed_tokens.weight` is U32" in done.stderr
    assert "hint: give the original checkpoint: quantizing twice loses twice" in done.stderr
    assert not list(ramrs_cli.directory.iterdir())


def test_an_output_that_is_there_is_refused_and_left_as_it_is(ramrs_cli):
    output = ramrs_cli.directory / "out"
    output.mkdir()
    (output / "precious.txt").write_text("mine")
    done = ramrs_cli("quantize", EXAMPLE, "--budget", "4", "-o", "out")
    assert done.returncode == 2
    assert "error: out exists already" in done.stderr
    assert "hint: give another --output, or --overwrite to replace it" in done.stderr
    assert sees_everything(ramrs_cli.directory) == {"out/precious.txt": b"mine"}


def test_overwrite_replaces_the_whole_output(ramrs_cli):
    output = ramrs_cli.directory / "out"
    output.mkdir()
    (output / "model-old.safetensors").write_text("stale")
    (output / "ramrs-manifest.json").write_text("of an earlier run")
    done = ramrs_cli("quantize", EXAMPLE, "--budget", "4", "-o", "out", "--overwrite")
    assert done.returncode == 0
    assert not (output / "model-old.safetensors").exists()
    assert ramrs.verify(output).ok
    assert [path.name for path in ramrs_cli.directory.iterdir()] == ["out"]


@pytest.mark.parametrize("is_directory", [True, False])
def test_overwrite_replaces_nothing_but_outputs(ramrs_cli, is_directory):
    output = ramrs_cli.directory / "out"
    precious = output / "thesis.txt" if is_directory else output
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("mine")
    done = ramrs_cli("quantize", EXAMPLE, "--budget", "4", "-o", "out", "--overwrite")
    assert done.returncode == 2
    assert "out is not an output of ramrs" in done.stderr
    assert "remove it yourself" in done.stderr
    assert precious.read_text() == "mine"


def test_a_foreign_partial_output_is_left_alone(ramrs_cli):
    (ramrs_cli.directory / "out.partial").mkdir()
    (ramrs_cli.directory / "out.partial" / "mine").write_text("precious")
    done = ramrs_cli("quantize", EXAMPLE, "--budget", "4", "-o", "out", "--overwrite")
    assert done.returncode == 2
    assert "out.partial is there: another run is writing it, or it is not ramrs' own" in done.stderr
    assert (ramrs_cli.directory / "out.partial" / "mine").read_text() == "precious"


def test_a_checkpoint_without_tensors_is_none(ramrs_cli, tmp_path):
    (tmp_path / "empty").mkdir()
    write_safetensors(tmp_path / "empty" / "model.safetensors", {}, header_of({}))
    done = ramrs_cli("quantize", tmp_path / "empty", "--generic", "--budget", "9", "-o", "out")
    assert done.returncode == 2
    assert "no tensors in it" in done.stderr


def test_tensors_without_elements_are_kept(ramrs_cli, tmp_path):
    tensors = {
        "none.weight": Tensor.of(np.zeros((0, 64), np.float32)),
        "a.weight": Tensor.of(np.ones((8, 64), np.float32)),
    }
    (tmp_path / "some").mkdir()
    write_safetensors(tmp_path / "some" / "model.safetensors", tensors, header_of(tensors))
    done = ramrs_cli("quantize", tmp_path / "some", "--generic", "--bits", "8", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert ramrs.verify(ramrs_cli.directory / "out", source=tmp_path / "some").ok


@pytest.mark.parametrize("key", ["bits", "group_size", "mode"])
def test_a_module_called_as_a_key_of_the_configuration_is_refused(ramrs_cli, tmp_path, key):
    tensors = {f"{key}.weight": Tensor.of(np.ones((8, 64), np.float32))}
    (tmp_path / "keys").mkdir()
    write_safetensors(tmp_path / "keys" / "model.safetensors", tensors, header_of(tensors))
    done = ramrs_cli("quantize", tmp_path / "keys", "--generic", "--bits", "8", "-o", "out")
    assert done.returncode == 2
    assert f"`{key}.weight`" in done.stderr


def test_a_name_that_the_scheme_needs_is_refused_before_any_work(ramrs_cli, tmp_path):
    tensors = {name: Tensor.of(np.ones((8, 64), np.float32)) for name in ("a.weight", "a.scales")}
    (tmp_path / "names").mkdir()
    write_safetensors(tmp_path / "names" / "model.safetensors", tensors, header_of(tensors))
    done = ramrs_cli("plan", tmp_path / "names", "--generic", "--bits", "8")
    assert done.returncode == 2
    assert "would be called `a.scales`" in done.stderr


def test_a_job_that_fails_does_not_touch_the_output_it_was_to_replace(ramrs_cli, model):
    value(np.nan)(model)
    output = ramrs_cli.directory / "out"
    output.mkdir()
    (output / "precious.txt").write_text("mine")
    (output / "ramrs-manifest.json").write_text("of an earlier run")
    assert ramrs_cli("quantize", model, "--budget", "6", "-o", "out", "--overwrite").returncode == 2
    assert sees_everything(ramrs_cli.directory) == {
        "out/precious.txt": b"mine",
        "out/ramrs-manifest.json": b"of an earlier run",
    }


@pytest.mark.parametrize("below", ["", "inside", "inside/deeper"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_output_must_not_be_the_source(below, overwrite, model, ramrs_cli):
    before = sees_everything(model)
    extra = ["--overwrite"] if overwrite else []
    done = ramrs_cli("quantize", model, "--budget", "6", "-o", model / below, *extra)
    assert done.returncode == 2
    assert "is the source, or lies inside it" in done.stderr
    assert sees_everything(model) == before


def test_the_output_must_not_hold_the_source(model, ramrs_cli):
    before = sees_everything(model)
    done = ramrs_cli("quantize", model, "--budget", "6", "-o", model.parent, "--overwrite")
    assert done.returncode == 2
    assert sees_everything(model) == before


def test_an_output_below_a_file_is_refused(ramrs_cli):
    (ramrs_cli.directory / "file").write_text("mine")
    done = ramrs_cli("quantize", EXAMPLE, "--budget", "4", "-o", "file/out")
    assert done.returncode == 2
    assert "file" in done.stderr
    assert os.strerror(errno.ENOTDIR) in done.stderr or os.strerror(errno.EEXIST) in done.stderr
    assert sees_everything(ramrs_cli.directory) == {"file": b"mine"}


def obey_permissions():
    """Give up root's right to write everywhere: CAP_DAC_OVERRIDE, out of the bounding set."""
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(24, 1, 0, 0, 0) != 0:
        os.setuid(65534)


@pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_named(ramrs_cli):
    ramrs_cli.directory.chmod(0o555)
    done = ramrs_cli("quantize", EXAMPLE, "--budget", "4", "-o", "out", preexec_fn=obey_permissions)
    ramrs_cli.directory.chmod(0o755)
    assert done.returncode == 2
    assert "out.partial" in done.stderr
    assert os.strerror(errno.EACCES) in done.stderr
    assert not list(ramrs_cli.directory.iterdir())


def test_a_full_disk_is_an_error_and_the_job_continues_when_there_is_room(ramrs_cli):
    def small_files_only():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = ramrs_cli("quantize", EXAMPLE, "--budget", "4", "-o", "out", preexec_fn=small_files_only)
    assert done.returncode == 2
    assert "out.partial/" in done.stderr
    assert os.strerror(errno.EFBIG) in done.stderr
    assert "out.partial keeps what is finished: the same command continues it" in done.stderr
    assert [path.name for path in ramrs_cli.directory.iterdir()] == ["out.partial"]
    done = ramrs_cli("quantize", EXAMPLE, "--budget", "4", "-o", "out")
    assert done.returncode == 0
    assert "continued from what an earlier run had finished" in done.stderr
    assert [path.name for path in ramrs_cli.directory.iterdir()] == ["out"]


OPTIONS = {
    "bad regular expression": (
        ["--budget", "4", "--tensor", "q_(proj=4"],
        "--tensor `q_(proj=4`: not a regular expression",
    ),
    "rule without a spec": (["--budget", "4", "--tensor", "q_proj"], "--tensor `q_proj`: has no `=`: write REGEX=SPEC"),
    "rule with a bad spec": (
        ["--budget", "4", "--tensor", "q_proj=9"],
        "`9` is not a scheme: kept, BITS or MIN-MAX of 2 3 4 5 6 8",
    ),
    "rule that matches nothing": (["--budget", "4", "--keep", "lm_haed"], "--keep `lm_haed`: matches no tensor"),
    "impossible bits": (["--budget", "4", "--min-bits", "7"], "--min-bits `7`: not one of 2 3 4 5 6 8"),
    "limits that cross": (["--budget", "4", "--min-bits", "6", "--max-bits", "3"], "is above --max-bits 3"),
    "unknown option": (["--budget", "4", "--fastest"], "No such option: --fastest"),
    "unknown effort": (["--budget", "4", "--effort", "heroic"], "'heroic' is not one of 'fast', 'normal'"),
    "unknown format": (["--budget", "4", "--format", "ggml"], "--format `ggml`: not one of: mlx"),
    "no budget": ([], "--budget"),
    "no threads": (["--budget", "4", "-j", "0"], "Invalid value for '-j' / '--threads'"),
    "budget and plan": (["--budget", "4", "--plan", "plan.json"], "--budget: a saved plan has its own"),
    "300 bits": (["--budget", "4", "--min-bits", "300"], "300"),
    "group size with a budget": (["--budget", "4", "--group-size", "32"], "goes with --bits"),
    "thousands of threads": (["--budget", "4", "-j", "4000"], "more than 512"),
    "limits on a plan": (["--plan", "plan.json", "--min-bits", "6"], "--min-bits: a saved plan has its own"),
    "no such plan": (["--plan", "plan.json"], "plan.json"),
    "no such sensitivity": (["--budget", "4", "--sensitivity", "none.safetensors"], "none.safetensors"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_bad_option_is_named(case, ramrs_cli):
    options, message = OPTIONS[case]
    done = ramrs_cli("quantize", EXAMPLE, "-o", "out", *options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(ramrs_cli.directory.iterdir())


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Documents of the example, and a checkpoint that differs from it in one weight."""
    directory = tmp_path_factory.mktemp("documents")
    ramrs.analyze(EXAMPLE).write(directory / "analysis.json")
    ramrs.plan(directory / "analysis.json", budget=4).write(directory / "plan.json")
    write_checkpoint(directory / "other", llama_tensors(LLAMA))
    changed = shutil.copytree(EXAMPLE, directory / "changed")
    _, start = read_header(changed / "model.safetensors")
    data = bytearray((changed / "model.safetensors").read_bytes())
    data[start + 1] ^= 1
    (changed / "model.safetensors").write_bytes(data)
    return directory


@pytest.mark.parametrize(
    ("option", "model", "message"),
    [
        ("--plan", "other", "plan.json: it is a plan for another checkpoint"),
        ("--plan", "changed", "plan.json: it was made with other weights or another sensitivity"),
        ("--analysis", "other", "analysis.json: it is an analysis of another checkpoint"),
        (
            "--analysis",
            "changed",
            "analysis.json: it was made with other weights, another sensitivity",
        ),
    ],
)
def test_a_document_of_another_checkpoint_is_refused(option, model, message, documents, ramrs_cli):
    budget = [] if option == "--plan" else ["--budget", "6"]
    document = documents / f"{option[2:]}.json"
    done = ramrs_cli("quantize", documents / model, option, document, "-o", "out", *budget)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(ramrs_cli.directory.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a plan: EOF"),
        ("{}", "not a plan: "),
        ('{"ramrs_analysis": 1}', "not a plan: "),
        ('{"ramrs_plan": 99}', "99"),
        ("[1, 2]", "not a plan: "),
    ],
)
def test_a_file_that_is_no_plan_is_refused(content, message, ramrs_cli, tmp_path):
    (tmp_path / "plan.json").write_text(content)
    done = ramrs_cli("quantize", EXAMPLE, "--plan", tmp_path / "plan.json", "-o", "out")
    assert done.returncode == 2
    assert "plan.json" in done.stderr
    assert message in done.stderr
    assert not list(ramrs_cli.directory.iterdir())


def test_an_analysis_that_was_tampered_with_is_no_bug_of_ours(documents, ramrs_cli):
    analysis = json.loads((documents / "analysis.json").read_text())
    analysis["tensors"][0]["shape"] = [2**40, 2**40]
    analysis["tensors"][0]["curve"]["points"] = [["2g64", -1.0, 5.0, 0.0]]
    (ramrs_cli.directory / "tampered.json").write_text(json.dumps(analysis))
    done = ramrs_cli("plan", "tampered.json", "--budget", "4")
    assert done.returncode == 2, done.stderr
    assert "tampered.json" in done.stderr


def test_a_model_with_nothing_to_quantize_says_so(tmp_path):
    narrow = LLAMA | {"hidden_size": 24, "intermediate_size": 40, "head_dim": 6}
    model = write_checkpoint(tmp_path / "model", llama_tensors(narrow), narrow)
    report = ramrs.quantize(model, tmp_path / "out", budget=16)
    assert any("nothing can be quantized" in warning for warning in report.plan.warnings)
    assert ramrs.verify(tmp_path / "out", source=model).ok

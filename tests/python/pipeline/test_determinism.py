"""The same bytes, whatever the machine, the threads, the chunks and the place."""

import shutil

import pytest
import ramrs
from fixtures.checkpoints import LLAMA, llama_tensors, read_weights, write_checkpoint, write_shards
from fixtures.paths import EXAMPLE
from fixtures.process import ramrs_process, sees_everything
from fixtures.tiers import slow_but_for

WAYS = {
    "one thread": {"threads": 1},
    "two threads": {"threads": 2},
    "seven threads": {"threads": 7},
    "tiny chunks": {"chunk_bytes": 1},
    "one chunk": {"chunk_bytes": 1 << 30},
    "odd chunks and threads": {"chunk_bytes": 5_000, "threads": 3},
    "no vector instructions": {"simd": False},
    "a second run": {},
}


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A model whose matrices are cut into several chunks and sampled bands, in two shards and float16."""
    config = LLAMA | {"hidden_size": 256, "intermediate_size": 1024, "head_dim": 64, "vocab_size": 2048}
    return write_shards(tmp_path_factory.mktemp("larger") / "model", llama_tensors(config, "F16"), config)


OPTIONS = {"budget": 3.7, "sample_bands": 8}


@pytest.fixture(scope="module", params=["fast", "normal"])
def first_run(request, larger, tmp_path_factory):
    """An effort, and what it writes."""
    output = tmp_path_factory.mktemp("first") / "out"
    ramrs.quantize(larger, output, effort=request.param, **OPTIONS)
    return request.param, sees_everything(output)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_run_writes_the_same_bytes(way, first_run, larger, tmp_path):
    effort, expected = first_run
    ramrs.quantize(larger, tmp_path / "out", effort=effort, **OPTIONS, **WAYS[way])
    assert sees_everything(tmp_path / "out") == expected


@pytest.fixture(scope="module")
def measured(larger):
    """What an analysis finds."""
    return ramrs.analyze(larger).to_dict()


@pytest.mark.parametrize("way", slow_but_for(["odd chunks and threads"], WAYS))
def test_every_way_to_run_measures_the_same(way, measured, larger):
    assert ramrs.analyze(larger, **WAYS[way]).to_dict() == measured


def test_neither_the_paths_nor_the_surroundings_are_in_an_output(tmp_path):
    source = shutil.copytree(EXAMPLE, tmp_path / "somewhere else" / "another name")
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    outputs = []
    for model, output, options in [
        (EXAMPLE, "out", {"cwd": here, "env": {"PATH": "/usr/bin", "LANG": "C", "TZ": "UTC"}}),
        (source, there / "a longer name", {"cwd": tmp_path, "env": {"LANG": "de_DE.UTF-8", "TZ": "Asia/Tokyo"}}),
    ]:
        done = ramrs_process("quantize", model, "--budget", "4.0", "-o", output, **options)
        assert done.returncode == 0, done.stderr
        outputs.append(sees_everything(options["cwd"] / output))
    assert outputs[0] == outputs[1]
    assert not any(str(tmp_path).encode() in content for content in outputs[0].values())


def test_the_order_of_a_directory_and_the_time_of_its_files_do_not_matter(tmp_path):
    first = write_shards(tmp_path / "first", llama_tensors(LLAMA))
    (first / "tokenizer.json").write_text("{}")
    second = tmp_path / "second"
    second.mkdir()
    for path in sorted(first.iterdir(), reverse=True):
        shutil.copyfile(path, second / path.name)
    for model in (first, second):
        ramrs.quantize(model, tmp_path / f"{model.name}-out", budget=5)
    assert sees_everything(tmp_path / "first-out") == sees_everything(tmp_path / "second-out")


def test_shards_of_the_source_do_not_change_the_tensors(tmp_path):
    tensors = llama_tensors(LLAMA)
    one = write_checkpoint(tmp_path / "one", tensors)
    three = write_shards(tmp_path / "three", tensors, shards=3)
    for model in (one, three):
        ramrs.quantize(model, tmp_path / f"{model.name}-out", budget=5)
    name = "model.safetensors"
    written = [(tmp_path / f"{model}-out" / name).read_bytes() for model in ("one", "three")]
    assert written[0] == written[1]


def test_output_shards_hold_the_same_tensors(tmp_path):
    whole = ramrs.quantize(EXAMPLE, tmp_path / "whole", budget=4.0)
    parts = ramrs.quantize(EXAMPLE, tmp_path / "parts", budget=4.0, shard_bytes=40_000)
    files = sorted(path.name for path in (tmp_path / "parts").glob("*.safetensors"))
    assert files == [f"model-{at + 1:05}-of-{len(files):05}.safetensors" for at in range(len(files))]
    assert len(files) >= 4
    one, other = read_weights(tmp_path / "whole"), read_weights(tmp_path / "parts")
    assert {name: tensor.elements.tobytes() for name, tensor in one.items()} == {
        name: tensor.elements.tobytes() for name, tensor in other.items()
    }
    assert whole.plan.totals.tensor_bytes == parts.plan.totals.tensor_bytes
    assert parts.plan.totals.file_bytes == sum(
        path.stat().st_size for path in (tmp_path / "parts").glob("*.safetensors")
    )
    assert ramrs.verify(tmp_path / "parts", source=EXAMPLE).ok

"""What the tests share: the example model, a lawless safetensors writer, the command line as a process."""

import json
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# On a busy machine the threads of a BLAS wait for each other; the models here are too small for more than one.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest


def pytest_collection_modifyitems(items):
    """Begin with what takes longest: in several processes (``--numprocesses``) the rest goes beside it."""
    items.sort(key=lambda item: item.get_closest_marker("smollm2") is None)


ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"
EXAMPLE = ROOT / "examples" / "llama2xs-280k"
STORIES = DATA / "stories260k"
STORY_TEXT = DATA / "text" / "tinystories.txt"

STORED = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U32": np.uint32, "U8": np.uint8, "I64": np.int64}
STORED |= {"I32": np.int32, "F8_E4M3": np.uint8, "F8_E5M2": np.uint8, "F8_E8M0": np.uint8}
"""How NumPy holds the elements of a dtype: bfloat16 as the upper halves of float32, floats of 8 bits as their codes."""


def to_bf16(values):
    """Round float32 to bfloat16, to nearest even."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def stored(values, dtype):
    """Convert float32 values to the elements of ``dtype``."""
    return to_bf16(values) if dtype == "BF16" else np.asarray(values).astype(STORED[dtype])


def widened(elements, dtype):
    """Convert elements of ``dtype`` to float32."""
    if dtype == "BF16":
        return (elements.astype(np.uint32) << 16).view(np.float32)
    return elements.astype(np.float32)


@dataclass
class Tensor:
    """A tensor as a file stores it."""

    dtype: str
    elements: np.ndarray

    @classmethod
    def of(cls, values, dtype="BF16"):
        return cls(dtype, stored(values, dtype))

    @property
    def values(self):
        return widened(self.elements, self.dtype)


def header_of(tensors):
    """Return the header of a safetensors file of these tensors, as a dictionary."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.elements.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.elements.shape), "data_offsets": [offset, end]}
        offset = end
    return header


def write_safetensors(path, tensors, header=None):
    """Write a safetensors file, with a header of the caller's if one is given."""
    text = json.dumps(header_of(tensors) if header is None else header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor.elements).tobytes())


def read_header(path):
    """Return the header of a safetensors file, and where its data begin."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)), 8 + length


def read_safetensors(*paths):
    """Read all tensors of safetensors files, without the help of any library."""
    tensors = {}
    for path in paths:
        header, start = read_header(path)
        data = path.read_bytes()[start:]
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                elements = np.frombuffer(data[begin:end], STORED[entry["dtype"]]).reshape(entry["shape"])
                tensors[name] = Tensor(entry["dtype"], elements)
    return tensors


def read_weights(directory):
    """Read all tensors of a checkpoint."""
    return read_safetensors(*sorted(directory.glob("*.safetensors")))


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 256,
}


def llama_tensors(config, dtype="BF16", seed=0):
    """Make the tensors of a Llama with random weights."""
    random = np.random.default_rng(seed)
    hidden, mlp, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv, size = config["num_key_value_heads"], config["head_dim"]
    shapes = {"model.embed_tokens": (config["vocab_size"], hidden), "model.norm": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{layer}.input_layernorm": (hidden,),
            f"model.layers.{layer}.post_attention_layernorm": (hidden,),
            f"model.layers.{layer}.self_attn.q_proj": (heads * size, hidden),
            f"model.layers.{layer}.self_attn.k_proj": (kv * size, hidden),
            f"model.layers.{layer}.self_attn.v_proj": (kv * size, hidden),
            f"model.layers.{layer}.self_attn.o_proj": (hidden, heads * size),
            f"model.layers.{layer}.mlp.gate_proj": (mlp, hidden),
            f"model.layers.{layer}.mlp.up_proj": (mlp, hidden),
            f"model.layers.{layer}.mlp.down_proj": (hidden, mlp),
        }
    if not config["tie_word_embeddings"]:
        shapes["lm_head"] = (config["vocab_size"], hidden)
    return {f"{name}.weight": Tensor.of(random_weight(random, shape), dtype) for name, shape in shapes.items()}


def random_weight(random, shape):
    """Make a matrix of about unit gain, or a vector of about one."""
    values = random.standard_normal(shape, np.float32)
    return 1 + 0.1 * values if len(shape) == 1 else values / np.float32(shape[-1] ** 0.5)


def write_checkpoint(directory, tensors, config=LLAMA):
    """Write a checkpoint of one file."""
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / "model.safetensors", tensors)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    return directory


def write_shards(directory, tensors, config=LLAMA, shards=2):
    """Write a checkpoint of several files, with an index."""
    directory.mkdir(parents=True, exist_ok=True)
    names, weight_map = list(tensors), {}
    for at in range(shards):
        file = f"model-{at + 1:05}-of-{shards:05}.safetensors"
        here = names[at * len(names) // shards : (at + 1) * len(names) // shards]
        write_safetensors(directory / file, {name: tensors[name] for name in here})
        weight_map |= dict.fromkeys(here, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def ramrs_process(*arguments, **options):
    """Run the command line as a process, as a user does."""
    options = {"capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run([sys.executable, "-m", "ramrs", *map(str, arguments)], check=False, **options)


def sees_everything(directory):
    """List the files below a directory, with their contents."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


@pytest.fixture
def ramrs_cli(tmp_path):
    """Run the command line in an empty directory."""
    work = tmp_path / "work"
    work.mkdir()

    def run(*arguments, **options):
        return ramrs_process(*arguments, **{"cwd": work, **options})

    run.directory = work
    return run


@pytest.fixture
def model(tmp_path):
    """A small checkpoint of random weights, to be spoilt."""
    return write_checkpoint(tmp_path / "model", llama_tensors(LLAMA))


@pytest.fixture
def example(tmp_path):
    """A copy of the example model, to be spoilt."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "example"))


@pytest.fixture(scope="session")
def example_at_4(tmp_path_factory):
    """The example at 4.0 bits per weight: path, and the report. Not to be changed."""
    import ramrs

    output = tmp_path_factory.mktemp("quantized") / "example-4"
    return output, ramrs.quantize(EXAMPLE, output, budget=4.0)


@pytest.fixture(autouse=True, scope="session")
def quiet_surroundings():
    """Keep the machine's settings out of what is printed."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "CLICOLOR_FORCE"):
        os.environ.pop(name, None)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"

"""GGUF of a checkpoint: each tensor has the bytes that the official converter gives it."""

import hashlib

import gguf
import numpy as np
import pytest
import ramrs
from fixtures.gguf import CASES, header, recorded
from fixtures.tiers import slow_but_for

OURS = ("general.file_type", "general.quantization_version", "general.size_label")
"""Keys that describe how the tensors are stored, and not the model."""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Return a function for the output of a case, which is made at the first call."""
    made = {}

    def output(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder / "out.gguf"
            source = CASES[name].write(folder / "source")
            # Everything is kept as it is stored.
            settings = {"format": "gguf", "header": header(name), "sensitivity": "weights"}
            ramrs.quantize(source, made[name], budget=33, **settings)
        return made[name]

    return output


def tensors_of(path):
    """Return the name, type, shape and digest of each tensor."""
    return {
        tensor.name: {
            "name": tensor.name,
            "type": tensor.tensor_type.name,
            "shape": [int(size) for size in reversed(tensor.shape)],
            "sha256": hashlib.sha256(np.ascontiguousarray(tensor.data).tobytes()).hexdigest(),
        }
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("name", slow_but_for(["llama", "qwen3_moe"], CASES))
def test_tensors_are_those_of_the_official_converter(name, outputs):
    found = tensors_of(outputs(name))
    expected = {tensor["name"]: tensor for tensor in recorded(name)["tensors"]}
    assert set(found) == set(expected)
    for tensor in expected:
        assert found[tensor] == expected[tensor]


@pytest.mark.parametrize("name", slow_but_for(["llama", "qwen3_moe"], CASES))
def test_keys_are_those_of_the_header(name, outputs):
    found, expected = gguf.GGUFReader(outputs(name)).fields, gguf.GGUFReader(header(name)).fields
    kept = [key for key in expected if not key.startswith("GGUF.") and key not in OURS]
    assert [key for key in found if key in kept] == kept, "keys are missing, or in another order"
    for key in kept:
        assert found[key].types == expected[key].types
        assert found[key].contents() == expected[key].contents(), key


@pytest.mark.parametrize("name", slow_but_for(["phi3_longrope"], CASES))
def test_keys_that_a_header_alone_lacks_are_added(name, outputs):
    """What the converter knows only once it has read tensors: the scale of attention for long texts (phi3)."""
    found = gguf.GGUFReader(outputs(name)).fields
    for key, expected in recorded(name)["keys"].items():
        if key not in OURS:
            assert key in found, key
            if "value" in expected:
                assert found[key].contents() == expected["value"]

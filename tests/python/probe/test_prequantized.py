"""Packed weights and what they decode to: the probe finds the same in both, and both become the same bytes."""

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import read_safetensors, write_checkpoint
from fixtures.models import RELEASES, release_tensors, write_release
from fixtures.prequantized import plain

FP8 = ["qwen3_fp8", "llama_fp8", "llama_fp8_block"]


def write_decoded(name, directory):
    """Write a release with its weights decoded: experts as transformers saves them, a row for each input."""
    tensors, config = plain(release_tensors(name), RELEASES[name].config)
    for tensor in tensors.values():
        if tensor.elements.ndim == 3:
            tensor.elements = np.ascontiguousarray(tensor.elements.swapaxes(1, 2))
    return write_checkpoint(directory, tensors, config)


def probed(name, directory):
    """Probe a release and its decoded copy, and return the vectors of each."""
    found = []
    for write in (write_release, write_decoded):
        ramrs.probe(write(name, directory / write.__name__), directory / "s", tokens=128)
        found.append(read_safetensors(directory / "s"))
    return found


@pytest.mark.parametrize("name", FP8)
def test_floats_of_8_bits_are_probed_as_what_they_decode_to_bit_for_bit(name, tmp_path):
    packed, decoded = probed(name, tmp_path)
    assert packed.keys() == decoded.keys()
    for vector, tensor in packed.items():
        assert tensor.elements.tobytes() == decoded[vector].elements.tobytes(), vector


def test_floats_of_4_bits_are_probed_as_what_they_decode_to(tmp_path):
    packed, decoded = ({name: each.values for name, each in found.items()} for found in probed("gpt_oss", tmp_path))
    assert {name.replace("_blocks", "") for name in packed} == decoded.keys()
    experts = [name.removesuffix("_blocks.k") for name in packed if name.endswith("_blocks.k")]
    assert len(experts) == 4
    for name in experts:
        k, r, x2 = (packed.pop(f"{name}_blocks.{which}") for which in ("k", "r", "x2"))
        # Rows are columns there, and it is the rows that have the scale.
        rows, columns = decoded[f"{name}.k"], decoded[f"{name}.r"]
        np.testing.assert_allclose(r[:, :, None] * k[:, None], rows[:, :, None] * columns[:, None], rtol=1e-5)
        np.testing.assert_allclose(x2, decoded[f"{name}.x2"], rtol=1e-5)
    for name, values in packed.items():
        np.testing.assert_allclose(values, decoded[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", [*FP8, "gpt_oss"])
def test_packed_weights_are_quantized_as_what_they_decode_to_bit_for_bit(name, tmp_path):
    written = []
    for write in (write_release, write_decoded):
        source, output = write(name, tmp_path / write.__name__), tmp_path / f"{write.__name__} at 4"
        ramrs.quantize(source, output, bits=4, group_size=64, sensitivity="weights")
        written.append((output / "model.safetensors").read_bytes())
    assert written[0] == written[1]

"""The tests' own decoder of compressed-tensors against what the package itself decodes."""

import hashlib

import numpy as np
import pytest
from fixtures.checkpoints import Tensor, read_weights
from fixtures.paths import DATA
from oracles.compressed_tensors import decoded, group_of, read_decoded
from runtimes.handmade import FP8, MXFP4, NVFP4, Rule, integers, write_handmade

GOLDEN = DATA / "tiny-llama-ct-mixed"
DECODED = "4892a8b6a9d0f87523f3fffa3dda1dfd43897e5a4d042d6720a52f39b35bdf30"
"""The digest of all tensors as compressed-tensors 0.20.0 decompresses them in float32, in the order of their names."""

PROJECTIONS = r"(self_attn|mlp)\..*_proj$"


def test_the_golden_checkpoint_is_decoded_as_the_package_does():
    weights, digest = read_decoded(GOLDEN), hashlib.sha256()
    for name in sorted(weights):
        digest.update(np.ascontiguousarray(weights[name], "<f4").tobytes())
    assert digest.hexdigest() == DECODED


@pytest.mark.parametrize(
    ("scheme", "error"),
    [(integers(bits, group), 1.4 / 2**bits) for bits in range(2, 9) for group in (None, 32, 64)]
    + [(integers(4, 64, negative=True), 0.08), (FP8, 0.04), (MXFP4, 0.17), (NVFP4, 0.17)],
    ids=lambda value: getattr(value, "format", None),
)
def test_handmade_checkpoints_decode_to_about_their_source(tmp_path, scheme, error):
    """The error is a share of the largest weight of the matrix."""
    source = DATA / "tiny-llama-bf16"
    weights = read_decoded(write_handmade(tmp_path / "made", source, [Rule(PROJECTIONS, scheme)]))
    for name, tensor in read_weights(source).items():
        largest = np.abs(tensor.values).max()
        if "_proj" in name:
            assert 0 < np.abs(weights[name] - tensor.values).max() <= error * largest, name
        else:
            assert np.array_equal(weights[name], tensor.values), name


def test_the_first_group_that_names_a_module_counts_and_ignore_wins():
    description = {
        "ignore": ["lm_head", r"re:.*[.]o_proj$"],
        "config_groups": {
            "a": {"targets": ["re:.*[.](q|o)_proj"]},
            "b": {"targets": ["model.k_proj", "Linear"]},
        },
    }
    groups = description["config_groups"]
    assert group_of("model.q_proj", description) is groups["a"]
    assert group_of("model.k_proj", description) is groups["b"]
    assert group_of("model.v_proj", description) is groups["b"]
    assert group_of("model.o_proj", description) is None
    assert group_of("lm_head", description) is None


def test_a_module_in_a_group_that_is_not_quantized_is_reported():
    description = {"ignore": [], "config_groups": {"a": {"targets": ["re:.*q_proj"]}}}
    with pytest.raises(ValueError, match="q_proj is in a group and not quantized"):
        decoded({"model.q_proj.weight": Tensor.of(np.zeros((2, 2)))}, description)

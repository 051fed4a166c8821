"""What is written, against an implementation of the format that shares nothing with ours."""

import hashlib
import itertools

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import Tensor, read_header, read_weights, stored, widened, write_safetensors
from fixtures.paths import EXAMPLE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles.reference import BITS, GROUP_SIZES, decoded_module, encode_plain

DTYPES = ("F32", "F16", "BF16")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def awkward_matrix(columns=256):
    """Rows that are awkward on purpose, and some that are not."""
    random = np.random.default_rng(7)
    rows = random.standard_normal((24, columns), np.float32) * np.float32(0.05)
    rows[0], rows[1], rows[2] = 0, 1, -1
    rows[3], rows[4] = np.abs(rows[3]), -np.abs(rows[4])
    rows[5] = 1e-9
    rows[6, ::2] = 0
    rows[7] = np.where(np.arange(columns) % 2, 1, -1)
    rows[8] = np.linspace(-1, 2, columns)
    rows[9, 5] = 30
    rows[10] = np.where(np.arange(columns) % 2, 0, 1e-30)
    rows[11] = np.arange(columns) % 16 - 8
    rows[12] *= 1000
    return rows


def quantized(directory, matrices, dtype, **options):
    """Quantize matrices; return the tensors of the output."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {f"{name}.weight": Tensor.of(matrix, dtype) for name, matrix in matrices.items()}
    write_safetensors(directory / "model.safetensors", tensors)
    out = directory.with_name(directory.name + "-out")
    report = ramrs.quantize(directory / "model.safetensors", out, generic=True, overwrite=True, threads=1, **options)
    return read_weights(out), report


def mixed(seed, scale, numbers):
    """Random weights where ``numbers`` are 7, those numbers elsewhere."""
    random = np.random.default_rng(seed).standard_normal(numbers.shape, np.float32)
    return np.where(numbers == 7, random * np.float32(scale), numbers)


matrices = st.builds(
    mixed,
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-6, 0.02, 1.0, 300.0]),
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 17), st.sampled_from([128, 256])),
        elements=st.floats(-1000, 1000, width=16),
        fill=st.just(7.0),
    ),
)
"""Random weights with a few arbitrary numbers among them."""


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    matrix=st.just(awkward_matrix()) | matrices,
    dtype=st.sampled_from(DTYPES),
    bits=st.sampled_from(BITS),
    group_size=st.sampled_from(GROUP_SIZES),
)
def test_fast_encodes_any_matrix_by_the_rule_of_mx_quantize(matrix, dtype, bits, group_size, tmp_path):
    found, _ = quantized(tmp_path / "m", {"m": matrix}, dtype, bits=bits, group_size=group_size, effort="fast")
    expected = encode_plain(widened(stored(matrix, dtype), dtype), dtype, bits, group_size)
    for part, tensor in zip(("weight", "scales", "biases"), expected, strict=True):
        assert found[f"m.{part}"].dtype == tensor.dtype
        assert found[f"m.{part}"].elements.tobytes() == tensor.elements.tobytes()


def test_the_ledger_states_the_error_of_exactly_what_was_written(example_at_4):
    output, report = example_at_4
    source, found = read_weights(EXAMPLE), read_weights(output)
    quantized_lines = [line for line in report.manifest.ledger if line.quantized]
    assert len(quantized_lines) == 36
    for line in quantized_lines:
        module = line.tensor.removesuffix(".weight")
        values = source[line.tensor].values.astype(np.float64)
        off = decoded_module(found, module, line.quantized[0].scheme).astype(np.float64) - values
        assert line.quantized[0].squared_error == pytest.approx((off**2).sum(), rel=1e-5)
        assert line.quantized[0].nrmse == pytest.approx(np.sqrt((off**2).sum() / (values**2).sum()), rel=1e-5)


def test_every_digest_of_the_manifest_is_what_hashlib_says(example_at_4):
    output, report = example_at_4
    manifest = report.manifest
    on_disk = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert {file.name for file in manifest.files} == on_disk - {"ramrs-manifest.json"}
    for file in manifest.files:
        data = (output / file.name).read_bytes()
        assert (file.bytes, file.sha256) == (len(data), sha256(data)), file.name
    for file in manifest.source_files:
        data = (EXAMPLE / file.name).read_bytes()
        assert (file.bytes, file.sha256) == (len(data), sha256(data))
    for directory, lines in ((output, manifest.tensors), (EXAMPLE, manifest.ledger)):
        tensors = read_weights(directory)
        names = [getattr(line, "name", None) or line.tensor for line in lines]
        assert sorted(names) == sorted(tensors)
        for name, line in zip(names, lines, strict=True):
            assert line.sha256 == sha256(tensors[name].elements.tobytes())
            assert (line.dtype, line.shape) == (tensors[name].dtype, tensors[name].elements.shape)


def test_the_header_is_aligned_and_says_mlx(example_at_4):
    header, start = read_header(example_at_4[0] / "model.safetensors")
    assert header["__metadata__"] == {"format": "mlx"}
    assert start % 8 == 0
    offsets = sorted(entry["data_offsets"] for name, entry in header.items() if name != "__metadata__")
    assert offsets[0][0] == 0
    assert all(one[1] == two[0] for one, two in itertools.pairwise(offsets))


def test_the_safetensors_library_reads_the_same(example_at_4):
    from safetensors import safe_open

    ours = read_weights(example_at_4[0])
    with safe_open(example_at_4[0] / "model.safetensors", framework="numpy") as file:
        assert sorted(file.keys()) == sorted(ours)
        for name in ours:
            if ours[name].dtype == "U32":
                np.testing.assert_array_equal(file.get_tensor(name), ours[name].elements)

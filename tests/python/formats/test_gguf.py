"""GGUF outputs: what is in them, where they are put, and what is refused."""

import hashlib
from dataclasses import replace

import gguf
import numpy as np
import pytest
import ramrs
from fixtures.gguf import CASES, header, recorded

OPTIONS = {"sensitivity": "weights"}

OURS = {"general.file_type", "general.quantization_version", "general.quantized_by"}
"""Keys that ramrs writes."""


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Return a release whose rows are multiples of 256."""
    return CASES["llama"].write(tmp_path_factory.mktemp("release") / "source")


@pytest.fixture(scope="module")
def plain(release, tmp_path_factory):
    """Return the same as a GGUF file in 16 bits."""
    path = tmp_path_factory.mktemp("plain") / "plain.gguf"
    ramrs.quantize(release, path, header=header("llama"), budget=33, **OPTIONS)
    return path


@pytest.fixture(scope="module")
def quantized(plain, tmp_path_factory):
    """Return a report, and the file that it is about."""
    path = tmp_path_factory.mktemp("quantized") / "small.gguf"
    return ramrs.quantize(plain, path, budget=5.0, **OPTIONS), path


def types_of(path):
    return {tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(path).tensors}


def test_types_are_those_of_the_plan_and_sizes_are_exact(quantized, plain):
    report, path = quantized
    found, before = types_of(path), types_of(plain)
    for tensor in report.plan.tensors:
        assert found[tensor.name] == (before[tensor.name] if tensor.scheme == "kept" else tensor.scheme)
    assert len({tensor.scheme for tensor in report.plan.tensors}) > 2, "the plan mixes types"
    assert path.stat().st_size == report.plan.totals.file_bytes
    assert report.plan.totals.effective_bpw <= 5.0


def test_key_values_are_those_of_the_source(quantized, plain):
    _, path = quantized
    found, before = gguf.GGUFReader(path).fields, gguf.GGUFReader(plain).fields
    assert [key for key in found if key not in OURS] == [key for key in before if key not in OURS]
    for key, field in before.items():
        if key not in OURS and not key.startswith("GGUF."):
            assert found[key].types == field.types
            assert found[key].contents() == field.contents()
    assert found["general.quantization_version"].contents() == 2
    assert found["general.quantized_by"].contents() == f"ramrs {ramrs.__version__}"


def test_weights_are_those_that_the_gguf_package_decodes(quantized):
    _, path = quantized
    for tensor in gguf.GGUFReader(path).tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ramrs.weights(path, tensor.name), expected), tensor.name


def test_an_output_is_verified_and_evaluated_as_a_file(quantized, plain, release):
    report, path = quantized
    verified = ramrs.verify(path, source=plain)
    assert verified.ok, verified.problems
    assert verified.decoded == sum(tensor.scheme != "kept" for tensor in report.plan.tensors)
    same = ramrs.eval(plain, reference=release, max_tokens=256)
    assert same.kl_mean < 1e-9, "a GGUF file in 16 bits is the release"
    assert ramrs.eval(path, reference=release, max_tokens=256).kl_mean > 0


def test_damage_is_found(quantized, tmp_path):
    _, path = quantized
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    manifest = path.with_name("small.ramrs-manifest.json")
    (tmp_path / manifest.name).write_bytes(manifest.read_bytes())
    assert ramrs.verify(copy).ok
    damaged = bytearray(copy.read_bytes())
    damaged[-100] ^= 1
    copy.write_bytes(damaged)
    assert not ramrs.verify(copy).ok


def test_a_file_lies_next_to_its_manifest_and_nothing_else_is_left(quantized):
    _, path = quantized
    assert sorted(file.name for file in path.parent.iterdir()) == ["small.gguf", "small.ramrs-manifest.json"]


def test_an_existing_file_is_replaced_only_if_asked_and_ours(plain, tmp_path):
    path = tmp_path / "out.gguf"
    path.write_bytes(b"mine")
    with pytest.raises(ramrs.ConfigError) as fault:
        ramrs.quantize(plain, path, budget=5.0, **OPTIONS)
    assert fault.value.slug == "output-exists"
    with pytest.raises(ramrs.ConfigError) as fault:
        ramrs.quantize(plain, path, budget=5.0, overwrite=True, **OPTIONS)
    assert fault.value.slug == "output-foreign"
    assert path.read_bytes() == b"mine"
    path.unlink()
    ramrs.quantize(plain, path, budget=5.0, **OPTIONS)
    first = path.read_bytes()
    ramrs.quantize(plain, path, budget=6.0, overwrite=True, **OPTIONS)
    assert path.read_bytes() != first
    source = tmp_path / "source.gguf"
    source.write_bytes(plain.read_bytes())
    with pytest.raises(ramrs.ConfigError) as fault:
        ramrs.quantize(source, source, budget=5.0, overwrite=True, **OPTIONS)
    assert fault.value.slug == "output-is-source"
    assert source.read_bytes() == plain.read_bytes()


def test_a_large_output_is_split_as_llama_cpp_splits_it(plain, quantized, tmp_path):
    report, whole = quantized
    path = tmp_path / "parts.gguf"
    ramrs.quantize(plain, path, budget=5.0, shard_bytes=200_000, **OPTIONS)
    files = sorted(tmp_path.glob("*.gguf"))
    assert len(files) > 1
    assert files[0].name == f"parts-00001-of-{len(files):05}.gguf"
    readers = [gguf.GGUFReader(file) for file in files]
    for at, reader in enumerate(readers):
        assert reader.fields["split.no"].contents() == at
        assert reader.fields["split.count"].contents() == len(files)
        assert reader.fields["split.tensors.count"].contents() == len(report.plan.tensors)
    joined = {tensor.name: bytes(tensor.data) for reader in readers for tensor in reader.tensors}
    assert joined == {tensor.name: bytes(tensor.data) for tensor in gguf.GGUFReader(whole).tensors}
    assert ramrs.verify(files[0], source=plain).ok
    assert ramrs.eval(files[0], reference=whole, max_tokens=256).kl_mean == 0


def test_files_of_a_split_output_that_are_no_longer_written_go(plain, tmp_path):
    path = tmp_path / "parts.gguf"
    ramrs.quantize(plain, path, budget=5.0, shard_bytes=200_000, **OPTIONS)
    (tmp_path / "mine.gguf").write_bytes(b"mine")
    ramrs.quantize(plain, path, budget=5.0, overwrite=True, **OPTIONS)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["mine.gguf", "parts.gguf", "parts.ramrs-manifest.json"]


def test_a_release_is_inspected_without_a_header(release):
    found = ramrs.inspect(release, format="gguf")
    assert any(tensor.into == ("blk.0.attn_q.weight",) for tensor in found.tensors)
    assert 2.5 < found.smallest_bpw < 4.6


def test_a_directory_gets_a_card_too(plain, tmp_path):
    ramrs.quantize(plain, tmp_path / "out", budget=5.0, **OPTIONS)
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["README.md", "model.gguf", "ramrs-manifest.json"]
    assert ramrs.verify(tmp_path / "out", source=plain).ok


def test_bytes_are_the_same_for_any_number_of_threads_and_without_simd(plain, quantized, tmp_path):
    _, path = quantized
    ways = [{"threads": 1}, {"threads": 3, "chunk_bytes": 4096}, {"simd": False}]
    for at, way in enumerate(ways):
        again = tmp_path / f"{at}.gguf"
        ramrs.quantize(plain, again, budget=5.0, **OPTIONS, **way)
        assert again.read_bytes() == path.read_bytes(), way


def test_a_release_and_its_gguf_file_give_the_same_plan_and_bytes(release, plain, tmp_path):
    direct = ramrs.quantize(release, tmp_path / "a.gguf", header=header("llama"), budget=5.0, **OPTIONS)
    by_file = ramrs.quantize(plain, tmp_path / "b.gguf", budget=5.0, **OPTIONS)
    assert [tensor.scheme for tensor in sorted(direct.plan.tensors, key=lambda tensor: tensor.name)] == [
        tensor.scheme for tensor in sorted(by_file.plan.tensors, key=lambda tensor: tensor.name)
    ]
    one, other = (
        {t.name: bytes(t.data) for t in gguf.GGUFReader(tmp_path / name).tensors} for name in ("a.gguf", "b.gguf")
    )
    assert one == other


def test_a_saved_analysis_knows_the_length_of_the_head(plain, tmp_path):
    analysis = ramrs.analyze(plain, **OPTIONS)
    analysis.write(tmp_path / "analysis.json")
    plan = ramrs.plan(tmp_path / "analysis.json", budget="60%")
    report = ramrs.quantize(plain, tmp_path / "out.gguf", plan=plan)
    assert (tmp_path / "out.gguf").stat().st_size == plan.totals.file_bytes == report.plan.totals.file_bytes


def test_a_backend_has_its_own_types(plain, tmp_path):
    plan = ramrs.plan(plain, target="cpu", budget=5.0, **OPTIONS)
    assert {tensor.scheme for tensor in plan.tensors} <= {
        "kept",
        "q2_k",
        "q4_k",
        "q5_k",
        "q6_k",
        "q4_0",
        "iq4_nl",
        "q8_0",
        "gguf-mxfp4",
    }
    for target, least in (("cuda", 2.2), ("metal", 3.0)):
        plan = ramrs.plan(plain, target=target, budget=least, **OPTIONS)
        schemes = {tensor.scheme for tensor in plan.tensors}
        assert any(scheme.startswith(("iq2_", "iq3_")) for scheme in schemes), (target, schemes)
    with pytest.raises(ramrs.ConfigError, match="not one of: any, cpu, cuda, metal"):
        ramrs.plan(plain, target="tpu", budget=5.0, **OPTIONS)


def test_one_type_for_all_is_written(plain, tmp_path):
    ramrs.quantize(plain, tmp_path / "out.gguf", tensor={".*": "q4_k"}, budget=8, **OPTIONS)
    types = types_of(tmp_path / "out.gguf")
    assert {kind for name, kind in types.items() if "norm" not in name} == {"q4_k"}
    assert gguf.GGUFReader(tmp_path / "out.gguf").fields["general.file_type"].contents() == 15


NEW = {"iq3_s": 26, "iq3_xxs": 23, "iq2_s": 28, "iq2_xs": 20, "iq2_xxs": 19, "gguf-nvfp4": 39}
"""Types for GPUs, and `general.file_type` of a file of them."""


@pytest.mark.parametrize("scheme", NEW)
def test_types_for_gpus_decode_as_the_gguf_package_decodes_them(scheme, plain, tmp_path):
    output = tmp_path / "out.gguf"
    ramrs.quantize(plain, output, tensor={".*": scheme}, target="cuda", budget=8, **OPTIONS)
    assert ramrs.verify(output, source=plain).ok
    reader = gguf.GGUFReader(output)
    assert reader.fields["general.file_type"].contents() == NEW[scheme]
    quantized = [tensor for tensor in reader.tensors if tensor.tensor_type.name.lower() == scheme.removeprefix("gguf-")]
    assert len(quantized) > 2
    for tensor in quantized:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ramrs.weights(output, tensor.name), expected), tensor.name


def test_a_source_in_8_bits_is_read_with_a_warning_and_others_are_refused(plain, quantized, tmp_path, caplog):
    source = tmp_path / "q8.gguf"
    ramrs.quantize(plain, source, tensor={".*": "q8_0"}, budget=12, **OPTIONS)
    report = ramrs.quantize(source, tmp_path / "out.gguf", budget=5.0, **OPTIONS)
    assert any("are in Q8_0" in warning for warning in report.plan.warnings)
    assert ramrs.verify(tmp_path / "out.gguf", source=source).ok
    with pytest.raises(ramrs.CheckpointError) as fault:
        ramrs.quantize(quantized[1], tmp_path / "again.gguf", budget=4.6, **OPTIONS)
    assert fault.value.slug == "already-quantized"


def test_a_plan_is_written_for_llama_quantize(plain):
    from ramrs.formats.gguf import tensor_types

    plan = ramrs.plan(plain, budget=5.0, **OPTIONS)
    lines = tensor_types(plan).splitlines()
    assert len(lines) == sum(tensor.scheme != "kept" for tensor in plan.tensors)
    assert any(line.startswith("^blk[.]0[.]attn_q[.]weight$=") for line in lines)
    plan = ramrs.plan(plain, tensor={"ffn_up": "gguf-mxfp4"}, budget=8, **OPTIONS)
    assert "^blk[.]0[.]ffn_up[.]weight$=mxfp4" in tensor_types(plan).splitlines(), "the name that ggml gives the type"
    with pytest.raises(ramrs.ConfigError, match="no types of ggml"):
        tensor_types(ramrs.plan("examples/llama2xs-280k", budget=5.0, **OPTIONS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "mlx"}, "written as GGUF only"),
        ({"format": "compressed-tensors"}, "written as GGUF only"),
        ({"generic": True}, "no names but its own"),
        ({"tensor_parallel": 2}, "divides layers by itself"),
    ],
)
def test_what_a_gguf_file_cannot_become_is_refused(plain, tmp_path, options, message):
    with pytest.raises((ramrs.CheckpointError, ramrs.ConfigError), match=message):
        ramrs.quantize(plain, tmp_path / "out", budget=5.0, **OPTIONS, **options)
    assert not (tmp_path / "out").exists()


def test_a_release_without_a_header_is_refused_with_the_command_that_makes_one(release, tmp_path):
    with pytest.raises(ramrs.ConfigError, match="--vocab-only"):
        ramrs.quantize(release, tmp_path / "out.gguf", budget=5.0, **OPTIONS)
    with pytest.raises(ramrs.ConfigError, match="no such file"):
        ramrs.quantize(release, tmp_path / "out.gguf", budget=5.0, converter=tmp_path / "no.py", **OPTIONS)
    with pytest.raises(ramrs.ConfigError, match="are directories"):
        ramrs.quantize(release, tmp_path / "out.gguf", format="mlx", budget=5.0, **OPTIONS)


def test_a_converter_makes_the_header(release, tmp_path):
    script = tmp_path / "convert.py"
    script.write_text(
        "import shutil, sys\n"
        "assert sys.argv[1:3] == ['--vocab-only', '--outfile']\n"
        f"shutil.copy({str(header('llama'))!r}, sys.argv[3])\n"
    )
    ramrs.quantize(release, tmp_path / "out.gguf", budget=5.0, converter=script, **OPTIONS)
    assert gguf.GGUFReader(tmp_path / "out.gguf").fields["general.architecture"].contents() == "llama"
    script.write_text("import sys\nsys.exit('the pre-tokenizer is not known')\n")
    with pytest.raises(ramrs.ConfigError, match="pre-tokenizer is not known") as fault:
        ramrs.quantize(release, tmp_path / "again.gguf", budget=5.0, converter=script, **OPTIONS)
    assert "header.gguf" in fault.value.hint


def test_an_unknown_architecture_is_quantized_by_its_weights_alone(plain, tmp_path):
    data = plain.read_bytes()
    other = tmp_path / "other.gguf"
    other.write_bytes(
        data.replace(b"llama.", b"lIama.").replace(
            b"\x05\x00\x00\x00\x00\x00\x00\x00llama", b"\x05\x00\x00\x00\x00\x00\x00\x00lIama"
        )
    )
    report = ramrs.quantize(other, tmp_path / "out.gguf", budget=5.0)
    assert report.plan.settings.sensitivity == "weights"
    assert ramrs.verify(tmp_path / "out.gguf", source=other).ok


def test_rows_of_gemma_3_beyond_the_tokenizer_are_left_out(tmp_path):
    """Its embedding has more rows than the tokenizer has tokens; llama.cpp wants as many."""
    case = replace(CASES["gemma3_text"], changes=CASES["gemma3_text"].changes | {"vocab_size": 176})
    source = case.write(tmp_path / "source")
    ramrs.quantize(source, tmp_path / "out.gguf", header=header("gemma3_text"), budget=33, **OPTIONS)
    [embedding] = [t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors if t.name == "token_embd.weight"]
    assert list(embedding.shape) == [256, 160]
    assert ramrs.verify(tmp_path / "out.gguf").ok


def test_a_folder_with_one_gguf_file_is_read_as_one(plain, quantized, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.gguf").symlink_to(plain)
    assert ramrs.inspect(source).tensors == ramrs.inspect(plain).tensors
    ramrs.quantize(source, tmp_path / "out.gguf", budget=5.0, **OPTIONS)
    assert (tmp_path / "out.gguf").read_bytes() == quantized[1].read_bytes()


def test_a_name_that_llama_cpp_does_not_load_is_refused_before_any_work(plain, tmp_path):
    """Names in ggml have at most 63 bytes."""
    reader = gguf.GGUFReader(plain)
    for length in (63, 64):
        path = tmp_path / f"{length}.gguf"
        writer = gguf.GGUFWriter(path, "unheard-of")
        writer.add_block_count(1)
        for tensor in reader.tensors[:3]:
            writer.add_tensor(tensor.name.ljust(length, "x"), tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    ramrs.quantize(tmp_path / "63.gguf", tmp_path / "out.gguf", budget=17, **OPTIONS)
    with pytest.raises(ramrs.CheckpointError, match="its name has 64 bytes, and llama") as fault:
        ramrs.quantize(tmp_path / "64.gguf", tmp_path / "other.gguf", budget=17, **OPTIONS)
    assert fault.value.tensor.endswith("xxx")
    assert not (tmp_path / "other.gguf").exists()


def test_mxfp4_of_a_release_is_passed_on_at_any_budget(tmp_path):
    """What the release stores in MXFP4 has these bits in GGUF, unless fewer are asked for."""
    source = CASES["gpt_oss"].write(tmp_path / "source")
    report = ramrs.quantize(source, tmp_path / "out.gguf", header=header("gpt_oss"), budget=6, **OPTIONS)
    schemes = {tensor.name: tensor.scheme for tensor in report.plan.tensors}
    assert {scheme for name, scheme in schemes.items() if "_exps.weight" in name} == {"kept"}
    assert not any("a second time" in warning for warning in report.plan.warnings)
    expected = {tensor["name"]: tensor["sha256"] for tensor in recorded("gpt_oss")["tensors"]}
    for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors:
        if tensor.tensor_type.name == "MXFP4":
            assert hashlib.sha256(tensor.data.tobytes()).hexdigest() == expected[tensor.name]
    assert gguf.GGUFReader(tmp_path / "out.gguf").fields["general.file_type"].contents() == 38
    verified = ramrs.verify(tmp_path / "out.gguf", source=source)
    assert verified.ok, verified.problems

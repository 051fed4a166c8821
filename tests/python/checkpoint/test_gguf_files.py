"""The files that the tests in Rust read and write again are those of the `gguf` package."""

from fixtures import gguf_files


def test_the_bundled_files_are_what_the_gguf_package_writes(tmp_path):
    gguf_files.write(tmp_path)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(path.name for path in gguf_files.DIRECTORY.iterdir())
    for name in written:
        assert (tmp_path / name).read_bytes() == (gguf_files.DIRECTORY / name).read_bytes(), name

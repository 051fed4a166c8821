"""llama-quantize as a rival: KL of GGUF files by llama.cpp's own logits, at their whole sizes.

    python benches/quality/llama_quantize.py BF16.gguf [OTHER.gguf ...] --text TEXT [--bos] [--imatrix FILE]

The first file is the reference, in 16 or 32 bits. From it `llama_model_quantize`, which the program llama-quantize
calls, makes each of `--types`; with `--imatrix` once more with its weights. The other files are measured beside them.
The text is cut into windows, in the tokens of the reference's own vocabulary, or given as tokens (`--ids FILE.npy`).

It needs llama-cpp-py-sync, gguf and numpy beside ramrs: `make runtimes` makes such an environment, and

    PYTHONPATH=python build/runtimes/llama-cpp/bin/python benches/quality/llama_quantize.py …

runs in it what was built in place.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from ramrs.runtimes.llama_cpp import opened

TYPES = ("Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M")

ROWS = 64
"""Logits of so many tokens are compared at a time."""


@contextmanager
def bindings() -> Iterator[tuple[Any, Any]]:
    """Give cffi's object and the library, which says nothing meanwhile."""
    from llama_cpp_py_sync import _cffi_bindings as bound

    ffi, library = bound.ffi, bound.get_lib()
    silent = ffi.callback("void(enum ggml_log_level, const char *, void *)", lambda *_: None)
    library.llama_log_set(silent, ffi.NULL)
    library.llama_backend_init()
    try:
        yield ffi, library
    finally:
        library.llama_log_set(ffi.NULL, ffi.NULL)


def quantize(source: Path, output: Path, kind: str, threads: int, weights: dict[str, npt.NDArray[np.float32]]) -> None:
    """Write a GGUF as llama-quantize does; ``weights`` are the means of an importance matrix."""
    with bindings() as (ffi, library):
        settings = library.llama_model_quantize_default_params()
        settings.ftype = getattr(library, f"LLAMA_FTYPE_MOSTLY_{kind}")
        settings.nthread = threads
        kept: list[Any] = []
        if weights:
            table = ffi.new("struct llama_model_imatrix_data[]", len(weights) + 1)
            for at, (name, values) in enumerate(weights.items()):
                kept += [ffi.new("char[]", name.encode()), ffi.from_buffer("float[]", values)]
                table[at].name, table[at].data, table[at].size = kept[-2], kept[-1], values.size
            settings.imatrix = table
            kept.append(table)
        pointer = ffi.new("llama_model_quantize_params *", settings)
        status = library.llama_model_quantize(str(source).encode(), str(output).encode(), pointer)
    if status:
        raise SystemExit(f"{kind}: llama_model_quantize ended with {status}")


def read_imatrix(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Return the mean squares of the inputs of each matrix, and of each expert's one after another."""
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    found = {}
    for name, sums in tensors.items():
        if name.endswith(".in_sum2"):
            counts = np.asarray(tensors[name.replace(".in_sum2", ".counts")], np.float32).reshape(-1, 1)
            means = np.where(counts > 0, np.asarray(sums).reshape(len(counts), -1) / np.maximum(counts, 1), 1)
            found[name.removesuffix(".in_sum2")] = np.ascontiguousarray(means, np.float32).reshape(-1)
    return found


def tokens_of(path: Path, text: bytes) -> npt.NDArray[np.int32]:
    """Return a text in the tokens of a model's vocabulary."""
    with bindings() as (ffi, library):
        settings = library.llama_model_default_params()
        settings.vocab_only = True
        model = library.llama_model_load_from_file(str(path).encode(), settings)
        if model == ffi.NULL:
            raise SystemExit(f"{path}: llama.cpp does not load it")
        found = np.zeros(len(text) + 1, np.int32)
        place = ffi.from_buffer("int32_t[]", found, require_writable=True)
        vocabulary = library.llama_model_get_vocab(model)
        count = library.llama_tokenize(vocabulary, text, len(text), place, len(found), False, True)
        library.llama_model_free(model)
    return found[:count]


def first_token(path: Path) -> int:
    """Return the token that begins a text."""
    return int(gguf.GGUFReader(path).fields["tokenizer.ggml.bos_token_id"].contents())


def windows_of(options: argparse.Namespace) -> list[list[int]]:
    """Return the windows to measure on."""
    given = np.load(options.ids) if options.ids else tokens_of(options.files[0], options.text.read_bytes())
    before = [first_token(options.files[0])] if options.bos else []
    step = options.length - len(before)
    starts = range(0, min(len(given) - step + 1, options.windows * step), step)
    return [before + [int(token) for token in given[at : at + step]] for at in starts]


def divergence(expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the KL divergence of each row of logits. In float32 the differences are exact enough, the sums are not."""
    expected = expected - expected.max(-1, keepdims=True)
    found = found - found.max(-1, keepdims=True)
    shares = np.exp(expected)
    total = shares.sum(-1, dtype=np.float64)
    shares *= expected - found
    mean = shares.sum(-1, dtype=np.float64) / total
    return mean + np.log(np.exp(found, out=found).sum(-1, dtype=np.float64) / total)


@dataclass(frozen=True)
class Measured:
    """What a file is like, beside the reference."""

    size: int
    """Bytes of the whole file."""
    kl: float
    """Mean divergence, in nats per token."""
    error: float
    """Standard error of the mean, of the windows' means."""
    same: float
    """The share of tokens of which the likeliest next one is the same."""


def batches(path: Path, windows: list[list[int]], threads: int) -> Iterator[npt.NDArray[np.float32]]:
    """Compute the logits of each window."""
    with opened(path, len(windows[0]), threads) as model:
        for window in windows:
            yield model.logits(window)


def measure(path: Path, reference: np.memmap, windows: list[list[int]], threads: int) -> Measured:
    """Compare a file with the logits of the reference."""
    divergences, same = [], []
    for at, logits in enumerate(batches(path, windows, threads)):
        rows = []
        for start in range(0, len(logits), ROWS):
            here = slice(start, start + ROWS)
            rows.append(divergence(reference[at][here], logits[here]))
            same.append(reference[at][here].argmax(-1) == logits[here].argmax(-1))
        divergences.append(np.concatenate(rows).mean())
    spread = np.std(divergences, ddof=1) / len(divergences) ** 0.5 if len(divergences) > 1 else float("nan")
    agreed = float(np.concatenate(same).mean())
    return Measured(path.stat().st_size, float(np.mean(divergences)), float(spread), agreed)


def weights_in(path: Path) -> int:
    """Return the number of weights of a file."""
    return sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(path).tensors)


def run(options: argparse.Namespace, scratch: Path) -> None:
    """Make the rivals, and print the table."""
    source, *others = options.files
    windows = windows_of(options)
    count = weights_in(source)
    size = source.stat().st_size
    print(f"{source.name}: {size:,} bytes, {count:,} weights; {len(windows)} windows of {len(windows[0])} tokens\n")
    reference = None
    for at, logits in enumerate(batches(source, windows, options.threads)):
        if reference is None:
            shape = (len(windows), *logits.shape)
            reference = np.memmap(scratch / "reference", np.float32, "w+", shape=shape)
        reference[at] = logits
    print("| file | bytes | bits per weight | KL, nats per token | ± | same first token | seconds to quantize |")
    print("|---|---|---|---|---|---|---|")

    def row(name: str, path: Path, seconds: float | None) -> None:
        found = measure(path, reference, windows, options.threads)
        bits = 8 * found.size / count
        took = "" if seconds is None else f"{seconds:.1f}"
        cells = [name, f"{found.size:,}", f"{bits:.3f}", f"{found.kl:.5f}", f"{found.error:.5f}", f"{found.same:.4f}"]
        print("| " + " | ".join([*cells, took]) + " |", flush=True)

    for path in others:
        row(path.name, path, None)
    imatrices: dict[str, dict[str, npt.NDArray[np.float32]]] = {"": {}}
    if options.imatrix:
        imatrices[", imatrix"] = read_imatrix(options.imatrix)
    for kind in options.types:
        for suffix, weights in imatrices.items():
            output = (options.keep or scratch) / f"{source.stem}-{kind}{'-imatrix' if weights else ''}.gguf"
            began = time.process_time()
            quantize(source, output, kind, options.threads, weights)
            row(kind + suffix, output, time.process_time() - began)
            if options.keep is None:
                output.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="GGUF")
    parser.add_argument("--text", type=Path, help="text to measure on")
    parser.add_argument("--ids", type=Path, help="tokens to measure on, an array of NumPy")
    parser.add_argument("--bos", action="store_true", help="begin each window with the token that begins a text")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--types", nargs="*", default=TYPES, help="what llama-quantize makes")
    parser.add_argument("--imatrix", type=Path, help="an importance matrix in GGUF")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder to leave the files in that are made here")
    options = parser.parse_args()
    if (options.text is None) == (options.ids is None):
        parser.error("give --text or --ids")
    with tempfile.TemporaryDirectory() as scratch:
        run(options, Path(scratch))


if __name__ == "__main__":
    main()

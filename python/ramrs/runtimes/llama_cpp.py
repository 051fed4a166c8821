"""llama.cpp, by its library's own interface in C: the package llama-cpp-py-sync binds all of it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramrs.runtimes import Found

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FORMAT = "gguf"
MODULES = ("llama_cpp_py_sync._cffi_bindings",)
PACKAGES = "llama-cpp-py-sync"

BOUND = 0.15
"""The largest difference of logits, as a share of their range: kernels for quantized weights round activations, too.

Measured on 32 tokens, the most of outputs at three sizes: SmolLM2-135M 0.029, Gemma-3-270M 0.087. Of SmolLM2 with
rows of queries in the wrong order in all layers it is 0.82, and in the first layer alone 0.26.
"""

ERROR = 4
"""The level of the library's log that says why it gave up."""


def version() -> str:
    """Return the version of the runtime."""
    from llama_cpp_py_sync import __llama_cpp_tag__

    return f"llama.cpp {__llama_cpp_tag__}"


def run(output: Path, tokens: list[int]) -> Found:
    """Load an output strictly, and run it on the CPU."""
    try:
        with opened(output, len(tokens)) as model:
            found = model.logits(tokens)
    except Exception as fault:  # of any kind: the library may be of another version, or not load here
        reason = textwrap.shorten(f"{type(fault).__name__}: {fault}", 300, placeholder=" …")
        return Found(None, [f"it does not load and run the output: {reason}"])
    return Found(found, [], BOUND)


class LlamaCppError(Exception):
    """What llama.cpp says when it does not load or run a model."""


@dataclass(slots=True)
class Model:
    """A model in memory, with a context for one text."""

    _ffi: Any
    _library: Any
    _context: Any
    vocabulary: int
    """The number of tokens, and of logits for each."""

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the logits after each token of a text, ``[tokens, vocabulary]``. What was run before is forgotten."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        return self._decode(tokens, 0)

    def generate(self, tokens: Sequence[int], count: int) -> list[int]:
        """Return the ``count`` tokens after a text, each the likeliest."""
        row, made = self.logits(tokens)[-1], []
        for at in range(count):
            made.append(int(row.argmax()))
            if len(made) < count:
                row = self._decode(made[-1:], len(tokens) + at)[-1]
        return made

    def _decode(self, tokens: Sequence[int], start: int) -> npt.NDArray[np.float32]:
        import numpy as np

        batch = self._library.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for at, token in enumerate(tokens):
                batch.token[at], batch.pos[at], batch.logits[at] = int(token), start + at, 1
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
            status = self._library.llama_decode(self._context, batch)
            if status:
                raise LlamaCppError(f"llama_decode ended with {status}")
            size = 4 * len(tokens) * self.vocabulary
            found = self._ffi.buffer(self._library.llama_get_logits(self._context), size)
            return np.frombuffer(found, np.float32).reshape(len(tokens), self.vocabulary).copy()
        finally:
            self._library.llama_batch_free(batch)


@contextmanager
def opened(path: Path, length: int, threads: int = 1) -> Iterator[Model]:
    """Load a GGUF, a file or a directory with one, for texts of up to ``length`` tokens.

    Keys and values of attention are kept in float32, so that all that is rounded is what the kernels of the weights
    round.

    Raises:
        LlamaCppError: The library does not load it; with its own words.
    """
    from llama_cpp_py_sync import _cffi_bindings as bindings

    ffi, library = bindings.ffi, bindings.get_lib()
    words: list[str] = []

    def say(level: int, text: object, _: object) -> None:
        if level == ERROR:
            words.append(ffi.string(text).decode("utf-8", "replace").strip())

    callback = ffi.callback("void(enum ggml_log_level, const char *, void *)", say)
    library.llama_log_set(callback, ffi.NULL)
    model = context = ffi.NULL
    try:
        library.llama_backend_init()
        settings = library.llama_model_default_params()
        settings.n_gpu_layers = 0
        model = library.llama_model_load_from_file(str(file_of(path)).encode(), settings)
        if model == ffi.NULL:
            raise LlamaCppError("; ".join(words) or "llama_model_load_from_file failed")
        wanted = library.llama_context_default_params()
        wanted.n_ctx = wanted.n_batch = wanted.n_ubatch = max(length, 32)
        wanted.n_threads = wanted.n_threads_batch = threads
        wanted.type_k = wanted.type_v = library.GGML_TYPE_F32
        wanted.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = library.llama_init_from_model(model, wanted)
        if context == ffi.NULL:
            raise LlamaCppError("; ".join(words) or "llama_init_from_model failed")
        yield Model(ffi, library, context, library.llama_vocab_n_tokens(library.llama_model_get_vocab(model)))
    finally:
        if context != ffi.NULL:
            library.llama_free(context)
        if model != ffi.NULL:
            library.llama_model_free(model)
        # The library's own log again: it must not call a function that is gone.
        library.llama_log_set(ffi.NULL, ffi.NULL)


def file_of(path: Path) -> Path:
    """Return the file to load: of a directory its only GGUF, or the first part of one."""
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1 and not (files and "-00001-of-" in files[0].name):
        raise LlamaCppError(f"{path} has {len(files)} GGUF files")
    return files[0]

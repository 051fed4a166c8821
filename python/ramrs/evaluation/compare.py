"""KL divergence, perplexity and top-1 agreement of a model against its reference.

``mlx_lm`` loads both models. MLX's matrix products on a CPU are a hundred times slower than a tuned BLAS. By default,
therefore, weights are decoded to float32, NumPy multiplies in linear layers, embeddings and attention, and the runtime
does the rest. This measures the model that the file holds, without the rounding of 16-bit arithmetic. ``runtime=True``
measures the runtime as it is.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ramrs._core import Callback
from ramrs.errors import CheckpointError, ConfigError
from ramrs.options import EvalOptions
from ramrs.types import Evaluation, Progress

__all__ = ["evaluate"]

_POSITIONS = 64
"""Positions to compare at a time: each takes memory in proportion to the vocabulary."""


def evaluate(output: Path, reference: Path, options: EvalOptions, progress: Callback | None) -> Evaluation:
    """Evaluate ``output`` against ``reference`` with resolved options: see :func:`ramrs.eval`."""
    window, runtime = options["window"], options["runtime"]
    text, tokens = (None if path is None else Path(path) for path in (options["text"], options["tokens"]))
    ids = _token_ids(reference, text, tokens)
    for model in (reference, output):
        _in_vocabulary(ids, model)
    first, note = _bos(reference, options["bos"])
    windows = _windows(ids, window, options["max_tokens"], first)
    with _runtime(runtime) as load:
        models = [load(reference), _load_output(load, output, reference)]
        found = _Sums()
        for done, row in enumerate(windows):
            if progress is not None:
                progress(Progress("eval", done * window, len(windows) * window))
            logits = [_logits(model, row) for model in models]
            if logits[0].shape != logits[1].shape:
                one, other = (each.shape[-1] for each in logits)
                message = f"{output}: has a vocabulary of {other}, and {reference} one of {one}: nothing to compare"
                raise CheckpointError(message, slug="other-model", path=str(output))
            found.add(logits, row)
    if progress is not None:
        progress(Progress("eval", len(windows) * window, len(windows) * window))
    computed = "the runtime's own kernels" if runtime else "float32 on decoded weights"
    return found.evaluation(windows.shape[1], first, note, computed)


def _token_ids(reference: Path, text: Path | None, tokens: Path | None) -> NDArray[np.int64]:
    """Read the token ids to evaluate on."""
    if tokens is not None and text is None:
        ids = _saved_ids(tokens)
    elif text is not None and tokens is None:
        ids = _encoded(reference, text)
    else:
        raise ConfigError("⟨text⟩ or ⟨tokens⟩: give the one or the other", slug="bad-option")
    return ids


def _in_vocabulary(ids: NDArray[np.int64], model: Path) -> None:
    vocabulary = _json(model / "config.json").get("vocab_size")
    if ids.size and isinstance(vocabulary, int) and not 0 <= ids.min() <= ids.max() < vocabulary:
        message = f"token ids from {ids.min()} to {ids.max()}, and the vocabulary of {model} has {vocabulary}"
        raise ConfigError(message, slug="bad-option", hint="give ids of this model's own tokenizer")


def _saved_ids(path: Path) -> NDArray[np.int64]:
    try:
        ids = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as fault:
        message = f"⟨tokens⟩ `{path}`: not an .npy file: {fault}"
        raise ConfigError(message, slug="bad-option", path=str(path)) from fault
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
        message = f"⟨tokens⟩ `{path}`: not a list of token ids, which is an array of integers of one dimension"
        raise ConfigError(message, slug="bad-option", path=str(path))
    return np.asarray(ids, dtype=np.int64)


def _encoded(reference: Path, text: Path) -> NDArray[np.int64]:
    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as fault:
        message = f"⟨text⟩ `{text}`: not UTF-8: {fault.reason} at byte {fault.start}"
        raise ConfigError(message, slug="bad-option", path=str(text)) from fault
    tokenizer = _tokenizer(reference)
    if tokenizer is None:
        message = f"{reference}: no tokenizer.json"
        hint = "give token ids with ⟨tokens=FILE.npy⟩"
        raise CheckpointError(message, slug="no-tokenizer", hint=hint, path=str(reference / "tokenizer.json"))
    return np.asarray(tokenizer.encode(content, add_special_tokens=False).ids, dtype=np.int64)


def _tokenizer(reference: Path) -> Any | None:  # noqa: ANN401
    path = reference / "tokenizer.json"
    if not path.exists():
        return None
    with _mlx():
        from tokenizers import Tokenizer
    try:
        return Tokenizer.from_file(str(path))
    except Exception as fault:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{path}: not a tokenizer: {fault}", slug="no-tokenizer", path=str(path)) from fault


def _bos(reference: Path, bos: int | Literal["auto", "none"]) -> tuple[int | None, str]:
    """Find the first token of all windows, and describe its source."""
    if bos == "none":
        return None, "no BOS"
    if bos != "auto":
        return int(bos), f"BOS {bos}"
    settings = _json(reference / "tokenizer_config.json")
    token = settings.get("bos_token")
    token = token.get("content") if isinstance(token, dict) else token
    tokenizer = _tokenizer(reference) if token is not None else None
    if tokenizer is not None:
        found = tokenizer.token_to_id(token)
        if found is not None:
            return found, f"BOS {token} ({found}) of the tokenizer"
    if settings and token is None:
        return None, "no BOS: the tokenizer has none"
    found = _json(reference / "config.json").get("bos_token_id")
    found = found[0] if isinstance(found, list) else found
    return (found, f"BOS {found} of config.json") if found is not None else (None, "no BOS: none is known")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as fault:
        raise CheckpointError(f"{path}: not JSON: {fault}", slug="config-syntax", path=str(path)) from fault
    return found if isinstance(found, dict) else {}


def _windows(ids: NDArray[np.int64], window: int, max_tokens: int | None, first: int | None) -> NDArray[np.int64]:
    """Cut the ids into windows that begin with ``first``; an incomplete last window is left out."""
    if window < 2:
        raise ConfigError(f"⟨window⟩ `{window}`: at least two tokens are needed", slug="bad-option")
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"⟨max_tokens⟩ `{max_tokens}`: is less than one", slug="bad-option")
    ids = ids[:max_tokens]
    body = window - (first is not None)
    count = len(ids) // body
    if count == 0:
        message = f"⟨window⟩ `{window}`: the text has {len(ids)} tokens only"
        raise ConfigError(message, slug="bad-option")
    rows = ids[: count * body].reshape(count, body)
    return rows if first is None else np.insert(rows, 0, first, axis=1)


def _logits(model: Any, row: NDArray[np.int64]) -> NDArray[np.float32]:  # noqa: ANN401
    """Compute the logits of a window: ``[positions, vocabulary]``."""
    import mlx.core as mx

    logits = model(mx.array(row[None]))[0].astype(mx.float32)
    return np.array(logits)


class _Sums:
    """Sums over the windows so far."""

    def __init__(self) -> None:
        self._kl: list[NDArray[np.float64]] = []
        self._nll: list[list[float]] = [[], []]
        self._same = 0
        self._tokens = 0

    def add(self, logits: list[NDArray[np.float32]], row: NDArray[np.int64]) -> None:
        """Add a window: logits of the reference and of the model."""
        nll = np.zeros(2)
        for start in range(0, len(row) - 1, _POSITIONS):
            stop = min(start + _POSITIONS, len(row) - 1)
            reference, model = (_log_softmax(each[start:stop]) for each in logits)
            self._kl.append((np.exp(reference) * (reference - model)).sum(axis=-1))
            self._same += int((reference.argmax(axis=-1) == model.argmax(axis=-1)).sum())
            following = row[start + 1 : stop + 1, None]
            for which, each in enumerate((reference, model)):
                nll[which] -= np.take_along_axis(each, following, axis=-1).sum()
        predicted = len(row) - 1
        self._tokens += predicted
        for which in (0, 1):
            self._nll[which].append(float(nll[which]) / predicted)

    def evaluation(self, window: int, bos: int | None, note: str, computed: str) -> Evaluation:
        """Return the result."""
        kl = np.concatenate(self._kl)
        reference, model = (np.asarray(each) for each in self._nll)
        return Evaluation(
            kl_mean=float(kl.mean()),
            kl_median=float(np.median(kl)),
            kl_p99=float(np.percentile(kl, 99)),
            perplexity_mean=float(np.exp(model.mean())),
            perplexity_median=float(np.exp(np.median(model))),
            reference_perplexity_mean=float(np.exp(reference.mean())),
            reference_perplexity_median=float(np.exp(np.median(reference))),
            top1_agreement=self._same / self._tokens,
            windows=len(model),
            window=window,
            tokens=self._tokens,
            bos=bos,
            bos_note=note,
            computed=computed,
        )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


@contextlib.contextmanager
def _mlx() -> Iterator[None]:
    """Name the missing extra if an import fails."""
    try:
        yield
    except ImportError as fault:
        message = f"eval needs MLX: {fault}"
        raise ConfigError(message, slug="no-mlx", hint="pip install 'ramrs[eval]'") from fault


def _load_output(load: Callable[[Path], Any], output: Path, reference: Path) -> Any:  # noqa: ANN401
    """Load an output; one that mlx-lm does not read is decoded into a checkpoint like the reference first."""
    if (_json(output / "config.json").get("quantization_config") or {}).get("quant_method") != "compressed-tensors":
        return load(output)
    from ramrs.evaluation import decode

    with tempfile.TemporaryDirectory(prefix="ramrs-eval-") as directory:
        decode.write(output, reference, Path(directory))
        return load(Path(directory))


@contextlib.contextmanager
def _runtime(own_kernels: bool) -> Iterator[Callable[[Path], Any]]:
    """Yield a function that loads a model. The model may be run while the context lasts."""
    with _mlx():
        import mlx.core as mx
        from mlx_lm.utils import load_model

    def load(path: Path) -> Any:  # noqa: ANN401
        if not (path / "config.json").exists():
            raise CheckpointError(f"{path}: no config.json", slug="no-checkpoint", path=str(path))
        try:
            return load_model(path)[0]
        except (ValueError, KeyError, TypeError, RuntimeError) as fault:
            message = f"{path}: mlx-lm cannot load it: {fault}"
            raise CheckpointError(message, slug="not-loadable", path=str(path)) from fault

    if own_kernels:
        yield load
        return
    from ramrs.evaluation import numpy_backend

    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        with numpy_backend.attention():
            yield lambda path: numpy_backend.decoded(load(path))
    finally:
        mx.set_default_device(before)

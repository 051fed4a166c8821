"""KL divergence, perplexity and top-1 agreement of models against their reference, as mlx-lm runs them.

``mlx_lm`` loads all models. MLX's matrix products on a CPU are a hundred times slower than a tuned BLAS. In
``mlx-float32``, therefore, weights are decoded to float32, NumPy multiplies in linear layers, embeddings and attention,
and the runtime does the rest. This measures the model that the file holds, without the rounding of 16-bit arithmetic.
``mlx`` measures the runtime as it is.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ramrs._core import Callback
from ramrs.errors import CheckpointError, ConfigError
from ramrs.evaluation import tokens
from ramrs.evaluation.tokens import json_object
from ramrs.options import EvalOptions
from ramrs.types import Evaluation, Progress

__all__ = ["evaluate"]

_POSITIONS = 64
"""Positions to compare at a time: each takes memory in proportion to the vocabulary."""

_WINDOW = 256
"""Tokens of a window, if the user does not say."""


def evaluate(
    outputs: Sequence[Path], reference: Path, options: EvalOptions, progress: Callback | None
) -> list[Evaluation]:
    """Evaluate ``outputs`` against ``reference`` with resolved options: see :func:`ramrs.eval`."""
    runtime = options["runtime"] in ("mlx", True)
    ids = tokens.read(reference, options["text"], options["tokens"])
    for model in (reference, *outputs):
        _in_vocabulary(ids, model)
    first, note = _bos(reference, options["bos"])
    window = options["window"] or _WINDOW
    windows = _windows(ids, window, options["max_tokens"], first)
    evaluations = []
    with _runtime(runtime) as load:
        loaded, total = load(reference), len(outputs) * len(windows) * window
        for at, output in enumerate(outputs):
            models = [loaded, _load_output(load, output, reference)]
            found = _Sums()
            for done, row in enumerate(windows):
                if progress is not None:
                    progress(Progress("eval", (at * len(windows) + done) * window, total))
                logits = [_logits(model, row) for model in models]
                if logits[0].shape != logits[1].shape:
                    one, other = (each.shape[-1] for each in logits)
                    message = f"{output}: has a vocabulary of {other}, and {reference} one of {one}: nothing to compare"
                    raise CheckpointError(message, slug="other-model", path=str(output))
                found.add(logits, row)
            computed = "mlx-lm, with its own kernels" if runtime else "mlx-lm, in float32 on decoded weights"
            evaluations.append(found.evaluation(output, windows.shape[1], first, note, computed))
    if progress is not None:
        progress(Progress("eval", total, total))
    return evaluations


def _in_vocabulary(ids: NDArray[np.int64], model: Path) -> None:
    vocabulary = json_object(model / "config.json").get("vocab_size")
    if ids.size and isinstance(vocabulary, int) and not 0 <= ids.min() <= ids.max() < vocabulary:
        message = f"token ids from {ids.min()} to {ids.max()}, and the vocabulary of {model} has {vocabulary}"
        raise ConfigError(message, slug="bad-option", hint="give ids of this model's own tokenizer")


def _bos(reference: Path, bos: int | Literal["auto", "none"]) -> tuple[int | None, str]:
    """Find the first token of all windows, and describe its source."""
    if bos == "none":
        return None, "no BOS"
    if bos != "auto":
        return int(bos), f"BOS {bos}"
    settings = json_object(reference / "tokenizer_config.json")
    token = settings.get("bos_token")
    token = token.get("content") if isinstance(token, dict) else token
    tokenizer = tokens.tokenizer(reference) if token is not None else None
    if tokenizer is not None:
        found = tokenizer.token_to_id(token)
        if found is not None:
            return found, f"BOS {token} ({found}) of the tokenizer"
    if settings and token is None:
        return None, "no BOS: the tokenizer has none"
    found = json_object(reference / "config.json").get("bos_token_id")
    found = found[0] if isinstance(found, list) else found
    return (found, f"BOS {found} of config.json") if found is not None else (None, "no BOS: none is known")


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
        self._same: list[int] = []
        self._tokens = 0

    def add(self, logits: list[NDArray[np.float32]], row: NDArray[np.int64]) -> None:
        """Add a window: logits of the reference and of the model."""
        nll = np.zeros(2)
        same = 0
        for start in range(0, len(row) - 1, _POSITIONS):
            stop = min(start + _POSITIONS, len(row) - 1)
            reference, model = (_log_softmax(each[start:stop]) for each in logits)
            self._kl.append((np.exp(reference) * (reference - model)).sum(axis=-1))
            same += int((reference.argmax(axis=-1) == model.argmax(axis=-1)).sum())
            following = row[start + 1 : stop + 1, None]
            for which, each in enumerate((reference, model)):
                nll[which] -= np.take_along_axis(each, following, axis=-1).sum()
        predicted = len(row) - 1
        self._tokens += predicted
        self._same.append(same)
        for which in (0, 1):
            self._nll[which].append(float(nll[which]) / predicted)

    def evaluation(self, output: Path, window: int, bos: int | None, note: str, computed: str) -> Evaluation:
        """Return the result."""
        kl = np.concatenate(self._kl)
        reference, model = (np.asarray(each) for each in self._nll)
        windows = kl.reshape(len(model), -1).mean(axis=1)
        shares = np.asarray(self._same) / (self._tokens / len(model))
        return Evaluation(
            output=str(output),
            kl_mean=float(kl.mean()),
            kl_median=float(np.median(kl)),
            kl_p99=float(np.percentile(kl, 99)),
            perplexity_mean=float(np.exp(model.mean())),
            perplexity_median=float(np.exp(np.median(model))),
            reference_perplexity_mean=float(np.exp(reference.mean())),
            reference_perplexity_median=float(np.exp(np.median(reference))),
            top1_agreement=sum(self._same) / self._tokens,
            windows=len(model),
            window=window,
            tokens=self._tokens,
            bos=bos,
            bos_note=note,
            computed=computed,
            kl_mean_error=_error(windows),
            perplexity_mean_error=_error(model, float(np.exp(model.mean()))),
            reference_perplexity_mean_error=_error(reference, float(np.exp(reference.mean()))),
            top1_agreement_error=_error(shares),
        )


def _error(windows: NDArray[np.float64], factor: float = 1.0) -> float | None:
    """Return ``factor`` times the standard error of the mean over windows."""
    count = len(windows)
    return factor * float(windows.std(ddof=1)) / count**0.5 if count > 1 else None


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
    if (json_object(output / "config.json").get("quantization_config") or {}).get(
        "quant_method"
    ) != "compressed-tensors":
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

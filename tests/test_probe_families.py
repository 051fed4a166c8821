"""The probe, family by family, against mlx-lm in float32: logits, and the moments of every matrix."""

import numpy as np
import pytest
import ramrs
from conftest import read_safetensors
from families import FAMILIES, write_family

pytest.importorskip("mlx_lm", reason="needs ramrs[eval]")
from mlx_reference import logits, traced

REFUSED = {"stablelm_parallel": "layers.0.self_attn.q_layernorm.norms.0.weight` has no place"}
"""Variants that the probe says it cannot run, and why."""

WINDOW, TOKENS, EXPERT_TOKENS = 64, 128, 16

INPUT_MAJOR = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight", ".gate_up_proj", ".experts.down_proj")
"""Ends of names of matrices that gpt2 and gpt_oss store with a row for each input."""


def probe(model, directory, **options):
    """Run the probe; the report, what it wrote, and what it saw."""
    output, trace = directory / "sensitivity.safetensors", directory / "trace.safetensors"
    report = ramrs.probe(model, output, tokens=TOKENS, trace=trace, **options)
    return report, read_safetensors(output), read_safetensors(trace)


def softmax(logits):
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def window_sums(trace):
    """Squared gradients of the weights, window by window, summed over outputs and over inputs."""
    inputs, outputs = np.zeros(trace.x.shape[1]), np.zeros(trace.g.shape[1])
    for window in np.unique(trace.row // WINDOW):
        here = trace.row // WINDOW == window
        gradient = trace.g[here].astype(np.float64).T @ trace.x[here].astype(np.float64)
        inputs += np.square(gradient).sum(axis=0)
        outputs += np.square(gradient).sum(axis=1)
    return inputs, outputs


class Expected:
    """What the moments of each matrix should be, per token: by mlx-lm's gradients, draw by draw."""

    def __init__(self, model, name, tokens, gradients, logits):
        self.sums, self.squares, self.loads = {}, {}, {}
        draws, scores = gradients.shape[1], softmax(logits).reshape(-1, logits.shape[-1])
        for draw in range(draws):
            for key, trace in traced(model, tokens, gradients[:, draw].reshape(logits.shape), name).items():
                if key.endswith("#lookup"):
                    squares = np.square(trace.g.astype(np.float64))
                    self.add(key, squares.sum(axis=0), self.by_token(squares, logits.shape[-1]))
                    continue
                self.squares[key] = np.square(trace.x.astype(np.float64)).mean(axis=0) if len(trace.row) else None
                self.loads[key] = len(trace.row)
                if key in ("lm_head.weight", "embed_out.weight") or key + "#lookup" in self.sums:
                    # Of the head's matrix the expectation is known; the trace has the slope of cap and scale.
                    sent = np.where(gradients[:, draw] == 0, 1, gradients[:, draw])
                    slopes = trace.g.astype(np.float64) / sent
                    spread = scores * (1 - scores) * np.square(slopes)
                    x = np.square(trace.x.astype(np.float64))
                    self.add(key, (x * spread.sum(axis=1, keepdims=True)).sum(axis=0), x.sum(axis=1) @ spread)
                else:
                    self.add(key, *window_sums(trace))
        self.sums = {key: [each / (tokens.size * draws) for each in sums] for key, sums in self.sums.items()}

    def poor(self):
        """How many matrices saw too few tokens to be measured."""
        return sum(0 < load < EXPERT_TOKENS for load in self.loads.values())

    def add(self, key, inputs, outputs):
        sums = self.sums.setdefault(key, [0, 0])
        sums[0], sums[1] = sums[0] + inputs, sums[1] + outputs

    @staticmethod
    def by_token(squares, vocabulary):
        """Any token may come, and all do alike."""
        return np.full(vocabulary, squares.sum() / vocabulary)


def assert_close(found, expected, what):
    apart = np.abs(found - expected).max() / np.abs(expected).max()
    assert apart < 2e-3, f"{what}: {apart}"


def vectors(sensitivity, key):
    """The vectors of a matrix, of a stack if the key ends with an index."""
    name, _, at = key.removesuffix("]").partition("[")
    found = [sensitivity[f"{name}.{which}"].values for which in ("k", "r", "x2") if f"{name}.{which}" in sensitivity]
    return [each[int(at)] if at else each for each in found]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in REFUSED])
def test_logits_and_moments_are_those_of_mlx_lm(name, tmp_path):
    model = write_family(name, tmp_path / "model")
    report, sensitivity, seen = probe(model, tmp_path)
    tokens = seen["tokens"].elements.astype(np.int64)
    reference = logits(model, tokens, name)
    assert np.abs(seen["logits"].elements.reshape(reference.shape) - reference).max() <= 1e-4

    expected = Expected(model, name, tokens, seen["gradients"].elements, reference)
    lookup = next(key for key in expected.sums if key.endswith("#lookup") and "wpe" not in key)
    embedding, lookup = lookup.removesuffix("#lookup"), expected.sums.pop(lookup)
    sums = expected.sums.setdefault(embedding, [0, 0])
    sums[0], sums[1] = sums[0] + lookup[0], sums[1] + lookup[1]
    measured = 0
    for key, (inputs, outputs) in expected.sums.items():
        if key.startswith("wpe.") or expected.loads.get(key, EXPERT_TOKENS) < EXPERT_TOKENS:
            continue
        k, r, *x2 = vectors(sensitivity, key)
        is_input_major = name in ("gpt2", "gpt_oss") and key.split("[")[0].endswith(INPUT_MAJOR)
        columns, rows = (outputs, inputs) if is_input_major else (inputs, outputs)
        assert_close(k, columns / columns.mean(), f"{key}.k")
        assert_close(r, rows / len(columns), f"{key}.r")
        if key in expected.squares:
            assert_close(x2[0], expected.squares[key], f"{key}.x2")
        measured += 1
    assert measured == report.matrices + (embedding not in expected.squares) - expected.poor()

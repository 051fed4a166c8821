"""What the probe should find, from mlx-lm's activations and gradients of the same tokens."""

import numpy as np
from oracles.mlx_reference import logits, traced

WINDOW, EXPERT_TOKENS = 64, 16

UNFAMILIAR = 1.2
"""How much more errors matter in other texts than those that a model wrote."""

INPUT_MAJOR = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight", ".gate_up_proj", ".experts.down_proj")
"""Ends of names of matrices that gpt2 and gpt_oss store with a row for each input."""


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
    """What the moments of each matrix should be, per token: by mlx-lm's gradients, draw by draw.

    Windows begin with `special[0]`, and hold no other token of `special`.
    """

    def __init__(self, model, name, tokens, gradients, logits, special):
        self.sums, self.squares, self.loads, self.special = {}, {}, {}, list(special)
        draws, scores = gradients.shape[1], softmax(logits).reshape(-1, logits.shape[-1])
        for draw in range(draws):
            for key, trace in traced(model, tokens, gradients[:, draw].reshape(logits.shape), name).items():
                if key.endswith("#lookup"):
                    # A text has one beginning of 8 tokens in 8 windows.
                    share = np.where(trace.row % WINDOW < 8, 1 / 8, 1) * WINDOW / (1 + 56)
                    squares = np.square(trace.g.astype(np.float64)) * share[:, None]
                    self.add(key, squares.sum(axis=0), self.by_token(trace.row, squares.sum(axis=1), logits.shape[-1]))
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

    def by_token(self, row, squares, vocabulary):
        """Any token may come, and all do alike, but for the one that every window begins with."""
        is_first = (row % WINDOW == 0) & bool(self.special)
        found = np.full(vocabulary, squares[~is_first].sum() / (vocabulary - len(self.special)))
        found[self.special] = 0
        found[self.special[:1]] = squares[is_first].sum()
        return found


def assert_close(found, expected, what):
    apart = np.abs(found - expected).max() / np.abs(expected).max()
    assert apart < 2e-3, f"{what}: {apart}"


def vectors(sensitivity, key):
    """The vectors of a matrix, of a stack if the key ends with an index."""
    name, _, at = key.removesuffix("]").partition("[")
    found = [sensitivity[f"{name}.{which}"].values for which in ("k", "r", "x2") if f"{name}.{which}" in sensitivity]
    return [each[int(at)] if at else each for each in found]


def assert_probed(model, report, sensitivity, seen, variant, special=(), within=1e-4):
    """Hold what a probe of `model` reported, wrote and saw against mlx-lm; logits `within` so much of each other."""
    tokens = seen["tokens"].elements.astype(np.int64)
    reference = logits(model, tokens, variant)
    apart = np.abs(seen["logits"].elements.reshape(reference.shape) - reference).max()
    assert apart <= within
    expected = Expected(model, variant, tokens, seen["gradients"].elements, reference, special)
    lookup = next(key for key in expected.sums if key.endswith("#lookup") and "wpe" not in key)
    embedding, lookup = lookup.removesuffix("#lookup"), expected.sums.pop(lookup)
    sums = expected.sums.setdefault(embedding, [0, 0])
    sums[0], sums[1] = sums[0] + lookup[0], sums[1] + lookup[1]
    times = UNFAMILIAR if report.probe.mode == "self" else 1
    measured = 0
    for key, (inputs, outputs) in expected.sums.items():
        if key.startswith("wpe.") or expected.loads.get(key, EXPERT_TOKENS) < EXPERT_TOKENS:
            continue
        k, r, *x2 = vectors(sensitivity, key)
        is_input_major = variant in ("gpt2", "gpt_oss") and key.split("[")[0].endswith(INPUT_MAJOR)
        columns, rows = (outputs, inputs) if is_input_major else (inputs, outputs)
        assert_close(k, columns / columns.mean(), f"{key}.k")
        assert_close(r, times * rows / len(columns), f"{key}.r")
        if key in expected.squares:
            assert_close(x2[0], expected.squares[key], f"{key}.x2")
        measured += 1
    assert measured == report.matrices + (embedding not in expected.squares) - expected.poor()

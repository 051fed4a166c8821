"""vLLM on a CPU computes what transformers does, with the outputs that its CPU kernel takes: dense layers in 4 bits."""

from dataclasses import dataclass, field

import pytest
import ramrs
from fixtures.paths import DATA
from oracles.compressed_tensors import read_decoded
from runtimes.cases import MODELS, SMOLLM2, bits_per_weight, write_decoded
from runtimes.running import STORY, TOKENS, consume, divergence, log_softmax

BOUND = 1e-3
"""Nats per token."""


@dataclass(frozen=True)
class Batch:
    """Cases that vLLM computes in one process, and what it is compared with."""

    cases: list[tuple[str, int]]
    """Models, and the weights in a group; -1: a group for each output channel."""
    dtype: str = "float16"
    """vLLM's. Its kernel for 4 bits is exact in float16."""
    reference: str = "float32"
    """That of transformers."""
    tokens: list[int] = field(default_factory=lambda: TOKENS)


BATCHES = [
    Batch(
        [("llama", 32), ("llama", 64), ("llama", 128), ("llama", -1), ("tiny-llama-bf16", 128), ("tiny-llama-bf16", -1)]
    ),
    Batch([("qwen2", 64), ("qwen3", 64)]),
    Batch([("gemma3_text", 64)], "bfloat16", "bfloat16"),  # vLLM refuses float16 for it
    Batch([("smollm2-135m", 64)], tokens=STORY),
]
CASES = [(*case, batch) for batch in BATCHES for case in batch.cases]


def source_of(name, batch, folder):
    """Write the source of a case, if it is not there."""
    if name not in MODELS:
        return DATA / name
    return MODELS[name].write_calm(folder) if batch.dtype == "bfloat16" else MODELS[name].write(folder)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Outputs of 4 bits, and what transformers and vLLM compute."""
    folder, outputs, reference, loaded = tmp_path_factory.mktemp("vllm"), {}, {}, {}
    for at, batch in enumerate(BATCHES):
        made, decoded = {}, {}
        for name, group in batch.cases:
            output, source = folder / f"{name}-{group}", source_of(name, batch, folder / f"{name}-{group}-source")
            if (source / "config.json").exists():
                ramrs.quantize(source, output, format="compressed-tensors", target="vllm", bits=4, group_size=group)
                made[name, group] = output
                decoded[name, group] = write_decoded(folder / f"{name}-{group}-decoded", output)
        if made:
            outputs |= made
            scratch = folder / f"batch-{at}"
            reference |= consume("transformers", decoded, scratch / "transformers", batch.reference, batch.tokens)
            loaded |= consume("vllm", made, scratch / "vllm", batch.dtype, batch.tokens)
    return outputs, reference, loaded


@pytest.mark.parametrize(("name", "group", "batch"), CASES, ids=lambda value: getattr(value, "dtype", None))
def test_vllm_computes_what_transformers_does(results, record, name, group, batch):
    outputs, reference, loaded = results
    if (name, group) not in outputs:
        assert name == "smollm2-135m" and not SMOLLM2.exists()
        pytest.skip("models/smollm2-135m is not there: run `make models`")
    outcome = loaded[name, group]
    assert outcome.loaded, outcome.words
    assert len(outcome.generated) == 4
    kl = divergence(log_softmax(reference[name, group].values), outcome.values)
    output = outputs[name, group]
    scheme = "int4channel" if group == -1 else f"int4g{group}"
    width = bits_per_weight(output, read_decoded(output))
    record.divergences.append((name, scheme, f"{width:.3f}", batch.dtype, f"{kl:.1e}", outcome.generated))
    assert kl <= BOUND

"""vLLM on a CPU computes what transformers does, with the outputs that its CPU kernel takes: dense layers in 4 bits."""

import pytest
import ramrs
from fixtures.paths import DATA
from oracles.compressed_tensors import read_decoded
from runtimes.cases import MODELS, SMOLLM2, bits_per_weight, write_decoded
from runtimes.running import consume, divergence, log_softmax

BOUND = 1e-3
"""Nats per token."""

CASES = [("llama", 32), ("llama", 64), ("llama", 128), ("llama", -1), ("qwen2", 64), ("qwen3", 64), ("gemma3_text", 64)]
CASES += [("tiny-llama-bf16", 128), ("tiny-llama-bf16", -1), ("smollm2-135m", 64)]
"""Models, and the weights in a group; -1: a group for each output channel."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Outputs of 4 bits, and what transformers and vLLM compute. Each runtime is started once."""
    folder, outputs, decoded = tmp_path_factory.mktemp("vllm"), {}, {}
    for name, group in CASES:
        model, output = MODELS.get(name), folder / f"{name}-{group}"
        source = model.write_calm(folder / f"{name}-{group}-source") if model else DATA / name
        if (source / "config.json").exists():
            ramrs.quantize(source, output, format="compressed-tensors", target="vllm", bits=4, group_size=group)
            outputs[name, group] = output
            decoded[name, group] = write_decoded(folder / f"{name}-{group}-decoded", output)
    reference = consume("transformers", decoded, folder / "transformers", dtype="bfloat16")
    return outputs, reference, consume("vllm", outputs, folder / "logprobs", dtype="bfloat16")


@pytest.mark.parametrize(("name", "group"), CASES)
def test_vllm_computes_what_transformers_does(results, record, name, group):
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
    record.divergences.append((name, scheme, f"{width:.3f}", f"{kl:.1e}", outcome.generated))
    assert kl <= BOUND

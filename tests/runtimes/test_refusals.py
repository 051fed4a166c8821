"""Checkpoints that a runtime refuses or computes wrongly: tried on the runtime, and refused by ramrs for it."""

from dataclasses import dataclass, field

import pytest
import ramrs
from fixtures.configs import WIDER
from fixtures.models import write_variant
from runtimes.cases import HEADS, write_decoded
from runtimes.handmade import NVFP4, Layout, Rule, integers, write_handmade
from runtimes.record import one_line
from runtimes.running import consume, difference

ATTENTION = Rule(r"self_attn\..*_proj$", integers(8, 64), ["re:.*[.]self_attn[.](q|k|v|o)_proj$"])
MLP = Rule(r"\.mlp\.(gate|up|down)_proj$", integers(4, 64))
ROUTER = "re:.*[.]mlp[.]gate$"
EXPERTS = r"experts\.\d+\.(gate|up|down)_proj$"

GARBAGE = "garbage"
"""The runtime loads the checkpoint without an error and computes something else."""

CONVERSION = "issues during automatic conversion of the weights"


def experts(layer, scheme, parts="gate|up|down", numbers="[0-9]+"):
    """Return the rule of a layer's experts, which an expression names."""
    names = f"layers.{layer}.mlp.experts.{numbers}.({parts})_proj$"
    return Rule(names.replace(".", r"\."), scheme, ["re:.*[.]" + names.replace(".", "[.]")])


@dataclass(frozen=True)
class Line:
    """A checkpoint that a runtime does not take, and how a user would ask ramrs for it."""

    runtime: str
    words: str
    """What the runtime says, in part; or :data:`GARBAGE`."""
    rules: list[Rule]
    ask: dict[str, str]
    """Rules for ramrs, by regular expression."""
    model: str = "llama"
    ignore: list[str] | None = None
    changes: dict = field(default_factory=dict)
    """To the configuration of the source."""


MOE = {"model": "qwen3_moe", "ignore": ["lm_head", ROUTER]}
LAYER_0, LAYER_1 = r"layers\.0\.mlp\.experts", r"layers\.1\.mlp\.experts"

LINES = {
    # Dense layers in vLLM.
    "vllm: q in other groups than k and v": Line(
        "vllm",
        "AssertionError",
        [Rule(r"self_attn\.q_proj$", integers(4, 128)), Rule(r"self_attn\.[kv]_proj$", integers(4, 64))],
        {r"q_proj": "4g128", r"[kv]_proj": "4g64"},
    ),
    "vllm: q and k quantized, v not": Line(
        "vllm",
        "Found different quantization schemes for the shards",
        [Rule(r"self_attn\.[qk]_proj$", integers(4, 64))],
        {r"[qk]_proj": "4g64", r"v_proj": "kept"},
    ),
    "vllm: gate and up in different groups": Line(
        "vllm",
        "AssertionError",
        [Rule(r"mlp\.gate_proj$", integers(4, 64)), Rule(r"mlp\.up_proj$", integers(4, 32))],
        {r"gate_proj": "4g64", r"up_proj": "4g32"},
    ),
    "vllm: a quantized embedding": Line(
        "vllm",
        "embed_tokens.weight_packed",
        [MLP, Rule(r"embed_tokens$", integers(8, 64))],
        {r"embed_tokens": "8g64"},
    ),
    # Experts in vLLM.
    "vllm: experts' down in another scheme than gate and up": Line(
        "vllm",
        "All MoE projections need to have same quantization scheme but found multiple",
        [experts("[0-9]+", integers(4, 32), "gate|up"), experts("[0-9]+", integers(8, 32), "down")],
        {r"experts.*(gate|up)_proj": "4g32", r"experts.*down_proj": "8g32"},
        **MOE,
    ),
    # Embeddings and experts in transformers.
    "transformers: a quantized embedding": Line(
        "transformers",
        "'Embedding' object has no attribute 'weight'",
        [MLP, Rule(r"embed_tokens$", integers(8, 64))],
        {r"embed_tokens": "8g64"},
    ),
    "transformers: experts of layers in groups of 32 and 64": Line(
        "transformers",
        CONVERSION,
        [experts(0, integers(4, 64)), experts(1, integers(4, 32)), ATTENTION],
        {LAYER_0: "4g64", LAYER_1: "4g32"},
        **MOE,
    ),
    "transformers: experts of layers in 4 and 8 bits": Line(
        "transformers",
        GARBAGE,
        [experts(1, integers(4, 32)), experts(0, integers(8, 32)), ATTENTION],
        {LAYER_0: "8g32", LAYER_1: "4g32"},
        **MOE,
    ),
    "transformers: experts' down in another scheme than gate and up": Line(
        "transformers",
        GARBAGE,
        [experts("[0-9]+", integers(4, 32), "gate|up"), experts("[0-9]+", integers(8, 32), "down"), ATTENTION],
        {r"experts.*(gate|up)_proj": "4g32", r"experts.*down_proj": "8g32"},
        **MOE,
    ),
    "transformers: experts of a layer in different schemes": Line(
        "transformers",
        CONVERSION,
        [experts(0, integers(4, 64)), experts(1, integers(4, 64), numbers="[0-3]"), experts(1, integers(4, 32))],
        {r"experts": "4g64", r"layers\.1\.mlp\.experts\.[4-7]": "4g32"},
        **MOE,
    ),
    "transformers: experts of one layer not quantized": Line(
        "transformers",
        CONVERSION,
        [experts(1, integers(4, 32)), ATTENTION],
        {LAYER_0: "kept", LAYER_1: "4g32"},
        model="qwen3_moe",
        ignore=["lm_head", ROUTER, r"re:.*[.]layers[.]0[.]mlp[.]experts[.].*"],
    ),
    "transformers: no expert quantized, attention quantized": Line(
        "transformers",
        CONVERSION,
        [ATTENTION],
        {r"experts": "kept", r"self_attn": "8g64"},
        model="qwen3_moe",
        ignore=["lm_head", ROUTER, r"re:.*[.]mlp[.]experts[.].*"],
    ),
    "transformers: experts in NVFP4": Line(
        "transformers", GARBAGE, [experts("[0-9]+", NVFP4), ATTENTION], {r"experts": "nvfp4"}, **MOE
    ),
}

RUNTIMES_OF = {"vllm": ("vllm", "sglang", "all"), "transformers": ("transformers", "all")}
"""The targets that a runtime's line counts for. SGLang fuses what vLLM fuses."""


def source(line, directory):
    """Write the source of a line."""
    changes = WIDER | HEADS | line.changes
    if line.model == "qwen3_moe":
        changes |= {"moe_intermediate_size": 64, "mlp_only_layers": [], "num_hidden_layers": 2}
    return write_variant(line.model, directory, dtype="BF16", **changes)


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """What the runtimes make of all lines."""
    folder = tmp_path_factory.mktemp("refusals")
    checkpoints = {"vllm": {}, "transformers": {}}
    for at, (name, line) in enumerate(LINES.items()):
        layout = Layout(ignore=line.ignore)
        made = write_handmade(folder / f"{at}", source(line, folder / f"{at}-source"), line.rules, layout)
        checkpoints[line.runtime][name] = made
        if line.words == GARBAGE:
            checkpoints[line.runtime][name, "decoded"] = write_decoded(folder / f"{at}-decoded", made)
    results = {}
    for runtime, of in checkpoints.items():
        results |= consume(runtime, of, folder / runtime, dtype="bfloat16")
    return results


@pytest.mark.parametrize("name", LINES)
def test_the_runtime_does_not_take_it(tried, record, name):
    """A line that fails here is one that a newer runtime takes: then ramrs need not refuse it."""
    line, outcome = LINES[name], tried[name]
    if line.words == GARBAGE:
        assert outcome.loaded, outcome.words
        share = difference(tried[name, "decoded"].values, outcome.values)
        record.refusals.append((line.runtime, name.partition(": ")[2], f"none: logits are off by {share:.2f}"))
        assert share > 0.1
    else:
        assert not outcome.loaded
        record.refusals.append((line.runtime, name.partition(": ")[2], one_line(outcome.words)))
        assert line.words in outcome.words


@pytest.mark.parametrize(
    ("name", "target"), [(name, target) for name, line in LINES.items() for target in RUNTIMES_OF[line.runtime]]
)
def test_ramrs_does_not_write_it(tmp_path, name, target):
    line, output = LINES[name], tmp_path / "output"
    with pytest.raises(ramrs.errors.RamrsError):
        ramrs.quantize(
            source(line, tmp_path / "source"),
            output,
            format="compressed-tensors",
            target=target,
            bits=8,
            group_size=64,
            tensor=line.ask,
        )
    assert not output.exists()

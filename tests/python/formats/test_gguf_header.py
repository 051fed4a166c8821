"""Headers that do not say what a release computes: llama.cpp has parts of each model in its code."""

from dataclasses import replace

import gguf
import pytest
import ramrs
from fixtures.gguf import CASES, header
from fixtures.tiers import slow_but_for

OPTIONS = {"sensitivity": "weights", "budget": 33}

HARD_CODED = {
    "scale of attention": ("gemma2", {"query_pre_attn_scalar": 16}, r"`query_pre_attn_scalar`\) is 0.25, and 0.125 in"),
    "layers with a window": ("gemma3_text", {"sliding_window_pattern": 2}, "rotary positions of layer 1"),
    "activation": ("llama", {"hidden_act": "gelu"}, r"`hidden_act`\) is Gelu, and Silu in llama.cpp"),
    "shares of experts": ("olmoe", {"norm_topk_prob": True}, "`norm_topk_prob`.*adding up to 1, and .* times 1"),
    "limit of gates": ("gpt_oss_bf16", {"swiglu_limit": 5.0}, r"`swiglu_limit`\) is 5, and 7 in llama.cpp"),
    "layers without positions": ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, "rotary positions of layer 1"),
    "base of positions": ("qwen3", {"rope_theta": 5e5}, "rotary positions of layer 0"),
    "epsilon": ("qwen2", {"rms_norm_eps": 1e-3}, r"`rms_norm_eps`\) is 0.001, and 0.01 in llama.cpp"),
    "factor": ("granite", {"residual_multiplier": 0.5}, "`residual_multiplier`"),
    "window": ("mistral", {"sliding_window": 64}, None),
}
"""Models by what llama.cpp computes otherwise: what they change, and what is said if they are refused."""


def write_changed(name, changes, tmp_path):
    """Write the model of a case with another configuration."""
    case = CASES[name]
    return replace(case, changes=case.changes | changes).write(tmp_path / "source")


@pytest.mark.parametrize("what", slow_but_for(["scale of attention", "layers with a window"], HARD_CODED))
def test_what_llama_cpp_computes_otherwise_is_said_before_any_work(what, tmp_path):
    name, changes, message = HARD_CODED[what]
    source, output = write_changed(name, changes, tmp_path), tmp_path / "out.gguf"
    if message is None:
        report = ramrs.quantize(source, output, header=header(name), **OPTIONS)
        (note,) = (note for note in report.plan.warnings if "sliding_window" in note)
        assert "2 layers (`sliding_window`; first layer 0) is 64 tokens, and none in llama.cpp" in note
        return
    with pytest.raises(ramrs.CheckpointError, match=message) as fault:
        ramrs.quantize(source, output, header=header(name), **OPTIONS)
    assert fault.value.slug == "inexpressible"
    assert fault.value.path.endswith("config.json")
    assert not output.exists()


def test_the_header_of_another_model_is_refused(tmp_path):
    source = CASES["llama"].write(tmp_path / "source")
    with pytest.raises(ramrs.ConfigError, match="is of a `qwen2`, and llama is a `llama`"):
        ramrs.quantize(source, tmp_path / "out.gguf", header=header("qwen2"), **OPTIONS)
    with pytest.raises(ramrs.ConfigError, match="is of a model with hidden_size"):
        ramrs.quantize(source, tmp_path / "out.gguf", header=header("llama_f16"), **OPTIONS)


def test_windows_that_key_values_list_are_read(tmp_path):
    """A file of another converter may list them: the model then runs so."""
    source = write_changed("gemma3_text", {"sliding_window_pattern": 2}, tmp_path)
    listed = tmp_path / "listed.gguf"
    reader = gguf.GGUFReader(header("gemma3_text"))
    writer = gguf.GGUFWriter(listed, "gemma3")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), *field.types[:2])
    writer.add_sliding_window_pattern([True, False, True])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    report = ramrs.quantize(source, tmp_path / "out.gguf", header=listed, **OPTIONS)
    assert not any("window" in note for note in report.plan.warnings)
    assert ramrs.eval(tmp_path / "out.gguf", reference=source, max_tokens=256).kl_mean < 1e-9

"""mlx-lm's own model is the contract for the types that it lays out: its names, shapes, heads, stacks and routers."""

import contextlib
import dataclasses
import importlib
import io
import json
import pkgutil
import shutil

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import Tensor, llama_tensors, write_checkpoint
from fixtures.configs import ERNIE

mx = pytest.importorskip("mlx.core", reason="needs ramrs[mlx]")
mlx_lm = pytest.importorskip("mlx_lm", reason="needs ramrs[mlx]")
from mlx import nn  # noqa: E402
from mlx_lm import models  # noqa: E402
from mlx_lm.models.switch_layers import SwitchLinear  # noqa: E402
from mlx_lm.utils import load_model  # noqa: E402
from oracles.mlx_outputs import logits, parameters  # noqa: E402
from ramrs.formats import mlx_modules  # noqa: E402

TEXT = {key: value for key, value in ERNIE.items() if key != "use_bias"} | {"model_type": "llama"}

VISION = {"hidden_size": 32, "model_type": "clip_vision_model"}


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    mx.set_default_device(mx.cpu)


def write(directory, change=lambda tensors: tensors, config=ERNIE, **changes):
    """Write a model with Llama's tensors, changed."""
    config = {key: value for key, value in (config | changes).items() if value is not ...}
    return write_checkpoint(directory, change(llama_tensors(ERNIE)), config)


def written(source, budget="32"):
    """Quantize a checkpoint, and return the report and mlx-lm's model of the output."""
    output = source.with_name("out")
    report = ramrs.quantize(source, output, budget=budget, overwrite=True)
    assert ramrs.verify(output, source=source).ok
    return report, load_model(output)[0]


def refused(source):
    """Assert that nothing becomes of a checkpoint, and return the error."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(ramrs.CheckpointError) as caught:
        ramrs.quantize(source, source.with_name("out"), budget="32")
    assert sorted(source.parent.iterdir()) == before
    assert "Traceback" not in str(caught.value)
    return caught.value


# Names.


def moved(start, to):
    """Return a change of names: those that begin with ``start`` begin with ``to``."""
    return lambda tensors: {
        to + name.removeprefix(start) if name.startswith(start) else name: tensor for name, tensor in tensors.items()
    }


def with_vision(prefix):
    tower = Tensor.of(np.ones((8, 32), np.float32), "BF16")
    return lambda tensors: tensors | {f"{prefix}vision_tower.layers.0.q_proj.weight": tower}


def headed(to):
    return lambda tensors: {to if name == "lm_head.weight" else name: tensor for name, tensor in tensors.items()}


MISTRAL = {"model_type": "mistral3", "text_config": TEXT, "vision_config": VISION}
KIMI = {"model_type": "pixtral", "text_config": TEXT, "vision_config": VISION}

SPELLED = {
    "in the order of transformers 4.52": (MISTRAL, [with_vision("model."), moved("model.", "model.language_model.")]),
    "in the older order": (
        MISTRAL,
        [moved("model.", "language_model.model."), headed("language_model.lm_head.weight"), with_vision("")],
    ),
    "without the larger model": (MISTRAL, []),
    "of a larger model, for the text alone": (
        ERNIE,
        [moved("model.", "language_model.model."), headed("language_model.lm_head.weight")],
    ),
    "of a larger model in the newer order": (ERNIE, [moved("model.", "model.language_model.")]),
    "without model.": (ERNIE, [moved("model.", "")]),
    "wrapped by torch.compile": (ERNIE, [moved("", "_orig_mod.")]),
    "wrapped twice": (ERNIE, [moved("", "module._orig_mod.")]),
    "wrapped by an adapter that was merged": (ERNIE, [moved("", "base_model.model.")]),
    "wrapped, without model.": (ERNIE, [moved("model.", ""), moved("", "_orig_mod.")]),
    "wrapped, in the order of transformers 4.52": (
        MISTRAL,
        [with_vision("model."), moved("model.", "model.language_model."), moved("", "module.")],
    ),
    "in an order that the type never had": (
        KIMI,
        [moved("model.", "model.language_model."), with_vision("model.")],
    ),
}


@pytest.mark.parametrize("how", SPELLED)
def test_names_are_spelled_as_the_type_reads_them(how, tmp_path):
    config, steps = SPELLED[how]

    def change(tensors):
        for step in steps:
            # The tower comes last, and keeps its name.
            towers = {name: tensor for name, tensor in tensors.items() if "vision_tower" in name}
            tensors = step({name: tensor for name, tensor in tensors.items() if name not in towers}) | towers
        return tensors

    clean = write(tmp_path / "clean", config=ERNIE if config is ERNIE else TEXT)
    reference = logits(load_model(clean)[0])
    _, model = written(write(tmp_path / "source", change, config=config))
    assert np.array_equal(logits(model), reference)


def test_other_names_are_said(tmp_path):
    report, _ = written(write(tmp_path / "source", moved("model.", "")))
    (said,) = [warning for warning in report.manifest.warnings if "other names" in warning]
    assert "for 20 tensors: `embed_tokens.weight` is `model.embed_tokens.weight`" in said


# What does not fit.

MISFITS = {
    "a tensor is missing": (
        lambda tensors: {name: tensor for name, tensor in tensors.items() if "layers.1.self_attn.k_proj" not in name},
        {},
        "`model.layers.1.self_attn.k_proj.weight` [32, 64] is missing",
        "complete the checkpoint",
    ),
    "a shape differs": (
        lambda tensors: tensors,
        {"num_key_value_heads": 4},
        "`model.layers.0.self_attn.k_proj.weight` is [32, 64], and config.json makes it [64, 64] (3 more are of",
        "take config.json and the weights from one release",
    ),
    "layers are missing": (
        lambda tensors: tensors,
        {"num_hidden_layers": 3},
        "the weights have 2 layers, and config.json counts 3",
        "correct the number",
    ),
    "there are more layers": (
        lambda tensors: tensors,
        {"num_hidden_layers": 1},
        "the weights have 2 layers, and config.json counts 1",
        "correct the number",
    ),
    "a tensor is left over": (
        lambda tensors: tensors | {"model.extra.weight": Tensor.of(np.ones((2, 64), np.float32), "BF16")},
        {},
        "`model.extra.weight` has no place in its model",
        "remove what is not part",
    ),
    "the head is missing": (
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"},
        {},
        "`lm_head.weight` [128, 64] is missing",
        "complete the checkpoint",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_refused_with_the_remedy(case, tmp_path):
    change, changes, said, remedy = MISFITS[case]
    fault = refused(write(tmp_path / "source", change, **changes))
    assert said in str(fault)
    assert remedy in fault.hint
    assert "generic=True" in fault.hint
    assert (fault.slug, fault.tensor is not None) == ("wrong-tensors", True)


WHOLE_WITHOUT = {
    "v_head.summary.weight": "a value head of training",
    "optimizer.state.weight": "state of training",
    "model.layers.0.self_attn.rotary_emb.inv_freq": "a buffer that runtimes compute themselves",
}


@pytest.mark.parametrize("extra", WHOLE_WITHOUT)
def test_what_the_language_model_does_not_need_is_left_out(extra, tmp_path):
    spare = Tensor.of(np.ones(8, np.float32), "F32")
    report, _ = written(write(tmp_path / "source", lambda tensors: tensors | {extra: spare}))
    (said,) = [warning for warning in report.manifest.warnings if "left out" in warning]
    assert WHOLE_WITHOUT[extra] in said
    assert f"1 tensors are left out (`{extra}`)" in said


OF_OTHERS = {
    "score.weight": "is the head of a classifier or reward model",
    "model.layers.0.mlp.up_proj.lora_A.weight": "belongs to an adapter that was not merged",
}


@pytest.mark.parametrize("extra", OF_OTHERS)
def test_what_is_no_language_model_is_called_what_it_is(extra, tmp_path):
    spare = Tensor.of(np.ones((2, 64), np.float32), "BF16")
    assert OF_OTHERS[extra] in str(refused(write(tmp_path / "source", lambda tensors: tensors | {extra: spare})))


# Heads.


def without_head(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


def head_is_embedding(tensors):
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}


def test_a_stored_head_that_is_the_embedding_is_tied(tmp_path):
    reference = logits(load_model(write(tmp_path / "clean", without_head, tie_word_embeddings=True))[0])
    _, model = written(write(tmp_path / "source", head_is_embedding, tie_word_embeddings=True))
    assert not any("lm_head" in name for name in parameters(model))
    assert np.array_equal(logits(model), reference)


def test_a_stored_head_that_is_another_is_kept_though_the_configuration_ties_it(tmp_path):
    reference = logits(load_model(write(tmp_path / "clean"))[0])
    report, model = written(write(tmp_path / "source", tie_word_embeddings=True))
    assert np.array_equal(logits(model), reference)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert any("their bytes differ: both are kept" in warning for warning in report.manifest.warnings)


def test_a_head_is_kept_if_nothing_is_said_of_it(tmp_path):
    reference = logits(load_model(write(tmp_path / "clean"))[0])
    _, model = written(write(tmp_path / "source", tie_word_embeddings=...))
    assert np.array_equal(logits(model), reference)


def test_a_missing_head_is_the_embedding_if_nothing_is_said_of_it(tmp_path):
    config = ERNIE | {"model_type": "iquestcoder", "tie_word_embeddings": ...}
    # That type is tied by default, and this one is not.
    for model_type, warned in (("iquestcoder", False), ("ernie4_5", True)):
        config["model_type"] = model_type
        clean = write(tmp_path / "clean", without_head, config=config, tie_word_embeddings=True)
        report, model = written(write(tmp_path / "source", without_head, config=config))
        assert any("it is taken as tied" in warning for warning in report.manifest.warnings) == warned
        assert np.array_equal(logits(model), logits(load_model(clean)[0]))


# Stacks and routers.

EXPERTS = 24


def guessed(model_type):
    """Return a small configuration for a type, by the names and types of the keys that it reads."""
    args_class = importlib.import_module(f"mlx_lm.models.{model_type}").ModelArgs
    sizes = {
        "hidden_size": 128,
        "intermediate_size": 192,
        "head_dim": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 4,
        "rope_theta": 1e4,
        "vocab_size": 160,
    }
    config = {}
    for field in dataclasses.fields(args_class):
        name, kind = field.name, str(field.type)
        is_required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        counts = "expert" in name and not any(word in name for word in ("per_tok", "shared", "group", "size", "zero"))
        if counts and "int" in kind:
            config[name] = EXPERTS
        elif name in sizes:
            config[name] = sizes[name]
        elif is_required:
            value = 2 if "int" in kind else 0.5 if "float" in kind else "x" if "str" in kind else None
            config[name] = False if "bool" in kind else [value] * 4 if "List" in kind else value
        elif name.endswith(("intermediate_size", "ffn_hidden_size")):
            config[name] = 64
    return config | {"model_type": model_type}


KEYS = {
    "afmoe": {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_dense_layers": 1},
    "bailing_moe": {"num_shared_experts": 1},
    "exaone_moe": {"is_moe_layer": [False, True, True, True], "layer_types": ["full_attention"] * 4},
    "gemma4_text": {
        "enable_moe_block": True,
        "num_kv_shared_layers": 0,
        "sliding_window_pattern": 2,
        "hidden_size_per_layer_input": 0,
        "num_global_key_value_heads": 2,
        "global_head_dim": 64,
        "top_k_experts": 2,
        "moe_intermediate_size": 64,
    },
    "granitemoehybrid": {"layer_types": ["attention"] * 4, "shared_intermediate_size": 64},
    "hunyuan": {
        "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
        "moe_topk": 2,
        "num_shared_expert": 1,
        "moe_intermediate_size": 64,
        "use_mixed_mlp_moe": True,
    },
    "jamba": {"layers_block_type": ["mamba", "attention"] * 2},
    "lfm2_moe": {"full_attn_idxs": [0], "layer_types": ["full_attention"] * 4, "num_dense_layers": 0},
    "longcat_flash": {"zero_expert_num": 8, "zero_expert_type": "identity", "n_routed_experts": EXPERTS},
    "longcat_flash_ngram": {"zero_expert_num": 8, "n_routed_experts": EXPERTS},
    "nemotron_h": {"hybrid_override_pattern": "M-*E", "mamba_num_heads": 8, "n_groups": 2, "n_shared_experts": 1},
    "step3p5": {"moe_layers_enum": "2,3", "share_expert_dim": 64},
}
"""What a guess does not get right."""


def built():
    """Build all models of mlx-lm that a guess is good enough for. No weight is made."""
    for module in pkgutil.iter_modules(models.__path__):
        if module.name == "olmo":  # it wants a package, and exits
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                code = importlib.import_module(f"mlx_lm.models.{module.name}")
                args = code.ModelArgs.from_dict(guessed(module.name) | KEYS.get(module.name, {}))
                model = code.Model(args)
        except Exception:
            continue
        yield module.name, model


@pytest.mark.slow
def test_stacks_and_routers_are_known_in_every_model_of_mlx_lm():
    seen = set()
    for name, model in built():
        stacks, routers = mlx_modules.stacks(model), mlx_modules.routers(model)
        leaves = dict(mlx_modules.leaves(model))
        switches = {path for path, leaf in leaves.items() if isinstance(leaf, SwitchLinear)}
        if not switches:
            continue
        seen.add(name)
        assert switches <= stacks, name
        linear = {path: leaf.weight.shape[0] for path, leaf in leaves.items() if isinstance(leaf, nn.Linear)}
        count = EXPERTS + KEYS.get(name, {}).get("zero_expert_num", 0)
        assert {path for path, outputs in linear.items() if outputs == count} == routers, name
    assert len(seen) >= 30
    assert KEYS.keys() <= seen


def test_modules_that_do_not_take_a_mode_are_not_quantized():
    class Fused(nn.Linear):
        def to_quantized(self, group_size, bits):
            raise AssertionError(group_size, bits)

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.fused, self.plain, self.norm = Fused(32, 32), nn.Linear(32, 32), nn.RMSNorm(32)

    assert mlx_modules.quantizable(Small()) == {"plain"}


PHIXTRAL = {
    "model_type": "phixtral",
    "num_vocab": 128,
    "model_dim": 64,
    "num_heads": 2,
    "num_layers": 1,
    "rotary_dim": 16,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
}


def phixtral(directory):
    """Write a model whose stacks and routers have names that say nothing of what they are."""
    code = importlib.import_module("mlx_lm.models.phixtral")
    model = code.Model(code.ModelArgs.from_dict(PHIXTRAL))
    random, tensors = np.random.default_rng(3), {}
    for name, array in parameters(model).items():
        values = random.standard_normal(array.shape, np.float32) / 8
        if ".switch_mlp." in name:
            for expert, matrix in enumerate(values):
                tensors[name.replace(".switch_mlp.", f".mlp.{expert}.")] = Tensor.of(matrix, "F32")
        else:
            tensors[name] = Tensor.of(values, "F32")
    return write_checkpoint(directory, tensors, PHIXTRAL)


def test_stacks_are_quantized_and_routers_keep_8_bits(tmp_path):
    source = phixtral(tmp_path / "source")
    for options in ({"budget": 5}, {"bits": 4, "group_size": 32}):
        report = ramrs.quantize(source, tmp_path / "out", overwrite=True, **options)
        found = {tensor.name: tensor for tensor in report.plan.tensors}
        for part in ("fc1", "fc2"):
            assert found[f"transformer.h.0.moe.switch_mlp.{part}.weight"].scheme[0] in "2345"
        router = found["transformer.h.0.moe.gate.weight"]
        assert router.role == "router"
        assert router.scheme.startswith("8") or router.scheme == "kept"
    model = load_model(tmp_path / "out")[0]
    assert model.transformer.h[0].moe.switch_mlp.fc1.bits == 4
    assert np.isfinite(logits(model)).all()
    assert ramrs.verify(tmp_path / "out", source=source).ok


# verify.


def test_verify_compares_with_the_release(tmp_path):
    source = write(tmp_path / "source")
    written(source, budget="6")
    report = ramrs.verify(tmp_path / "out", source=source)
    assert (report.ok, report.compared_with_source) == (True, len(llama_tensors(ERNIE)))
    assert not list(tmp_path.glob("*.layout"))
    other = write(tmp_path / "other", lambda _: llama_tensors(ERNIE, seed=1))
    report = ramrs.verify(tmp_path / "out", source=other)
    assert not report.ok
    assert any("another SHA-256" in problem.what or "squared error" in problem.what for problem in report.problems)
    shutil.rmtree(other)
    smaller = write(
        tmp_path / "other",
        vocab_size=128,
        num_hidden_layers=1,
        change=lambda tensors: {name: tensor for name, tensor in tensors.items() if "layers.1." not in name},
    )
    (problem,) = ramrs.verify(tmp_path / "out", source=smaller).problems
    assert "the source is not the one it was made of" in problem.what


def test_a_saved_plan_of_a_layout_is_carried_out(tmp_path):
    source = write(tmp_path / "source")
    plan = ramrs.quantize(source, tmp_path / "out", budget="6", dry_run=True).plan
    plan.write(tmp_path / "plan.json")
    for given in (plan, tmp_path / "plan.json"):
        report = ramrs.quantize(source, tmp_path / "out", plan=given, overwrite=True)
        assert report.plan.totals.file_bytes == plan.totals.file_bytes
        assert report.manifest.settings.laid_out_by == f"mlx-lm {mlx_lm.__version__}"

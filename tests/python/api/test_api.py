"""The Python API: verbs, documents, exceptions, progress."""

import copy
import dataclasses
import errno
import inspect
import json
import pickle
import subprocess
import sys
import threading
import typing
from pathlib import Path

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import LLAMA, Tensor, llama_tensors, write_checkpoint, write_safetensors
from fixtures.paths import EXAMPLE
from fixtures.process import sees_everything
from ramrs import errors, options, types

VERBS = [ramrs.inspect, ramrs.analyze, ramrs.plan, ramrs.quantize, ramrs.verify, ramrs.eval]
DOCUMENTS = [getattr(types, name) for name in types.__all__]
EXCEPTIONS = [
    ramrs.RamrsError,
    ramrs.ConfigError,
    ramrs.CheckpointError,
    ramrs.TensorError,
    ramrs.BudgetError,
    ramrs.VerifyError,
    ramrs.InternalError,
]


def test_everything_that_is_exported_exists():
    for module in (ramrs, types, errors, options):
        assert sorted(module.__all__, key=str.lower)
        assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_a_verb_has_types_keyword_options_and_a_docstring_that_names_them_all(verb):
    parameters = inspect.signature(verb).parameters.values()
    assert inspect.signature(verb).return_annotation is not inspect.Signature.empty
    positional = [each.name for each in parameters if each.kind is not each.KEYWORD_ONLY]
    assert positional in (["model"], ["model", "output"], ["output"])
    for parameter in parameters:
        assert parameter.annotation is not parameter.empty
        assert f"{parameter.name}: " in verb.__doc__


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.__name__)
def test_a_document_is_a_frozen_dataclass_with_a_docstring(document):
    if not issubclass(document, tuple):  # a named tuple is an array in JSON
        assert dataclasses.is_dataclass(document)
        assert document.__dataclass_params__.frozen
    assert document.__doc__
    assert not document.__doc__.startswith(document.__name__ + "(")
    assert typing.get_type_hints(document)


def test_a_report_cannot_be_changed(example_at_4):
    report = example_at_4[1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.written = False
    with pytest.raises(TypeError):
        report.plan.tensors[0] = None


@pytest.fixture(scope="module")
def reports(example_at_4):
    analysis = ramrs.analyze(EXAMPLE)
    return {
        "inspect": ramrs.inspect(EXAMPLE),
        "analyze": analysis,
        "plan": ramrs.plan(analysis, budget=4),
        "quantize": example_at_4[1],
        "verify": ramrs.verify(example_at_4[0], source=EXAMPLE),
    }


@pytest.mark.parametrize("verb", ["inspect", "analyze", "plan", "quantize", "verify"])
def test_a_report_survives_json_pickle_and_a_deep_copy(verb, reports):
    report = reports[verb]
    assert type(report).from_dict(json.loads(json.dumps(report.to_dict()))) == report
    assert pickle.loads(pickle.dumps(report)) == report
    assert copy.deepcopy(report) == report


@pytest.mark.parametrize("verb", ["analyze", "plan"])
def test_a_document_survives_a_file(verb, reports, tmp_path):
    reports[verb].write(tmp_path / "document.json")
    assert type(reports[verb]).read(tmp_path / "document.json") == reports[verb]


def test_the_manifest_on_disk_is_the_one_reported(example_at_4):
    output, report = example_at_4
    assert ramrs.Manifest.read(output / "ramrs-manifest.json") == report.manifest


def test_a_file_that_is_no_document_is_a_config_error(tmp_path):
    for content in ("", "{}", "[]", '{"ramrs_plan": 1, "more": 2}'):
        (tmp_path / "plan.json").write_text(content)
        with pytest.raises(ramrs.ConfigError, match=r"plan\.json: not a plan"):
            ramrs.Plan.read(tmp_path / "plan.json")


@pytest.mark.parametrize("kind", EXCEPTIONS, ids=lambda kind: kind.__name__)
def test_an_exception_is_of_the_tree_and_can_be_pickled(kind):
    fault = kind("what", slug="a-slug", hint="do that", path="a/file", tensor="a.weight")
    assert isinstance(fault, ramrs.RamrsError)
    again = pickle.loads(pickle.dumps(fault))
    assert type(again) is kind
    assert str(again) == "what"
    assert (again.slug, again.hint, again.path, again.tensor) == ("a-slug", "do that", "a/file", "a.weight")


def test_a_config_error_is_a_value_error():
    with pytest.raises(ValueError, match="budget="):
        ramrs.plan(EXAMPLE, budget="nonsense")


def test_an_exception_says_which_tensor_and_file(model):
    tensors = llama_tensors(LLAMA)
    name = "model.layers.1.mlp.up_proj.weight"
    values = tensors[name].values.copy()
    values[2, 5] = np.nan
    tensors[name] = Tensor.of(values)
    write_safetensors(model / "model.safetensors", tensors)
    with pytest.raises(ramrs.TensorError) as caught:
        ramrs.analyze(model)
    assert caught.value.slug == "non-finite"
    assert caught.value.tensor == name
    assert Path(caught.value.path) == model.resolve() / "model.safetensors"
    assert "damaged" in caught.value.hint


def test_what_the_system_refuses_is_an_os_error_with_a_number(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file") as caught:
        ramrs.quantize(EXAMPLE, tmp_path / "file" / "out", budget=4)
    assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)
    assert not isinstance(caught.value, ramrs.RamrsError)
    assert caught.value.filename.startswith(str(tmp_path / "file"))


@pytest.mark.parametrize(
    "call",
    [
        lambda progress, out: ramrs.analyze(EXAMPLE, progress=progress),
        lambda progress, out: ramrs.plan(EXAMPLE, budget=4, progress=progress),
        lambda progress, out: ramrs.quantize(EXAMPLE, out, budget=4, progress=progress),
        lambda progress, out: ramrs.verify(out, progress=progress),
    ],
    ids=["analyze", "plan", "quantize", "verify"],
)
def test_progress_is_told_from_the_calling_thread_and_ends_complete(call, tmp_path, example_at_4, request):
    out = example_at_4[0] if "verify" in request.node.name else tmp_path / "out"
    moments = []
    call(lambda now: moments.append((threading.current_thread(), now)), out)
    assert moments
    assert {thread for thread, _ in moments} == {threading.current_thread()}
    last = moments[-1][1]
    assert last.done_bytes == last.total_bytes
    with pytest.raises(dataclasses.FrozenInstanceError):
        last.done_bytes = 0


@pytest.mark.slow
def test_other_threads_run_while_a_job_does(tmp_path):
    config = LLAMA | {"hidden_size": 512, "intermediate_size": 2048, "head_dim": 128}
    model = write_checkpoint(tmp_path / "model", llama_tensors(config), config)
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.001):
            ticks.append(1)

    ticker = threading.Thread(target=tick)
    ticker.start()
    ramrs.analyze(model, threads=1, sample_bands=0)
    done.set()
    ticker.join()
    assert len(ticks) > 20


@pytest.mark.slow
def test_two_jobs_may_run_at_once(tmp_path):
    def job(name, budget):
        ramrs.quantize(EXAMPLE, tmp_path / name, budget=budget, threads=1)

    together = [threading.Thread(target=job, args=(f"together-{budget}", budget)) for budget in (3, 4, 5)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    for budget in (3, 4, 5):
        job(f"alone-{budget}", budget)
        assert sees_everything(tmp_path / f"together-{budget}") == sees_everything(tmp_path / f"alone-{budget}")


def test_rules_may_be_a_mapping_or_texts():
    analysis = ramrs.analyze(EXAMPLE)
    as_mapping = ramrs.plan(analysis, budget=7, tensor={"q_proj": "6", "up_proj": "kept"})
    as_texts = ramrs.plan(analysis, budget=7, tensor=["q_proj=6", "up_proj=kept"])
    assert as_mapping == as_texts


def test_inspect_sees_what_there_is():
    found = ramrs.inspect(EXAMPLE)
    assert found.model_type == "llama"
    assert found.source.parameters == 279_232
    assert found.source.tensor_bytes == 2 * 279_232
    assert found.source.file_bytes == sum(shard.bytes for shard in found.shards)
    assert {tensor.role for tensor in found.tensors} == {
        "embedding", "query", "key", "value", "output", "gate", "up", "down", "norm",
    }  # fmt: skip
    assert sum(tensor.becomes == "quantizable" for tensor in found.tensors) == 36
    assert "tokenizer.json" in found.other_files
    assert found.unsupported is None


def test_inspect_tells_of_a_model_that_is_not_supported(model):
    (model / "config.json").write_text(json.dumps(LLAMA | {"model_type": "perceptron"}))
    assert "perceptron" in ramrs.inspect(model).unsupported


KINDS = {
    "inspect": options.InspectOptions,
    "analyze": options.AnalyzeOptions,
    "probe": options.ProbeOptions,
    "plan": options.PlanOptions,
    "quantize": options.QuantizeOptions,
    "verify": options.VerifyOptions,
    "eval": options.EvalOptions,
}


@pytest.mark.parametrize("verb", KINDS)
def test_options_that_a_verb_does_not_have_are_refused_as_by_any_function(verb):
    required = {"reference": EXAMPLE} if verb == "eval" else {}
    with pytest.raises(TypeError, match=rf"{verb}\(\) got an unexpected keyword argument 'bitz'"):
        getattr(ramrs, verb)(EXAMPLE, bitz=4, **required)


@pytest.mark.parametrize("verb", [verb for verb in KINDS if verb != "eval"])
def test_defaults_are_those_of_the_core(verb):
    core = json.loads(ramrs._native.defaults())
    assert core["analyze"]["probe"]["tokens"] == 512
    signature = inspect.signature(getattr(ramrs, verb))
    for field in options.fields(KINDS[verb]):
        default = signature.parameters[field.name].default
        if field.option.at is None:
            assert field.name in ("bits", "group_size", "runtime", "converter")
            assert default is None
            continue
        section, *path = field.option.at.split(".")
        request = core["analyze"] if section == "analysis" else core["analyze"]["resources"]
        request = {"plan": core["quantize"]["plan"]}.get(section, core.get(section, request))
        for key in path:
            request = request[key]
        assert default == (tuple(request) if isinstance(request, list) else request)


def test_every_option_that_the_core_can_name_is_one_of_the_api():
    known = {name for verb in KINDS for name in inspect.signature(getattr(ramrs, verb)).parameters}
    named = {"bits" if name == "uniform" else name for name in ramrs._native.options()}
    assert named <= known


@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        (lambda: ramrs.plan(EXAMPLE, budget=4, min_bits=6, max_bits=3), "min_bits= `6`: is above max_bits=3", None),
        (lambda: ramrs.plan(EXAMPLE, bits=7), "bits= `7`: ", None),
        (lambda: ramrs.plan(EXAMPLE, budget=4, group_size=32), "group_size=: goes with bits=", None),
        (lambda: ramrs.plan(EXAMPLE, budget=1), "; min_bits=2 lifts it", None),
        (lambda: ramrs.probe(EXAMPLE, tokens=70_000), "tokens= `70000`: not between", None),
        (lambda: ramrs.quantize(EXAMPLE, EXAMPLE, budget=4), "is the source", "give another output="),
        (lambda: ramrs.quantize(EXAMPLE, budget=4, plan="p.json"), "budget=: a saved plan has its own", None),
        (
            lambda: ramrs.quantize(EXAMPLE, plan="p.json", analysis="a.json"),
            "analysis=: a saved plan has its own",
            None,
        ),
    ],
)
def test_errors_spell_options_as_keywords(call, message, hint):
    with pytest.raises(ramrs.RamrsError) as caught:
        call()
    assert message in str(caught.value)
    assert hint is None or caught.value.hint == hint
    assert "⟨" not in f"{caught.value} {caught.value.hint}"
    assert "--" not in f"{caught.value} {caught.value.hint}"


def test_saved_objects_are_the_same_as_their_files(reports, tmp_path):
    analysis, plan = reports["analyze"], reports["plan"]
    analysis.write(tmp_path / "analysis.json")
    plan.write(tmp_path / "plan.json")
    assert ramrs.plan(tmp_path / "analysis.json", budget=4) == plan
    by_object = ramrs.quantize(EXAMPLE, tmp_path / "object", plan=plan)
    by_file = ramrs.quantize(EXAMPLE, tmp_path / "file", plan=tmp_path / "plan.json")
    assert by_object.manifest == by_file.manifest
    assert sees_everything(tmp_path / "object") == sees_everything(tmp_path / "file")
    planned = ramrs.quantize(EXAMPLE, tmp_path / "analysis", budget=4, analysis=analysis)
    assert planned.plan == plan


def test_saved_objects_take_no_temporary_files(reports, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert ramrs.quantize(EXAMPLE, tmp_path / "out", plan=reports["plan"], dry_run=True).plan == reports["plan"]


def test_errors_about_a_given_document_say_so(reports, model, tmp_path):
    with pytest.raises(ramrs.ConfigError, match=r"^the given plan: it is a plan for another checkpoint") as caught:
        ramrs.quantize(model, tmp_path / "out", plan=reports["plan"])
    assert (caught.value.slug, caught.value.path) == ("stale-document", None)
    unknown = dataclasses.replace(reports["plan"].tensors[1], scheme="7g64")
    spoilt = dataclasses.replace(reports["plan"], tensors=(unknown,))
    with pytest.raises(ramrs.ConfigError, match=r"^the given plan is not valid: .*7g64") as caught:
        ramrs.quantize(EXAMPLE, tmp_path / "out", plan=spoilt)
    assert caught.value.slug == "bad-document"


def test_a_value_that_a_document_cannot_have_is_refused(reports):
    form = reports["analyze"].to_dict()
    form["settings"]["effort"] = "heroic"
    with pytest.raises(ramrs.ConfigError, match="heroic"):
        ramrs.Analysis.from_dict(form)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "said"),
    [
        ('ramrs.quantize("m", "out", budget=4.0, effort="fast", keep=["lm_head"])', None),
        ('ramrs.plan("m", **shared)', None),
        ('ramrs.quantize("m", budgett=4.0)', 'Unexpected keyword argument "budgett"'),
        ('ramrs.plan("m", min_bits="3")', 'incompatible type "str"'),
        ('ramrs.analyze("m", objective="best")', "incompatible type \"Literal['best']\""),
    ],
)
def test_a_type_checker_knows_every_option(call, said, tmp_path):
    (tmp_path / "code.py").write_text(
        "import ramrs\nfrom ramrs.options import PlanOptions\n"
        f'shared: PlanOptions = {{"budget": 4.0, "min_bits": 3}}\n{call}\n'
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path.parent / "mypy", tmp_path / "code.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (said or "Success") in done.stdout, done.stdout + done.stderr

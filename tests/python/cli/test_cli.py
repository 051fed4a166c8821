"""The command line: its verbs, what goes to stdout and what to stderr, and its exit codes."""

import hashlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ramrs
from fixtures.checkpoints import Tensor, read_header, write_safetensors
from fixtures.paths import EXAMPLE, STORIES, STORY_TEXT
from fixtures.process import ramrs_process

VERBS = ["inspect", "analyze", "plan", "quantize", "verify", "eval"]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The example at 4.0 bits per weight, by the command line."""
    directory = tmp_path_factory.mktemp("cli")
    done = ramrs_process("quantize", EXAMPLE, "--budget", "4.0", "-o", directory / "out")
    assert done.returncode == 0, done.stderr
    return directory / "out"


def commands(output):
    """Every verb, with what it needs."""
    return {
        "inspect": ["inspect", EXAMPLE],
        "inspect --tensors": ["inspect", EXAMPLE, "--tensors"],
        "analyze": ["analyze", EXAMPLE],
        "plan": ["plan", EXAMPLE, "--budget", "4.0"],
        "plan --tensors": ["plan", EXAMPLE, "--budget", "4.0", "--tensors"],
        "quantize": ["quantize", EXAMPLE, "--budget", "4.0", "-o", "out"],
        "quantize --dry-run": ["quantize", EXAMPLE, "--budget", "4.0", "-o", "out", "--dry-run"],
        "verify": ["verify", output],
        "verify --source": ["verify", output, "--source", EXAMPLE],
        "eval": ["eval", output, "--reference", EXAMPLE, "--text", STORY_TEXT, "--max-tokens", "300", "--window", "64"],
    }


TOLD = {
    "inspect": ["model_type  llama", "weights     279,232", "norm: never quantized"],
    "inspect --tensors": ["model.layers.4.mlp.down_proj.weight", "64×192", "quantizable"],
    "analyze": ["matrices", "3g64", "embedding"],
    "plan": [
        "3.9972 bits per weight, everything counted",
        "99.931 % used",
        "nats per token, predicted",
        "the best that fits",
    ],
    "plan --tensors": ["model.layers.4.mlp.down_proj.weight", "the allocation"],
    "quantize": ["99.931 % used", "written and verified: out"],
    "quantize --dry-run": ["99.931 % used"],
    "verify": ["as the manifest says", "36 quantized tensors", "0 tensors with the source"],
    "verify --source": ["as the manifest says", "47 tensors with the source"],
    "eval": ["KL", "of 64 tokens, BOS 1;", "float32 on decoded weights, by ramrs", "% agreement"],
}


def needs_a_tokenizer(command):
    if command == "eval":
        pytest.importorskip("tokenizers", reason="needs ramrs[text]")


@pytest.mark.parametrize("command", TOLD)
def test_a_verb_tells_people_on_stdout(command, output, ramrs_cli):
    needs_a_tokenizer(command)
    done = ramrs_cli(*commands(output)[command])
    assert done.returncode == 0, done.stderr
    for text in TOLD[command]:
        assert text in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert all(line == line.rstrip() for line in done.stdout.splitlines())


@pytest.mark.parametrize("command", TOLD)
def test_a_verb_tells_programs_one_json_document(command, output, ramrs_cli):
    needs_a_tokenizer(command)
    done = ramrs_cli(*commands(output)[command], "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert isinstance(told, dict)
    assert "NaN" not in done.stdout
    assert "Infinity" not in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in TOLD if command != "eval"])
def test_quiet_leaves_stderr_empty_and_stdout_as_it_is(command, output, ramrs_cli):
    loud = ramrs_cli(*commands(output)[command])
    if command == "quantize":
        ramrs_cli.directory.joinpath("out").rename(ramrs_cli.directory / "loud")
    quiet = ramrs_cli(*commands(output)[command], "--quiet")
    assert quiet.returncode == 0
    assert quiet.stderr == ""
    assert quiet.stdout == loud.stdout


def test_warnings_go_to_stderr_and_quiet_silences_them(ramrs_cli):
    loud = ramrs_cli("plan", EXAMPLE, "--budget", "2.6")
    assert "warning: the codes have" in loud.stderr
    assert "warning" not in loud.stdout
    quiet = ramrs_cli("plan", EXAMPLE, "--budget", "2.6", "--quiet")
    assert quiet.stderr == ""
    assert quiet.stdout == loud.stdout


def test_an_error_is_told_in_spite_of_quiet(ramrs_cli):
    assert "smallest possible size" in ramrs_cli("plan", EXAMPLE, "--budget", "1", "--quiet").stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb):
    done = ramrs_process(verb, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert verb in done.stdout
    assert "--json" in done.stdout


def test_help_and_version_of_the_whole():
    told = ramrs_process("--help")
    assert told.returncode == 0
    assert all(verb in told.stdout for verb in VERBS)
    version = ramrs_process("--version")
    assert (version.returncode, version.stdout) == (0, f"ramrs {ramrs.__version__}\n")


def test_no_verb_shows_the_help_and_is_an_error():
    done = ramrs_process()
    assert done.returncode == 2
    assert "quantize" in done.stdout + done.stderr
    assert "error" not in done.stderr


def test_an_unknown_verb_is_an_error():
    done = ramrs_process("compress")
    assert done.returncode == 2
    assert "No such command 'compress'" in done.stderr


ALIASES = [
    (["--budget", "4.0"], ["--target-bpw", "4.0"]),
    (["--budget", "4.0"], ["-b", "4.0"]),
    (["--budget", "200KB"], ["--target-size", "200KB"]),
    (["--bits", "4", "--group-size", "32"], ["--q-bits", "4", "--q-group-size", "32"]),
    (["-b", "6", "--keep", "q_proj"], ["-b", "6", "--ignore", "q_proj"]),
    (["-b", "4", "-j", "1"], ["-b", "4", "--threads", "1"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "theirs"), ALIASES, ids=lambda options: " ".join(options))
def test_options_that_users_of_other_tools_type_mean_the_same(ours, theirs):
    told = [ramrs_process("plan", EXAMPLE, *options, "--json") for options in (ours, theirs)]
    assert told[0].returncode == 0
    assert told[0].stdout == told[1].stdout


def test_an_output_without_a_name_is_named_after_model_and_budget(ramrs_cli):
    assert ramrs_cli("quantize", EXAMPLE, "--budget", "4.0").returncode == 0
    assert ramrs_cli("quantize", EXAMPLE, "--budget", "30%").returncode == 0
    assert ramrs_cli("quantize", EXAMPLE, "--bits", "4").returncode == 0
    names = {path.name for path in ramrs_cli.directory.iterdir()}
    assert names == {"llama2xs-280k-ramrs-4.0bpw", "llama2xs-280k-ramrs-30pct", "llama2xs-280k-ramrs-4g64"}


def test_a_dry_run_writes_nothing(ramrs_cli):
    done = ramrs_cli("quantize", EXAMPLE, "--budget", "4.0", "--dry-run")
    assert "dry run: nothing was written" in done.stderr
    assert not list(ramrs_cli.directory.iterdir())


def test_the_installed_script_is_the_same_program():
    script = Path(sys.executable).with_name("ramrs")
    if not script.exists():
        pytest.skip("not installed as a script")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ramrs {ramrs.__version__}\n"


def test_errors_are_json_where_json_was_asked_for(ramrs_cli):
    done = ramrs_cli("plan", EXAMPLE, "--budget", "1.0", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    error = json.loads(done.stderr)["error"]
    assert error["slug"] == "budget-too-small"
    assert "smallest possible size" in error["message"]
    assert error["hint"].startswith("raise the budget")
    missing = json.loads(ramrs_cli("inspect", "nowhere", "--json").stderr)["error"]
    assert (missing["slug"], missing["path"]) == ("no-checkpoint", "nowhere")


@pytest.mark.parametrize("count", [1, 5])
def test_a_reader_that_has_seen_enough_is_no_error(count):
    command = [sys.executable, "-m", "ramrs", "plan", str(EXAMPLE), "-b", "4", "--tensors", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        lines = [job.stdout.readline() for _ in range(count)]
        job.stdout.close()
        stderr = job.stderr.read()
    assert lines[0] == "{\n"
    assert stderr == ""
    assert job.returncode == 0


def test_a_closed_reader_of_the_help_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = ramrs_process("--help", capture_output=False, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def on_a_terminal(arguments, directory, **environment):
    """Run the command line with a terminal for stderr; return what it drew there, and its exit code."""
    main, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **environment}
    command = [sys.executable, "-m", "ramrs", *map(str, arguments)]
    with subprocess.Popen(command, cwd=directory, stderr=terminal, stdout=subprocess.PIPE, env=environment) as job:
        os.close(terminal)
        drawn = b""
        while True:
            try:
                part = os.read(main, 65536)
            except OSError:  # the other end is closed
                part = b""
            if not part:
                break
            drawn += part
        stdout = job.stdout.read()
    os.close(main)
    return drawn.decode(), stdout.decode(), job.returncode


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A checkpoint that takes long enough for a bar to be seen."""
    matrix = Tensor.of(np.random.default_rng(1).standard_normal((2048, 1024), np.float32))
    directory = tmp_path_factory.mktemp("slow")
    tensors = {f"model.layers.{layer}.mlp.up_proj.weight": matrix for layer in range(4)}
    write_safetensors(directory / "model.safetensors", tensors)
    return directory


def test_progress_is_drawn_on_a_terminal_with_speed_and_time_left(slow, tmp_path):
    options = ["--generic", "--bits", "3", "-j", "1"]
    drawn, stdout, code = on_a_terminal(["quantize", slow, "-o", "out", *options], tmp_path)
    assert code == 0
    assert re.search(r"encoding", drawn)
    assert "B/s" in drawn
    assert "\x1b" not in stdout


@pytest.mark.parametrize("silent", ["--quiet", "--no-progress", "--json"])
def test_progress_can_be_turned_off(silent, slow, tmp_path):
    options = ["--generic", "--bits", "3", "-j", "1", silent]
    drawn, _, code = on_a_terminal(["quantize", slow, "-o", "out", *options], tmp_path)
    assert code == 0
    if silent != "--json":
        assert "encoding" not in drawn


def test_colour_is_for_terminals_that_want_it(tmp_path):
    arguments = ["plan", EXAMPLE, "--budget", "1"]
    assert "\x1b[1;31merror" in on_a_terminal(arguments, tmp_path)[0]
    drawn = on_a_terminal(arguments, tmp_path, NO_COLOR="1")[0]
    assert "error: the budget" in re.sub(r"\x1b\[[01]m", "", drawn)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", drawn)


def flipped(output, directory, name, offset):
    """Copy an output with one bit flipped in one file."""
    copy = shutil.copytree(output, directory / "flipped")
    data = bytearray((copy / name).read_bytes())
    data[offset] ^= 1
    (copy / name).write_bytes(data)
    return copy


@pytest.mark.parametrize("part", ["weight", "scales", "biases"])
def test_one_flipped_bit_of_a_tensor_is_found_and_named(part, output, ramrs_cli, tmp_path):
    header, start = read_header(output / "model.safetensors")
    name = f"model.layers.2.mlp.up_proj.{part}"
    copy = flipped(output, tmp_path, "model.safetensors", start + header[name]["data_offsets"][0] + 3)
    done = ramrs_cli("verify", copy)
    assert done.returncode == 1
    assert f"model.safetensors: {name}: " in done.stdout
    assert "problem" in done.stdout
    told = json.loads(ramrs_cli("verify", copy, "--json").stdout)
    assert not told["ok"]
    assert name in {problem["tensor"] for problem in told["problems"]}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json", "README.md"])
def test_one_flipped_bit_of_another_file_is_found_and_named(name, output, ramrs_cli, tmp_path):
    copy = flipped(output, tmp_path, name, 5)
    done = ramrs_cli("verify", copy)
    assert done.returncode == 1
    assert f"{name}: " in done.stdout


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_gone_is_found(name, example_at_4, ramrs_cli, tmp_path):
    copy = shutil.copytree(example_at_4[0], tmp_path / "copy")
    (copy / name).unlink()
    done = ramrs_cli("verify", copy)
    assert done.returncode == 1
    assert f"{name}: " in done.stdout


def test_a_stray_file_of_weights_is_a_problem_and_another_is_not(example_at_4, ramrs_cli, tmp_path):
    copy = shutil.copytree(example_at_4[0], tmp_path / "copy")
    (copy / "notes.txt").write_text("hello")
    done = ramrs_cli("verify", copy)
    assert done.returncode == 0
    assert "notes.txt" in done.stdout
    shutil.copy(copy / "model.safetensors", copy / "model-old.safetensors")
    done = ramrs_cli("verify", copy)
    assert done.returncode == 1
    assert "model-old.safetensors: is not in the manifest, and a loader would read it" in done.stdout


def test_verify_with_another_source_says_no(example_at_4, ramrs_cli):
    done = ramrs_cli("verify", example_at_4[0], "--source", STORIES)
    assert done.returncode == 1
    assert "the source is not the one it was made of" in done.stdout


def test_verify_with_a_source_of_other_weights_names_the_tensor(example_at_4, ramrs_cli, tmp_path):
    header, start = read_header(EXAMPLE / "model.safetensors")
    name = "model.layers.1.mlp.gate_proj.weight"
    copy = flipped(EXAMPLE, tmp_path, "model.safetensors", start + header[name]["data_offsets"][0])
    done = ramrs_cli("verify", example_at_4[0], "--source", copy)
    assert done.returncode == 1
    assert name in done.stdout


def test_a_wrong_config_is_found_even_where_its_digest_was_adjusted(example_at_4, ramrs_cli, tmp_path):
    copy = shutil.copytree(example_at_4[0], tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["quantization"]["model.embed_tokens"]["bits"] = 6
    text = json.dumps(config, indent=2)
    (copy / "config.json").write_text(text)
    manifest = json.loads((copy / "ramrs-manifest.json").read_text())
    for file in manifest["files"]:
        if file["name"] == "config.json":
            file |= {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (copy / "ramrs-manifest.json").write_text(json.dumps(manifest))
    done = ramrs_cli("verify", copy)
    assert done.returncode == 1
    assert "config.json: model.embed_tokens: says 6g64 for it" in done.stdout


def test_verify_of_what_is_no_output_says_so(ramrs_cli):
    done = ramrs_cli("verify", EXAMPLE)
    assert done.returncode == 2
    assert "no ramrs-manifest.json in it" in done.stderr
    assert "hint: only an output of ramrs can be verified" in done.stderr


def test_a_manifest_cannot_make_verify_read_outside(example_at_4, ramrs_cli, tmp_path):
    copy = shutil.copytree(example_at_4[0], tmp_path / "copy")
    manifest = json.loads((copy / "ramrs-manifest.json").read_text())
    manifest["files"][0]["name"] = "../secret.safetensors"
    (copy / "ramrs-manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "secret.safetensors").write_bytes(b"secret" * 10)
    done = ramrs_cli("verify", copy)
    assert done.returncode == 1
    assert "../secret.safetensors: the manifest names a file outside of the directory" in done.stdout + done.stderr


def test_every_option_of_the_api_is_one_of_the_command_line():
    from ramrs import options
    from ramrs.cli.commands import app
    from typer.main import get_command

    kinds = {
        "inspect": options.InspectOptions,
        "analyze": options.AnalyzeOptions,
        "probe": options.ProbeOptions,
        "plan": options.PlanOptions,
        "quantize": options.QuantizeOptions,
        "finish": options.FinishOptions,
        "verify": options.VerifyOptions,
        "eval": options.EvalOptions,
    }
    commands = get_command(app).commands
    assert commands.keys() == kinds.keys()
    for verb, kind in kinds.items():
        parameters = {parameter.name: parameter for parameter in commands[verb].params}
        for field in options.fields(kind):
            spelled = parameters[field.name].opts
            assert f"--{field.name.replace('_', '-')}" in spelled
            assert set(field.option.flags) <= set(spelled)
            assert "⟨" not in parameters[field.name].help
    flags = {flag for command in commands.values() for parameter in command.params for flag in parameter.opts}
    for name in ramrs._native.options():
        assert f"--{'bits' if name == 'uniform' else name.replace('_', '-')}" in flags


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["plan", EXAMPLE, "-b", "4", "--min-bits", "6", "--max-bits", "3"], "--min-bits `6`: is above --max-bits 3"),
        (["plan", EXAMPLE, "--bits", "7"], "--bits `7`: "),
        (["plan", EXAMPLE, "-b", "4", "--group-size", "32"], "--group-size: goes with --bits"),
        (["plan", EXAMPLE], "--budget is missing: "),
        (["plan", EXAMPLE, "-b", "1"], "; --min-bits 2 lifts it"),
        (["quantize", EXAMPLE, "-b", "4", "-o", EXAMPLE], "hint: give another --output"),
        (["quantize", EXAMPLE, "-b", "4", "--plan", "plan.json"], "--budget: a saved plan has its own"),
    ],
)
def test_errors_spell_options_as_flags(command, said, ramrs_cli):
    done = ramrs_cli(*command)
    assert done.returncode != 0
    assert said in done.stderr
    assert "⟨" not in done.stderr


@pytest.mark.parametrize("options", [["--nonsense"], ["--budget"], ["-j", "none"], ["more"]], ids=str)
def test_a_usage_error_is_json_where_json_was_asked_for(options, ramrs_cli):
    done = ramrs_cli("plan", EXAMPLE, "--json", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert json.loads(done.stderr)["error"]["slug"] == "usage"
    assert ramrs_cli("plan", EXAMPLE, *options).stderr.startswith("error: ")


def test_a_value_called_json_does_not_ask_for_json(ramrs_cli):
    done = ramrs_cli("inspect", "--", "--json")
    assert done.stderr.startswith("error: --json")

"""Every command and every snippet of the documentation runs."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    """Blocks of ``language`` in the README."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [shlex.split(line) for block in fenced("sh") for line in block.splitlines()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A directory with the files that the README's commands name, in which they run one after the other."""
    made = tmp_path_factory.mktemp("clone")
    (made / "examples").symlink_to(ROOT / "examples")
    (made / "tests").symlink_to(ROOT / "tests")
    return made


def test_the_readme_names_what_it_should():
    verbs = {command[1] for command in COMMANDS if command[0] == "ramrs"}
    assert verbs == {"inspect", "probe", "analyze", "plan", "quantize", "verify", "eval"}
    assert ["make", "example"] in COMMANDS
    assert ["make", "test"] in COMMANDS


@pytest.mark.parametrize("target", [command[1] for command in COMMANDS if command[0] == "make"])
def test_make_knows_its_targets(target):
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_commands_of_the_readme_run_in_their_order(clone):
    for command in COMMANDS:
        if command[0] == "make":
            continue
        program = shutil.which(command[0], path=str(Path(sys.executable).parent))
        assert program, f"{command[0]} is not installed"
        done = subprocess.run([program, *command[1:]], cwd=clone, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
        if command[:2] == ["ramrs", "quantize"] and "--budget" in command:
            shown = fenced("text")[0].split()
            assert done.stdout.split() == shown, "the README shows another result"


def test_the_python_of_the_readme_runs(clone):
    for block in fenced("python"):
        done = subprocess.run([sys.executable, "-c", block], cwd=clone, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("source", "pattern", "section"),
    [
        ("rust/format/mlx/models.rs", r"AS_IS: [^=]*= &\[(.*?)\];", "Formats"),
        ("rust/format/mlx/models.rs", r"const MODELS: [^=]*= &\[(.*?)^\];", "Formats"),
        ("rust/arch/traits.rs", r"const VARIANTS: [^=]*= \{(.*?)^\};", "Where errors matter"),
    ],
)
def test_the_readme_names_the_model_types(source, pattern, section):
    listed = re.search(pattern, (ROOT / source).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE).group(1)
    model_types = re.findall(r'"(\w+)"', listed)
    assert len(model_types) > 5
    text = re.search(rf"^## {section}$(.*?)^## ", README, flags=re.DOTALL | re.MULTILINE).group(1)
    for model_type in model_types:
        assert f"`{model_type}`" in text, model_type

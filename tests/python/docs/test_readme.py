"""Every command, snippet, link and example of the documentation holds."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ramrs
from fixtures.paths import EXAMPLE, ROOT
from fixtures.tiers import slow_but_for

DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {"README.md": README, "CHANGELOG.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")} | {
    f"docs/{path.name}": path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))
}


def fenced(language: str, text: str = README) -> list[str]:
    """Blocks of ``language`` in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for block in fenced("sh", text) for line in block.splitlines()]


ALL_COMMANDS = [command for text in PAGES.values() for command in commands(text)]
RUN = [page for page, text in PAGES.items() if fenced("sh", text) or fenced("python", text)]


@pytest.fixture
def clone(tmp_path):
    """A directory with the files that a page's commands name, in which they run one after the other."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    return tmp_path


def test_the_readme_is_short_and_begins_with_two_commands_that_do_the_set_up():
    assert 80 <= len(README.splitlines()) <= 100
    assert commands(README)[:2] == [["make", "example"], ["make", "test"]]
    assert len((DOCS / "glossary.md").read_text(encoding="utf-8").splitlines()) <= 42


def test_the_documentation_shows_every_verb():
    verbs = {command[1] for command in ALL_COMMANDS if command[0] == "ramrs"}
    assert verbs == {"inspect", "probe", "analyze", "plan", "quantize", "finish", "verify", "eval"}


@pytest.mark.parametrize("target", sorted({command[1] for command in ALL_COMMANDS if command[0] == "make"}))
def test_make_knows_its_targets(target):
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", slow_but_for(["README.md"], RUN))
def test_the_commands_and_the_python_of_a_page_run_in_their_order(page, clone):
    for command in commands(PAGES[page]):
        if command[0] == "make":
            continue
        program = shutil.which(command[0], path=str(Path(sys.executable).parent))
        assert program, f"{command[0]} is not installed"
        done = subprocess.run([program, *command[1:]], cwd=clone, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
        if page == "README.md":
            assert done.stdout.split() == fenced("text")[0].split(), "the README shows another result"
    for block in fenced("python", PAGES[page]):
        done = subprocess.run([sys.executable, "-c", block], cwd=clone, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def anchors(text: str) -> set[str]:
    """The fragments that a page's headings make, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        if link.startswith("https://"):
            continue
        path, _, fragment = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.is_file(), link
        if fragment:
            assert fragment in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", [*PAGES, "tests/README.md"])
def test_the_paths_that_a_page_names_are_in_the_repository(page):
    text = PAGES.get(page) or (ROOT / page).read_text(encoding="utf-8")
    for path in re.findall(r"`((?:rust|python|tests|benches|examples)/[\w./-]*)`", text):
        assert any((base / path).exists() for base in (ROOT, (ROOT / page).parent)), path


def test_the_index_lists_every_page_once():
    listed = re.findall(r"^\| \[[^]]+\]\(([^)]+)\)", PAGES["docs/index.md"], flags=re.MULTILINE)
    assert sorted(listed) == sorted(
        {"../README.md", "../CHANGELOG.md", *(path.name for path in DOCS.glob("*.md"))} - {"index.md"}
    )


def test_pages_and_headings_that_the_code_names_exist():
    named = 0
    for path in [*ROOT.glob("rust/**/*.rs"), *ROOT.glob("python/**/*.py")]:
        text = re.sub(r"\s*\n\s*//[/!]\s*", " ", path.read_text(encoding="utf-8"))
        for page, heading in re.findall(r'`docs/([\w-]+\.md)`(?:,? \(?"([^"]+)")?', text):
            named += 1
            assert (DOCS / page).is_file(), f"{path}: {page}"
            headings = re.findall(r"^#+ (.+)$", PAGES[f"docs/{page}"], flags=re.MULTILINE)
            assert not heading or heading in headings, f"{path}: {page} has no {heading!r}"
    assert named > 5


def model_types() -> dict[str, bool]:
    """The model types of the table of families, and whether the probe runs them."""
    table = (ROOT / "rust" / "arch" / "families" / "table.rs").read_text(encoding="utf-8")
    entries = re.findall(r"(?:like_llama\(|gemma\(|types: )&\[([^\]]+)\](?:,\s*quirks: (\w+))?", table)
    return {name: quirks != "None" for types, quirks in entries for name in re.findall(r'"(\w+)"', types)}


@pytest.mark.parametrize("column", [1, 2])
def test_the_documentation_names_the_model_types(column):
    expected = {name for name, is_run in model_types().items() if is_run or column == 1}
    assert 20 < len(expected) < len(model_types()) + (column == 1)
    rows = [line.split("|") for line in PAGES["docs/models.md"].splitlines() if line.startswith("| `")]
    told = {
        name for row in rows if not row[column + 1].strip().startswith("no") for name in re.findall(r"`(\w+)`", row[1])
    }
    assert told == expected


def test_the_design_describes_the_modules_in_the_order_of_their_ranks():
    text = (ROOT / "rust" / "lib.rs").read_text(encoding="utf-8")
    ranks = re.findall(r"^//! \| \d+ \| ([^|]+) \|", text, flags=re.MULTILINE)
    section = PAGES["docs/design.md"].split("\n## Modules\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \|", section, flags=re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(rows)) == re.findall(r"`(\w+)`", " ".join(ranks))


def squeezed(text: str) -> str:
    """The lines of ``text`` without indentation and without empty ones."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


@pytest.mark.parametrize("what", ["codec", "format"])
def test_a_tutorial_quotes_all_of_its_example_and_the_line_that_registers_it(what):
    *pieces, registered = [squeezed(block) for block in fenced("rust", PAGES[f"docs/adding-a-{what}.md"])]
    example = (ROOT / "tests" / "rust" / "toy" / f"{what}.rs").read_text(encoding="utf-8")
    assert "\n".join(pieces) == squeezed(example)
    registry = (ROOT / "rust" / what / "mod.rs").read_text(encoding="utf-8")
    assert registered in squeezed(registry)


@pytest.mark.parametrize("what", ["Codec", "Encode", "Format"])
def test_a_tutorial_lists_the_methods_of_its_trait(what):
    module = "format" if what == "Format" else "codec"
    text = (ROOT / "rust" / module / "mod.rs").read_text(encoding="utf-8")
    trait = rf"^pub(?:\(crate\))? trait {what}: (?:Send \+ )?Sync {{\n(.*?)^}}$"
    [body] = re.findall(trait, text, flags=re.MULTILINE | re.DOTALL)
    table = PAGES[f"docs/adding-a-{module}.md"].split(f"| method of `{what}` |")[1].split("\n\n")[0]
    listed = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]*)\|", table, flags=re.MULTILINE)))
    assert listed == re.findall(r"^    fn (\w+)", body, flags=re.MULTILINE)


def without_notes(text: str) -> object:
    """The value of JSON with comments behind ``//``."""
    return json.loads(re.sub(r"\s// .*$", "", text, flags=re.MULTILINE))


def assert_shortened(example: object, whole: object, where: str) -> None:
    """``example`` is what it shows of ``whole``: ``…`` ends texts, lists end early, numbers are rounded."""
    if isinstance(example, str) and example.endswith("…"):
        assert example == "…" or str(whole).startswith(example[:-1]), where
    elif isinstance(example, dict):
        assert list(example) == list(whole), where
        for key, value in example.items():
            assert_shortened(value, whole[key], f"{where}.{key}")
    elif isinstance(example, list):
        assert len(example) <= len(whole) and (example or not whole), where
        for at, value in enumerate(example):
            assert_shortened(value, whole[at], f"{where}[{at}]")
    elif isinstance(example, float | int) and not isinstance(example, bool):
        assert whole == pytest.approx(example, rel=1e-3), where
    else:
        assert example == whole, where


def test_the_examples_of_documents_are_what_is_written(tmp_path):
    analysis = ramrs.analyze(EXAMPLE)
    report = ramrs.quantize(EXAMPLE, tmp_path / "out", budget=4.0, analysis=analysis)
    documents = {"Analysis": analysis, "Plan": report.plan, "Manifest": report.manifest}
    for kind, document in documents.items():
        section = PAGES["docs/formats.md"].split(f"\n### {kind}\n")[1]
        assert_shortened(without_notes(fenced("jsonc", section)[0]), document.to_dict(), kind)


def test_the_example_of_a_quantization_block_has_the_keys_of_one(tmp_path):
    ramrs.quantize(EXAMPLE, tmp_path / "out", budget=4.0, sensitivity="weights", effort="fast")
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    example = without_notes(fenced("jsonc", PAGES["docs/formats.md"])[0])
    assert config["quantization"] == config["quantization_config"]
    top = [key for key, value in config["quantization"].items() if not isinstance(value, dict | bool)]
    assert top == [key for key, value in example.items() if not isinstance(value, dict | bool)]
    assert list(example["model.embed_tokens"]) == top


def test_the_example_of_groups_is_what_is_written(tmp_path):
    ramrs.quantize(
        EXAMPLE,
        tmp_path / "out",
        format="compressed-tensors",
        bits=4,
        group_size=32,
        tensor={"down_proj": "8g64"},
        keep=[r"layers\.[04]\.self_attn"],
        sensitivity="weights",
        effort="fast",
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    section = PAGES["docs/formats.md"].split("\n## Output: compressed-tensors\n")[1]
    assert without_notes(fenced("jsonc", section)[0]) == config["quantization_config"]

"""What the tests share through pytest: the example model, the command line as a process, and the order of tests."""

import os
import shutil
import signal
from pathlib import Path

# On a busy machine the threads of a BLAS wait for each other; the models here are too small for more than one.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A shell without job control starts what it leaves in the background with SIGINT ignored, and all of its children are.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from fixtures.checkpoints import LLAMA, llama_tensors, write_checkpoint
from fixtures.paths import EXAMPLE
from fixtures.process import ramrs_process

pytest.register_assert_rewrite("oracles")


def pytest_collection_modifyitems(items):
    """Begin with what takes longest: in several processes (``--numprocesses``) the rest goes beside it."""
    items.sort(key=lambda item: [item.get_closest_marker(marker) is None for marker in ("smollm2", "slow")])


@pytest.fixture
def ramrs_cli(tmp_path):
    """Run the command line in an empty directory."""
    work = tmp_path / "work"
    work.mkdir()

    def run(*arguments, **options):
        return ramrs_process(*arguments, **{"cwd": work, **options})

    run.directory = work
    return run


@pytest.fixture
def model(tmp_path):
    """A small checkpoint of random weights, to be spoilt."""
    return write_checkpoint(tmp_path / "model", llama_tensors(LLAMA))


@pytest.fixture
def example(tmp_path):
    """A copy of the example model, to be spoilt."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "example"))


@pytest.fixture(scope="session")
def example_at_4(tmp_path_factory):
    """The example at 4.0 bits per weight: path, and the report. Not to be changed."""
    import ramrs

    output = tmp_path_factory.mktemp("quantized") / "example-4"
    return output, ramrs.quantize(EXAMPLE, output, budget=4.0)


@pytest.fixture(autouse=True, scope="session")
def quiet_surroundings():
    """Keep the machine's settings out of what is printed."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "CLICOLOR_FORCE"):
        os.environ.pop(name, None)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"

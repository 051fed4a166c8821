"""What the tests of runtimes share: the environments must be there, and results go to a record."""

import pytest
from runtimes.record import Record
from runtimes.running import environment


def pytest_addoption(parser):
    parser.addoption("--record", help="Markdown file to write the results to")


@pytest.fixture(scope="session", autouse=True)
def environments():
    """Fail at once if an environment was not made."""
    for name in ("transformers", "vllm"):
        if not environment(name).exists():
            pytest.exit(f"{environment(name)} is not there: run `make runtimes`", returncode=1)


@pytest.fixture(scope="session")
def record(request):
    """Collect results; write them at the end if a file was asked for."""
    collected = Record()
    yield collected
    path = request.config.getoption("--record")
    if path and not request.session.testsfailed:
        collected.write(path)

"""A job takes no more memory than it is allowed, and what it writes does not depend on that."""

import subprocess
import sys
from pathlib import Path

import pytest
import ramrs
from fixtures.paths import EXAMPLE, ROOT
from fixtures.process import sees_everything

pytestmark = pytest.mark.slow

STATUS = Path("/proc/self/status")
MODEL = ROOT / "models" / "smollm2-135m"
PROGRAM = """
import pathlib, re, sys, ramrs
ramrs.quantize(sys.argv[1], sys.argv[2], budget=4.0, sensitivity=sys.argv[3], threads=2, max_memory=sys.argv[4])
print(re.search(r"VmHWM:\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not (MODEL.exists() and STATUS.exists()), reason="made by `make models`; measured on Linux")
@pytest.mark.parametrize(
    ("limit", "size", "sensitivity"), [(2**27, "128MiB", "weights"), (4 * 10**8, "400MB", "probe")]
)
def test_a_limit_holds(limit, size, sensitivity, tmp_path):
    command = [sys.executable, "-c", PROGRAM, MODEL, tmp_path / "out", sensitivity, size]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert 1024 * int(done.stdout) <= limit


@pytest.mark.parametrize("sensitivity", ["weights", "probe"])
def test_a_limit_changes_no_byte(sensitivity, tmp_path):
    for limit in (None, "120MiB", "1GB"):
        ramrs.quantize(EXAMPLE, tmp_path / str(limit), budget=4.0, sensitivity=sensitivity, threads=2, max_memory=limit)
    unlimited = sees_everything(tmp_path / "None")
    assert sees_everything(tmp_path / "120MiB") == sees_everything(tmp_path / "1GB") == unlimited


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("much", "max_memory= `much`: write a size"),
        ("4.0", "max_memory= `4.0`: write a size"),
        ("10MiB", "max_memory= `10MiB`: with 2 threads it takes"),
    ],
)
def test_a_limit_that_is_none_or_cannot_be_kept_is_refused(limit, message, tmp_path):
    with pytest.raises(ramrs.ConfigError) as caught:
        ramrs.quantize(EXAMPLE, tmp_path / "out", budget=4.0, threads=2, max_memory=limit)
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not MODEL.exists(), reason="made by `make models`")
def test_a_limit_below_what_a_run_of_the_model_holds_is_refused_with_the_one_that_would_do(tmp_path):
    with pytest.raises(ramrs.ConfigError, match=r"max_memory= `100MiB`: .* takes .*, .* are left for it: allow about"):
        ramrs.quantize(MODEL, tmp_path / "out", budget=4.0, max_memory="100MiB", sensitivity="probe")

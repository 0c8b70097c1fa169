"""What happens where the extension is broken, missing or switched off: a warning that helps, and everything works."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import lordfast

# Runs in a fresh interpreter on a copy of the package. An editable installation puts itself before sys.path; not here.
PROGRAM = """
import sys, warnings
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__
                    and "Redirect" not in type(finder).__name__]
sys.path.insert(0, sys.argv[1])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from lordfast.ops import _native
    import lordfast.ops
assert lordfast.__file__.startswith(sys.argv[1]), lordfast.__file__
print(_native.available, _native.C is None)
print(_native.reason)
for warning in caught:
    if issubclass(warning.category, RuntimeWarning) and "lordfast" in str(warning.message):
        print("WARNING", warning.message)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package's Python files without the extension."""
    skip = shutil.ignore_patterns("_C*", "__pycache__", "model")
    shutil.copytree(Path(lordfast.__file__).parent, tmp_path / "lordfast", ignore=skip)
    return tmp_path / "lordfast"


def run(copy: Path, **environment: str) -> tuple[str, str, list[str]]:
    """(state, reason, warnings) of _native in the copy."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(copy.parent)],
        env={**{k: v for k, v in os.environ.items() if not k.startswith("LORDFAST_")}, **environment},
        cwd=copy.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    state, reason, *rest = done.stdout.splitlines()
    return state, reason, [line for line in rest if line.startswith("WARNING")]


def test_a_broken_file_is_named(copy: Path) -> None:
    broken = copy / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    broken.write_bytes(b"not a shared library" * 100)
    state, reason, warnings = run(copy)
    assert state == "False True"
    assert reason.startswith(f"{broken}: ") and "invalid ELF header" in reason
    assert len(warnings) == 1 and str(broken) in warnings[0] and "reference backend" in warnings[0]


def test_a_missing_file(copy: Path) -> None:
    state, reason, warnings = run(copy)
    assert state == "False True"
    assert f"no _C*.so in {copy}" in reason and "No module named 'lordfast._C'" in reason
    assert len(warnings) == 1 and str(copy) in warnings[0] and "reference backend" in warnings[0]


def test_switched_off_is_quiet(copy: Path) -> None:
    state, reason, warnings = run(copy, LORDFAST_DISABLE_NATIVE="1")
    assert (state, reason, warnings) == ("False True", "switched off by LORDFAST_DISABLE_NATIVE=1", [])


def test_zero_does_not_switch_off(copy: Path) -> None:
    _, reason, _ = run(copy, LORDFAST_DISABLE_NATIVE="0")
    assert "switched off" not in reason

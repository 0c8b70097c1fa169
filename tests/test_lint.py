"""The formatters, linters and the type checker find nothing, in the versions that pyproject.toml pins."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def tool(name: str) -> str:
    """The program beside this interpreter, else on the PATH."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        pytest.fail(f'{name} is not installed, expected it from pip install ".[test]"')
    return path


def test_ruff_check() -> None:
    run(tool("ruff"), "check", ".")


def test_ruff_format() -> None:
    run(tool("ruff"), "format", "--check", ".")


def test_mypy() -> None:
    run(tool("mypy"), "lordfast")


def test_clang_format() -> None:
    files = sorted(str(path) for path in (ROOT / "csrc").rglob("*") if path.suffix in {".cpp", ".h", ".cu", ".cuh"})
    assert len(files) > 10
    run(tool("clang-format"), "--dry-run", "-Werror", *files)

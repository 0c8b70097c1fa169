"""The top-level package: cheap to import, and everything it announces is there."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import lordfast
import lordfast.adapter


def test_import_is_cheap() -> None:
    code = "import sys, lordfast; heavy = {'torch', 'peft', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def test_announced_names_are_the_adapters() -> None:
    fusion = importlib.import_module("lordfast.diffusion.fusion")
    for name in set(lordfast.__all__) - {"__version__"}:
        assert getattr(lordfast, name) is getattr(fusion if name in ("optimize", "restore") else lordfast.adapter, name)
    assert set(lordfast.__all__) <= set(dir(lordfast))
    assert lordfast.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'Lord'"):
        lordfast.Lord  # noqa: B018

"""Every shipped configuration compiles for sm_80 and sm_90, spills nothing and fits.

In its hardest variant, and every kind of variant for one configuration of each kernel.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lordfast.ops.backends.triton.configs import TABLE


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """What `python -m ...aot` prints and writes, from a process in which nothing is interpreted."""
    folder = tmp_path_factory.mktemp("aot")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "PYTHONWARNINGS": "ignore"}
    command = [
        sys.executable,
        "-m",
        "lordfast.ops.backends.triton.aot",
        "--jobs",
        "1",
        "--brief",
        "--json",
        str(folder / "out.json"),
    ]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done, json.loads((folder / "out.json").read_text()) if (folder / "out.json").exists() else []


def test_nothing_spills_and_all_fits(report):
    done, found = report
    assert done.returncode == 0, done.stderr
    assert not [r for r in found if r["stack"] or not 0 < r["registers"] <= 255]
    assert max(r["shared"] for r in found if r["capability"] == 80) <= 163 * 1024
    assert max(r["shared"] for r in found if r["capability"] == 90) <= 227 * 1024


def test_every_row_and_every_kernel_was_compiled(report):
    _, found = report
    for capability in (80, 90):
        mine = [r for r in found if r["capability"] == capability]
        assert {r["variant"].split()[0] for r in mine} == {f"{row.kernel}/{row.name}" for row in TABLE}
        kernels = {r["kernel"].rstrip("'") for r in mine}
        assert kernels == {"forward", "token_gate", "qkv", "prep", "rows", "dx", "reduce"}
        for kernel in ("forward", "rows", "dx"):
            labels = [r["variant"].split() for r in mine if r["variant"].startswith(f"{kernel}/")]
            assert {label[1] for label in labels} == {"bfloat16", "float16", "float32"}
            for dtype in ("bfloat16", "float32"):
                assert {"r=4", "sample"} <= {word for label in labels if label[1] == dtype for word in label}

"""``lordfast info``: what a bug report needs, whatever is missing."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest
import torch

from lordfast.cli import info
from lordfast.cli.main import main


def in_new_process(*flags: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from lordfast.cli.main import main; sys.exit(main())", "info", *flags],
        env={**{k: v for k, v in os.environ.items() if not k.startswith("LORDFAST_")}, **environment},
        cwd="/",  # in a checkout, -c would find the source tree, which has no compiled extension
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_json_has_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["python"].startswith(platform.python_version())
    assert found["packages"]["torch"] == version("torch")
    assert set(found["packages"]) >= {"diffusers", "peft", "transformers", "accelerate", "triton", "xformers", "nvtx"}
    assert found["cpu"]["cores"] == os.cpu_count() and found["cpu"]["threads"] == torch.get_num_threads()
    assert found["cpu"]["name"]
    assert len(found["cuda"]["devices"]) == torch.cuda.device_count()
    assert found["backends"]["reference"] == "ok"
    assert found["demo_model"]["present"] is True and 0 < found["demo_model"]["mib"] <= 15
    assert found["cache"]["folder"] == os.environ["LORDFAST_CACHE"]


def test_text_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["torch", version("torch")] in lines
    assert ["reference", "ok"] in lines
    assert ["folder", os.environ["LORDFAST_CACHE"]] in lines


def test_the_extension_is_described_where_it_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    from lordfast.ops import _native

    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    if _native.C is None:
        assert found["native"] == {"loaded": False, "reason": _native.reason}
        assert found["backends"]["native"] == _native.reason
    else:
        assert found["native"]["build"] == json.loads(json.dumps(_native.C.build_info()))
        assert found["cpu"]["isa"] == _native.C.cpu_isa()
        assert found["cpu"]["isa"] in found["native"]["isas"]


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
def test_without_the_extension_it_says_why(flags: tuple[str, ...]) -> None:
    printed = in_new_process(*flags, LORDFAST_DISABLE_NATIVE="1")
    reason = "switched off by LORDFAST_DISABLE_NATIVE=1"
    if flags:
        found = json.loads(printed)
        assert found["native"] == {"loaded": False, "reason": reason}
        assert found["backends"]["native"] == reason and found["backends"]["reference"] == "ok"
        assert found["cpu"]["isa"].startswith("unknown")
    else:
        lines = [line.split(maxsplit=1) for line in printed.splitlines()]
        assert ["reason", reason] in lines and ["loaded", "no"] in lines and ["native", reason] in lines


def test_a_bad_instruction_set_is_reported_and_no_crash() -> None:
    from lordfast.ops import _native

    found = json.loads(in_new_process("--json", LORDFAST_CPU_ISA="z80"))
    if _native.C is not None:
        assert found["cpu"]["isa"].startswith("unavailable: ValueError") and "z80" in found["cpu"]["isa"]
    assert found["packages"]["torch"] == version("torch")


def test_missing_packages_and_broken_parts_cost_one_entry_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any) -> Any:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(info, "PACKAGES", ("torch", "no-such-package-of-lordfast"))
    monkeypatch.setattr("lordfast.ops.available_backends", broken)
    monkeypatch.setattr("torch.get_num_threads", broken)
    # None in sys.modules makes the import fail, as for a package that is not there.
    monkeypatch.setitem(sys.modules, "lordfast.diffusion.resolve", None)
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"] == {"torch": version("torch"), "no-such-package-of-lordfast": "not installed"}
    assert found["backends"] == "unavailable: OSError: libcuda.so.1: cannot open shared object file"
    assert found["cpu"]["threads"].startswith("unavailable: OSError") and found["cpu"]["cores"] == os.cpu_count()
    assert found["demo_model"].startswith("unavailable: ModuleNotFoundError")
    assert main(["info"]) == 0
    assert "unavailable: OSError: libcuda.so.1" in capsys.readouterr().out


def test_cuda_devices_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor, total_memory = "NVIDIA H200", 9, 0, 140 * 2**30

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    found = info.collect_info()["cuda"]
    assert found["devices"] == [{"name": "NVIDIA H200", "capability": "9.0", "memory_gib": 140.0}] * 2
    assert "NVIDIA H200" in info.to_text({"cuda": found})


def test_explain_names_the_backend_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    from lordfast.ops.explain import explain_lord

    expected = explain_lord(64, 32, 16, torch.bfloat16, torch.device("cpu"))
    assert main(["info", "--explain", "64", "32", "16", "bf16", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["op"] for one in found] == ["lord_forward", "lord_backward"]
    assert [one["runs"] for one in found] == [one.runs for one in expected]
    assert main(["info", "--explain", "64", "32", "16", "bf16", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert f"-> {expected[0].runs}" in printed and expected[0].device in printed
    assert "can't: " in printed  # some backend is not for this machine, and it says why


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["64", "x", "16", "bf16"], "N is 'x'; expected a positive integer"),
        (["0", "32", "16", "bf16"], "M is 0; expected 1 or more"),
        (["64", "32", "16", "int8"], "DTYPE is 'int8'; expected fp32, bf16 or fp16"),
    ],
    ids=["not a number", "zero", "dtype"],
)
def test_explain_refuses(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--explain", *words]) == 2
    assert message in capsys.readouterr().err

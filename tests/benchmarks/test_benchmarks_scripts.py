"""The benchmark scripts themselves, on cases that take no time."""

from __future__ import annotations

import json

import pytest

from lordfast.ops import dispatch
from lordfast.ops.backends._base import Backend, Kernel
from lordfast.ops.backends.reference.lord import lord_forward
from lordfast.profiling.cases import LinearCase
from lordfast.profiling.results import read_rows


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr("lordfast.profiling.linear.cache_bytes", lambda device: 1)
    monkeypatch.setattr("lordfast.profiling.pgd.cache_bytes", lambda device: 1)
    monkeypatch.setattr("lordfast.profiling.ceilings.cache_bytes", lambda device: 1)


@pytest.fixture
def ops(script, monkeypatch):
    module = script("bench_ops")
    monkeypatch.setattr(module, "quick_cases", lambda batch: [LinearCase("sd15", 24, 20, 16, batch)])
    return module


def config(module, tmp_path, **more):
    return module.Config(device="cpu", quick=True, seconds=0.001, out=tmp_path / "out.csv", **more)


def test_every_dtype_and_gate_width(ops, tmp_path, capsys):
    assert ops.main(config(ops, tmp_path, gate_hidden=(4, 16), batch=3)) == 0
    rows = read_rows(tmp_path / "out.csv")
    assert {(row["dtype"], row["H"]) for row in rows} == {(d, h) for d in ("fp32", "bf16") for h in ("4", "16")}
    assert {row["M"] for row in rows} == {"72"} and {row["gate"].split(":")[0] for row in rows} <= {
        "ok",
        "not checked",
        "refused",
    }
    assert all(float(row["peak_gflops"]) > 0 for row in rows)
    assert "lordfast:reference" in capsys.readouterr().out


def test_the_compiled_formula_is_a_variant(ops, tmp_path, monkeypatch):
    # Inductor takes half a minute; that it is asked for the right thing is what matters here.
    asked = []

    def compiled(function, device):
        asked.append((function.__name__, device.type))
        return function

    monkeypatch.setattr("lordfast.profiling.linear.compiled", compiled)
    monkeypatch.setattr(ops, "linear_cases", lambda models, batch: [LinearCase("sd15", 24, 20, 16, batch)])
    settings = ops.Config(device="cpu", seconds=0.001, repeats=1, dtype=("fp32",), out=tmp_path / "out.csv")
    monkeypatch.setattr("lordfast.profiling.session.Session.measure_ceilings", lambda *args, **kwargs: None)
    assert ops.main(settings) == 0
    rows = read_rows(tmp_path / "out.csv")
    assert asked == [("eager_lord_linear", "cpu")]
    assert {row["gate"] for row in rows if row["variant"] == "eager_compiled"} == {"ok"}
    assert all(float(row["ratio_eager_compiled"]) > 0 for row in rows if row["median_us"])


def test_a_wrong_kernel_is_exit_status_1(ops, tmp_path, monkeypatch, capsys):
    kernel = Kernel(lambda *args: tuple(1.1 * t for t in lord_forward(*args)))
    monkeypatch.setitem(dispatch.BACKENDS, "madeup", Backend("madeup", -1, lambda: None, {"lord_forward": kernel}))
    assert ops.main(config(ops, tmp_path, dtype=("fp32",))) == 1
    rows = {(r["direction"], r["variant"]): r for r in read_rows(tmp_path / "out.csv")}
    assert rows["forward", "lordfast:madeup"]["gate"].startswith("red: ")
    assert rows["forward", "lordfast:madeup"]["median_us"] == ""
    assert rows["forward", "lordfast"]["median_us"] != ""
    assert "its numbers are wrong" in " ".join(capsys.readouterr().out.split())


def test_steps_and_their_share_of_an_add(script, tmp_path, monkeypatch, capsys):
    pgd = script("bench_pgd")
    monkeypatch.setattr(pgd, "SHAPES", ((2, 3, 8, 8),))
    assert pgd.main(config(pgd, tmp_path)) == 0
    rows = read_rows(tmp_path / "out.csv")
    assert {(row["case"], row["dtype"]) for row in rows} == {
        (f"{norm} 2x3x8x8", dtype) for norm in ("linf", "l2") for dtype in ("fp32", "bf16", "fp16")
    }
    table = pgd.share_table([{"case": "c", "dtype": "fp32", "variant": v, "gbps": g} for v, g in _SHARES.items()])
    assert [list(column.cells) for column in table.columns][2:] == [["50 %"], [""], ["90 %"]]
    assert "Share of an in-place add" in capsys.readouterr().out


_SHARES = {"copy": 10.0, "inplace_add": 20.0, "eager": None, "lordfast": 18.0, "lordfast:native": 18.0}


def test_the_unet_script_checks_its_options(script, tmp_path, monkeypatch):
    unet = script("bench_unet")
    with pytest.raises(ValueError, match="side is 12; expected a multiple of 8"):
        unet.main(config(unet, tmp_path, side=12))
    asked = []
    monkeypatch.setattr(unet, "bench_unet", lambda *given: asked.append(given) or [])
    monkeypatch.setattr("lordfast.profiling.session.case_table", lambda rows: "")
    assert unet.main(config(unet, tmp_path)) == 0
    small, xl = asked
    model, name, options, dtype, _, prepare = xl
    assert (name, options.batch, options.side, dtype) == ("sdxl-narrow", 2, None, "fp32")
    assert model.config.addition_embed_type == "text_time" and small[1] == "sd15-narrow"
    assert list(prepare) == ["lordfast+optimize"]  # compiled too where it takes seconds
    assert list(unet.forms(compiled=True)) == ["lordfast+optimize", "lordfast+optimize, compiled"]


def test_the_dispatch_table_script(script, results, tmp_path):
    module = script("dispatch_table")
    assert module.main(module.Config(results=(results,), out=tmp_path / "table.json")) == 0
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["device"] == "cpu-avx512" and len(table["rows"]) == 2 * 2 * 2 + 1
    assert all("madeup" not in row["ratio"] for row in table["rows"])


def test_errors_are_one_line(script, capsys, monkeypatch):
    module = script("plot")
    from lordfast.profiling.session import script as run_script

    monkeypatch.setattr("sys.argv", ["plot.py", "nowhere.csv"])
    with pytest.raises(SystemExit) as stop:
        run_script(module.main, module.Config)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: nowhere.csv is no readable results file")

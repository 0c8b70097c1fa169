"""The dispatcher's table from a few rows whose ratios are worked out by hand."""

from __future__ import annotations

import json

import pytest

from lordfast.profiling.dispatch_table import dispatch_table, write_table
from lordfast.profiling.results import COLUMNS, read_rows, write_rows

BASE = {
    "date": "2026-01-02T03:04:05Z",
    "device_key": "cpu-avx512",
    "threads": 1,
    "lordfast": "0.1.0",
    "torch": "2.13.0",
    "op": "lord_linear",
    "case": "sd15 image 16 8->4",
    "M": 16,
    "K": 8,
    "N": 4,
    "x_grad": 1,
    "r": 4,
    "H": 64,
    "dtype": "bf16",
}


def row(variant, direction="forward", us=None, gate="ok", **more):
    return {**BASE, "variant": variant, "direction": direction, "median_us": us, "gate": gate, **more}


def table(tmp_path, *rows):
    write_rows(tmp_path / "rows.csv", rows)
    return dispatch_table(read_rows(tmp_path / "rows.csv"))


def lord(**more):
    both = "forward+backward"
    return [
        row("bare_linear", us=10, gate="not checked", **more),
        row("bare_linear", both, us=30, gate="not checked", **more),
        row("eager", us=99, **more),
        row("lordfast", us=98, **more),
        row("lordfast:native", us=12, **more),
        row("lordfast:native", both, us=42, **more),
        row("lordfast:reference", us=15, **more),
        row("lordfast:reference", both, us=75, **more),
    ]


def test_ratios_to_the_bare_layer(tmp_path):
    made = table(tmp_path, *lord())
    sizes = {"dtype": "bfloat16", "M": 16, "K": 8, "N": 4}
    assert made["rows"] == [
        {"op": "lord_backward", **sizes, "ratio": {"native": 1.5, "reference": 3.0}},
        {"op": "lord_forward", **sizes, "ratio": {"native": 1.2, "reference": 1.5}},
    ]
    assert (made["device"], made["date"], made["threads"]) == ("cpu-avx512", "2026-01-02T03:04:05Z", 1)
    assert made["versions"]["torch"] == "2.13.0" and made["versions"]["driver"] == ""


def test_without_dx_the_bare_layer_has_no_backward(tmp_path):
    rows = lord(x_grad=0)
    rows[1]["median_us"] = 10.01
    backward = table(tmp_path, *rows)["rows"][0]
    assert backward["op"] == "lord_backward" and backward["ratio"] == {"native": 3.0, "reference": 6.0}


@pytest.mark.parametrize("gate", ["red: y 1e-1 > 1e-3", "refused: it has no kernel"])
def test_only_right_numbers_count(tmp_path, gate):
    rows = lord()
    rows[4] = row("lordfast:native", us=1 if gate.startswith("red") else None, gate=gate)
    backward, forward = table(tmp_path, *rows)["rows"]
    assert forward["ratio"] == {"reference": 1.5}
    # Without a forward there is nothing to subtract.
    assert backward["ratio"] == {"reference": 3.0}


def test_steps_are_measured_against_an_add(tmp_path):
    step = {"op": "pgd_step", "M": 4, "K": 100, "N": 100, "x_grad": "", "dtype": "fp32"}
    rows = []
    for norm, us in (("linf", 30), ("l2", 60)):
        where = {**step, "case": f"{norm} 4x100"}
        rows += [row("inplace_add", us=20, gate="not checked", **where), row("lordfast:native", us=us, **where)]
    found = table(tmp_path, *rows)["rows"]
    assert [(r["op"], r["norm"], r["ratio"], r["K"]) for r in found] == [
        ("pgd_step", "l2", {"native": 3.0}, 100),
        ("pgd_step", "linf", {"native": 1.5}, 100),
    ]


def test_gate_widths_are_averaged_by_their_ratios(tmp_path):
    wide = lord(H=128)
    wide[4]["median_us"], wide[6] = 48, row("lordfast:reference", gate="red: y", H=128)
    forward = table(tmp_path, *lord(), *wide)["rows"][1]
    # sqrt(1.2 * 4.8); the reference was right only once.
    assert forward["ratio"] == {"native": 2.4}


def test_differences_that_noise_ate_say_nothing(tmp_path):
    rows = lord()
    rows[5]["median_us"] = 11
    assert table(tmp_path, *rows)["rows"][0]["ratio"] == {"reference": 3.0}
    rows[1]["median_us"] = 9
    assert [r["op"] for r in table(tmp_path, *rows)["rows"]] == ["lord_forward"]


def test_rows_that_do_not_belong_together(tmp_path):
    with pytest.raises(ValueError, match="device_key: cpu-avx2, cpu-avx512; expected one"):
        table(tmp_path, *lord(), *lord(device_key="cpu-avx2"))
    with pytest.raises(ValueError, match="threads: 1, 2; expected one"):
        table(tmp_path, *lord(), *lord(threads=2))
    with pytest.raises(ValueError, match="no rows of lord_linear or pgd_step"):
        table(tmp_path, row("plain", op="unet", us=1))


def test_the_file_is_json_with_a_line_a_row(tmp_path):
    made = table(tmp_path, *lord())
    write_table(made, tmp_path / "table.json")
    text = (tmp_path / "table.json").read_text()
    assert json.loads(text) == made
    assert sum('"ratio"' in line for line in text.splitlines()) == 2
    assert set(BASE) <= set(COLUMNS)

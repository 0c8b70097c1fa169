"""The CSV file: its columns, rows that survive, and files that are not ours."""

from __future__ import annotations

import csv
import io
import re

import pytest
from rich.console import Console

from lordfast.profiling import machine
from lordfast.profiling.results import COLUMNS, ResultsFile, read_rows, write_rows
from lordfast.profiling.session import session

PROMISED = """date device device_key threads cpu_isa lordfast commit torch triton cuda python driver op direction
case M K N r H granularity dtype variant median_us p20_us p80_us repeats ratio_bare ratio_eager ratio_eager_compiled
ratio_peft gbps gflops error gate"""


def test_the_columns_are_those_promised():
    assert set(PROMISED.split()) < set(COLUMNS) and len(set(COLUMNS)) == len(COLUMNS)


def test_rows_come_back_and_the_machine_is_in_them(tmp_path, run_tiny):
    path = tmp_path / "new" / "rows.csv"
    with session("cpu", 1, path, Console(file=io.StringIO())) as run:
        run.measure_ceilings(("fp32",), seconds=0.01, side=16)
        run.run([("tiny", lambda: list(run_tiny().values()))], "test")
    rows = read_rows(path)
    assert [(row["direction"], row["variant"]) for row in rows] == [
        (row["direction"], row["variant"]) for row in run.file.rows
    ]
    for row in rows:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["date"])
        assert row["device"] and row["device_key"].startswith("cpu") and row["threads"] == "1"
        assert row["torch"] and row["python"] and row["lordfast"] and row["driver"] == ""
        assert row["op"] == "lord_linear" and row["dtype"] == "fp32" and row["r"] == "4" and row["H"] == "8"
        if row["gate"] in ("ok", "not checked"):
            assert float(row["p20_us"]) <= float(row["median_us"]) <= float(row["p80_us"])
            assert float(row["peak_gbps"]) > 0 and float(row["peak_gflops"]) > 0 and float(row["gbps"]) > 0


def test_an_interrupted_run_keeps_its_rows(tmp_path, run_tiny):
    path = tmp_path / "rows.csv"

    def interrupt():
        raise KeyboardInterrupt

    jobs = [("first", lambda: list(run_tiny().values())), ("second", interrupt)]
    with pytest.raises(KeyboardInterrupt), session("cpu", 1, path, Console(file=io.StringIO())) as run:
        run.run(jobs, "test")
    assert len(read_rows(path)) == len(run_tiny())
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    write_rows(path, [{"gate": "ok"}])
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_rows(path, [{"gate": "ok"}] * 2)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["rows.csv"]


def test_nothing_measured_leaves_an_earlier_file(tmp_path):
    path = tmp_path / "rows.csv"
    write_rows(path, [{"gate": "ok"}])
    ResultsFile(path)
    assert len(read_rows(path)) == 1


def test_a_foreign_file_is_not_replaced(tmp_path):
    path = tmp_path / "thesis.csv"
    path.write_text("chapter,pages\n1,30\n")
    with pytest.raises(ValueError, match="thesis.csv holds no benchmark results"):
        ResultsFile(path)
    with pytest.raises(ValueError, match="no readable results file"):
        read_rows(tmp_path / "nowhere.csv")


def test_unknown_columns_are_no_rows(tmp_path):
    with pytest.raises(KeyError, match="speed"):
        ResultsFile(tmp_path / "rows.csv").add([{"speed": 1}])


def test_values_are_written_once_and_short(tmp_path):
    path = tmp_path / "rows.csv"
    write_rows(path, [{"median_us": 1234.56789, "gate": 'red: "a", b', "ratio_bare": None, "repeats": 7}])
    with open(path, newline="") as stream:
        row = next(csv.DictReader(stream))
    assert (row["median_us"], row["gate"], row["ratio_bare"], row["repeats"]) == ("1234.57", 'red: "a", b', "", "7")


def test_devices_and_threads_that_are_none():
    for name in ("abacus", "meta", "cuda:99"):
        with pytest.raises(ValueError, match=f"device: '{name}'"):
            machine.find_device(name)
    with pytest.raises(ValueError, match="threads is 0; expected at least 1"), machine.threads(0):
        pass


def test_the_device_key_is_the_instruction_set(monkeypatch):
    class Extension:
        @staticmethod
        def cpu_isa() -> str:
            return "avx9"

    cpu = machine.torch.device("cpu")
    monkeypatch.setattr(machine._native, "C", Extension)
    assert machine.device_key(cpu) == "cpu-avx9"
    monkeypatch.setattr(machine._native, "C", None)
    assert machine.device_key(cpu) == "cpu"
    monkeypatch.setattr(machine.torch.cuda, "get_device_name", lambda device: "NVIDIA H200 NVL")
    assert machine.device_key(machine.torch.device("cuda", 0)) == "NVIDIA-H200-NVL"

"""The benchmark of attacks: what it times, and what it divides by what."""

from __future__ import annotations

import copy
import csv
import sys

import pytest

from lordfast.profiling.rounds import Timing


@pytest.fixture
def bench(script):
    return script("bench_attack")


def test_rows_and_ratios(bench, tmp_path, monkeypatch, capsys):
    # Two images that take 2 s together, 3 s one by one; memory halved by low_memory.
    monkeypatch.setattr(
        bench,
        "time_in_turn",
        lambda calls, effort, seed: {case: Timing(2.0 if case.batch_size > 1 else 3.0, 1.0, 4.0, 5) for case in calls},
    )
    monkeypatch.setattr(bench, "prepare", lambda *args: None)
    asked = []
    monkeypatch.setattr(bench, "bench_steps", lambda *given: asked.append(given) or 0)
    monkeypatch.setattr(bench, "peak_mib", lambda case, config, scratch: 50.0 if case.low_memory else 100.0)
    out = tmp_path / "attack.csv"
    assert bench.main(bench.Config(device="cpu", images=2, out=out)) == 0
    with out.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == bench.COLUMNS and len(rows) == 8
    for attack, steps, trained in (("pgd", 4, 0), ("ace", 4, 2)):
        mine = [row for row in rows if row["attack"] == attack]
        assert {(row["image_steps"], row["train_steps"]) for row in mine} == {(str(steps), str(trained))}
        batched, single, plain, low = mine
        assert (batched["batch_size"], single["batch_size"]) == ("2", "1")
        assert float(batched["image_steps_per_s"]) == 2 * steps / 2 and float(
            single["image_steps_per_s"]
        ) == pytest.approx(2 * steps / 3, rel=1e-4)
        assert float(batched["ratio_one_by_one"]) == 1.5 and float(single["ratio_one_by_one"]) == 1
        assert (plain["low_memory"], plain["peak_mib"], plain["ratio_low_memory"]) == ("0", "100", "2")
        assert (low["low_memory"], low["peak_mib"], low["ratio_low_memory"]) == ("1", "50", "1")
        assert all(row["device"] and row["torch"] for row in mine)
    ((config, device, beside, compiled),) = asked
    assert (config.seconds, device.type, beside, compiled) == (60, "cpu", tmp_path / "attack_steps.csv", False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "steps/s" in shown and "peak MiB" in shown


@pytest.mark.parametrize("attack", ["pgd", "ace"])
def test_what_is_timed_is_the_attack(bench, attack, tmp_path, monkeypatch, demo_model):
    batches = []
    module = sys.modules["lordfast.attacks.folder" if attack == "pgd" else "lordfast.attacks.subject"]
    name = "perturb" if attack == "pgd" else "descend"
    real = getattr(module, name)

    def watch(model, images, *rest):
        batches.append(len(images))
        return real(model, images, *rest)

    monkeypatch.setattr(module, name, watch)
    config = bench.Config(device="cpu", images=3)
    for size, expected in ((3, [3]), (1, [1, 1, 1])):
        run = bench.prepare(bench.Case(attack, size, 1, False), config, copy.deepcopy(demo_model), tmp_path)
        for _ in range(2):
            batches.clear()
            run()
            # ACE perturbs in two rounds.
            assert batches == expected * (1 if attack == "pgd" else 2)
    assert not list(tmp_path.glob("tmp*"))

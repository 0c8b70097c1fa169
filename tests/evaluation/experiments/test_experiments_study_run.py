"""A study as a whole: its bookkeeping with steps that are made up here, and once, tiny, with the real ones."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from lordfast.cli.main import main
from lordfast.data import list_images, load_image, save_png

STEPS = "lordfast.evaluation.experiments.steps"
STUDY = "lordfast.evaluation.experiments.study.run"


class World:
    """Steps that take no time: an attack adds 16 grey levels, a LoRA draws its pictures' mean, a LoRD takes 12 off.

    Attributes:
        calls: kind -> the configs of every run, in order.
        bad: kinds that fail.
    """

    def __init__(self) -> None:
        self.calls: dict[str, list[Any]] = {
            kind: [] for kind in ("attack", "purify", "stage1", "train", "draw", "look")
        }
        self.bad: set[str] = set()

    def _run(self, kind: str, config: Any) -> Path:
        self.calls[kind].append(config)
        if kind in self.bad:
            raise OSError(f"no {kind} today")
        config.out.mkdir(parents=True)
        (config.out / "config.yaml").touch()
        return config.out

    def attack(self, name: str, config: Any) -> dict[str, Any]:
        run = self._run("attack", config)
        for record in list_images(config.images, captions="ignore"):
            moved = load_image(record.path).astype(int) + (16 if name == "pgd" else 8)
            save_png(moved.clip(0, 255).astype(np.uint8), run / record.name)
        return {}

    def purify(self, name: str, config: Any) -> dict[str, Any]:
        run = self._run("purify", config)
        for record in list_images(config.images, captions="ignore"):
            save_png(load_image(record.path), run / record.name)
        return {}

    def stage1(self, config: Any) -> dict[str, Any]:
        self._run("stage1", config)
        return {}

    def train(self, config: Any) -> dict[str, Any]:
        run = self._run("train", config)
        mean = np.mean([load_image(record.path).mean() for record in list_images(config.instance_data)])
        (run / "mean").write_text(str(mean - (12 if config.lord else 0)))
        return {}

    def draw(self, config: Any) -> dict[str, Any]:
        run = self._run("draw", config)
        grey = round(float((config.lora / "mean").read_text()) + (1 if config.lord else 0))
        for i in range(config.n):
            save_png(np.full((8, 8, 3), grey, np.uint8), run / f"{i}.png")
        return {}

    def look(self, config: Any) -> dict[str, Any]:
        self._run("look", config)
        if config.clean is not None:
            areas = {"auroc": 0.75, "lambda_clean": 0.25, "lambda_attacked": 0.5}
            steps = [{"timestep": t, **areas} for t in config.timesteps]
            cells = [{"layer": "l", **step} for step in steps]
            return {"detection": {**areas, "timesteps": steps, "cells": cells}}
        if config.denoising:
            return {"denoising": {"loss": {"value": 0.5 if config.lora else 0.25}}}
        if config.identity is not None:
            return {"identity": {"ism": {"unavailable": "no eyes"}, "fdfr": {"value": 0.5}}}
        grey = load_image(config.generated / "0.png").mean()
        found = {"frechet_distance": float(grey), "kernel_distance": 1.0}
        sets = dict.fromkeys(config.features, found)
        return {"distribution": {**found, "sets": sets}, "frequency": {"generated": {"amplitude": 2.0}}}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    made = World()
    names = {"stage1": "run_stage1", "train": "run_stage2", "draw": "run_generate", "look": "run_evaluate"}
    for kind, name in {"attack": "run_attack", "purify": "run_purify", **names}.items():
        monkeypatch.setattr(f"{STEPS}.{name}", getattr(made, kind))
    model = SimpleNamespace(check_resolution=lambda side: side or 64)
    monkeypatch.setattr(f"{STUDY}.load_model", lambda *args, **kwargs: model)
    monkeypatch.setattr(f"{STUDY}.check_features", lambda *args, **kwargs: None)
    # Charts have tests of their own, and take longer than everything else here.
    monkeypatch.setattr(f"{STUDY}.write_charts", lambda results, folder: [])
    monkeypatch.setattr("lordfast.report.runs.write_report", lambda folder: None)
    monkeypatch.chdir(tmp_path)
    return made


SMALL: dict[str, Any] = {
    **{"identities": 2, "images": 4, "reference": 4, "stage1_images": 2, "device": "cpu", "features": ["vae"]},
    **{"methods": ["lora", "pgd2", "lord"], "on_clean": True, "generate": {"n": 4}},
}


def start(*more: str, **changes: Any) -> int:
    Path("mine.yaml").write_text(yaml.safe_dump({**SMALL, **changes}))
    return main(["experiment", "mine", "--config", "mine.yaml", "--out", "out", *more])


def outcome() -> dict[str, Any]:
    return json.loads(Path("out/results.json").read_text())


def value(results: dict[str, Any], method: str, share: float = 1.0, part: str | None = None) -> Any:
    row = next(row for row in results["rows"] if (row["method"], row["proportion"]) == (method, share))
    entry = row["measures"]["frechet-vae"]
    return entry["value"] if part is None else entry[part]


def counts(world: World) -> dict[str, int]:
    return {kind: len(calls) for kind, calls in world.calls.items()}


def test_nothing_is_computed_twice(world: World) -> None:
    assert start() == 0
    # Per identity: an attack; three methods on clean and on attacked pictures.
    once = {"attack": 2, "purify": 0, "stage1": 2, "train": 12, "draw": 12, "look": 48}
    assert counts(world) == once
    results = outcome()
    assert results["complete"] and results["cells"]["done"] == 55
    # The pictures' own mean is an identity's affair; what the attack, the LoRD in training and in sampling add is not.
    assert value(results, "lora", part="against_clean")["value"] == pytest.approx(16, abs=1)
    assert value(results, "lord", part="against_lora")["value"] == pytest.approx(-11, abs=1)
    assert value(results, "lord", part="gap_closed")["value"] == pytest.approx(11 / 16, abs=0.1)
    assert value(results, "lord", 0.0, "against_clean")["value"] == pytest.approx(-11, abs=1)
    changes = {row["method"]: row["measures"]["change"]["value"] for row in results["rows"] if row["attack"]}
    assert changes["lora"] == pytest.approx(16, abs=1) and changes["lord"] == pytest.approx(5, abs=1)
    measures = results["rows"][0]["measures"]
    found = {key: measures[key]["value"] for key in ("held-out", "drawn", "high-frequencies", "no-face", "identity")}
    assert found == {"held-out": 0.5, "drawn": 0.25, "high-frequencies": 2.0, "no-face": 0.5, "identity": None}
    assert results["unavailable"] == ["no eyes"] and "clip-iqa" not in measures
    assert {row["method"]: row["title"] for row in results["rows"]}["lora"] == "LoRA, no defense"
    assert start() == 0 and counts(world) == once
    assert Path("out/summary.json").exists() and "Unfinished" not in Path("out/table.md").read_text()
    # From its own config.yaml, too.
    assert main(["experiment", "mine", "--config", "out/config.yaml"]) == 0 and counts(world) == once


def test_what_the_steps_are_given(world: World) -> None:
    variants = {"soft": {"stage1": {"lambda_det": 0.5}, "stage2": {"rank": 2}, "generate": {"lord": False, "steps": 3}}}
    attacks = {"strong": {"attack": "mist", "attack_steps": 7}}
    evaluate = {"denoising_timesteps": [7], "batch_size": 3}
    changes = {"variants": variants, "attacks": attacks, "attack": ["strong"], "evaluate": evaluate}
    assert start(identities=1, methods=["lord:soft"], **changes) == 0
    assert outcome()["complete"]
    (attack,), (stage1,) = world.calls["attack"], world.calls["stage1"]
    assert (attack.attack_steps, attack.eps, type(attack).__name__) == (7, "16/255", "MistConfig")
    assert (stage1.lambda_det, stage1.steps, stage1.one_branch) == (0.5, 200, False)
    others = list_images(stage1.data)
    assert len(others) == 2 and stage1.data.parent.name == "others-2"
    clean, soft_clean, soft = world.calls["train"]
    assert (clean.lord, soft.lord, soft.rank, clean.rank) == (None, stage1.out.resolve(), 2, 4)
    assert (
        soft.instance_data == attack.out.resolve() and clean.instance_data == soft_clean.instance_data == attack.images
    )
    # Within a replicate all methods see the same noise; Stage 1 has its own.
    assert clean.seed == soft.seed != stage1.seed
    drawn = world.calls["draw"]
    assert [(config.n, config.steps, config.lord) for config in drawn] == [(4, 20, None), (4, 3, None), (4, 3, None)]
    looks = [config for config in world.calls["look"] if config.denoising]
    assert {(config.denoising_timesteps, config.batch_size) for config in looks} == {((7,), 3)} and len(looks) == 6
    assert drawn[2].lora == soft.out.resolve() and len({config.seed for config in drawn}) == 1
    prompts = {soft.instance_prompt, drawn[0].prompt, attack.prompt}
    assert prompts == {"a photo of a sks person"}


def test_a_study_may_grow(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(identities=1) == 0
    before = counts(world)
    times = {path: path.stat().st_mtime_ns for path in Path("out").rglob("cell.json")}
    more = {"proportions": [0.5, 1.0], "methods": ["lora", "pgd2", "lord", "lord:x", "jpeg"], "seeds": 2}
    assert start(**more, variants={"x": {"stage1": {"steps": 9}}}) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    results = outcome()
    assert results["complete"], results["failed"]
    assert results["per_dataset"] == 4
    assert len(world.calls["attack"]) == 4 and len(world.calls["stage1"]) == before["stage1"] + 1
    assert value(results, "lora", 0.5, "against_clean")["value"] == pytest.approx(8, abs=1)
    mixed = next(Path("out/cells/faces/identity-0/seed-0/pgd-16-255-50-percent").glob("train-*/mixed"))
    clean, attacked = mixed.parents[2] / "data" / "train", mixed.parents[2] / "attack-pgd-16-255" / "attacked"
    sources = [
        next(f for f in (clean, attacked) if np.array_equal(load_image(f / r.name), load_image(r.path)))
        for r in list_images(mixed)
    ]
    assert sorted(source.name for source in sources) == ["attacked", "attacked", "train", "train"]
    # A smaller one again: its table is of what it asks for.
    assert start(identities=1) == 0 and outcome()["per_dataset"] == 1
    # But nothing that is there may change its meaning.
    assert start(identities=1, stage2={"steps": 11}) == 2
    shown = capsys.readouterr().err
    assert "was made with other settings" in shown and "'steps': 11" in shown
    assert outcome()["complete"]


def test_others_at_work_with_other_settings_are_not_disturbed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(identities=1) == 0
    lock = Path("out/cells/somewhere/else/lock")
    lock.mkdir(parents=True)
    (lock / "owner.json").write_text(json.dumps({"pid": 1, "host": "elsewhere", "born": ""}))
    assert start(identities=1) == 0
    assert start(identities=2) == 2 and "process 1 on elsewhere is working on somewhere/else" in capsys.readouterr().err
    shutil.rmtree(lock)
    assert start(identities=2) == 0


def test_a_failed_cell_is_reported_and_retried(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.bad = {"stage1"}
    assert start(identities=1) == 0
    results = outcome()
    assert not results["complete"] and [one["cell"].split("/")[1] for one in results["failed"]] == ["stage1"] * 2
    assert results["cells"]["blocked"] == 16 and not Path("out/summary.json").exists()
    assert value(results, "lora") is not None and value(results, "lord") is None
    table = Path("out/table.md").read_text()
    assert "Unfinished" in table and "no stage1 today" in table and "UNFINISHED" in Path("out/table.tex").read_text()
    assert "no stage1 today" in capsys.readouterr().out
    # Only when asked to.
    world.bad = set()
    before = counts(world)
    assert start(identities=1) == 0 and counts(world) == before
    assert start("--retry", identities=1) == 0
    assert outcome()["complete"] and counts(world)["stage1"] == 4 and counts(world)["attack"] == before["attack"]


def test_gates_over_replicates(world: World) -> None:
    changes = {"methods": ["lord"], "attack": ["pgd", "mist"], "eps": ["4/255", "8/255"], "gate_timesteps": [20, 600]}
    assert start("--gate", "--no-draw", **changes) == 0
    results = outcome()
    assert counts(world) == {"attack": 8, "purify": 0, "stage1": 1, "train": 0, "draw": 0, "look": 8}
    assert [(row["attack"], row["eps"], row["n"]) for row in results["gates"]] == [
        *(("pgd", "4/255", 2), ("pgd", "8/255", 2), ("mist", "4/255", 2), ("mist", "8/255", 2))
    ]
    row = results["gates"][0]
    assert (row["method"], row["title"]) == ("lord", "LoRD")
    assert row["measures"]["auroc"]["value"] == 0.75 and results["rows"] == []
    assert [(cell["layer"], cell["timestep"], cell["lambda_clean"]) for cell in row["cells"]] == [
        *(("l", 20, 0.25), ("l", 600, 0.25))
    ]
    config = world.calls["look"][0]
    folders = [world.calls[kind][0].out.resolve() for kind in ("stage1", "attack")]
    assert [config.lord, config.attacked] == folders


def test_a_folder_per_identity(world: World, faces: Path) -> None:
    for name in ("ann", "bob", "cid"):
        shutil.copytree(faces, Path("people") / name)
    changes = {"identities": 2, "first_identity": 1, "images": 2, "reference": 2}
    assert start("--data", "people", "--stage1-data", "people/ann", "--prompts", "sks someone", **changes) == 0
    cells = Path("out/cells/people")
    assert sorted(path.name for path in cells.iterdir()) == ["identity-1", "identity-2", "stage1"]
    data = json.loads((cells / "identity-1" / "seed-0" / "data" / "config.json").read_text())
    assert data["identity"] == "bob" and len(list_images(cells / "identity-1" / "seed-0" / "data" / "train")) == 2
    assert {config.instance_prompt for config in world.calls["train"]} == {"sks someone"}
    assert {str(config.data) for config in world.calls["stage1"]} == {"people/ann"}


def test_bad_input_leaves_nothing_behind(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(datasets=["people=nowhere"], stage1_data=["x"]) == 2
    assert "datasets: people: data: folder nowhere does not exist" in capsys.readouterr().err
    assert start(methods=["lord:none"]) == 2 and start("--page", "none.md") == 2
    assert main(["experiment", "mine", "--out", "out"]) == 2
    assert "expected one of table1, fig7, gate, purifiers, got 'mine'" in capsys.readouterr().err
    assert not Path("out").exists()


def test_all_steps_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack, Stage 1, training, drawing, measuring and gates on the embedded model, one step of each."""
    monkeypatch.chdir(tmp_path)
    one = {"stage1": {"steps": 1, "attack_steps": 1, "batch_size": 1}, "stage2": {"steps": 1, "batch_size": 1}}
    small = {"identities": 1, "images": 2, "reference": 2, "stage1_images": 1, "on_clean": False, "gate": True}
    drawing = {"generate": {"n": 2, "steps": 1, "guidance": 1.0}, "gate_timesteps": [20]}
    attack = {"attacks": {"pgd": {"attack_steps": 1, "step_size": "16/255"}}}
    assert start(recipe="quick", methods=["lord"], **one, **small, **drawing, **attack) == 0
    results = outcome()
    assert results["complete"], results["failed"]
    for row in results["rows"]:
        # Of noise, no classifier has to say that it is a face.
        missing = {key for key, entry in row["measures"].items() if entry["value"] is None}
        assert missing <= {"identity"} and len(row["measures"]) == 8
    assert 0 <= results["gates"][0]["measures"]["auroc"]["value"] <= 1
    drawn = {method: f for place in results["pictures"] for method, f in place["generated"].items()}
    assert set(drawn) == {"clean-lora", "lord"}
    pictures = [load_image(Path("out") / folder / "0000.png").tobytes() for folder in drawn.values()]
    assert len(set(pictures)) == 2
    assert (Path("out") / "chart-faces.png").stat().st_size > 5000 and (Path("out") / "gate-faces.png").exists()
    assert "LoRD" in Path("out/report.html").read_text(encoding="utf-8")

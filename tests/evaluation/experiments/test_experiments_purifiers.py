"""``lordfast experiment purifiers`` as a whole, with a purifier that is made up here."""

import csv
import dataclasses
import json
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lordfast.cli.main import main
from lordfast.data import list_images, load_image, save_png
from lordfast.demo import recipes
from lordfast.evaluation.experiments.conditions import list_conditions
from lordfast.evaluation.experiments.grid import ERROR
from lordfast.evaluation.experiments.page import BEGIN, END
from lordfast.evaluation.experiments.purifiers import PurifiersConfig, run_purifiers
from lordfast.training.config import RunConfig
from lordfast.training.interrupt import Interrupted
from lordfast.training.run import RunFolder

MODULE = """
import torch

class Means(torch.nn.Module):
    def forward(self, images):
        return images.float().mean(dim=(2, 3)) / 255
"""


@dataclasses.dataclass(kw_only=True)
class ShiftConfig(RunConfig):
    """Adds grey levels."""

    images: Path
    levels: int = 40


class Purifying:
    """Stands in for the package of purifiers: `shift`, which can be told to fail."""

    def __init__(self) -> None:
        self.calls: list[ShiftConfig] = []
        self.fails = False

    def run(self, name: str, config: ShiftConfig) -> dict[str, Any]:
        assert name == "shift"
        self.calls.append(config)
        if self.fails:
            raise OSError("no shift today")
        run = RunFolder.open(config, "purify shift")
        for record in list_images(config.images):
            moved = np.clip(load_image(record.path).astype(int) + config.levels, 0, 255).astype(np.uint8)
            save_png(moved, run.path / record.name)
        return run.finish({"levels": config.levels})


@pytest.fixture
def purifying(monkeypatch: pytest.MonkeyPatch) -> Purifying:
    stub = Purifying()
    known = {"shift": types.SimpleNamespace(config=ShiftConfig, summary="shift")}
    monkeypatch.setattr("lordfast.evaluation.experiments.choices.PURIFIERS", known)
    monkeypatch.setattr("lordfast.evaluation.experiments.steps.run_purify", stub.run)
    return stub


@pytest.fixture(autouse=True)
def _means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "lordfast_test_means.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("lordfast_test_means", None)


SMALL = [
    *("--identities", "1", "--seeds", "1", "--images", "2", "--reference", "4", "--eps", "16/255"),
    *("--attack", "pgd", "--attack-options", "attack-steps=1", "step-size=16/255", "--stage2-steps", "1"),
    *("--batch-size", "1", "--generated", "2", "--sampler-steps", "1", "--guidance", "1"),
    *("--features", "lordfast_test_means:Means", "--purifiers", "shift", "--device", "cpu"),
]


def start(out: Path, *more: str) -> int:
    return main(["experiment", "purifiers", "--out", str(out), *SMALL, *more])


def test_attack_purify_train_and_measure(
    tmp_path: Path, purifying: Purifying, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out", tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    purifying.fails = True
    assert start(out, "--page", str(page), "--purifier-options", "shift.levels=60") == 0
    results = json.loads((out / "results.json").read_text())
    assert not results["complete"] and results["cells"] == {"all": 5, "done": 4, "failed": 1, "blocked": 0, "left": 0}
    assert "Unfinished" in page.read_text() and "no shift today" in (out / "table.md").read_text()
    shown = capsys.readouterr()
    assert "no shift today" in shown.out and "--retry" in shown.err
    assert not (out / "summary.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("cell.json")}

    purifying.fails = False
    assert start(out, "--page", str(page), "--purifier-options", "shift.levels=60", "--retry") == 0
    results = json.loads((out / "results.json").read_text())
    assert results["complete"] and results["cells"]["done"] == 5
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert page.read_text() == f"before\n{BEGIN}\n\n{(out / 'table.md').read_text().strip()}\n\n{END}\nafter\n"

    cells = out / "cells" / "identity-0" / "seed-0"
    attacked = list_images(cells / "attack-16-255" / "attacked")
    changes = [
        np.abs(load_image(record.path).astype(int) - load_image(cells / "data" / "train" / record.name)).max()
        for record in attacked
    ]
    assert changes == [16, 16]
    # The attacked pictures were purified, with the options, and the LoRA saw the result.
    shift = purifying.calls[-1]
    assert shift.images == cells / "attack-16-255" / "attacked" and shift.levels == 60 and shift.device == "cpu"
    trained = {
        name: (cells / name / "lora" / "config.yaml").read_text().split("instance_data: ")[1].splitlines()[0]
        for name in ("clean", "attacked-16-255", "attacked-16-255+shift")
    }
    assert trained == {
        "clean": str(cells / "data" / "train"),
        "attacked-16-255": str(cells / "attack-16-255" / "attacked"),
        "attacked-16-255+shift": str(cells / "attacked-16-255+shift" / "purified"),
    }
    loras = [(cells / name / "lora" / "pytorch_lora_weights.safetensors").read_bytes() for name in trained]
    assert len(set(loras)) == 3
    # The table holds what was measured.
    measured = json.loads((cells / "clean" / "metrics" / "lordfast_test_means-Means" / "summary.json").read_text())
    rows = {(row["condition"], row["distance"]): row for row in csv.DictReader((out / "table.csv").open(newline=""))}
    assert len(rows) == 9
    drawn = [
        np.stack([load_image(record.path).astype(float) for record in list_images(cells / name / "generated")])
        for name in ("clean", "attacked-16-255+shift")
    ]
    expected = np.sqrt(np.square(drawn[0] - drawn[1]).mean())
    assert float(rows["attacked-16-255+shift", "change"]["mean"]) == pytest.approx(expected) and expected > 0
    assert float(rows["clean", "change"]["mean"]) == 0
    for distance in ("frechet", "kernel"):
        assert float(rows["clean", distance]["mean"]) == measured["distribution"][f"{distance}_distance"]
    assert (out / "chart.png").stat().st_size > 5000 and (out / "summary.json").exists()
    assert set(results["seconds"]) == {"data", "attack", "purify", "train", "generate", "measure"}
    assert not list(out.rglob("lock"))

    # From its own config.yaml, with nothing left to do.
    assert main(["experiment", "purifiers", "--config", str(out / "config.yaml")]) == 0
    assert len(purifying.calls) == 2
    # And another experiment has no place there.
    assert start(out, "--purifier-options", "shift.levels=61") == 2
    assert "purifier_options: ['shift.levels=60'] -> ['shift.levels=61']" in capsys.readouterr().err


def test_one_folder_per_identity(tmp_path: Path, purifying: Purifying, faces: Path) -> None:
    shutil.copytree(faces, tmp_path / "data" / "ann")
    assert start(tmp_path / "out", "--data", str(tmp_path / "data"), "--prompt", "sks ann", "--purifiers") == 0
    cells = tmp_path / "out" / "cells" / "identity-0" / "seed-0"
    names = {part: {r.name for r in list_images(cells / "data" / part)} for part in ("train", "reference")}
    assert names["train"] | names["reference"] == {f"0000{i}.png" for i in range(4)} and len(names["train"]) == 2
    assert {r.caption for r in list_images(cells / "attack-16-255" / "attacked")} == {"sks ann"}
    assert "prompt: sks ann\n" in (cells / "clean" / "generated" / "config.yaml").read_text()
    assert json.loads((cells / "clean" / "config.json").read_text())["identity"] == "ann"
    assert purifying.calls == [] and not list(cells.rglob(ERROR))


def settings(**changes: Any) -> PurifiersConfig:
    return PurifiersConfig(**{"out": Path("out"), "device": "cpu", "purifiers": ("shift",)} | changes)


def test_the_conditions() -> None:
    def names(**changes: Any) -> list[str]:
        return [condition.name for condition in list_conditions(settings(**changes))]

    plain = ["clean", "attacked-4-255", "attacked-8-255", "attacked-16-255"]
    assert names() == [*plain, "attacked-16-255+shift"]
    assert names(purify_eps=("4/255", "8/255")) == [*plain, "attacked-4-255+shift", "attacked-8-255+shift"]
    assert names(purify_clean=True) == [*plain, "clean+shift", "attacked-16-255+shift"]
    assert names(purifiers=()) == plain


def test_training_is_the_demos() -> None:
    """Two descriptions of one recipe: where they part, the page's numbers no longer speak about the demo's."""
    config, scale = settings(), recipes.FULL
    recipe = recipes.stage2(Path("o"), Path("d"), "p", None, scale, {})
    drawn = recipes.generation(Path("o"), "p", None, Path("l"), scale, {})
    ours = (config.stage2_steps, config.lr, config.rank, config.batch_size)
    assert ours == (recipe.steps, recipe.lr, recipe.rank, recipe.batch_size)
    assert (config.generated, config.sampler_steps, config.guidance) == (drawn.n, drawn.steps, drawn.guidance)
    assert (config.images, config.reference, config.features[1]) == (scale.images, scale.reference, recipes.FEATURES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identities": 0}, "identities: expected at least 1"),
        ({"generated": 1}, "generated: expected at least 2"),
        ({"lr": float("nan")}, "lr: expected a finite"),
        ({"eps": ()}, "eps: expected different values, at least one"),
        ({"eps": ("4/255", "4/255")}, "eps: expected different"),
        ({"eps": ("strong",)}, "eps"),
        ({"purify_eps": ("2/255",)}, "purify_eps: expected values of eps"),
        ({"attack": "none"}, "attack: expected one of"),
        ({"attack_options": ("eps=1/255",)}, "attack_options: expected options among"),
        ({"purifiers": ("shift", "magic")}, "purifiers: expected names of shift, got 'magic'"),
        ({"purifier_options": ("shift.levels=many",)}, "purifier_options: shift: levels: expected int"),
        ({"purifier_options": ("magic.levels=1",)}, "purifier_options: expected words PURIFIER.NAME=VALUE"),
        ({"model": "some/model"}, "data: pictures are drawn for the model demo only"),
        ({"data": Path("x"), "landscape": True}, "landscape"),
        ({"page": Path("nowhere.md")}, "page: nowhere.md does not exist"),
        ({"features": ("lordfast_test_means:Nothing",)}, "features"),
        ({"data": Path("nowhere")}, "data: folder nowhere does not exist"),
    ],
)
def test_bad_input_leaves_nothing_behind(
    changes: dict[str, Any], message: str, purifying: Purifying, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        run_purifiers(settings(**changes))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_another_process_works_in_is_not_overwritten(tmp_path: Path, purifying: Purifying) -> None:
    config = settings(identities=1, seeds=1, features=("lordfast_test_means:Means",), overwrite=True)
    lock = tmp_path / "out" / "cells" / "identity-0" / "seed-0" / "data" / "lock"
    lock.mkdir(parents=True)
    (lock / "owner.json").write_text(json.dumps({"pid": 1, "host": "elsewhere", "born": ""}))
    with pytest.raises(ValueError, match="overwrite: process 1 on elsewhere is working on identity-0/seed-0/data"):
        run_purifiers(config)
    assert lock.exists()


def test_an_interruption_leaves_the_table_of_what_is_there(
    tmp_path: Path, purifying: Purifying, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise Interrupted("after 0 of 5 cells")

    with monkeypatch.context() as patch:
        patch.setattr("lordfast.evaluation.experiments.grid.Grid.run", interrupted)
        assert start(tmp_path / "out") == 130
    shown = capsys.readouterr().err
    assert "Stopped after 0 of 5 cells" in shown
    assert f"lordfast experiment purifiers --config {tmp_path / 'out' / 'config.yaml'} --resume" in shown
    assert "5 are still to be computed" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "chart.png").exists()


def test_help_lists_experiments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "--help"]) == 0
    assert "  purifiers  how strong an attack is" in capsys.readouterr().out
    assert main(["experiment"]) == 2
    assert "expected a name (table1, fig7, gate, purifiers) first" in capsys.readouterr().err
    assert main(["experiment", "nothing"]) == 2
    assert "expected one of table1, fig7, gate, purifiers, got 'nothing'" in capsys.readouterr().err

"""An attack that was interrupted goes on to the same bits, and logs every image once."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lordfast.attacks import folder as folder_module
from lordfast.attacks import run as run_module
from lordfast.attacks.pgd import PgdConfig
from lordfast.attacks.run import run_attack
from lordfast.data import make_faces, write_folder
from lordfast.training import results
from lordfast.training.interrupt import Interrupted

pytestmark = pytest.mark.usefixtures("quick_probe")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four faces; treat them as read-only."""
    folder = tmp_path_factory.mktemp("data") / "faces"
    write_folder(make_faces(4, seed=7), folder)
    return folder


@pytest.fixture(scope="module")
def config(faces: Path) -> Callable[..., PgdConfig]:
    """Four faces in batches of 1, 2 or more."""

    def build(out: Path, **overrides: Any) -> PgdConfig:
        options = {"model": "demo", "images": faces, "device": "cpu", "attack_steps": 2, "batch_size": 2}
        return PgdConfig(out=out, **(options | overrides))

    return build


@pytest.fixture(scope="module")
def whole(config, quick_probe: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupted; treat it as read-only."""
    out = tmp_path_factory.mktemp("attack") / "whole"
    run_attack("pgd", config(out))
    return out


def images(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.glob("*.png")}


def rows(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return sorted(found, key=lambda row: row["step"])


def assert_same(run: Path, whole: Path) -> None:
    assert images(run) == images(whole) and len(images(run)) == 4
    assert rows(run) == rows(whole)
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4]
    assert {p.name: p.read_bytes() for p in run.glob("*.txt")} == {p.name: p.read_bytes() for p in whole.glob("*.txt")}
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, whole)]
    for summary in summaries:
        del summary["seconds"]
    assert summaries[0] == summaries[1]


@pytest.mark.parametrize("gone", [1, 2])
def test_a_deleted_image_is_made_again(config, whole: Path, tmp_path: Path, gone: int) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    sorted(run.glob("*.png"))[gone].unlink()
    (run / "summary.json").unlink()
    # As a kill in the middle of a line would leave it.
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "ima')
    run_attack("pgd", config(run, resume=True))
    assert_same(run, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle(
    config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    run, perturb, calls = tmp_path / "run", folder_module.perturb, []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        signal.raise_signal(number)
        return perturb(*args)

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "perturb", interrupted)
        with pytest.raises(Interrupted, match="after 1 of 2 batches"):
            run_attack("pgd", config(run))
    assert len(calls) == 1
    assert signal.getsignal(number) is not None and not (run / "summary.json").exists()
    done = images(run)
    assert len(done) == 2 and all(images(whole)[name] == content for name, content in done.items())
    assert len(rows(run)) == 2
    run_attack("pgd", config(run, resume=True))
    assert_same(run, whole)


# In the middle of a batch, and between two of them.
@pytest.mark.parametrize("saved", [1, 2])
def test_a_kill_between_two_files(
    config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: int
) -> None:
    run, save, count = tmp_path / "run", results.save_png, 0

    def killed(*args: Any) -> None:
        nonlocal count
        if count == saved:
            raise KeyboardInterrupt
        count += 1
        save(*args)

    with monkeypatch.context() as patch:
        patch.setattr(results, "save_png", killed)
        with pytest.raises(KeyboardInterrupt):
            run_attack("pgd", config(run))
    assert len(images(run)) == saved
    run_attack("pgd", config(run, resume=True))
    assert_same(run, whole)


def test_finished_batches_are_not_attacked_again(
    config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "summary.json").unlink()
    sorted(run.glob("*.png"))[0].unlink()
    perturb, sizes = folder_module.perturb, []

    def counted(model: Any, batch: Any, *rest: Any) -> Any:
        sizes.append(len(batch))
        return perturb(model, batch, *rest)

    monkeypatch.setattr(folder_module, "perturb", counted)
    run_attack("pgd", config(run, resume=True))
    assert sizes == [2]


def test_a_finished_run_is_left_alone(config, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "load_placed", lambda *args, **options: pytest.fail("nothing was left to do"))
    assert run_attack("pgd", config(whole, resume=True)) == json.loads((whole / "summary.json").read_text())


def test_a_signal_in_the_last_batch_finishes_the_run(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    perturb = folder_module.perturb

    def interrupted(*args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return perturb(*args)

    monkeypatch.setattr(folder_module, "perturb", interrupted)
    assert run_attack("pgd", config(tmp_path / "run", batch_size=8))["images"] == 4


def test_an_image_that_changed_in_between_is_named(config, whole: Path, tmp_path: Path, faces: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "summary.json").unlink()
    first, second = sorted(faces.glob("*.png"))[:2]
    before = first.read_bytes()
    try:
        first.write_bytes(second.read_bytes())
        with pytest.raises(ValueError, match=rf"\(images: {first.name} replaced\); expected the same files"):
            run_attack("pgd", config(run, resume=True))
        # As runs of earlier versions, which recorded nothing.
        (run / "inputs.json").unlink()
        with pytest.raises(ValueError, match=f"{sorted(images(run))[0]} is no perturbation of {first}: the images ch"):
            run_attack("pgd", config(run, resume=True))
    finally:
        first.write_bytes(before)

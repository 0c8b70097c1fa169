"""Shares of a folder: independent jobs that fill one run folder, in any order and divided in any way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lordfast.attacks import run as run_module
from lordfast.attacks import summary as summary_module
from lordfast.attacks.ace import AceConfig
from lordfast.attacks.pgd import PgdConfig
from lordfast.attacks.run import run_attack
from lordfast.attacks.share import Share
from lordfast.data import make_faces, write_folder

pytestmark = pytest.mark.usefixtures("quick_probe")


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "faces"
    write_folder(make_faces(7, seed=7), folder)
    return folder


@pytest.fixture
def attack(seven: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``attack(folder, share, **options)``"""
    return lambda out, share=None, **options: _attack(seven, tmp_path / out, share, **options)


def _attack(images: Path, out: Path, share: str | None = None, **options: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"model": "demo", "images": images, "device": "cpu", "attack_steps": 1, "batch_size": 2}
    return run_attack("pgd", PgdConfig(out=out, share=share, **(fields | options)))


@pytest.fixture(scope="module")
def whole(seven: Path, quick_probe: None) -> dict[str, Any]:
    """What one job makes of the folder."""
    _attack(seven, seven.parent / "whole")
    return contents(seven.parent / "whole")


def contents(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = {path.name: path.read_bytes() for path in (*run.glob("*.png"), *run.glob("*.txt"))}
    found["metrics"] = (run / "metrics.jsonl").read_text()
    summary = json.loads((run / "summary.json").read_text())
    del summary["seconds"]
    return found | summary


def test_shares_in_any_order_are_the_whole(
    attack: Any, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Batches of 2 of 7 images: the second share has the second batch and the fourth, which is one image.
    assert attack("run", "2/3", resume=True)["images"] == 2
    with pytest.raises(ValueError, match="holds a run already; --resume goes on with it"):
        attack("run", "1/3")
    with pytest.raises(ValueError, match="has another config .attack_steps: 1 -> 2"):
        attack("run", "1/3", resume=True, attack_steps=2)
    assert attack("run", "3/3", resume=True)["images"] == 2
    assert not (tmp_path / "run" / "summary.json").exists()
    assert attack("run", "1/3", resume=True)["images"] == 3
    assert contents(tmp_path / "run") == whole
    assert whole["images"] == 7

    monkeypatch.setattr(run_module, "load_placed", lambda *args, **options: pytest.fail("nothing was left to do"))
    (tmp_path / "run" / "summary.json").unlink()
    assert attack("run", "1/3", resume=True)["images"] == 3, "a finished share says again what it did"


def test_another_division_goes_on_with_what_is_there(attack: Any, whole: dict[str, Any], tmp_path: Path) -> None:
    attack("run", "1/3", resume=True)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*.png")}
    # Each says what is there of its share, whoever made it.
    assert [attack("run", share, resume=True)["images"] for share in ("1/2", "2/2")] == [4, 3]
    assert contents(tmp_path / "run") == whole
    assert before == {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in before}


def test_one_job_can_do_what_shares_left(attack: Any, whole: dict[str, Any], tmp_path: Path) -> None:
    attack("run", "2/3", resume=True)
    attack("run", resume=True)
    assert contents(tmp_path / "run") == whole
    assert not list((tmp_path / "run").glob("metrics.*-of-*"))


def test_more_shares_than_batches(attack: Any, tmp_path: Path) -> None:
    for number in range(5, 0, -1):
        found = attack("run", f"{number}/5", resume=True)
        assert found["images"] == {5: 0, 4: 1}.get(number, 2)
    assert found["loss_clean"] > 0
    assert json.loads((tmp_path / "run" / "shares" / "5-of-5.json").read_text())["loss_clean"] is None
    assert contents(tmp_path / "run")["images"] == 7


def test_a_share_that_ended_before_it_wrote_the_whole(attack: Any, whole: dict[str, Any], tmp_path: Path) -> None:
    attack("run", "1/2", resume=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary_module, "_finish_whole", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            attack("run", "2/2", resume=True)
    assert not (tmp_path / "run" / "summary.json").exists()
    # Whichever comes again.
    assert attack("run", "1/2", resume=True)["images"] == 4
    assert contents(tmp_path / "run") == whole


def test_a_share_without_a_readable_image(seven: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(seven, images)
    names = sorted(path.name for path in images.glob("*.png"))
    for name in names[:2]:
        (images / name).write_bytes(b"no image")
    how: dict[str, Any] = {"resume": True, "skip_bad": True}
    found = [_attack(images, tmp_path / "run", f"{number}/4", **how) for number in range(1, 5)]
    assert [(one["images"], one["skipped"]) for one in found] == [(0, 2), (2, 0), (2, 0), (1, 0)]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["images"], summary["skipped"]) == (5, 2) and summary["loss_clean"] > 0
    for name in names:
        (images / name).write_bytes(b"no image")
    _attack(images, tmp_path / "none", "1/2", **how)
    for share in ("2/2", "1/2"):
        with pytest.raises(ValueError, match="images: none could be read; 7 were skipped"):
            _attack(images, tmp_path / "none", share, **how)
    assert not (tmp_path / "none" / "summary.json").exists()


def test_what_a_share_can_not_be(attack: Any, seven: Path, tmp_path: Path) -> None:
    for bad in ("0/3", "4/3", "3", "a/b", "1/0", "-1/3"):
        with pytest.raises(ValueError, match="share: expected K/N with K from 1 to N"):
            attack("run", bad)
    with pytest.raises(ValueError, match="overwrite, share: one share would delete the others"):
        attack("run", "1/2", overwrite=True)
    with pytest.raises(ValueError, match="share: ace trains a surrogate on all images together"):
        run_attack("ace", AceConfig(model="demo", images=seven, out=tmp_path / "run", share="1/2"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("count", "run"), [(3, 1), (3, 4), (8, 5)])
def test_every_item_is_in_one_share(count: int, run: int) -> None:
    items = list(range(23))
    shares = [Share(number, count).of(items, run) for number in range(1, count + 1)]
    assert sorted(item for share in shares for item in share) == items
    # Whole runs, or the last one.
    for share in shares:
        assert all(
            share[i : i + run] == list(range(share[i], min(share[i] + run, 23))) for i in range(0, len(share), run)
        )

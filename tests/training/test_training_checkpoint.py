"""Checkpoints are whole or don't count."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from lordfast.training.checkpoint import is_whole, latest_checkpoint, load_checkpoint, save_checkpoint


def _save(folder: Path, *steps: int, keep: int = 10) -> None:
    for step in steps:
        save_checkpoint(folder, step, {"w": torch.full((3,), float(step))}, {"lr": 0.5, "step": step}, keep)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    weights = {"a": torch.randn(3, 4).t(), "b": torch.nn.Parameter(torch.ones(2))}
    optimizer = torch.optim.AdamW([weights["b"]])
    weights["b"].grad = torch.ones(2)
    optimizer.step()
    path = save_checkpoint(tmp_path, 7, weights, {"optimizer": optimizer.state_dict()}, keep=1)
    step, loaded, state = load_checkpoint(path)
    assert step == 7
    assert all(torch.equal(loaded[name], weights[name].detach()) for name in weights)
    assert torch.equal(state["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    _save(tmp_path, 5, 10, 100, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "checkpoint.json"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object, name: str
) -> None:
    _save(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002" / name)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        found = latest_checkpoint(tmp_path)
    assert found == tmp_path / "step-00000001"
    assert load_checkpoint(found)[1]["w"].tolist() == [1.0] * 3
    assert "step-00000002" in caplog.text and "damaged" in caplog.text


def test_no_checkpoint_under_a_false_step_or_without_its_files(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000009")
    assert not is_whole(tmp_path / "step-00000009")
    record = tmp_path / "step-00000001" / "checkpoint.json"
    record.write_text(json.dumps({"step": 1, "files": {}}))
    assert not is_whole(tmp_path / "step-00000001")
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_a_half_written_folder_never_counts_and_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, 1)

    def full_disk(*args: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            _save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000001"
    _save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    _save(tmp_path, 3)
    _flip(tmp_path / "step-00000003" / "state.pt")
    _save(tmp_path, 3)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000003"

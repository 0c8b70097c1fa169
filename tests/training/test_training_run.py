"""The run folder: who may write where, and what it records."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lordfast.training import run as run_module
from lordfast.training.config import RunConfig
from lordfast.training.run import RunFolder


@dataclass(kw_only=True)
class _Config(RunConfig):
    data: Path | None = None
    lr: float = 1e-4
    keep_checkpoints: int = 2


def test_a_second_run_needs_resume_or_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = RunFolder.open(_Config(out=out), "toy")
    run.log({"step": 1})
    with pytest.raises(ValueError, match="holds a run already; --resume"):
        RunFolder.open(_Config(out=out), "toy")
    assert (out / "metrics.jsonl").exists()
    RunFolder.open(_Config(out=out, resume=True), "toy")
    assert (out / "metrics.jsonl").exists()
    RunFolder.open(_Config(out=out, overwrite=True), "toy")
    assert not (out / "metrics.jsonl").exists() and (out / "config.yaml").exists()
    with pytest.raises(ValueError, match="at most one"):
        RunFolder.open(_Config(out=out, overwrite=True, resume=True), "toy")


@pytest.mark.parametrize(
    "name, text",
    [
        ("thesis.txt", "mine"),
        ("config.yaml", "out: results\nlr: 3\n"),
        ("config.yaml", "command: train\n"),
        (".env", "x"),
    ],
)
@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_of_somebody_else_is_never_touched(tmp_path: Path, name: str, text: str, how: dict[str, bool]) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        RunFolder.open(_Config(out=tmp_path, **how), "toy")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == text


def test_out_may_be_an_empty_folder_but_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        RunFolder.open(_Config(out=tmp_path / "file"), "toy")
    (tmp_path / "empty").mkdir()
    assert RunFolder.open(_Config(out=tmp_path / "empty"), "toy").path.is_dir()


def test_overwrite_never_deletes_what_the_run_reads(tmp_path: Path) -> None:
    out = tmp_path / "run"
    RunFolder.open(_Config(out=out), "attack pgd")
    (out / "perturbed").mkdir()
    with pytest.raises(ValueError, match="overwrite: data .* would be deleted"):
        RunFolder.open(_Config(out=out, data=out / "perturbed", overwrite=True), "toy")
    assert (out / "perturbed").exists()


def test_resume_names_every_field_that_differs(tmp_path: Path) -> None:
    RunFolder.open(_Config(out=tmp_path / "run"), "toy")
    with pytest.raises(ValueError) as caught:
        RunFolder.open(_Config(out=tmp_path / "run", resume=True, lr=2e-4, seed=5, keep_checkpoints=9), "toy")
    assert "lr: 0.0001 -> 0.0002" in str(caught.value) and "seed: 0 -> 5" in str(caught.value)
    assert "keep_checkpoints" not in str(caught.value)
    with pytest.raises(ValueError, match="belongs to 'lordfast toy', not to 'lordfast other'"):
        RunFolder.open(_Config(out=tmp_path / "run", resume=True), "other")


def test_inspect_touches_nothing_and_finds_the_finished_run(tmp_path: Path) -> None:
    config = _Config(out=tmp_path / "run")
    assert RunFolder.inspect(config, "toy") is None
    assert not config.out.exists()
    run = RunFolder.open(config, "toy")
    config.resume = True
    assert RunFolder.inspect(config, "toy") is None
    assert run.finish({"steps": 3}) == {"steps": 3}
    assert RunFolder.inspect(config, "toy") == {"steps": 3}


def test_the_environment_is_recorded(tmp_path: Path) -> None:
    RunFolder.open(_Config(out=tmp_path / "run"), "toy")
    found = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert found["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"diffusers", "peft", "lordfast"} <= found["packages"].keys()
    assert found["python"].count(".") == 2 and found["cpu_count"] >= 1


def test_rewind_drops_later_rows_and_a_line_cut_short(tmp_path: Path) -> None:
    run = RunFolder.open(_Config(out=tmp_path / "run"), "toy")
    for step in range(1, 6):
        run.log({"step": step, "loss": step / 3})
    path = tmp_path / "run" / "metrics.jsonl"
    before = path.read_text().splitlines()
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert [row["step"] for row in run.rewind(3)] == [1, 2, 3]
    assert path.read_text().splitlines() == before[:3]
    run.log({"step": 4})
    assert json.loads(path.read_text().splitlines()[-1]) == {"step": 4}


def test_a_run_that_may_not_write_does_not(tmp_path: Path) -> None:
    owner = RunFolder.open(_Config(out=tmp_path / "run"), "toy")
    owner.log({"step": 1})
    guest = RunFolder(tmp_path / "run", write=False)
    guest.log({"step": 2})
    guest.finish({})
    assert guest.rewind(0) == []
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert owner.summary() is None


def test_rows_of_several_processes_become_one_file_in_order(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step, rank in ((4, 0), (1, 0), (3, 1), (2, 2)):
        run.of_process(rank).log({"step": step, "rank": rank})
    # The end of a process that was killed, and what a moment between writing and deleting leaves.
    with (tmp_path / "metrics.process-1.jsonl").open("a") as file:
        file.write('{"step": 4, "rank": 0}\n{"step": 5, "ra')
    assert sorted(row["step"] for row in run.rows()) == [1, 2, 3, 4, 4]
    assert [row["step"] for row in run.collect()] == [1, 2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert [(row["step"], row["rank"]) for row in run.rows()] == [(1, 0), (2, 2), (3, 1), (4, 0)]
    assert RunFolder(tmp_path, write=False).keep(lambda row: False) == [] and len(run.rows()) == 4


def test_a_folder_claimed_at_this_very_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another job's config appears after the first look."""
    config = _Config(out=tmp_path / "run", resume=True)
    holds_run, looks = run_module._holds_run, []

    def late(path: Path) -> bool:
        looks.append(path)
        if len(looks) == 1:
            found = holds_run(path)
            RunFolder.open(_Config(out=tmp_path / "run"), "toy")
            return found
        return holds_run(path)

    monkeypatch.setattr(run_module, "_holds_run", late)
    assert RunFolder.inspect(config, "toy") is None and (config.out / "config.yaml").exists()
    looks.clear()
    shutil.rmtree(config.out)
    with pytest.raises(ValueError, match="has another config .seed: 0 -> 5"):
        RunFolder.inspect(_Config(out=tmp_path / "run", resume=True, seed=5), "toy")


def test_what_a_killed_process_left_is_swept_unless_others_work_there(tmp_path: Path) -> None:
    run = RunFolder.open(_Config(out=tmp_path / "run"), "toy")
    halves = [run.path / f".{'0a' * 16}.tmp", run.path / "checkpoints" / f".{'f1' * 16}.tmp"]
    others = [run.path / "checkpoints" / name for name in (".mine.tmp", f"{'f1' * 16}.tmp", f".{'f1' * 16}.tmp2")]
    (run.path / "checkpoints").mkdir()
    for path in halves + others:
        path.touch()
    RunFolder.open(_Config(out=tmp_path / "run", resume=True), "toy", alone=False)
    assert all(path.exists() for path in halves)
    RunFolder.open(_Config(out=tmp_path / "run", resume=True), "toy")
    assert not any(path.exists() for path in halves) and all(path.exists() for path in others)


def test_one_of_several_processes_that_know_nothing_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for look in (RunFolder.inspect, RunFolder.open):
        with pytest.raises(ValueError, match="lordfast toy runs in one process, got 2 .WORLD_SIZE."):
            look(_Config(out=tmp_path / "run"), "toy")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert RunFolder.inspect(_Config(out=tmp_path / "run"), "toy") is None

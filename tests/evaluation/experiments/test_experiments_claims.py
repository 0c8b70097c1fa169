"""Locks: one holder at a time, gone with a block, taken over from the dead, never from the living."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lordfast.evaluation.experiments import claims
from lordfast.evaluation.experiments.claims import LOCK, Owner, claim, is_lock, owner_of


def leave(folder: Path, owner: Owner) -> None:
    (folder / LOCK).mkdir(parents=True)
    (folder / LOCK / "owner.json").write_text(json.dumps(vars(owner)))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_is_held_in_the_block_and_by_one(tmp_path: Path) -> None:
    with claim(tmp_path / "cell") as mine:
        assert mine
        assert owner_of(tmp_path / "cell") == Owner.here()
        with claim(tmp_path / "cell") as other:
            assert not other
        # The one that was refused has not taken the lock away with it.
        assert owner_of(tmp_path / "cell") == Owner.here()
    assert owner_of(tmp_path / "cell") is None
    with claim(tmp_path / "cell") as again:
        assert again


def test_an_error_in_the_block_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), claim(tmp_path):
        raise RuntimeError
    assert owner_of(tmp_path) is None
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_dead_owner_of_this_host_is_replaced(tmp_path: Path) -> None:
    leave(tmp_path, Owner(dead_pid(), Owner.here().host, ""))
    with claim(tmp_path) as mine:
        assert mine and owner_of(tmp_path) == Owner.here()


def test_a_number_that_came_round_again_is_another_process(tmp_path: Path) -> None:
    here = Owner.here()
    assert here.born != ""
    leave(tmp_path, Owner(here.pid, here.host, "1"))
    with claim(tmp_path) as mine:
        assert mine


def test_the_living_and_other_hosts_keep_their_locks(tmp_path: Path) -> None:
    here = Owner.here()
    for number, owner in enumerate(
        (Owner(os.getppid(), here.host, ""), Owner(dead_pid(), "another-host", ""), Owner(1, here.host, ""))
    ):
        folder = tmp_path / str(number)
        leave(folder, owner)
        with claim(folder) as mine:
            assert not mine
        assert owner_of(folder) == owner


def test_two_that_find_the_same_dead_owner_do_not_both_get_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one takes over, and works, between this one's look at the dead owner and its removal of the lock."""
    leave(tmp_path, Owner(dead_pid(), Owner.here().host, ""))
    looked = claims.owner_of
    calls = []

    def looks(folder: Path) -> Owner | None:
        calls.append(folder)
        seen = looked(folder)
        if len(calls) == 1:
            claims._remove(folder)
            leave(folder, Owner(os.getppid(), Owner.here().host, ""))
        return seen

    monkeypatch.setattr(claims, "owner_of", looks)
    with claim(tmp_path) as mine:
        assert not mine
    assert looked(tmp_path) == Owner(os.getppid(), Owner.here().host, "")


def test_of_many_at_once_one_takes_over(tmp_path: Path) -> None:
    owner = Owner(dead_pid(), Owner.here().host, "")
    for number in range(20):
        folder = tmp_path / str(number)
        leave(folder, owner)
        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(lambda _, folder=folder: claims._take(folder), range(8)))
        assert taken.count(True) == 1
        # Nothing but the lock and the guard stays behind.
        assert len(list(folder.iterdir())) == 2 and all(is_lock(path) for path in folder.iterdir())

"""Options as NAME=VALUE words, and who the pictures show."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from lordfast.attacks.ace import AceConfig
from lordfast.data import list_images, load_image, make_faces, write_folder
from lordfast.evaluation.experiments.choices import attack_class, build, parse_options
from lordfast.evaluation.experiments.subjects import (
    Replicate,
    draw_pictures,
    list_subjects,
    replicates,
    split_pictures,
)


@dataclass
class Options:
    out: Path
    steps: int = 1
    weight: float = 0.5
    eps: str = "8/255"
    norm: Literal["linf", "l2"] = "linf"
    sample: bool = False
    target: Path | None = None
    side: int | None = 3


def test_words_become_values_of_the_fields_types() -> None:
    words = ["steps=4", "weight=1e-2", "eps=16/255", "norm=l2", "sample=true", "target=a/b.png", "side=null"]
    assert parse_options(words, Options, "options", ["out"]) == {
        "steps": 4,
        "weight": 0.01,
        "eps": "16/255",
        "norm": "l2",
        "sample": True,
        "target": Path("a/b.png"),
        "side": None,
    }
    found = parse_options(["attack-steps=3", "step-size=2/255"], AceConfig, "attack_options", [])
    assert found == {"attack_steps": 3, "step_size": "2/255"}
    assert parse_options(["eps=0.06", "weight=2"], Options, "options", []) == {"eps": "0.06", "weight": 2.0}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("steps", "expected words NAME=VALUE"),
        ("speed=1", "expected options among steps, weight, .*, got 'speed'"),
        ("out=x", "expected options among steps"),
        ("steps=1.5", "options: steps: expected int, got '1.5'"),
        ("steps=true", "expected int"),
        ("weight=heavy", "expected float"),
        ("norm=l3", "expected linf/l2, got 'l3'"),
        ("sample=2", "expected bool"),
        ("side=x", "expected int or NoneType"),
    ],
)
def test_words_that_are_no_options(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_options([word], Options, "options", ["out"])


def test_the_same_option_twice() -> None:
    with pytest.raises(ValueError, match="each name once"):
        parse_options(["steps=1", "steps=2"], Options, "options", [])


def test_only_what_a_config_has_is_offered_to_it() -> None:
    made = build(Options, {"out": Path("x")}, {"steps": 9, "model": "demo"}, {"steps": 7})
    assert made == Options(Path("x"), steps=7)
    with pytest.raises(TypeError):
        build(Options, {"out": Path("x"), "model": "demo"}, {}, {})
    with pytest.raises(ValueError, match="attack: expected one of .*, got 'nothing'"):
        attack_class("nothing")


def pixels(folder: Path) -> dict[str, Any]:
    return {record.name: load_image(record.path) for record in list_images(folder)}


def test_half_of_the_replicates_are_all_identities() -> None:
    names = [one.name for one in replicates(3, 2, ["a", "b", "c"], 0)]
    assert names == [f"identity-{i}/seed-{s}" for s in range(2) for i in range(3)]


def test_drawn_pictures_share_the_person_and_the_reference_but_not_the_training_set(tmp_path: Path) -> None:
    for one in replicates(2, 2, ["0", "1"], 5):
        prompt = draw_pictures(one, tmp_path / one.name, landscape=False, images=2, reference=3)
        assert prompt == "a photo of a sks person"
    found = {part: {path.parent: pixels(path) for path in tmp_path.rglob(part)} for part in ("train", "reference")}

    def equal(part: str, one: str, other: str) -> bool:
        a, b = (found[part][tmp_path / name] for name in (one, other))
        return all(np.array_equal(a[name], b[name]) for name in a)

    assert equal("reference", "identity-0/seed-0", "identity-0/seed-1")
    assert not equal("reference", "identity-0/seed-0", "identity-1/seed-0")
    assert not equal("train", "identity-0/seed-0", "identity-0/seed-1")
    train, reference = (list(found[part][tmp_path / "identity-0/seed-0"].values()) for part in ("train", "reference"))
    assert (len(train), len(reference)) == (2, 3)
    assert not any(np.array_equal(a, b) for a in train for b in reference)


def test_a_folder_is_split_by_seed_and_nothing_else(tmp_path: Path) -> None:
    write_folder(make_faces(7, seed=1), tmp_path / "data" / "ann")
    write_folder(make_faces(5, seed=2, size=80), tmp_path / "data" / "bob")
    subjects = list_subjects(tmp_path / "data", 2, 3)
    assert {name: len(records) for name, records in subjects.items()} == {"ann": 7, "bob": 5}
    one, other = (Replicate(0, number, "ann", 0) for number in (0, 1))
    splits = []
    for number, (replicate, records) in enumerate(
        [(one, subjects["ann"]), (one, subjects["ann"][::-1]), (other, subjects["ann"])]
    ):
        split_pictures(replicate, records, tmp_path / str(number), images=3, reference=3, side=64)
        splits.append([set(pixels(tmp_path / str(number) / part)) for part in ("train", "reference")])
    assert splits[0] == splits[1] != splits[2]
    train, reference = splits[0]
    assert len(train) == len(reference) == 3 and not train & reference
    split_pictures(one, subjects["bob"], tmp_path / "bob", images=3, reference=9, side=64)
    assert len(pixels(tmp_path / "bob" / "reference")) == 2
    assert all(image.shape == (64, 64, 3) for image in pixels(tmp_path / "bob" / "train").values())


def test_folders_that_are_no_subjects(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="data: folder .*nowhere"):
        list_subjects(tmp_path / "nowhere", 1, 1)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="data: expected"):
        list_subjects(tmp_path / "file", 1, 1)
    write_folder(make_faces(3, seed=1), tmp_path / "data" / "ann")
    with pytest.raises(ValueError, match=r"identities: expected at most 1, .* got 2"):
        list_subjects(tmp_path / "data", 2, 1)
    with pytest.raises(ValueError, match=r"data: expected 2 images .* in .*ann, got 3"):
        list_subjects(tmp_path / "data", 1, 2)
    (tmp_path / "data" / "aaa").mkdir()
    with pytest.raises(ValueError, match="data: no images"):
        list_subjects(tmp_path / "data", 1, 1)

"""Stage 1's adversaries: from words to losses and budgets, whose twin each image gets, and twins that are there."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lordfast.attacks.mist import TexturalLoss
from lordfast.attacks.pgd import LdmLoss, TargetedLoss
from lordfast.data import list_images, save_png
from lordfast.defense.adversaries import adversaries_of, assignment, parse_adversary
from lordfast.defense.stage1 import Stage1Config, check
from lordfast.defense.twins import Twins, find_twins
from lordfast.training.examples import read_images

MODEL: Any = SimpleNamespace(timesteps=1000, name="stand-in")


@pytest.fixture
def stage1(tmp_path: Path, faces: Path) -> Callable[..., Stage1Config]:
    def make(**settings: Any) -> Stage1Config:
        return Stage1Config(**({"out": tmp_path / "out", "model": "demo", "data": faces} | settings))

    return make


def test_nothing_said_is_stage_1_s_own_pgd(stage1: Any) -> None:
    config = stage1(eps="4/255", attack_steps=3, seed=5)
    (own,) = adversaries_of(config, MODEL)
    assert own.loss == LdmLoss() and own.settings == config.settings(5)
    (named,) = adversaries_of(stage1(eps="4/255", attack_steps=3, seed=5, adversaries=("pgd",)), MODEL)
    assert (named.loss, named.settings) == (own.loss, own.settings)
    assert adversaries_of(stage1(perturbed=(Path("twins"),)), MODEL) == []


def test_options_of_a_word_win_and_the_rest_is_stage_1_s(stage1: Any, tmp_path: Path) -> None:
    words = (
        "pgd",
        "pgd, eps=2/255,targeted=true, attack-steps=20 ,random_start=false",
        "mist,mode=textural,most-timestep=99",
        "fgsm,norm=l2,eps=1.5",
        "photoguard,last-step=0.5,draws=3",
    )
    config = stage1(eps="6/255", step_size="1/255", attack_steps=4, adversaries=words, seed=3)
    plain, targeted, mist, fgsm, photoguard = adversaries_of(config, MODEL)
    assert [type(one.loss).__name__ for one in (plain, targeted, mist, fgsm, photoguard)] == [
        *("LdmLoss", "TargetedLoss", "TexturalLoss", "LdmLoss", "EncoderLoss")
    ]
    assert isinstance(targeted.loss, TargetedLoss) and isinstance(mist.loss, TexturalLoss)
    level = 1 / 255
    for one, eps, steps in ((plain, 6, 4), (targeted, 2, 20), (mist, 6, 4), (photoguard, 6, 4)):
        assert one.settings.budget.eps == pytest.approx(eps * level)
        assert one.settings.budget.step_size == pytest.approx(level)
        assert (one.settings.steps, one.settings.seed) == (steps, 3)
    assert (plain.settings.random_start, targeted.settings.random_start) == (True, False)
    assert (fgsm.settings.steps, fgsm.settings.budget.norm, fgsm.settings.budget.eps) == (1, "l2", 1.5)
    assert mist.settings.most_timestep == 99 and plain.settings.most_timestep is None
    assert (photoguard.settings.last_step, photoguard.settings.draws) == (0.5, 3)
    # Its own picture goes to those that pull, not to the others.
    picture = tmp_path / "picture.png"
    save_png(np.zeros((64, 64, 3), np.uint8), picture)
    config = stage1(targeted=True, target=picture)
    assert parse_adversary("pgd", config)[1].target == picture
    assert parse_adversary("pgd,targeted=false", config)[1].target is None
    assert parse_adversary("pgd,target=none", config)[1].target is None


@pytest.mark.parametrize(
    "word, message",
    [
        ("pdg", "adversaries: 'pdg': attack: expected one of .*pgd.*, got 'pdg'"),
        ("ace,eps=8/255", r"ace trains a surrogate .*lordfast attack ace .*give their folder to --perturbed"),
        ("pgd,colour=red", r"expected option=value with one of .*attack-steps.*; got 'colour=red'"),
        ("pgd,batch-size=3", "got 'batch-size=3'"),
        ("pgd,eps", "got 'eps'"),
        ("pgd,eps=loud", "adversaries: 'pgd,eps=loud': eps: expected pixels in .*got 'loud'"),
        ("pgd,attack-steps=many", "attack_steps: expected a number, got 'many'"),
        ("pgd,targeted=1", "targeted: expected true or false, got '1'"),
        ("mist,mode=loud", "mode: expected one of textural, semantic, fused, got 'loud'"),
        ("feature,random-start=false", "random_start: at the clean image"),
    ],
)
def test_words_that_mean_nothing_are_named_before_anything_is_loaded(stage1: Any, word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(stage1(adversaries=("pgd", word)))


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"adversaries": ("pgd",)}, "none of the adversaries pulls towards it"),
        ({"adversaries": ("pgd,targeted=false", "fgsm"), "targeted": True}, None),
        ({"adversaries": ("pgd,targeted=false",), "targeted": True}, "none of the adversaries pulls towards it"),
        ({"perturbed": (Path("twins"),), "targeted": True}, "none of the adversaries pulls towards it"),
        ({"adversaries": ("pgd,targeted=true,target=other.png",)}, "none of the adversaries pulls towards it"),
        ({}, "was given without targeted"),
        ({"targeted": True}, None),
        ({"adversaries": ("pgd", "pgd,targeted=true")}, None),
        ({"adversaries": ("pgd", "mist")}, None),
        ({"adversaries": ("pgd",), "targeted": True}, None),
    ],
    ids=str,
)
def test_a_picture_is_not_dropped_in_silence(stage1: Any, settings: dict[str, Any], refused: str | None) -> None:
    config = stage1(target=Path("picture.png"), **settings)
    if refused is None:
        check(config)
        return
    with pytest.raises(ValueError, match=f"target: picture.png was given.*{refused.removeprefix('was given ')}"):
        check(config)


def test_what_a_loss_says_names_its_adversary(stage1: Any) -> None:
    for word, message in (
        ("mist,semantic-weight=-1", "semantic_weight: expected 0 or more, got -1"),
        ("pgd,targeted=true,target=nowhere.png", "nowhere.png"),
        ("pgd,most-timestep=1000", "most_timestep: expected at most 999"),
    ):
        with pytest.raises(ValueError, match=f"adversaries: '{word}': .*{message}"):
            adversaries_of(stage1(adversaries=("fgsm", word)), MODEL)


def test_settings_that_need_each_other(stage1: Any) -> None:
    with pytest.raises(ValueError, match="refresh_every: the twins in --perturbed stay as they are"):
        check(stage1(refresh_every=1, perturbed=(Path("twins"),)))
    with pytest.raises(ValueError, match="refresh_every: expected 0 or more, got -1"):
        check(stage1(refresh_every=-1))
    with pytest.raises(ValueError, match="least_timestep|most_timestep: expected at most 999"):
        adversaries_of(stage1(adversaries=("pgd,most-timestep=1000",)), MODEL)


def test_images_are_dealt_out_evenly_and_anew_at_every_refresh() -> None:
    assert assignment(7, 3, seed=0, refresh=0) == [0, 1, 2, 0, 1, 2, 0]
    later = [assignment(40, 3, seed=0, refresh=refresh) for refresh in (1, 2)]
    assert later == [assignment(40, 3, seed=0, refresh=refresh) for refresh in (1, 2)]
    assert len({tuple(one) for one in (*later, assignment(40, 3, 0, 0), assignment(40, 3, 1, 1))}) == 4
    for one in later:
        assert sorted(one) == sorted(i % 3 for i in range(40))


def test_twins_are_found_by_the_names_of_attacked_images(stage1: Any, faces: Path, tmp_path: Path) -> None:
    config = stage1(flip=True)
    records = list_images(faces)
    found = read_images(records, config, 64, seed=0)
    for number, name in enumerate(("one", "two"), start=1):
        for record, image in found[:4]:
            save_png(image ^ number, tmp_path / name / record.name)
    folders = (tmp_path / "one", tmp_path / "two")
    ready = find_twins(folders, records, found, config, 64)
    assert [len(each) for each in ready] == [8, 8]
    for i, (_, image) in enumerate(found):
        assert np.array_equal(ready[0][i], image ^ 1) and np.array_equal(ready[1][i], image ^ 2)
    # With no other adversary, image i has the twin of folder i mod 2, mirrored ones that of their own number.
    twins = Twins(MODEL, found, [], ready, config, tmp_path / "perturbed", None, None)  # type: ignore[arg-type]
    for i, twin in enumerate(twins.make()):
        assert np.array_equal(twin, found[i][1] ^ (1 + i % 2)), i
    (tmp_path / "two" / records[2].name).unlink()
    with pytest.raises(ValueError, match=f"two lacks the twins of 1 of 4 images, the first of them {records[2].name}"):
        find_twins(folders, records, found, config, 64)
    with pytest.raises(ValueError, match="holds the clean images"):
        find_twins((faces,), records, found, config, 64)
    with pytest.raises(ValueError, match="perturbed, crop: .*expected crop center"):
        find_twins(folders, records, found, stage1(crop="random"), 64)

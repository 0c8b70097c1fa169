"""Which image meets which, and random signs of exactly an attack's size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lordfast.data import load_image, make_faces, save_png
from lordfast.data.images import fit_layers, on_white
from lordfast.evaluation.transfer.config import TransferConfig, check_request, columns_of, parse_named
from lordfast.evaluation.transfer.twins import Twins, open_twins, random_signs

FACES = [face.image for face in make_faces(3, seed=11)]


def write(folder: Path, images: dict[str, np.ndarray]) -> Path:
    for name, image in images.items():
        save_png(image, folder / f"{name}.png")
    return folder


def moved(image: np.ndarray, levels: int) -> np.ndarray:
    """One value changed by `levels`, another by one."""
    changed = image.astype(int)
    for place, size in (((3, 4, 1), levels), ((5, 5, 0), 1)):
        changed[place] += size if changed[place] < 128 else -size
    return changed.astype(np.uint8)


def opened(tmp_path: Path, **changes: Any) -> Twins:
    settings: dict[str, Any] = {"prompt": None, "baseline": True, "skip_bad": False, "seed": 0} | changes
    return open_twins(settings.pop("originals", tmp_path / "originals"), settings.pop("attacked"), **settings)


def test_random_signs_change_every_value_by_just_as_much() -> None:
    image = np.random.default_rng(0).integers(20, 236, (64, 64, 3), dtype=np.uint8)
    change = random_signs(image, 7, np.random.default_rng(1)).astype(int) - image
    assert set(np.unique(change)) == {-7, 7}
    # Fair and independent: 12 288 draws, 4 standard errors.
    assert abs((change > 0).mean() - 0.5) < 4 * 0.5 / change.size**0.5
    assert abs((change[:, 1:] * change[:, :-1] > 0).mean() - 0.5) < 0.02
    assert abs((change[..., 0] * change[..., 1] > 0).mean() - 0.5) < 0.04
    assert (random_signs(image, 7, np.random.default_rng(2)) != image + change).any()


def test_random_signs_stay_within_8_bits() -> None:
    white = np.full((8, 8, 3), 250, np.uint8)
    assert set(np.unique(random_signs(white, 16, np.random.default_rng(0)))) == {234, 255}
    image = FACES[0]
    np.testing.assert_array_equal(random_signs(image, 0, np.random.default_rng(0)), image)


@pytest.mark.parametrize("level", [0, 255, 100])
def test_the_largest_change_is_reached_even_where_every_sign_was_clipped(level: int) -> None:
    pixel = np.full((1, 1, 3), level, np.uint8)
    for seed in range(20):
        made = random_signs(pixel, 120, np.random.default_rng(seed))
        assert np.abs(made.astype(int) - level).max() == 120


def test_random_signs_refuse_other_numbers() -> None:
    with pytest.raises(ValueError, match="levels: expected 0 to 255, got 256"):
        random_signs(FACES[0], 256, np.random.default_rng(0))
    with pytest.raises(TypeError, match="image: expected dtype uint8"):
        random_signs(FACES[0] / 255.0, 8, np.random.default_rng(0))


def test_the_baseline_has_the_largest_change_of_each_pair(tmp_path: Path) -> None:
    write(tmp_path / "originals", dict(zip("abc", FACES, strict=True)))
    sizes = {"a": 3, "b": 11, "c": 6}
    one = write(tmp_path / "one", {n: moved(f, sizes[n]) for n, f in zip("abc", FACES, strict=True)})
    same = write(
        tmp_path / "same", {n: moved(f[:, ::-1], sizes[n])[:, ::-1] for n, f in zip("abc", FACES, strict=True)}
    )
    two = write(tmp_path / "two", {n: moved(f, 5) for n, f in zip("abc", FACES, strict=True)})
    twins = opened(tmp_path, attacked={"one": one, "same": same, "two": two})
    assert [row.name for row in twins.rows] == ["one", "same", "two", "random-signs-as-one", "random-signs-as-two"]
    assert [row.like for row in twins.rows] == [[], [], [], ["one", "same"], ["two"]]
    for i, original in enumerate(FACES):
        np.testing.assert_array_equal(twins.original(i), original)
        for row, levels in zip(
            twins.rows, (list(sizes.values()),) * 2 + ([5] * 3, list(sizes.values()), [5] * 3), strict=True
        ):
            change = np.abs(twins.version(row, i).astype(int) - original)
            assert change.max() == levels[i] == row.largest[i]
            assert (np.mean(change == levels[i]) > 0.9) == bool(row.like)
    # The same draw each time, another for another image, or with another seed.
    signs = twins.rows[-1]
    np.testing.assert_array_equal(twins.version(signs, 1), twins.version(signs, 1))
    drawn = [np.sign(twins.version(signs, i).astype(int) - FACES[i]) for i in (0, 1)]
    assert (drawn[0] == drawn[1]).mean() < 0.7
    other = opened(tmp_path, attacked={"one": one, "same": same, "two": two}, seed=1)
    assert (other.version(signs, 0) != twins.version(signs, 0)).mean() > 0.3
    assert [row.name for row in opened(tmp_path, attacked={"one": one}).rows] == ["one", "random-signs"]
    assert [row.name for row in opened(tmp_path, attacked={"one": one}, baseline=False).rows] == ["one"]


def test_an_image_does_not_depend_on_the_others(tmp_path: Path) -> None:
    write(tmp_path / "originals", dict(zip("abc", FACES, strict=True)))
    whole = write(tmp_path / "whole", {n: moved(f, 9) for n, f in zip("abc", FACES, strict=True)})
    part = write(tmp_path / "part", {"c": moved(FACES[2], 9)})
    twins, alone = opened(tmp_path, attacked={"x": whole}), opened(tmp_path, attacked={"x": part})
    assert alone.names == ["c.png"]
    np.testing.assert_array_equal(alone.version(alone.rows[1], 0), twins.version(twins.rows[1], 2))


def test_only_images_of_all_folders_are_compared(tmp_path: Path) -> None:
    write(tmp_path / "originals", dict(zip(("a", "b", "sub/c"), FACES, strict=True)))
    (tmp_path / "originals" / "sub" / "c.txt").write_text("a person")
    one = write(tmp_path / "one", {"sub/c": moved(FACES[2], 4), "b": moved(FACES[1], 4), "zzz": FACES[0]})
    two = write(tmp_path / "two", {"sub/c": moved(FACES[2], 2), "a": FACES[0]})
    twins = opened(tmp_path, attacked={"one": one, "two": two})
    assert (twins.names, twins.captions) == (["sub/c.png"], ["a person"])
    np.testing.assert_array_equal(twins.original(0), FACES[2])
    assert twins.warnings == [
        "only the 1 images that all folders have are compared: 3 are original, 3 in one, 2 in two"
    ]
    assert opened(tmp_path, attacked={"one": one, "two": two}, prompt="x").captions == ["x"]


def test_an_original_is_cut_as_its_attack_cut_it(tmp_path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (80, 140, 3), dtype=np.uint8)
    save_png(photo, tmp_path / "originals" / "a.png")
    attacked = write(tmp_path / "one", {"a": moved(photo[:, 30:110], 6)})
    twins = opened(tmp_path, attacked={"one": attacked})
    np.testing.assert_array_equal(twins.original(0), photo[:, 30:110])
    assert twins.rows[0].largest == [6]


def test_a_transparent_original_is_cut_before_it_is_put_on_white(tmp_path: Path) -> None:
    """As an attack does: the other way round, what is hidden bleeds, and the twins differ by far more."""
    y, x = np.mgrid[:150, :150] - 74.5
    disc = (np.hypot(y, x) < 50) * np.uint8(255)
    disc[:, :75] //= 2
    colours = np.where(disc[..., None] > 0, (200, 30, 0), (0, 0, 255)).astype(np.uint8)
    save_png(Image.fromarray(np.dstack([colours, disc])), tmp_path / "originals" / "a.png")
    fitted, alpha = fit_layers((colours, disc), 64)
    assert alpha is not None
    moved = np.where(fitted < 128, fitted + 4, fitted - 4) * (alpha[..., None] > 0) + fitted * (alpha[..., None] == 0)
    save_png(Image.fromarray(np.dstack([moved.astype(np.uint8), alpha])), tmp_path / "one" / "a.png")
    twins = opened(tmp_path, attacked={"one": tmp_path / "one"})
    assert twins.rows[0].largest == [4] and twins.warnings == []
    np.testing.assert_array_equal(twins.original(0), on_white(fitted, alpha))


def test_what_looks_wrong_is_said(tmp_path: Path) -> None:
    write(tmp_path / "originals", dict(zip("ab", FACES[:2], strict=True)))
    wrong = write(tmp_path / "wrong", {"a": FACES[1], "b": FACES[1]})
    twins = opened(tmp_path, attacked={"wrong": wrong})
    assert "wrong changes an image by" in twins.warnings[0] and "versions of the originals" in twins.warnings[0]
    assert twins.warnings[1] == "wrong leaves 1 of 2 images as they were"


def test_twins_that_can_not_be_compared(tmp_path: Path) -> None:
    write(tmp_path / "originals", {"a": FACES[0]})
    one = write(tmp_path / "one", {"a": FACES[0]})
    small = write(tmp_path / "small", {"a": FACES[0][:32, :32]})
    other = write(tmp_path / "other", {"b": FACES[0]})
    with pytest.raises(ValueError, match=r"twins of one size, got a\.png as 64 x 64 in one, 32 x 32 in small"):
        opened(tmp_path, attacked={"one": one, "small": small})
    with pytest.raises(ValueError, match=r"no image of .*originals has a twin .* a\.png there and b\.png here"):
        opened(tmp_path, attacked={"other": other})
    with pytest.raises(FileNotFoundError, match="attacked: gone: image folder"):
        opened(tmp_path, attacked={"gone": tmp_path / "gone"})
    (one / "a.png").write_bytes(b"no image")
    write(one, {"b": FACES[1]})
    write(tmp_path / "originals", {"b": FACES[1]})
    with pytest.raises(ValueError, match=r"cannot read image .*a\.png"):
        opened(tmp_path, attacked={"one": one})
    skipped = opened(tmp_path, attacked={"one": one}, skip_bad=True)
    assert skipped.names == ["b.png"] and skipped.skipped == [str(one / "a.png")]
    np.testing.assert_array_equal(load_image(one / "b.png"), skipped.version(skipped.rows[0], 0))


def test_names_of_rows_and_models() -> None:
    assert parse_named(["a/b=c", "mist=runs/x=1", "org/model", "some folder"], "to") == {
        "b-c": "a/b=c",
        "mist": "runs/x=1",
        "model": "org/model",
        "some-folder": "some folder",
    }
    for specs, message in {
        (): "to: expected at least one NAME=VALUE, got none",
        ("x=",): "to: 'x=' gives nothing after its name",
        ("=x",): "to: '' in '=x' is no name",
        (".x=y",): "is no name",
        ("A=1", "a=2"): "to: two are called 'a'",
        ("x/demo", "demo"): "to: two are called 'demo'",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse_named(specs, "to")
    for name in ("original", "Random-Signs-2"):
        with pytest.raises(ValueError, match=f"attacked: the name '{name}' is taken"):
            parse_named([f"{name}=x"], "attacked")


def settings(**changes: Any) -> TransferConfig:
    paths = {"out": Path("out"), "originals": Path("x"), "attacked": ("a=b",), "to": ("demo", "other=y")}
    return TransferConfig(**(paths | changes))


def test_columns_are_models_times_prompts() -> None:
    assert [(c.key, c.model, c.prompt, c.label) for c in columns_of(settings())] == [
        ("demo", "demo", None, "demo"),
        ("other", "other", None, "other"),
    ]
    found = columns_of(settings(prompts=("p q", "r")))
    assert [column.key for column in found] == ["demo/prompt-1", "demo/prompt-2", "other/prompt-1", "other/prompt-2"]
    assert [column.label for column in found] == ["demo: p q", "demo: r", "other: p q", "other: r"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ("a",), "prompt": "b"}, "prompts, prompt: both were given"),
        ({"prompts": ("a", "a")}, "prompts: expected different ones"),
        ({"strength": 0.0}, "strength: expected a number above 0 and below 1, got 0"),
        ({"strength": 1.0}, "strength: expected"),
        ({"guidance": float("nan")}, "guidance: expected a finite number"),
        ({"steps": 0}, "steps: expected at least 1"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"pictures": -1}, "pictures: expected 0 or more"),
        ({"resamples": 50}, "resamples: expected 0 or at least 100"),
        ({"attacked": ()}, "attacked: expected at least one"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    check_request(settings())
    with pytest.raises(ValueError, match=message):
        check_request(settings(**changes))

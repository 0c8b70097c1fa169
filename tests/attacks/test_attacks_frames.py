"""Images of any size and mode: what the model is shown of them, and that the saved file obeys the budget exactly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lordfast.attacks.budget import Budget
from lordfast.attacks.frames import open_frame
from lordfast.attacks.mist import MistConfig
from lordfast.attacks.pgd import PgdConfig
from lordfast.attacks.run import run_attack
from lordfast.data import load_image
from lordfast.data.images import fit_layers, load_layers, on_white

SIDE, MULTIPLE = 32, 16
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16")


def write(folder: Path, rng: np.random.Generator, height: int, width: int, mode: str) -> Path:
    """Smooth colours with noise on them, and for alpha a transparent and a half-transparent part."""
    path = folder / ("image.tif" if mode == "CMYK" else "image.png")
    if mode == "I;16":
        Image.fromarray(rng.integers(0, 65536, (height, width)).astype(np.uint16)).save(path)
        return path
    small = Image.fromarray(rng.integers(0, 256, (3, 3, 4)).astype(np.uint8), "RGBA").resize((width, height))
    pixels = np.asarray(small).astype(int) + rng.integers(-9, 10, (height, width, 4))
    pixels = pixels.clip(0, 255).astype(np.uint8)
    pixels[: height // 3, ..., 3] = 0
    image = Image.fromarray(pixels, "RGBA")
    image = image if mode in ("RGBA", "LA") else image.convert("RGB")
    image.convert(mode).save(path)
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_saved_file_obeys_its_budget(tmp_path: Path, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    height, width = data.draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    mode, size = data.draw(st.sampled_from(MODES)), data.draw(st.sampled_from(["model", "original", "tiles"]))
    norm = data.draw(st.sampled_from(["linf", "l2"]))
    eps = data.draw(
        st.sampled_from([0.0, 1 / 255, 4 / 255, 0.025, 16 / 255, 1.0] if norm == "linf" else [0.0, 0.5, 4.0])
    )
    path = write(tmp_path, rng, height, width, mode)
    frame = open_frame(path, size, SIDE, MULTIPLE)
    budget = Budget(eps, eps, norm)
    # As an attack would leave the views: anywhere within, and in float also a little outside, of range and budget.
    reach = 255 * eps if norm == "linf" else 12.0
    levels = [view + rng.uniform(-1.01, 1.01, view.shape) * reach for view in frame.views]
    result = frame.result(levels, budget)

    Image.fromarray(result).save(tmp_path / "out.png")
    colours, alpha = load_layers(tmp_path / "out.png")
    given_colours, given_alpha = load_layers(path)
    if size == "model":
        given_colours, given_alpha = fit_layers((given_colours, given_alpha), SIDE)
    assert colours.shape == given_colours.shape
    change = colours.astype(int) - given_colours
    if norm == "linf":
        assert np.abs(change).max() <= 255 * eps + 1e-6
    else:
        assert np.linalg.norm(change) <= 255 * eps * (1 + 1e-9)
    if eps == 0:
        assert not change.any()
    assert (alpha is None) == (given_alpha is None)
    if alpha is not None and given_alpha is not None:
        assert (change[alpha == 0] == 0).all()
        assert (alpha == given_alpha).all()
        # Nor does what one sees on white change by more.
        seen = on_white(colours, alpha).astype(int) - on_white(given_colours, alpha)
        assert norm == "l2" or np.abs(seen).max() <= 255 * eps + 1e-6
    assert frame.holds(colours, alpha, budget)
    if eps and norm == "linf" and eps < 1:
        other = colours.copy()
        row, column = rng.integers(colours.shape[0]), rng.integers(colours.shape[1])
        # Half of the range away, which is more than any of the budgets here.
        other[row, column, 0] = given_colours[row, column, 0] ^ 128
        assert not frame.holds(other, alpha, budget)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (50, 80), (200, 33), (20, 90), (7, 9)])
def test_the_whole_image_is_shown_scaled(tmp_path: Path, height: int, width: int) -> None:
    path = write(tmp_path, np.random.default_rng(0), height, width, "RGB")
    frame = open_frame(path, "original", SIDE, MULTIPLE)
    (view,) = frame.views
    assert min(view.shape[:2]) == SIDE and all(length % MULTIPLE == 0 for length in view.shape[:2])
    # The aspect ratio is kept: what is left over is a mirror image, not a stretch.
    scale = SIDE / min(height, width)
    tall, wide = max(SIDE, round(height * scale)), max(SIDE, round(width * scale))
    expected = np.asarray(Image.fromarray(load_image(path)).resize((wide, tall), Image.Resampling.LANCZOS))
    assert (view[:tall, :wide] == expected).all()
    if view.shape[1] > wide:
        assert (view[:, wide] == view[:, wide - 1]).all()
    assert view.shape[0] - tall < MULTIPLE and view.shape[1] - wide < MULTIPLE


def test_a_smooth_change_is_resampled(tmp_path: Path) -> None:
    path = write(tmp_path, np.random.default_rng(0), 96, 160, "RGB")
    frame = open_frame(path, "original", SIDE, MULTIPLE)
    (view,) = frame.views
    rows, columns = np.meshgrid(np.arange(view.shape[0]) + 0.5, np.arange(view.shape[1]) + 0.5, indexing="ij")
    change = np.stack([8 * np.sin(rows / 6), 8 * np.cos(columns / 9), rows * 0], axis=2)
    merged = frame.merge([change])
    tall, wide = 96 / SIDE, 160 / round(160 * SIDE / 96)
    rows, columns = np.meshgrid((np.arange(96) + 0.5) / tall, (np.arange(160) + 0.5) / wide, indexing="ij")
    expected = np.stack([8 * np.sin(rows / 6), 8 * np.cos(columns / 9), rows * 0], axis=2)
    assert np.abs(merged - expected)[6:-6, 6:-6].max() < 0.15


@pytest.mark.parametrize(
    ("height", "width", "count"), [(32, 32, 1), (33, 32, 2), (60, 60, 4), (100, 40, 8), (10, 70, 3)]
)
def test_tiles_show_every_pixel_in_full(tmp_path: Path, height: int, width: int, count: int) -> None:
    path = write(tmp_path, np.random.default_rng(1), height, width, "RGB")
    frame = open_frame(path, "tiles", SIDE, MULTIPLE)
    assert len(frame.views) == count and all(view.shape == (SIDE, SIDE, 3) for view in frame.views)
    # Cutting and merging loses nothing, and a change within bounds stays there.
    image = load_image(path)
    assert np.abs(frame.merge([view.astype(float) for view in frame.views]) - image).max() < 1e-9
    rng = np.random.default_rng(2)
    merged = frame.merge([rng.uniform(-8, 8, view.shape) for view in frame.views])
    assert np.abs(merged).max() <= 8


def test_transparent_images_are_shown_on_white(tmp_path: Path) -> None:
    path = write(tmp_path, np.random.default_rng(3), 40, 40, "RGBA")
    for size in ("original", "tiles"):
        frame = open_frame(path, size, SIDE, MULTIPLE)
        assert (frame.colours == np.asarray(Image.open(path))[..., :3]).all()
        assert frame.alpha is not None and (frame.alpha == np.asarray(Image.open(path))[..., 3]).all()
    frame = open_frame(path, "tiles", SIDE, MULTIPLE)
    assert (frame.views[0] == load_image(path)[:SIDE, :SIDE]).all()
    attacked = frame.result([np.zeros(view.shape) for view in frame.views], Budget(8 / 255, 8 / 255))
    assert (frame.views_of(attacked)[0] == on_white(attacked[..., :3].copy(), frame.alpha)[:SIDE, :SIDE]).all()


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Images of several sizes and modes."""
    folder = tmp_path / "mixed"
    rng = np.random.default_rng(5)
    for name, height, width, mode in (
        ("a", 64, 64, "RGB"),
        ("b", 70, 100, "RGBA"),
        ("c", 100, 70, "L"),
        ("d", 70, 100, "RGB"),
        ("e", 40, 30, "RGBA"),
    ):
        (folder / name).mkdir(parents=True)
        write(folder / name, rng, height, width, mode)
    return folder


@pytest.mark.parametrize("size", ["model", "original", "tiles"])
def test_a_folder_keeps_its_sizes_and_modes(mixed: Path, tmp_path: Path, size: str) -> None:
    options: dict[str, Any] = {"model": "demo", "images": mixed, "device": "cpu", "batch_size": 2, "size": size}
    config = PgdConfig(out=tmp_path / "run", attack_steps=2, step_size="4/255", **options)
    summary = run_attack("pgd", config)
    assert summary["images"] == 5 and summary["unchanged"] == 0
    for path in sorted(mixed.rglob("*.png")):
        saved = tmp_path / "run" / path.relative_to(mixed)
        colours, alpha = load_layers(saved)
        before, transparency = load_layers(path)
        if size == "model":
            before, transparency = fit_layers((before, transparency), 64)
        assert colours.shape == before.shape and (alpha is None) == (transparency is None)
        largest = np.abs(colours.astype(int) - before).max()
        assert 4 <= largest <= 8, path
    # On images that do not fit into one view, the file as it was saved is what the losses are of.
    assert summary["loss_attacked"] > summary["loss_clean"]
    again = PgdConfig(out=tmp_path / "again", attack_steps=2, step_size="4/255", **options)
    alone = tmp_path / "alone"
    (alone / "d").mkdir(parents=True)
    (alone / "d" / "image.png").write_bytes((mixed / "d" / "image.png").read_bytes())
    run_attack("pgd", PgdConfig(**{**vars(again), "images": alone}))
    one, other = (load_image(tmp_path / run / "d" / "image.png") for run in ("run", "again"))
    # Kernels round differently with the batch size, and a gradient next to zero can change its sign.
    assert (one != other).mean() < 0.02


@pytest.mark.parametrize("size", ["model", "original", "tiles"])
@pytest.mark.parametrize("name", ["pgd", "mist"])
def test_without_a_budget_the_image_comes_back(mixed: Path, tmp_path: Path, size: str, name: str) -> None:
    cls = {"pgd": PgdConfig, "mist": MistConfig}[name]
    options: dict[str, Any] = {"model": "demo", "images": mixed, "device": "cpu", "attack_steps": 1, "size": size}
    summary = run_attack(name, cls(out=tmp_path / "run", eps="0", **options))
    assert summary["unchanged"] == 5
    for path in mixed.rglob("*.png"):
        before, after = load_layers(path), load_layers(tmp_path / "run" / path.relative_to(mixed))
        assert (after[0] == (fit_layers(before, 64) if size == "model" else before)[0]).all()

"""Pages of single runs: the run's own pictures and numbers, what is missing and why, and nothing that runs as code."""

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lordfast.cli.main import main
from lordfast.report import Charts, Details, Gallery, Page, Picture, Table, Tiles, render_page
from lordfast.report.charts import Line
from lordfast.report.difference import factor_for
from lordfast.report.loss_charts import thin
from lordfast.report.runs import read_run, run_page, write_report

EVIL = "</title><script>document.title = 1</script><img src=x onerror=alert(1)> \"'& {{ 7 * 7 }}"


def blocks(page: Page, kind: type) -> list[Any]:
    """All blocks of a kind, in order, folded ones included."""

    def inside(found: Any) -> list[Any]:
        return [b for block in found for b in (block, *(inside(block.blocks) if isinstance(block, Details) else ()))]

    every = inside([*page.top, *(block for section in page.sections for block in section.blocks)])
    return [block for block in every if isinstance(block, kind)]


def pictures(page: Page) -> list[Picture]:
    return [picture for gallery in blocks(page, Gallery) for row in gallery.rows for picture in row.pictures]


def same(shown: list[Picture], expected: list[np.ndarray]) -> None:
    assert len(shown) == len(expected)
    assert all((picture.image == image).all() for picture, image in zip(shown, expected, strict=True))


def charts(page: Page) -> dict[str, str]:
    """Title -> what it says to those who can't see it."""
    return {chart.title: chart.alt for group in blocks(page, Charts) for chart in group.charts}


def text_of(page: Page) -> str:
    """All that is read on a page, without markup."""
    return html.unescape(re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", render_page(page), flags=re.DOTALL))


Make = Callable[..., Path]
Draw = Callable[..., list[np.ndarray]]


@pytest.fixture
def attacked(tmp_path: Path, make_run: Make, draw: Draw) -> tuple[Path, list[np.ndarray], list[np.ndarray]]:
    """A finished attack of four pictures by 5 grey levels at most, of which one stayed as it is."""
    clean = draw(tmp_path / "clean", 4)
    signs = np.random.default_rng(1).integers(-5, 6, (4, 8, 8, 3))
    signs[3] = 0
    after = [(image + change).astype(np.uint8) for image, change in zip(clean, signs, strict=True)]
    rows = []
    for i, image in enumerate(after):
        (tmp_path / "run").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "run" / f"{i}.png")
        change = {"largest_change": int(np.abs(signs[i]).max()), "l2_change": float(np.linalg.norm(signs[i]) / 255)}
        losses = {"loss_clean": 0.1 + i / 100, "loss_attacked": 0.4 + i / 100}
        rows.append({"image": f"{i}.png", "output": f"{i}.png", **losses, **change})
    summary = {"attack": "pgd", "images": 4, "skipped": 2, "unchanged": 1, "eps_grey_levels": 5.0, "norm": "linf"}
    summary |= {"loss_clean": 0.115, "loss_attacked": 0.415, "seconds": 12.5}
    config = {"images": str(tmp_path / "clean"), "model": "demo", "eps": "5/255", "norm": "linf"}
    return make_run(tmp_path / "run", "attack pgd", config, rows, summary), clean, after


def test_an_attack_shows_originals_results_and_what_changed(attacked: Any) -> None:
    path, clean, after = attacked
    page = run_page(path)
    shown = [picture.image for picture in pictures(page)]
    assert len(shown) == 12
    for i, (before, result) in enumerate(zip(clean, after, strict=True)):
        one, other, change = shown[3 * i : 3 * i + 3]
        assert (one == before).all() and (other == result).all()
        # 16 x 5 = 80 is below 100, 32 x 5 is not.
        assert (change == np.clip(128 + 16 * (result.astype(int) - before), 0, 255)).all()
    text = text_of(page)
    assert "change × 16" in text and "16 times as strong" in text
    squares = [np.square(result.astype(float) - before).mean() for before, result in zip(clean, after, strict=True)]
    ratios = [10 * np.log10(255**2 / square) for square in squares if square]
    assert f"PSNR {ratios[0]:.1f} dB" in text and "unchanged" in text
    tiles = {tile.label: (tile.value, tile.lines) for block in blocks(page, Tiles) for tile in block.tiles}
    assert tiles["Images"] == ("4", ["2 skipped", "1 unchanged"]) and tiles["Budget"][0] == "5 grey levels"
    assert tiles["PSNR, mean"] == (f"{np.mean(ratios):.1f} dB", ["largest change 5 of 255 grey levels"])
    assert "0.115 → 0.415" in str(tiles.values()) and tiles["Time"][0] == "12 s"
    assert "clean: mean 0.115 of 4; attacked: mean 0.415 of 4" in charts(page)["The attack’s loss"]
    # What it was made with, and all that it found.
    for part in ("9.8.7", "3.10.99", "eps: 5/255", "lordfast attack pgd --config config.yaml", "eps grey levels"):
        assert part in text, part
    assert "unfinished" not in text


def test_originals_that_are_gone_and_results_in_archives_are_said_to_be(attacked: Any, make_run: Make) -> None:
    path, _, after = attacked
    (path.parent / "clean").rename(path.parent / "elsewhere")
    page = run_page(path)
    assert f"in {path.parent / 'clean'} are not there any more" in text_of(page)
    same(pictures(page), after)
    rows = [{"output": "a.tar", "images": 5, "loss_clean": 1.0, "loss_attacked": 2.0, "unchanged": 0}]
    archives = make_run(path.parent / "archives", "attack pgd", {"images": "x.tar"}, rows, {"images": 5, "skipped": 0})
    assert "lie in archives" in text_of(run_page(archives)) and not pictures(run_page(archives))


def test_settings_with_relative_paths_are_found_from_anywhere(
    attacked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, *_ = attacked
    config = path / "config.yaml"
    config.write_text(re.sub(r"(out|images): .*/(\w+)$", r"\1: \2", config.read_text(), flags=re.MULTILINE))
    assert "images: clean" in config.read_text() and "out: run" in config.read_text()
    # Another folder of this name, where the page happens to be written, is not it.
    (tmp_path / "decoy" / "clean").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "decoy")
    assert read_run(path).input("images") == path.parent.resolve() / "clean"
    assert len(pictures(run_page(path))) == 12
    assert read_run(path).input("model") is None and read_run(path).input("nothing") is None


def test_stage1_shows_examples_as_training_cut_them(tmp_path: Path, make_run: Make, draw: Draw) -> None:
    # Wider than high: the centre is what training saw.
    (tmp_path / "data").mkdir()
    wide = np.random.default_rng(2).integers(40, 200, (2, 8, 12, 3), dtype=np.uint8)
    for i, image in enumerate(wide):
        Image.fromarray(image).save(tmp_path / "data" / f"{i}.png")
    losses = [
        {"loss": 2.0 / i, "ldm_clean": 0.5 / i, "ldm_perturbed": 0.75 / i, "detection": 1.2, "lr": 1e-4}
        for i in (1, 2, 4)
    ]
    run = make_run(
        tmp_path / "run", "stage1", {"data": str(tmp_path / "data"), "steps": 3}, losses, {"steps": 3, "loss": 0.5}
    )
    twins = run / "perturbed"
    twins.mkdir()
    for i, image in enumerate(wide):
        Image.fromarray(image[:, 2:10] + 2).save(twins / f"{i:06d}.png")
    page = run_page(run)
    shown = [picture.image for picture in pictures(page)]
    assert (shown[0] == wide[0][:, 2:10]).all() and (shown[4] == wide[1][:, 2:10] + 2).all()
    assert (shown[2] == 128 + 2 * 32).all()
    found = charts(page)
    assert "ends at 0.5" in found["Loss"] and "clean images ends at 0.125" in found["Denoising"]
    assert "perturbed images ends at 0.188" in found["Denoising"] and "detection ends at 1.2" in found["Detection"]
    assert "Lr" in found, "what else was logged is folded away"
    # Twins that are made anew as training goes on: the last ones count.
    for name, change in (("epoch-001", 3), ("epoch-002", 4)):
        (twins / name).mkdir()
        for i, image in enumerate(wide):
            Image.fromarray(image[:, 2:10] + change).save(twins / name / f"{i:06d}.png")
    page = run_page(run)
    assert (pictures(page)[1].image == wide[0][:, 2:10] + 4).all() and "those of epoch-002" in text_of(page)
    # Where the first example's twin was given ready-made, the second one's stays with its own image.
    (twins / "epoch-002" / "000000.png").unlink()
    shown = [picture.image for picture in pictures(run_page(run))]
    assert len(shown) == 3 and (shown[0] == wide[1][:, 2:10]).all() and (shown[1] == wide[1][:, 2:10] + 4).all()


def test_stage2_shows_instances_validation_and_where_it_diverged(tmp_path: Path, make_run: Make, draw: Draw) -> None:
    instances = draw(tmp_path / "instances", 2)
    config = {
        "instance_data": str(tmp_path / "instances"),
        "steps": 4000,
        "validation_prompt": "a sks",
        "instance_prompt": EVIL,
    }
    rows = [{"loss": 0.5}, {"loss": float("nan")}, {"loss": 0.25}]
    run = make_run(tmp_path / "run", "stage2", config, rows)
    grids = draw(run / "validation", 2, 8, 5, ["step-000002.png", "step-000010.png"])
    page = run_page(run)
    same(pictures(page), [*instances, *grids])
    text = text_of(page)
    assert "This run is unfinished: 3 of 4,000 steps." in text
    assert "After step 2" in text and "After step 10" in text
    assert "not a finite number in 1 step: the training diverged" in text
    assert "ends at 0.25" in charts(page)["Loss"]


def test_a_page_holds_no_more_than_its_budget_and_says_what_is_missing(
    tmp_path: Path, make_run: Make, draw: Draw
) -> None:
    rows = [{"image": f"{i}.png", "seed": i} for i in range(6)]
    run = make_run(
        tmp_path / "run", "generate", {"prompt": EVIL, "n": 6, "steps": 5}, rows, {"images": 6, "seconds": 3.0}
    )
    draw(run, 6, 64)
    whole = run_page(run)
    assert len(pictures(whole)) == 6 and "left out" not in text_of(whole) and "2 pictures a second" in text_of(whole)
    small = run_page(run, budget=50_000)
    kept = len(pictures(small))
    assert 0 < kept < 6 and f"{6 - kept} pictures were left out" in text_of(small) and "below 0.05 MB" in text_of(small)
    assert len(render_page(whole)) - len(render_page(small)) > (6 - kept) * 64 * 64 * 3
    assert not pictures(run_page(run, budget=0))
    assert EVIL in text_of(whole) and "<script>document" not in render_page(whole)


def test_photographs_become_thumbnails(tmp_path: Path, make_run: Make) -> None:
    run = make_run(tmp_path / "run", "generate", {"prompt": "p"}, [], {"images": 1})
    smooth = np.repeat(np.linspace(0, 255, 900).astype(np.uint8)[None, :, None], 600, axis=0).repeat(3, axis=2)
    Image.fromarray(smooth).save(run / "0000.png")
    (shown,) = pictures(run_page(run))
    assert shown.image.shape == (171, 256, 3) and abs(int(shown.image[5, 128].mean()) - 128) < 3
    text = render_page(run_page(run))
    assert 'class="smooth"' in text and len(text) < 80_000


def test_a_damaged_picture_is_named_and_the_rest_shown(attacked: Any) -> None:
    path, *_ = attacked
    (path / "2.png").write_bytes(b"no picture")
    page = run_page(path)
    assert len(pictures(page)) == 9 and "Not shown: " in text_of(page) and "2.png" in text_of(page)


def test_purify_and_pairs_show_theirs(tmp_path: Path, make_run: Make, draw: Draw) -> None:
    given = draw(tmp_path / "given", 2)
    rows = [{"image": f"{i}.png", "output": f"{i}.png", "psnr": psnr} for i, psnr in enumerate((27.25, None))]
    summary = {"purifier": "jpeg", "images": 2, "skipped": 0, "unchanged": 1, "psnr": 27.25, "seconds": 1.0}
    run = make_run(tmp_path / "run", "purify jpeg", {"images": str(tmp_path / "given")}, rows, summary)
    results = draw(run, 2, seed=9)
    page = run_page(run)
    for expected, found in zip([given[0], results[0]], pictures(page), strict=False):
        assert (found.image == expected).all()
    assert "27.2 dB" in text_of(page) and "Purify with jpeg" in page.title
    row = {"file_name": "images/a.png", "mask": "masks/a.png", "source": "a.jpg", "text": EVIL, "share": 0.25}
    pairs = make_run(tmp_path / "pairs", "pairs inpainting", {"images": "x"}, [row], {"images": 1, "pairs": 1})
    made = [draw(pairs / folder, 1, seed=s, names=["a.png"])[0] for s, folder in enumerate(("images", "masks"))]
    same(pictures(run_page(pairs)), made)
    assert EVIL in text_of(run_page(pairs))


def test_of_other_commands_there_is_what_all_runs_have(tmp_path: Path, make_run: Make) -> None:
    demo = make_run(tmp_path / "run", "demo", {"quick": True}, [{"title": "attack the pictures", "seconds": 3.5}])
    make_run(demo / "seed-0" / "attacked", "attack pgd", {}, [], {"images": 1})
    make_run(demo / "seed-0" / "stage2", "stage2")
    (demo / "cache").mkdir()
    make_run(demo / "cache" / "x", "generate")
    page = run_page(demo)
    (table,) = blocks(page, Table)
    assert list(table.rows) == [
        ("seed-0/attacked", ["attack pgd", "finished"]),
        ("seed-0/stage2", ["stage2", "unfinished"]),
    ]
    text = text_of(page)
    assert "This run is unfinished" in text and "attack the pictures" in text and "3.5 s" in text


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda run: (run / "config.yaml").unlink(), "holds no run"),
        (lambda run: (run / "config.yaml").write_text("{"), "holds no run"),
        (lambda run: (run / "config.yaml").write_text("- 1"), "holds no run"),
        (lambda run: (run / "summary.json").write_text('{"a":'), "summary.json is damaged"),
        (lambda run: (run / "summary.json").write_text("[1]"), "summary.json holds a list"),
    ],
)
def test_what_is_no_run_is_refused(
    tmp_path: Path, make_run: Make, capsys: pytest.CaptureFixture[str], break_it: Callable[[Path], Any], said: str
) -> None:
    run = make_run(tmp_path / "run", "generate", {}, [], {"images": 0})
    break_it(run)
    assert main(["report", str(run)]) == 2
    assert said in capsys.readouterr().err and not (run / "report.html").exists()
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_the_command_writes_where_it_is_told(
    tmp_path: Path, make_run: Make, draw: Draw, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", "generate", {"prompt": "p"}, [], {"images": 3, "seconds": 1.0})
    draw(run, 3, 64)
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert (run / "report.html").read_text() == render_page(run_page(run))
    # Its own page is no picture and no row: the second one is the same.
    assert write_report(run, tmp_path / "new" / "page.html").read_text() == (run / "report.html").read_text()
    assert main(["report", str(run), "--out", str(tmp_path / "b.html"), "--megabytes", "0"]) == 0
    assert "3 pictures were left out" in (tmp_path / "b.html").read_text()
    assert main(["report", str(run), "--out", str(tmp_path)]) == 2 and main(["report", str(run), "--megabytes=-1"]) == 2
    # A finished demo has a page of its own.
    demo = make_run(tmp_path / "demo", "demo", {}, [], {"quick": True})
    monkeypatch.setattr("lordfast.demo.report.demo_page", lambda folder: Page(f"demo of {folder.name}", []))
    assert main(["report", str(demo)]) == 0 and "<title>demo of demo</title>" in (demo / "report.html").read_text()
    (demo / "summary.json").unlink()
    assert main(["report", str(demo)]) == 0 and "This run is unfinished" in (demo / "report.html").read_text()


def test_long_curves_are_averaged_and_short_ones_are_not() -> None:
    line = Line("loss", range(1, 11), [float(i) for i in range(10)])
    assert thin(line, 10) == (line, 1)
    thinned, each = thin(line, 4)
    assert each == 3 and thinned.x == [2, 5, 8, 10] and thinned.y == [1, 4, 7, 9]


def test_a_change_is_amplified_by_what_most_pictures_bear() -> None:
    grey = np.full((4, 4, 3), 100, np.uint8)
    pairs = [(grey, grey + change) for change in (1, 6, 60)]
    # Of the median: 16 x 6 = 96.
    assert factor_for(pairs) == 16 and factor_for(pairs[:1]) == 64 and factor_for(pairs[2:]) == 1
    assert factor_for([]) == 64

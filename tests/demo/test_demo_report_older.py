"""The page of a demo run of an earlier version, which compared fewer methods."""

import json
import re
import shutil
from pathlib import Path

from lordfast.cli.main import main
from lordfast.demo.methods import METHODS, method_title
from lordfast.demo.report import demo_page
from lordfast.report import Details, Gallery, Table, render_page

LATE = "attacked-lord-training"
OF_LATE = re.compile("left out of sampling|leaves LoRD out|trained on LoRD")


def test_of_a_run_that_compared_fewer_methods_those_are_shown(seeds: Path, tmp_path: Path) -> None:
    old = tmp_path / "run"
    shutil.copytree(seeds, old, ignore=shutil.ignore_patterns("cache", "checkpoints", "perturbed", LATE))
    summary = json.loads((old / "summary.json").read_text())
    for found in (summary, *summary["stories"].values()):
        del found["methods"][LATE]
    summary["seconds"] = {step: spent for step, spent in summary["seconds"].items() if not OF_LATE.search(step)}
    (old / "summary.json").write_text(json.dumps(summary))
    assert main(["report", str(old)]) == 0
    written = (old / "report.html").read_text(encoding="utf-8")
    page = demo_page(old)
    assert written == render_page(page) and not OF_LATE.search(written)
    assert len(set(OF_LATE.findall(render_page(demo_page(seeds))))) == 3, "what is looked for is there with the method"

    expected = [method_title(name) for name in METHODS if name != LATE]
    (drawn,) = [block for block in page.sections[1].blocks if isinstance(block, Gallery)]
    assert [row.title for row in drawn.rows] == expected
    (together,) = [block for block in page.sections[2].blocks if isinstance(block, Table)]
    assert [title for title, _ in together.rows] == expected
    (each,) = [block for block in page.sections[2].blocks if isinstance(block, Details) and "seeds" in block.summary]
    assert [title for title, _ in each.blocks[0].rows] == [
        f"{title}, seed {seed}" for title in expected for seed in summary["stories"]
    ]
    assert len(page.top[1].tiles) == 4

"""Loss curves of the demo's training runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lordfast.demo.methods import TRAINED
from lordfast.report import Block, Charts, Paragraph
from lordfast.report.loss_charts import curve, loss_chart, stage1_charts
from lordfast.training.run import RunFolder


def _rows(run: Path) -> list[dict[str, Any]]:
    return RunFolder(run, write=False).rows()


def loss_blocks(out: Path, run: Path) -> list[Block]:
    """Curves of Stage 1 where the demo run in `out` trained a LoRD, and of Stage 2 of the seed whose folder is `run`.

    Raises:
        OSError: a file of the run is missing.
    """
    caption = "Of LoRD, on other pictures."
    charts = stage1_charts(_rows(out / "stage1"), "Stage 1: ", caption) if (out / "stage1").exists() else []
    for attacked in (False, True):
        lines = [
            curve(_rows(run / "stage2" / name), "loss", "LoRD + LoRA" if method.with_lord else "LoRA")
            for name, method in TRAINED.items()
            if method.attacked == attacked
        ]
        charts.append(loss_chart(f"Stage 2: {'attacked' if attacked else 'clean'} images", lines))
    text = (
        "The loss of a diffusion model jumps with the noise level that a step draws; look at the bold curves. "
        "A low loss on attacked images means that the attack was learnt, not that the pictures are good."
    )
    return [Paragraph(text), Charts(charts)]

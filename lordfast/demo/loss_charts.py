"""Loss curves of the demo's training runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lordfast.demo.methods import METHODS
from lordfast.report import Block, Chart, Charts, Line, Paragraph, line_chart
from lordfast.training.run import RunFolder


def _rows(run: Path) -> list[dict[str, Any]]:
    return RunFolder(run, write=False).rows()


def loss_window(steps: int) -> int:
    """How many steps the bold curve averages over: about a tenth of all, an odd number."""
    return max(1, steps // 10) // 2 * 2 + 1


def _curve(rows: Sequence[dict[str, Any]], key: str, label: str) -> Line:
    here = [row for row in rows if key in row]
    return Line(label, [row["step"] for row in here], [row[key] for row in here])


def _loss_chart(title: str, lines: Sequence[Line], caption: str = "", **options: Any) -> Chart:
    lines = [line for line in lines if line.x]
    window = loss_window(max(len(line.x) for line in lines))
    svg = line_chart(lines, x_label="step", y_label="loss", window=window, **{"y_range": (0, None), **options})
    ends = ", ".join(f"{line.label} ends at {line.y[-1]:.3g}" for line in lines)
    return Chart(title, svg, f"Loss curves, {title}: {ends}.", f"{caption} Bold: mean over {window} steps.".strip())


def _stage1_losses(stage1: list[dict[str, Any]]) -> list[Chart]:
    charts = [
        _loss_chart(
            "Stage 1: denoising",
            [_curve(stage1, "ldm_perturbed", "perturbed images"), _curve(stage1, "ldm_clean", "clean images")],
            "Of LoRD, on other pictures.",
        )
    ]
    detection = _curve(stage1, "detection", "detection")
    if detection.x:
        # The sum of two cross entropies, each ln 2 for a gate at one half.
        chance = ("a gate that can't tell", 2 * float(np.log(2)))
        charts.append(
            _loss_chart(
                "Stage 1: detection",
                [detection],
                "Of the gates, lower is better.",
                reference=chance,
                y_range=(0, 1.15 * max(chance[1], *detection.y)),
            )
        )
    return charts


def loss_blocks(out: Path, run: Path) -> list[Block]:
    """Curves of Stage 1 where the demo run in `out` trained a LoRD, and of Stage 2 of the seed whose folder is `run`.

    Raises:
        OSError: a file of the run is missing.
    """
    charts = _stage1_losses(_rows(out / "stage1")) if (out / "stage1").exists() else []
    for attacked in (False, True):
        lines = [
            _curve(_rows(run / "stage2" / name), "loss", "LoRD + LoRA" if method.with_lord else "LoRA")
            for name, method in METHODS.items()
            if method.attacked == attacked
        ]
        charts.append(_loss_chart(f"Stage 2: {'attacked' if attacked else 'clean'} images", lines))
    text = (
        "The loss of a diffusion model jumps with the noise level that a step draws; look at the bold curves. "
        "A low loss on attacked images means that the attack was learnt, not that the pictures are good."
    )
    return [Paragraph(text), Charts(charts)]

"""Run folders written by hand, small and complete, as commands leave them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

ENVIRONMENT = {"python": "3.10.99", "cpu_count": 7, "packages": {"lordfast": "9.8.7", "torch": "2.99"}}


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """``make_run(path, command, config, rows, summary)``: without a summary, the run is unfinished."""

    def make(
        path: Path,
        command: str,
        config: dict[str, Any] | None = None,
        rows: list[dict[str, Any]] | None = None,
        summary: dict[str, Any] | None = None,
        results: dict[str, Any] | None = None,
    ) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        settings = {"command": command, "out": str(path), "seed": 3, **(config or {})}
        (path / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        (path / "environment.json").write_text(json.dumps(ENVIRONMENT))
        numbered = [{"step": i, **row} for i, row in enumerate(rows or [], start=1)]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbered))
        for name, value in (("summary.json", summary), ("results.json", results)):
            if value is not None:
                (path / name).write_text(json.dumps(value))
        return path

    return make


@pytest.fixture(scope="session")
def draw() -> Callable[..., list[np.ndarray]]:
    """``draw(folder, n, side, seed)``: writes n random pictures ``0.png`` ... and returns them."""

    def write(
        folder: Path, n: int = 3, side: int = 8, seed: int = 0, names: list[str] | None = None
    ) -> list[np.ndarray]:
        folder.mkdir(parents=True, exist_ok=True)
        made = list(np.random.default_rng(seed).integers(40, 200, (n, side, side, 3), dtype=np.uint8))
        for i, image in enumerate(made):
            Image.fromarray(image).save(folder / (names[i] if names else f"{i}.png"))
        return made

    return write

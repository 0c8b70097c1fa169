"""The LoRD that comes with the embedded model: the demo's Stage 1, for longer and on both kinds of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save

from lordfast.adapter.save_load import CONFIG_NAME, WEIGHTS_NAME
from lordfast.data.procedural import ProceduralImage, make_faces, make_landscapes, write_folder_once
from lordfast.defense.stage1 import run_stage1
from lordfast.demo import recipes
from lordfast.files import write_atomic
from lordfast.training.processes import on_main
from lordfast.training.seeds import derive_seed

LANDSCAPE_SHARE = 4
"""One picture in this many is a landscape."""


def train_lord(model: Path, out: Path, steps: int, pictures: int, common: dict[str, Any], accelerator: Any) -> dict:
    """Train a LoRD for the model in `model` and put it into its folder ``lord``; the run lies in `out`.

    Returns:
        The summary of Stage 1.
    """
    data = out.with_name(f"{out.name}-pictures")
    on_main(accelerator, lambda: write_folder_once(data, lambda: _pictures(pictures, common["seed"])))
    scale = recipes.FULL._replace(others=pictures, stage1_steps=steps)
    config = recipes.stage1(out, data, scale, {**common, "cache_dir": out.with_name("cache")}, model=str(model))
    result = run_stage1(config)
    on_main(accelerator, lambda: _ship(out, model / "lord"))
    return result


def _pictures(n: int, seed: int) -> list[ProceduralImage]:
    places = n // LANDSCAPE_SHARE
    return [
        *make_faces(n - places, derive_seed(seed, "lord", "faces")),
        *make_landscapes(places, derive_seed(seed, "lord", "landscapes")),
    ]


def _ship(run: Path, folder: Path) -> None:
    """Copy the LoRD, in half precision as the rest of the model."""
    with safe_open(run / WEIGHTS_NAME, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key).half() for key in file.keys()}  # noqa: SIM118 - no mapping
    write_atomic(folder / WEIGHTS_NAME, save(tensors, metadata=metadata))
    write_atomic(folder / CONFIG_NAME, (run / CONFIG_NAME).read_bytes())

"""Turn what a person writes after ``--model`` into something ``from_pretrained`` takes."""

from __future__ import annotations

import re
from pathlib import Path

# A path lookup, not an import: the demo package stands above this one.
DEMO_MODEL = Path(__file__).resolve().parent.parent / "demo" / "model"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_model(model: str | Path) -> str:
    """Return a local diffusers folder or a hub id for `model`.

    Args:
        model: a folder in diffusers format (it holds ``model_index.json``), a hub id such as
            ``stable-diffusion-v1-5/stable-diffusion-v1-5``, or the word ``demo`` for the embedded model.

    Raises:
        ValueError: `model` is a folder without ``model_index.json``, a file, or nothing that exists.
    """
    name = str(model)
    if name == "demo":
        if not (DEMO_MODEL / "model_index.json").is_file():
            raise ValueError(f"model: the embedded model is missing from this installation (looked in {DEMO_MODEL})")
        return str(DEMO_MODEL)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ValueError(
                f"model: {name} is a folder but no diffusers model: it holds no model_index.json; expected a folder "
                "written by save_pretrained, a hub id, or 'demo'"
            )
        return str(path)
    if path.exists():
        raise ValueError(f"model: {name} is a file; expected a folder in diffusers format, a hub id, or 'demo'")
    if _HUB_ID.fullmatch(name) and not name.startswith((".", "/")):
        return name
    raise ValueError(f"model: {name!r} does not exist; expected a folder in diffusers format, a hub id, or 'demo'")

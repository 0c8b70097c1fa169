"""The model that is profiled: one that exists, or a published architecture with random weights."""

from __future__ import annotations

import tempfile

from lordfast.diffusion import LatentDiffusion, load_model, resolve_device
from lordfast.diffusion.random_model import write_random
from lordfast.report.profile.config import ProfileConfig
from lordfast.training.speed import speed_up


def open_model(config: ProfileConfig) -> LatentDiffusion:
    """Load or make the model, and bring it into the form that the options ask for.

    Raises:
        ValueError: there is no such model or topology, or a family that is not supported.
    """
    resolve_device(config.device)
    if config.topology is None:
        model = load_model(config.model, device=config.device, dtype=config.dtype)
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_random(config.topology, folder, seed=config.seed)
            model = load_model(folder, device=config.device, dtype=config.dtype)
        model.name = config.topology
    speed_up(model, config)
    return model

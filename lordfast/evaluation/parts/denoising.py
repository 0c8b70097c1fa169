"""The denoising loss of the model with its adapters on the reference images."""

from __future__ import annotations

from lordfast.data import load_images
from lordfast.diffusion import LatentDiffusion
from lordfast.evaluation.config import EvaluateConfig
from lordfast.evaluation.denoising import denoising_losses
from lordfast.evaluation.detection import check_timesteps
from lordfast.evaluation.inputs import ImageFolder
from lordfast.evaluation.measure import mean_entry
from lordfast.evaluation.pairs import match_keys
from lordfast.evaluation.parts.base import Part, PartResult
from lordfast.training.examples import report_cut
from lordfast.training.generate import load_adapters
from lordfast.training.progress import progress


def plan_denoising(config: EvaluateConfig, model: LatentDiffusion, reference: ImageFolder) -> Part:
    """L_LDM on the reference images, mean over timesteps. Loads the adapters into `model`, which must have none.

    Raises:
        ValueError, FileNotFoundError: a timestep or resolution out of range, an image without prompt, no adapters in
            the folders, or adapters of another model.
    """
    check_timesteps(config.denoising_timesteps, model.timesteps)
    side = model.check_resolution(config.resolution)
    captions = [config.prompt or record.caption for record in reference.records]
    mute = [record.name for record, caption in zip(reference.records, captions, strict=True) if caption is None]
    if mute:
        raise ValueError(
            f"prompt: {len(mute)} images in {config.reference} have no caption, such as {mute[0]}; --prompt gives one"
        )
    report_cut(model, captions)
    load_adapters(model, config.lord, config.lora, config.lord_lambda)
    keys = match_keys(reference.records)

    def run() -> PartResult:
        images = (image for _, image in load_images(reference.records, side))
        with progress("denoising", len(reference)) as advance:
            losses = denoising_losses(
                model,
                zip(keys, images, (caption or "" for caption in captions), strict=True),
                config.denoising_timesteps,
                seed=config.seed,
                batch_size=config.batch_size,
                on_batch=advance,
            ).numpy()
        sampling = {"resamples": config.resamples, "seed": config.seed}
        summary = {
            "resolution": side,
            "loss": mean_entry(losses.mean(axis=1), **sampling),
            "timesteps": [
                {"timestep": timestep, **mean_entry(losses[:, i], **sampling)}
                for i, timestep in enumerate(config.denoising_timesteps)
            ],
        }
        rows = [
            {"image": record.name, "timestep": timestep, "loss": float(losses[i, t])}
            for i, record in enumerate(reference.records)
            for t, timestep in enumerate(config.denoising_timesteps)
        ]
        return PartResult(summary, rows, [])

    return run

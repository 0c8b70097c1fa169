"""The settings of ``lordfast evaluate``, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lordfast.training.config import RunConfig
from lordfast.training.lord import GATE, LordOptions, parse_lambda


@dataclass(kw_only=True)
class EvaluateConfig(RunConfig):
    """Measure images: generated against reference, attacked against originals, or lambda as an attack detector.

    --generated with --reference gives the distances between the two sets, PSNR and SSIM of the pairs whose names
    match, and the high frequencies of both; --clip-model, --dino-model, --identity and --lpips add what needs weights
    or a package of its own. --lord with --clean and --attacked gives the AUROC of lambda. --lora with --reference gives
    the denoising loss on pictures that the LoRA was not trained on. Several may be asked for at once. A metric whose
    weights are missing is reported as unavailable, with the reason, and the others are measured.
    """

    generated: Path | None = None
    """Folder of generated (or attacked) images."""
    reference: Path | None = None
    """Folder of images to compare them with."""
    distribution: bool = True
    """Frechet distance and kernel distance between the two folders: FID and KID, on Inception's features."""
    paired: Literal["auto", "on", "off"] = "auto"
    """PSNR, SSIM and largest change of pairs with the same name, sub-folder included and extension aside, the
    reference centre-cropped to its partner's size. auto: where any names match."""
    frequency: bool = True
    """Share and amplitude of the high frequencies in both folders, each image at its own size: attacks add them."""
    features: tuple[str, ...] = ("vae",)
    """What the distances compare, one or several: vae (the encoder of --model, offline, a coarse stand-in for
    Inception), inception (FID and KID as papers have them; needs weights), package.module:factory (called without
    arguments, gives an nn.Module from uint8 (B, 3, H, W) to (B, F)), or a TorchScript file of such a module."""
    inception_weights: Path | None = None
    """File with the weights of --features inception, as torch-fidelity and pytorch-fid hand it out
    (weights-inception-2015-12-05-6726825d.pth); downloaded once when left out."""
    kid_subsets: int = 100
    """Random subsets that KID is averaged over; one where a subset is all there is."""
    kid_subset_size: int = 1000
    """Images of each set in a subset; at most as many as the smaller set has."""
    clip_model: str | None = None
    """A CLIP model, a folder or a hub id such as openai/clip-vit-base-patch16: CLIP-IQA of the generated images, their
    similarity to the reference (CLIP-I) and to the prompt (CLIP-T). --reference may be left out with it."""
    clip_prompt: str | None = None
    """What the generated images were asked to show, for CLIP-T; else their captions in name.txt, metadata.jsonl or the
    like."""
    iqa_subject: str = "person"
    """What they show: CLIP-IQA is P("A good photo of a person") against "A bad photo of a person", the higher the
    better; landscape, or any noun, likewise."""
    dino_model: str | None = None
    """A DINO or DINOv2 model, a folder or a hub id such as facebook/dino-vits16: similarity of the generated images to
    the reference."""
    lpips: Literal["alex", "vgg", "squeeze"] | None = None
    """LPIPS of the pairs with this network; needs torchvision, which downloads its weights."""
    identity: str | None = None
    """Is it the same person? insightface, facenet (facenet-pytorch), or package.module:factory (called without
    arguments, gives a function from a uint8 image (H, W, 3) to an embedding, or None where it finds no face);
    lordfast.demo.identity:faces and :landscapes for drawn pictures. Similarity to the reference (ISM), and the share
    of generated images without a face (FDFR)."""
    resamples: int = 1000
    """Of the bootstrap that gives 95 % confidence intervals over images (at most 200 for the Frechet distance); 0
    leaves all intervals out but those of shares and AUROCs, which need none."""
    lord: Path | None = None
    """The run folder of lordfast stage1, or any folder with a saved LoRD: its lambda is tested on --clean and
    --attacked, and it is in the model of --lora."""
    lord_lambda: str = GATE
    """lambda of the LoRD under --lora: gate, or a number from 0 to 1 in its place."""
    clean: Path | None = None
    """Folder of clean images."""
    attacked: Path | None = None
    """Folder of attacked images; those with a clean image's name get the same noise and caption as their twin."""
    timesteps: tuple[int, ...] = (20, 200, 600)
    """Noise levels at which lambda is read."""
    lora: Path | None = None
    """The run folder of lordfast stage2, or a LoRA: the denoising loss of the model with it on --reference, which
    should hold clean images that it was not trained on. The noise depends on --seed and the images' names alone, so
    two LoRAs compare image by image."""
    denoising: bool = False
    """The same without --lora, with --lord or of the model alone."""
    denoising_timesteps: tuple[int, ...] = (50, 200, 400, 600, 800)
    """Noise levels of the denoising loss."""
    prompt: str | None = None
    """One caption for all images when reading lambda and for the denoising loss; else name.txt or metadata.jsonl, and
    for lambda the empty prompt."""
    model: str = "demo"
    """The model of --features vae, --lord and --lora: a diffusers folder, a hub id, or demo."""
    resolution: int | None = None
    """Side in pixels to which images are brought for features, lambda and the denoising loss: the model's own when
    left out; for other features than vae, the shorter side of the first generated image."""
    batch_size: int = 8
    """Images per forward."""
    cache_dir: Path | None = None
    """Where features and embeddings are kept, by image and network, so that a folder is measured once;
    $LORDFAST_CACHE or ~/.cache/lordfast when left out."""
    skip_bad: bool = False
    """Go on without images that can't be read, naming each."""

    def __post_init__(self) -> None:
        if isinstance(self.features, str):
            self.features = (self.features,)

    @property
    def beyond_pairs(self) -> bool:
        """Whether anything but pairs is asked of the generated images."""
        named = (self.clip_model, self.dino_model, self.lpips, self.identity)
        return self.distribution or self.frequency or any(named)

    @property
    def denoises(self) -> bool:
        """Whether the denoising loss is asked for."""
        return self.denoising or self.lora is not None


def check_request(config: EvaluateConfig) -> None:
    """Raise a ValueError unless `config` asks for something, completely, with numbers in range."""
    _check_folders(config)
    check_numbers(config)
    parse_lambda(LordOptions(lord=config.lord, lord_lambda=config.lord_lambda))
    if config.generated is not None and not config.beyond_pairs and config.paired == "off":
        raise ValueError(
            "distribution, paired, frequency: all are off; nothing is left to measure in --generated and --reference"
        )


def check_numbers(config: EvaluateConfig) -> None:
    """Raise a ValueError for numbers out of range, and features that come twice or not at all."""
    if not config.features or len(set(config.features)) < len(config.features):
        raise ValueError(f"features: expected different ones, at least one, got {list(config.features)}")
    for name in ("batch_size", "kid_subsets"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(config, name)}")
    if config.resamples != 0 and config.resamples < 100:
        raise ValueError(f"resamples: expected 0 or at least 100, got {config.resamples}")
    if config.kid_subset_size < 2:
        raise ValueError(f"kid_subset_size: expected at least 2, got {config.kid_subset_size}")
    if config.resolution is not None and config.resolution < 1:
        raise ValueError(f"resolution: expected a positive number of pixels, got {config.resolution}")


def _check_folders(config: EvaluateConfig) -> None:
    """Raise a ValueError where folders are missing that go with those that were given."""
    sets = {"generated": config.generated, "reference": config.reference}
    gates = {"lord": config.lord, "clean": config.clean, "attacked": config.attacked}
    compared = {name: getattr(config, name) is not None for name in ("dino_model", "identity", "lpips")}
    compared["paired"] = config.paired == "on"
    if config.generated is None:
        _refuse("generated", compared | {"clip_model": config.clip_model is not None})
    if config.reference is None:
        _refuse("reference", {"lora": config.lora is not None, "denoising": config.denoising} | compared)
    # Either may stand alone then.
    if config.denoises or (config.generated is not None and config.clip_model is not None):
        sets = {}
    if config.denoises and config.clean is None and config.attacked is None:
        gates = {}
    for group in (sets, gates):
        missing = [name for name, value in group.items() if value is None]
        if missing and len(missing) < len(group):
            given = " and ".join(f"--{name}" for name in group if name not in missing)
            raise ValueError(f"{missing[0]}: {given} needs {' and '.join(f'--{name}' for name in missing)} too")
    if config.generated is None and config.lord is None and not config.denoises:
        raise ValueError(
            "nothing to measure: give --generated and --reference (distances, and PSNR and SSIM of pairs), or --lord, "
            "--clean and --attacked (lambda as a detector), or --lora and --reference (its denoising loss), or several"
        )


def _refuse(missing: str, wanted: dict[str, bool]) -> None:
    """Raise a ValueError for the first wanted setting: the folder `missing` goes with it."""
    for name in (name for name, given in wanted.items() if given):
        raise ValueError(f"{missing}: --{name.replace('_', '-')} needs --{missing} too")

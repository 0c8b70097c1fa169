"""Image against image: PSNR, SSIM, changes and LPIPS of the pairs whose names match."""

from __future__ import annotations

from collections.abc import Iterator

from lordfast.data import load_image
from lordfast.data.images import load_fitted
from lordfast.diffusion import resolve_device
from lordfast.evaluation.config import EvaluateConfig
from lordfast.evaluation.inputs import ImageFolder
from lordfast.evaluation.measure import Unavailable, mean_entry
from lordfast.evaluation.pairs import Matches, compare_pair, match_names, summarise_pairs
from lordfast.evaluation.parts.base import Part, PartResult, without
from lordfast.evaluation.perceptual import SMALLEST, Lpips, Net
from lordfast.pixels import Uint8Image
from lordfast.training.progress import progress


def plan_pairs(config: EvaluateConfig, generated: ImageFolder, reference: ImageFolder) -> Part | None:
    """PSNR, SSIM and changes of the images whose names match; None where that is off, or auto and none match.

    Raises:
        ValueError: none match, though pairs are asked for or are all that is left to measure.
    """
    if config.paired == "off":
        return None
    matches = match_names(generated.records, reference.records)
    if not matches.pairs:
        if config.paired == "auto" and config.beyond_pairs:
            return None
        raise ValueError(
            f"paired: no image in {config.generated} has the name of one in {config.reference} (extensions aside), "
            f"for instance {generated.records[0].name} there and {reference.records[0].name} here"
        )

    def run() -> PartResult:
        rows = []
        for names, image, partner in _loaded(matches, "pairs"):
            rows.append({**names, **compare_pair(image, partner)})
        summary, caveats = summarise_pairs(rows, resamples=config.resamples, seed=config.seed)
        summary["unmatched_generated"] = [record.name for record in matches.only_ours]
        summary["unmatched_reference"] = [record.name for record in matches.only_theirs]
        return PartResult(summary, rows, caveats)

    return run


def plan_lpips(config: EvaluateConfig, net: Net, generated: ImageFolder, reference: ImageFolder) -> Part:
    """LPIPS of the images whose names match."""
    described = {"net": net}

    def run() -> PartResult:
        matches = match_names(generated.records, reference.records)
        try:
            if not matches.pairs:
                raise Unavailable("no generated image has the name of a reference image")
            distance = Lpips(net, resolve_device(config.device))
            rows = [{**names, "lpips": distance(image, partner)} for names, image, partner in _loaded(matches, "LPIPS")]
            there = [row["lpips"] for row in rows if row["lpips"] is not None]
            if not there:
                raise Unavailable(f"all images are smaller than {SMALLEST} pixels")
        except Unavailable as error:
            return without(described, ("lpips",), error)
        found = mean_entry(there, resamples=config.resamples, seed=config.seed)
        small = len(rows) - len(there)
        caveats = (
            [f"{small} of {len(rows)} pairs are smaller than {SMALLEST} pixels and have no LPIPS"] if small else []
        )
        return PartResult({**described, "lpips": found}, rows, caveats)

    return run


def _loaded(matches: Matches, label: str) -> Iterator[tuple[dict[str, str], Uint8Image, Uint8Image]]:
    """Both names of each pair, and its images, the reference as an attack cuts its input."""
    with progress(label, len(matches.pairs)) as advance:
        for ours, theirs in matches.pairs:
            image = load_image(ours.path)
            # A clean photograph meets its attacked centre crop.
            yield {"image": ours.name, "reference": theirs.name}, image, load_fitted(theirs.path, image.shape[:2])
            advance()

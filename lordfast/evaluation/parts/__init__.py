"""The parts of an evaluation: each checks its input first, and gives back what does the work."""

from lordfast.evaluation.parts.base import Part, PartResult
from lordfast.evaluation.parts.clip import plan_clip
from lordfast.evaluation.parts.denoising import plan_denoising
from lordfast.evaluation.parts.detection import plan_detection
from lordfast.evaluation.parts.dino import plan_dino
from lordfast.evaluation.parts.frequency import plan_frequency
from lordfast.evaluation.parts.identity import plan_identity
from lordfast.evaluation.parts.pairs import plan_lpips, plan_pairs
from lordfast.evaluation.parts.sets import plan_distribution

__all__ = [
    "Part",
    "PartResult",
    "plan_clip",
    "plan_denoising",
    "plan_detection",
    "plan_dino",
    "plan_distribution",
    "plan_frequency",
    "plan_identity",
    "plan_lpips",
    "plan_pairs",
]

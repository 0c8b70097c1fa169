"""What came out: distances and similarities of image sets, fidelity of pairs, how well lambda tells attacks from clean.

May import defense, attacks, training, diffusion, data and the adapter; imported by demo and the command line only.
"""

from lordfast.evaluation.clip import Clip, clip_iqa
from lordfast.evaluation.config import EvaluateConfig
from lordfast.evaluation.denoising import denoising_losses
from lordfast.evaluation.detection import auroc, compare_readings, read_gates
from lordfast.evaluation.distances import frechet_interval, kernel_interval
from lordfast.evaluation.distribution import frechet_distance, kernel_distance
from lordfast.evaluation.evaluate import run_evaluate
from lordfast.evaluation.features import VaeFeatures, extract, load_features
from lordfast.evaluation.frequency import high_frequencies, summarise_frequencies
from lordfast.evaluation.intervals import (
    Interval,
    auroc_interval,
    bootstrap_interval,
    mean_interval,
    student_interval,
    wilson_interval,
)
from lordfast.evaluation.measure import Unavailable
from lordfast.evaluation.pairs import compare_pair, match_names
from lordfast.evaluation.similarity import mean_cosine

__all__ = [
    "Clip",
    "EvaluateConfig",
    "Interval",
    "Unavailable",
    "VaeFeatures",
    "auroc",
    "auroc_interval",
    "bootstrap_interval",
    "clip_iqa",
    "compare_pair",
    "compare_readings",
    "denoising_losses",
    "extract",
    "frechet_distance",
    "frechet_interval",
    "high_frequencies",
    "kernel_distance",
    "kernel_interval",
    "load_features",
    "match_names",
    "mean_cosine",
    "mean_interval",
    "read_gates",
    "run_evaluate",
    "student_interval",
    "summarise_frequencies",
    "wilson_interval",
]

"""What came out: distances between image sets, fidelity of pairs, and how well lambda tells attacked from clean.

May import defense, attacks, training, diffusion, data and the adapter; imported by demo and the command line only.
"""

from lordfast.evaluation.config import EvaluateConfig
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
from lordfast.evaluation.pairs import compare_pair, match_names

__all__ = [
    "EvaluateConfig",
    "Interval",
    "VaeFeatures",
    "auroc",
    "auroc_interval",
    "bootstrap_interval",
    "compare_pair",
    "compare_readings",
    "extract",
    "frechet_distance",
    "frechet_interval",
    "high_frequencies",
    "kernel_distance",
    "kernel_interval",
    "load_features",
    "match_names",
    "mean_interval",
    "read_gates",
    "run_evaluate",
    "student_interval",
    "summarise_frequencies",
    "wilson_interval",
]

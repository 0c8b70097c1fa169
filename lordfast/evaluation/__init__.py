"""What came out: distances between image sets, fidelity of pairs, and how well lambda tells attacked from clean.

May import defense, attacks, training, diffusion, data and the adapter; imported by demo and the command line only.
"""

from lordfast.evaluation.config import EvaluateConfig
from lordfast.evaluation.detection import auroc, compare_readings, read_gates
from lordfast.evaluation.distribution import frechet_distance, kernel_distance
from lordfast.evaluation.evaluate import run_evaluate
from lordfast.evaluation.features import VaeFeatures, extract, load_features
from lordfast.evaluation.pairs import compare_pair, match_names

__all__ = [
    "EvaluateConfig",
    "VaeFeatures",
    "auroc",
    "compare_pair",
    "compare_readings",
    "extract",
    "frechet_distance",
    "kernel_distance",
    "load_features",
    "match_names",
    "read_gates",
    "run_evaluate",
]

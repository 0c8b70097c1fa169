"""How close the pictures of one set are to those of another, by the cosines of their embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lordfast.evaluation.intervals import Interval, bootstrap_interval
from lordfast.evaluation.measure import Measure, entry

Indices = npt.NDArray[Any]


def mean_cosine(
    generated: Tensor, reference: Tensor, *, resamples: int, seed: int, to_mean: bool = False
) -> tuple[Measure, npt.NDArray[np.float64]]:
    """Mean cosine of embeddings (N, D) and (M, D), each row of length 1, over all N M pairs.

    The pairs are far from independent: each picture is in many. So pictures are resampled, not pairs, and those of
    both sets: ``low`` and ``high`` say how far other generated and other reference pictures would move the mean. Where
    two methods are compared with the same reference, its share of that is common to both: ``low_given_reference`` and
    ``high_given_reference`` resample the generated pictures only. With one reference picture all four do. Cosines near
    1 scatter to one side: in simulations 91 % of the intervals held the true mean with 8 pictures a set, 94 % with 30.

    Args:
        resamples: of the bootstrap; 0 leaves the intervals out.
        to_mean: the cosine with the mean of the reference embeddings instead, as the identity score of
            Anti-DreamBooth (Van Le et al. 2023) has it.

    Returns:
        The entry, and the cosine of each generated picture, mean over the reference or with its mean, (N,).
    """
    ours, theirs = generated.numpy(), reference.numpy()

    def against(drawn: Indices) -> npt.NDArray[np.float64]:
        """(N,) with the drawn reference pictures."""
        mean = np.bincount(drawn.astype(np.int64), minlength=len(theirs)) @ theirs / len(drawn)
        length = float(np.linalg.norm(mean)) if to_mean else 1.0
        # Opposite embeddings have no mean direction.
        return ours @ mean / length if length > 1e-12 else np.zeros(len(ours))

    # As floats, which samples of `bootstrap_interval` are.
    every = np.arange(float(len(generated))), np.arange(float(len(reference)))
    rows = against(every[1])
    both, given = Interval(None, None), Interval(None, None)
    if resamples:
        given = bootstrap_interval(lambda drawn: float(drawn.mean()), rows, resamples=resamples, seed=seed)
        both = given
        if len(reference) > 1:
            both = bootstrap_interval(
                lambda mine, other: float(against(other)[mine.astype(np.int64)].mean()),
                *every,
                resamples=resamples,
                seed=seed,
            )
    more = {"reference": len(reference), "low_given_reference": given.low, "high_given_reference": given.high}
    return entry(float(rows.mean()), both, len(generated), **more), rows

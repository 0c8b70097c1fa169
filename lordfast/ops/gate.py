"""The gate's parameters, bundled."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Gate(NamedTuple):
    """The parameters of LoRD's gate, a two-layer MLP that reads the benign branch's output (Eq. 4).

    `gate_logit = w2 . act(w1 (s B A x) + b1) + b2`, lambda is its sigmoid.
    """

    w1: Tensor  # (H, N)
    b1: Tensor  # (H,)
    w2: Tensor  # (H,)
    b2: Tensor  # ()

"""The operations as the dispatcher calls them: find the case's configurations, run."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import backward, forward
from .cases import Case, backward_case, forward_case, qkv_case
from .trial import Trial
from .tuning import Tuner

TUNER = Tuner(Trial)


def refuses(case: Case) -> str | None:
    """Why no configuration computes this case correctly on its device, or None. Tunes where that wasn't done yet."""
    return TUNER.refusal(case)


def lord_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """y (..., N), gate_logit (...) or (batch,), u (..., r)."""
    return forward.lord_forward(TUNER.configs(forward_case(*args))["forward"], *args)


def lord_qkv_forward(*args: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Three y (..., N), gate_logit (...) or (batch,), and u (..., r)."""
    return forward.lord_qkv_forward(TUNER.configs(qkv_case(*args))["forward"], *args)


def lord_backward(*args: Any) -> list[Tensor]:
    """The gradients of those inputs that `needs` marks."""
    return backward.lord_backward(TUNER.configs(backward_case(*args)), *args)

"""`pgd_step`: one step of projected gradient descent on images."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from . import schema
from .checks import check_option, check_shape, check_tensor
from .dispatch import forced_backend

Norm = Literal["linf", "l2"]


def pgd_step(
    x_adv: Tensor,
    x_orig: Tensor,
    grad: Tensor,
    *,
    step_size: float,
    eps: float,
    low: float = -1.0,
    high: float = 1.0,
    norm: Norm = "linf",
    direction: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """One step along the gradient, back into the ball around the original and into the pixel range (LoRD, Eq. 6).

        linf: clamp(clamp(x_adv + direction * step_size * sign(grad), x_orig - eps, x_orig + eps), low, high)
        l2:   d = x_adv + direction * step_size * grad / ||grad|| - x_orig
              clamp(x_orig + d * min(1, eps / ||d||), low, high)

    Args:
        x_adv: (batch, ...), the current iterate; float16, bfloat16, float32 or float64.
        x_orig: the original images, same shape, dtype and device.
        grad: the gradient of the loss at x_adv, same shape, dtype and device. Where it is NaN (linf), or where a
            sample's gradient has a norm of zero or not finite (l2), nothing is added.
        step_size: alpha, at least 0, in the units of x (for images in [-1, 1], twice the number in [0, 1] pixels).
        eps: the radius of the ball, at least 0, in the same units; for l2 the norm is taken over each sample.
        low, high: the range of pixels.
        norm: "linf" or "l2".
        direction: +1 ascends the loss (untargeted), -1 descends it (targeted).
        out: where to write the result, same shape, dtype and device; may be x_adv itself. None makes a new tensor.

    Returns:
        The next iterate, detached from the graph; `out` where one was given. Computed in float32 or wider and rounded
        to the dtype once: in float16 and bfloat16 it can leave the ball by that rounding.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong dtype.
        ValueError: a shape, device or number is wrong, or the forced backend can't take the case.
    """
    _check_numbers(step_size, eps, low, high, norm, direction)
    check_tensor("x_adv", x_adv)
    if x_adv.ndim == 0:
        raise ValueError("x_adv has shape (); expected (batch, ...), one dimension or more")
    for name, t in (("x_orig", x_orig), ("grad", grad), ("out", x_adv if out is None else out)):
        check_tensor(name, t)
        check_shape(name, t, x_adv.shape, "the shape of x_adv")
        if t.dtype != x_adv.dtype:
            raise TypeError(f"{name} has dtype {t.dtype}; expected x_adv's dtype, {x_adv.dtype}")
        if t.device != x_adv.device:
            raise ValueError(f"{name} is on {t.device}; expected x_adv's device, {x_adv.device}")
    with torch.no_grad():
        x_next = torch.empty_like(x_adv, memory_format=torch.contiguous_format) if out is None else out
        numbers = (float(step_size), float(eps), float(low), float(high), norm, int(direction))
        schema.pgd_step(x_adv, x_orig, grad, x_next, *numbers, forced_backend(None))
    return x_next


def _check_numbers(step_size: float, eps: float, low: float, high: float, norm: str, direction: int) -> None:
    check_option("norm", norm, ("linf", "l2"))
    check_option("direction", direction, (1, -1))
    for name, value in (("step_size", step_size), ("eps", eps)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; expected a finite number of at least 0")
    if not low < high:
        raise ValueError(f"low is {low} and high is {high}; expected low < high")

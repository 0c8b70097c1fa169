"""What a backend is: a name, a rank among the others, and a kernel for each operation it knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


def never_refuses(*args: Any) -> str | None:
    """The `refuses` of a kernel that takes every case."""
    return None


@dataclass(frozen=True)
class Kernel:
    """One operation of one backend.

    `run` and `refuses` take the operation's arguments as its schema lists them, without the final `backend`.
    `refuses` returns why this case can't be taken, or None; it must be cheap, it runs at every call.
    """

    run: Callable[..., Any]
    refuses: Callable[..., str | None] = never_refuses


@dataclass(frozen=True)
class Backend:
    """A set of kernels by operation name (`lord_forward`, `lord_backward`, `pgd_step`, ...), any subset of them.

    `missing` returns why the whole backend can't be used in this process, or None. `priority`: the highest is tried
    first where nothing was measured. `devices`: the device types that it is chosen for unless forced, None for all.
    """

    name: str
    priority: int
    missing: Callable[[], str | None]
    kernels: Mapping[str, Kernel] = field(default_factory=dict)
    devices: tuple[str, ...] | None = None


def first_tensor(args: tuple[Any, ...]) -> Tensor:
    """The first tensor among an operation's arguments; some of them can be None."""
    return next(a for a in args if isinstance(a, Tensor))


def by_device(**kernels: Kernel) -> Kernel:
    """One kernel made of several, by the type of the device that the arguments are on."""

    def run(*args: Any) -> Any:
        return kernels[first_tensor(args).device.type].run(*args)

    def refuses(*args: Any) -> str | None:
        device = first_tensor(args).device
        kernel = kernels.get(device.type)
        if kernel is None:
            return f"it has a kernel for {' and '.join(kernels)} tensors only, these are on {device}"
        return kernel.refuses(*args)

    return Kernel(run, refuses)

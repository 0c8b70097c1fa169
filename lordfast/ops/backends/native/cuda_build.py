"""What the extension's CUDA kernels can run on: how it was built, and for which devices."""

from __future__ import annotations

import re
from functools import cache

import torch

from lordfast.ops import _native


def why_not_on(device: torch.device) -> str | None:
    """Why this build's CUDA kernels can't run on `device`, or None."""
    return _why_not(torch.cuda.current_device() if device.index is None else device.index)


def queue_of(device: torch.device) -> tuple[int, int]:
    """The index of a device and its current stream, as the extension takes them."""
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream


def covers(architectures: list[str], capability: tuple[int, int]) -> bool:
    """Whether code for `architectures`, in CMake's notation, runs on a device of this compute capability.

    Machine code ("80-real") runs on its own capability and on later ones of the same major version, that with a letter
    ("90a-real") on its own alone; PTX ("90-virtual") on its own and on all later ones; "80" is both.
    """
    for architecture in architectures:
        found = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", architecture)
        if found is None:
            continue
        own, letter, kind = (int(found[1]), int(found[2])), found[3], found[4]
        if own == capability:
            return True
        if letter or own > capability:
            continue
        if kind != "-real" or own[0] == capability[0]:
            return True
    return False


@cache
def _why_not(index: int) -> str | None:
    built = _native.C.build_info()["cuda"]
    if built["reason"]:
        return f"its CUDA part is missing: {built['reason']}"
    capability = torch.cuda.get_device_capability(index)
    if not covers(built["architectures"], capability):
        names = ", ".join(built["architectures"])
        return f"it was built for {names}, cuda:{index} has compute capability {capability[0]}.{capability[1]}"
    return None

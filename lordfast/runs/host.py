"""The machine that a run is on: its devices, and the environment variables that change what libraries compute.

Stands below everything but torch and the files at the top.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# What `accelerate launch` and a cluster's job scripts set for Accelerate, and Transformers reads too.
_LAUNCHER = ("ACCELERATE_", "FSDP_")
# None of these holds a secret; a variable that may (HF_TOKEN, WANDB_API_KEY) begins otherwise.
_RECORDED = (
    *_LAUNCHER,
    "LORDFAST_",
    "TORCH",
    "PYTORCH_",
    "CUDA_",
    "CUBLAS_",
    "CUDNN_",
    "NVIDIA_TF32_OVERRIDE",
    "NCCL_",
    "OMP_",
    "MKL_",
    "ATEN_",
    "ONEDNN_",
    "DNNL_",
    "KMP_",
    "TRITON_",
    "XFORMERS_",
    "DIFFUSERS_",
    "USE_PEFT_BACKEND",
)


def resolve_device(device: str) -> torch.device:
    """``auto`` is CUDA where there is one, else CPU; anything else is what `torch.device` takes and is there.

    Raises:
        ValueError: the device is unknown, or not on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"device: {device!r} is no torch device; expected auto, cpu, cuda or cuda:N") from error
    there = _count(resolved.type)
    if (resolved.index or 0) >= there:
        kind = resolved.type.upper() if resolved.type in ("cpu", "cuda") else resolved.type
        raise ValueError(
            f"device: {device!r} was asked for, but torch {torch.__version__} sees {there} {kind} "
            f"device{'' if there == 1 else 's'}; expected auto, cpu, cuda or cuda:N"
        )
    return resolved


def _count(kind: str) -> int:
    """How many devices of a kind there are to compute on."""
    if kind in ("cpu", "mps"):
        return int(kind == "cpu" or torch.backends.mps.is_available())
    if kind == "cuda":
        return torch.cuda.device_count()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.accelerator.device_count() if accelerator is not None and accelerator.type == kind else 0


@contextmanager
def without_launcher_variables() -> Iterator[None]:
    """Accelerate and Transformers see nothing of what a launcher set for them: a run's config alone decides.

    How many processes there are and which one this is (``RANK``, ``WORLD_SIZE``, ...) stays.
    """
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_LAUNCHER)}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(_LAUNCHER)]:
            del os.environ[name]
        os.environ.update(before)


def recorded_variables() -> dict[str, str]:
    """The environment variables that may change what is computed, for a run's environment.json."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(_RECORDED)}

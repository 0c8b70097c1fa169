"""One process or several: the accelerator of a run, and work that only the main process does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch

from lordfast.runs.host import without_launcher_variables
from lordfast.training.config import RunConfig
from lordfast.training.interrupt import Interrupted
from lordfast.training.run import RunFolder

T = TypeVar("T")

FSDP_FLAG = "ACCELERATE_USE_FSDP"
"""Set by ``accelerate launch --use_fsdp``."""
PATIENCE = timedelta(days=1)
"""How long a process waits in a collective for the others."""


def make_accelerator(dtype: str, device: torch.device, loss_scale: float | None = None) -> Any:
    """An `accelerate.Accelerator` for `dtype` on `device`, whatever an earlier one in this process used.

    Its ``device`` is where the model belongs: under torchrun each process has a GPU of its own.

    Args:
        loss_scale: at which fp16's gradient scaling begins; the library's own, which takes some steps to settle, when
            left out.

    Raises:
        ValueError: fp16 training on a CPU, which has no fp16 gradient scaling; a device that Accelerate does not use.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradScalerKwargs, InitProcessGroupKwargs

    if dtype == "fp16" and device.type == "cpu":
        raise ValueError("dtype: fp16 training needs a GPU; expected fp32 or bf16 on the CPU")
    if device.type == "cuda" and device.index is not None:
        # accelerate takes the current device.
        torch.cuda.set_device(device)
    # The process group of several processes has to outlive this; a lone process may change its device.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    # While the main process draws class images, or loads what others don't need, these wait in a collective, which NCCL
    # gives up after ten minutes. Processes that died are torchrun's to notice.
    handlers: list[Any] = [InitProcessGroupKwargs(timeout=PATIENCE)]
    if loss_scale is not None:
        handlers.append(GradScalerKwargs(init_scale=loss_scale))
    precision = "no" if dtype == "fp32" else dtype
    # FSDP too: lordfast shards by itself, see fsdp.py; accelerate would put adapters and the base into one group.
    with without_launcher_variables():
        accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu", kwargs_handlers=handlers)
    if accelerator.device.type != device.type:
        raise ValueError(f"device: {device} was asked for, but training here runs on {accelerator.device}")
    return accelerator


def on_main(accelerator: Any, work: Callable[[], T]) -> T:
    """What `work` returns, on every process; only the main one calls it, while the others wait.

    Raises:
        ValueError, OSError, Interrupted: raised by `work`, and then on every process, so that none waits for ever.
    """
    if accelerator.num_processes == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except (ValueError, OSError, Interrupted) as error:
            outcome[1] = error
    result, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    return result


def on_all(accelerator: Any, work: Callable[[], T]) -> list[T]:
    """What `work` returns on each process, by rank, on every process.

    Raises:
        ValueError, OSError, Interrupted: raised by `work` anywhere, and then on every process; what is no interruption
            goes first.
    """
    if accelerator.num_processes == 1:
        return [work()]
    from accelerate.utils import gather_object

    outcome: tuple[T | None, Exception | None]
    try:
        outcome = work(), None
    except (ValueError, OSError, Interrupted) as error:
        outcome = None, error
    found = gather_object([outcome])
    failures = [failure for _, failure in found if failure is not None]
    if failures:
        raise min(failures, key=lambda failure: isinstance(failure, Interrupted))
    return [result for result, _ in found]


def open_run(
    config: RunConfig, command: str, accelerator: Any, stem: str = "metrics", grows: bool = False
) -> RunFolder:
    """`RunFolder.open` once for all processes; only the main one writes into what comes back."""
    # Other shares of the run may be at work.
    alone = getattr(config, "share", None) is None
    on_main(accelerator, lambda: RunFolder.open(config, command, alone, grows).path)
    return RunFolder(Path(config.out), write=accelerator.is_main_process, stem=stem)

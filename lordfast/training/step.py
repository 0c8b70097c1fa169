"""One training step: its examples, forward, backward and update, and nothing that makes the host wait."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lordfast.ranges import phase
from lordfast.training.ahead import made_ahead, pinned, to_device
from lordfast.training.later import Later
from lordfast.training.seeds import derived_generator

if TYPE_CHECKING:
    from lordfast.training.loop import Batches, Preparation, TrainingConfig

STOP = "stop requested"
"""Under which a row says that a process was asked to stop."""


def effective_batch(config: TrainingConfig, processes: int) -> int:
    """Examples per optimiser step, of all processes."""
    return config.batch_size * config.accumulate * processes


@dataclass(frozen=True)
class Row:
    """The metrics of a step, most of them still on the device."""

    step: int
    values: Later
    lr: float
    may_overflow: bool

    def read(self) -> dict[str, float]:
        """The metrics.

        Raises:
            ValueError: the loss or the gradient is not finite.
        """
        found = self.values.read()
        norm, stop = found.pop("grad_norm"), found.pop(STOP)
        row = {**found, "lr": self.lr, "grad_norm": norm, STOP: stop}
        # The scaler of fp16 leaves out steps whose gradient overflowed, so there it may.
        for name in ("loss",) if self.may_overflow else ("loss", "grad_norm"):
            if not math.isfinite(row[name]):
                raise ValueError(
                    f"{name}: became {row[name]} at step {self.step}; a lower lr or dtype fp32 usually helps"
                )
        return row


class Worker:
    """One step after the other, without a look at what comes out."""

    def __init__(
        self,
        wrapped: nn.Module,
        config: TrainingConfig,
        accelerator: Any,
        optimizer: Any,
        schedule: Any,
        trainable: list[nn.Parameter],
    ) -> None:
        self._wrapped, self._config, self._accelerator = wrapped, config, accelerator
        self._optimizer, self._schedule, self._trainable = optimizer, schedule, trainable
        self._broken = torch.zeros((), device=accelerator.device)

    def step(self, step: int, data: Iterator[dict[str, Any]], stop: bool) -> Row:
        """Forward, backward, update; the row holds also whether a process has `stop`."""
        accelerator, accumulate = self._accelerator, self._config.accumulate
        sums: dict[str, Tensor] = {STOP: torch.full((), float(stop), device=accelerator.device)}
        for micro in range(accumulate):
            with phase("data"):
                batch = to_device(next(data), accelerator.device)
            sync = micro + 1 == accumulate
            with contextlib.nullcontext() if sync else accelerator.no_sync(self._wrapped):
                with phase("forward"):
                    out = self._wrapped(**batch)
                with phase("backward"):
                    accelerator.backward(out["loss"] / accumulate)
            for name, value in out.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / accumulate
        # An infinite threshold measures the norm and clips nothing.
        with phase("clip"):
            norm = accelerator.clip_grad_norm_(self._trainable, self._config.clip_norm or math.inf)
        sums = accelerator.reduce(sums, reduction="mean")
        if accelerator.scaler is None:
            # AdamW's kernel reads this flag as it reads that of a gradient scaler, and leaves the weights alone.
            finite = torch.isfinite(norm) & torch.isfinite(sums["loss"])
            self._broken = torch.maximum(self._broken, 1 - finite.float())
            self._optimizer.optimizer.found_inf = self._broken
        row = Row(
            step + 1,
            Later({**sums, "grad_norm": norm}),
            self._schedule.get_last_lr()[0],
            accelerator.scaler is not None,
        )
        with phase("optimizer"):
            self._optimizer.step()
            self._schedule.step()
            self._optimizer.zero_grad()
        return row


def batches_of(
    batches: Batches, config: TrainingConfig, accelerator: Any, steps: range, prepare: Preparation | None = None
) -> Generator[dict[str, Any], None, None]:
    """The batches of this process, `config.accumulate` a step.

    Args:
        prepare: called before the first of these steps and before each one that it is due at, when the step before has
            been made; no batch is made ahead of it.
    """
    world, rank = accelerator.num_processes, accelerator.process_index
    effective = effective_batch(config, world)

    def make(which: tuple[int, int]) -> dict[str, Any]:
        step, micro = which
        first = (micro * world + rank) * config.batch_size
        slots = range(first, first + config.batch_size)
        indices = [_example(step * effective + slot, len(batches), config.seed) for slot in slots]
        generators = [derived_generator(config.seed, "draw", step, slot) for slot in slots]
        return pinned(batches(indices, generators), accelerator.device)

    due = [] if prepare is None else [step for step in steps[1:] if prepare.due(step)]
    for start, stop in itertools.pairwise([*steps[:1], *due, steps.stop]):
        if prepare is not None:
            # A step draws the same, whether it was prepared in this session or an earlier one.
            with torch.random.fork_rng(devices=[]):
                prepare(start)
        yield from made_ahead(
            make, ((step, micro) for step in range(start, stop) for micro in range(config.accumulate))
        )


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> list[int]:
    return torch.randperm(size, generator=derived_generator(seed, "epoch", epoch)).tolist()


def _example(n: int, size: int, seed: int) -> int:
    epoch, position = divmod(n, size)
    return _permutation(seed, epoch, size)[position]

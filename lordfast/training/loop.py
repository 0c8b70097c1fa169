"""The training loop: it owns steps, precision, processes, checkpoints and logging, and nothing about the loss."""

from __future__ import annotations

import contextlib
import logging
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lordfast.ranges import phase
from lordfast.runs.host import without_launcher_variables
from lordfast.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from lordfast.training.config import RunConfig, check_choices
from lordfast.training.interrupt import Interrupted, StopOnSignal
from lordfast.training.progress import progress
from lordfast.training.run import RunFolder
from lordfast.training.seeds import derive_seed
from lordfast.training.step import STOP, Row, Worker, batches_of, effective_batch

logger = logging.getLogger(__name__)

Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"]


@dataclass(kw_only=True)
class TrainingConfig(RunConfig):
    """What the loop itself needs."""

    steps: int = 1000
    """Optimiser steps."""
    epochs: int | None = None
    """Passes over the data; decides instead of --steps when given."""
    batch_size: int = 4
    """Examples per forward and process."""
    accumulate: int = 1
    """Forwards per optimiser step: the effective batch is batch_size x accumulate x processes."""
    lr: float = 1e-4
    """Peak learning rate of AdamW."""
    lr_schedule: Schedule = "constant"
    """How the learning rate moves over the run."""
    warmup_steps: int = 0
    """Steps of linear warm-up, for every schedule but constant."""
    weight_decay: float = 1e-2
    """AdamW's decoupled weight decay."""
    adam_beta2: float = 0.999
    """AdamW's decay of the squared gradients' average."""
    clip_norm: float = 1.0
    """Clip the gradient to this L2 norm; 0 leaves it alone."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, same gradients."""
    auto_checkpointing: bool = True
    """Turn that on where, by an estimate, a step would not fit into the GPU's free memory without it."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the last step always leaves one."""
    keep_checkpoints: int = 2
    """How many checkpoints stay on disk."""
    tensorboard: bool = True
    """Write TensorBoard curves where tensorboard is installed."""


class Batches(Protocol):
    """Where the loop gets its data: `indices` choose the examples, one generator an example everything drawn."""

    def __len__(self) -> int: ...

    def __call__(self, indices: Sequence[int], generators: Sequence[torch.Generator]) -> dict[str, Any]: ...


class Preparation(Protocol):
    """Changes the data before some of the steps."""

    def due(self, step: int) -> bool:
        """Whether the data change right before `step`, counted from 0."""
        ...

    def __call__(self, step: int) -> None:
        """Have the data as `step` wants them: where it is due, and where a resumed run begins."""
        ...


class Stateful(Protocol):
    """What a checkpoint keeps besides weights and optimiser, such as an average of the weights."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class Objective(nn.Module):
    """A loss over a batch: ``forward(**batch) -> {"loss": scalar, other metrics}``.

    It holds the modules it trains as submodules, so that wrapping it for several processes wraps them.
    """

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        raise NotImplementedError

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for the optimiser; by default everything that requires a gradient, at `lr`."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": lr}]


def check_training(config: TrainingConfig) -> None:
    """Raise ValueError for settings no loop can run with."""
    check_choices(config)
    for name in ("steps", "epochs", "batch_size", "accumulate", "checkpoint_every", "keep_checkpoints"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    for name in ("lr", "weight_decay", "clip_norm", "warmup_steps"):
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name}: expected 0 or more, got {getattr(config, name)}")
    if not 0 <= config.adam_beta2 < 1:
        raise ValueError(f"adam_beta2: expected at least 0 and less than 1, got {config.adam_beta2}")
    if config.warmup_steps and config.lr_schedule == "constant":
        raise ValueError(
            f"warmup_steps: lr_schedule constant has no warm-up, got {config.warmup_steps}; expected 0, or "
            "lr_schedule constant_with_warmup"
        )


def total_steps(config: TrainingConfig, examples: int, processes: int) -> int:
    """Optimiser steps of the whole run."""
    if config.epochs is None:
        return config.steps
    return -(-examples * config.epochs // effective_batch(config, processes))


# Accelerate reads some of them when it prepares the model, and later.
@without_launcher_variables()
def train(
    objective: Objective,
    batches: Batches,
    config: TrainingConfig,
    accelerator: Any,
    *,
    run: RunFolder | None = None,
    description: str = "training",
    on_step: Callable[[int, bool], None] | None = None,
    after_update: Callable[[], None] | None = None,
    prepare: Preparation | None = None,
    extras: Mapping[str, Stateful] = types.MappingProxyType({}),
) -> dict[str, Any]:
    """Train whatever in `objective` requires a gradient.

    Step k draws example n = k * effective batch + slot from permutation n // len(batches) of the data, with a
    generator seeded by (seed, k, slot): the result depends neither on interruptions nor on how the effective batch
    is split over processes and accumulation.

    The host never waits for the device within a step: batches are made ahead in a thread, and the metrics of a step
    are read when the next one has been handed in, or a checkpoint is due.

    Args:
        run: where checkpoints and metrics go; None trains in memory (attack surrogates).
        on_step: called on every process with (k, whether it is the last) after step k, counted from 1, and after its
            checkpoint.
        after_update: called on every process after the optimiser's update and before the checkpoint.
        prepare: changes the data before some steps, with the model as it is then; a checkpoint is saved before it does.
        extras: name -> what checkpoints keep and a resumed run restores; `after_update` may change it.

    Returns:
        ``steps``, ``loss`` (mean over the last tenth of the steps), ``seconds`` of this session.

    Raises:
        Interrupted: SIGINT or SIGTERM came; a checkpoint of the last finished step lies in `run`.
        ValueError: the loss or the gradient became NaN or infinite; the message names the step, whose update, like
            any later one, the weights have not taken. The last update before a checkpoint made weights NaN or
            infinite; no checkpoint holds them.
    """
    from diffusers.optimization import get_scheduler

    check_training(config)
    steps = total_steps(config, len(batches), accelerator.num_processes)
    optimizer = torch.optim.AdamW(
        objective.parameter_groups(config.lr),
        lr=config.lr,
        betas=(0.9, config.adam_beta2),
        weight_decay=config.weight_decay,
        # It leaves out an update by a flag on the device, which nobody has to read first.
        fused=True,
    )
    schedule = get_scheduler(
        config.lr_schedule, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=steps
    )
    trainable = {name: value for name, value in objective.named_parameters() if value.requires_grad}
    wrapped, optimizer = accelerator.prepare(objective, optimizer)

    # Which examples a step draws follows from these two.
    drawn_from = {"examples": len(batches), "effective_batch": effective_batch(config, accelerator.num_processes)}
    done = 0
    found = latest_checkpoint(run.checkpoints) if run is not None and config.resume else None
    if found is not None:
        done = _restore(found, trainable, optimizer, schedule, accelerator, drawn_from, extras)
    losses = [row["loss"] for row in run.rewind(done)] if run is not None else []
    started = time.perf_counter()
    show = accelerator.is_main_process and run is not None
    with (
        contextlib.closing(_Board(run if config.tensorboard and accelerator.is_main_process else None, done)) as board,
        StopOnSignal() as stop,
        progress(description, steps, start=done, show=show) as advance,
        contextlib.closing(batches_of(batches, config, accelerator, range(done, steps), prepare)) as data,
    ):
        worker = Worker(wrapped, config, accelerator, optimizer, schedule, list(trainable.values()))
        waiting: Row | None = None

        def record(found: Row) -> bool:
            """Keep the metrics of a step; whether a process was asked to stop in it."""
            with phase("read metrics"):
                row = found.read()
            stopped = row.pop(STOP) > 0
            losses.append(row["loss"])
            if run is not None:
                run.log({"step": found.step, **row})
            board.log(found.step, row)
            advance(note=f"loss {row['loss']:.4f}")
            return stopped

        for step in range(done, steps):
            # Dropout is the only thing left that draws from the global generator.
            torch.manual_seed(derive_seed(config.seed, "step", step, accelerator.process_index))
            latest = worker.step(step, data, stop.requested)
            if after_update is not None:
                after_update()
            # With several processes, all have to read the request in the same row.
            halt = waiting is not None and record(waiting)
            halt = halt or (stop.requested and accelerator.num_processes == 1)
            waiting = latest
            last = step + 1 == steps
            due = (step + 1) % config.checkpoint_every == 0 or (prepare is not None and prepare.due(step + 1))
            save = run is not None and (last or halt or due)
            if save or last or halt:
                halt = record(waiting) or halt
                waiting = None
            if save or last:
                _check_finite(trainable, step + 1)
            if run is not None and run.write and save:
                state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), **drawn_from}
                if accelerator.scaler is not None:
                    state["scaler"] = accelerator.scaler.state_dict()
                if extras:
                    state["extras"] = {name: value.state_dict() for name, value in extras.items()}
                with phase("checkpoint"):
                    save_checkpoint(run.checkpoints, step + 1, trainable, state, config.keep_checkpoints)
            if on_step is not None:
                on_step(step + 1, last)
            if halt and not last:
                # A process that leaves early makes the launcher kill the one that is still writing.
                accelerator.wait_for_everyone()
                raise Interrupted(f"after step {step + 1} of {steps}")
    tail = losses[-max(1, steps // 10) :]
    return {
        "steps": steps,
        "loss": sum(tail) / len(tail) if tail else None,
        "seconds": round(time.perf_counter() - started, 2),
    }


def _check_finite(weights: Mapping[str, Tensor], step: int) -> None:
    """Raise ValueError where the last update made weights NaN or infinite, of which its loss says nothing yet."""
    if not torch.stack([value.detach().isfinite().all() for value in weights.values()]).all():
        name = next(name for name, value in weights.items() if not value.detach().isfinite().all())
        raise ValueError(f"step {step}: its update made weights NaN or infinite, such as {name}; expected a smaller lr")


def _restore(
    checkpoint: Path,
    trainable: dict[str, nn.Parameter],
    optimizer: Any,
    schedule: Any,
    accelerator: Any,
    drawn_from: dict[str, int],
    extras: Mapping[str, Stateful],
) -> int:
    step, weights, state = load_checkpoint(checkpoint)
    for name, count in drawn_from.items():
        if state[name] != count:
            raise ValueError(
                f"resume: {checkpoint} was trained with {name} {state[name]}, now it is {count}; expected the same "
                "data and the same number of processes"
            )
    if weights.keys() != trainable.keys():
        odd = sorted(weights.keys() ^ trainable.keys())
        raise ValueError(f"resume: {checkpoint} holds other weights than this run trains, such as {odd[0]}")
    with torch.no_grad():
        for name, value in weights.items():
            trainable[name].copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    for group in optimizer.param_groups:
        # How an earlier version of this loop computed the update is in its checkpoints, too.
        group["fused"], group["foreach"] = True, None
    schedule.load_state_dict(state["schedule"])
    if accelerator.scaler is not None and "scaler" in state:
        accelerator.scaler.load_state_dict(state["scaler"])
    for name, extra in extras.items():
        extra.load_state_dict(state["extras"][name])
    return step


class _Board:
    """TensorBoard curves of a run, from step `done` on; silent without a run or without tensorboard."""

    def __init__(self, run: RunFolder | None, done: int) -> None:
        self._writer = None
        if run is not None:
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                try:
                    self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=done + 1)
                except UnicodeEncodeError:
                    logger.warning("%s: no TensorBoard curves, which need a path that is UTF-8", run.path)

    def log(self, step: int, row: dict[str, float]) -> None:
        if self._writer is not None:
            for name, value in row.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

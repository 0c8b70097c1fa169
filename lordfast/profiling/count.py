"""What a piece of work computes and moves, counted operation by operation as it runs: FLOPs, bytes, and waits."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lordfast.ranges import open_phases, recording

from .ceilings import Ceilings
from .flops import operation_flops
from .layers import Direction, Layer, Tracker, find_layers, tracking

Phases = tuple[str, ...]

# They move nothing: memory is asked for, or given another shape without a trace of that in the schema.
_NOTHING = frozenset(
    [
        "empty",
        "empty_like",
        "empty_strided",
        "empty_permuted",
        "new_empty",
        "new_empty_strided",
        "set_",
        "resize_",
        "_unsafe_view",
        "lift_fresh",
    ]
)
_READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal")


@dataclass
class Work:
    """FLOPs, bytes and operations of some calls."""

    flops: int = 0
    bytes: int = 0
    operations: int = 0

    def add(self, other: Work) -> None:
        """Add those of other calls."""
        self.flops += other.flops
        self.bytes += other.bytes
        self.operations += other.operations


@dataclass(frozen=True)
class Place:
    """Where an operation ran: under which phases, for which layer (None outside of all), in which pass."""

    phases: Phases
    layer: Layer | None
    direction: Direction


@dataclass
class Counted:
    """What a count found.

    Attributes:
        work: by place.
        waits: how often the host read a value off the device, by (phases, operation, line of code).
    """

    work: dict[Place, Work] = field(default_factory=dict)
    waits: Counter[tuple[Phases, str, str]] = field(default_factory=Counter)


class _Counting(TorchDispatchMode):
    def __init__(self, tracker: Tracker, counted: Counted) -> None:
        super().__init__()
        self._tracker, self._counted = tracker, counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        phases = open_phases()
        work = Work(operation_flops(func, args, kwargs, out), operation_bytes(func, args, kwargs, out), 1)
        if work.flops or work.bytes:
            place = Place(phases, *self._tracker.current())
            self._counted.work.setdefault(place, Work()).add(work)
        if _waits(func, args, kwargs, out):
            self._counted.waits[phases, func.overloadpacket.__name__, call_site()] += 1
        return out


@contextmanager
def counting(layers: Mapping[nn.Module, Layer]) -> Iterator[Counted]:
    """Count everything that runs inside, eagerly: what torch.compile has compiled runs uncompiled here."""
    counted = Counted()
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(recording())
        tracker = stack.enter_context(tracking(layers))
        stack.enter_context(_Counting(tracker, counted))
        yield counted


def operation_bytes(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """Bytes that one call must move: each input read once, each output written once; none for views and allocations.

    Of an expanded tensor only what lies in memory counts.
    """
    name = op.overloadpacket.__name__
    if name in _NOTHING or _is_view(op):
        return 0
    return sum(tensor_bytes(t) for t in tree_leaves((args, dict(kwargs), out)) if isinstance(t, Tensor))


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements in memory."""
    elements = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return 0 if tensor.numel() == 0 else elements * tensor.element_size()


def _is_view(op: Any) -> bool:
    returns = op._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _waits(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> bool:
    """Whether the host has to wait for a device, or would have to where the tensors are on one."""
    name = op.overloadpacket.__name__
    if name in _READS:
        return True
    if name in ("_to_copy", "copy_") and isinstance(out, Tensor):
        source = args[1] if name == "copy_" else args[0]
        blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        return source.device.type != "cpu" and out.device.type == "cpu" and blocking
    return False


_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)
_PACKAGE = str(Path(__file__).parents[1])


def call_site() -> str:
    """The line outside of torch that runs now, and the line of lordfast's that led to it where that is another."""
    frame: Any = sys._getframe(1)
    first = None
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH, _HERE, "<")) and Path(file).name != "contextlib.py":
            line = f"{'/'.join(Path(file).parts[-3:])}:{frame.f_lineno} {frame.f_code.co_name}"
            if file.startswith(_PACKAGE):
                return line if first is None else f"{first}, called from {line}"
            first = first or line
        frame = frame.f_back
    return first or "torch"


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one call.

    Attributes:
        forward, backward: of the passes; their sum, `total`, is what the model's gradient takes, whoever computes it.
        recomputed: of what gradient checkpointing computes a second time, which is in neither.
        by_module: forward and backward by layer, named by its path, ``unet.mid_block.resnets.0``; "" for the rest.
    """

    forward: int
    backward: int
    recomputed: int
    by_module: dict[str, int]

    @property
    def total(self) -> int:
        return self.forward + self.backward

    def of(self, module: str) -> int:
        """FLOPs of the layers in `module`, such as ``unet`` or ``vae.encoder``."""
        return sum(flops for name, flops in self.by_module.items() if f"{name}.".startswith(f"{module}."))


def count_flops(run: Callable[[], Any], parts: Mapping[str, nn.Module] | None = None) -> FlopCount:
    """Call `run` once, eagerly, and count: matrix products, convolutions, attention, lordfast's own operations.

    Args:
        run: anything, a backward pass included.
        parts: modules by name, such as ``{"unet": model.unet, "vae": model.vae}``, for `FlopCount.by_module`.
    """
    with counting(find_layers(parts or {})) as counted:
        run()
    sums: Counter[Direction] = Counter()
    by_module: Counter[str] = Counter()
    for place, work in counted.work.items():
        sums[place.direction] += work.flops
        if place.direction != "recompute" and work.flops:
            by_module["" if place.layer is None else place.layer.name] += work.flops
    return FlopCount(sums["forward"], sums["backward"], sums["recompute"], dict(by_module))


def mfu(flops: float, seconds: float, ceilings: Ceilings, dtype: str) -> float:
    """Model FLOPs utilisation: the share of the measured matrix-product rate in `dtype` that `flops` in `seconds` is.

    Raises:
        ValueError: no time, or a dtype whose rate was not measured.
    """
    if not seconds > 0:
        raise ValueError(f"seconds: expected more than 0, got {seconds}")
    if dtype not in ceilings.gflops:
        raise ValueError(f"dtype: expected one of {', '.join(ceilings.gflops)}, whose rate was measured, got {dtype!r}")
    return flops / seconds / 1e9 / ceilings.gflops[dtype]

"""The benchmark of `lord_linear`: a LoRD layer against the bare one, the eager formula and a LoRA of the same size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lordfast.ops import Gate, available_backends, lord_linear

from . import costs
from .accuracy import Outputs
from .baselines import compiled, eager_lord_linear, peft_loras
from .cases import LinearCase
from .machine import DTYPES, cache_bytes
from .measure import Variant, measure
from .results import Row
from .rounds import Effort
from .stopwatch import sets_needed

FORWARD, BOTH = "forward", "forward+backward"
Lord = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LinearOptions:
    """What the layers have in common; r, H and the gate as in `lordfast.LordConfig`, alpha 8 r as in the paper."""

    r: int = 4
    hidden: int = 64
    granularity: str = "token"
    activation: str = "silu"
    scaling: float = 8.0
    compile: bool = True
    seed: int = 0


@dataclass
class LinearSet:
    """The inputs of one call: a layer of its own, with its LoRD, its LoRA and the gradient that reaches it."""

    x: Tensor  # (batch, tokens, K)
    weight: Tensor  # (N, K), frozen
    bias: Tensor  # (N,), frozen
    lord_A: Tensor  # (r, K), this and the following fp32
    lord_B: Tensor  # (N, r)
    lord_B_adv: Tensor  # (N, r)
    gate: Gate
    grad_y: Tensor  # (batch, tokens, N)
    lora: nn.Module

    lora_parameters: dict[str, Tensor] = field(init=False)
    lord: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        # Looked up here and not inside the clock.
        self.lora_parameters = {name: p for name, p in self.lora.named_parameters() if p.requires_grad}
        small = {"lord_A": self.lord_A, "lord_B": self.lord_B, "lord_B_adv": self.lord_B_adv}
        self.lord = small | self.gate._asdict()


def make_sets(
    case: LinearCase, options: LinearOptions, dtype: torch.dtype, device: torch.device, count: int
) -> list[LinearSet]:
    """`count` random input sets; all branches are of the size of the base's output."""
    g = torch.Generator(device).manual_seed(options.seed)
    r, h, k, n = options.r, options.hidden, case.k, case.n

    def rand(*shape: int, fan: int = 1, to: torch.dtype = torch.float32) -> Tensor:
        return (torch.randn(shape, generator=g, device=device) / fan**0.5).to(to)

    def leaf(*shape: int, fan: int = 1) -> Tensor:
        return rand(*shape, fan=fan).requires_grad_()

    bases = [nn.utils.skip_init(nn.Linear, k, n, device=device, dtype=dtype) for _ in range(count)]
    sets = []
    for base, lora in zip(bases, peft_loras(bases, 2 * r), strict=True):
        base.requires_grad_(False)
        base.weight.copy_(rand(n, k, fan=k))
        base.bias.copy_(rand(n))
        x = rand(case.batch, case.tokens, k, to=dtype).requires_grad_(case.x_grad)
        sets.append(
            LinearSet(
                x=x,
                weight=base.weight,
                bias=base.bias,
                lord_A=leaf(r, k, fan=k),
                lord_B=leaf(n, r, fan=64 * r),
                lord_B_adv=leaf(n, r, fan=64 * r),
                gate=Gate(leaf(h, n, fan=n), leaf(h), leaf(h, fan=h), leaf()),
                grad_y=rand(case.batch, case.tokens, n, to=dtype),
                lora=lora,
            )
        )
    return sets


def linear_variants(
    case: LinearCase, options: LinearOptions, dtype: torch.dtype, device: torch.device
) -> list[Variant[LinearSet]]:
    """Everything that is timed, in both directions: baselines, the dispatcher's choice, and each backend by itself."""
    shape = (case.m, case.k, case.n)
    rank, size, grad = 2 * options.r, dtype.itemsize, {"x_grad": case.x_grad}
    lord = (
        costs.lord_forward(*shape, options.r, options.hidden, size),
        costs.lord_backward(*shape, options.r, options.hidden, size, **grad),
    )
    bare = costs.bare_forward(*shape, size), costs.bare_backward(*shape, size, **grad)
    lora = costs.lora_forward(*shape, rank, size), costs.lora_backward(*shape, rank, size, **grad)
    how: dict[str, Any] = {"granularity": options.granularity, "activation": options.activation}

    def of_lord(function: Lord, **more: Any) -> Callable[[LinearSet], Outputs]:
        return partial(_lord, function, options.scaling, {**how, **more})

    found: list[Variant[LinearSet]] = []

    def add(
        name: str,
        forward: Callable[[LinearSet], Outputs],
        parameters: str,
        cost: tuple[costs.Cost, costs.Cost],
        **more: Any,
    ) -> None:
        found.append(Variant(name, FORWARD, partial(_forward, forward), cost=cost[0], **more))
        found.append(Variant(name, BOTH, partial(_both, forward, parameters), cost=cost[0] + cost[1], **more))

    add("bare_linear", lambda s: {"y": F.linear(s.x, s.weight, s.bias)}, "", bare, checked=False)
    add("eager", of_lord(eager_lord_linear), "lord", lord)
    if options.compile:
        add("eager_compiled", of_lord(compiled(eager_lord_linear, device)), "lord", lord, optional=True)
    add("peft_lora_2r", lambda s: {"y": s.lora(s.x)}, "lora_parameters", lora, checked=False)
    add("lordfast", of_lord(lord_linear), "lord", lord)
    for name, status in available_backends().items():
        if status == "ok":
            add(f"lordfast:{name}", of_lord(lord_linear, backend=name), "lord", lord)
    return found


def _lord(function: Lord, scaling: float, how: Mapping[str, Any], s: LinearSet) -> Outputs:
    y, logit = function(s.x, s.weight, s.bias, s.lord_A, s.lord_B, s.lord_B_adv, s.gate, scaling, **how)
    return {"y": y, "gate_logit": logit}


def _forward(function: Callable[[LinearSet], Outputs], s: LinearSet) -> Outputs:
    with torch.no_grad():
        return function(s)


def _both(function: Callable[[LinearSet], Outputs], parameters: str, s: LinearSet) -> Outputs:
    """Forward, then the gradients of whatever wants one: x, and the set's `parameters`.

    A bare layer on an x that wants none, a text key or value, has no backward pass.
    """
    outputs = function(s)
    wanted: dict[str, Tensor] = getattr(s, parameters) if parameters else {}
    if s.x.requires_grad:
        wanted = {"x": s.x, **wanted}
    if not wanted:
        return outputs
    grads = torch.autograd.grad(outputs["y"], tuple(wanted.values()), s.grad_y)
    return {**outputs, **dict(zip(wanted, grads, strict=True))}


def exact_linear(options: LinearOptions, direction: str, s: LinearSet) -> Outputs:
    """Eq. 4-5 in float64 on the same numbers."""

    def wide(t: Tensor) -> Tensor:
        return t.detach().double().requires_grad_(t.requires_grad)

    lord = {name: wide(t) for name, t in s.lord.items()}
    gate = Gate(*(lord[name] for name in Gate._fields))
    same = replace(
        s,
        x=wide(s.x),
        weight=wide(s.weight),
        bias=wide(s.bias),
        lord_A=lord["lord_A"],
        lord_B=lord["lord_B"],
        lord_B_adv=lord["lord_B_adv"],
        gate=gate,
        grad_y=wide(s.grad_y),
    )
    how = {"granularity": options.granularity, "activation": options.activation}
    formula = partial(_lord, eager_lord_linear, options.scaling, how)
    outputs = _forward(formula, same) if direction == FORWARD else _both(formula, "lord", same)
    return {name: t.detach() for name, t in outputs.items()}


def bench_linear(
    case: LinearCase, options: LinearOptions, dtype_name: str, device: torch.device, effort: Effort
) -> list[Row]:
    """Check and time one case; rows with everything but the machine's columns."""
    dtype = DTYPES[dtype_name]
    if options.granularity == "sample":
        # A sample has one logit, and its error goes into all of the gate's gradients: a few draws say nothing.
        effort = replace(effort, draws=max(effort.draws, math.ceil(16 / case.batch)))
    # What the bare layer reads: the least that any variant does.
    read = dtype.itemsize * (case.m * case.k + case.n * case.k)
    sets = make_sets(case, options, dtype, device, sets_needed(read, cache_bytes(device), least=effort.draws))
    variants = linear_variants(case, options, dtype, device)
    exact = partial(exact_linear, options)
    rows = measure(variants, sets, exact, bare="bare_linear", effort=effort, device=device)
    labels = {
        "op": "lord_linear",
        "case": case.name,
        "M": case.m,
        "K": case.k,
        "N": case.n,
        "x_grad": int(case.x_grad),
        "r": options.r,
        "H": options.hidden,
        "granularity": options.granularity,
        "dtype": dtype_name,
    }
    return [{**labels, **row} for row in rows]

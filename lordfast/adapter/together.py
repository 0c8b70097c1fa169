"""Projections of one input computed at once: which layers a result can be handed to, and an attention's q, k and v."""

from __future__ import annotations

from typing import Any

from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from lordfast.adapter.layer import LordLinear, as_computed, is_plain_linear
from lordfast.ops import lord_qkv


def takes_result(module: Any) -> LordLinear | None:
    """The LordLinear around a plain linear layer that `module` comes to, under LoRAs or none; else None.

    Only where the call ``module(x)`` reaches it with the same x, and changes nothing on the way: then what it would
    compute may be computed before, and handed down as ``module(x, lord_result=(y, logit))``. Not so under other
    adapters than PEFT's ordinary ``lora.Linear`` (DoRA is one of its variants), where LoRAs are folded into the base
    weight (a switched-off one unfolds itself in its forward), where hooks see the input, and for offloading; nor for
    what the operations can't compute, another gate than the paper's or a lambda that is set from outside.
    """
    while type(module) is LoraLinear:
        if module.merged_adapters or _sees_input(module):
            return None
        module = module._modules["base_layer"]
    if type(module) is not LordLinear or not module.lord_enabled or not module._active_adapter or _sees_input(module):
        return None
    if not module.is_fused or "_hf_hook" in module._modules["lord_A"].__dict__:  # type: ignore[union-attr]
        return None
    return module if is_plain_linear(module._modules["base_layer"]) else None  # type: ignore[arg-type]


def _sees_input(module: nn.Module) -> bool:
    own = module.__dict__
    return bool(own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"] or "forward" in own)


def has_output_hooks(module: Any) -> bool:
    """Whether hooks get to see, and may change in place, the result that is handed to a module of `takes_result`."""
    while type(module) is LoraLinear:
        if module._forward_hooks:
            return True
        module = module._modules["base_layer"]
    return bool(module._forward_hooks)


def kind_of(layer: LordLinear) -> tuple[Any, ...]:
    """What layers must have in common to be computed at once, but for N: K, r, H, s, the gate's options, the bias."""
    config = layer.lord_config[layer._active_adapter[0]]
    return (
        layer.in_features,
        config.r,
        config.gate_hidden,
        config.scaling,
        config.gate_granularity,
        config.gate_activation,
        layer.base_layer.bias is None,
    )


def project_qkv(to_q: Any, to_k: Any, to_v: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """`to_q(x), to_k(x), to_v(x)` with one ``lord_qkv`` under them, or None where the three can't share one.

    x is (..., K). The modules are called as ever, with LoRD's results handed in: their LoRAs, the gates' logits and
    hooks on outputs are where they were.
    """
    q, k, v = takes_result(to_q), takes_result(to_k), takes_result(to_v)
    if q is None or k is None or v is None:
        return None
    kind = kind_of(q)
    if not (q.out_features == k.out_features == v.out_features and kind == kind_of(k) == kind_of(v)):
        return None
    _, _, _, scaling, granularity, activation, _ = kind
    inner = as_computed(x)
    one, two, three = (layer.projection(layer._active_adapter[0], inner.dtype) for layer in (q, k, v))
    y, logit = lord_qkv(inner, one, two, three, scaling, granularity=granularity, activation=activation)
    return (
        to_q(x, lord_result=(y[0], logit[0])),
        to_k(x, lord_result=(y[1], logit[1])),
        to_v(x, lord_result=(y[2], logit[2])),
    )

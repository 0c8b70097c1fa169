"""LordLayer and LordLinear: the LoRD adapter around one linear layer (Eq. 4 and 5), through the fused ops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lordfast.adapter.config import LordConfig
from lordfast.adapter.gate_paths import Parts, composite_delta
from lordfast.adapter.init import init_lord_parameters
from lordfast.adapter.timestep import WIDTH, Clock
from lordfast.ops import Gate, Projection, lord_delta, lord_linear

# Every adapter has these,
_COMMON = ("lord_A", "lord_B", "lord_B_adv", "lord_w1", "lord_b1", "lord_w2", "lord_b2")
# and this one those whose gate knows the timestep.
PARAMETER_DICTS = (*_COMMON, "lord_wt")


class LordLayer(BaseTunerLayer):
    """What a LoRD layer is to PEFT: its parameters by adapter name, and how it answers to being switched.

    LoRD is a defence under other adapters, not one of several styles to blend, so it is *sticky*: calls that activate
    or disable other adapters leave it on, and so does ``disable_lora``. Only ``lord_disabled``, ``remove_lord``,
    ``delete_adapters`` by its own name, and a ``PeftModel`` of which it is the method (``disable_adapter``) turn it
    off. Once frozen with ``freeze_lord`` it stays frozen until ``unfreeze_lord``. At most one LoRD adapter is active
    in a layer: each gate was trained alone.

    Attributes:
        lord_A: (r, K) per adapter. ``lord_B``, ``lord_B_adv``: (N, r).
        lord_w1, lord_b1, lord_w2, lord_b2: the gate, (H, N), (H,), (H,), (). w1 is (H, r) for a gate that reads A x,
            and (H, K) for one that reads x.
        lord_wt: (H, D), what a gate that knows the timestep makes of its embedding; other gates have none.
        lord_config: the LordConfig per adapter.
        lord_lambda: lambda as ``override_lambda`` set it; None leaves it to the gate.
        base_edits: how often LoRAs may have been folded into the base weight or out of it. PEFT does that through
            ``.data``, which leaves no trace on the weight's version.
    """

    base_layer: Any
    lord_A: nn.ParameterDict
    lord_B: nn.ParameterDict
    lord_B_adv: nn.ParameterDict
    lord_w1: nn.ParameterDict
    lord_b1: nn.ParameterDict
    lord_w2: nn.ParameterDict
    lord_b2: nn.ParameterDict
    lord_wt: nn.ParameterDict

    adapter_layer_names: tuple[str, ...] = PARAMETER_DICTS
    other_param_names: tuple[str, ...] = ("lord_config",)

    def __init__(self, base_layer: Any) -> None:
        self.base_layer = base_layer
        self.in_features = int(base_layer.in_features)
        self.out_features = int(base_layer.out_features)
        for name in PARAMETER_DICTS:
            setattr(self, name, nn.ParameterDict())
        self.lord_config: dict[str, LordConfig] = {}
        self.lord_frozen: set[str] = set()
        self.lord_enabled = True
        self.lord_lambda: float | None = None
        self.lord_clock: Clock | None = None
        self.merged_adapters = []
        self.base_edits = 0
        self._active_adapter = []
        # Where a forward pass leaves its raw gate logits; filled by collect_gates alone.
        # A list of lists, not a tuple: torch.compile can't append to a list that it finds in a tuple.
        self._gate_sinks: list[list[Tensor]] = []

    @property
    def r(self) -> dict[str, int]:
        """Empty on purpose: diffusers counts these entries to name the next unnamed LoRA, and LoRD is none."""
        return {}

    @property
    def state(self) -> Any:
        """bitsandbytes' int8 state, which LoRA reads off the layer it wraps; None elsewhere."""
        return getattr(self.base_layer, "state", None)

    @property
    def index(self) -> Any:
        """bitsandbytes' int8 index, as for :attr:`state`."""
        return getattr(self.base_layer, "index", None)

    @property
    def active_lord(self) -> str | None:
        """The adapter that the forward pass uses, None if there is none."""
        return self._active_adapter[0] if self._active_adapter else None

    def update_layer(self, adapter_name: str, config: LordConfig) -> None:
        """Add the parameters of one adapter: fp32 whatever the base's dtype, on the base's device."""
        device = self.base_device()
        shapes = lord_shapes(self.in_features, self.out_features, config)
        for name, shape in shapes.items():
            getattr(self, name)[adapter_name] = nn.Parameter(torch.empty(shape, dtype=torch.float32, device=device))
        self.lord_config[adapter_name] = config
        # After registration: under init_empty_weights the parameters are on meta now, and no random number is drawn.
        init_lord_parameters(self.parameters_of(adapter_name), config)

    def parameters_of(self, adapter_name: str) -> dict[str, nn.Parameter]:
        """The parameters of one adapter by their short names (``lord_A``, ...)."""
        dicts = {name: getattr(self, name) for name in PARAMETER_DICTS}
        return {name: values[adapter_name] for name, values in dicts.items() if adapter_name in values}

    def base_device(self) -> torch.device | None:
        """Where the base layer's weight is, None for a base without one."""
        weight = getattr(self.base_layer, "weight", getattr(self.base_layer, "qweight", None))
        return getattr(weight, "device", None)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate the LoRD adapter among ``adapter_names``; calls that name none of this layer's change nothing.

        Raises:
            ValueError: if two LoRD adapters of this layer are named.
        """
        wanted = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        own = [name for name in dict.fromkeys(wanted) if name in self.lord_config]
        if not own:
            return
        if len(own) > 1:
            raise ValueError(f"only one LoRD adapter can be active at a time, got {own}")
        self._active_adapter = own
        for name in self.lord_config:
            self._require_grad(name, name == own[0] and not inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        """Ignored: LoRD stays on when LoRAs are disabled. ``lord_disabled`` is the way to the bare base layer."""

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Switch the gradients of this layer's adapters among ``adapter_names``; frozen ones stay frozen."""
        names = {adapter_names} if isinstance(adapter_names, str) else set(adapter_names)
        for name in names & set(self.lord_config):
            self._require_grad(name, requires_grad)

    def _require_grad(self, adapter_name: str, requires_grad: bool) -> None:
        for parameter in self.parameters_of(adapter_name).values():
            parameter.requires_grad_(requires_grad and adapter_name not in self.lord_frozen)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget one LoRD adapter; other names are other layers' business. Another one becomes active, if any."""
        if adapter_name not in self.lord_config:
            return
        for name in self.parameters_of(adapter_name):
            del getattr(self, name)[adapter_name]
        del self.lord_config[adapter_name]
        self.lord_frozen.discard(adapter_name)
        if self._active_adapter == [adapter_name]:
            self._active_adapter = sorted(self.lord_config)[:1]

    def scale_layer(self, scale: float) -> None:
        """Ignored: the LoRA scale of ``cross_attention_kwargs`` and of ``fuse_lora`` is not LoRD's."""

    def unscale_layer(self, scale: float | None = None) -> None:
        """Ignored, like :meth:`scale_layer`."""

    def set_scale(self, adapter: str, scale: float) -> None:
        """Accept 1 (and any scale of other adapters).

        Raises:
            ValueError: for another scale of a LoRD adapter: its gate was trained at full strength.
        """
        if adapter in self.lord_config and scale != 1:
            raise ValueError(
                f"the LoRD adapter {adapter!r} can't be blended at weight {scale}; leave it out of set_adapters "
                "(it stays on by itself), or turn it off with lordfast.lord_disabled or lordfast.remove_lord"
            )

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Nothing to do when LoRAs around this layer are fused into the base weight.

        Raises:
            ValueError: if a LoRD adapter is to be merged: its gate depends on the input.
        """
        own = [name for name in adapter_names or [] if name in self.lord_config]
        if own:
            raise ValueError(f"the LoRD adapter {own[0]!r} can't be merged: its gate depends on the input")
        self.base_edits += 1

    def unmerge(self) -> None:
        """Nothing of LoRD's was merged."""
        self.base_edits += 1

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """False: the gated branch is no fixed weight delta."""
        return False

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT's own version also casts to the base's dtype; LoRD's parameters stay fp32.
        if adapter_name not in self.lord_config:
            return
        device = device or self.base_device()
        for name, parameter in self.parameters_of(adapter_name).items():
            if device is not None and parameter.device.type != "meta" and parameter.device != device:
                moved = nn.Parameter(parameter.detach().to(device), requires_grad=parameter.requires_grad)
                getattr(self, name)[adapter_name] = moved


class LordLinear(nn.Module, LordLayer):
    """A linear layer with LoRD: y = x W^T + b + s u B^T + lambda (s u B'^T), u = x A^T (Eq. 5).

    x is (..., K), y is (..., N) in x's dtype (autocast's under autocast). A plain ``nn.Linear`` inside goes through
    the fused ``lord_linear``; anything else (quantised, offloaded, hooked) is called, and ``lord_delta`` is added.
    Gates other than the paper's, and a lambda that is set from outside, are computed by ``composite_delta``.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LordConfig) -> None:
        nn.Module.__init__(self)
        LordLayer.__init__(self, base_layer)
        self.update_layer(adapter_name, config)
        self.set_adapter([adapter_name], inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, lord_result: tuple[Tensor, Tensor] | None = None, **kwargs: Any) -> Tensor:
        """y (..., N); `lord_result` is (y, gate logit) where they were computed before, with those of other layers."""
        name = self.active_lord
        if name is None or not self.lord_enabled:
            return self.base_layer(x, *args, **kwargs)
        y: Tensor
        logit: Tensor | None
        if lord_result is not None:
            y, logit = lord_result
        elif "_hf_hook" in self.lord_A.__dict__:
            with _onloaded(self):
                y, logit = self._forward_lord(name, x, *args, **kwargs)
        else:
            y, logit = self._forward_lord(name, x, *args, **kwargs)
        for sink in self._gate_sinks:
            assert logit is not None
            sink.append(logit)
        return y

    @property
    def is_fused(self) -> bool:
        """Whether the operations compute what this layer is to compute: the paper's gate, and a lambda of its own."""
        return self.lord_lambda is None and self.lord_config[self._active_adapter[0]].has_papers_gate

    def _forward_lord(self, name: str, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        config = self.lord_config[name]
        inner = as_computed(x)
        if not self.is_fused:
            y = self.base_layer(x, *args, **kwargs)
            delta, wanted_logit = composite_delta(
                inner,
                self._parts(name),
                config,
                None if self.lord_clock is None else self.lord_clock.embedding,
                value=self.lord_lambda,
                wants_logit=bool(self._gate_sinks),
            )
            return y + delta.to(y.dtype), wanted_logit
        how: dict[str, Any] = {"granularity": config.gate_granularity, "activation": config.gate_activation}
        if is_plain_linear(self.base_layer):
            return lord_linear(inner, *self.projection(name, inner.dtype), config.scaling, **how)
        y = self.base_layer(x, *args, **kwargs)
        delta, logit = lord_delta(inner, *self.branches(name), config.scaling, **how)
        return y + delta.to(y.dtype), logit

    def branches(self, name: str) -> tuple[Tensor, Tensor, Tensor, Gate]:
        """A, B, B' and the gate of one adapter, as the operations take them: the temperature is part of w2 and b2."""
        # Past the attribute look-ups of Module and ParameterDict, which are a tenth of a small layer's time.
        own: Any = self._modules
        a, b, b_adv, w1, b1, w2, b2 = [own[parameters]._parameters[name] for parameters in _COMMON]
        temperature = self.lord_config[name].gate_temperature
        if temperature != 1:
            w2, b2 = w2 / temperature, b2 / temperature
        return a, b, b_adv, Gate(w1, b1, w2, b2)

    def _parts(self, name: str) -> Parts:
        own = self.parameters_of(name)
        a, b, b_adv, *gate = [own[parameter] for parameter in _COMMON]
        return Parts(a, b, b_adv, Gate(*gate), own.get("lord_wt"))

    def projection(self, name: str, dtype: torch.dtype) -> Projection:
        """One adapter with its plain base, which is cast where autocast computes in another dtype than it has."""
        weight, bias = self.base_layer.weight, self.base_layer.bias
        if weight.dtype != dtype and torch.is_autocast_enabled(weight.device.type):
            weight = weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        return Projection(weight, bias, *self.branches(name))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LordLinear:
        def keep_precision(tensor: Tensor) -> Tensor:
            # unet.half() and unet.to(torch.bfloat16) are about the base: LoRD's parameters follow to the device only.
            out = fn(tensor)
            narrowed = out.dtype.is_floating_point and out.dtype.itemsize < 4 <= tensor.dtype.itemsize
            return tensor.to(out.device) if narrowed else out

        for name, child in self._modules.items():
            if child is not None:
                child._apply(keep_precision if name in PARAMETER_DICTS else fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles made inside collect_gates must not drag the graph along.
        return {**self.__dict__, "_gate_sinks": []}


def lord_shapes(in_features: int, out_features: int, config: LordConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of one adapter's parameters on a (K -> N) layer."""
    k, n, r, h = in_features, out_features, config.r, config.gate_hidden
    read = {"branch": n, "down": r, "input": k}[config.gate_input]
    shapes = dict(zip(_COMMON, ((r, k), (n, r), (n, r), (h, read), (h,), (h,), ()), strict=True))
    return {**shapes, "lord_wt": (h, WIDTH)} if config.gate_timestep else shapes


def as_computed(x: Tensor) -> Tensor:
    """x in the dtype that a linear layer computes in: autocast's under autocast, which the operations leave to us."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device))
    return x


def is_plain_linear(module: nn.Module) -> bool:
    """Whether calling ``module`` is F.linear on its weight and nothing else, so that the fused op may stand for it.

    Not so for subclasses (quantised, parametrised), for hooks, and for offloading, which replaces ``forward``.
    """
    return (
        type(module) is nn.Linear
        and "forward" not in module.__dict__
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and type(module.weight) is nn.Parameter
        and module.weight.dtype.is_floating_point
        and module.weight.dtype.itemsize > 1
    )


@contextmanager
def _onloaded(layer: LordLinear) -> Iterator[None]:
    """Bring parameters home that accelerate keeps elsewhere: it hooks forward, and a ParameterDict is never called."""
    dicts = [getattr(layer, name) for name in PARAMETER_DICTS]
    hooks = [(module, module._hf_hook) for module in dicts if hasattr(module, "_hf_hook")]
    for module, hook in hooks:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for module, hook in hooks:
            hook.post_forward(module, torch.empty(0))

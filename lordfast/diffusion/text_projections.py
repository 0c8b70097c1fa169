"""All projections of the text of a UNet at once, and only where something they depend on has changed."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from lordfast.adapter.layer import LordLinear, as_computed, is_plain_linear
from lordfast.adapter.together import kind_of, takes_result
from lordfast.diffusion.attention import LordAttnProcessor, Place, TextProjections
from lordfast.diffusion.weight_stack import WeightStack
from lordfast.ops import Branches, lord_stack

KEYWORD = "lord_text"
Outputs = tuple[tuple[Tensor, ...], Tensor | None]
"""y, a run of layers with the same N each (layers in it, B, T, N), and the gate logits (layers, ...)."""


_steps = 0
"""How many steps optimisers of parameters have made since the first `TextFusion`."""
_counting = False


def _count_steps() -> None:
    """Count every optimiser's steps from now on, once."""
    global _counting
    if not _counting:
        register_optimizer_step_post_hook(_stepped)
        _counting = True


def _stepped(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    global _steps
    # A number that is another one at every step would have a compiled step compiled anew.
    if torch.compiler.is_compiling():
        return
    # An attack's optimiser, of pixels, changes no model.
    if any(isinstance(p, nn.Parameter) for group in optimizer.param_groups for p in group["params"]):
        _steps += 1


class Member(NamedTuple):
    """One projection of the text."""

    processor: LordAttnProcessor
    role: str  # "key" or "value"
    lord: LordLinear | None
    base: nn.Linear


class Group:
    """Projections that one product computes: of one K, with one bias policy, and one kind of LoRD or none."""

    def __init__(self, members: Sequence[Member]) -> None:
        # Sorted by N, so that those of the same N stand together; sorted() keeps the order among them.
        self.members = sorted(members, key=lambda member: member.base.out_features)
        self.runs = [len(list(run)) for _, run in groupby(m.base.out_features for m in self.members)]
        self._weights, self._biases = WeightStack(), WeightStack()

    def compute(self, text: Tensor) -> Outputs:
        """The projections of text (B, T, K); differentiable in text and in LoRD's parameters."""
        x = as_computed(text)
        weight, bias = (None if t is None else t.to(x.dtype) for t in self._stacked())
        assert weight is not None
        if self.members[0].lord is None:
            wide = F.linear(x, weight, bias).split([n * count for n, count in self._widths()], dim=-1)
            runs = zip(wide, self._widths(), strict=True)
            return tuple(y.unflatten(-1, (count, n)).movedim(-2, 0) for y, (n, count) in runs), None
        lords = [member.lord for member in self.members if member.lord is not None]
        _, _, _, scaling, granularity, activation, _ = kind_of(lords[0])
        branches = [Branches(*lord.branches(lord._active_adapter[0])) for lord in lords]
        return lord_stack(x, weight, bias, branches, scaling, granularity=granularity, activation=activation)

    def release(self) -> None:
        """Give the layers' weights memory of their own again."""
        for stack, parameters in zip((self._weights, self._biases), self._parameters(), strict=True):
            stack.release(parameters)

    def _stacked(self) -> tuple[Tensor, Tensor | None]:
        weights, biases = self._parameters()
        return self._weights.gather(weights), self._biases.gather(biases) if biases else None

    def _parameters(self) -> tuple[list[Any], list[Any]]:
        bases = [member.base for member in self.members]
        return [base.weight for base in bases], [base.bias for base in bases if base.bias is not None]

    def _widths(self) -> list[tuple[int, int]]:
        """(N, layers) of each run."""
        firsts = [sum(self.runs[:i]) for i in range(len(self.runs))]
        return [(self.members[first].base.out_features, count) for first, count in zip(firsts, self.runs, strict=True)]


class TextFusion:
    """A UNet's forward pre-hook that computes every cross-attention's k and v of the text before the UNet runs.

    The results go with the call, in ``cross_attention_kwargs``: to a checkpointed block, which runs again in the
    backward pass, they are arguments as the text is one. Where nobody wants a gradient through them (sampling; an
    attack on a model with frozen LoRD), they are kept and serve every call with the same text, recognised as the same
    tensor at the same version, as long as the parameters are the same by identity, address and version, and for no
    longer than the text lives. Fused optimisers change parameters and leave their versions as they are: so nothing is
    kept while a parameter has a gradient, nor past a step of any optimiser of parameters.

    Two kinds of changes leave no trace at all: those through a parameter's ``.data``, and collectives that write to a
    parameter (``torch.distributed.broadcast``, ``all_reduce``). `lordfast.optimize` drops what is kept.

    Steps aside, and leaves everything to plain calls, where the UNet itself is offloaded or compiled as a whole, where
    it changes the text on the way, where any of its attentions has got another processor, and where no LoRD is active.
    While a CUDA graph is captured, the projections become part of it and nothing kept is used; a capture without a call
    of that kind before it gets plain calls, as weights can't be moved in one.

    Args:
        unet: the UNet.
        attentions: those of its attentions that read the text.
        others: the rest of its attentions.
    """

    def __init__(self, unet: nn.Module, attentions: Sequence[nn.Module], others: Sequence[nn.Module] = ()) -> None:
        names = list(inspect.signature(type(unet).forward).parameters)[1:]
        self._text_at = names.index("encoder_hidden_states")
        self._kwargs_at = names.index("cross_attention_kwargs")
        self._attentions, self._others = list(attentions), list(others)
        self._groups: list[Group] = []
        self._structure: tuple[Any, ...] | None = None
        self._addresses: list[int] = []
        self._kept: tuple[Any, ...] | None = None
        _count_steps()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_groups": [], "_structure": None, "_addresses": [], "_kept": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _count_steps()

    def __call__(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Add the text's projections to the call's ``cross_attention_kwargs``."""
        if torch.compiler.is_compiling():
            # What runs now may train the model, and this hook won't see it.
            self._kept = None
            return None
        text = args[self._text_at] if len(args) > self._text_at else kwargs.get("encoder_hidden_states")
        projections = self._project(unet, text)
        if projections is None:
            self._kept = None
            return None
        if len(args) > self._kwargs_at:
            given = {**(args[self._kwargs_at] or {}), KEYWORD: projections}
            return (*args[: self._kwargs_at], given, *args[self._kwargs_at + 1 :]), kwargs
        return args, {
            **kwargs,
            "cross_attention_kwargs": {**(kwargs.get("cross_attention_kwargs") or {}), KEYWORD: projections},
        }

    def release(self) -> None:
        """Forget everything, and give the layers' weights memory of their own again."""
        for group in self._groups:
            group.release()
        self._place([])
        self._groups, self._structure, self._kept = [], None, None

    def _project(self, unet: nn.Module, text: Any) -> TextProjections | None:
        if not isinstance(text, Tensor) or text.ndim != 3 or "forward" in unet.__dict__:
            return None
        if getattr(unet, "encoder_hid_proj", None) is not None:
            return None
        members = self._members(text)
        if not members or all(member.lord is None for member in members):
            return None
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            # Nothing may be moved or numbered now: it would only happen when the graph is replayed.
            ready = self._structure == _structure(members, text) and self._addresses == _addresses(members)
            return TextProjections(text, *self._compute(text)) if ready else None
        self._arrange(members, text)
        tensors = [t for member in members for t in _tensors(member)]
        if torch.is_grad_enabled() and (text.requires_grad or any(t.requires_grad for t in tensors)):
            self._kept = None
            return TextProjections(text, *self._compute(text))
        state = _state(text, members, tensors)
        if state is not None and self._kept is not None and self._kept[0]() is text and self._kept[1] == state:
            return TextProjections(text, *self._kept[2])
        self._kept = None  # before the new ones are made, not after: there is memory for one set
        with torch.no_grad():
            outputs = self._compute(text)
        # Asked again: the weights may just have moved.
        state = _state(text, members, tensors)
        if state is not None:
            self._kept = (weakref.ref(text, _forget(self)), state, outputs, tensors)
        return TextProjections(text, *outputs)

    def _members(self, text: Tensor) -> list[Member]:
        """The projections that can be computed here, as they are now; none at all where a processor is not ours."""
        if any(type(attention.processor) is not LordAttnProcessor for attention in self._attentions + self._others):
            # All of them get the keyword, and others would warn of it at every call.
            return []
        found = []
        for attention in self._attentions:
            processor: Any = attention.processor
            for role, name in (("key", "to_k"), ("value", "to_v")):
                module: Any = attention._modules[name]
                lord = takes_result(module)
                base: Any = module if lord is None else lord._modules["base_layer"]
                if (lord is not None or is_plain_linear(module)) and _fits(base, text):
                    found.append(Member(processor, role, lord, base))
        return found

    def _arrange(self, members: Sequence[Member], text: Tensor) -> None:
        """Group the projections, unless they are those of the last call."""
        structure = _structure(members, text)
        if structure == self._structure:
            return
        self.release()
        by_kind: dict[Any, list[Member]] = {}
        for member, kind in zip(members, structure[-1], strict=True):
            by_kind.setdefault(kind, []).append(member)
        self._groups = [Group(group) for group in by_kind.values()]
        self._structure = structure
        self._place(self._groups, text.device)

    def _place(self, groups: Sequence[Group], device: torch.device | None = None) -> None:
        """Tell every processor where its projections are found."""
        for attention in self._attentions:
            if type(attention.processor) is LordAttnProcessor:
                attention.processor.key = attention.processor.value = None
        row = 0
        for g, group in enumerate(groups):
            numbers = torch.arange(len(group.members), device=device)
            places = [(run, at) for run, count in enumerate(group.runs) for at in range(count)]
            for i, (member, (run, at)) in enumerate(zip(group.members, places, strict=True)):
                place = Place(row, g, run, numbers[at : at + 1], numbers[i : i + 1])
                setattr(member.processor, member.role, place)
                row += 1

    def _compute(self, text: Tensor) -> tuple[Any, ...]:
        """`TextProjections` but for its first field."""
        outputs = [group.compute(text) for group in self._groups]
        self._addresses = _addresses([member for group in self._groups for member in group.members])
        rows: list[tuple[Tensor, Tensor | None]] = []
        for y, logit in outputs:
            ys = [one for run in y for one in run.unbind(0)]
            rows += zip(ys, [None] * len(ys) if logit is None else logit.unbind(0), strict=True)
        return tuple(y for y, _ in outputs), tuple(logit for _, logit in outputs), tuple(rows)


def _forget(fusion: TextFusion) -> Callable[[Any], None]:
    """A callback of a text's end, which drops what was kept for it. It doesn't hold `fusion`, which holds it."""
    held_by = weakref.ref(fusion)

    def forget(text: Any) -> None:
        holder = held_by()
        if holder is not None and holder._kept is not None and holder._kept[0] is text:
            holder._kept = None

    return forget


def _structure(members: Sequence[Member], text: Tensor) -> tuple[Any, ...]:
    """What the groups and the places in them depend on; last, each member's kind."""
    # With the weights' dtype: under autocast they need not all have the same.
    kinds = [(m.base.weight.dtype, m.base.bias is None if m.lord is None else kind_of(m.lord)) for m in members]
    return text.device, [(id(m.processor), m.role, id(m.lord), id(m.base)) for m in members], kinds


def _addresses(members: Sequence[Member]) -> list[int]:
    """Where the frozen weights lie."""
    return sorted(t.data_ptr() for m in members for t in (m.base.weight, m.base.bias) if t is not None)


def _state(text: Tensor, members: Sequence[Member], tensors: Sequence[Tensor]) -> tuple[Any, ...] | None:
    """What results without a gradient depend on; None where that can't be said.

    Inference tensors have no version; and a parameter with a gradient waits for an optimiser, whose step need not leave
    a trace: not if it is compiled, or an object of its own that calls torch's fused functions.
    """
    if any(t.is_leaf and t.grad is not None for t in tensors):
        return None
    edits = [0 if member.lord is None else member.lord.base_edits for member in members]
    modes = as_computed(text[:0]).dtype, torch.is_inference_mode_enabled()
    try:
        return _steps, modes, edits, text._version, [(id(t), t._version, t.data_ptr()) for t in tensors]
    except RuntimeError:
        return None


def _tensors(member: Member) -> list[Tensor]:
    """What the projection depends on."""
    base = member.base
    own = [base.weight] if base.bias is None else [base.weight, base.bias]
    if member.lord is None:
        return own
    return [*own, *member.lord.parameters_of(member.lord._active_adapter[0]).values()]


def _fits(base: Any, text: Tensor) -> bool:
    """Whether a frozen product with this text can be made; a wrong dtype is the plain call's to complain about."""
    weight = base.weight
    return (
        base.in_features == text.shape[-1]
        and weight.device == text.device
        and (weight.dtype == text.dtype or torch.is_autocast_enabled(text.device.type))
        and not weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
    )

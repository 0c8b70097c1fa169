"""The attention processor of a fused model: diffusers' `AttnProcessor2_0` with the projections computed together."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lordfast.adapter.together import has_output_hooks, project_qkv

ATTENTIONS = ("sdpa", "xformers")


class Place(NamedTuple):
    """Where one projection stands among a model's text projections."""

    row: int
    """In `TextProjections.rows`."""
    group: int
    run: int
    at: Tensor  # (1,) int64, in the run's y
    at_logit: Tensor  # (1,) int64, in the group's logits


class TextProjections(NamedTuple):
    """What a UNet's text projections gave for one text: the keyword ``lord_text`` of its attention processors.

    ``rows`` are views of the other two, a pair (y, logit) a projection; without LoRD the logit is None.
    """

    text: Tensor  # (B, T, K), the very tensor that they were computed from
    y: tuple[tuple[Tensor, ...], ...]  # a group, a run of layers with the same N: (layers in it, B, T, N)
    logit: tuple[Tensor | None, ...]  # a group: (layers, B, T) or (layers, B)
    rows: tuple[tuple[Tensor, Tensor | None], ...]

    def find(self, place: Place) -> tuple[Tensor, Tensor | None]:
        """y (B, T, N) and the gate logit of one projection."""
        if not torch.compiler.is_compiling():
            return self.rows[place.row]
        # By tensors in place of numbers: a compiled block is shared by all that differ in nothing else.
        logit = self.logit[place.group]
        y = self.y[place.group][place.run].index_select(0, place.at).squeeze(0)
        return y, None if logit is None else logit.index_select(0, place.at_logit).squeeze(0)


class LordAttnProcessor:
    """Attention with q, k and v of self-attention, and k and v of the text, computed together where that is possible.

    Everything else is what ``AttnProcessor2_0`` does: masks, group norm, spatial norm, the norms of q, k and of the
    text, residual connection, rescaling; ``upcast_attention`` matters as little, both kernels keep their softmax in
    fp32. What can't be computed together goes through plain calls of the projections.

    Attributes:
        attention: ``sdpa`` or ``xformers``.
        replaced: the processor that `lordfast.restore` puts back.
        key, value: where the projections of the text are found, None where they are not among them.
    """

    def __init__(self, attention: str, replaced: Any) -> None:
        self.attention = attention
        self.replaced = replaced
        self.key: Place | None = None
        self.value: Place | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        lord_text: TextProjections | None = None,
    ) -> Tensor:
        """hidden_states (B, T, C) or (B, C, H, W), attended over themselves or over the text; the same shape."""
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        batch, length = source.shape[:2]
        if attention_mask is not None:
            mask = attn.prepare_attention_mask(attention_mask, length, batch)
            attention_mask = mask.view(batch, attn.heads, -1, mask.shape[-1])
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)

        query, key, value = self._project(attn, hidden_states, encoder_hidden_states, lord_text)
        heads = (batch, -1, attn.heads, key.shape[-1] // attn.heads)
        query, key, value = query.view(heads), key.view(heads), value.view(heads)
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        if self.attention == "xformers":
            op = getattr(self.replaced, "attention_op", None)
            out = _xformers(query, key, value, attention_mask, attn.scale, op)
        else:
            out = _sdpa(query, key, value, attention_mask, attn.scale)
        out = out.flatten(2).to(query.dtype)

        out = attn.to_out[1](attn.to_out[0](out))
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor if attn.rescale_output_factor != 1 else out

    def _project(
        self, attn: Any, x: Tensor, text: Tensor | None, lord_text: TextProjections | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, each (B, T, N)."""
        if text is None:
            together = project_qkv(attn.to_q, attn.to_k, attn.to_v, x)
            return together or (attn.to_q(x), attn.to_k(x), attn.to_v(x))
        # Moved, cast or detached on the way here, the text is another tensor and its projections are not these.
        given = lord_text if lord_text is not None and lord_text.text is text else None
        query = attn.to_q(x)
        if attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)
        return query, _of_text(attn.to_k, text, given, self.key), _of_text(attn.to_v, text, given, self.value)


# diffusers asks for the signature at every call, and Python works it out anew each time: 18 microseconds.
LordAttnProcessor.__call__.__signature__ = inspect.signature(LordAttnProcessor.__call__)  # type: ignore[attr-defined]


def _of_text(module: Any, text: Tensor, given: TextProjections | None, place: Place | None) -> Tensor:
    if given is None or place is None:
        return module(text)
    y, logit = given.find(place)
    if logit is None:
        return y
    if not torch.compiler.is_compiling() and has_output_hooks(module):
        # They may write to what is a part of all projections, and may be kept for the next call.
        y = y.clone()
    return module(text, lord_result=(y, logit))


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(B, T, heads, d) of each; mask (B, heads, 1 or T, S), added to the scores."""
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale).transpose(1, 2)


def _xformers(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, op: Any = None) -> Tensor:
    """As `_sdpa`, by xformers; `op` is one of its operators, None for its own choice."""
    from xformers.ops import memory_efficient_attention

    if mask is not None:
        # Its kernels want rows that start at multiples of 8 elements, and nothing broadcast.
        length = mask.shape[-1]
        mask = F.pad(mask.to(query.dtype), (0, -length % 8)).expand(-1, -1, query.shape[1], -1).contiguous()
        mask = mask[..., :length]
    return memory_efficient_attention(query, key, value, attn_bias=mask, scale=scale, op=op)


def check_xformers(device: torch.device, dtype: torch.dtype) -> None:
    """Raise a ValueError unless xformers is there and has an attention for this device and dtype."""
    try:
        import xformers.ops  # noqa: F401
    except ImportError as error:
        raise ValueError("attention: 'xformers' was asked for, but xformers is not installed; use 'sdpa'") from error
    probe = torch.zeros((1, 8, 1, 8), device=device, dtype=dtype)
    try:
        _xformers(probe, probe, probe, None, 1.0)
    except (NotImplementedError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"attention: 'xformers' was asked for, but xformers can't run on {device} in {dtype}; use 'sdpa' ({error})"
        ) from error

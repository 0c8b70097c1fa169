"""`optimize` and `restore`: a UNet whose attention projections are computed together."""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from typing import Any, TypeVar

from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    XFormersAttnProcessor,
)
from torch import nn

from lordfast.adapter.control import denoiser_of
from lordfast.diffusion.attention import ATTENTIONS, LordAttnProcessor, check_xformers
from lordfast.diffusion.text_projections import TextFusion

M = TypeVar("M")
STANDARD = (AttnProcessor2_0, AttnProcessor, XFormersAttnProcessor)

logger = logging.getLogger(__name__)


def optimize(model: M, attention: str = "sdpa") -> M:
    """Compute a UNet's attention projections together, in place: fewer and larger operations, the same results.

    * Self-attention: q, k and v, which read the same input, come from one ``lord_qkv``.
    * The text: the k and v of all cross-attentions come from one product a UNet call, and LoRD's part of them from a
      few batched ones. Where nobody wants a gradient through them they are computed once a text, not once a call: so in
      sampling, and in attacks on a model with frozen LoRD.

    Where that is not possible (LoRD on some of the three only, other adapters than LoRAs in between, hooks, offloading,
    quantised weights, LoRAs folded in) the projections are called as ever. Adapters may come and go before and after;
    `collect_gates`, `lord_disabled`, gradient checkpointing and ``compile_repeated_blocks`` work as they do without. No
    module, no name and nothing that is saved changes. Doing it twice changes nothing, but for another `attention`, and
    forgets what was kept for the last text.

    Args:
        model: a UNet, bare or in a ``PeftModel``, or a pipeline or `LatentDiffusion` with a ``unet``.
        attention: ``sdpa``, or ``xformers`` for its memory-efficient attention. An attention that diffusers was told
            to compute by xformers (``enable_xformers_memory_efficient_attention``) goes on with xformers, and with its
            ``attention_op``, under either.

    Returns:
        `model`.

    Raises:
        TypeError: `model` has no such module.
        ValueError: an unknown attention, or xformers is missing or can't run on the model's device.
    """
    unet = denoiser_of(model)
    if attention not in ATTENTIONS:
        raise ValueError(f"attention: expected one of {', '.join(ATTENTIONS)}, got {attention!r}")
    if attention == "xformers":
        first = next(unet.parameters())
        check_xformers(first.device, first.dtype)
    attentions = _attentions(unet)
    left: Counter[str] = Counter()
    for module in attentions:
        processor: Any = module.processor
        if type(processor) is LordAttnProcessor:
            processor.attention = _kernel(processor.replaced, attention)
        elif type(processor) in STANDARD:
            module.processor = LordAttnProcessor(_kernel(processor, attention), processor)
        else:
            left[type(processor).__name__] += 1
    if left or not attentions:
        said = ", ".join(f"{count} {name}" for name, count in left.items()) or "it has no attention of diffusers' kind"
        logger.info("%s: left alone in lordfast.optimize: %s", type(unet).__name__, said)
    _unhook(unet)
    of_text = [module for module in attentions if _reads_text(module)]
    names = inspect.signature(type(unet).forward).parameters
    if of_text and {"encoder_hidden_states", "cross_attention_kwargs"} <= set(names):
        others = [module for module in attentions if module not in of_text]
        unet.register_forward_pre_hook(TextFusion(unet, of_text, others), with_kwargs=True)
    return model


def restore(model: M) -> M:
    """Undo `optimize`: the model computes as before, to the bit. Without `optimize` before, nothing happens.

    Raises:
        TypeError: `model` has no module of the kind that `optimize` takes.
    """
    unet = denoiser_of(model)
    _unhook(unet)
    for module in _attentions(unet):
        if type(module.processor) is LordAttnProcessor:
            module.processor = module.processor.replaced
    return model


def _attentions(unet: nn.Module) -> list[Any]:
    return [module for module in unet.modules() if isinstance(module, Attention)]


def _kernel(replaced: Any, attention: str) -> str:
    """What a processor computes its attention with: what was chosen before, in diffusers, stays."""
    return "xformers" if type(replaced) is XFormersAttnProcessor else attention


def _reads_text(attention: Any) -> bool:
    """Whether its k and v are functions of the text alone, and of nothing before them."""
    return (
        attention.is_cross_attention
        and not attention.norm_cross
        and attention.added_kv_proj_dim is None
        and attention.to_k is not None
    )


def _unhook(unet: nn.Module) -> None:
    for number, hook in list(unet._forward_pre_hooks.items()):
        if type(hook) is TextFusion:
            hook.release()
            del unet._forward_pre_hooks[number]
            del unet._forward_pre_hooks_with_kwargs[number]

"""The gates' raw logits, out of the layers and into a loss: ``collect_gates`` and the detection loss (Eq. 7)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lordfast.adapter.control import denoiser_of, lord_layers

# Whose input holds nothing of the image, so that their logits are the same for every one.
_BLIND = re.compile(
    r"(^|\.)(attn2\.to_[kv]|add_[qkv]_proj"  # the text's keys and values, and its stream in joint attention
    r"|time_emb_proj|(time|add|class)_embedding\.\w+"  # a UNet's timestep, pooled text and sizes
    r"|time_text_embed\.\w+\.\w+|context_embedder|norm(1|1_context|_out)\.linear)$"  # the same of a transformer
)
# In a transformer of joint blocks (SD 3) the text's stream has attended to the image from the second block on, and a
# second attention is one of the image with itself.
_JOINT_SEEING = re.compile(r"transformer_blocks\.(0*[1-9]\d*\.attn\.add_[qkv]_proj|\d+\.attn2\.to_[kv])")


DET_LAYERS = ("mean", "pooled")
DET_TOKENS = ("token", "sample")


class GateLogits(Mapping[str, Tensor]):
    """{layer name: raw gate logits} of the layers that ran, attached to the graph.

    Logits are (batch, tokens) for a token gate, (batch,) for a sample gate, fp32. A layer that ran several times has
    the logits of all its runs, one after the other along the batch dimension; runs of different token counts
    (two image sizes) can't be joined and need a context each.
    """

    def __init__(self, sinks: Mapping[str, list[Tensor]]) -> None:
        self._sinks = sinks

    def __getitem__(self, name: str) -> Tensor:
        runs = self._sinks[name]
        if not runs:
            raise KeyError(name)
        if len(runs) == 1:
            return runs[0]
        if len({logit.shape[1:] for logit in runs}) > 1:
            raise ValueError(
                f"layer {name} ran on {[tuple(logit.shape) for logit in runs]} (batch, tokens) inside one "
                "collect_gates context; open one context for each image size"
            )
        return torch.cat(runs)

    def __iter__(self) -> Iterator[str]:
        return (name for name, runs in self._sinks.items() if runs)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"GateLogits({ {name: [tuple(t.shape) for t in self._sinks[name]] for name in self} })"


@contextmanager
def collect_gates(module: Any) -> Iterator[GateLogits]:
    """Collect every LoRD layer's raw gate logits of the forward passes inside (Eq. 4 before the sigmoid).

    ::

        with lordfast.collect_gates(unet) as gates:
            pred = unet(noisy, timesteps, text).sample
        loss = mse(pred, noise) + 0.1 * lordfast.detection_loss(gates, labels)
        loss.backward()

    Exact in eager mode, under non-reentrant gradient checkpointing (diffusers' kind; the reentrant kind cuts the
    logits' graph) and under ``torch.compile``. **Close it before the backward pass**: checkpointing runs the layers
    again there, and they would report again. Contexts may be nested and may be open on several models: each has its
    own logits, an outer one also those of an inner one on the same layers. Names are the layers' paths in the bare
    model, whatever wraps it.

    Args:
        module: a model or pipeline with LoRD, also compiled or wrapped in DDP.

    Yields:
        A mapping that fills as the layers run and stays valid afterwards. Layers that did not run are not in it.

    Raises:
        ValueError: if the model has no LoRD.
    """
    layers = lord_layers(denoiser_of(module))
    if not layers:
        raise ValueError("the model has no LoRD layers: add or load a LoRD adapter before collecting its gates")
    sinks: dict[str, list[Tensor]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer._gate_sinks = [*layer._gate_sinks, sinks[name]]
    try:
        yield GateLogits(sinks)
    finally:
        for name, layer in layers.items():
            # By identity: two empty lists are equal.
            layer._gate_sinks = [sink for sink in layer._gate_sinks if sink is not sinks[name]]


def sees_image(name: str) -> bool:
    """Whether a layer's input depends on the image, by its path in the bare denoiser.

    It does not for a UNet's text keys and values (``attn2.to_k``, ``attn2.to_v``), for the text's projections in the
    first joint block of SD 3 (``transformer_blocks.0.attn.add_*_proj``), and for whatever embeds only timestep and
    text. Later joint blocks' text has attended to the image.
    """
    return _JOINT_SEEING.fullmatch(name) is not None or _BLIND.search(name) is None


def detection_loss(
    gates: Mapping[str, Tensor],
    labels: Tensor,
    *,
    include: Callable[[str], bool] = sees_image,
    det_layers: str = "mean",
    det_tokens: str = "token",
    weights: Tensor | None = None,
) -> Tensor:
    """The detection loss (Eq. 7): the gates shall tell perturbed images from clean ones.

    With the logits g_l(b, i) of layer l, sample b, token i, and BCE(g, y) the binary cross-entropy with logits:

        mean, token (Eq. 7):  mean_l mean_b w_b mean_i BCE(g_l(b, i), y_b)
        mean, sample:         mean_l mean_b w_b BCE(mean_i g_l(b, i), y_b)
        pooled:               mean_b w_b BCE(mean_l mean_i g_l(b, i), y_b)

    Args:
        gates: {layer name: logits} as ``collect_gates`` gives them; (B,) or (B, tokens...), any float dtype.
        labels: (B,), 0 for clean and 1 for perturbed; bool, integer or float.
        include: which layers count, by name; the default leaves out those that see only the text.
        det_layers: ``"mean"``, every layer decides for itself; ``"pooled"``, all of them together: the mean of their
            logits counts, which is one of samples, as layers differ in their tokens.
        det_tokens: ``"token"``, every token decides for itself; ``"sample"``, a sample's tokens together.
        weights: w, (B,), how much each sample counts; None for 1.

    Returns:
        A scalar, fp32.

    Raises:
        TypeError, ValueError: if labels are no (B,) tensor within [0, 1] (their values are looked at on a CPU only),
            if weights are no (B,) tensor, if no layer counts, if a layer's batch is not B, or for an unknown reduction.
    """
    for argument, value, known in (("det_layers", det_layers, DET_LAYERS), ("det_tokens", det_tokens, DET_TOKENS)):
        if value not in known:
            raise ValueError(f"{argument} must be one of {', '.join(known)}, got {value!r}")
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor of shape (B,), got {type(labels).__name__}")
    if labels.ndim != 1 or labels.numel() == 0:
        raise ValueError(f"labels must have shape (B,), one label per sample, got {tuple(labels.shape)}")
    # Elsewhere the host would have to wait for the answer.
    if labels.device.type == "cpu" and not bool(((labels >= 0) & (labels <= 1)).all()):
        raise ValueError(f"labels must lie in [0, 1] (0 clean, 1 perturbed), got {labels.tolist()}")
    names = [name for name in gates if include(name)]
    if not names:
        raise ValueError(
            f"gates holds no layer that counts, out of {len(gates)}: collect_gates must be open around the forward "
            "pass, and the adapter must target layers that see the image"
        )
    if weights is not None and (not isinstance(weights, Tensor) or weights.shape != labels.shape):
        came = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"weights must be a tensor of labels' shape {tuple(labels.shape)}, got {came}")
    logits = [_checked(name, gates[name], labels) for name in names]
    if det_tokens == "sample" or det_layers == "pooled":
        logits = [_of_samples(logit) for logit in logits]
    if det_layers == "pooled":
        logits = [torch.stack(logits).mean(0)]
    return torch.stack([_layer_loss(logit, labels, weights) for logit in logits]).mean()


def _checked(name: str, logit: Tensor, labels: Tensor) -> Tensor:
    if logit.ndim == 0 or logit.shape[0] != labels.shape[0]:
        raise ValueError(
            f"gate logits of layer {name} have shape {tuple(logit.shape)}, expected ({labels.shape[0]}, ...): "
            f"labels has {labels.shape[0]} entries"
        )
    return logit.float()


def _of_samples(logit: Tensor) -> Tensor:
    """(B, tokens...) -> (B,), the mean over the tokens."""
    return logit.flatten(1).mean(1) if logit.ndim > 1 else logit


def _layer_loss(logit: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    def spread(of_samples: Tensor) -> Tensor:
        of_samples = of_samples.to(device=logit.device, dtype=torch.float32)
        return of_samples.reshape(-1, *(1,) * (logit.ndim - 1)).expand(logit.shape)

    return F.binary_cross_entropy_with_logits(logit, spread(labels), None if weights is None else spread(weights))

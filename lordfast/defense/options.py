"""The open choices of Stage 1 as options: the gate, its loss, and the adversary. The defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lordfast.attacks.options import PgdOptions, TargetOptions


@dataclass(kw_only=True)
class GateOptions:
    """What the gate is: see ``lordfast.LordConfig``."""

    gate_hidden: int = 16
    """Width H of the gate."""
    gate_activation: Literal["relu", "silu", "gelu"] = "silu"
    """Its activation."""
    gate_granularity: Literal["token", "sample"] = "token"
    """One lambda a token (Eq. 4 literally), or one a sample."""
    gate_input: Literal["branch", "down", "input"] = "branch"
    """What the gate reads: branch, s B A x (Eq. 4); down, A x; input, the layer's x."""
    gate_norm: Literal["none", "layer", "rms"] = "none"
    """Normalisation of what it reads, token by token, without trainable numbers."""
    gate_timestep: bool = False
    """The gate knows the diffusion timestep."""
    gate_temperature: float = 1.0
    """T in lambda = sigmoid(logit / T)."""


@dataclass(kw_only=True)
class DetectionOptions:
    """How the gate is taught (Eq. 7)."""

    lambda_det: float = 0.1
    """Weight of the detection loss (Eq. 7)."""
    det_layers: Literal["mean", "pooled"] = "mean"
    """mean: every layer's gate is to tell the images apart. pooled: the mean of all layers' logits is."""
    det_tokens: Literal["token", "sample"] = "token"
    """token: by every token. sample: by the mean logit of a sample's tokens; so always with --det-layers pooled."""
    det_timesteps: Literal["uniform", "low"] = "uniform"
    """uniform: at every timestep alike. low: weighted by alpha_bar_t, most where there is little noise."""


@dataclass(kw_only=True)
class AdversaryOptions(TargetOptions, PgdOptions):
    """Which perturbations Stage 1 sees. Its own PGD unless told otherwise."""

    adversaries: tuple[str, ...] = ()
    """Several adversaries, each an attack's name and, joined by commas, its options: pgd,eps=4/255,targeted=true mist.
    Options left out are stage1's own where it has them. Image i of k adversaries is perturbed by number i mod k.
    Attacks that train a surrogate (fsmg, aspl, ace, ace-plus) can't be among them: see --perturbed."""
    perturbed: tuple[Path, ...] = ()
    """Folders of perturbed twins that are there already, found by the names that lordfast attack gives them. Each
    counts as one more adversary. Alone they replace stage1's own PGD: name pgd in --adversaries to keep it."""
    refresh_every: int = 0
    """Epochs after which the clean images are perturbed again, on the model with the LoRD as it is by then, and the
    adversaries dealt out anew; 0 perturbs once, before the training."""
    attack_batch_size: int = 8
    """Images per forward while they are perturbed."""
    attack_steps: int = 10
    """Iterations of the perturbation."""
    step_size: str = "2/255"
    """Its step in [0, 1] pixels."""

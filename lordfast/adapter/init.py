"""How a LoRD adapter starts."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lordfast.adapter.config import LordConfig


@torch.no_grad()
def init_lord_parameters(parameters: Mapping[str, Tensor], config: LordConfig) -> None:
    """Draw the start values of one adapter in place, from torch's global generator.

    A is drawn as in LoRA, B and B' are zero: the layer's output is the base layer's to the bit. B = 0 also makes the
    gate's input s B u zero, and with it the gradient of w1. The gate still learns from the first step: w1, b1 and w2
    are drawn like nn.Linear's, so b1, w2, b2 and, through the gate, B have gradients at once (b1 is drawn because at
    b1 = 0 a relu has none); w1 follows as soon as B has moved, and learns at once where the gate reads A x or x. lambda
    starts near sigmoid(gate_init_bias). The timestep's weights are zero: the gate starts as one that does not know it.
    """
    nn.init.kaiming_uniform_(parameters["lord_A"], a=math.sqrt(5))
    if config.init_weights:
        nn.init.zeros_(parameters["lord_B"])
        nn.init.zeros_(parameters["lord_B_adv"])
    else:
        nn.init.kaiming_uniform_(parameters["lord_B"], a=math.sqrt(5))
        nn.init.kaiming_uniform_(parameters["lord_B_adv"], a=math.sqrt(5))
    hidden, features = parameters["lord_w1"].shape
    _uniform(parameters["lord_w1"], features)
    _uniform(parameters["lord_b1"], features)
    _uniform(parameters["lord_w2"], hidden)
    nn.init.constant_(parameters["lord_b2"], config.gate_init_bias)
    if "lord_wt" in parameters:
        nn.init.zeros_(parameters["lord_wt"])


def _uniform(tensor: Tensor, fan_in: int) -> None:
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(tensor, -bound, bound)

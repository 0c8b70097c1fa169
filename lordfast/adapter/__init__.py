"""LoRD as a PEFT method: its config, layers and tuner; the gate collector; save, load, remove; LoRA export and import.

Knows torch, peft and ``lordfast.ops`` only; pipelines are told apart by attribute names, never imported.
Everything above (``diffusion``, ``training``, ``defense``, ...) may import it.
"""

from lordfast.adapter.config import LordConfig
from lordfast.adapter.control import freeze_lord, lord_disabled, override_lambda, remove_lord, unfreeze_lord
from lordfast.adapter.gates import collect_gates, detection_loss, sees_image
from lordfast.adapter.layer import LordLayer, LordLinear
from lordfast.adapter.lora_export import save_lora
from lordfast.adapter.lora_import import load_lora
from lordfast.adapter.model import LordModel
from lordfast.adapter.registration import register_lord
from lordfast.adapter.save_load import load_lord, save_lord

register_lord()

__all__ = [
    "LordConfig",
    "LordLayer",
    "LordLinear",
    "LordModel",
    "collect_gates",
    "detection_loss",
    "freeze_lord",
    "load_lora",
    "load_lord",
    "lord_disabled",
    "override_lambda",
    "remove_lord",
    "save_lora",
    "save_lord",
    "sees_image",
    "unfreeze_lord",
]

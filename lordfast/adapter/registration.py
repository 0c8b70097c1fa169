"""Makes ``LORD`` known to PEFT: a member of its closed enum, and an entry in its tables."""

from __future__ import annotations

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method

from lordfast.adapter.config import LordConfig, ensure_lord_peft_type
from lordfast.adapter.guards import check_unload_for_lord
from lordfast.adapter.model import LordModel


def register_lord() -> None:
    """Register LoRD with PEFT. Doing it again changes nothing."""
    ensure_lord_peft_type()
    if PeftType("LORD") not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name="lord", config_cls=LordConfig, model_cls=LordModel, prefix=LordModel.prefix)
    check_unload_for_lord()

"""Amounts of memory, as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, **{f"{prefix}B": 1000**power for power, prefix in enumerate(("", "K", "M", "G", "T"))}}
_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate(("", "K", "M", "G", "T")) if power}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_memory(text: str, argument: str = "memory") -> int:
    """Bytes of ``24GB`` (10^9 each), ``24GiB`` (2^30 each), ``8000MB``, ``1.5 TiB``.

    Raises:
        ValueError: no positive amount, or no unit.
    """
    found = _AMOUNT.fullmatch(text)
    unit = found[2].upper() if found else None
    if found is None or not unit or unit not in _UNITS or float(found[1]) * _UNITS[unit] < 1:
        raise ValueError(f"{argument}: expected an amount such as 24GB, 24GiB or 8000MB, got {text!r}")
    return int(float(found[1]) * _UNITS[unit])


def show_memory(amount: int) -> str:
    """Bytes as GB, or as MB where that is less than one."""
    return f"{amount / 1e9:.1f} GB" if amount >= 1e9 else f"{amount / 1e6:.0f} MB"

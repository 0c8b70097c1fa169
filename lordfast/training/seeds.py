"""Seeds that depend on what is drawn and on nothing else: not on order, batch size or number of processes."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from the reprs of `parts`; stable over processes and Python versions."""
    digest = hashlib.sha256("\0".join(map(repr, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def derived_generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded with `derive_seed` of `parts`."""
    return torch.Generator("cpu").manual_seed(derive_seed(*parts))

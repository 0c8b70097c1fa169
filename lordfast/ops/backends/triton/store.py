"""The tuner's choices on disk: a JSON file for each kind of device, version of Triton and version of the kernels."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from functools import cache
from pathlib import Path

import torch
import triton

from lordfast.files import default_cache_dir, write_atomic

_log = logging.getLogger("lordfast.ops")

Choices = dict[str, dict[str, str]]  # bucket -> kernel -> name of the row


@cache
def _fingerprint() -> str:
    """Of everything that a choice depends on but the device: other kernels, other timings."""
    digest = hashlib.sha256(triton.__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}-sm{major}{minor}"


class Store:
    """Reads and adds choices. A file that can't be read or written costs a line in the log and a new tuning."""

    def path(self, device: torch.device) -> Path:
        """The file for a device."""
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{_device_name(device)}-triton{triton.__version__}-{_fingerprint()}")
        return default_cache_dir() / "triton" / f"{name}.json"

    def read(self, device: torch.device) -> Choices:
        """All choices for a device; empty where there is no readable file."""
        path = self.path(device)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or not all(isinstance(choice, dict) for choice in found.values()):
                raise ValueError("it is not a table of choices")
            return found
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _log.warning("%s is ignored, Triton configurations are tuned anew: %s", path, error)
            return {}

    def add(self, device: torch.device, bucket: str, choice: dict[str, str]) -> None:
        """Add one choice to the device's file, whole or not at all."""
        path = self.path(device)
        content = json.dumps({**self.read(device), bucket: choice}, indent=1, sort_keys=True)
        try:
            write_atomic(path, content.encode())
        except OSError as error:
            _log.warning("%s can't be written, the tuned Triton configuration is not kept: %s", path, error)

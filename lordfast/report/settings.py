"""What a run was made with, folded away: its times, versions and settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lordfast.report.blocks import Code, Details, Facts


def times_details(seconds: Mapping[str, float]) -> Details:
    """The time of each step, by its title."""
    steps = [(title, f"{spent:.1f} s") for title, spent in seconds.items()]
    return Details(f"Time per step: {sum(seconds.values()):.0f} s in all", [Facts(steps)])


def versions_details(environment: Mapping[str, Any]) -> Details:
    """What environment.json holds."""
    hardware = [(name.replace("_", " "), str(value)) for name, value in environment.items() if name != "packages"]
    return Details("Versions and machine", [Facts([*environment.get("packages", {}).items(), *hardware])])


def config_details(path: Path, title: str) -> Details:
    """A config file, as it stands.

    Raises:
        OSError: it can't be read.
    """
    return Details(title, [Code(path.read_text(encoding="utf-8").rstrip())])

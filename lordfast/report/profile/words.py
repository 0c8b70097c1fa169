"""A profile's numbers in words, the same in the terminal and on the page."""

from __future__ import annotations

from typing import Any

from lordfast.report.numbers import decimals, written


def number(value: float | None) -> str:
    """Three significant digits, no decimals behind a whole number."""
    if value is None:
        return ""
    whole = abs(value - round(value)) < 1e-9
    return written(value, 0 if whole else decimals([value]))


def amount(value: float | None) -> str:
    """`number`, and nothing for nothing."""
    if not value:
        return ""
    return number(value) if value >= 0.001 else "< 0.001"


def share(part: float, whole: float) -> str:
    """Percent."""
    return f"{100 * part / whole:.0f} %" if whole else ""


def seconds(value: float) -> str:
    """A duration in the unit that suits it."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{number(value * factor)} {unit}"
    return f"{number(value * 1e6)} µs"


def who(profile: dict[str, Any]) -> str:
    """Whose time is meant."""
    return "GPU" if profile["on_device"] else "CPU"


def busy_share(profile: dict[str, Any]) -> str:
    """How much of a traced step something ran in."""
    return share(profile["step"]["busy_ms"], profile["step"]["wall_ms"])


def headline(profile: dict[str, Any]) -> list[str]:
    """Three lines that say the most."""
    rate = profile["images"] / profile["seconds"]
    step, ran = profile["step"], "kernels ran" if profile["on_device"] else "operations ran"
    return [
        f"{profile['job']}, {profile['model']}, {images(profile)} of {profile['resolution']} px, "
        f"{profile['dtype']}, {profile['machine']['device']}",
        f"{profile['step_is'].capitalize()}: {seconds(profile['seconds'])}, {number(rate)} images/s; traced "
        f"{seconds(profile['seconds_traced'])}",
        f"{ran} in {busy_share(profile)} of it; {number(step['launches'])} launches, {waits(profile)}; "
        f"{100 * profile['mfu']:.1f} % of the measured matrix-product rate",
    ]


def images(profile: dict[str, Any]) -> str:
    """How many images a step has."""
    return "1 image" if profile["images"] == 1 else f"{profile['images']} images"


def waits(profile: dict[str, Any]) -> str:
    """How often the host waits, or would have to."""
    count = profile["step"]["waits"]
    does = "waits for the GPU" if profile["on_device"] else "reads a value"
    if count == 0:
        return f"the host never {does}"
    return f"the host {does} {'once' if count == 1 else f'{number(count)} times'}"

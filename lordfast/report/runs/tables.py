"""Numbers of a summary, whatever its shape: as facts, and as tables with intervals and reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from lordfast.report.blocks import Block, Column, Paragraph, Table
from lordfast.report.numbers import Better, Measured, decimals, written

TITLES: dict[str, tuple[str, Better | None]] = {
    "frechet_distance": ("Fréchet distance", "lower"),
    "kernel_distance": ("Kernel distance (KID)", "lower"),
    "fid": ("FID", "lower"),
    "kid": ("KID", "lower"),
    "clip_iqa": ("CLIP-IQA", "higher"),
    "clip_i": ("CLIP-I", "higher"),
    "clip_t": ("CLIP-T", "higher"),
    "dino": ("DINO similarity", "higher"),
    "psnr": ("PSNR (dB)", "higher"),
    "ssim": ("SSIM", "higher"),
    "ms_ssim": ("MS-SSIM", "higher"),
    "lpips": ("LPIPS", "lower"),
    "ism": ("Identity score matching (ISM)", "higher"),
    "fdfr": ("Face detection failure rate (FDFR)", "lower"),
    "auroc": ("AUROC of λ", "higher"),
    "lambda_clean": ("mean λ, clean images", None),
    "lambda_attacked": ("mean λ, attacked images", None),
    "largest_change": ("largest change (grey levels)", None),
    "mean_change": ("mean change (grey levels)", None),
    "share": ("share of the power", None),
    "amplitude": ("amplitude (grey levels)", None),
}
"""What known numbers are called, and which direction of them is better."""

_ENDS = ("_low", "_high")


def title_of(key: str) -> str:
    """What a number is called."""
    return TITLES[key][0] if key in TITLES else key.replace("_", " ")


def in_words(found: Measured) -> tuple[str, str]:
    """The value and its interval, to three digits of the largest of them; "" where there is no interval."""
    if not found.interval:
        return plain(found.value), ""
    digits = decimals((found.value, *found.interval))
    low, high = (written(end, digits) for end in found.interval)
    return written(found.value, digits), f"{low} to {high}"


def plain(value: float) -> str:
    """A number to four significant digits; a whole one without decimals."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == int(value):
        return f"{int(value):,}".replace("-", "\N{MINUS SIGN}")
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def facts_of(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every plain value at any depth, as (path, text); of long lists how long they are."""
    for name, value in values.items():
        path = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from facts_of(value, f"{path} / ")
        elif isinstance(value, list):
            short = len(value) <= 8 and not any(isinstance(item, list | dict) for item in value)
            yield path, (", ".join(map(text_of, value)) or "none") if short else f"{len(value):,} entries"
        else:
            yield path, text_of(value)


def text_of(value: object) -> str:
    """A plain JSON value for people."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return plain(value) if isinstance(value, int | float) else str(value)


def measured_parts(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The parts of an evaluation's summary that make a table each; scores of one number share the first one."""
    scores: dict[str, Any] = {}
    others: list[tuple[str, Mapping[str, Any]]] = []
    for name, part in summary.items():
        if not isinstance(part, Mapping) or name == "unavailable":
            continue
        if _is_score(part):
            scores[name] = part
        elif isinstance(part.get("sets"), Mapping):
            # One per kind of features; what stands beside them is the first one again.
            others += [(name, one) for one in part["sets"].values()]
        elif any(map(_is_score, part.values())) and all(_is_score(v) for v in part.values() if not isinstance(v, str)):
            scores |= {key: value for key, value in part.items() if _is_score(value)}
        else:
            others.append((name, part))
    return [*([("scores", scores)] if scores else []), *others]


def _is_score(value: object) -> bool:
    return isinstance(value, Mapping) and ("value" in value or (len(value) < 3 and "unavailable" in value))


def measure_blocks(name: str, part: Mapping[str, Any]) -> list[Block]:
    """The numbers of a part of a summary, a row each: value and interval; and why some could not be measured.

    Read are ``name`` with ``name_low`` and ``name_high`` beside it, ``{"value", "low", "high"}``, a list of these per
    timestep, and ``{"unavailable": reason}``, at any depth. Counts stand in the caption.
    """
    rows, reasons = [], []
    features = part.get("features")
    missing = part.get("unavailable")
    found = [*(_rows(part, "") if not isinstance(missing, str) else ())]
    if isinstance(missing, Mapping):
        found = [one for one in found if one[0].rstrip(" ↑↓") not in {title_of(key) for key in missing}]
        found += [(title_of(key), str(reason)) for key, reason in missing.items()]
    elif missing:
        found = [(f"{title_of(name)}{f' on {features} features' if features else ''}", str(missing))]
    for title, value in found:
        if isinstance(value, Measured):
            rows.append((title, list(in_words(value))))
        else:
            rows.append((title, ["unavailable", ""]))
            reasons.append(f"{capital(title.rstrip(' ↑↓'))} is unavailable: {value}")
    if not rows:
        return []
    table = Table("measure", [Column("value"), Column("95 % interval")], rows, _caption(name, part))
    return [table, *(Paragraph(reason) for reason in reasons)]


def capital(text: str) -> str:
    """With a capital in front; the rest, such as SSIM, stays as it is."""
    return text[:1].upper() + text[1:]


def _is_count(key: str, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and key not in TITLES


def _caption(name: str, part: Mapping[str, Any]) -> str:
    features = part.get("features")
    more = [f"{features} features"] if isinstance(features, str) else []
    more += [f"{title_of(key)} {value:,}" for key, value in part.items() if _is_count(key, value)]
    return ", ".join([capital(title_of(name)), *more])


_ARROWS = {"lower": " ↓", "higher": " ↑", None: ""}


def _rows(part: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Measured | str]]:
    for key, value in part.items():
        title = f"{prefix}{title_of(key)}"
        marked = title + _ARROWS[TITLES.get(key, ("", None))[1]]
        if key == "unavailable":
            continue
        if isinstance(value, list):
            for one in value:
                if isinstance(one, Mapping) and "value" in one and "timestep" in one:
                    yield from _rows({f"timestep {one['timestep']}": one}, prefix)
        elif isinstance(value, Mapping):
            reason = value.get("unavailable") or value.get("reason")
            if "unavailable" in value or ("value" in value and value["value"] is None and reason):
                yield marked, str(reason)
            elif "value" in value:
                found = Measured.read(dict(value))
                yield from [(marked, found)] if found is not None else []
            else:
                yield from _rows(value, f"{title}: ")
        elif _is_count(key, value) and f"{key}_low" not in part:
            continue
        elif is_number(value) and not any(key.endswith(end) and key.removesuffix(end) in part for end in _ENDS):
            found = Measured.read({"value": value, **{end[1:]: part.get(f"{key}{end}") for end in _ENDS}})
            yield from [(marked, found)] if found is not None else []

"""The end of an attack: what summary.json says, of the whole run or of one of its shares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lordfast.attacks.share import Share
from lordfast.training.run import RunFolder, write_json

_SHARES = "shares"


def finished_share(out: Path, share: Share) -> dict[str, Any] | None:
    """What `finish` said of a share that is done; None if it is not, and for a whole run.

    Raises:
        ValueError: all shares are done, and no image of them could be read.
    """
    mark = share.siblings(Path(out) / _SHARES)[0]
    if share.count == 1 or not mark.exists():
        return None
    # The last share may have ended right before this.
    _finish_whole(Path(out), share)
    return json.loads(mark.read_text(encoding="utf-8"))


def finish(run: RunFolder, share: Share, about: dict[str, Any], skipped: int, seconds: float) -> dict[str, Any]:
    """Put the rows in order and write summary.json; a share leaves a file of its own, and the last of them both.

    Args:
        about: what the rows don't say.

    Returns:
        The summary of what this run, or this share of it, has done.

    Raises:
        ValueError: this was all, and no image of it could be read.
    """
    summary = _summary(run.collect(), about, skipped, seconds)
    if share.count == 1:
        return run.finish(_some(summary))
    write_json(share.siblings(run.path / _SHARES)[0], summary)
    _finish_whole(run.path, share)
    return summary


def _finish_whole(out: Path, share: Share) -> None:
    """Write summary.json if all shares are done."""
    marks = share.siblings(out / _SHARES)
    if not all(mark.exists() for mark in marks):
        return
    each = [json.loads(mark.read_text(encoding="utf-8")) for mark in marks]
    whole = RunFolder(out)
    # The shares' own rows stay: another share that comes here at this moment reads them too.
    rows = whole.collect(tidy=False)
    seconds = round(sum(one["seconds"] for one in each), 2)
    # What was skipped of archives stands in the rows.
    skipped = sum(one["skipped"] for one in each) - sum(row.get("skipped", 0) for row in rows)
    # What the rows don't say is the same for all; the rest is replaced.
    whole.finish(_some(_summary(rows, each[0], skipped, seconds)))


def _some(summary: dict[str, Any]) -> dict[str, Any]:
    if not summary["images"]:
        raise ValueError(f"images: none could be read; {summary['skipped']} were skipped")
    return summary


def _summary(rows: Sequence[dict[str, Any]], about: dict[str, Any], skipped: int, seconds: float) -> dict[str, Any]:
    """Of rows of images, or of archives, which say of how many images they are."""
    images = sum(row.get("images", 1) for row in rows)
    unchanged = sum(row["unchanged"] if "images" in row else row["largest_change"] == 0 for row in rows)
    means = {}
    for name in ("loss_clean", "loss_attacked"):
        # A share of a small folder may be empty, and so may an archive.
        means[name] = (
            sum(row[name] * row.get("images", 1) for row in rows if row.get("images", 1)) / images if images else None
        )
    counts = {"images": images, "skipped": skipped + sum(row.get("skipped", 0) for row in rows)}
    if any("without_image" in row for row in rows):
        counts["without_image"] = sum(row.get("without_image", 0) for row in rows)
    return {**about, **counts, "unchanged": unchanged, **means, "seconds": seconds}

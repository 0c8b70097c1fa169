"""The parts of a page that every run has: curves, warnings, and what it was made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lordfast.report.blocks import Block, Chart, Column, Details, Facts, Paragraph, Section, Table, Tile
from lordfast.report.charts import histogram
from lordfast.report.loss_charts import curve, loss_chart
from lordfast.report.runs.read import CONFIG, Run
from lordfast.report.runs.tables import capital, facts_of, is_number, plain, title_of
from lordfast.report.settings import config_details, times_details, versions_details

_NOT_MEASURED = ("step", "seed", "timestep", "variant")


def metric_charts(rows: Sequence[Mapping[str, Any]], shown: Sequence[str] = ()) -> list[Chart]:
    """A curve over steps for every number that rows log, except those `shown` elsewhere.

    Losses are smoothed: they jump with the noise level that a step draws.
    """
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if is_number(value))
    charts = []
    for key in keys:
        line = curve(list(map(dict, rows)), key, title_of(key))
        if key in (*_NOT_MEASURED, *shown) or len(set(line.x)) < 2:
            continue
        is_loss = "loss" in key or key.startswith(("ldm", "detection"))
        charts.append(loss_chart(capital(title_of(key)), [line], y_label=title_of(key), smooth=is_loss))
    return charts


def histogram_chart(title: str, groups: Mapping[str, Sequence[float]], x_label: str, caption: str = "") -> Chart | None:
    """The distribution of each group's values; None where a group has none, or all have one and the same value."""
    finite = {name: [value for value in values if is_number(value)] for name, values in groups.items()}
    everything = {value for values in finite.values() for value in values}
    if not finite or not all(finite.values()) or len(everything) < 2:
        return None
    means = "; ".join(f"{name}: mean {plain(sum(v) / len(v))} of {len(v)}" for name, v in finite.items())
    drawn = histogram(list(finite.items()), x_label=x_label)
    return Chart(title, drawn, f"Histogram, {title}. {means}.", caption)


def finite_count(rows: Sequence[Mapping[str, Any]], key: str) -> int:
    """In how many rows `key` is a number, but none that is finite."""
    return sum(isinstance(row.get(key), float) and not is_number(row[key]) for row in rows)


def progress_of(run: Run, total: int | None, what: str) -> str:
    """How far an unfinished run is, for the note at the top."""
    done = max((row["step"] for row in run.rows if is_number(row["step"])), default=0)
    if not total:
        return f"{done:,} {what} so far" if done else "nothing is logged yet"
    return f"{min(done, total):,} of {total:,} {what}"


def seconds_tile(run: Run, count: float | None = None, what: str = "") -> list[Tile]:
    """The time that a finished run took, and how many of something that is a second."""
    seconds = (run.summary or {}).get("seconds")
    if not isinstance(seconds, int | float):
        return []
    lines = [f"{plain(count / seconds)} {what} a second"] if count and seconds > 0 else []
    return [Tile("Time", duration(seconds), lines)]


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def warnings_section(run: Run) -> list[Section]:
    """What the run itself warned of."""
    found = (run.summary or run.results or {}).get("warnings")
    texts = dict.fromkeys(map(str, found)) if isinstance(found, list) else {}
    return [Section("Warnings", [Paragraph(sentence(text)) for text in texts])] if texts else []


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{capital(text)}{'' if text.endswith(('.', '!', '?')) else '.'}"


def phases_table(seconds: Mapping[str, Any]) -> Table | None:
    """``{phase: {"cells", "mean", "total"}}`` as a table."""
    rows: list[tuple[str, list[str | None]]] = []
    for name, spent in seconds.items():
        if isinstance(spent, Mapping):
            cells = [spent.get("cells"), spent.get("mean"), spent.get("total")]
            rows.append((name, [plain(cell) if is_number(cell) else None for cell in cells]))
    if not rows:
        return None
    columns = [Column("cells"), Column("seconds each"), Column("seconds in all")]
    return Table("phase", columns, [(name, list(cells)) for name, cells in rows], "Where the time went")


def settings_section(run: Run, seconds: Mapping[str, float]) -> Section:
    """Time, versions, every number of the summary, and the complete config."""
    blocks: list[Block] = []
    total = (run.summary or {}).get("seconds")
    if seconds:
        blocks.append(times_details(seconds))
    elif is_number(total):
        blocks.append(Paragraph(f"The run took {duration(total)}."))
    elif isinstance(found := (run.results or run.summary or {}).get("seconds"), Mapping):
        table = phases_table(found)
        blocks += [table] if table is not None else []
    if run.environment:
        blocks.append(versions_details(run.environment))
    if run.summary is not None:
        blocks.append(Details("Every number of the summary", [Facts(list(facts_of(run.summary)))]))
    again = f"It repeats the run: lordfast {run.command} --config {CONFIG} --out DIR"
    config = config_details(run.path / CONFIG, f"The complete config, {CONFIG}")
    blocks.append(Details(config.summary, [Paragraph(again), *config.blocks]))
    return Section("Settings, versions, time", blocks)

"""Pages of experiments: the table with intervals, what each method closes of the gap, curves, pictures, and lambda."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lordfast.report.blocks import Block, Chart, Charts, Column, Details, Paragraph, Section, Table, Tile
from lordfast.report.charts import Line, interval_chart, line_chart
from lordfast.report.gate_charts import lambda_maps
from lordfast.report.numbers import Measured
from lordfast.report.runs.album import Album
from lordfast.report.runs.cells import Cells, loss_blocks, picture_blocks
from lordfast.report.runs.common import duration
from lordfast.report.runs.content import Content, counted, section
from lordfast.report.runs.outcomes import MEAN, Measure, Row, kinds_of, read_outcomes
from lordfast.report.runs.read import Run
from lordfast.report.runs.tables import in_words

GAP = "gap_closed"
CLEAN, PLAIN = "clean-lora", "lora"
"""The LoRA without a defense, of clean and of attacked pictures."""

KINDS = {
    GAP: "Share of the gap closed",
    "against_clean": "Difference to the LoRA of clean pictures",
    "against_lora": "Difference to the undefended LoRA",
    "against_unpurified": "Purified minus unpurified",
}
"""What the kinds of estimates beside the mean are called."""

_READING = (
    "Intervals are 95 % intervals over replicates, not over images. An interval of a difference that includes 0 shows "
    "no effect, and of many comparisons about 1 in 20 leaves 0 out by chance alone. The share of the gap closed is "
    "mean(attacked − method) / mean(attacked − clean): 1 is as good as clean, 0 as bad as attacked; it has no interval "
    "where the attack’s own effect may be 0."
)


def describe_experiment(run: Run, album: Album) -> Content:
    """The page of a finished, a half-finished or a failed experiment."""
    results = run.results or {}
    measures, rows = read_outcomes(results)
    cells = Cells(run)
    pictures = cells.pictures()
    sections = _results(measures, rows)
    sections += section("Lambda: does the gate notice the attack?", *_gates(results), *cells.gates())
    for dataset in dict.fromkeys(one.dataset for one in pictures):
        shown = [one for one in pictures if one.dataset == dataset]
        sections += section(f"Pictures: {dataset}" if dataset else "Pictures", *picture_blocks(shown, album))
    sections += section("Loss", *loss_blocks(pictures, cells.lords()))
    sections += section("Failed cells", _failed(results))
    return Content(
        f"Experiment {run.name}",
        _story(run, results),
        _tiles(results, measures, rows),
        sections,
        notes=[] if results.get("complete") else [_unfinished(results)],
    )


def _story(run: Run, results: Mapping[str, Any]) -> str:
    model = results.get("model", run.config.get("model"))
    said = f"{counted(int(results.get('replicates') or 0), 'replicate')} on the model {model}"
    parts = [
        counted(int(results[name]), word)
        for name, word in (("identities", "identity"), ("seeds", "seed"))
        if isinstance(results.get(name), int)
    ]
    text = f"{said}{f': {parts[0]}, {parts[1]} each' if len(parts) == 2 else ''}."
    return text.replace("identitys", "identities")


def _unfinished(results: Mapping[str, Any]) -> str:
    cells = results.get("cells")
    if not isinstance(cells, Mapping):
        return "This experiment is unfinished: no table was written yet."
    parts = [f"{cells['left']} are still to be computed"] if cells.get("left") else []
    parts += [f"{cells['failed']} failed"] if cells.get("failed") else []
    parts += [f"{cells['blocked']} need a failed one"] if cells.get("blocked") else []
    return (
        f"This experiment is unfinished: {cells.get('done', 0)} of {cells.get('all', 0)} cells are there"
        f"{', ' if parts else ''}{', '.join(parts)}. Rows rest on the replicates that n counts."
    )


def _tiles(results: Mapping[str, Any], measures: Sequence[Measure], rows: Sequence[Row]) -> list[Tile]:
    cells = results.get("cells") or {}
    done = f"{cells.get('done', 0):,} of {cells.get('all', 0):,}"
    failed = [f"{cells[state]:,} {state}" for state in ("failed", "blocked", "left") if cells.get(state)]
    tiles = [Tile("Cells", done, failed, "bad" if cells.get("failed") else "neutral")] if cells else []
    name = _namer(rows)
    for measure in measures[:2]:
        gaps = [(row, found) for row in rows if (found := row.estimates.get(measure.key, {}).get(GAP)) is not None]
        if gaps:
            above = sum(found.low is not None and found.low > 0 for _, found in gaps)
            lines = [
                f"{name(row)}: {' ('.join(filter(None, in_words(f)))}{')' if f.interval else ''}" for row, f in gaps
            ]
            more = [f"and {len(lines) - 6} more, below"] if len(lines) > 6 else []
            bounded = sum(found.interval is not None for _, found in gaps)
            value = f"{above} of {bounded} intervals are above 0" if bounded else "Can’t be said"
            if not bounded:
                lines.insert(0, "no intervals: the attack’s own effect may be 0")
            tiles.append(Tile(f"Gap closed, {measure.title}", value, [*lines[:6], *more]))
    spent = sum(phase["total"] for phase in (results.get("seconds") or {}).values() if isinstance(phase, Mapping))
    return [*tiles, *([Tile("Time of all cells", duration(spent), ["by one process or several"])] if spent else [])]


def _namer(rows: Sequence[Row]) -> Callable[[Row], str]:
    """What to call a row among all: its method, with its dataset and setting where there are several."""
    datasets = len({row.dataset for row in rows}) > 1
    settings = len({row.setting for row in rows if row.setting}) > 1
    return lambda row: ", ".join(
        filter(None, [row.title, row.dataset if datasets else "", row.setting if settings else ""])
    )


def _results(measures: Sequence[Measure], rows: Sequence[Row]) -> list[Section]:
    sections = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        own = [row for row in rows if row.dataset == dataset]
        present = [m for m in measures if any(row.cell(m.key) is not None for row in own)]
        blocks: list[Block] = [Paragraph(_READING), *_shares(present, own)]
        groups = _settings(own)
        # One of them open, that of which most is known; more would bury the rest of the page.
        shown = max(groups, key=lambda setting: sum(row.n > 0 for row in groups[setting]))
        for setting, group in sorted(groups.items(), key=lambda item: item[0] != shown):
            found = _group(setting, present, group)
            blocks += found if setting == shown else [Details(setting, found)]
        sections += section(f"Results: {dataset}" if dataset else "Results", *blocks)
    return sections


def _settings(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what the pictures went through; the first row, of clean pictures, stands in every group."""
    reference = [row for row in rows if not row.setting][:1]
    names = list(dict.fromkeys(row.setting for row in rows if row.setting))
    groups = {name: [*reference, *(row for row in rows if row.setting == name)] for name in names}
    clean = [row for row in rows if not row.setting]
    if not names:
        return {"": clean}
    return {**groups, **({"clean pictures": clean} if len(clean) > 1 else {})}


def _group(setting: str, measures: Sequence[Measure], rows: Sequence[Row]) -> list[Block]:
    blocks: list[Block] = [_table(setting, measures, rows, MEAN)]
    blocks += [Charts(charts)] if (charts := _interval_charts(setting, measures, rows, MEAN)) else []
    reasons = dict.fromkeys(
        f"{m.title} is unavailable: {row.reasons[m.key]}" for m in measures for row in rows if m.key in row.reasons
    )
    blocks += [Paragraph(text) for text in reasons]
    for kind in kinds_of(rows):
        title = f"{KINDS.get(kind, kind.replace('_', ' '))}{f': {setting}' if setting else ''}"
        found: list[Block] = [_table(title, measures, rows, kind)]
        found += [Charts(charts)] if (charts := _interval_charts(setting, measures, rows, kind)) else []
        blocks += found if kind == GAP else [Details(title, found)]
    return blocks


def _table(title: str, measures: Sequence[Measure], rows: Sequence[Row], kind: str) -> Table:
    better = {MEAN: lambda m: m.better, GAP: lambda _: "higher"}.get(kind, lambda m: m.better)
    lines = [(row.title, [str(row.n), *(row.cell(m.key, kind) for m in measures)]) for row in rows]
    kept = [line for line in lines if kind == MEAN or any(cell is not None for cell in line[1][1:])]
    return Table("method", [Column("n"), *(Column(m.title, better(m)) for m in measures)], kept, title)


def _interval_charts(setting: str, measures: Sequence[Measure], rows: Sequence[Row], kind: str) -> list[Chart]:
    charts = []
    references = {GAP: [("attacked", 0.0), ("clean", 1.0)], MEAN: []}.get(kind, [("no difference", 0.0)])
    for measure in measures:
        found = [(row.title, one) for row in rows if (one := row.estimates.get(measure.key, {}).get(kind)) is not None]
        if len(found) < 2 or not any(one.interval for _, one in found):
            continue
        better = "higher" if kind == GAP else measure.better
        label = f"{measure.title}{f' ({better} is better)' if better and kind in (MEAN, GAP) else ''}"
        says = "; ".join(f"{name} {one.value:.4g}" for name, one in found)
        title = measure.title if kind == MEAN else f"{KINDS.get(kind, kind)}: {measure.title}"
        drawn = interval_chart(found, x_label=label, references=references)
        charts.append(Chart(title, drawn, f"{title}: {says}.", setting))
    return charts


def _shares(measures: Sequence[Measure], rows: Sequence[Row]) -> list[Block]:
    """Curves over the share of attacked pictures, where an experiment varies it, of each attack and budget."""
    clean = {row.method or row.title: row for row in rows if not row.setting}
    # The LoRA of clean pictures is the plain one at no attacked picture, and nobody else's.
    if CLEAN in clean:
        clean.setdefault(PLAIN, clean[CLEAN])
    blocks: list[Block] = []
    for attack in dict.fromkeys(row.attack for row in rows if row.setting):
        attacked = [row for row in rows if row.setting and row.attack == attack]
        if len({row.share for row in attacked}) < 2:
            continue
        charts = [chart for measure in measures if (chart := _share_chart(measure, attack, attacked, clean))]
        if charts:
            drawn = Charts(charts)
            blocks.append(Details(f"Over the share of attacked pictures: {attack}", [drawn]) if blocks else drawn)
    return blocks


def _share_chart(measure: Measure, attack: str, rows: Sequence[Row], clean: Mapping[str, Row]) -> Chart | None:
    """A line per method over its `rows`, from what it gave on `clean` pictures, where it was run on them."""
    lines = []
    for method in dict.fromkeys(row.method or row.title for row in rows):
        own = [row for row in rows if (row.method or row.title) == method]
        points = {0.0: clean[method]} if method in clean else {}
        points |= {row.share: row for row in own}
        found = {
            100 * share: one
            for share, row in sorted(points.items())
            if (one := row.estimates.get(measure.key, {}).get(MEAN)) is not None
        }
        if found:
            values = list(found.values())
            lines.append(Line(own[0].title, list(found), [v.value for v in values], [v.interval for v in values]))
    if not lines:
        return None
    drawn = line_chart(lines, x_label="attacked training pictures, %", y_label=measure.title, points=True)
    better = f"{measure.better.capitalize()} is better. " if measure.better else ""
    says = "; ".join(f"{line.label} {line.y[0]:.4g} to {line.y[-1]:.4g}" for line in lines)
    title = f"{measure.title} over the share of attacked pictures: {attack}"
    return Chart(title, drawn, f"{title}: {says}.", f"{better}Bars: 95 % intervals over replicates.")


def _gates(results: Mapping[str, Any]) -> list[Block]:
    """AUROC of every LoRD and attack, and their maps, means over replicates."""
    rows = [row for row in results.get("gates") or [] if isinstance(row, Mapping) and row.get("n")]
    if not rows:
        return []
    keys = ("auroc", "lambda_clean", "lambda_attacked")
    columns = [Column("n"), Column("AUROC", "higher"), Column("λ, clean"), Column("λ, attacked")]
    table, bars, maps = [], [], []
    for row in rows:
        parts = [row.get(name) for name in ("dataset", "method", "attack", "eps")]
        title = ", ".join(str(part) for part in parts if part)
        found = [Measured.read(row["measures"].get(key)) for key in keys]
        table.append((title, [str(row["n"]), *found]))
        bars += [(title, found[0])] if found[0] is not None else []
        if row.get("cells") and row.get("timesteps"):
            maps.append(Details(f"Maps: {title}", [lambda_maps(dict(row))]))
    blocks: list[Block] = [Table("LoRD and attack", columns, table, "AUROC of λ, means over replicates")]
    if bars:
        drawn = interval_chart(bars, x_label="AUROC (0.5 is chance)", references=[("chance", 0.5)])
        says = "; ".join(f"{name} {one.value:.2f}" for name, one in bars)
        blocks.append(
            Charts([Chart("AUROC of λ over all layers", drawn, f"AUROC: {says}.", "Intervals over replicates.")])
        )
    return [*blocks, *maps]


def _failed(results: Mapping[str, Any]) -> Table | None:
    failed = results.get("failed") or []
    rows = [(str(one.get("cell")), [str(one.get("type", "")), str(one.get("message", ""))]) for one in failed]
    return (
        Table("cell", [Column("error"), Column("what it said")], rows, "--retry computes them again") if rows else None
    )

"""profile.html: the numbers of profile.json for people."""

from __future__ import annotations

from typing import Any

from lordfast.report.blocks import (
    Chart,
    Charts,
    Column,
    Details,
    Facts,
    Note,
    Page,
    Paragraph,
    Section,
    Table,
    Tile,
    Tiles,
)
from lordfast.report.numbers import Measured
from lordfast.report.profile.charts import Bar, Point, bar_chart, roofline
from lordfast.report.profile.words import busy_share, headline, number, seconds, share, waits, who


def profile_page(profile: dict[str, Any]) -> Page:
    """The page of a profile."""
    return Page(
        title=f"Where the time of {profile['job']} goes",
        kicker="lordfast profile",
        top=[Paragraph(headline(profile)[0]), _tiles(profile)],
        sections=[_time(profile), _layers(profile), _host(profile), _operations(profile), _method(profile)],
        foot=f"lordfast {profile['machine']['lordfast']}, torch {profile['machine']['torch']}.",
    )


def _measured(value: float | None) -> Measured | None:
    return Measured.read(value)


def _tiles(profile: dict[str, Any]) -> Tiles:
    step, reads = profile["step"], [row for row in profile["waits"] if row["per_step"] > 0]
    gpu = profile["on_device"]
    rate = profile["images"] / profile["seconds"]
    where = ", ".join(dict.fromkeys(row["phase"] or "outside of the phases" for row in reads))
    memory = [f"at most {profile['peak_bytes'] / 2**30:.2f} GiB in use"] if profile["peak_bytes"] else []
    return Tiles(
        [
            Tile(
                profile["step_is"].capitalize(),
                seconds(profile["seconds"]),
                [f"{number(rate)} images a second", *memory],
            ),
            Tile(
                f"Of that the {who(profile)} works",
                busy_share(profile),
                ["kernels run" if gpu else "operations run; the rest is Python and what waits for it"],
            ),
            Tile(
                "Of the matrix-product rate",
                f"{100 * profile['mfu']:.1f} %",
                [f"{profile['flops']['model'] / 1e9:,.1f} GFLOP a step, forward and backward"],
            ),
            Tile(
                "The host waits" if gpu else "The host reads a value",
                f"{number(step['waits'])} ×",
                [f"in {where}" if where else "never: it runs ahead", f"{number(step['launches'])} launches"],
            ),
        ]
    )


def _time(profile: dict[str, Any]) -> Section:
    gpu = profile["on_device"]
    columns = [
        Column("ms", explanation="From its beginning to its end, phases within it included."),
        Column("of the step"),
        Column("own ms", explanation="Outside of the phases within it; the columns that follow are of this part."),
        Column("host busy ms" if gpu else "busy ms", explanation="The CPU is in operations of torch or lordfast."),
    ]
    if gpu:
        columns.append(Column("GPU ms", explanation="Kernels and copies that were launched there; they run later."))
    columns += [
        Column(
            "launches",
            explanation="Kernels and copies."
            if gpu
            else "Operations that compute something; of compiled code, those that it calls.",
        ),
        Column("waits", explanation=_WAITS if gpu else _READS),
        Column("GFLOP"),
        Column("GB", explanation="What the operations must read and write, each array once."),
    ]
    rows: list[tuple[str, list[Measured | str | None]]] = []
    for row in profile["phases"]:
        device = [_measured(row["device_ms"])] if gpu else []
        cells = [
            _measured(row["wall_ms"]),
            share(row["wall_ms"], profile["step"]["wall_ms"]),
            _measured(row["own_ms"]),
            _measured(row["busy_ms"]),
            *device,
            number(row["launches"]),
            number(row["waits"]),
            _measured(row["flops"] / 1e9),
            _measured(row["bytes"] / 1e9),
        ]
        rows.append((row["phase"].replace("/", " / "), cells))
    bars = [
        Bar(row["phase"].replace("/", " / "), (row["busy_ms"], max(0.0, row["own_ms"] - row["busy_ms"])))
        for row in profile["phases"]
        if row["own_ms"] > 0
    ]
    blocks: list[Any] = []
    if bars:
        spoken = "; ".join(f"{bar.label} {number(sum(bar.parts))} ms" for bar in bars)
        blocks.append(
            Charts(
                [
                    Chart(
                        "The host's time by phase",
                        bar_chart(bars, ("in operations", "in none"), x_label="ms of a traced step"),
                        f"Bars: {spoken}.",
                        "Each phase without those within it.",
                    ),
                    *_kind_chart(profile),
                ]
            )
        )
    blocks.append(Table("Phase", columns, rows, caption="A traced step, phase by phase"))
    return Section("Phases", blocks)


_LAUNCHES = "Operations that compute something; of compiled code, those that it calls."
_WAITS = "The host waits until the GPU is done: cudaStreamSynchronize and the like."
_READS = (
    "The host reads a number out of a tensor: on a GPU, it would wait for it, unless the tensor is the CPU's anyway."
)


def _kind_chart(profile: dict[str, Any], most: int = 9) -> list[Chart]:
    times: dict[str, dict[str, float]] = {}
    for row in profile["kinds"]:
        times.setdefault(row["kind"], {})[row["pass"]] = row["ms"]
    ranked = sorted(times.items(), key=lambda item: -sum(item[1].values()))[:most]
    passes = [name for name in ("forward", "backward", "recompute") if any(name in found for _, found in ranked)]
    bars = [Bar(kind, [found.get(name, 0.0) for name in passes]) for kind, found in ranked if sum(found.values())]
    if not bars:
        return []
    spoken = "; ".join(f"{bar.label} {number(sum(bar.parts))} ms" for bar in bars)
    work = "kernels" if profile["on_device"] else "operations"
    return [
        Chart(
            f"The {who(profile)}'s time by kind of layer",
            bar_chart(bars, passes, x_label=f"ms of a traced step in {work}"),
            f"Bars: {spoken}.",
            "A layer within another counts for itself.",
        )
    ]


def _layers(profile: dict[str, Any]) -> Section:
    dtype, ceilings = profile["dtype"], profile["ceilings"]
    points = [
        Point(row["kind"], row["pass"], row["intensity"], row["gflops"], row["ms"])
        for row in profile["kinds"]
        if row["intensity"] and row["gflops"]
    ]
    blocks: list[Any] = []
    if points:
        spoken = "; ".join(f"{p.kind} {p.direction} {number(p.intensity)} and {number(p.gflops)}" for p in points[:12])
        roof = f"{number(ceilings['gflops'][dtype])} GFLOP/s and {number(ceilings['gbps'])} GB/s"
        drawn = roofline(points, gbps=ceilings["gbps"], gflops=ceilings["gflops"][dtype])
        blocks.append(
            Charts(
                [
                    Chart(
                        f"Roofline, {dtype}",
                        drawn,
                        f"FLOPs per byte and GFLOP/s: {spoken}. The roof: {roof}.",
                        f"The roof is what this machine reached in the same run: {roof}. Under the slope, memory "
                        "limits; under the flat part, arithmetic. Large marks take much time; what lies far below the "
                        "roof wastes it. Caches can lift a mark above the slope.",
                    )
                ],
                cards=1,
            )
        )
    columns = [
        Column("pass"),
        Column("layers"),
        Column("ms"),
        Column("launches"),
        Column("launches a layer"),
        Column("GFLOP"),
        Column("GB"),
        Column("FLOPs per byte"),
        Column("GFLOP/s", better="higher"),
        Column("GB/s", better="higher"),
        Column("of the roof, %", better="higher", explanation="Of what the roofline allows at these FLOPs per byte."),
    ]
    rows = [(row["kind"], _kind_cells(row)) for row in profile["kinds"]]
    blocks.append(Table("Kind", columns, rows, caption="Layers by kind and pass, in a step"))
    longest = sorted(profile["layers"], key=lambda row: -row["ms"])[:40]
    single = [
        (
            row["layer"],
            [row["pass"], _measured(row["ms"]), number(row["launches"]), _measured(row["flops"] / 1e9)],
        )
        for row in longest
    ]
    if single:
        table = Table("Layer", [Column("pass"), Column("ms"), Column("launches"), Column("GFLOP")], single)
        blocks.append(Details(f"The {len(single)} layers and passes that take longest", [table]))
    return Section("Layers", blocks)


def _kind_cells(row: dict[str, Any]) -> list[Measured | str | None]:
    first = [row["pass"], number(row["layers"] or None), _measured(row["ms"]), number(row["launches"])]
    first.append(_measured(row["launches_per_layer"]))
    work = [_measured(row["flops"] / 1e9), _measured(row["bytes"] / 1e9)]
    rates = [_measured(row[name]) for name in ("intensity", "gflops", "gbps")]
    return [*first, *work, *rates, _measured(None if row["of_roof"] is None else 100 * row["of_roof"])]


def _host(profile: dict[str, Any]) -> Section:
    gpu = profile["on_device"]
    blocks: list[Any] = [Paragraph(f"In a step, {waits(profile)}. {_WAITS if gpu else _READS}")]
    if profile["waits"]:
        rows: list[tuple[str, list[Measured | str | None]]] = [
            (
                row["operation"],
                [
                    number(row["per_step"]),
                    row["phase"].replace("/", " / ") or "outside of the phases",
                    "; ".join(f"{found['line']} ({found['times']} ×)" for found in row["lines"][:3]) or None,
                ],
            )
            for row in profile["waits"]
        ]
        columns = [Column("in a step"), Column("phase"), Column("line", explanation="Found in a step of its own.")]
        blocks.append(Table("By", columns, rows, caption="Waits" if gpu else "Values read"))
    if profile["gaps"]:
        idle = "no kernel ran" if gpu else "no operation ran"
        gaps: list[tuple[str, list[Measured | str | None]]] = [
            (str(i + 1), [_measured(gap["ms"]), gap["phase"].replace("/", " / "), gap["after"], gap["before"]])
            for i, gap in enumerate(profile["gaps"])
        ]
        columns = [Column("ms"), Column("phase"), Column("after"), Column("before")]
        blocks.append(Table("Gap", columns, gaps, caption=f"The longest times in which {idle}, in all traced steps"))
    return Section("Waits and gaps", blocks)


def _operations(profile: dict[str, Any]) -> Section:
    whole = sum(row["ms"] for row in profile["operations"])
    rows: list[tuple[str, list[Measured | str | None]]] = [
        (row["name"], [_measured(row["ms"]), share(row["ms"], whole), number(row["calls"])])
        for row in profile["operations"]
    ]
    what = "Kernels" if profile["on_device"] else "Operations, each without those that it calls"
    return Section(
        what.partition(",")[0],
        [Table("Name", [Column("ms"), Column("of these"), Column("calls")], rows, caption=f"{what}, in a step")],
    )


def _method(profile: dict[str, Any]) -> Section:
    machine, steps = profile["machine"], profile["steps"]
    slower = profile["seconds_traced"] / profile["seconds"]
    ceilings = ", ".join(f"{name} {number(rate)} GFLOP/s" for name, rate in profile["ceilings"]["gflops"].items())
    facts = [
        ("Device", machine["device"]),
        ("CPU threads", machine["threads"]),
        ("Model", f"{profile['model']}, {profile['weights']} weights"),
        ("Steps", f"{steps['timed']} timed, then {steps['traced']} traced, then one counted"),
        (
            "Undisturbed",
            f"{seconds(profile['seconds'])} a step; each {', '.join(map(seconds, profile['seconds_each']))}",
        ),
        ("Traced", f"{seconds(profile['seconds_traced'])} a step, {slower:.2f} times the undisturbed one"),
        ("Copy", f"{number(profile['ceilings']['gbps'])} GB/s, measured in this run"),
        ("Matrix product", f"{ceilings}, measured in this run"),
        ("FLOPs", "Matrix products, convolutions, attention and lordfast's own operations; a multiply-add is two."),
    ]
    if profile["flops"]["recompute"]:
        facts.append(("Recomputed", f"{profile['flops']['recompute'] / 1e9:,.1f} GFLOP a step, not in the rates above"))
    blocks: list[Any] = [
        Paragraph(
            "A step's duration, images a second and the share of the matrix-product rate come from undisturbed steps. "
            "Everything else comes from traced ones: the profiler lengthens each operation and the Python between "
            f"them, here to {slower:.2f} times the step, so small operations look more expensive than they are."
        ),
        Facts(facts),
        Paragraph("profile.json holds every number; trace.json.gz opens in Perfetto (ui.perfetto.dev)."),
    ]
    if slower > 1.5:
        blocks.insert(0, Note(f"The profiler made these steps {slower:.1f} times as long: trust the shares with care."))
    return Section("How it was measured", blocks)

"""The results of a study as Markdown and CSV: the paper's layout first, then everything that was measured."""

from __future__ import annotations

import csv
import io
from typing import Any

from lordfast.evaluation.experiments.effects_table import cell_text, counted, times, unfinished
from lordfast.evaluation.table import Section, section_to_markdown

TITLES = {"clean-lora": "LoRA, clean images", "lora": "LoRA, no defense", "pgd2": "PGD-2 defense", "lord": "LoRD"}
_ARROWS = {"lower": "↓", "higher": "↑"}
EFFECTS = ("against_clean", "against_lora", "gap_closed")


def title_of(method: str) -> str:
    """``LoRD (soft)`` of ``lord:soft``."""
    word, colon, variant = method.partition(":")
    first, plus, rest = word.partition("+")
    text = TITLES.get(word, f"{first} + {TITLES.get(rest, rest)}" if plus else word)
    return f"{text} ({variant})" if colon else text


def settings_of(results: dict[str, Any]) -> list[tuple[str, int, float]]:
    """(attack, place of the budget in its dataset's list, proportion) of all attacked rows, in their order."""
    rows = (row for row in results["rows"] if row["attack"] is not None)
    return list(dict.fromkeys((row["attack"], row["budget"], row["proportion"]) for row in rows))


def rows_of(results: dict[str, Any], dataset: str, setting: tuple[str, int, float]) -> list[dict[str, Any]]:
    """The clean LoRA's row and those of the methods on pictures attacked in this way."""
    rows = [row for row in results["rows"] if row["dataset"] == dataset]
    clean = [row for row in rows if row["method"] == "clean-lora"]
    return clean + [row for row in rows if (row["attack"], row["budget"], row["proportion"]) == setting]


def headline(results: dict[str, Any]) -> list[dict[str, str]]:
    """The columns of the paper's table: picture quality, where it could be measured, and the first distance."""
    columns = results["columns"]
    quality = [column for column in columns if column["key"] == "clip-iqa"]
    distance = [column for column in columns if column["key"].startswith("frechet")][:1]
    return [*quality, *distance] or columns[:1]


def setting_title(results: dict[str, Any], setting: tuple[str, int, float]) -> str:
    """``pgd, 16/255``, with each dataset's budget where they differ."""
    budgets = {
        row["dataset"]: row["eps"]
        for row in results["rows"]
        if (row["attack"], row["budget"], row["proportion"]) == setting
    }
    several = len(set(budgets.values())) > 1
    text = ", ".join(f"{name} {eps}" for name, eps in budgets.items()) if several else next(iter(budgets.values()))
    share = "" if setting[2] == 1 else f", {setting[2]:.0%} of the pictures"
    return f"{setting[0]}, {text}{share}"


def paper_table(results: dict[str, Any], setting: tuple[str, int, float]) -> Section:
    """Methods down, datasets across."""
    columns = headline(results)
    datasets = results["datasets"]
    heads = ["method", *(f"{d}: {c['title']} {_ARROWS[c['better']]}" for d in datasets for c in columns)]
    lines: dict[str, list[str]] = {}
    for place, dataset in enumerate(datasets):
        for row in rows_of(results, dataset, setting):
            cells = lines.setdefault(row["method"], ["-"] * (len(datasets) * len(columns)))
            for index, column in enumerate(columns):
                cells[place * len(columns) + index] = _value(row, column["key"], results["per_dataset"])
    rows = [[title_of(method), *cells] for method, cells in lines.items()]
    return Section(f"{setting_title(results, setting)}: means", heads, rows)


def _value(row: dict[str, Any], key: str, n: int) -> str:
    entry = row["measures"].get(key)
    if entry is not None and "unavailable" in entry:
        return "unavailable"
    return cell_text(entry, n)


def sections(results: dict[str, Any]) -> list[Section]:
    """The paper's table for every attack, budget and proportion; then each dataset with all measures; then gates."""
    settings = settings_of(results)
    found = [paper_table(results, setting) for setting in settings]
    for dataset in results["datasets"]:
        for setting in settings:
            found += _details(results, dataset, setting)
        found += _on_clean(results, dataset)
    return found + _gates(results)


def _block(results: dict[str, Any], title: str, rows: list[dict[str, Any]], part: str | None) -> Section:
    n = results["per_dataset"]
    heads = ["method", "n", *(f"{c['title']} {_ARROWS[c['better']]}" for c in results["columns"])]
    lines = []
    for row in rows:
        cells = []
        for column in results["columns"]:
            if part is None:
                cells.append(_value(row, column["key"], row["n"]))
            else:
                entry = row["measures"].get(column["key"], {})
                cells.append(cell_text(entry.get(part), row["n"], signed=True))
        lines.append([title_of(row["method"]), f"{row['n']} of {n}", *cells])
    return Section(title, heads, lines)


def _details(results: dict[str, Any], dataset: str, setting: tuple[str, int, float]) -> list[Section]:
    rows = rows_of(results, dataset, setting)
    attacked = [row for row in rows if row["attack"] is not None]
    others = [row for row in attacked if row["method"] != "lora"]
    if not attacked:
        return []
    where = f"{dataset}, {attacked[0]['exposure']}"
    found = [
        _block(results, f"{where}: means", rows, None),
        _block(results, f"{where}: worse or better than the LoRA of clean images by", attacked, "against_clean"),
    ]
    if others:
        found.append(_block(results, f"{where}: worse or better than the undefended LoRA by", others, "against_lora"))
        found.append(_block(results, f"{where}: share of the gap that is closed", others, "gap_closed"))
    return found


def _on_clean(results: dict[str, Any], dataset: str) -> list[Section]:
    rows = [row for row in results["rows"] if row["dataset"] == dataset and row["attack"] is None]
    others = [row for row in rows if row["method"] != "clean-lora"]
    if not others:
        return []
    return [
        _block(results, f"{dataset}, clean images: means", rows, None),
        _block(results, f"{dataset}, clean images: method - LoRA", others, "against_clean"),
    ]


def _gates(results: dict[str, Any]) -> list[Section]:
    lines = []
    for row in results["gates"]:
        values = [cell_text(row["measures"][key], row["n"]) for key in ("auroc", "lambda_clean", "lambda_attacked")]
        steps = ", ".join(f"{entry['auroc']:.2f} at {entry['timestep']}" for entry in row["timesteps"]) or "-"
        start = [row["dataset"], title_of(row["method"]), row["attack"], row["eps"]]
        lines.append([*start, f"{row['n']} of {results['per_dataset']}", *values, steps])
    heads = ["dataset", "method", "attack", "eps", "n", "AUROC", "lambda clean", "lambda attacked", "AUROC by timestep"]
    return [Section("Lambda as a detector", heads, lines)] if lines else []


def to_markdown(results: dict[str, Any]) -> str:
    """The tables, after what they rest on and how far they are, and before how to read them."""
    state = [*unfinished(results), _about(results)]
    blocks = ["\n".join(state) + "\n", *(section_to_markdown(section) for section in sections(results))]
    for reason in results["unavailable"]:
        blocks.append(f"* unavailable: {reason}\n")
    return "\n".join([*blocks, _READING, *times(results)])


def _about(results: dict[str, Any]) -> str:
    per = results["per_dataset"]
    numbers = results["identities"]
    people = f"identity {numbers[0]}" if len(numbers) == 1 else f"identities {numbers[0]} to {numbers[-1]}"
    return (
        f"{counted(len(results['datasets']), 'dataset')} ({', '.join(results['datasets'])}); "
        f"{counted(per, 'replicate')} each ({people}, {counted(results['seeds'], 'seed')} each); model "
        f"{results['model']}, recipe {results['recipe']}."
    )


_READING = """## How to read it

In brackets: the 95 % interval over replicates (Student's, with n - 1 degrees of freedom), not over images; for shares,
Fieller's for a ratio of paired means. **An interval of a difference that includes 0 shows no effect.** Of many
comparisons, about 1 in 20 leaves 0 out by chance alone, which no correction accounts for. Arrows say which values are
better.

* Differences are taken within replicates, which share the person, the attack and all noise of training and sampling.
* Replicates are not independent: all of a dataset share one LoRD of each kind (with stage1_seeds a few, in turn), so no
  interval says what another Stage 1 would give; seeds of one identity share the person and the reference pictures.
* share of the gap: mean(attacked - method) / mean(attacked - clean), the means over replicates: 1 is as good as a LoRA
  of clean images, 0 as bad as no defense, below 0 worse. A dash: the attack worsened nothing on average; no brackets:
  what it worsened may be 0, so the share has no bounds.
* Both denoising losses favour smooth pictures: by them a method may close more than 1 of the gap, and a purifier or a
  LoRD that smoothes gains without drawing the person better. Read them beside the distances.
* change: of the drawn pictures from those that the LoRA of clean images draws from the same noise.
"""


def to_csv(results: dict[str, Any]) -> str:
    """RFC 4180: a line per row and measure, an empty field where there is no number."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    parts = ("value", "low", "high", "n")
    names = [name if part == "value" else f"{name}_{part}" for name in ("mean", *EFFECTS) for part in parts]
    writer.writerow(["dataset", "attack", "eps", "proportion", "method", "measure", "better", *names])
    for row in results["rows"]:
        for column in results["columns"]:
            entry = row["measures"].get(column["key"], {})
            estimates = [entry, *(entry.get(name) or {} for name in EFFECTS)]
            values = [estimate.get(part) for estimate in estimates for part in parts]
            start = [row[name] for name in ("dataset", "attack", "eps", "proportion", "method")]
            writer.writerow([*start, column["key"], column["better"], *values])
    for row in results["gates"]:
        for key, entry in row["measures"].items():
            values = [entry.get(part) for part in parts] + [None] * (len(parts) * len(EFFECTS))
            writer.writerow([row["dataset"], row["attack"], row["eps"], 1.0, row["method"], key, "", *values])
    return stream.getvalue()

"""The demo's report.html: what was done, what came out, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lordfast.data import list_images, load_image
from lordfast.demo.loss_charts import loss_blocks
from lordfast.demo.methods import METHODS, TRAINED, method_title
from lordfast.demo.picture import AMPLIFIED
from lordfast.demo.verdict import Metric, contrast, headline
from lordfast.report import (
    Block,
    Chart,
    Charts,
    Column,
    Details,
    Gallery,
    Measured,
    Note,
    Page,
    Paragraph,
    Picture,
    PictureRow,
    Section,
    Table,
    Tile,
    Tiles,
    interval_chart,
)
from lordfast.report.difference import amplified
from lordfast.report.gate_charts import lambda_blocks
from lordfast.report.settings import config_details, times_details, versions_details

METRICS = [
    Metric(
        "Denoising loss",
        "denoising_loss",
        "lower",
        "How far off the model alone, without any adapter, is in removing noise from the generated pictures. It rises "
        "with any pattern that the model does not expect in a picture, such as an attack's. Empty and blurred pictures "
        "have a low one too: read it beside the pictures.",
    ),
    Metric(
        "Identity agreement",
        "identity_agreement",
        "higher",
        "The share of what stays the same from picture to picture (hair, skin, glasses; of a landscape season, time, "
        "mountains) that a small classifier finds in the generated pictures.",
    ),
    Metric(
        "Fréchet distance",
        "frechet_distance",
        "lower",
        "How far the generated pictures are from the clean ones: the distance between two normal distributions fitted "
        "to the features of a small classifier of what pictures show. It was trained on noisy and attacked pictures "
        "too, so texture alone hardly counts: trust your eyes as well. Too large where there are few images, equally "
        "for all methods.",
    ),
    Metric(
        "Kernel distance",
        "kernel_distance",
        "lower",
        "The squared maximum mean discrepancy between the features of generated and of clean pictures, without bias: "
        "around 0, and slightly below, where the two sets can't be told apart.",
    ),
    Metric(
        "High frequencies",
        "high_frequencies",
        None,
        "Grey levels of brightness that change faster than a quarter of a wave per pixel: grain and hard edges. "
        "Attacked pictures have more of it; compare with what the LoRA of clean images draws.",
    ),
]
"""The columns of the table of metrics, in order."""

TRAINING_ONLY = "attacked-lord-training"
"""The method that leaves LoRD out of sampling."""


def demo_page(out: Path, summary: dict[str, Any] | None = None) -> Page:
    """The page of the demo run in `out`; its summary.json is read unless `summary` is given.

    Where there are several seeds, pictures, curves and lambda's maps are of the first, and the page says so.

    Raises:
        OSError: a file of the run is missing.
    """
    out = Path(out)
    found: dict[str, Any] = summary if summary is not None else _json(out / "summary.json")
    seeds = found["seeds"]
    run, story = out / f"seed-{seeds[0]}", found["stories"][str(seeds[0])]
    methods = _methods(found)
    measured = {name: {m.key: m.read(found["methods"][name]) for m in METRICS} for name in methods}
    auroc = Measured.read(found["auroc"])
    assert auroc is not None
    return Page(
        title="Can LoRD undo an attack on training images?",
        kicker=f"lordfast demo{_flags(found)} · {_seeds(seeds)}",
        top=[*_story(found, story), _answers(measured, auroc, _counted(found)), *_caveats(found)],
        sections=[
            Section("The images", [*_first("The pictures are", seeds), *_images(run, story["damage"])]),
            Section(
                "What each method draws",
                [*_first("The pictures are", seeds), *_generated(run, methods, story["prompt"])],
            ),
            Section("Metrics", _metrics(measured, found)),
            Section("Loss", [*_first("The curves of Stage 2 are", seeds), *loss_blocks(out, run)]),
            Section(
                "Lambda: does the gate notice the attack?",
                [*_lambda(story["detection"], auroc, seeds), *lambda_blocks(story["detection"])],
            ),
            Section("Settings, versions, time", _settings(out, run, found)),
        ],
        foot="Written by lordfast. This file holds everything it shows and loads nothing.",
    )


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _methods(found: dict[str, Any]) -> list[str]:
    """The methods that the run of this summary compared: one of an earlier version had fewer."""
    return [name for name in METHODS if name in found["methods"]]


def _flags(found: dict[str, Any]) -> str:
    return "".join(f" --{name}" for name in ("quick", "landscape") if found[name])


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"


def _first(what: str, seeds: Sequence[int]) -> list[Block]:
    """What to say where only the first of several seeds is shown."""
    return [Paragraph(f"{what} those of seed {seeds[0]}, the first of {len(seeds)}.")] if len(seeds) > 1 else []


def spread(seeds: Sequence[int]) -> str:
    """What the metrics are, and what their intervals are over."""
    if len(seeds) == 1:
        return f"of {_seeds(seeds)}, with 95 % intervals over its images"
    return f"means over {len(seeds)} seeds, with 95 % intervals over seeds"


def evidence(found: dict[str, Any]) -> str | None:
    """Why the numbers of a demo's summary prove little; None if its seeds and subjects are several."""
    subject = "place" if found["landscape"] else "person"
    if len(found["seeds"]) == 1:
        return f"One {subject} and one seed are no evidence: another draw may turn any of this around."
    if found["identity"] is not None:
        return f"All seeds show the same {subject}: another one may turn any of this around."
    return None


def _story(found: dict[str, Any], story: dict[str, Any]) -> list[Block]:
    attack, seeds = story["attack"], len(found["seeds"])
    one, several = ("place", "places") if found["landscape"] else ("person", "people")
    if seeds == 1:
        who = f"one {one}"
    else:
        who = f"each of {seeds} {several}" if found["identity"] is None else f"one {one}, drawn anew for {seeds} seeds,"
    left_out = "stays in the model when that draws"
    if TRAINING_ONLY in _methods(found):
        left_out += "; the last method draws with the same LoRA and leaves LoRD out"
    return [
        Paragraph(
            f"{attack['images']} pictures of {who} were perturbed by at most {attack['eps_grey_levels']:g} of 255 "
            "grey levels, so that a LoRA trained on them learns the wrong thing. LoRAs were then trained on the clean "
            "and on the perturbed pictures, each alone and on top of LoRD: an adapter that was trained beforehand, on "
            f"other pictures, to see such attacks and to answer them. This LoRD was {found['lord']}. As published, it "
            f"{left_out}."
        )
    ]


def _counted(found: dict[str, Any]) -> str:
    clean, attacked = (sum(s["detection"][kind] for s in found["stories"].values()) for kind in ("clean", "attacked"))
    return f"{clean} clean and {attacked} attacked images{'' if len(found['seeds']) == 1 else ' of all seeds'}."


def _answers(measured: dict[str, dict[str, Measured | None]], auroc: Measured, counted: str) -> Tiles:
    def ask(question: str, one: str, other: str, words: tuple[str, str], names: tuple[str, str]) -> list[Tile]:
        if not {one, other} <= set(measured):
            return []
        return [contrast(question, METRICS, measured[one], measured[other], words, names)]

    inside = auroc.interval is not None and auroc.interval[0] <= 0.5 <= auroc.interval[1]
    return Tiles(
        [
            *ask(
                "Did the attack harm a plain LoRA?",
                "attacked-lora",
                "clean-lora",
                ("No, the opposite", "Yes"),
                ("attacked", "clean"),
            ),
            *ask(
                "Did LoRD help on attacked images?",
                "attacked-lord",
                "attacked-lora",
                ("Yes", "No, it did harm"),
                ("LoRD", "plain"),
            ),
            *ask(
                "Did LoRD help when left out of sampling?",
                TRAINING_ONLY,
                "attacked-lora",
                ("Yes", "No, it did harm"),
                ("LoRD", "plain"),
            ),
            *ask(
                "Does LoRD cost quality on clean images?",
                "clean-lord",
                "clean-lora",
                ("No, it gains", "Yes"),
                ("LoRD", "plain"),
            ),
            Tile(
                "Does λ tell attacked images from clean ones?",
                "No clear difference" if inside else f"AUROC {written_auroc(auroc)}",
                ["0.5 is chance, 1 is always.", counted],
            ),
        ]
    )


def written_auroc(auroc: Measured) -> str:
    """As ``0.64``, or ``0.64 (0.51 to 0.77)``."""
    ends = f" ({auroc.low:.2f} to {auroc.high:.2f})" if auroc.interval is not None else ""
    return f"{auroc.value:.2f}{ends}"


def _caveats(found: dict[str, Any]) -> list[Block]:
    said = [
        headline(METRICS, found["methods"][name], found["methods"]["attacked-lora"], title)
        for name, title in (("attacked-lord", "LoRD + LoRA"), (TRAINING_ONLY, "LoRA trained on LoRD"))
        if {name, "attacked-lora"} <= set(found["methods"])
    ]
    said += filter(None, [evidence(found)])
    if found["quick"]:
        said.append("This was a quick run, of few images and few steps: it shows that everything works, not how well.")
    return [Note(" ".join(said))]


def _pictures(folder: Path, alt: str, captions: bool = False) -> list[Picture]:
    records = list_images(folder, captions="ignore")
    return [Picture(load_image(r.path), f"{alt}, {r.name}", r.name if captions else "") for r in records]


def _images(run: Path, damage: dict[str, Any]) -> list[Block]:
    rows = []
    for clean, attacked in zip(
        list_images(run / "data" / "clean", captions="ignore"),
        list_images(run / "attacked", captions="ignore"),
        strict=True,
    ):
        before, after = load_image(clean.path), load_image(attacked.path)
        change = amplified(before, after, AMPLIFIED)
        rows.append(
            PictureRow(
                "",
                [
                    Picture(before, f"clean image {clean.name}", "clean"),
                    Picture(after, f"attacked image {attacked.name}", "attacked"),
                    Picture(change, f"what changed in {clean.name}", f"change × {AMPLIFIED}"),
                ],
            )
        )
    pairs = damage["pairs"]
    return [
        Paragraph(
            f"Each picture before and after the attack, and what the attack changed, {AMPLIFIED} times as strong (grey "
            f"is no change). The mean change is {pairs['mean_change']:.1f} grey levels; PSNR {pairs['psnr']:.1f} dB, "
            f"SSIM {pairs['ssim']:.2f}."
        ),
        Gallery(rows, across=3, cards=3),
    ]


def _generated(run: Path, methods: Sequence[str], prompt: str) -> list[Block]:
    rows = [
        PictureRow(method_title(name), _pictures(run / "generated" / name, f"drawn by {method_title(name)}"))
        for name in methods
    ]
    text = (
        f"New pictures from the prompt “{prompt}”. Pictures at the same place start from the "
        "same noise, so that what differs between methods comes from training."
    )
    across = 3 if len(rows[0].pictures) % 4 and len(rows[0].pictures) % 3 == 0 else 4
    return [Paragraph(text), Gallery(rows, across=across)]


def metric_table(
    measured: dict[str, dict[str, Measured | None]], metrics: Sequence[Metric], seeds: Sequence[int]
) -> Table:
    """Methods as rows, a column per metric."""
    columns = [Column(metric.title, metric.better, metric.explanation) for metric in metrics]
    rows = [(method_title(name), [values[metric.key] for metric in metrics]) for name, values in measured.items()]
    return Table("trained as", columns, rows, f"Generated pictures against clean ones: {spread(seeds)}")


def _each_seed(found: dict[str, Any], metrics: Sequence[Metric]) -> Details:
    columns = [Column(metric.title, metric.better) for metric in metrics]
    rows = [
        (f"{method_title(name)}, seed {seed}", [metric.read(story["methods"][name]) for metric in metrics])
        for name in _methods(found)
        for seed, story in found["stories"].items()
    ]
    caption = "Generated pictures against clean ones: each seed, with 95 % intervals over its images"
    return Details(f"Each of the {len(found['seeds'])} seeds", [Table("trained as", columns, rows, caption)])


def _metrics(measured: dict[str, dict[str, Measured | None]], found: dict[str, Any]) -> list[Block]:
    seeds = found["seeds"]
    present = [metric for metric in METRICS if any(values[metric.key] for values in measured.values())]
    blocks: list[Block] = [metric_table(measured, present, seeds)]
    drawn = [
        metric
        for metric in present
        if any((values[metric.key] or Measured(0)).interval for values in measured.values())
    ]
    charts = [_interval_chart(metric, measured, seeds) for metric in drawn]
    if charts:
        blocks.append(Charts(charts))
    if len(seeds) > 1:
        blocks.append(_each_seed(found, present))
    warnings = dict.fromkeys(text for story in found["stories"].values() for text in story["warnings"])
    if warnings:
        blocks.append(Details("Warnings of the measurement", [Paragraph(_sentence(text)) for text in warnings]))
    return blocks


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _interval_chart(metric: Metric, measured: dict[str, dict[str, Measured | None]], seeds: Sequence[int]) -> Chart:
    rows = [
        (method_title(name), found) for name, values in measured.items() if (found := values[metric.key]) is not None
    ]
    label = metric.title + (f" ({metric.better} is better)" if metric.better else "")
    says = "; ".join(f"{name} {found.value:.4g}" for name, found in rows)
    caption = _sentence(spread(seeds))
    return Chart(metric.title, interval_chart(rows, x_label=label), f"{metric.title}: {says}.", caption)


def _lambda(detection: dict[str, Any], auroc: Measured, seeds: Sequence[int]) -> list[Block]:
    one = len(seeds) == 1
    over = "interval over images" if one else f"mean over {len(seeds)} seeds, interval over seeds"
    of_first = "" if one else f" of seed {seeds[0]}"
    text = (
        "In every layer, λ between 0 and 1 decides how much of LoRD's second branch is added. It should stay shut for "
        "clean images and open for attacked ones. Over all layers and timesteps, an attacked image has the larger λ "
        f"than a clean one in a share of {written_auroc(auroc)} of all pairs (AUROC, {over}; 0.5 is chance); the means "
        f"are {detection['lambda_clean']:.3f} on clean and {detection['lambda_attacked']:.3f} on attacked "
        f"images{of_first}. Rows of the maps are attention layers from the model's input to its output, each the mean "
        "of its projections."
    )
    return [Paragraph(text), *_first("Maps, curves and layers are", seeds)]


def _settings(out: Path, run: Path, found: dict[str, Any]) -> list[Block]:
    configs = [path for path in _configs(out, run) if path.is_file()]
    return [
        times_details(found["seconds"]),
        versions_details(_json(out / "environment.json")),
        Details(
            "Config of every step",
            [
                Paragraph(
                    "Each is a config.yaml in the run folder; lordfast COMMAND --config FILE --out DIR repeats it."
                ),
                *_first("Below a seed's folder, they are", found["seeds"]),
                *(config_details(path, str(path.relative_to(out))) for path in configs),
            ],
        ),
    ]


def _configs(out: Path, run: Path) -> Iterable[Path]:
    steps = [
        "attacked",
        *(
            f"{kind}/{name}"
            for name in METHODS
            for kind in ("stage2", "generated", "metrics", "denoising")
            if kind != "stage2" or name in TRAINED
        ),
        "metrics/attack",
        "metrics/lambda",
    ]
    return [out / "config.yaml", out / "stage1" / "config.yaml", *(run / step / "config.yaml" for step in steps)]

"""The settings of a study, as flags and as YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from lordfast.evaluation.experiments.start import GridConfig

Mapping = Annotated[dict[str, Any], tyro.conf.Suppress]
"""A setting with names of its own: from YAML, or from --set."""

Datasets = Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--data"])]


@dataclass(kw_only=True)
class StudyConfig(GridConfig):
    """Attack pictures, train LoRAs on them with and without defenses, and measure what they draw.

    A replicate is an identity of a dataset and a seed. In each, a plain LoRA is trained on the clean pictures, and
    every method on the attacked ones: nothing (lora), the one-branch baseline (pgd2), LoRD (lord), a purifier by its
    name (jpeg, diffpure, ...), or both (jpeg+lord). A LoRD is trained once per dataset, variant and Stage-1 seed, on
    other people, and shared by all replicates. What differs from the recipe is named in --config FILE or with --set:
    recipe values below stage1, stage2, generate and evaluate; attacks, purifiers and variants of LoRD by names of
    yours, which methods such as lord:NAME refer to.

    Started again with the same --out, it goes on where it was; with more identities, methods, budgets or variants it
    computes what these add. Started several times at once, the processes share the work; set OMP_NUM_THREADS so that
    together they use no more cores than there are. table.md, table.csv, table.tex, results.json and charts have the
    results, of a half-finished study too.
    """

    model: str = "demo"
    """A diffusers folder, a hub id, or demo."""
    recipe: Literal["demo", "quick", "paper"] = "demo"
    """The settings of attack, Stage 1, Stage 2 and sampling where none are given: what suits the embedded model, hardly
    any steps at all, or the paper's (for Stable Diffusion)."""
    datasets: Datasets = ("faces",)
    """faces and landscapes are drawn, as the model demo knows them; else DIR or NAME=DIR, a folder with a sub-folder of
    images per identity, such as lordfast dataset writes."""
    stage1_data: tuple[str, ...] = ()
    """Folder of images with captions that Stage 1 trains on, DIR or DATASET=DIR; drawn ones when left out."""
    stage1_images: int = 96
    """How many are drawn."""
    stage1_seeds: int = 1
    """How many LoRDs of each kind are trained; replicate i of an identity takes the i-th, in turn; at
    most --seeds."""
    prompts: tuple[str, ...] = ()
    """Instance prompt with a rare token, PROMPT or DATASET=PROMPT; default: "a photo of a sks person", or landscape."""
    identities: int = 3
    """How many people or places of each dataset."""
    first_identity: int = 0
    """Number of the first: a search and the judgement of what it found need different identities."""
    seeds: int = 1
    """Replicates of each identity; each has training pictures, an attack and a training of its own."""
    images: int = 12
    """Pictures that are attacked and trained on."""
    reference: int = 256
    """Clean pictures of the identity that the results are compared with."""
    attack: tuple[str, ...] = ()
    """Attacks, by their names or by those under attacks in the config file; default: the recipe's."""
    eps: tuple[str, ...] = ()
    """Budgets in [0, 1] pixels, EPS, or DATASET=EPS for one dataset alone; default: the recipe's."""
    proportions: tuple[float, ...] = (1.0,)
    """Shares of the training pictures that are attacked; those of a smaller share are among those of a larger one."""
    methods: tuple[str, ...] = ("clean-lora", "lora", "pgd2", "lord")
    """clean-lora (the reference), lora, pgd2, lord, PURIFIER, PURIFIER+lord, ...; with :NAME, of a variant."""
    on_clean: bool = True
    """Every method on clean pictures too: what it costs those whom nobody attacked."""
    draw: bool = True
    """Train LoRAs and measure what they draw; without it, only --gate is answered."""
    gate: bool = False
    """Read lambda of each LoRD on clean and attacked pictures: AUROC, pooled and per layer and timestep."""
    gate_timesteps: tuple[int, ...] = (20, 200, 600)
    """Noise levels at which it is read."""
    features: tuple[str, ...] = ()
    """What the distances compare, as --features of lordfast evaluate; default: the recipe's."""
    resolution: int | None = None
    """Side in pixels; the model's own when left out."""
    set: tuple[str, ...] = ()
    """PATH=VALUE words into what only the config file has, such as stage1.steps=300, variants.soft.stage1.rank=8 or
    attacks.strong.attack=ace; VALUE as in YAML."""
    attacks: Mapping = field(default_factory=dict)
    """Name -> options of an attack, with its kind under ``attack`` where the name is not that."""
    purifiers: Mapping = field(default_factory=dict)
    """Name -> options of a purifier, with its kind under ``purifier`` where the name is not that."""
    stage1: Mapping = field(default_factory=dict)
    """Options of lordfast stage1, on top of the recipe's."""
    stage2: Mapping = field(default_factory=dict)
    """Options of lordfast stage2."""
    generate: Mapping = field(default_factory=dict)
    """Options of lordfast generate; ``lord: off`` leaves the LoRD out of sampling."""
    evaluate: Mapping = field(default_factory=dict)
    """Options of lordfast evaluate."""
    variants: Mapping = field(default_factory=dict)
    """Name -> ``stage1``, ``stage2`` and ``generate`` options of a variant, on top of those; not ``n`` and
    ``resolution`` of what is drawn, which all methods share."""

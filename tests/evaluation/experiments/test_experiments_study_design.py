"""What a study's settings come to: methods and their options, budgets per dataset, mixtures, who is judged."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from lordfast.cli.parse import parse
from lordfast.data import DrawnSubject
from lordfast.defense.stage1 import Stage1Config
from lordfast.evaluation.experiments.choices import read_options
from lordfast.evaluation.experiments.study.cells import StudyCells
from lordfast.evaluation.experiments.study.config import StudyConfig
from lordfast.evaluation.experiments.study.material import attacked_names
from lordfast.evaluation.experiments.study.named import PRESETS, Fig7Config, GateConfig, Table1Config
from lordfast.evaluation.experiments.study.reading import applied, design
from lordfast.evaluation.experiments.study.recipes import RECIPES
from lordfast.training.seeds import derive_seed


def settings(**changes: Any) -> StudyConfig:
    return StudyConfig(**{"out": Path("out"), "device": "cpu"} | changes)


def cells_of(**changes: Any) -> StudyCells:
    return StudyCells(design(settings(**changes)), {}, 64)


def test_words_become_methods() -> None:
    variants = {
        "soft": {"stage1": {"lambda-det": "5e-1", "target_modules": ["to_q"]}, "generate": {"lord": False, "steps": 7}}
    }
    words = ("lora", "pgd2", "lord:soft", "jpeg", "strong+lord:soft")
    purifiers = {"strong": {"purifier": "jpeg", "quality": 30}}
    found = design(settings(methods=words, variants=variants, purifiers=purifiers, stage1={"rank": 8}))
    clean, lora, pgd2, soft, jpeg, both = found.methods
    assert [method.name for method in found.methods] == ["clean-lora", *words]
    assert (clean.stage1, lora.stage1, jpeg.stage1) == (None, None, None)
    assert pgd2.stage1 == {**RECIPES["demo"].stage1, "rank": 8, "one_branch": True}
    changed = {"lambda_det": 0.5, "target_modules": ("to_q",), "one_branch": False}
    assert soft.stage1 == {**RECIPES["demo"].stage1, "rank": 8, **changed} == both.stage1
    assert soft.variant.lord is False and soft.variant.generate["steps"] == 7 and pgd2.variant.lord
    assert (jpeg.purifier, jpeg.options, both.purifier, both.options) == ("jpeg", {}, "jpeg", {"quality": 30})


def test_a_stage_1_is_trained_once_for_all_that_differ_in_something_else() -> None:
    variants = {"away": {"generate": {"lord": "off"}}, "long": {"stage1": {"steps": 400}}}
    cells = cells_of(methods=("lord", "lord:away", "lord:long", "jpeg+lord", "pgd2"), variants=variants, identities=2)
    trained = [cell.name for cell in cells.all if "/stage1/" in cell.name]
    assert len(trained) == 3 and {name.rpartition("/")[2] for name in trained} == {"seed-0"}
    configs = {cell.name: cell.config for cell in cells.all}
    assert sorted(configs[name]["options"]["steps"] for name in trained) == [200, 200, 400]
    one = cells.replicates["faces"][0]
    on = "faces/identity-0/seed-0/pgd-16-255/lord"
    needs = {cell.name: cell.needs for cell in cells.all}
    # Sampling without the LoRD draws from the very same LoRA.
    assert needs[on] == needs[f"{on}.away"] and needs[on] != needs[f"{on}.long"]
    assert configs[on]["lord_in_sampling"] and not configs[f"{on}.away"]["lord_in_sampling"]
    assert cells.drawn(one, cells.design.exposures(cells.design.datasets[0])[1], cells.design.methods[1]) == on
    several = cells_of(methods=("lord",), seeds=3, stage1_seeds=2)
    numbers = [
        next(cell.config["lord"] for cell in several.all if cell.name == f"faces/identity-0/seed-{n}/pgd-16-255/lord")
        for n in range(3)
    ]
    assert [name.rpartition("/")[2] for name in numbers] == ["seed-0", "seed-1", "seed-0"]


def test_a_gate_is_named_by_its_lord_and_not_by_a_purifier() -> None:
    variants = {"away": {"generate": {"lord": False}}, "long": {"stage1": {"steps": 400}}}
    words = ("jpeg+lord", "lord:away", "lord", "tv+lord:long", "pgd2")
    found = design(settings(methods=words, variants=variants, gate=True))
    assert [(gate.name, gate.lord) for gate in found.gates] == [
        ("lord:away", "lord:away"),
        ("tv+lord:long", "lord:long"),
    ]
    assert [method.lord for method in found.defenses] == ["lord:away", "lord:long", "pgd2"]


def test_a_purifier_of_a_variant_is_a_method() -> None:
    purifiers, variants = {"jpeg30": {"purifier": "jpeg", "quality": 30}}, {"soft": {"stage2": {"rank": 2}}}
    method = design(settings(methods=("jpeg30:soft",), purifiers=purifiers, variants=variants)).methods[1]
    assert (method.purifier, method.options, method.variant.stage2["rank"]) == ("jpeg", {"quality": 30}, 2)


def test_budgets_and_prompts_may_be_a_datasets_own() -> None:
    eps = ("4/255", "8/255", "landscapes=16/255")
    found = design(settings(datasets=("faces", "landscapes"), eps=eps, prompts=("faces=sks ann",)))
    assert [dataset.eps for dataset in found.datasets] == [("4/255", "8/255"), ("16/255",)]
    assert [dataset.prompt for dataset in found.datasets] == ["sks ann", "a photo of a sks landscape"]


def test_mixtures_are_exact_and_nested() -> None:
    names = [f"{i:02d}.png" for i in range(12)]
    quarters = [attacked_names(names, share, 5) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert [len(chosen) for chosen in quarters] == [0, 3, 6, 9, 12]
    assert all(less < more for less, more in itertools.pairwise(quarters))
    assert attacked_names(names[::-1], 0.5, 5) == quarters[2] and attacked_names(names, 0.5, 6) != quarters[2]
    with pytest.raises(ValueError, match="proportions: .* whole numbers of 10 images, got 0.25"):
        design(settings(images=10, proportions=(0.25, 1.0)))


def test_search_and_judgement_see_different_people() -> None:
    search, judged = cells_of(identities=2), cells_of(identities=2, first_identity=2)
    people = [{cell.name.split("/seed-")[0] for cell in one.all if "identity" in cell.name} for one in (search, judged)]
    assert people[0] == {"faces/identity-0", "faces/identity-1"} and people[1] == {
        "faces/identity-2",
        "faces/identity-3",
    }
    faces = [DrawnSubject.of(derive_seed(0, "identity", n)).draw(1, 0)[0].image.tobytes() for n in range(4)]
    assert len(set(faces)) == 4
    # And both share the Stage 1 of the same settings.
    stage1 = [{cell.name: cell.config for cell in one.all if "/stage1/" in cell.name} for one in (search, judged)]
    assert stage1[0] == stage1[1] and stage1[0]


def test_more_of_everything_leaves_the_cells_that_are_there_alone() -> None:
    small = {cell.name: cell.config for cell in cells_of(identities=1).all}
    more = {
        "identities": 2,
        "eps": ("4/255", "16/255"),
        "proportions": (0.0, 0.5, 1.0),
        "methods": ("lora", "pgd2", "lord", "lord:x", "tv+lord"),
        "variants": {"x": {"stage2": {"rank": 2}}},
        "gate": True,
        "seeds": 2,
        "datasets": ("landscapes", "faces"),
    }
    large = {cell.name: cell.config for cell in cells_of(**more).all}
    assert small.items() <= large.items() and len(large) > 4 * len(small)
    changed = {cell.name: cell.config for cell in cells_of(identities=1, stage2={"steps": 9}).all}
    clean = "faces/identity-0/seed-0/clean/lora"
    assert changed[clean] != small[clean]


def test_a_gate_is_read_once_whatever_share_was_attacked() -> None:
    changes = {"gate": True, "draw": False, "methods": ("lord", "pgd2"), "proportions": (0.5, 1.0), "identities": 1}
    names = [cell.name for cell in cells_of(**changes).all]
    assert len(names) == 5 and [name.split("/")[-1] for name in names][:2] == ["data", "attack-pgd-16-255"]
    assert names[-1].startswith("faces/identity-0/seed-0/pgd-16-255/gate-")


def test_set_words_reach_what_only_a_file_can_hold(tmp_path: Path) -> None:
    words = ("stage1.steps=3", "variants.a-b.stage1.lr=1e-3", "attacks.pgd.targeted=false", "stage1.perturb=[1, 2]")
    found = applied(settings(set=words, stage1={"rank": 2}))
    assert found.stage1 == {"rank": 2, "steps": 3, "perturb": [1, 2]} and found.set == ()
    assert found.variants == {"a_b": {"stage1": {"lr": "1e-3"}}} and found.attacks == {"pgd": {"targeted": False}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"seeds": 2, "stage1": {"steps": 5}, "variants": {"a": {"stage2": {"lr": 1.0}}}}))
    words = ["--config", str(path), "--preset", "quick", "--out", "o", "--seeds", "3", "--set", "stage1.rank=1"]
    config = parse(Table1Config, "experiment mine", words, PRESETS)
    assert (config.seeds, config.recipe, config.stage1, config.set) == (3, "quick", {"steps": 5}, ("stage1.rank=1",))
    assert config.variants == {"a": {"stage2": {"lr": 1.0}}}


def test_the_manuals_example_is_a_study() -> None:
    page = Path(__file__).parents[3] / "docs" / "experiments.md"
    example = yaml.safe_load(page.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0])
    found = design(settings(**example))
    soft = next(method for method in found.methods if method.name == "lord:soft")
    assert soft.stage1 is not None and (soft.stage1["steps"], soft.stage1["gate_norm"]) == (400, "layer")
    assert soft.variant.generate["lord_lambda"] == "0.5" and found.attacks["strong"] == ("ace", {"rounds": 2})


@pytest.mark.parametrize("name", ["search", "judgement", "fig7"])
def test_the_studies_of_the_science_page_are_studies(name: str) -> None:
    file = Path(__file__).parents[3] / "examples" / "studies" / f"{name}.yaml"
    found = design(settings(**yaml.safe_load(file.read_text(encoding="utf-8"))))
    away = next(method for method in found.methods if method.name == "lord:off")
    assert not away.variant.lord and away.variant.stage1["steps"] == 200
    # Found on some people, judged on others.
    assert found.config.first_identity == (0 if name == "search" else 100)


def test_values_from_yaml_have_their_fields_types() -> None:
    given = {"lr": "5e-4", "steps": 3, "eps": 0.05, "target-modules": "to_q", "targeted": "yes", "target": "x.png"}
    found = read_options(given, Stage1Config, "stage1")
    expected = {"lr": 5e-4, "steps": 3, "eps": "0.05", "target_modules": ("to_q",), "targeted": True}
    assert found == {**expected, "target": Path("x.png")}
    assert read_options({"epochs": None, "crop": "random"}, Stage1Config, "s") == {"epochs": None, "crop": "random"}
    for bad, message in (
        ({"nothing": 1}, "stage1: expected options among"),
        ({"steps": 2.5}, "stage1: steps: expected int"),
        ({"lr": [1]}, "stage1: lr: expected one value"),
        ({"crop": "top"}, "stage1: crop: expected center/random"),
        ({"prompt": False}, "stage1: prompt is false .*; expected text"),
    ):
        with pytest.raises(ValueError, match=message):
            read_options(bad, Stage1Config, "stage1")


@pytest.mark.parametrize("config", [StudyConfig, Table1Config, Fig7Config, GateConfig])
def test_named_studies_and_presets_are_sound(config: type[StudyConfig]) -> None:
    assert design(config(out=Path("o"))).methods[0].name == "clean-lora"
    for preset in PRESETS.values():
        changes = {"attack": (), "eps": ()} if config is GateConfig else {}
        assert design(config(out=Path("o"), **{**preset, **changes})).attacks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("lord:none",)}, "methods: expected a variant among default"),
        ({"methods": ("lora", "lora")}, "methods: expected different"),
        ({"methods": ("magic",)}, "purifiers: expected names of"),
        ({"methods": ("jpeg+tv",)}, "methods: expected lora, pgd2 or lord after the purifier"),
        ({"methods": ("jpeg+clean-lora",)}, "methods: expected lora"),
        ({"variants": {"a": {"stage3": {}}}}, "variants: a: expected options under stage1, stage2, generate"),
        ({"variants": {"a": {"stage1": {"data": "x"}}}}, "variants: a: stage1: expected options among"),
        ({"variants": {True: {}}}, "variants: expected text as names, got True; put the name in quotes"),
        ({"generate": {"lord": "maybe"}}, "generate: lord: expected on or off"),
        ({"attack": ("unknown",)}, "attack: expected one of"),
        ({"attacks": {"pgd": {"eps": "1/255"}}}, "attacks: pgd: expected options among"),
        ({"purifiers": {"jpeg": {}}}, "purifiers: jpeg is described, but no method"),
        ({"eps": ("places=4/255",)}, "eps: expected VALUE or DATASET=VALUE with one of faces"),
        ({"eps": ("strong",)}, "eps"),
        ({"prompts": ("a", "b")}, "prompts: expected at most one for dataset faces"),
        ({"datasets": ("a/people", "people=b")}, "datasets: expected different values, at least one, got people, peop"),
        ({"datasets": ("a b=c",)}, "datasets: expected names of letters"),
        ({"datasets": ("p=x",)}, "stage1_data: dataset p needs a folder"),
        ({"model": "some/model"}, "datasets: faces are drawn for the model demo only; some/model needs NAME=DIR"),
        ({"proportions": (1.5,)}, "proportions: expected shares from 0 to 1"),
        ({"gate": True, "methods": ("pgd2",)}, "gate: expected a method with a LoRD"),
        ({"draw": False}, "gate, draw: both are off"),
        ({"identities": 0}, "identities: expected at least 1"),
        ({"evaluate": {"generated": "x"}}, "evaluate: expected options among"),
        ({"evaluate": {"distribution": False}}, "evaluate: expected options among"),
        ({"evaluate": {"timesteps": [3]}}, "evaluate: expected options among"),
        ({"evaluate": {"batch_size": 0}}, "evaluate: batch_size: expected at least 1"),
        ({"variants": {"a": {"generate": {"n": 3}}}}, "variants: a: generate: n has to be the same for all"),
        ({"variants": {"a": {"generate": {"resolution": 8}}}}, "a: generate: resolution has to be the same"),
        ({"generate": {"guidance": "nan"}}, "generate: guidance: expected a finite"),
        ({"stage2": {"rank": 0}}, "^stage2: rank: expected at least 1"),
        ({"stage1": {"lambda_det": -1}}, "^stage1: lambda_det: expected 0 or more"),
        (
            {"methods": ("lord:a",), "variants": {"a": {"stage1": {"gate_hidden": 0}}}},
            "^variants: a: stage1: .*gate_hidden",
        ),
        ({"stage1": {"clean_branch": False}}, "clean_branch: expected it to be trained"),
        ({"seeds": 2, "stage1_seeds": 3}, "stage1_seeds: expected at most one for each .* 2 replicates"),
        ({"set": ("steps=3",)}, "set: expected words PATH=VALUE, PATH beginning with"),
        ({"set": ("stage1.steps.more=3",), "stage1": {"steps": 4}}, "set: .* leads into steps, which is a value"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        design(settings(**changes))

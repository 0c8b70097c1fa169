"""The whole path on real photographs through the commands: attack, Stage 1, Stage 2, generate, evaluate."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from lordfast.adapter.save_load import read_lord
from lordfast.cli.main import main
from lordfast.data import list_images, load_image, output_names
from lordfast.data.images import load_fitted

PICTURES = 9


@pytest.mark.parametrize("model", ["demo", "sd15"])
def test_attack_defend_train_generate_measure(
    model: str, photos: Path, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(request.getfixturevalue("sd15_folder")) if model == "sd15" else "demo"

    def run(command: str, out: str, *args: object) -> dict:
        words = [*command.split(), "--model", name, "--device", "cpu", "--out", str(tmp_path / out), *map(str, args)]
        assert main(words) == 0, capsys.readouterr().err
        return json.loads((tmp_path / out / "summary.json").read_text())

    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}

    attacked = run("attack pgd", "attacked", "--images", photos, "--eps", "8/255", "--attack-steps", 3)
    assert (attacked["images"], attacked["eps_grey_levels"]) == (PICTURES, 8)
    originals, results = list_images(photos), {record.name: record for record in list_images(tmp_path / "attacked")}
    assert len(results) == PICTURES
    for record, output in zip(originals, output_names(originals), strict=True):
        clean = load_fitted(record.path, 64)
        change = np.abs(load_image(results[output].path).astype(int) - clean.astype(int))
        assert 1 <= change.max() <= 8
        assert results[output].caption == record.caption

    small = ("--batch-size", 2, "--no-tensorboard", "--lr", "1e-3")
    stage1 = run("stage1", "stage1", "--data", photos, "--steps", 3, "--attack-steps", 2, *small)
    assert (stage1["examples"], stage1["steps"]) == (PICTURES, 3)
    config, lord = read_lord(tmp_path / "stage1")
    assert config.r == 4
    layers = {key.rpartition(".")[0] for key in lord}
    if model == "sd15":
        assert len(layers) == 128  # the attention projections of Stable Diffusion 1.5
    assert max(float(value.abs().max()) for key, value in lord.items() if key.endswith("lord_B_adv")) > 0

    prompt = "a photo of sks person"
    stage2 = run(
        "stage2",
        "stage2",
        "--instance-data",
        tmp_path / "attacked",
        "--instance-prompt",
        prompt,
        "--lord",
        tmp_path / "stage1",
        "--steps",
        3,
        *small,
    )
    assert stage2["examples"] == PICTURES
    lora = load_file(tmp_path / "stage2" / "pytorch_lora_weights.safetensors")
    assert len(lora) == 2 * len(layers)

    adapters = ("--lord", tmp_path / "stage1", "--lora", tmp_path / "stage2")
    run("generate", "with", "--prompt", prompt, "-n", 3, "--steps", 2, *adapters)
    run("generate", "without", "--prompt", prompt, "-n", 3, "--steps", 2)
    drawn = [[load_image(record.path) for record in list_images(tmp_path / folder)] for folder in ("with", "without")]
    assert [len(images) for images in drawn] == [3, 3]
    assert all(image.shape == (64, 64, 3) for images in drawn for image in images)
    assert not any(np.array_equal(a, b) for a, b in zip(*drawn, strict=True))

    run("evaluate", "metrics", "--generated", tmp_path / "with", "--reference", photos)
    gates = run(
        "evaluate",
        "lambda",
        "--lord",
        tmp_path / "stage1",
        "--clean",
        photos,
        "--attacked",
        tmp_path / "attacked",
    )["detection"]
    assert (gates["clean"], gates["attacked"]) == (PICTURES, PICTURES) and 0 <= gates["auroc"] <= 1
    # The text keys and values of each cross-attention are left out.
    assert len(gates["layers"]) == len(layers) * 3 // 4
    for path, data in before.items():
        assert path.read_bytes() == data
    for folder in ("attacked", "stage1", "stage2", "with", "metrics"):
        assert {"config.yaml", "environment.json", "summary.json"} <= {p.name for p in (tmp_path / folder).iterdir()}

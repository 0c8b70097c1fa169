"""The benchmarks of whole steps: what is compared with what, and that wrong numbers are not timed."""

from __future__ import annotations

import csv

import pytest
import torch

from lordfast.adapter.control import lord_layers
from lordfast.diffusion.random_model import random_model
from lordfast.profiling.rounds import Effort


@pytest.fixture
def few(monkeypatch):
    """The fewest repeats, and ceilings that cost nothing."""
    from lordfast.profiling.ceilings import Ceilings

    def apply(module):
        monkeypatch.setattr(module.WholeConfig, "effort", lambda self: Effort(1, 0, least=1))
        monkeypatch.setattr(module, "measure_ceilings", lambda device, dtypes, seconds: Ceilings(1.0, {"fp32": 50.0}))

    return apply


def _rows(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return {row["variant"]: row for row in csv.DictReader(stream)}


def test_stage1_against_a_plain_lora(script, few, tmp_path, capsys):
    stage1 = script("bench_stage1")
    import whole_steps

    few(whole_steps)
    out = tmp_path / "stage1.csv"
    assert stage1.main(stage1.Config(device="cpu", model=("sd15-narrow",), batch=1, out=out)) == 0
    rows = _rows(out)
    lord = ["LoRD eager", "lordfast", "lordfast+optimize"]
    assert list(rows) == ["plain LoRA", *lord, stage1.PERTURBING]
    assert [rows[name]["gate"] for name in rows] == ["not checked", "ok", "ok", "ok", "not checked"]
    assert all(0 < float(rows[name]["error"]) < 1e-4 for name in lord)
    plain, fused = rows["plain LoRA"], rows["lordfast"]
    seconds = {name: float(row["median_s"]) for name, row in rows.items()}
    assert float(plain["ratio"]) == 1 and plain["against"] == "plain LoRA"
    assert float(fused["ratio"]) == pytest.approx(seconds["lordfast"] / seconds["plain LoRA"], rel=1e-4)
    assert float(fused["images_per_s"]) == pytest.approx(1 / seconds["lordfast"], rel=1e-4)
    # FLOPs of the plain step for all who do its work: MFU is 1 / time.
    for name in ("plain LoRA", *lord):
        share = float(plain["gflop"]) / seconds[name] / 50
        assert float(rows[name]["mfu"]) == pytest.approx(share, rel=1e-4)
    once = rows[stage1.PERTURBING]
    assert once["ratio"] == "" and once["paper_minutes"] == ""
    assert float(once["mfu"]) == pytest.approx(float(once["gflop"]) / seconds[stage1.PERTURBING] / 50, rel=1e-4)
    minutes = (1000 * 100 * seconds["lordfast"] + 1000 * seconds[stage1.PERTURBING]) / 60
    assert float(fused["paper_minutes"]) == pytest.approx(minutes, rel=1e-4)
    # A LoRA's step keeps activations for its backward pass, LoRD's folds keep less than its formula.
    assert 0 < float(fused["peak_mib"]) < float(rows["LoRD eager"]["peak_mib"])
    assert "paper" in capsys.readouterr().out

    plots = script("plot_steps")
    assert plots.main(plots.Config(results=(out,), out=tmp_path)) == 0
    assert (tmp_path / "stage1.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="holds no whole steps"):
        (tmp_path / "other.csv").write_text("a,b\n1,2\n")
        plots.main(plots.Config(results=(tmp_path / "other.csv",)))


def test_a_wrong_step_is_red(script, monkeypatch):
    stage1 = script("bench_stage1")

    def spoil(unet):
        next(iter(lord_layers(unet).values())).parameters_of("lord")["lord_A"].data.mul_(1.01)

    monkeypatch.setattr(stage1, "optimize", spoil)
    model = random_model("sd15-narrow", device="cpu")
    found = stage1.variants(model, stage1.random_batch(model, 1, 0), stage1.Config(), compiled=False)
    gates = {}
    for v in found:
        with v.within():
            gates[v.name] = v.check()[0]
    assert gates["lordfast+optimize"].startswith("red: ")
    assert gates["LoRD eager"] == gates["lordfast"] == "ok"


def test_what_is_red_is_not_timed(script, demo_model):
    script("bench_stage1")
    from whole_steps import Variant, measure_steps

    from lordfast.profiling.ceilings import Ceilings

    def run():
        return torch.ones(4, 4) @ torch.ones(4, 4)

    def memory_is_short():
        raise torch.OutOfMemoryError

    good, red = Variant("good", run), Variant("red", run, check=lambda: ("red: y 1 > 0", 1.0))
    rows = measure_steps(
        [good, red, Variant("large", memory_is_short)],
        model=demo_model,
        images=1,
        against="good",
        ceilings=Ceilings(1.0, {"fp32": 1.0}),
        dtype="fp32",
        effort=Effort(2, 0, least=1),
        seed=0,
    )
    timed, wrong, refused = rows
    assert timed["gflop"] == 2 * 4**3 / 1e9 and timed["ratio"] == 1
    assert (wrong["gate"], refused["gate"]) == ("red: y 1 > 0", "refused: out of memory")
    assert "median_s" not in wrong and "median_s" not in refused


def test_steps_of_pgd(script, few, tmp_path, demo_model):
    script("bench_attack")
    import attack_steps
    import whole_steps

    few(whole_steps)
    out = tmp_path / "attack_steps.csv"
    config = whole_steps.WholeConfig(model=("sd15-narrow",), batch=1)
    assert attack_steps.bench_steps(config, torch.device("cpu"), out, compiled=False) == 0
    rows = _rows(out)
    plain, fast, low = (rows[n] for n in ("plain diffusers", "lordfast", "lordfast --low-memory"))
    # The same work, but that low memory encodes twice; of each step, not of the two that are timed together.
    assert float(fast["gflop"]) == pytest.approx(float(plain["gflop"]), rel=0.01)
    assert float(low["gflop"]) > 1.05 * float(plain["gflop"])
    assert float(low["peak_mib"]) < 0.9 * float(fast["peak_mib"])
    assert float(low["mfu"]) == pytest.approx(float(plain["gflop"]) / float(low["median_s"]) / 50, rel=1e-4)
    assert float(fast["images_per_s"]) == pytest.approx(1 / float(fast["median_s"]), rel=1e-4)

    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moved = attack_steps.PlainPgd(demo_model, pixels, demo_model.embed(["a face"]), 0)() - pixels
    # Two steps of one grey level each.
    assert 2 / 255 <= float(moved.abs().max()) <= 4 / 255 * (1 + 1e-6)

"""What `lordfast info --fit` suggests: it fits, and nothing less painful does."""

from __future__ import annotations

import dataclasses
import json

import pytest

from lordfast.cli.main import main
from lordfast.diffusion.topologies import TOPOLOGIES, find_topology
from lordfast.training.memory.estimate import TASKS, Estimator, Switches
from lordfast.training.memory.fit import RESERVED, WANTED, check_side, find_fits, least_needed, rungs


@pytest.fixture(scope="module")
def tiny(tiny_topology) -> Estimator:
    return Estimator(tiny_topology, 64, extrapolate=True)


@pytest.fixture
def named_tiny(tiny_topology, monkeypatch) -> None:
    """The command knows the model too."""
    monkeypatch.setitem(TOPOLOGIES, "tiny", tiny_topology)


def peak(estimator: Estimator, task, switches: Switches) -> int:
    return estimator.estimate(task, switches).peak


def after(size: int, task) -> int:
    """The next larger batch that some accumulation makes up to the command's own."""
    return next(n for n in range(size + 1, WANTED[task] + 1) if WANTED[task] % n == 0)


@pytest.mark.parametrize("task", TASKS)
def test_suggestions_fit_and_nothing_less_painful_does(tiny, task):
    ladder = list(rungs(task, "bf16"))
    least, most = least_needed(tiny, task, "bf16"), peak(tiny, task, Switches(batch_size=8, attack_batch_size=8))
    seen = set()
    for memory in (int(least + (2 * most - least) * share) for share in (0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1)):
        limit = memory * (1 - RESERVED)
        fits = find_fits(tiny, task, memory, "bf16")
        sizes = [fit.switches.batch_size for fit in fits]
        assert fits and sizes == sorted(set(sizes)) and sizes[-1] <= WANTED[task]
        before = 0
        for fit in fits:
            assert fit.estimate.peak == peak(tiny, task, fit.switches) <= limit
            words = fit.flags()
            more = int(words[words.index("--accumulate") + 1]) if "--accumulate" in words else 1
            assert task == "attack" or fit.switches.batch_size * more == WANTED[task], "the same training"
            plain = dataclasses.replace(fit.switches, batch_size=1, attack_batch_size=1)
            rung = ladder.index(plain)
            seen.add(rung)
            # The same batch does not fit with less painful settings, nor a larger one with these.
            for easier in ladder[:rung]:
                tried = dataclasses.replace(easier, batch_size=after(before, task))
                assert peak(tiny, task, tried) > limit
            if fit.switches.batch_size < WANTED[task]:
                larger = dataclasses.replace(fit.switches, batch_size=after(fit.switches.batch_size, task))
                assert peak(tiny, task, larger) > limit
            before = fit.switches.batch_size
    assert 0 in seen and max(seen) >= len(ladder) - 2
    assert not find_fits(tiny, task, least - 10, "bf16") and find_fits(tiny, task, least, "bf16")


def test_pain_grows_and_results_change_last():
    for task in TASKS:
        ladder = list(rungs(task, "fp32"))
        assert ladder[0] == Switches()
        drastic = [rung.quantize != "none" or rung.offload == "blocks" for rung in ladder]
        assert drastic == sorted(drastic)
        assert ladder[-1].offload == "blocks" and ladder[-1].quantize == "none"
    assert not any(rung.low_memory for rung in rungs("stage2", "fp32"))


def test_weights_are_not_rounded_for_a_larger_batch_alone(tiny):
    ladder = list(rungs("stage2", "bf16"))
    last = next(rung for rung, switches in enumerate(ladder) if switches.quantize != "none") - 1
    memory = int(peak(tiny, "stage2", ladder[last]) / (1 - RESERVED)) + 1000
    fits = find_fits(tiny, "stage2", memory, "bf16")
    assert [fit.switches.quantize for fit in fits] == ["none"] * len(fits) and fits[-1].switches.batch_size < 4


@pytest.mark.usefixtures("named_tiny")
def test_the_command_prints_flags_to_copy(capsys, tiny):
    memory = peak(tiny, "stage2", Switches(dtype="bf16", batch_size=2)) * 1.06 / 1e6
    words = ["info", "--fit", "tiny", "--memory", f"{memory:.2f}MB", "--task", "stage2", "--resolution", "64"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "tiny at 64 px, bf16, in" in text and "lordfast stage2" in text and "lordfast attack" not in text
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["tasks"]["stage2"]
    assert found["fits"][0]["flags"] == [
        *("--dtype", "bf16", "--batch-size", "2", "--accumulate", "2", "--resolution", "64")
    ]
    assert all(" ".join(fit["flags"]) in text for fit in found["fits"]) and found["needed_bytes"] is None
    for fit in found["fits"]:
        assert fit["peak_bytes"] <= memory * 1e6 * (1 - RESERVED)


def test_the_flags_are_the_commands_own(tiny):
    from lordfast.attacks.registry import ATTACKS
    from lordfast.cli.parse import parse
    from lordfast.defense.stage1 import Stage1Config
    from lordfast.training.memory.fit import Fit
    from lordfast.training.stage2 import Stage2Config

    needed = {
        "attack": (ATTACKS["pgd"].config, ["--model", "demo", "--images", ".", "--out", "o"]),
        "stage1": (Stage1Config, ["--model", "demo", "--data", ".", "--out", "o"]),
        "stage2": (Stage2Config, ["--model", "demo", "--instance-data", ".", "--instance-prompt", "x", "--out", "o"]),
    }
    for task in TASKS:
        cls, words = needed[task]
        for rung in rungs(task, "bf16"):
            switches = dataclasses.replace(rung, batch_size=2, attack_batch_size=2)
            config = parse(cls, task, [*words, *Fit(switches, tiny.estimate(task, Switches())).flags()])
            for name, value in dataclasses.asdict(switches).items():
                if name != "attack_batch_size" or task == "stage1":
                    assert getattr(config, name, value) == value
            assert getattr(config, "accumulate", 2) == 2


@pytest.mark.usefixtures("named_tiny")
def test_nothing_fits(capsys):
    assert main(["info", "--fit", "tiny", "--memory", "100kB", "--task", "stage2"]) == 0
    assert "nothing fits: the most frugal settings need" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sd15", "--memory", "24"], "memory: expected an amount such as 24GB"),
        (["sd15"], "memory: there is no GPU"),
        (["sd14", "--memory", "24GB"], "published topologies are sd15"),
        (["sd15", "--memory", "24GB", "--resolution", "500"], "resolution: expected a positive multiple of 64"),
        (["sd15", "--memory", "24GB", "--resolution", "0"], "resolution: expected a positive multiple of 64"),
    ],
)
def test_bad_input(capsys, words, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["info", "--fit", *words]) == 2
    assert message in capsys.readouterr().err


def test_sides_go_by_the_architecture():
    assert check_side(find_topology("sdxl"), None) == 1024
    assert check_side(find_topology("sd3"), 1008) == 1008
    with pytest.raises(ValueError, match="multiple of 16 for sd3, got 1000"):
        check_side(find_topology("sd3"), 1000)

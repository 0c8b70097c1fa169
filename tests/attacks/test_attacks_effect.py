"""What attacks are for: each moves its own loss, on unseen noise, further than random signs of its budget do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from lordfast.attacks.engine import probe_loss
from lordfast.attacks.folder import Results
from lordfast.attacks.frames import Frame
from lordfast.attacks.modules import Module
from lordfast.attacks.registry import ATTACKS
from lordfast.attacks.run import run_attack
from lordfast.data import make_faces, write_folder
from lordfast.diffusion.model import Text

QUICK = {"eps": "8/255", "step_size": "2/255", "attack_steps": 5}
ROUNDS = {**QUICK, "attack_steps": 3, "rounds": 2, "train_steps": 2, "surrogate_batch_size": 2}

CASES: dict[str, dict[str, Any]] = {
    "fgsm": {"eps": "8/255", "draws": 4},
    "fgsm --targeted": {"eps": "8/255", "draws": 4, "targeted": True},
    "pgd": QUICK,
    "pgd --targeted": {**QUICK, "targeted": True},
    "pgd l2": {**QUICK, "norm": "l2", "eps": "3.0", "step_size": "0.8"},
    "mist textural": {**QUICK, "mode": "textural"},
    "mist semantic": {**QUICK, "mode": "semantic"},
    "mist fused": {**QUICK, "mode": "fused"},
    "photoguard encoder": QUICK,
    "photoguard to-zero": {**QUICK, "to_zero": True},
    "photoguard diffusion": {**QUICK, "mode": "diffusion", "guidance": 2.0},
    "fsmg": {**QUICK, "train_steps": 5, "surrogate_batch_size": 2},
    "fsmg --targeted": {**QUICK, "train_steps": 5, "surrogate_batch_size": 2, "targeted": True},
    "aspl": ROUNDS,
    "aspl --targeted": {**ROUNDS, "targeted": True, "surrogate": "lora", "surrogate_lr": 1e-4},
    "ace": ROUNDS,
    "ace text": {**ROUNDS, "surrogate_text_encoder": True},
    "ace-plus": ROUNDS,
    **{
        f"feature {module}": {**QUICK, "module": module, "draws": 1, "start_std": "0.02"}
        for module in get_args(Module)
        if module != "joint-attention"  # of SD 3, which has tests of its own
    },
}


def signs_like(original: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """Random signs of the attack's largest change, or for l2 of its norm."""
    change = attacked.astype(float) - original
    size = min(np.abs(change).max(), np.linalg.norm(change) / np.sqrt(change.size) * 1.5)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], original.shape)
    return np.rint(original + size * signs).clip(0, 255).astype(np.uint8)


@pytest.fixture
def losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[float, ...]]:
    """The attack's loss on held-out noise, with its surrogate as it ended: clean, random signs, attacked; direction."""

    def measure(case: str) -> tuple[float, ...]:
        found: list[tuple[float, ...]] = []
        losses_of = Results._losses

        def watch(self: Results, frames: list[Frame], results: list[np.ndarray], text: Text) -> Any:
            clean = [frame.colours for frame in frames]
            noisy = [signs_like(one, other) for one, other in zip(clean, results, strict=True)]

            def mean(group: list[np.ndarray]) -> float:
                losses = probe_loss(self.model, group, clean, text, self.loss, self.settings, draws=8, seed=99)
                return float(np.mean(losses))

            found.append((mean(clean), mean(noisy), mean(results), float(self.loss.direction)))
            return losses_of(self, frames, results, text)

        monkeypatch.setattr(Results, "_losses", watch)
        attack = ATTACKS[case.split()[0]]
        faces = tmp_path / "faces"
        write_folder(make_faces(2, seed=7), faces)
        config = attack.config(model="demo", images=faces, out=tmp_path / "run", device="cpu", **CASES[case])
        run_attack(attack.name, config)
        assert len(found) == 1
        return found[0]

    return measure


@pytest.mark.parametrize("case", CASES)
def test_it_moves_its_loss_further_than_random_signs(case: str, losses: Callable[[str], tuple[float, ...]]) -> None:
    clean, noisy, attacked, direction = losses(case)
    print(f"{case}: {clean:.4g} clean, {noisy:.4g} random signs, {attacked:.4g} attacked")
    # Measured over four faces with ten steps: 12 (feature post-quant-conv: 83) to 1000 times as far.
    assert direction * (attacked - clean) > 5 * abs(noisy - clean) > 0

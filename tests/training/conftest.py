"""A toy objective that exercises the loop in milliseconds, and short Stage-2 configs."""

import dataclasses
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lordfast.diffusion.topologies import Topology, find_topology
from lordfast.training.loop import Objective, TrainingConfig, train
from lordfast.training.processes import make_accelerator
from lordfast.training.run import RunFolder
from lordfast.training.stage2 import Stage2Config


class ToyObjective(Objective):
    """A small regression; with dropout it also depends on the global random generator."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, *, x: Tensor, y: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        loss = (self.net(x).squeeze(-1) - y).square().mean()
        return {"loss": loss, "doubled": 2 * loss}


class ToyBatches:
    """Ten points with fresh noise on every draw; remembers which were drawn."""

    def __init__(self, size: int = 10) -> None:
        self.points = torch.randn(size, 6, generator=torch.Generator().manual_seed(1))
        self.drawn: list[int] = []

    def __len__(self) -> int:
        return len(self.points)

    def __call__(self, indices: Sequence[int], generators: Sequence[torch.Generator]) -> dict[str, Any]:
        self.drawn += indices
        x = [self.points[i] + torch.randn(6, generator=g) / 10 for i, g in zip(indices, generators, strict=True)]
        return {"x": torch.stack(x), "y": self.points[list(indices)].sum(1)}


class Toy:
    """``toy(folder or None, objective=..., batches=..., on_step=..., **config)`` trains the toy.

    Returns (objective, batches, what `train` returned). Test modules can't import this file, hence the attributes.
    """

    Objective = ToyObjective
    Batches = ToyBatches

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(
        self,
        folder: str | None = None,
        *,
        objective: ToyObjective | None = None,
        batches: Any = None,
        on_step: Callable[[int, bool], None] | None = None,
        after_update: Callable[[], None] | None = None,
        extras: dict[str, Any] | None = None,
        **settings: Any,
    ) -> tuple[ToyObjective, Any, dict[str, Any]]:
        defaults = {"steps": 6, "batch_size": 4, "lr": 1e-2, "tensorboard": False, "device": "cpu"}
        config = TrainingConfig(out=self.root / (folder or "none"), **(defaults | settings))
        objective, batches = objective or ToyObjective(), batches or ToyBatches()
        accelerator = make_accelerator(config.dtype, torch.device(config.device))
        opened = RunFolder.open(config, "toy") if folder is not None else None
        result = train(
            objective,
            batches,
            config,
            accelerator,
            run=opened,
            on_step=on_step,
            after_update=after_update,
            extras=extras or {},
        )
        return objective, batches, result


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


@pytest.fixture
def interrupt_after() -> Callable[[int], Callable[[int, bool], None]]:
    """``interrupt_after(k)`` is an ``on_step`` that behaves as Ctrl-C pressed right after step k."""

    def make(k: int) -> Callable[[int, bool], None]:
        def on_step(step: int, last: bool) -> None:
            if step == k:
                signal.raise_signal(signal.SIGINT)

        return on_step

    return make


@pytest.fixture
def stage2(tmp_path: Path, faces: Path) -> Callable[..., Stage2Config]:
    """``stage2(folder, **settings)``: a Stage-2 config of two steps on the embedded model."""

    def make(folder: str = "stage2", **settings: Any) -> Stage2Config:
        defaults = {
            "out": tmp_path / folder,
            "model": "demo",
            "instance_data": faces,
            "instance_prompt": "a photo of sks person",
            "steps": 2,
            "batch_size": 2,
            "lr": 1e-3,
            "device": "cpu",
            "tensorboard": False,
        }
        return Stage2Config(**(defaults | settings))

    return make


@pytest.fixture(scope="session")
def lord_folder(_loaded_demo_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved LoRD for the embedded model whose branches and gates are random, so that it changes predictions."""
    import copy

    from lordfast.adapter import LordConfig, save_lord

    model = copy.deepcopy(_loaded_demo_model)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model.unet.add_adapter(LordConfig(r=2, lord_alpha=4, init_weights=False), adapter_name="lord")
    folder = tmp_path_factory.mktemp("lord")
    save_lord(model.unet, folder)
    return folder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Fills with the model of every `run_stage2`, as it is when its LoRA is saved."""
    from lordfast.training import stage2 as module

    models: list[Any] = []
    save = module.save

    def keep(model: Any, folder: Path, config: Stage2Config) -> None:
        models.append(model)
        save(model, folder, config)

    monkeypatch.setattr(module, "save", keep)
    return models


@pytest.fixture
def predict() -> Callable[[Any], Tensor]:
    """The prediction of a model for one fixed input."""

    def compute(model: Any) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        side = model.unet.config.sample_size
        noisy = torch.randn(2, model.unet.config.in_channels, side, side, generator=generator)
        with torch.no_grad():
            return model.predict(noisy, torch.tensor([10, 700]), model.embed(["a photo of sks person", "a tree"]))

    return compute


@pytest.fixture(scope="session")
def tiny_topology() -> Topology:
    """A Stable Diffusion of two levels, one layer each; all of its layers are wide enough to be quantised."""
    narrow = find_topology("sd15-narrow")
    cls, config = narrow.denoiser
    shallow = {
        "block_out_channels": (64, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 64,
    }
    return dataclasses.replace(narrow, name="tiny", denoiser=(cls, {**config, **shallow}))

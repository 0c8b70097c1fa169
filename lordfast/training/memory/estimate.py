"""The peak memory of an attack, of Stage 1 and of Stage 2 under given switches, before anything is loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from lordfast.diffusion.cache import content_key
from lordfast.diffusion.model import DTYPES
from lordfast.diffusion.offload import blocks_of
from lordfast.diffusion.quantize import quantised_layers
from lordfast.diffusion.topologies import Topology
from lordfast.files import default_cache_dir, write_atomic
from lordfast.training.memory.model import Weights, denoiser_of, numbers, part, vae_dtype, vae_of
from lordfast.training.memory.pieces import Adapters, Piece, Task, denoiser_piece, vae_piece
from lordfast.training.memory.stand_in import BYTES_PER_WEIGHT

TASKS: tuple[Task, ...] = ("attack", "stage1", "stage2")


@dataclass(frozen=True, kw_only=True)
class Switches:
    """What a run's memory depends on, named as the commands' options are.

    Attributes:
        batch_size: images of a forward: of the attack, or of training (Stage 1 makes two rows of each).
        attack_batch_size: of Stage 1, images perturbed at once; `low_memory` is how.
    """

    batch_size: int = 1
    attack_batch_size: int = 1
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    low_memory: bool = False
    quantize: Literal["none", "8bit", "4bit"] = "none"
    offload: Literal["none", "parts", "blocks"] = "none"


@dataclass(frozen=True)
class Phase:
    """The bytes of one phase of a run, at its peak.

    Attributes:
        weights: of the parts of the model that are on the device, frozen adapters included.
        adapters: weights that are trained, and AdamW's two averages of each.
        kept: activations between forward and backward.
        moving: everything that comes and goes, at most: activations, gradients, passing tensors.
    """

    name: str
    weights: int
    adapters: int
    kept: int
    moving: int

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.moving


@dataclass(frozen=True)
class Estimate:
    """The phases of a run, one after the other; the greatest one is its peak."""

    task: Task
    phases: tuple[Phase, ...]

    @property
    def worst(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def peak(self) -> int:
        return self.worst.total


@dataclass
class Estimator:
    """Estimates for one model at one resolution; what is counted once is kept, in memory and on disk.

    What torch does not count is not in them: CUDA's context, the allocator's gaps, kernels' workspaces and, on a CPU,
    the packed copies that its convolutions make.

    Args:
        side: of the images, in pixels.
        cuda: whether autocast is CUDA's.
        extrapolate: count a batch as that many times a batch of one, which is an upper bound and saves time.
    """

    topology: Topology
    side: int
    adapters: Adapters = field(default_factory=Adapters)
    cuda: bool = True
    extrapolate: bool = False

    def __post_init__(self) -> None:
        self._known: dict[tuple[str, str], dict[str, int]] = {}

    @property
    def weights(self) -> Weights:
        """The sizes of the model's parts."""
        return Weights(**self._cached("weights", lambda: _count_weights(self.topology)))

    def estimate(self, task: Task, switches: Switches) -> Estimate:
        """The phases of `task`.

        Raises:
            ValueError: blocks that come and go together with quantised weights, or a batch size below 1.
        """
        if switches.offload == "blocks" and switches.quantize != "none":
            raise ValueError(f"offload: blocks can't be quantised too, got quantize {switches.quantize}")
        if min(switches.batch_size, switches.attack_batch_size) < 1:
            raise ValueError(f"batch_size: expected at least 1, got {switches.batch_size}")
        if task == "attack":
            return Estimate(task, (self._text(switches), self._attack(switches, switches.batch_size)))
        train = self._train(task, switches)
        if task == "stage1":
            perturb = self._attack(switches, switches.attack_batch_size)
            return Estimate(task, (self._text(switches), perturb, train))
        return Estimate(task, (self._text(switches), self._encode(switches), train))

    def step(self, task: Literal["stage1", "stage2"], batch: int, switches: Switches) -> int:
        """Bytes that a training step takes above weights and adapters: what moves, and AdamW's two averages."""
        piece = self._denoiser(task, batch, switches)
        return piece.peak + 8 * piece.trained

    def _attack(self, switches: Switches, batch: int) -> Phase:
        """Gradient through VAE and denoiser: in one graph, or in two that follow one another."""
        vae = self.vae(batch, switches, gradient=True)
        denoiser = self._denoiser("attack", batch, switches)
        held = self.held(switches, vae=True, text=False)
        # Images, their gradient and their originals.
        images = 3 * batch * 3 * self.side**2 * 4
        if switches.low_memory:
            kept, moving = max(vae.kept, denoiser.kept), max(vae.peak, denoiser.peak)
        else:
            kept = vae.kept + denoiser.kept
            moving = max(vae.forward, vae.kept + denoiser.peak, vae.backward)
        return Phase("perturb", held, 0, kept, moving + images)

    def _text(self, switches: Switches) -> Phase:
        """Texts are embedded with every part at hand; what that computes is small beside the weights."""
        return Phase("text", self.held(switches, vae=True, text=True), 0, 0, 0)

    def _encode(self, switches: Switches) -> Phase:
        """Latents are made once, one image at a time, without gradients."""
        piece = self.vae(1, switches, gradient=False)
        return Phase("encode", self.held(switches, vae=True, text=False), 0, 0, piece.peak)

    def _train(self, task: Task, switches: Switches) -> Phase:
        piece = self.piece(task, switches)
        held = self.held(switches, vae=False, text=False) + 4 * piece.frozen
        return Phase("train", held, 12 * piece.trained, piece.kept, piece.peak)

    def held(self, switches: Switches, *, vae: bool, text: bool) -> int:
        """Bytes of the weights on the device; parts that the phase does not use stay there unless they are sent off."""
        count, each = self.weights, DTYPES[switches.dtype].itemsize
        stays = switches.offload == "none"
        found = count.denoiser * each
        per_weight = BYTES_PER_WEIGHT[switches.quantize]
        if per_weight is not None:
            found -= int(count.linear * (each - per_weight))
        if switches.offload == "blocks":
            found -= count.blocks * each
        if vae or stays:
            found += count.vae * vae_dtype(self.topology, switches.dtype).itemsize
        return found + (count.text * each if text or stays else 0)

    def vae(self, batch: int, switches: Switches, *, gradient: bool) -> Piece:
        """Of encoding, with `gradient` also of the way back to the pixels."""
        # Without gradients there is nothing to recompute.
        options = {"gradient": gradient, "checkpointing": gradient and switches.gradient_checkpointing}

        def count(rows: int) -> Piece:
            return vae_piece(self.topology, self.side, rows, switches.dtype, **options)

        return self._piece(batch, count, "vae", switches.dtype, sorted(options.items()))

    def piece(self, task: Task, switches: Switches) -> Piece:
        """Of a step of `task` in the denoiser alone."""
        return self._denoiser(task, switches.batch_size, switches)

    def _denoiser(self, task: Task, batch: int, switches: Switches) -> Piece:
        options: dict[str, Any] = {
            "checkpointing": switches.gradient_checkpointing,
            "quantize": switches.quantize,
            "blocks": switches.offload == "blocks",
            "cuda": self.cuda,
        }

        def count(rows: int) -> Piece:
            return denoiser_piece(self.topology, task, self.side, rows, switches.dtype, self.adapters, **options)

        return self._piece(batch, count, task, switches.dtype, self.adapters, sorted(options.items()))

    def _piece(self, batch: int, count: Callable[[int], Piece], *key: object) -> Piece:
        rows = 1 if self.extrapolate else batch
        found = Piece(**self._cached("piece", lambda: count(rows), self.side, rows, *key))
        times = batch // rows
        scaled = {name: getattr(found, name) * times for name in ("kept", "forward", "backward")}
        return dataclasses.replace(found, **scaled)

    def _cached(self, kind: str, make: Callable[[], Any], *key: object) -> dict[str, int]:
        short = (kind, repr(key))
        if short not in self._known:
            self._known[short] = self._on_disk(kind, make, *key)
        return self._known[short]

    def _on_disk(self, kind: str, make: Callable[[], Any], *key: object) -> dict[str, int]:
        import diffusers
        import torch

        import lordfast

        versions = (lordfast.__version__, torch.__version__, diffusers.__version__)
        parts = (self.topology.denoiser, self.topology.vae, self.topology.text)
        path = default_cache_dir() / "memory" / f"{content_key(FORMAT, kind, versions, parts, *key)}.json"
        try:
            found: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = dataclasses.asdict(make())
            # Where it can't be kept it will be counted again.
            with contextlib.suppress(OSError):
                write_atomic(path, json.dumps(found).encode())
        return found


FORMAT = 1
"""Of what is kept on disk: to be raised when pieces are counted in another way."""


def _count_weights(topology: Topology) -> Weights:
    denoiser = denoiser_of(topology)
    # By shape alone: text encoders of billions of weights take no memory on meta.
    text = sum(numbers(part("transformers", cls, config)) for cls, config in topology.text)
    quantised = set(quantised_layers(denoiser))
    linear = sum(
        parameter.numel()
        for name, parameter in denoiser.named_parameters()
        if name.endswith(".weight") and name.removesuffix(".weight") in quantised
    )
    blocks = [numbers(block) for block in blocks_of(denoiser).values()]
    return Weights(numbers(denoiser), numbers(vae_of(topology)), text, linear, sum(blocks), max(blocks))

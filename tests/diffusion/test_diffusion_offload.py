"""Blocks whose weights travel: results and gradients of the resident model, and nothing stays on the device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lordfast
from lordfast.diffusion.offload import BlockOffload, blocks_of
from lordfast.diffusion.topologies import build_denoiser, find_topology
from lordfast.profiling.live import LiveBytes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def _unet() -> Any:
    return build_denoiser(find_topology("sd15-narrow"))


@pytest.fixture
def unet(_unet) -> Any:
    return copy.deepcopy(_unet)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    return noisy, torch.tensor([10, 700]), torch.randn(2, 77, 24, generator=generator)


def outcome(unet: Any) -> list[Tensor]:
    """The prediction, its gradient at the latents, and those of whatever is trained."""
    noisy, timesteps, text = inputs()
    noisy.requires_grad_()
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    prediction = unet(noisy, timesteps, text).sample
    return [prediction, *torch.autograd.grad(prediction.square().mean(), [noisy, *trained])]


class Coded:
    """Homes whose bits are flipped, as a stand-in for another device: what computes with one computes nonsense."""

    def __init__(self) -> None:
        self.fetched = 0

    def flip(self, tensor: Tensor) -> Tensor:
        return tensor.contiguous().view(torch.int32).bitwise_not().view(torch.float32)

    def fetch(self, home: Tensor) -> Tensor:
        self.fetched += 1
        return self.flip(home)


def offload(unet: Any) -> tuple[BlockOffload, Coded]:
    """Blocks at homes that are coded."""
    coded = Coded()
    travelling = BlockOffload(unet, CPU, coded.fetch)
    for parameter in travelling._homes:
        parameter.data.copy_(coded.flip(parameter.data))
    return travelling, coded


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("adapter", ["none", "before", "after"])
def test_results_and_gradients_are_those_of_the_resident_model(unet, checkpointing, adapter):
    def inject(model: Any) -> None:
        model.add_adapter(lordfast.LordConfig(r=2, target_modules=["to_q", "to_v"]), adapter_name="lord")
        generator = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape, generator=generator) / 10

    resident = copy.deepcopy(unet)
    if adapter == "before":
        inject(unet)
    travelling, coded = offload(unet)
    if adapter == "after":
        inject(unet)
        travelling.settle()
    if adapter != "none":
        inject(resident)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    expected, found = outcome(resident), outcome(unet)
    assert len(expected) == len(found) and coded.fetched > 0
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    travelling.remove()
    assert torch.equal(outcome(unet)[0], expected[0]) and not hasattr(unet, "hf_device_map")


def test_no_more_than_a_block_is_on_the_device_and_all_go_home(unet):
    blocks = blocks_of(unet)
    sizes = [sum(p.numel() * 4 for p in block.parameters()) for block in blocks.values()]
    travelling, coded = offload(unet)
    before = dict(unet.named_parameters())
    assert len(travelling._homes) == sum(len(list(block.parameters())) for block in blocks.values())
    away: list[int] = []

    def watch(block: nn.Module, *_: Any) -> None:
        away.append(sum(parameter is not before[name] for name, parameter in unet.named_parameters()))

    for block in blocks.values():
        block.register_forward_pre_hook(watch)
    with LiveBytes() as live, torch.no_grad():
        unet(*inputs())
    # A block's own weights and no others'; each fetched once.
    assert sorted(away) == sorted(len(list(block.parameters())) for block in blocks.values())
    assert coded.fetched == len(travelling._homes)
    assert all(parameter is before[name] for name, parameter in unet.named_parameters())
    assert live.now == 0 and max(sizes) < live.peak < sum(sizes) / 2


def test_the_backward_pass_keeps_no_weights_waiting(unet):
    resident, kept = copy.deepcopy(unet), {}
    offload(unet)
    for name, model in (("resident", resident), ("travelling", unet)):
        noisy, timesteps, text = inputs()
        noisy.requires_grad_()
        with LiveBytes() as live:
            prediction = model(noisy, timesteps, text).sample
            kept[name] = live.now
            del prediction
    assert kept["travelling"] == kept["resident"]


def test_an_error_in_a_block_sends_its_weights_home(unet):
    travelling, _ = offload(unet)
    before = dict(unet.named_parameters())
    with pytest.raises(RuntimeError):
        unet(inputs()[0], inputs()[1], torch.randn(2, 77, 25))
    assert all(parameter is before[name] for name, parameter in unet.named_parameters())
    assert not travelling._contexts and not travelling._guests and not travelling._swapped


def test_accelerate_leaves_the_model_where_it_is(unet):
    from lordfast.training.processes import make_accelerator

    accelerator = make_accelerator("fp32", CPU)
    assert not accelerator.verify_device_map(nn.Sequential(unet))
    offload(unet)
    assert accelerator.verify_device_map(nn.Sequential(unet))


def test_a_model_without_known_blocks_is_refused():
    with pytest.raises(ValueError, match="offload: a Linear has no blocks"):
        BlockOffload(nn.Linear(2, 2), CPU)

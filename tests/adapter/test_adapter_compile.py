"""torch.compile of a small attention block with LoRD under a LoRA: outputs, logits and gradients are eager's.

Up to the code that inductor would make of the graphs: Stage 1's compiled step is tested with that.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

import lordfast
from lordfast.diffusion.compiled import compile_blocks


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = BasicTransformerBlock(8, 2, 4, cross_attention_dim=6)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        return self.block(x, encoder_hidden_states=text)


@pytest.fixture
def net() -> Iterator[Net]:
    torch._dynamo.reset()
    net = Net().requires_grad_(False)
    lord = lordfast.LordConfig(r=2, lord_alpha=2, gate_hidden=3, init_weights=False)
    peft.inject_adapter_in_model(lord, net, "lord")
    lora = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    peft.inject_adapter_in_model(lora, net, "sks")
    # PEFT before 0.21 freezes what was injected before.
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("lord_" in name or "lora_" in name)
    yield net
    torch._dynamo.reset()


def step(model: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 5, 8, generator=generator).to(dtype).requires_grad_()
    text = torch.randn(2, 3, 6, generator=generator).to(dtype)
    model.zero_grad()
    with lordfast.collect_gates(model) as gates:
        y = model(x, text)
    (y.square().mean() + lordfast.detection_loss(gates, torch.tensor([0, 1]))).backward()
    tensors: dict[str, Any] = {"y": y, "x.grad": x.grad} | {f"logit {n}": g for n, g in gates.items()}
    trained = {n.removeprefix("_orig_mod."): p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {n: t.detach().double() for n, t in (tensors | {f"grad {n}": g for n, g in trained.items()}).items()}


def error(got: Tensor, want: Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


def test_compiled_block_is_the_eager_block(net: Net) -> None:
    exact, eager = copy.deepcopy(net).double(), copy.deepcopy(net)
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        graphs.append(len(graph.graph.nodes))
        return aot_eager(graph, inputs)

    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for seed in (1, 2):
        truth, plain, got = step(exact, seed, torch.float64), step(eager, seed), step(compiled, seed)
        # y, x.grad, 8 logits, 8 x 7 gradients of LoRD and 2 x 2 of the LoRA.
        assert truth.keys() == plain.keys() == got.keys() and len(got) == 70
        for name, value in truth.items():
            # Both round differently: neither may be further from float64 than twice the other, above fp32's noise.
            assert error(got[name], value) <= 2 * error(plain[name], value) + 2e-6, name
    assert len(graphs) == 1
    x, text = torch.ones(2, 5, 8), torch.ones(2, 3, 6)
    with torch.no_grad():
        assert error(compiled(x, text), eager(x, text)) < 2e-6


def test_blocks_stay_one_graph_with_a_timestep_and_an_overridden_lambda(tiny: SimpleNamespace) -> None:
    torch._dynamo.reset()
    eager = tiny.unet()
    eager.add_adapter(tiny.config(gate_timestep=True, gate_norm="layer"), adapter_name="lord")
    for name, parameter in tiny.lord_parameters(eager).items():
        nn.init.normal_(parameter, std=1.0 if "lord_wt" in name else 0.3)
    compiled = copy.deepcopy(eager)
    # Each as one graph, or it raises.
    assert compile_blocks(compiled.mid_block.attentions, backend="eager") == 1
    sample, _, text = tiny.inputs()
    outputs = []
    for value, times in ((None, [3, 700]), (None, [700, 3]), (0.25, [3, 700]), (0.75, [3, 700]), (None, [3, 700])):
        inputs = (sample, torch.tensor(times), text)
        with lordfast.override_lambda(eager, value), lordfast.override_lambda(compiled, value):
            outputs.append(tiny.run(compiled, inputs))
            torch.testing.assert_close(outputs[-1], tiny.run(eager, inputs), rtol=1e-5, atol=1e-6)
    assert torch.equal(outputs[0], outputs[4]) and len({tuple(y.flatten().tolist()) for y in outputs}) == 4
    torch._dynamo.reset()

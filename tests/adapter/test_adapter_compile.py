"""torch.compile of a small attention block with LoRD under a LoRA: outputs, logits and gradients are eager's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import copy, json
import peft, torch
from diffusers.models.attention import BasicTransformerBlock
import lordfast

torch.manual_seed(0)
torch.set_num_threads(1)

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.block = BasicTransformerBlock(8, 2, 4, cross_attention_dim=6)

    def forward(self, x, text):
        return self.block(x, encoder_hidden_states=text)

net = Net().requires_grad_(False)
lord = lordfast.LordConfig(r=2, lord_alpha=2, gate_hidden=3, init_weights=False)
peft.inject_adapter_in_model(lord, net, "lord")
lora = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
peft.inject_adapter_in_model(lora, net, "sks")
exact, eager = copy.deepcopy(net).double(), copy.deepcopy(net)
compiled = torch.compile(net, fullgraph=True)

def step(model, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 5, 8, generator=generator).to(dtype).requires_grad_()
    text = torch.randn(2, 3, 6, generator=generator).to(dtype)
    model.zero_grad()
    with lordfast.collect_gates(model) as gates:
        y = model(x, text)
    (y.square().mean() + lordfast.detection_loss(gates, torch.tensor([0, 1]))).backward()
    tensors = {"y": y, "x.grad": x.grad} | {f"logit {n}": g for n, g in gates.items()}
    tensors |= {f"grad {n.removeprefix('_orig_mod.')}": p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {n: t.detach().double() for n, t in tensors.items()}

def error(got, want):
    return ((got - want).norm() / want.norm()).item()

rows = []
for seed in (1, 2):
    truth, plain, got = step(exact, seed, torch.float64), step(eager, seed), step(compiled, seed)
    assert truth.keys() == plain.keys() == got.keys(), set(truth) ^ set(got)
    rows += [(name, error(plain[name], truth[name]), error(got[name], truth[name])) for name in truth]
with torch.no_grad():
    x, text = torch.ones(2, 5, 8), torch.ones(2, 3, 6)
    rows.append(("without gates", 0.0, error(compiled(x, text), eager(x, text))))
print("RESULT" + json.dumps(rows))
"""


def test_compiled_block_is_the_eager_block(tmp_path: Path) -> None:
    # A process of its own: without this variable, set before torch is imported, CPU inductor's gradients of a plain
    # diffusers UNet are wrong already.
    environment = os.environ | {"TORCHINDUCTOR_LAYOUT_OPTIMIZATION": "0", "OMP_NUM_THREADS": "1"}
    script = tmp_path / "compiled.py"
    script.write_text(_SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(done.stdout.split("RESULT")[1])
    # y, x.grad, 8 logits, 8 x 7 gradients of LoRD and 2 x 2 of the LoRA, twice; and one pass without gates.
    assert len(rows) == 2 * 70 + 1
    for name, eager, compiled in rows:
        # Both round differently: neither may be further from float64 than twice the other, above fp32's noise.
        assert compiled <= 2 * eager + 2e-6, (name, eager, compiled)

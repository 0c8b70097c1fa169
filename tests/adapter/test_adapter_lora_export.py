"""Stage-2 LoRAs: plain diffusers, in a process that can't import lordfast, loads them and computes the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, inject_adapter_in_model

import lordfast
from lordfast.adapter.lora_export import lora_factors

_PLAIN_DIFFUSERS = """
import sys
sys.modules["lordfast"] = None
import torch
from diffusers import StableDiffusionPipeline

folder, out, *loras = sys.argv[1:]
results = []
for lora in loras:
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.load_lora_weights(lora)
    pipe.unet.eval()
    generator = torch.Generator().manual_seed(1)
    sample, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 12, generator=generator)
    with torch.no_grad():
        pred = pipe.unet(sample, torch.full((2,), 7), encoder_hidden_states=text).sample
        words = pipe.text_encoder(torch.arange(20)[None])[0]
    results.append({"pred": pred, "words": words})
assert not [name for name, module in sys.modules.items() if name.startswith("lordfast") and module is not None]
torch.save(results, out)
"""


def _add_text_lora(text_encoder: torch.nn.Module, name: str) -> None:
    config = LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj", "out_proj"], init_lora_weights=False)
    inject_adapter_in_model(config, text_encoder, name)


@pytest.mark.usefixtures("text_loras_in_diffusers")
def test_plain_diffusers_loads_a_lora_trained_over_lord(
    pipe: StableDiffusionPipeline, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        bare = tiny.run(pipe.unet), pipe.text_encoder(torch.arange(20)[None])[0]
    pipe.unet.add_adapter(tiny.config(), adapter_name="lord")
    # Other modules than attention as well, a conv among them, and alpha / r other than 1.
    tiny.add_lora(pipe.unet, r=3, alpha=7.5, target_modules=[*tiny.targets, "ff.net.2", "conv1", "proj_in"])
    _add_text_lora(pipe.text_encoder, "sks")
    # The user's momentary weight is not the trained scale.
    pipe.unet.set_adapters(["sks"], [0.3])
    files = [
        lordfast.save_lora(pipe, tmp_path / format, "sks", text_encoder=pipe.text_encoder, format=format)
        for format in ("diffusers", "kohya")
    ]
    pipe.unet.set_adapters(["sks"], [1.0])
    assert {file.name for file in files} == {"pytorch_lora_weights.safetensors"}
    assert not any("lord_" in key for file in files for key in safetensors.torch.load_file(file))
    with torch.no_grad(), lordfast.lord_disabled(pipe):
        pred, words = tiny.run(pipe.unet), pipe.text_encoder(torch.arange(20)[None])[0]
    assert (pred - bare[0]).abs().max() > 1e-2 and (words - bare[1]).abs().max() > 1e-2

    script, out = tmp_path / "plain.py", tmp_path / "out.pt"
    script.write_text(_PLAIN_DIFFUSERS)
    command = [sys.executable, str(script), str(tmp_path / "model"), str(out), *(str(file.parent) for file in files)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for loaded in torch.load(out):
        torch.testing.assert_close(loaded["pred"], pred, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(loaded["words"], words, rtol=1e-5, atol=1e-6)


def test_kohya_files_have_kohya_names_and_alpha_is_the_rank(tiny: SimpleNamespace, tmp_path: Path) -> None:
    unet = tiny.unet()
    tiny.add_lora(unet, r=3, alpha=7.5)
    tensors = safetensors.torch.load_file(lordfast.save_lora(unet, tmp_path / "k.safetensors", "sks", format="kohya"))
    assert len(tensors) == 32 * 3
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert tensors[f"{key}.alpha"] == 3
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_out[0]
    delta = tensors[f"{key}.lora_up.weight"] @ tensors[f"{key}.lora_down.weight"]
    torch.testing.assert_close(delta, layer.get_delta_weight("sks"))


def test_rslora_scale_and_bf16_weights(tiny: SimpleNamespace) -> None:
    unet = tiny.unet()
    tiny.add_lora(unet, r=4, alpha=6, use_rslora=True)
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = lora_factors(unet, "sks")[name]
    torch.testing.assert_close(up @ down, layer.get_delta_weight("sks"))
    torch.testing.assert_close(up, layer.lora_B["sks"].weight * 3.0)
    unet.to(torch.bfloat16)
    assert {t.dtype for t in lora_factors(unet, "sks")[name]} == {torch.bfloat16}


def test_what_can_not_be_saved_is_refused(tiny: SimpleNamespace, tmp_path: Path) -> None:
    unet = tiny.unet()
    unet.add_adapter(tiny.config(), adapter_name="lord")
    with pytest.raises(ValueError, match="UNet2DConditionModel has no LoRA adapter named 'lord'"):
        lordfast.save_lora(unet, tmp_path, "lord")
    tiny.add_lora(unet)
    with pytest.raises(ValueError, match="format must be one of diffusers, kohya, got 'peft'"):
        lordfast.save_lora(unet, tmp_path, "sks", format="peft")
    with pytest.raises(ValueError, match="CLIPTextModel has no LoRA adapter named 'sks'"):
        lordfast.save_lora(unet, tmp_path, "sks", text_encoder=tiny.pipe().text_encoder)
    tiny.add_lora(unet, "dora", use_dora=True)
    with pytest.raises(ValueError, match="'dora' at .* is a DoRA or has biases"):
        lordfast.save_lora(unet, tmp_path, "dora")
    assert list(tmp_path.iterdir()) == []

"""Models, faces, photographs and cases of the operations that several areas' tests share; nothing is downloaded."""

import os

# Read once, when these libraries are imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    # As many processes as there are cores: more threads would only wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["DIFFUSERS_VERBOSITY"] = "error"

import copy
import importlib
import importlib.util
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import lordfast.ops as ops

# Without a GPU the Triton kernels are interpreted. Triton settles that for the functions of its own that they call when
# it is imported, and diffusers imports it: before that, then, and only for as long as it takes.
if not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
    with pytest.MonkeyPatch.context() as _patch:
        _patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("triton")

if TYPE_CHECKING:
    from lordfast.diffusion import LatentDiffusion


pytest_plugins = ["worker_processes", "host_reads", "browser", "made_once"]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Latents and text embeddings go to a temporary folder, never to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORDFAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def _loaded_demo_model() -> "LatentDiffusion":
    from lordfast.diffusion import load_model

    return load_model("demo", device="cpu")


@pytest.fixture
def demo_model(_loaded_demo_model: "LatentDiffusion") -> "LatentDiffusion":
    """The embedded model in fp32 on the CPU: a copy, so that what a test injects or changes does not leak."""
    return copy.deepcopy(_loaded_demo_model)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A folder of 4 procedural 64x64 faces with captions."""
    from lordfast.data import make_faces, write_folder

    folder = tmp_path / "faces"
    write_folder(make_faces(4, seed=7), folder)
    return folder


@pytest.fixture(scope="session")
def _photographs() -> dict[str, np.ndarray]:
    """Real photographs from the wheels of scikit-image and scikit-learn, uint8 (H, W, 3), 300 px or less a side."""
    import skimage
    from sklearn.datasets import load_sample_images

    shipped = Path(skimage.__file__).parent / "data"
    found = {name: np.array(Image.open(shipped / name).convert("RGB")) for name in ("astronaut.png", "coffee.png")}
    found["moon"] = np.array(Image.open(shipped / "moon.png").convert("RGB"))
    china, flower = load_sample_images().images
    found |= {"china": china, "flower": flower}
    small = {}
    for name, image in found.items():
        picture = Image.fromarray(image)
        picture.thumbnail((300, 300))
        small[name.removesuffix(".png")] = np.array(picture)
    return small


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, _photographs: dict[str, np.ndarray]) -> Path:
    """A folder of real photographs in the sizes and modes that users bring; treat it as read-only.

    china.jpg RGB; flower.png RGBA with a transparent corner; coffee.png palette; moon.png L; moon16.png 16-bit grey;
    astronaut.jpg CMYK; portrait.jpg with an EXIF rotation; sub/china.png and sub/china.jpg, which want the same output
    name and share one name.txt. Captions: name.txt or metadata.jsonl.
    """
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    pictures = {name: Image.fromarray(image) for name, image in _photographs.items()}

    pictures["china"].save(folder / "china.jpg", quality=92)
    rgba = pictures["flower"].resize((220, 140)).convert("RGBA")
    alpha = np.full((140, 220), 255, np.uint8)
    alpha[:40, :40] = np.linspace(0, 255, 40, dtype=np.uint8)
    rgba.putalpha(Image.fromarray(alpha))
    rgba.save(folder / "flower.png")
    pictures["coffee"].resize((180, 120)).quantize(64).save(folder / "coffee.png")
    moon = pictures["moon"].convert("L").resize((130, 130))
    moon.save(folder / "moon.png")
    Image.fromarray(np.asarray(moon).astype(np.uint16) * 257 // 2).save(folder / "moon16.png")
    pictures["astronaut"].resize((150, 150)).convert("CMYK").save(folder / "astronaut.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer turns it by 90 degrees
    pictures["astronaut"].crop((0, 0, 250, 160)).save(folder / "portrait.jpg", exif=exif)
    pictures["china"].resize((100, 64)).save(folder / "sub" / "china.png")
    pictures["flower"].resize((64, 100)).save(folder / "sub" / "china.jpg", quality=90)

    for name, caption in {"china": "a temple", "flower": "a flower", "sub/china": "a picture in a sub-folder"}.items():
        (folder / f"{name}.txt").write_text(caption + "\n", encoding="utf-8")
    rest = ("coffee.png", "moon.png", "moon16.png", "astronaut.jpg", "portrait.jpg")
    rows = [json.dumps({"file_name": name, "text": f"a photo of a {Path(name).stem}"}) for name in rest]
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def save_sd15(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``save_sd15(name, vae={...}, scheduler={...})``: a random Stable Diffusion of SD1.5's topology, saved to disk.

    Same block types and layers as SD1.5, so the same 128 attention targets; widths (32, 32, 64, 64), latents of 8 x 8
    for images of 64 x 64. The keyword arguments override configs.
    """
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()

    def save(name: str, *, vae: dict | None = None, scheduler: dict | None = None) -> Path:
        letters = sorted(ByteLevel.alphabet())
        words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        vocabulary = {word: i for i, word in enumerate(words)}
        vae_config = {
            "block_out_channels": (4, 8, 8, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "latent_channels": 4,
            "norm_num_groups": 2,
            "sample_size": 64,
        }
        scheduler_config = {
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "steps_offset": 1,
            "skip_prk_steps": True,
        }
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipeline = StableDiffusionPipeline(
                vae=AutoencoderKL(**(vae_config | (vae or {}))),
                text_encoder=CLIPTextModel(
                    CLIPTextConfig(
                        vocab_size=len(words),
                        hidden_size=24,
                        intermediate_size=48,
                        num_hidden_layers=2,
                        num_attention_heads=2,
                        max_position_embeddings=32,
                        bos_token_id=512,
                        eos_token_id=513,
                        pad_token_id=513,
                    )
                ),
                tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=32),
                unet=UNet2DConditionModel(
                    sample_size=8,
                    block_out_channels=(32, 32, 64, 64),
                    layers_per_block=2,
                    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
                    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
                    cross_attention_dim=24,
                    attention_head_dim=8,
                    norm_num_groups=8,
                ),
                scheduler=PNDMScheduler(**(scheduler_config | (scheduler or {}))),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        folder = tmp_path_factory.mktemp("models") / name
        pipeline.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def sd15_folder(save_sd15: Callable[..., Path]) -> Path:
    """The random Stable Diffusion of `save_sd15`, as the hub would hand it out."""
    return save_sd15("sd15")


@pytest.fixture(scope="session")
def _text_loras_in_diffusers() -> str:
    """Why diffusers can't load LoRAs of text encoders with the installed transformers and PEFT; empty if it can."""
    from peft import LoraConfig
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9
    )
    try:
        CLIPTextModel(config).add_adapter(LoraConfig(target_modules=["q_proj"]))
    except (ImportError, ValueError) as error:
        return str(error)
    return ""


@pytest.fixture
def text_loras_in_diffusers(_text_loras_in_diffusers: str) -> None:
    """For tests in which diffusers itself loads LoRAs of text encoders."""
    if _text_loras_in_diffusers:
        pytest.skip(f"transformers does not work with the installed PEFT: {_text_loras_in_diffusers}")


@pytest.fixture(scope="session")
def narrow_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``narrow_folder("sdxl")``: a random model of that topology at toy width, written once."""
    from lordfast.diffusion.random_model import write_random

    root = tmp_path_factory.mktemp("narrow")

    def folder(family: str) -> Path:
        if not (root / family).exists():
            write_random(f"{family}-narrow", root / family)
        return root / family

    return folder


@pytest.fixture
def ctrl_c_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """``with ctrl_c_at(k):`` presses Ctrl-C while step k's row is logged, which is in step k + 1."""

    from lordfast.training.run import RunFolder

    @contextmanager
    def press(k: int) -> Iterator[None]:
        log = RunFolder.log

        def logged(self: object, row: dict) -> None:
            log(self, row)
            if row["step"] == k:
                signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "log", logged)
            yield

    return press


# ---- the operations: random arguments, and Eq. 4-5 written out literally ----

NAMES = ("x", "weight", "bias", "lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")
ACTIVATIONS = {"relu": torch.relu, "silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu}


@dataclass(frozen=True)
class Case:
    """The tensors of one call, in the order of NAMES, and its options."""

    tensors: tuple[Tensor | None, ...]
    scaling: float = 2.0
    granularity: str = "token"
    activation: str = "silu"

    def leaves(self, *wanted: str) -> "Case":
        """Fresh leaves; those named (all, if none is) require gradients."""
        fresh = [
            None if t is None else t.detach().clone().requires_grad_(not wanted or name in wanted)
            for name, t in zip(NAMES, self.tensors, strict=True)
        ]
        return replace(self, tensors=tuple(fresh))

    def to(self, dtype: torch.dtype) -> "Case":
        return replace(self, tensors=tuple(None if t is None else t.to(dtype) for t in self.tensors))

    def with_x(self, x: Tensor) -> "Case":
        return replace(self, tensors=(x, *self.tensors[1:]))

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[NAMES.index(name)]
        assert tensor is not None
        return tensor

    def fused(self, **options: object) -> tuple[Tensor, Tensor]:
        """lord_linear, or lord_delta where there is no weight."""
        x, weight, bias, a, b, b_adv, *gate = self.tensors
        options = {"granularity": self.granularity, "activation": self.activation, **options}
        if weight is None:
            return ops.lord_delta(x, a, b, b_adv, ops.Gate(*gate), self.scaling, **options)
        return ops.lord_linear(x, weight, bias, a, b, b_adv, ops.Gate(*gate), self.scaling, **options)

    def eager(self) -> tuple[Tensor, Tensor]:
        """Eq. 4 and 5 as the paper has them, nothing folded, everything in x's dtype."""
        x, weight, bias, *rest = self.tensors
        a, b, b_adv, w1, b1, w2, b2 = (t.to(x.dtype) for t in rest)
        u = x @ a.T
        branch, branch_adv = self.scaling * (u @ b.T), self.scaling * (u @ b_adv.T)
        logit = ACTIVATIONS[self.activation](branch @ w1.T + b1) @ w2 + b2
        lam = torch.sigmoid(logit)[..., None]
        if self.granularity == "sample":
            logit = logit.reshape(x.shape[0], -1).mean(1)
            lam = torch.sigmoid(logit).reshape(-1, *[1] * (x.ndim - 1))
        y = branch + lam * branch_adv
        if weight is not None:
            y = torch.nn.functional.linear(x, weight, bias) + y
        return y, logit


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    """A factory of random cases, all numbers of order one."""

    def make(
        lead: tuple[int, ...] = (2, 3),
        k: int = 7,
        n: int = 5,
        r: int = 3,
        h: int = 4,
        *,
        dtype: torch.dtype = torch.float64,
        trainable: torch.dtype | None = None,
        base: bool = True,
        bias: bool = True,
        seed: int = 0,
        **options: object,
    ) -> Case:
        g = torch.Generator().manual_seed(seed)

        def rand(*shape: int, fan: int = 1) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64) / fan**0.5

        x, weight, offset = rand(*lead, k).to(dtype), rand(n, k, fan=k).to(dtype), rand(n).to(dtype)
        small = (rand(r, k, fan=k), rand(n, r, fan=4 * r), rand(n, r, fan=4 * r))
        gate = (rand(h, n, fan=n), rand(h), rand(h, fan=h), rand())
        rest = (t.to(trainable or dtype) for t in (*small, *gate))
        return Case((x, weight if base else None, offset if base and bias else None, *rest), **options)

    return make


@pytest.fixture(scope="session")
def outcome() -> Callable[..., dict[str, Tensor]]:
    """`outcome(case, "fused" | "eager", grad_y, grad_logit)`: y, gate_logit and every gradient, by name."""

    def run(case: Case, which: str, grad_y: Tensor, grad_logit: Tensor) -> dict[str, Tensor]:
        case = case.leaves()
        y, logit = getattr(case, which)()
        present = [name for name, t in zip(NAMES, case.tensors, strict=True) if t is not None]
        cotangents = [grad_y.to(y.dtype), grad_logit.to(logit.dtype)]
        grads = torch.autograd.grad([y, logit], [case[name] for name in present], cotangents)
        return {"y": y.detach(), "gate_logit": logit.detach(), **dict(zip(present, grads, strict=True))}

    return run


@pytest.fixture(scope="session")
def case_of() -> Callable[[list[Tensor | None], Case], Case]:
    """`case_of(tensors, like)`: a case with other tensors, for functions that get theirs from elsewhere."""
    return lambda tensors, like: replace(like, tensors=tuple(tensors))

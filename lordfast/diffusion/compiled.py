"""torch.compile for the blocks that a model repeats, with whatever is injected into them."""

from __future__ import annotations

from torch import nn

REGIONS = ("BasicTransformerBlock", "JointTransformerBlock", "ResnetBlock2D")
"""Classes of diffusers whose instances are compiled, each as one graph. What lies between them is a few operations."""

# As many kinds of a block's call there may be: widths x token counts x adapters x with and without a gradient.
_KINDS = 64


def compile_blocks(*parts: nn.Module, backend: str = "inductor") -> int:
    """Compile the blocks of `parts`, such as a denoiser and a VAE, in place, and return how many there are.

    Compilation itself happens when a block is first called, and again when it is called in another way: with another
    adapter, without gradients, with a second shape. That second shape makes the sizes symbolic, so a third compiles
    nothing.

    A block that can't be compiled as a whole raises instead of falling back in part.
    """
    if all(next(part.parameters()).device.type == "cpu" for part in parts):
        import torch._inductor.config as inductor

        # With it, torch 2.13 computes wrong gradients of convolutions on a CPU.
        inductor.layout_optimization = False
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, _KINDS)
    found = [m for part in parts for m in part.modules() if type(m).__name__ in REGIONS]
    for block in found:
        block.compile(fullgraph=True, backend=backend)
    return len(found)


def compiled_graphs() -> int:
    """How many graphs torch.compile has made in this process so far; what is measured after a warm-up adds none."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])

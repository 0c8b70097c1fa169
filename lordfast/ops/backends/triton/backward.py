"""`lord_backward` on this backend: from tensors to launches (two or three for the token gate)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .configs import Config
from .forward import base_precision, folded, upcast
from .geometry import fold_block, layout_of, rank_class
from .kernels.backward_dx import dx_kernel
from .kernels.backward_rows import rows_kernel
from .kernels.reduce import reduce_kernel
from .launch import cdiv, empty, launch, matrix

INPUTS = ("x", "weight", "bias", "lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")
ENTRIES = 128  # of a gradient, that a program of a reduction works on


def lord_backward(
    configs: Mapping[str, Config],
    grad_y: Tensor | None,
    grad_logit: Tensor | None,
    x: Tensor | None,
    gate_logit: Tensor,
    u: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lord_A: Tensor,
    lord_B: Tensor,
    lord_B_adv: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    scaling: float,
    per_sample: bool,
    activation: str,
    dtype: torch.dtype,
    needs: list[bool],
) -> list[Tensor]:
    """The gradients that `needs` marks, by one configuration each for the kernels "rows" and "dx"."""
    inputs = (x, weight, bias, lord_A, lord_B, lord_B_adv, w1, b1, w2, b2)
    want = {name: t for name, t, needed in zip(INPUTS, inputs, needs, strict=True) if needed}
    m, k = u.numel() // u.shape[-1], lord_A.shape[1]
    # No dY is a dY of zeros, and one zero with strides of 0 is as good as M x N of them.
    dy = u.new_zeros((1, 1), dtype=dtype).expand(m, len(lord_B)) if grad_y is None else matrix(grad_y, m)
    grads = {name: empty(u, tuple(t.shape), t.dtype) for name, t in want.items() if t is not None and name != "x"}
    if "x" in want:
        grads["x"] = empty(u, (*u.shape[:-1], k), dtype)
    if "weight" in want and x is not None:
        grads["weight"] = dy.T @ x.reshape(m, k)
    if "bias" in want:
        grads["bias"] = dy.float().sum(0).to(dtype)
    own = {name: grad for name, grad in grads.items() if name not in ("weight", "bias")}
    if not m:
        for grad in own.values():
            grad.zero_()
    elif own:
        small = tuple(t.contiguous() for t in (lord_A, lord_B, lord_B_adv, w1, b1, w2))
        steps = _Steps(configs, own, small, u.contiguous(), dy, scaling, activation)
        steps.rows(gate_logit, grad_logit, per_sample)
        steps.tiles(weight, None if x is None else matrix(x, m))
        steps.reduce()
    return [grads[name] for name in INPUTS if name in want]


class _Steps:
    """The three steps of one backward pass, and the memory that they hand each other."""

    def __init__(
        self,
        configs: Mapping[str, Config],
        grads: dict[str, Tensor],
        parameters: tuple[Tensor, ...],
        u: Tensor,
        dy: Tensor,
        scaling: float,
        activation: str,
    ) -> None:
        self.a, self.b, self.b_adv, self.w1, self.b1, self.w2 = parameters
        self.u, self.dy, self.scaling, self.activation = u, dy, scaling, activation
        self.grads, self.row_config, self.tile_config = grads, configs["rows"], configs["dx"]
        self.m, self.n, (self.r, self.k), self.h = *dy.shape, self.a.shape, len(self.w1)
        self.layout = layout_of(self.r, dy.dtype)
        self.row_blocks = cdiv(self.m, self.row_config.BLOCK_M)
        self.tiles_m = cdiv(self.m, self.tile_config.BLOCK_M)

        self.folds = "lord_B" in grads or "w1" in grads
        gate = self.folds or "b1" in grads or "w2" in grads
        self.du = self._scratch("x" in grads or "lord_A" in grads, self.m, self.r)
        self.dp = self._scratch(self.folds, self.h, self.r)
        # Partial sums, a block of rows each.
        self.pa = self._scratch("lord_A" in grads, self.tiles_m, self.r, self.k)
        self.pb = self._scratch("lord_B" in grads, self.row_blocks, self.n, self.r)
        self.pb_adv = self._scratch("lord_B_adv" in grads, self.row_blocks, self.n, self.r)
        self.pp = self._scratch(self.folds, self.row_blocks, self.h, self.r)
        self.pb1 = self._scratch(gate, self.row_blocks, self.h)
        self.pw2 = self._scratch(gate, self.row_blocks, self.h)
        self.pb2 = self._scratch("b2" in grads, self.row_blocks)

    def _scratch(self, wanted: bool, *shape: int) -> Tensor | None:
        return empty(self.u, shape, torch.float32) if wanted else None

    def rows(self, gate_logit: Tensor, grad_logit: Tensor | None, per_sample: bool) -> None:
        """From dY to du, and the partials of all gradients but A's."""
        config = self.row_config
        options = {
            **self.layout._asdict(),
            **config.launch_options,
            "BLOCK_M": config.BLOCK_M,
            "BLOCK_N": config.BLOCK_N,
            "BLOCK_F": fold_block(self.layout),
            "ACT": self.activation,
            "DU": self.du is not None,
            "UPCAST": upcast(self.dy.dtype),
        }
        p = folded(self.w1, self.b, self.scaling, self.layout) if config.fold == "prep" else None
        gate_logit = gate_logit.contiguous()
        g = None if grad_logit is None else grad_logit.contiguous()
        tokens = self.m // gate_logit.numel() if per_sample else 1
        parameters = (self.b, self.b_adv, self.w1, self.b1, self.w2, p)
        partials = (self.pb, self.pb_adv, self.pp, self.pb1, self.pw2, self.pb2)
        sizes = (self.m, self.n, self.r, self.h, *self.dy.stride(), tokens, self.scaling)
        v = dlam = None
        if per_sample:
            v, dlam = empty(self.u, (self.m, self.r), torch.float32), empty(self.u, (self.m,), torch.float32)
            args = (self.dy, self.u, gate_logit, None, *parameters, v, dlam, None, *partials, *sizes)
            launch(rows_kernel, self.row_blocks, self.u, *args, **options, STREAM=True, GATE=False)
            of_samples = torch.ops.aten.sigmoid_backward(dlam.view(-1, tokens).sum(1), torch.sigmoid(gate_logit))
            g = (of_samples if g is None else of_samples + g) / tokens
        args = (self.dy, self.u, gate_logit, g, *parameters, v, dlam, self.du, *partials, *sizes)
        launch(rows_kernel, self.row_blocks, self.u, *args, **options, STREAM=not per_sample, GATE=True)

    def tiles(self, weight: Tensor | None, x: Tensor | None) -> None:
        """From dY and du to dx, the partials of A's gradient, and the sum of dP."""
        config, weight = self.tile_config, None if weight is None else matrix(weight, self.n)
        tiles = 0 if self.du is None else self.tiles_m * cdiv(self.k, config.BLOCK_K)
        strides = [s for t in (self.dy, weight, x) for s in ((0, 0) if t is None else t.stride())]
        sizes = (self.m, self.n, self.k, self.r, self.h, self.row_blocks, tiles, *strides)
        tensors = (self.dy, weight, self.du, self.a, x, self.grads.get("x"), self.pa, self.pp, self.dp)
        launch(
            dx_kernel,
            tiles + (cdiv(self.h * self.r, ENTRIES) if self.folds else 0),
            self.u,
            *tensors,
            *sizes,
            **self.layout._asdict(),
            **config.launch_options,
            RP=rank_class(self.r),
            BLOCK_M=config.BLOCK_M,
            BLOCK_N=config.BLOCK_N,
            BLOCK_K=config.BLOCK_K,
            BLOCK_E=ENTRIES,
            EVEN_N=self.n % config.BLOCK_N == 0,
            PRECISION=base_precision(),
            UPCAST=upcast(self.dy.dtype),
        )

    def reduce(self) -> None:
        """The partials' sums, and from them the parameters' gradients."""
        names = ("lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")
        grads = [self.grads.get(name) for name in names]
        blocks = [0 if grad is None else cdiv(grad.numel(), ENTRIES) for grad in grads]
        partials = (self.pa, self.pb, self.pb_adv, self.pb1, self.pw2, self.pb2, self.dp)
        sizes = (self.n, self.k, self.r, self.h, self.tiles_m, self.row_blocks, *blocks[:6], self.scaling)
        args = (*partials, self.b, self.w1, *grads, *sizes)
        launch(reduce_kernel, sum(blocks), self.u, *args, RQ=self.layout.RQ, BLOCK_E=ENTRIES, num_warps=4)

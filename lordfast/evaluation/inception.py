"""The Inception network behind FID and KID: the ImageNet model of 2015 whose 2048 pooled features papers compare.

Rethinking the Inception architecture (Szegedy et al. 2016), with what the published graph does otherwise than torch's
layers do by default: batch norms with an epsilon of 1e-3, average pools that don't count the padding, and a maximum
instead of an average in the last block. Weights are those that torch-fidelity and pytorch-fid hand out, one file with
one set of names; neither package is needed, nor torchvision, which torch-fidelity imports.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from lordfast.evaluation.extraction import weights_key
from lordfast.evaluation.measure import Unavailable

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
SIDE = 299
FEATURES = 2048


class _Convolution(nn.Module):
    def __init__(
        self, channels: int, out: int, size: int | tuple[int, int] = 1, *, stride: int = 1, same: bool = True
    ) -> None:
        super().__init__()
        sides = (size, size) if isinstance(size, int) else size
        padding = (sides[0] // 2, sides[1] // 2) if same else 0
        self.conv = nn.Conv2d(channels, out, sides, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


def _average(x: Tensor) -> Tensor:
    return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _Block35(nn.Module):
    """35 x 35: 1 x 1, 5 x 5, two 3 x 3, pool."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(channels, 64)
        self.branch5x5_1, self.branch5x5_2 = _Convolution(channels, 48), _Convolution(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Convolution(channels, 64), _Convolution(64, 96, 3)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3)
        self.branch_pool = _Convolution(channels, pooled)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_average(x))], 1)


class _To17(nn.Module):
    """35 x 35 -> 17 x 17."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = _Convolution(channels, 384, 3, stride=2, same=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Convolution(channels, 64), _Convolution(64, 96, 3)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, stride=2, same=False)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), three, max_pool2d(x, 3, stride=2)], 1)


class _Block17(nn.Module):
    """17 x 17: 1 x 1, one and two factorised 7 x 7, pool."""

    def __init__(self, narrow: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(768, 192)
        self.branch7x7_1, self.branch7x7_2 = _Convolution(768, narrow), _Convolution(narrow, narrow, (1, 7))
        self.branch7x7_3 = _Convolution(narrow, 192, (7, 1))
        self.branch7x7dbl_1, self.branch7x7dbl_2 = _Convolution(768, narrow), _Convolution(narrow, narrow, (7, 1))
        self.branch7x7dbl_3 = _Convolution(narrow, narrow, (1, 7))
        self.branch7x7dbl_4 = _Convolution(narrow, narrow, (7, 1))
        self.branch7x7dbl_5 = _Convolution(narrow, 192, (1, 7))
        self.branch_pool = _Convolution(768, 192)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_average(x))], 1)


class _To8(nn.Module):
    """17 x 17 -> 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = _Convolution(768, 192), _Convolution(192, 320, 3, stride=2, same=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = _Convolution(768, 192), _Convolution(192, 192, (1, 7))
        self.branch7x7x3_3 = _Convolution(192, 192, (7, 1))
        self.branch7x7x3_4 = _Convolution(192, 192, 3, stride=2, same=False)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, max_pool2d(x, 3, stride=2)], 1)


class _Block8(nn.Module):
    """8 x 8: 1 x 1, forks of 1 x 3 and 3 x 1, pool."""

    def __init__(self, channels: int, maximum: bool) -> None:
        super().__init__()
        self._maximum = maximum
        self.branch1x1 = _Convolution(channels, 320)
        self.branch3x3_1 = _Convolution(channels, 384)
        self.branch3x3_2a, self.branch3x3_2b = _Convolution(384, 384, (1, 3)), _Convolution(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Convolution(channels, 448), _Convolution(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = _Convolution(384, 384, (1, 3)), _Convolution(384, 384, (3, 1))
        self.branch_pool = _Convolution(channels, 192)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = max_pool2d(x, 3, stride=1, padding=1) if self._maximum else _average(x)
        forks = [self.branch3x3_2a(once), self.branch3x3_2b(once)]
        forks += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)]
        return torch.cat([self.branch1x1(x), *forks, self.branch_pool(pooled)], 1)


class Inception(nn.Module):
    """uint8 (B, 3, H, W) -> the 2048 pooled features of FID and KID, (B, 2048).

    Images are brought to 299 x 299 by antialiased bilinear interpolation, as torchmetrics does it, and to [-1, 1) by
    (x - 128) / 128.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2, same=False)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = _Convolution(64, 80)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3, same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _Block35(192, 32), _Block35(256, 64), _Block35(288, 64)
        self.Mixed_6a = _To17(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(_Block17, (128, 160, 160, 192))
        self.Mixed_7a = _To8()
        self.Mixed_7b, self.Mixed_7c = _Block8(1280, maximum=False), _Block8(2048, maximum=True)
        # Not used by the distances; the files have it.
        self.fc = nn.Linear(FEATURES, 1008)
        self.cache_key: str | None = None

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        pixels = interpolate(images.float(), (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3((pixels - 128) / 128)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool2d(x, 3, stride=2)))
        x = max_pool2d(x, 3, stride=2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        return x.mean(dim=(2, 3))


def load_inception(weights: Path | None = None) -> Inception:
    """`Inception` with the state dict in the file `weights`, else with the published one, downloaded once.

    Raises:
        Unavailable: no such file, one that holds something else, or no way to download it.
    """
    try:
        if weights is None:
            state = torch.hub.load_state_dict_from_url(URL, map_location="cpu", progress=False, check_hash=True)
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = f"{weights} can't be read" if weights is not None else f"its weights can't be downloaded from {URL}"
        hint = "" if weights is not None else "; --inception-weights takes the file, fetched elsewhere"
        raise Unavailable(f"inception: {where}: {reason}{hint}") from error
    network = Inception()
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise Unavailable(f"inception: {weights or URL} holds other weights than those of FID's Inception") from error
    network.requires_grad_(False)
    network.cache_key = weights_key("inception", network)
    return network.eval()

"""A small residual 2D CNN over a beat drawn as an image (`models.imaging`)."""

from types import MappingProxyType

import torch
from torch import Tensor, nn

from models.conv_encoder import ConvEncoder, GroupNorm
from models.encoder import Dimension, EncoderSpec
from models.imaging import IMAGES, make_image

SMALLEST_SIDE = 3
"""No stride makes a side smaller."""
NORM_GROUP = 8
"""Channels that are normalised together by `norm=group`, and that divide every width."""


class Cnn2d(ConvEncoder):
    """A stem and `depth` residual blocks over an image of the beat; features are the mean of the last map.

    Blocks halve the image as long as both sides keep at least 3 pixels, so the fold of 187 samples (16 × 12) ends as
    4 × 3; the stem halves it too where the image is large enough for all blocks and for it.

    Options: `image` (see `models.imaging`), `block` (residual: 3 × 3 convolutions; inception: four paths instead of
    each; se: 3 × 3 with squeeze-and-excitation), `norm`, `dropout` (share, within blocks), `width` (channels of the
    stem, block k has k times as many; a multiple of 8), `depth` (blocks).
    """

    dimensions = MappingProxyType(
        {
            "image": Dimension("fold", tuple(IMAGES)),
            "block": Dimension("residual", ("residual", "inception", "se")),
            "norm": Dimension("batch", ("batch", "group", "none")),
            "dropout": Dimension(0.0, (0.0, 0.1, 0.2, 0.3)),
            "width": Dimension(32, (16, 24, 32, 48)),
            "depth": Dimension(3, (2, 3, 4)),
        }
    )

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        image, block, norm, dropout, width, depth = spec.resolve(self.dimensions).values()
        if width % NORM_GROUP:
            raise ValueError(f"cnn2d needs a width that {NORM_GROUP} divides, not {width}")
        self.spec = spec
        self.image = make_image(image, spec.num_samples)
        size, strides = plan_strides(self.image.size, depth)
        self.parts = nn.ModuleDict({"stem": _stem(spec.num_leads, width, strides[0], norm)})
        before = width
        for number, stride in enumerate(strides[1:], start=1):
            after = width * number
            self.parts[f"block{number}"] = ResidualBlock(before, after, stride, block, norm, dropout)
            before = after
        self.dim = before
        self.num_tokens = size[0] * size[1]
        self.parts.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def draw(self, x: Tensor) -> Tensor:
        return self.image(x).contiguous(memory_format=torch.channels_last)


def plan_strides(size: tuple[int, int], depth: int) -> tuple[tuple[int, int], list[int]]:
    """The size (height, width) of the last map, and the strides of the stem and of each block."""
    sizes = [size]
    while min(halved := halve(sizes[-1])) >= SMALLEST_SIDE and len(sizes) <= depth + 1:
        sizes.append(halved)
    halvings = len(sizes) - 1
    stem = 2 if halvings > depth else 1
    return sizes[-1], [stem, *(2 if number < halvings else 1 for number in range(depth))]


def halve(size: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // 2), -(-size[1] // 2)


def normalisation(norm: str, channels: int) -> nn.Module:
    """Batch, group (Wu and He 2018, arXiv 1803.08494) or none."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return GroupNorm(channels // NORM_GROUP, channels) if norm == "group" else nn.Identity()


def _stem(num_leads: int, width: int, stride: int, norm: str) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(num_leads, width, 3, stride=stride, padding=1, bias=norm == "none"),
        normalisation(norm, width),
        nn.ReLU(inplace=True),
    )


class ResidualBlock(nn.Module):
    """Two convolutions, or inceptions, beside a 1 × 1 shortcut (He et al. 2016, arXiv 1512.03385).

    (batch, before, height, width) → (batch, after, ⌈height / stride⌉, ⌈width / stride⌉). Dropout is between the two
    (Zagoruyko and Komodakis 2016, arXiv 1605.07146).
    """

    def __init__(self, before: int, after: int, stride: int, block: str, norm: str, dropout: float) -> None:
        super().__init__()
        bias = norm == "none"
        self.branch = nn.Sequential(
            convolution(block, before, after, stride, bias),
            normalisation(norm, after),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            convolution(block, after, after, 1, bias),
            normalisation(norm, after),
            SqueezeExcite(after) if block == "se" else nn.Identity(),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(before, after, 1, stride=stride, bias=bias),
            normalisation(norm, after),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.branch(x) + self.shortcut(x))


def convolution(block: str, before: int, after: int, stride: int, bias: bool) -> nn.Module:
    if block == "inception":
        return Inception(before, after, stride, bias)
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=bias)


class Inception(nn.Module):
    """Paths of 1 × 1, 3 × 3, 5 × 5 and a pooled 1 × 1, a quarter of the channels each.

    As in Szegedy et al. 2015 (arXiv 1409.4842), but the 1 × 1 convolutions before the larger kernels stay linear.
    """

    def __init__(self, before: int, after: int, stride: int, bias: bool) -> None:
        super().__init__()
        quarter = after // 4
        self.paths = nn.ModuleList(
            [
                nn.Conv2d(before, quarter, 1, stride=stride, bias=bias),
                *(
                    nn.Sequential(
                        nn.Conv2d(before, quarter, 1, bias=False),
                        nn.Conv2d(quarter, quarter, kernel, stride=stride, padding=kernel // 2, bias=bias),
                    )
                    for kernel in (3, 5)
                ),
                nn.Sequential(
                    nn.MaxPool2d(3, stride=stride, padding=1),
                    nn.Conv2d(before, quarter, 1, bias=bias),
                ),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([path(x) for path in self.paths], dim=1)


class SqueezeExcite(nn.Module):
    """Each channel times a gate that sees the mean of all channels (Hu et al. 2018, arXiv 1709.01507): shape kept.

    SiLU in place of ReLU: the means of a normalised map are near 0, where hidden units would start, and stay, dead.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 4
        self.gate = nn.Sequential(nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3)))[:, :, None, None]

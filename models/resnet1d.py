"""Strided residual 1D CNN (He et al. 2016, arXiv 1512.03385, in one dimension).

A convolution over time is written as a 1 × k Conv2d with channels-last memory: the same arithmetic as Conv1d, and
faster on a CPU, because oneDNN then needs no change of layout between layers.
"""

from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor, nn

from models.conv_encoder import ConvEncoder
from models.encoder import Dimension, EncoderSpec


class ResNet1d(ConvEncoder):
    """A stem and four residual stages, each halving time: 187 samples → 6 tokens.

    Options: `width` (channels of the stem and the first stage; later ones grow by half), `kernel` (samples, odd).
    """

    dimensions = MappingProxyType({"width": Dimension(32, (16, 24, 32, 48, 64)), "kernel": Dimension(5, (3, 5, 7, 9))})

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        width, kernel = spec.resolve(self.dimensions).values()
        if kernel % 2 == 0:
            raise ValueError(f"resnet1d needs an odd kernel, not {kernel}")
        channels = [width, width, width * 3 // 2, width * 5 // 2, width * 4]
        self.spec = spec
        self.dim = channels[-1]
        self.parts = nn.ModuleDict({"stem": strided_stem(spec.num_leads, width)})
        for number, (before, after) in enumerate(pairwise(channels), start=1):
            self.parts[f"block{number}"] = ResidualBlock(before, after, kernel)
        self.num_tokens = -(-spec.num_samples // 2 ** len(self.parts))
        self.parts.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def strided_stem(num_leads: int, width: int) -> nn.Module:
    """(batch, lead, 1, time) → (batch, width, 1, ⌈time / 2⌉)."""
    return nn.Sequential(
        nn.Conv2d(num_leads, width, (1, 7), stride=(1, 2), padding=(0, 3), bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


class ResidualBlock(nn.Module):
    """Two convolutions beside a strided 1 × 1 shortcut: (batch, before, 1, time) → (batch, after, 1, ⌈time / 2⌉)."""

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__()
        padding = (0, kernel // 2)
        self.branch = nn.Sequential(
            nn.Conv2d(before, after, (1, kernel), stride=(1, 2), padding=padding, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, (1, kernel), padding=padding, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(before, after, 1, stride=(1, 2), bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.branch(x) + self.shortcut(x))

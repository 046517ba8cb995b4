"""InceptionTime (Ismail Fawaz et al. 2020, arXiv 1909.04939), strided so that it is quick on a CPU."""

from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor, nn

from models.conv_encoder import ConvEncoder
from models.encoder import Dimension, EncoderSpec
from models.resnet1d import strided_stem


class Inception1d(ConvEncoder):
    """A stem that halves time and `depth` inception blocks, of which the odd ones halve it again.

    Options: `width` (channels of the stem and of each of a block's four branches), `depth`, `kernel` (the largest;
    samples, odd).
    """

    dimensions = MappingProxyType(
        {
            "width": Dimension(24, (12, 16, 24, 32, 48)),
            "depth": Dimension(4, (2, 3, 4, 5, 6)),
            "kernel": Dimension(19, (9, 13, 19, 27, 39)),
        }
    )

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        width, depth, kernel = spec.resolve(self.dimensions).values()
        if kernel % 2 == 0:
            raise ValueError(f"inception1d needs an odd kernel, not {kernel}")
        self.spec = spec
        self.dim = InceptionBlock.BRANCHES * width
        self.parts = nn.ModuleDict({"stem": strided_stem(spec.num_leads, width)})
        for number, (before, _) in enumerate(pairwise([width, *[self.dim] * depth]), start=1):
            self.parts[f"block{number}"] = InceptionBlock(before, width, kernel, stride=1 + number % 2)
        self.num_tokens = -(-spec.num_samples // 2 ** (1 + (depth + 1) // 2))
        self.parts.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class InceptionBlock(nn.Module):
    """Kernels of three lengths behind one bottleneck, and a maximum, side by side; what came in is added.

    (batch, before, 1, time) → (batch, 4 · width, 1, ⌈time / stride⌉).
    """

    BRANCHES = 4

    def __init__(self, before: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        after, step = self.BRANCHES * width, (1, stride)
        self.bottleneck = nn.Conv2d(before, width, 1, bias=False)
        self.kernels = nn.ModuleList(
            nn.Conv2d(width, width, (1, length), stride=step, padding=(0, length // 2), bias=False)
            for length in (kernel, kernel // 2 | 1, kernel // 4 | 1)
        )
        self.maximum = nn.Sequential(
            nn.MaxPool2d((1, 3), stride=step, padding=(0, 1)),
            nn.Conv2d(before, width, 1, bias=False),
        )
        self.norm = nn.BatchNorm2d(after)
        self.shortcut = nn.Identity()
        if before != after or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=step, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.bottleneck(x)
        branches = [*(convolve(narrow) for convolve in self.kernels), self.maximum(x)]
        return torch.relu_(self.norm(torch.cat(branches, dim=1)) + self.shortcut(x))

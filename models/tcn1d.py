"""Temporal convolutional network: dilated residual blocks (Bai et al. 2018, arXiv 1803.01271)."""

from collections.abc import Callable
from math import gcd
from types import MappingProxyType

import torch
from torch import Tensor, nn

from models.conv_encoder import ConvEncoder, GroupNorm
from models.encoder import Dimension, EncoderSpec

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "group": lambda width: GroupNorm(gcd(8, width), width),
    "batch": nn.BatchNorm2d,
    "none": lambda _: nn.Identity(),
}


class Tcn1d(ConvEncoder):
    """A stem that takes every fourth step, and `depth` blocks whose dilation doubles: 187 samples → 47 tokens.

    Options: `width` (channels), `depth`, `kernel` (taps; odd unless causal), `causal` (convolutions look only back;
    by default both ways, as the whole beat is known), `norm` (group, batch or none). Group normalisation takes its
    scale from the whole beat, causal or not.
    """

    dimensions = MappingProxyType(
        {
            "width": Dimension(64, (24, 32, 48, 64, 96)),
            "depth": Dimension(4, (2, 3, 4, 5)),
            "kernel": Dimension(3, (3, 5, 7)),
            "causal": Dimension(False, (False, True)),
            "norm": Dimension("group", tuple(NORMS)),
        }
    )
    STRIDE = 4

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        width, depth, kernel, causal, norm = spec.resolve(self.dimensions).values()
        if kernel % 2 == 0 and not causal:
            raise ValueError(f"tcn1d needs an odd kernel unless it is causal, not {kernel}")
        self.spec = spec
        self.dim = width
        self.num_tokens = -(-spec.num_samples // self.STRIDE)
        if 2 ** (depth - 1) >= self.num_tokens:
            raise ValueError(f"tcn1d of depth {depth} reaches beyond the {self.num_tokens} tokens of a beat")
        stem = TimeConv(spec.num_leads, width, 7, causal, norm, stride=self.STRIDE)
        self.parts = nn.ModuleDict({"stem": nn.Sequential(stem, nn.ReLU(inplace=True))})
        for number in range(1, depth + 1):
            self.parts[f"block{number}"] = DilatedBlock(width, kernel, causal, norm, dilation=2 ** (number - 1))
        self.parts.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class TimeConv(nn.Sequential):
    """Padded convolution and normalisation: (batch, before, 1, time) → (batch, after, 1, ⌈time / stride⌉)."""

    def __init__(
        self, before: int, after: int, kernel: int, causal: bool, norm: str, *, stride: int = 1, dilation: int = 1
    ) -> None:
        reach = (kernel - 1) * dilation
        past = reach if causal else reach // 2
        super().__init__(
            nn.ZeroPad2d((past, reach - past, 0, 0)),
            nn.Conv2d(before, after, (1, kernel), stride=(1, stride), dilation=(1, dilation), bias=norm == "none"),
            NORMS[norm](after),
        )


class DilatedBlock(nn.Module):
    """Two dilated convolutions, added to what came in: shape kept."""

    def __init__(self, width: int, kernel: int, causal: bool, norm: str, dilation: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            TimeConv(width, width, kernel, causal, norm, dilation=dilation),
            nn.ReLU(inplace=True),
            TimeConv(width, width, kernel, causal, norm, dilation=dilation),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(x + self.branch(x))

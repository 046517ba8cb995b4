"""What encoders of convolutions in a row have in common."""

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from models.encoder import Encoder, Step


class ConvEncoder(Encoder):
    """`parts`, run one after the other on channels-last maps (batch, channel, height, width), are the stages."""

    parts: nn.ModuleDict

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        return dict(self.parts.items())

    @property
    def steps(self) -> Mapping[str, Step]:
        (first, stem), *_, (last, block) = self.parts.items()
        return {**self.parts, first: lambda x: stem(self.draw(x)), last: lambda x: map_to_tokens(block(x))}

    def draw(self, x: Tensor) -> Tensor:
        """Beats → what the first part reads: here a map of height 1."""
        return beat_to_map(x)


def beat_to_map(x: Tensor) -> Tensor:
    """(batch, lead, time) → (batch, lead, 1, time), channels last."""
    return rearrange(x, "batch lead time -> batch lead 1 time").contiguous(memory_format=torch.channels_last)


def map_to_tokens(x: Tensor) -> Tensor:
    """(batch, channel, height, width) → (batch, height · width, channel)."""
    return rearrange(x, "batch channel height width -> batch (height width) channel")


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu and He 2018, arXiv 1803.08494) whose input always takes a gradient where it learns.

    torch's CPU kernel for channels-last maps crashes backward where only its scales and shifts learn.
    """

    def forward(self, input: Tensor) -> Tensor:
        learns = any(parameter.requires_grad for parameter in self.parameters())
        if learns and torch.is_grad_enabled() and not input.requires_grad:
            input = input.detach().requires_grad_()
        return super().forward(input)

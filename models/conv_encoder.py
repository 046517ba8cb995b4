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

"""Strided residual convolutions, then a transformer over what they find (Xiao et al. 2021, arXiv 2106.14881)."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from einops import rearrange
from torch import nn

from models.conv_encoder import beat_to_map
from models.encoder import Dimension, Encoder, EncoderSpec, Step
from models.resnet1d import ResidualBlock, strided_stem
from models.transformer1d import PatchEmbedding, TransformerBlock


class CnnTransformer1d(Encoder):
    """A stem and two residual stages, each halving time (187 samples → 24 tokens), then `depth` transformer blocks.

    Options: `width` (channels of the stem and the first stage; the second has twice as many), `kernel` (samples,
    odd), `dim` (of a token), `depth`, `heads`, `expansion` (of the feed-forward part).
    """

    dimensions = MappingProxyType(
        {
            "width": Dimension(32, (16, 24, 32, 48)),
            "kernel": Dimension(5, (3, 5, 7, 9)),
            "dim": Dimension(64, (32, 48, 64, 96)),
            "depth": Dimension(3, (1, 2, 3, 4)),
            "heads": Dimension(4, (2, 4, 8)),
            "expansion": Dimension(2, (2, 3, 4)),
        }
    )

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        width, kernel, self.dim, depth, heads, expansion = spec.resolve(self.dimensions).values()
        if kernel % 2 == 0 or self.dim % heads:
            raise ValueError(
                "cnn_transformer1d needs an odd kernel and heads that divide dim, "
                f"not kernel {kernel}, dim {self.dim}, heads {heads}"
            )
        self.spec = spec
        self.convolutions = nn.ModuleDict(
            {
                "stem": strided_stem(spec.num_leads, width),
                "conv1": ResidualBlock(width, width, kernel),
                "conv2": ResidualBlock(width, 2 * width, kernel),
            }
        )
        self.convolutions.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.num_tokens = -(-spec.num_samples // 2 ** len(self.convolutions))
        self.embed = PatchEmbedding(2 * width, self.num_tokens, 1, self.dim)
        self.blocks = nn.ModuleList(TransformerBlock(self.dim, heads, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(self.dim)

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        blocks = {f"block{number}": block for number, block in enumerate(self.blocks, start=1)}
        return {**self.convolutions, "embed": self.embed, **blocks, "norm": self.norm}

    @property
    def steps(self) -> Mapping[str, Step]:
        stem, conv2 = self.convolutions["stem"], self.convolutions["conv2"]
        as_signal = "batch channel 1 time -> batch channel time"
        return {
            **self.stages,
            "stem": lambda x: stem(beat_to_map(x)),
            "conv2": lambda x: rearrange(conv2(x), as_signal),
        }

"""Patch transformer on beats (Dosovitskiy et al. 2021, arXiv 2010.11929, in one dimension; pre-norm)."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn
from torch.nn import functional

from models.encoder import Dimension, Encoder, EncoderSpec, Step


class Transformer1d(Encoder):
    """187 samples → 17 patches of 11 samples → `depth` blocks; features are the mean of the tokens.

    Options: `patch` (samples), `dim`, `depth`, `heads`, `expansion` (of the feed-forward part).
    """

    dimensions = MappingProxyType(
        {
            "patch": Dimension(11, (11, 17)),
            "dim": Dimension(64, (32, 48, 64, 96, 128)),
            "depth": Dimension(4, (2, 3, 4, 6, 8)),
            "heads": Dimension(4, (2, 4, 8)),
            "expansion": Dimension(2, (2, 3, 4)),
        }
    )

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.patch, self.dim, depth, heads, expansion = spec.resolve(self.dimensions).values()
        if spec.num_samples % self.patch or self.dim % heads:
            raise ValueError(
                f"transformer1d needs a patch that divides {spec.num_samples} samples and heads that divide dim, "
                f"not patch {self.patch}, dim {self.dim}, heads {heads}"
            )
        self.spec = spec
        self.num_tokens = spec.num_samples // self.patch
        self.embed = PatchEmbedding(spec.num_leads, self.num_tokens, self.patch, self.dim)
        self.blocks = nn.ModuleList(TransformerBlock(self.dim, heads, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(self.dim)

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        blocks = {f"block{number}": block for number, block in enumerate(self.blocks, start=1)}
        return {"embed": self.embed, **blocks, "norm": self.norm}

    @property
    def steps(self) -> Mapping[str, Step]:
        return self.stages

    def contextualise(self, tokens_BND: Tensor) -> Tensor:
        """Embedded patches, all or only the visible ones, through the blocks: shape kept."""
        for block in self.blocks:
            tokens_BND = block(tokens_BND)
        return self.norm(tokens_BND)


class PatchEmbedding(nn.Module):
    """Patches to vectors, with a learned position each."""

    def __init__(self, num_leads: int, num_tokens: int, patch: int, dim: int) -> None:
        super().__init__()
        self.split = Rearrange("batch lead (token sample) -> batch token (lead sample)", sample=patch)
        self.project = nn.Linear(num_leads * patch, dim)
        self.position = nn.Parameter(torch.randn(num_tokens, dim) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.split(x)) + self.position


class TransformerBlock(nn.Module):
    """Self-attention, then a feed-forward part, each normalised before and added: (batch, token, dim) kept."""

    def __init__(self, dim: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, expansion * dim),
            nn.GELU(),
            nn.Linear(expansion * dim, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = rearrange(
            self.query_key_value(self.attention_norm(x)),
            "batch token (three head dim) -> three batch head token dim",
            three=3,
            head=self.heads,
        )
        x = x + self.project(rearrange(attend(query, key, value), "batch head token dim -> batch token (head dim)"))
        return x + self.feed_forward(x)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √dim) V (Vaswani et al. 2017, arXiv 1706.03762): (batch, head, token, dim) kept.

    On a CPU it is written out, in float32: torch's fused kernel takes twelve times as long backward in bf16. Keys come
    first, since over the last of so few tokens a softmax takes two to four times as long as over the last but one.
    """
    if query.device.type != "cpu":
        return functional.scaled_dot_product_attention(query, key, value)
    with torch.autocast("cpu", enabled=False):
        precise = torch.promote_types(query.dtype, torch.float32)
        query, key, value = query.to(precise), key.to(precise), value.to(precise)
        share = (key @ (query / query.shape[-1] ** 0.5).mT).softmax(-2)
        return share.mT @ value

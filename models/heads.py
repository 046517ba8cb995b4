"""Heads by name, and the classifier that joins an encoder and a head."""

from collections.abc import Callable
from typing import Self

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn

from models.encoder import Encoder

HEAD = "head"
"""The name of a classifier's last stage."""


class LinearHead(nn.Module):
    """Standardised features → logits, as masked autoencoders are probed (He et al. 2022, arXiv 2111.06377)."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.standardise = nn.BatchNorm1d(dim, affine=False)
        self.classify = nn.Linear(dim, num_classes)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        return self.classify(self.standardise(tokens_BND.mean(1)))


class MlpHead(nn.Module):
    """One hidden layer as wide as the features, with dropout."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.standardise = nn.BatchNorm1d(dim, affine=False)
        self.hidden = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Dropout(0.1))
        self.classify = nn.Linear(dim, num_classes)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        return self.classify(self.hidden(self.standardise(tokens_BND.mean(1))))


class AttentionHead(nn.Module):
    """Attention pooling: one learned query weighs the tokens (Ilse et al. 2018, arXiv 1802.04712, without the gate)."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(dim))
        self.standardise = nn.BatchNorm1d(dim, affine=False)
        self.classify = nn.Linear(dim, num_classes)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        tokens_BDN = self.standardise(rearrange(tokens_BND, "batch token dim -> batch dim token"))
        weight_BN = einsum(tokens_BDN, self.query, "batch dim token, dim -> batch token").softmax(1)
        return self.classify(einsum(tokens_BDN, weight_BN, "batch dim token, batch token -> batch dim"))


HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": LinearHead,
    "mlp": MlpHead,
    "attention": AttentionHead,
}


class Classifier(nn.Module):
    """Encoder and head: beats (batch, num_leads, num_samples) → logits (batch, num_classes).

    With `num_intervals`, that many numbers of each beat (log ratios of its RR intervals) join every token before the
    head, which standardises them as it does the features.
    """

    def __init__(self, encoder: Encoder, head: str, num_classes: int, num_intervals: int = 0) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"unknown head {head!r}; choose from {', '.join(HEADS)}")
        self.encoder = encoder
        self.frozen: frozenset[str] = frozenset()
        self.head = HEADS[head](encoder.dim + num_intervals, num_classes)

    def forward(self, x: Tensor, intervals: Tensor | None = None) -> Tensor:
        """`intervals`: (batch, num_intervals), where the classifier was made for them."""
        tokens_BND = self.encoder.tokens(x)
        if intervals is not None:
            beside = repeat(
                intervals.to(tokens_BND.dtype), "batch ratio -> batch token ratio", token=tokens_BND.shape[1]
            )
            tokens_BND = torch.cat([tokens_BND, beside], dim=-1)
        return self.head(tokens_BND)

    @property
    def stages(self) -> dict[str, nn.Module]:
        """The encoder's stages from input to output, then the head."""
        return {**self.encoder.stages, HEAD: self.head}

    def train(self, mode: bool = True) -> Self:
        """The stages in `frozen` stay in eval mode: BatchNorm's running statistics stand still in them."""
        super().train(mode)
        for stage in self.frozen:
            self.stages[stage].eval()
        return self

"""Heads by name, and the classifier that joins an encoder and a head."""

from collections.abc import Callable
from typing import Self

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional

from models import HEAD
from models.encoder import Encoder

BATCHNORMS = ("stage", "still", "moving")
"""The encoder's running statistics: moving in stages of which something learns, nowhere, or everywhere, frozen or not
(adaptive BatchNorm, Li et al. 2016, arXiv 1603.04779)."""


class Head(nn.Module):
    """Tokens → logits (batch, num_classes), in two parts: `pool` has no parameters, so that its result can be kept."""

    def pool(self, tokens_BND: Tensor) -> Tensor:
        """(batch, num_tokens, dim) → the tokens that `forward` reads: here one, their mean."""
        return tokens_BND.mean(1, keepdim=True)


class LinearHead(Head):
    """Standardised features → logits, as masked autoencoders are probed (He et al. 2022, arXiv 2111.06377)."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.standardise = nn.BatchNorm1d(dim, affine=False)
        self.classify = nn.Linear(dim, num_classes)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        return self.classify(self.standardise(tokens_BND.mean(1)))


class MlpHead(Head):
    """One hidden layer as wide as the features, with dropout."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.standardise = nn.BatchNorm1d(dim, affine=False)
        self.hidden = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Dropout(0.1))
        self.classify = nn.Linear(dim, num_classes)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        return self.classify(self.hidden(self.standardise(tokens_BND.mean(1))))


class AttentionHead(Head):
    """Attention pooling: one learned query weighs the tokens (Ilse et al. 2018, arXiv 1802.04712, without the gate)."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(dim))
        self.standardise = nn.BatchNorm1d(dim, affine=False)
        self.classify = nn.Linear(dim, num_classes)

    def pool(self, tokens_BND: Tensor) -> Tensor:
        return tokens_BND

    def forward(self, tokens_BND: Tensor) -> Tensor:
        tokens_BDN = self.standardise(rearrange(tokens_BND, "batch token dim -> batch dim token"))
        weight_BN = einsum(tokens_BDN, self.query, "batch dim token, dim -> batch token").softmax(1)
        return self.classify(einsum(tokens_BDN, weight_BN, "batch dim token, batch token -> batch dim"))


HEADS: dict[str, Callable[[int, int], Head]] = {
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
        self.frozen: frozenset[tuple[str, str]] = frozenset()
        """Groups (stage, kind) that `models.params.set_rates` has frozen."""
        self.still: frozenset[str] = frozenset()
        """Stages of which nothing learns."""
        self.batchnorm = "stage"
        """One of `BATCHNORMS`."""
        self.feature_dropout = 0.0
        """Share of the encoder's features that a training step hides from the head; of the numbers beside them none."""
        self.head = HEADS[head](encoder.dim + num_intervals, num_classes)

    def forward(self, x: Tensor, intervals: Tensor | None = None) -> Tensor:
        """`intervals`: (batch, num_intervals), where the classifier was made for them."""
        num_steps = len(self.encoder.steps)
        return self.above(num_steps, self.below(num_steps, x), intervals)

    def below(self, num_steps: int, x: Tensor) -> Tensor:
        """Beats → what that many of the encoder's `steps` make of them; after all of them, what the head reads."""
        steps = list(self.encoder.steps.values())
        for step in steps[:num_steps]:
            x = step(x)
        return self.head.pool(x) if num_steps == len(steps) else x

    def above(self, num_steps: int, x: Tensor, intervals: Tensor | None = None) -> Tensor:
        """What `below` gives → logits."""
        if left := list(self.encoder.steps.values())[num_steps:]:
            for step in left:
                x = step(x)
            x = self.head.pool(x)
        x = functional.dropout(x, self.feature_dropout, self.head.training)
        if intervals is not None:
            beside = repeat(intervals.to(x.dtype), "batch ratio -> batch token ratio", token=x.shape[1])
            x = torch.cat([x, beside], dim=-1)
        return self.head(x)

    @property
    def stages(self) -> dict[str, nn.Module]:
        """The encoder's stages from input to output, then the head."""
        return {**self.encoder.stages, HEAD: self.head}

    def train(self, mode: bool = True) -> Self:
        """The stages in `still` stay in eval mode; BatchNorm in the encoder as `batchnorm` says."""
        super().train(mode)
        for stage in self.still:
            self.stages[stage].eval()
        if self.batchnorm != "stage":
            for part in self.encoder.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.train(mode and self.batchnorm == "moving")
        return self

"""Masked reconstruction (He et al. 2022, arXiv 2111.06377) on beats cut into patches of 11 samples.

A transformer encodes the visible patches only, and its targets are normalised patch by patch. Any other encoder sees
the beat with the hidden patches blanked, and the whole beat is reconstructed from its pooled features: what a probe or
a head will read then has to hold the shape of the beat. Only real samples count: padding is not signal.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from data.augment import augment, valid_mask
from models.encoder import Encoder
from models.transformer1d import Transformer1d, TransformerBlock
from pretrain.task import Batch, Objective, PretrainTask

PATCH = 11
SMALLEST_SPREAD = 1e-2
"""Floor of a patch's standard deviation, of full scale: a flat patch's noise is not blown up into a target."""
VARIED_BY = ("amplitude", "shift")
"""Augmentations of each beat before it is cut, so that few beats can be seen often."""


class Masked(PretrainTask):
    """Hide `objective.mask_ratio` of each beat's patches and reconstruct them."""

    def __init__(self, encoder: Encoder, objective: Objective) -> None:
        super().__init__(encoder, objective)
        self.by_patches = isinstance(encoder, Transformer1d)
        self.patch = encoder.patch if isinstance(encoder, Transformer1d) else PATCH
        num_samples = encoder.spec.num_samples
        self.num_patches = num_samples // self.patch
        self.num_hidden = round(objective.mask_ratio * self.num_patches)
        if num_samples % self.patch or not 0 < self.num_hidden < self.num_patches:
            raise ValueError(
                f"masked reconstruction cuts beats into patches of {self.patch} samples and hides some of them: "
                f"--mask-ratio {objective.mask_ratio} hides {self.num_hidden} of {num_samples / self.patch:g} patches"
            )
        if isinstance(encoder, Transformer1d):
            self.reconstruct = VisiblePatches(encoder)
        else:
            self.reconstruct = BlankedBeat(encoder, self.patch)

    def loss(self, batch: Batch) -> Tensor:
        signal = augment(batch.signal, batch.valid_length, VARIED_BY)
        order = torch.rand(len(signal), self.num_patches, device=signal.device).argsort(1)
        prediction = self.reconstruct(signal, order, self.num_hidden).float()
        hidden = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, : self.num_hidden], True)
        real = patches(valid_mask(batch.valid_length, signal.shape[-1]).expand_as(signal), self.patch)
        target = patches(signal, self.patch)
        return masked_loss(prediction, normalised(target, real) if self.by_patches else target, hidden, real)


def patches(x: Tensor, patch: int) -> Tensor:
    """(batch, lead, time) → (batch, num_patches, lead × patch)."""
    return rearrange(x, "batch lead (token sample) -> batch token (lead sample)", sample=patch)


def normalised(target_BNP: Tensor, real_BNP: Tensor) -> Tensor:
    """Each patch less its mean, over its standard deviation, both over its real samples; zero elsewhere."""
    count = real_BNP.sum(-1, keepdim=True).clamp(min=1)
    mean = (target_BNP * real_BNP).sum(-1, keepdim=True) / count
    centred = (target_BNP - mean) * real_BNP
    spread = (centred.square().sum(-1, keepdim=True) / count).sqrt().clamp(min=SMALLEST_SPREAD)
    return centred / spread


def masked_loss(prediction_BNP: Tensor, target_BNP: Tensor, hidden_BN: Tensor, real_BNP: Tensor) -> Tensor:
    """Mean squared error over the real samples of hidden patches."""
    counted = real_BNP & hidden_BN[..., None]
    error = (prediction_BNP - target_BNP).square() * counted
    return error.sum() / counted.sum().clamp(min=1)


class VisiblePatches(nn.Module):
    """The encoder sees the visible patches; a decoder of one block fills the hidden ones in."""

    def __init__(self, encoder: Transformer1d) -> None:
        super().__init__()
        self.encoder = encoder
        self.hidden_token = nn.Parameter(torch.zeros(encoder.dim))
        self.position = nn.Parameter(torch.randn(encoder.num_tokens, encoder.dim) * 0.02)
        self.decode = nn.Sequential(
            TransformerBlock(encoder.dim, 4, 2),
            nn.LayerNorm(encoder.dim),
            nn.Linear(encoder.dim, encoder.spec.num_leads * encoder.patch),
        )

    def forward(self, signal: Tensor, order_BN: Tensor, num_hidden: int) -> Tensor:
        embedded = self.encoder.embed(signal)
        place = order_BN[:, num_hidden:, None].expand(-1, -1, embedded.shape[-1])
        seen = self.encoder.contextualise(embedded.gather(1, place))
        filled = self.hidden_token.to(seen.dtype).expand_as(embedded).scatter(1, place, seen)
        return self.decode(filled + self.position)


class BlankedBeat(nn.Module):
    """Hidden patches are zero in the input; a decoder of one hidden layer turns the pooled features into the beat."""

    def __init__(self, encoder: Encoder, patch: int) -> None:
        super().__init__()
        self.encoder, self.patch, spec = encoder, patch, encoder.spec
        self.decode = nn.Sequential(
            nn.Linear(encoder.dim, 2 * encoder.dim),
            nn.GELU(),
            nn.Linear(2 * encoder.dim, spec.num_leads * spec.num_samples),
        )

    def forward(self, signal: Tensor, order_BN: Tensor, num_hidden: int) -> Tensor:
        visible = torch.ones_like(order_BN, dtype=signal.dtype).scatter_(1, order_BN[:, :num_hidden], 0.0)
        blanked = signal * visible.repeat_interleave(self.patch, 1)[:, None]
        return patches(self.decode(self.encoder(blanked)).view_as(signal), self.patch)

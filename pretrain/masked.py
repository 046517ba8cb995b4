"""Masked reconstruction (He et al. 2022, arXiv 2111.06377) on beats cut into patches of 11 samples.

A transformer encodes the visible patches only, and its targets are normalised patch by patch. Any other encoder sees
the beat with the hidden spans blanked, and the whole beat is reconstructed from its pooled features: what a probe or
a head will read then has to hold the shape of the beat. Only real samples count: padding is not signal.
"""

from collections.abc import Sequence

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
        self.patch = encoder.patch if isinstance(encoder, Transformer1d) else PATCH
        self.num_patches, self.num_hidden = num_hidden_patches(encoder, self.patch, objective.mask_ratio)
        if isinstance(encoder, Transformer1d):
            self.reconstruct = VisiblePatches(encoder, self.width, self.num_hidden)
        else:
            self.reconstruct = BlankedBeat(encoder, self.patch, self.width, self.num_hidden)

    @property
    def width(self) -> int:
        """Numbers to predict of each patch."""
        return self.encoder.spec.num_leads * self.patch

    def views(self, batch: Batch) -> tuple[Tensor, ...]:
        """The varied signal, the order in which patches are hidden, and which samples of each patch are real."""
        signal = augment(batch.signal, batch.valid_length, VARIED_BY)
        order = hidden_first(len(signal), self.num_patches, signal.device)
        real = patches(valid_mask(batch.valid_length, signal.shape[-1]).expand_as(signal), self.patch)
        return signal, order, real

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        signal, order, _ = views
        return (self.reconstruct(signal, order).float(),)

    def objective(self, outputs: Sequence[Tensor], views: Sequence[Tensor]) -> Tensor:
        signal, order, real = views
        hidden = is_hidden(order, self.num_hidden)
        return masked_loss(outputs[0], self.target(signal, real), hidden, self.counted(real))

    def target(self, signal: Tensor, real_BNP: Tensor) -> Tensor:
        """(batch, num_patches, width)."""
        target = patches(signal, self.patch)
        return normalised(target, real_BNP) if isinstance(self.encoder, Transformer1d) else target

    def counted(self, real_BNP: Tensor) -> Tensor:
        """Which numbers of a target count: broadcast to (batch, num_patches, width)."""
        return real_BNP

    def chance(self, batch_size: int) -> float | None:
        """Predicting every normalised patch's mean."""
        del batch_size
        return 1.0 if isinstance(self.encoder, Transformer1d) else None


def num_hidden_patches(encoder: Encoder, patch: int, mask_ratio: float) -> tuple[int, int]:
    """Patches of a beat, and how many of them are hidden.

    Raises:
        ValueError: the beat does not divide into patches, or none or all would be hidden.
    """
    num_samples = encoder.spec.num_samples
    num_patches = num_samples // patch
    num_hidden = round(mask_ratio * num_patches)
    if num_samples % patch or not 0 < num_hidden < num_patches:
        raise ValueError(
            f"this task cuts beats into patches of {patch} samples and hides some of them: "
            f"--mask-ratio {mask_ratio} hides {num_hidden} of {num_samples / patch:g} patches"
        )
    return num_patches, num_hidden


def hidden_first(num_beats: int, num_patches: int, device: torch.device) -> Tensor:
    """(num_beats, num_patches): each beat's patches in a random order; the first of them are hidden."""
    return torch.rand(num_beats, num_patches, device=device).argsort(1)


def is_hidden(order_BN: Tensor, num_hidden: int) -> Tensor:
    return torch.zeros_like(order_BN, dtype=torch.bool).scatter_(1, order_BN[:, :num_hidden], True)


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
    """The encoder sees the visible patches; a decoder of one block, half as wide, fills the hidden ones in."""

    def __init__(self, encoder: Transformer1d, width: int, num_hidden: int) -> None:
        super().__init__()
        self.encoder, self.num_hidden = encoder, num_hidden
        dim = max(2, encoder.dim // 4 * 2)
        self.narrow = nn.Linear(encoder.dim, dim)
        self.hidden_token = nn.Parameter(torch.zeros(dim))
        self.position = nn.Parameter(torch.randn(encoder.num_tokens, dim) * 0.02)
        self.decode = nn.Sequential(TransformerBlock(dim, 2, 2), nn.LayerNorm(dim), nn.Linear(dim, width))

    def forward(self, signal: Tensor, order_BN: Tensor) -> Tensor:
        visible_BV = order_BN[:, self.num_hidden :]
        seen = self.narrow(self.encoder.contextualise(rows(self.encoder.embed(signal), visible_BV)))
        whole = self.hidden_token.to(seen.dtype).expand(len(signal), self.encoder.num_tokens, -1)
        place = visible_BV[..., None].expand_as(seen)
        return self.decode(whole.scatter(1, place, seen) + self.position)


def rows(tokens_BND: Tensor, index_BV: Tensor) -> Tensor:
    """The tokens numbered `index_BV` of each beat: (batch, V, dim)."""
    return tokens_BND.gather(1, index_BV[..., None].expand(-1, -1, tokens_BND.shape[-1]))


class BlankedBeat(nn.Module):
    """Hidden patches are zero in the input; a decoder of one hidden layer works from the pooled features."""

    def __init__(self, encoder: Encoder, patch: int, width: int, num_hidden: int) -> None:
        super().__init__()
        self.encoder, self.patch, self.num_hidden = encoder, patch, num_hidden
        self.decode = nn.Sequential(
            nn.Linear(encoder.dim, 2 * encoder.dim),
            nn.GELU(),
            nn.Linear(2 * encoder.dim, encoder.spec.num_samples // patch * width),
        )

    def forward(self, signal: Tensor, order_BN: Tensor) -> Tensor:
        visible = (~is_hidden(order_BN, self.num_hidden)).to(signal.dtype)
        blanked = signal * visible.repeat_interleave(self.patch, 1)[:, None]
        decoded = self.decode(self.encoder(blanked))
        return rearrange(decoded, "batch (token width) -> batch token width", token=order_BN.shape[1])

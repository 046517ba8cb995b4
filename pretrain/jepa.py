"""Latent prediction: the tokens of hidden patches from those of visible ones.

I-JEPA, Assran et al. 2023, arXiv 2301.08243.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from data.augment import augment, valid_mask
from models.encoder import Encoder
from models.transformer1d import Transformer1d
from pretrain.masked import (
    VARIED_BY,
    VisiblePatches,
    hidden_first,
    is_hidden,
    masked_loss,
    num_hidden_patches,
    patches,
)
from pretrain.task import Batch, Momentum, Objective, PretrainTask


class Jepa(PretrainTask):
    """The encoder sees visible patches; a predictor says what a slowly moving copy, which sees all, makes of others."""

    remedy = "a larger --momentum (.99 to .999), a higher --mask-ratio, or a lower --lr"

    def __init__(self, encoder: Encoder, objective: Objective) -> None:
        super().__init__(encoder, objective)
        if not isinstance(encoder, Transformer1d):
            raise ValueError(
                f"jepa predicts the tokens of hidden patches from those of visible ones: it needs an encoder that "
                f"takes patches alone, --arch transformer1d, and not {encoder.spec.label}"
            )
        self.patch = encoder.patch
        self.num_patches, self.num_hidden = num_hidden_patches(encoder, self.patch, objective.mask_ratio)
        self.target_encoder = copy.deepcopy(encoder)
        self.average = Momentum(encoder, self.target_encoder, objective.momentum)
        self.predict = VisiblePatches(encoder, encoder.dim, self.num_hidden)

    def before_step(self, progress: float) -> None:
        self.average.follow(progress)

    def views(self, batch: Batch) -> tuple[Tensor, ...]:
        """The varied signal, the order in which patches are hidden, and which patches hold a real sample."""
        signal = augment(batch.signal, batch.valid_length, VARIED_BY)
        order = hidden_first(len(signal), self.num_patches, signal.device)
        real = patches(valid_mask(batch.valid_length, signal.shape[-1]).expand_as(signal), self.patch).any(-1)
        return signal, order, real

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        """Predicted and wanted tokens, (rows, num_patches, dim) each."""
        signal, order, _ = views
        with torch.no_grad():
            wanted = self.target_encoder.tokens(signal)
            wanted = functional.layer_norm(wanted.float(), wanted.shape[-1:])
        return self.predict(signal, order).float(), wanted

    def objective(self, outputs: Sequence[Tensor], views: Sequence[Tensor]) -> Tensor:
        _, order, real = views
        predicted, wanted = outputs
        counted = real[..., None].expand_as(predicted)
        return masked_loss(predicted, wanted, is_hidden(order, self.num_hidden), counted)

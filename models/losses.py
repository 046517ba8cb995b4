"""Losses shared by pretraining and fine-tuning."""

from torch import Tensor
from torch.nn import functional


def weighted_cross_entropy(logits: Tensor, target: Tensor, class_weight: Tensor | None) -> Tensor:
    """Cross-entropy of (batch, num_classes) logits, averaged over beats and not over weights, so that the step size
    does not depend on which classes a batch happens to hold."""
    losses = functional.cross_entropy(logits.float(), target, weight=class_weight, reduction="none")
    return losses.mean()

"""Losses shared by pretraining and fine-tuning, and fine-tuning's choice of them against imbalance."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]
"""Function (logits (batch, num_classes) of any precision, int64 target (batch,)) → float32 scalar."""


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Numbers that some of the losses take; the others ignore them."""

    gamma: float = 2.0
    """focal: how little what is already right counts; 0 is cross-entropy."""
    beta: float = 0.999
    """class_balanced: how fast another beat of a class adds less; 0 weighs all beats alike."""
    margin: float = 0.5
    """ldam: the rarest class's, in units of logits; 0 is cross-entropy."""
    tau: float = 1.0
    """logit_adjusted: how much of the classes' log shares is added; 0 is cross-entropy."""


def weighted_cross_entropy(logits: Tensor, target: Tensor, class_weight: Tensor | None) -> Tensor:
    """Cross-entropy of (batch, num_classes) logits, averaged over beats and not over weights, so that the step size
    does not depend on which classes a batch happens to hold."""
    losses = functional.cross_entropy(logits.float(), target, weight=class_weight, reduction="none")
    return losses.mean()


def cross_entropy(_counts: Tensor, class_weight: Tensor | None, _options: LossOptions) -> Loss:
    return lambda logits, target: weighted_cross_entropy(logits, target, class_weight)


def focal(counts: Tensor, class_weight: Tensor | None, options: LossOptions) -> Loss:
    """Cross-entropy times (1 − p)^gamma, p the true class's probability (Lin et al. 2017, arXiv 1708.02002, equation
    5); the class weights are its alpha."""
    alpha = torch.ones_like(counts, dtype=torch.float32) if class_weight is None else class_weight

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        losses = functional.cross_entropy(logits.float(), target, reduction="none")
        # 1 − p rounds to 0 where a beat is certain, and there a power below 1 has an infinite slope.
        doubt = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny)
        return (alpha[target] * doubt.pow(options.gamma) * losses).mean()

    return loss


def class_balanced(counts: Tensor, _class_weight: Tensor | None, options: LossOptions) -> Loss:
    """Cross-entropy weighted by (1 − beta) / (1 − beta^n) for a class of n beats, one over its effective number of
    beats (Cui et al. 2019, arXiv 1901.05555), in place of the class weights.

    The paper's weights sum to the number of classes; these are of mean 1 over the training beats, as class weights are.
    """
    num_beats = counts.double()
    weight = torch.where(counts > 0, (1 - options.beta) / (1 - options.beta ** num_beats.clamp(min=1)), 0.0)
    weight = (weight * num_beats.sum() / (weight * num_beats).sum()).float()
    return lambda logits, target: weighted_cross_entropy(logits, target, weight)


def ldam(counts: Tensor, class_weight: Tensor | None, options: LossOptions) -> Loss:
    """Cross-entropy with the true class's logit lowered by a margin in proportion to n^(−1/4) for a class of n beats
    (Cao et al. 2019, arXiv 1906.07413).

    The paper scales its logits by 30, as cosines of normalised features reach no further than 1. Heads here learn the
    scale of their logits, so there is no such factor, and margins are in units of logits. The class weights apply from
    the first step; the paper defers them.
    """
    margins = torch.where(counts > 0, counts.double().clamp(min=1).pow(-0.25), 0.0)
    margins = (options.margin * margins / margins.max()).float()

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        lowered = logits.float() - margins * functional.one_hot(target, len(margins))
        return weighted_cross_entropy(lowered, target, class_weight)

    return loss


def logit_adjusted(counts: Tensor, class_weight: Tensor | None, options: LossOptions) -> Loss:
    """Cross-entropy of logits + tau · log share of the class, in the loss only (Menon et al. 2021, arXiv 2007.07314,
    equation 10); the class weights apply as well.

    A class without beats counts as one of a single beat: its log share is finite, and its logit is still pushed down.
    """
    share = counts.double().clamp(min=1) / counts.sum()
    shift = (options.tau * share.log()).float()
    return lambda logits, target: weighted_cross_entropy(logits.float() + shift, target, class_weight)


LOSSES: dict[str, Callable[[Tensor, Tensor | None, LossOptions], Loss]] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "class_balanced": class_balanced,
    "ldam": ldam,
    "logit_adjusted": logit_adjusted,
}
"""Function (counts (num_classes,) of the training beats, float32 class weights (num_classes,) or None, options) → Loss.

Each loss averages over beats and not over weights. A class without training beats may have logits, but is no target.
"""


def check_loss(name: str, options: LossOptions) -> None:
    """
    Raises:
        ValueError: an unknown name, or an option out of its range.
    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; choose from {', '.join(LOSSES)}")
    for option in ("gamma", "margin", "tau"):
        value = getattr(options, option)
        if not 0 <= value < math.inf:
            raise ValueError(f"{option} {value}: 0 or more is needed")
    if not 0 <= options.beta < 1:
        raise ValueError(f"beta {options.beta}: at least 0 and less than 1 is needed")


def make_loss(name: str, counts: Tensor, class_weight: Tensor | None, options: LossOptions) -> Loss:
    """A loss of `LOSSES`.

    Args:
        counts: (num_classes,), training beats of each class, on the device of the logits to come.
        class_weight: float32 (num_classes,), on the same device; None weighs all classes alike.

    Raises:
        ValueError: an unknown name, an option out of its range, or no training beats at all.
    """
    check_loss(name, options)
    if not counts.any():
        raise ValueError("no class has training beats")
    return LOSSES[name](counts, class_weight, options)

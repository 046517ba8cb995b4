"""Variance, invariance, covariance: neither negatives nor a target network.

VICReg, Bardes et al. 2022, arXiv 2105.04906.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.encoder import Encoder
from pretrain.task import Batch, Objective, PretrainTask, ViewsOf
from pretrain.views import projector, two_views

INVARIANCE_WEIGHT = 25.0
COVARIANCE_WEIGHT = 1.0
SMALLEST_VARIANCE = 1e-4


class Vicreg(PretrainTask):
    """Two views alike, each feature spread over the batch, no two features alike."""

    smallest_batch = 2
    remedy = "a larger --variance-weight (25 is usual), a larger --batch-size, or a lower --lr"

    def __init__(self, encoder: Encoder, objective: Objective) -> None:
        super().__init__(encoder, objective)
        if objective.variance_weight < 0:
            raise ValueError(f"--variance-weight {objective.variance_weight}: 0 or more is needed")
        self.variance_weight = objective.variance_weight
        self.of: ViewsOf = objective.views
        self.project = projector(encoder.dim, 2 * encoder.dim, 2 * encoder.dim)

    def views(self, batch: Batch) -> tuple[Tensor, ...]:
        return two_views(batch, self.of)

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        return self.encoder(torch.cat(views)).chunk(2)

    def objective(self, outputs: Sequence[Tensor], views: Sequence[Tensor]) -> Tensor:
        del views
        first, second = self.project(torch.cat(tuple(outputs))).float().chunk(2)
        return vicreg(first, second, self.variance_weight)

    def chance(self, batch_size: int) -> float | None:
        """Of projections that are all the same."""
        del batch_size
        return 2 * self.variance_weight * (1 - SMALLEST_VARIANCE**0.5)


def vicreg(first_BD: Tensor, second_BD: Tensor, variance_weight: float) -> Tensor:
    """λ s + μ [v + v′] + ν [c + c′] (Bardes et al. 2022, equation 6), λ = 25, ν = 1.

    Invariance s is a mean over beats and features, as in the authors' code (the paper's equation 5 sums over features);
    the variances v + v′ are summed as in the paper (the authors' code averages them).
    """
    with torch.autocast(first_BD.device.type, enabled=False):
        invariance = functional.mse_loss(first_BD, second_BD)
        spread = sum(_variance(projection) for projection in (first_BD, second_BD))
        likeness = sum(_covariance(projection) for projection in (first_BD, second_BD))
    return INVARIANCE_WEIGHT * invariance + variance_weight * spread + COVARIANCE_WEIGHT * likeness


def _variance(projection_BD: Tensor) -> Tensor:
    """How far each feature's standard deviation falls short of 1, averaged (equations 1 and 2)."""
    return (1 - (projection_BD.var(0) + SMALLEST_VARIANCE).sqrt()).clamp(min=0).mean()


def _covariance(projection_BD: Tensor) -> Tensor:
    """Squared covariances of different features, over their number (equations 3 and 4)."""
    centred = projection_BD - projection_BD.mean(0)
    covariance = centred.T @ centred / (len(centred) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / projection_BD.shape[1]

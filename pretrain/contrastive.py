"""Contrastive pretraining: two augmented views of a beat attract, all others repel (SimCLR, arXiv 2002.05709)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.augment import augment
from models.encoder import Encoder
from pretrain.task import Batch, Objective, PretrainTask

VARIED_BY = ("amplitude", "baseline_wander", "noise", "span_mask", "shift")


class Contrastive(PretrainTask):
    """NT-Xent between projections of two views."""

    def __init__(self, encoder: Encoder, objective: Objective) -> None:
        super().__init__(encoder, objective)
        if objective.temperature <= 0:
            raise ValueError(f"--temperature {objective.temperature}: a positive number is needed")
        self.temperature = objective.temperature
        self.project = nn.Sequential(
            nn.Linear(encoder.dim, encoder.dim),
            nn.BatchNorm1d(encoder.dim),
            nn.ReLU(inplace=True),
            nn.Linear(encoder.dim, encoder.dim // 2),
        )

    def loss(self, batch: Batch) -> Tensor:
        views = torch.cat([augment(batch.signal, batch.valid_length, VARIED_BY) for _ in range(2)])
        return nt_xent(self.project(self.encoder(views)), self.temperature)


def nt_xent(projection_VD: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy (Chen et al. 2020, equation 1).

    `projection_VD`: (2 × batch, dim), first views of all beats, then second views in the same order.

    Raises:
        ValueError: fewer than two beats: there are no negatives.
    """
    num_views = len(projection_VD)
    if num_views < 4:
        raise ValueError(f"NT-Xent needs at least 2 beats in a batch for negatives, not {num_views // 2}")
    with torch.autocast(projection_VD.device.type, enabled=False):
        precise = projection_VD.to(torch.promote_types(projection_VD.dtype, torch.float32))
        unit = functional.normalize(precise, dim=1)
        similarity_VV = unit @ unit.T / temperature
    similarity_VV.fill_diagonal_(-torch.inf)
    partner = torch.arange(num_views, device=unit.device).roll(num_views // 2)
    return functional.cross_entropy(similarity_VV, partner)

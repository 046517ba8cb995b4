"""Contrastive pretraining: two views attract, all others repel (SimCLR, Chen et al. 2020, arXiv 2002.05709)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.encoder import Encoder
from pretrain.task import Batch, Objective, PretrainTask, ViewsOf
from pretrain.views import projector, two_views


class Contrastive(PretrainTask):
    """NT-Xent between projections of two views."""

    smallest_batch = 2
    remedy = "a lower --temperature (0.05 to 0.5), a larger --batch-size for more negatives, or another --lr"

    def __init__(self, encoder: Encoder, objective: Objective) -> None:
        super().__init__(encoder, objective)
        if not objective.temperature > 0:
            raise ValueError(f"--temperature {objective.temperature}: a positive number is needed")
        self.temperature = objective.temperature
        self.of: ViewsOf = objective.views
        self.project = projector(encoder.dim, encoder.dim, encoder.dim // 2)

    def views(self, batch: Batch) -> tuple[Tensor, ...]:
        """Two views, and whose they are where views come from patients: a patient's other beats are no negatives."""
        views = two_views(batch, self.of)
        return views if self.of == "augmented" or batch.group is None else (*views, batch.group)

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        return self.encoder(torch.cat(views[:2])).chunk(2)

    def objective(self, outputs: Sequence[Tensor], views: Sequence[Tensor]) -> Tensor:
        return nt_xent(self.project(torch.cat(tuple(outputs))), self.temperature, *views[2:])

    def chance(self, batch_size: int) -> float | None:
        """Any of the other views is as likely the partner; how many repel is unknown where views are of patients."""
        return math.log(2 * batch_size - 1) if self.of == "augmented" else None


def nt_xent(projection_VD: Tensor, temperature: float, group_B: Tensor | None = None) -> Tensor:
    """Normalised temperature-scaled cross-entropy (Chen et al. 2020, equation 1).

    Args:
        projection_VD: (2 × batch, dim), first views of all beats, then second views in the same order.
        group_B: (batch,), the patient of each beat, −1 for none: other beats of the same patient do not repel.

    Raises:
        ValueError: fewer than two beats: there are no negatives.
    """
    num_views = len(projection_VD)
    if num_views < 4:
        raise ValueError(f"NT-Xent needs at least 2 beats in a batch for negatives, not {num_views // 2}")
    similarity_VV = similarities(projection_VD, temperature)
    partner = torch.arange(num_views, device=similarity_VV.device).roll(num_views // 2)
    if group_B is not None:
        whose = group_B.repeat(2)
        same = (whose[:, None] == whose) & (whose >= 0)
        same[torch.arange(num_views, device=same.device), partner] = False
        similarity_VV = similarity_VV.masked_fill(same, -torch.inf)
    return functional.cross_entropy(similarity_VV, partner)


def similarities(projection_VD: Tensor, temperature: float) -> Tensor:
    """Cosine similarity of every pair over the temperature, in float32 or finer; −∞ of a view to itself."""
    with torch.autocast(projection_VD.device.type, enabled=False):
        precise = projection_VD.to(torch.promote_types(projection_VD.dtype, torch.float32))
        unit = functional.normalize(precise, dim=1)
        similarity_VV = unit @ unit.T / temperature
    return similarity_VV.fill_diagonal_(-torch.inf)

"""Self-distillation: predict what a slowly moving copy of oneself says of the other view.

BYOL, Grill et al. 2020, arXiv 2006.07733.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.encoder import Encoder
from pretrain.task import Batch, Momentum, Objective, PretrainTask, ViewsOf
from pretrain.views import projector, two_views


class Byol(PretrainTask):
    """Online encoder, projector and predictor; target encoder and projector follow as a moving average."""

    smallest_batch = 2
    remedy = "a larger --momentum (.99 to .999), a larger --batch-size, or a lower --lr"

    def __init__(self, encoder: Encoder, objective: Objective) -> None:
        super().__init__(encoder, objective)
        self.of: ViewsOf = objective.views
        self.project = projector(encoder.dim, 2 * encoder.dim, encoder.dim)
        self.predict = projector(encoder.dim, 2 * encoder.dim, encoder.dim)
        self.target_encoder, self.target_project = copy.deepcopy(encoder), copy.deepcopy(self.project)
        self.averages = (
            Momentum(encoder, self.target_encoder, objective.momentum),
            Momentum(self.project, self.target_project, objective.momentum),
        )

    def before_step(self, progress: float) -> None:
        for average in self.averages:
            average.follow(progress)

    def views(self, batch: Batch) -> tuple[Tensor, ...]:
        return two_views(batch, self.of)

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        """Features of both views from the online encoder, then from the target encoder."""
        both = torch.cat(views)
        with torch.no_grad():
            targets = self.target_encoder(both).chunk(2)
        return *self.encoder(both).chunk(2), *targets

    def objective(self, outputs: Sequence[Tensor], views: Sequence[Tensor]) -> Tensor:
        del views
        first, second, target_first, target_second = outputs
        with torch.no_grad():
            wanted = self.target_project(torch.cat([target_second, target_first]))
        return distance(self.predict(self.project(torch.cat([first, second]))), wanted)


def distance(predicted_VD: Tensor, wanted_VD: Tensor) -> Tensor:
    """2 − 2 × cosine similarity, averaged over views (Grill et al. 2020, equation 2); no gradient to `wanted_VD`."""
    return 2 - 2 * functional.cosine_similarity(predicted_VD.float(), wanted_VD.detach().float(), dim=1).mean()

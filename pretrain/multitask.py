"""Supervised pretraining and masked reconstruction at once: features hold the class, and the shape of the beat too."""

from collections.abc import Sequence

from torch import Tensor

from models.encoder import Encoder
from pretrain.masked import Masked
from pretrain.supervised import Supervised
from pretrain.task import Batch, Objective, PretrainTask


class Multitask(PretrainTask):
    """The sum of both losses, each on its own view of the same beats."""

    smallest_batch = Supervised.smallest_batch
    remedy = Supervised.remedy

    def __init__(self, encoder: Encoder, objective: Objective) -> None:
        super().__init__(encoder, objective)
        self.supervised, self.masked = Supervised(encoder, objective), Masked(encoder, objective)

    def views(self, batch: Batch) -> tuple[Tensor, ...]:
        return *self.supervised.views(batch), *self.masked.views(batch)

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        return *self.supervised(*views[:2]), *self.masked(*views[2:])

    def objective(self, outputs: Sequence[Tensor], views: Sequence[Tensor]) -> Tensor:
        first, second = outputs
        return self.supervised.objective([first], views[:2]) + self.masked.objective([second], views[2:])

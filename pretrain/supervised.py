"""Supervised pretraining on the source's own labels (PTB: normal against myocardial infarction)."""

import math
from collections.abc import Sequence

from torch import Tensor

from data.augment import augment
from models.encoder import Encoder
from models.heads import LinearHead
from models.losses import weighted_cross_entropy
from pretrain.task import Batch, Objective, PretrainTask, labels_of

VARIED_BY = ("amplitude", "baseline_wander", "noise", "shift")


class Supervised(PretrainTask):
    """Cross-entropy of a linear head on lightly augmented beats."""

    smallest_batch = 2
    remedy = "another --lr, or --task multitask, which keeps more of the beat than its class"

    def __init__(self, encoder: Encoder, objective: Objective) -> None:
        super().__init__(encoder, objective)
        self.class_shares = objective.class_shares
        self.head = LinearHead(encoder.dim, len(objective.class_shares))

    def views(self, batch: Batch) -> tuple[Tensor, ...]:
        return augment(batch.signal, batch.valid_length, VARIED_BY), labels_of(batch)

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        return (self.encoder.tokens(views[0]),)

    def objective(self, outputs: Sequence[Tensor], views: Sequence[Tensor]) -> Tensor:
        return weighted_cross_entropy(self.head(outputs[0]), views[1], None)

    def chance(self, batch_size: int) -> float | None:
        """The entropy of the classes: always saying how frequent each is."""
        del batch_size
        return -sum(share * math.log(share) for share in self.class_shares if share)

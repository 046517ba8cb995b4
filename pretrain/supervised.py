"""Supervised pretraining on the source's own labels (PTB: normal against myocardial infarction)."""

from torch import Tensor

from data.augment import augment
from models.encoder import Encoder
from models.heads import Classifier
from models.losses import weighted_cross_entropy
from pretrain.task import Batch, Objective, PretrainTask


class Supervised(PretrainTask):
    """Cross-entropy of a linear head on lightly augmented beats."""

    def __init__(self, encoder: Encoder, objective: Objective) -> None:
        super().__init__(encoder, objective)
        self.classifier = Classifier(encoder, "linear", objective.num_classes)

    def loss(self, batch: Batch) -> Tensor:
        if batch.target is None:
            raise ValueError("supervised pretraining needs labels; this source has none")
        signal = augment(batch.signal, batch.valid_length, ("amplitude", "baseline_wander", "noise", "shift"))
        return weighted_cross_entropy(self.classifier(signal), batch.target, None)

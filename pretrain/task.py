"""The contract of a pretraining task."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from models.encoder import Encoder


class Batch(NamedTuple):
    """A batch of beats on the device."""

    signal: Tensor
    """(batch, num_leads, num_samples), 0 … 1, zero after the valid length."""
    valid_length: Tensor
    """(batch,), samples before the padding."""
    target: Tensor | None
    """(batch,), the source's own labels; only supervised pretraining looks at them."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the tasks can be told. A task reads what concerns it."""

    mask_ratio: float = 0.5
    """Masked: share of a beat's patches hidden."""
    temperature: float = 0.2
    """Contrastive: temperature of NT-Xent."""
    num_classes: int = 2
    """Supervised: classes of the source."""


class PretrainTask(nn.Module, ABC):
    """Owns its encoder and its own decoder, projector or head; only the encoder is saved."""

    encoder: Encoder

    @abstractmethod
    def __init__(self, encoder: Encoder, objective: Objective) -> None:
        super().__init__()
        self.encoder = encoder

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor: ...

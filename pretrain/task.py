"""The contract of a pretraining task."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from models.encoder import Encoder

ViewsOf = Literal["augmented", "patient"]


class Batch(NamedTuple):
    """A batch of beats on the device."""

    signal: Tensor
    """(batch, num_leads, num_samples), 0 … 1, zero after the valid length."""
    valid_length: Tensor
    """(batch,), samples before the padding."""
    target: Tensor | None = None
    """(batch,), the source's own labels; only supervised objectives look at them."""
    group: Tensor | None = None
    """(batch,), the patient, where known; −1 for none."""
    partner: "Batch | None" = None
    """For each beat another of the same patient, where the views are to come from two beats."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the tasks can be told. A task reads what concerns it."""

    mask_ratio: float = 0.6
    """masked, spectrogram, jepa, multitask: share of a beat's patches hidden."""
    temperature: float = 0.2
    """contrastive, supcon: temperature of the similarities."""
    views: ViewsOf = "augmented"
    """contrastive, supcon, vicreg, byol: two views of a beat, or one each of two beats of a patient."""
    momentum: float = 0.996
    """byol, jepa: how much of the target network stays at a step, at the start; it rises to 1."""
    variance_weight: float = 25.0
    """vicreg: weight of the term that holds each feature's spread up."""
    class_shares: tuple[float, ...] = (0.5, 0.5)
    """supervised, multitask: share of each class among the source's beats."""


class PretrainTask(nn.Module, ABC):
    """Owns its encoder and its own decoder, projector or head; only the encoder is saved.

    A loss is made in three parts, so that a batch can be spread over workers: `views` draws everything random for the
    whole batch, `forward` takes rows of it through the encoder, `objective` looks at the rows of all workers.
    """

    encoder: Encoder
    smallest_batch: ClassVar[int] = 1
    remedy: ClassVar[str] = "a lower learning rate"
    """What to change when the embedding collapses."""

    @abstractmethod
    def __init__(self, encoder: Encoder, objective: Objective) -> None:
        super().__init__()
        self.encoder = encoder

    @abstractmethod
    def views(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the encoder and the objective need of the batch, drawn at random; (batch, …) each."""

    @abstractmethod
    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        """Rows of the views → rows of what `objective` looks at; (rows, …) each."""

    @abstractmethod
    def objective(self, outputs: Sequence[Tensor], views: Sequence[Tensor]) -> Tensor:
        """The loss of the whole batch."""

    def loss(self, batch: Batch) -> Tensor:
        views = self.views(batch)
        return self.objective(self(*views), views)

    def before_step(self, progress: float) -> None:
        """Whatever moves without a gradient, such as a target network; `progress` is the share of the training done."""
        del progress

    def chance(self, batch_size: int) -> float | None:
        """The loss of an encoder that says nothing of the beat, where that is known."""
        del batch_size


def labels_of(batch: Batch) -> Tensor:
    """
    Raises:
        ValueError: the source has no labels.
    """
    if batch.target is None:
        raise ValueError("this task learns from labels, and the source has none")
    return batch.target


class Momentum:
    """Exponential moving average of a network, a target of self-distillation (Grill et al. 2020, arXiv 2006.07733)."""

    def __init__(self, online: nn.Module, target: nn.Module, start: float) -> None:
        self.pairs = list(zip(target.parameters(), online.parameters(), strict=True))
        self.start = start
        for parameter in target.parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def follow(self, progress: float) -> None:
        """1 − (1 − start) × (cos(π × progress) + 1) / 2 of the target stays."""
        stays = 1 - (1 - self.start) * (math.cos(math.pi * progress) + 1) / 2
        for target, online in self.pairs:
            target.lerp_(online, 1 - stays)

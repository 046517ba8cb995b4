"""Epochs of index batches, and the beats behind them: no per-sample Python."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from data.beats import Beats


class Taken(NamedTuple):
    """The beats of one batch."""

    signal: Tensor
    """float32 (batch, num_leads, num_samples)."""
    valid_length: Tensor
    """int64 (batch,)."""
    target: Tensor | None
    """int64 (batch,)."""
    group: Tensor | None = None
    """int64 (batch,): the patient, where known; −1 for none."""


class Feed(Protocol):
    """Training beats, wherever they are: `Resident` on the device, or a `data.stream.Stream` from a file."""

    @property
    def about(self) -> Beats:
        """Classes, source, shape and fingerprint; perhaps none of the beats."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """(beats,), of all that an epoch takes; None where the source has none for all."""
        ...

    def batches(self, batch_size: int, seed: int) -> Sequence[Tensor]:
        """One epoch: every beat once, in a seeded order, in batches of nearly equal size; as many for every seed."""
        ...

    def take(self, index: Tensor) -> Taken: ...

    def partners(self, index: Tensor) -> Tensor:
        """For each beat another of the same patient, drawn from torch's global generator; itself where it is alone.

        Raises:
            ValueError: the source does not name its patients, or is a stream.
        """
        ...


class Resident:
    """All beats on the device."""

    def __init__(self, beats: Beats, device: str) -> None:
        self.about = beats
        on_device = (None if tensor is None else tensor.to(device) for tensor in (beats.target, beats.group))
        self.all = Taken(beats.signal.to(device), beats.valid_length.to(device), *on_device)

    @property
    def labels(self) -> Tensor | None:
        return self.about.target

    def batches(self, batch_size: int, seed: int) -> Sequence[Tensor]:
        return shuffled(len(self.about), batch_size, seed)

    def take(self, index: Tensor) -> Taken:
        return Taken(*(None if tensor is None else tensor[index] for tensor in self.all))  # pyright: ignore[reportArgumentType]

    def partners(self, index: Tensor) -> Tensor:
        return self._patients.others(index)

    @cached_property
    def _patients(self) -> "Patients":
        if self.about.group is None:
            raise ValueError(f"{self.about.source} does not name its patients: no two beats of the same can be drawn")
        return Patients(self.about.group)


class Patients:
    """Who has which beats, to draw another beat of the same patient.

    Args:
        group: int64 (num_beats,); −1 for a beat of no known patient, which is alone.
    """

    def __init__(self, group: Tensor) -> None:
        self.order = group.argsort(stable=True)
        place = torch.empty_like(group)
        place[self.order] = torch.arange(len(group))
        _, patient, count = group.unique(return_inverse=True, return_counts=True)
        alone = group < 0
        self.first = torch.where(alone, place, (count.cumsum(0) - count)[patient])
        self.size = torch.where(alone, 1, count[patient])
        self.turn = place - self.first

    def others(self, index: Tensor) -> Tensor:
        """Another beat of each one's patient; itself where there is none."""
        size = self.size[index]
        step = 1 + (torch.rand(len(index)) * (size - 1)).long()
        return self.order[self.first[index] + (self.turn[index] + step) % size]


def shuffled(num_items: int, batch_size: int, seed: int) -> tuple[Tensor, ...]:
    """One epoch: every index once, in a seeded order, in batches of nearly equal size (never a tiny last one)."""
    order = torch.randperm(num_items, generator=torch.Generator().manual_seed(seed))
    return order.tensor_split(_num_batches(num_items, batch_size))


def balanced(target: Tensor, batch_size: int, seed: int) -> tuple[Tensor, ...]:
    """One epoch of as many indices and batches as `shuffled`, every batch with each present class in equal shares (±1).

    Class-balanced sampling (Kang et al. 2020, arXiv 1910.09217, section 3). A class is drawn without repetition until
    it is used up, then anew in another order; of a class larger than its share an epoch sees only that share.

    BatchNorm's running statistics become those of equal classes, while validation and test hold the classes as they
    occur: features shift between training and use, and the predicted probabilities are those of equal classes too.

    Args:
        target: int64 (num_beats,), on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = target.unique()
    classes = classes[torch.randperm(len(classes), generator=generator)]
    order = torch.empty_like(target)
    for turn, label in enumerate(classes):
        slots = order[turn :: len(classes)]
        members = (target == label).nonzero().squeeze(1)
        rounds = -(-len(slots) // len(members))
        drawn = torch.rand(rounds, len(members), generator=generator).argsort(dim=1)
        slots.copy_(members[drawn.flatten()[: len(slots)]])
    return order.tensor_split(_num_batches(len(target), batch_size))


def _num_batches(num_items: int, batch_size: int) -> int:
    return max(1, round(num_items / batch_size))

"""Epochs of index batches, and the beats behind them: no per-sample Python."""

from collections.abc import Sequence
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


class Feed(Protocol):
    """Training beats, wherever they are: `Resident` on the device, or a `data.stream.Stream` from a file."""

    @property
    def about(self) -> Beats:
        """Classes, source, shape and fingerprint; perhaps none of the beats."""
        ...

    def batches(self, batch_size: int, seed: int) -> Sequence[Tensor]:
        """One epoch: every beat once, in a seeded order, in batches of nearly equal size; as many for every seed."""
        ...

    def take(self, index: Tensor) -> Taken: ...


class Resident:
    """All beats on the device."""

    def __init__(self, beats: Beats, device: str) -> None:
        self.about = beats
        target = None if beats.target is None else beats.target.to(device)
        self.all = Taken(beats.signal.to(device), beats.valid_length.to(device), target)

    def batches(self, batch_size: int, seed: int) -> Sequence[Tensor]:
        return shuffled(len(self.about), batch_size, seed)

    def take(self, index: Tensor) -> Taken:
        signal, valid_length, target = self.all
        return Taken(signal[index], valid_length[index], None if target is None else target[index])


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

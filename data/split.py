"""Which beats train, which choose, which test.

Imports nothing heavy at module level: `data` itself imports this module (see there).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from data.beats import Beats

VALIDATION = 0.1
VALIDATION_OF_PATIENTS = 0.2
"""Of few patients a tenth would be two."""
NUM_DRAWS, FEW_DRAWS = 512, 32
"""Of splits by patient, to choose from: many for the test part, which is to be like the rest; few for validation, so
that another seed holds out other patients."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a data set by one protocol, each read when it is asked for."""

    load_train: Callable[[], Beats]
    load_test: Callable[[], Beats]
    badge: Callable[[], str]
    """What may leak from training into test: beat-random, record-disjoint, patient-disjoint or unknown."""
    load_validation: Callable[[], Beats] | None = None
    """Where the source has one of its own."""
    check: Callable[[], object] = lambda: None
    """Sees that the files of every part are there, before hours are spent on one of them; ValueError where not."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A data set, split. The test part stays unread until it is asked for."""

    train: Beats
    validation: Beats
    load_test: Callable[[], Beats]
    protocol: str
    """beat-random, ds1-ds2 or patient."""
    badge: str
    """What may leak from training into test: beat-random, record-disjoint, patient-disjoint or unknown."""
    seed: int = 0
    """Chose the validation part."""

    def without_test(self) -> Split:
        """What a worker is sent: it has no way to the test part."""
        return replace(self, load_test=_withheld)


def _withheld() -> Beats:
    raise RuntimeError("the test part stays where the comparison is made")


def stratified(target: Tensor, fraction: float, seed: int, minimum: int = 1) -> tuple[Tensor, Tensor]:
    """Hold out a fraction of every class.

    Args:
        target: int64 (num_beats,).
        minimum: beats to hold out of each class at least, as long as one is left to keep.

    Returns:
        Sorted int64 index tensors (kept, held out), which share nothing and cover everything. A class of two beats
        or more is on both sides; a class of one is kept.

    Raises:
        ValueError: `fraction` is not within 0…1.
    """
    import torch

    _check_fraction(fraction)
    size, rank = _rank_in_class(target, seed)
    held_out = rank < (size * fraction).round().clamp(min=minimum).minimum(size - 1)
    return _sides(torch.nonzero(held_out).squeeze(1), len(target))


def by_patient(beats: Beats, fraction: float, seed: int, num_draws: int = NUM_DRAWS) -> tuple[Tensor, Tensor]:
    """Hold out whole patients: of many random draws, the one that takes nearest to `fraction` of every class.

    Returns:
        Sorted int64 index tensors (kept, held out); no group is on both sides.

    Raises:
        ValueError: the beats have no groups, or fewer than two; `fraction` is not within 0…1.
    """
    import numpy as np
    import torch

    _check_fraction(fraction)
    if beats.group is None:
        raise ValueError(f"{beats.source}: the beats do not name their patients")
    patients, patient = beats.group.unique(return_inverse=True)
    if len(patients) < 2:
        raise ValueError(f"{beats.source}: a split by patient needs two patients or more, not {len(patients)}")
    cell = patient * beats.num_classes + beats.labels
    counts = torch.bincount(cell, minlength=len(patients) * beats.num_classes).view(len(patients), -1).numpy()
    counts = counts[:, counts.sum(axis=0) > 0]
    random = np.random.default_rng(seed)
    order = random.permuted(np.tile(np.arange(len(patients)), (num_draws, 1)), axis=1)
    share = counts[order[:, :-1]].cumsum(axis=1) / counts.sum(axis=0)
    error = np.abs(share - fraction).mean(axis=2)
    draw, last = np.unravel_index(error.argmin(), error.shape)
    held_out = torch.isin(patient, torch.from_numpy(order[draw, : last + 1]))
    return _sides(torch.nonzero(held_out).squeeze(1), len(beats))


def subset(beats: Beats, num_beats: int, seed: int, minimum: int = 6) -> Beats:
    """A stratified subset with `minimum` beats of each class, where the class has them.

    Subsets of one seed are nested: the larger holds the smaller.

    Raises:
        ValueError: there are fewer beats, or `num_beats` is not one for each class.
    """
    import torch

    num_present = len(beats.labels.unique())
    if not num_present <= num_beats <= len(beats):
        raise ValueError(
            f"{beats.source}: a subset of {num_beats} beats is not within {num_present} (one of each class) "
            f"and {len(beats)} (all of them)"
        )
    size, rank = _rank_in_class(beats.labels, seed)
    turn = torch.where(rank < minimum, rank - minimum, (rank + 0.5) / size)
    return beats.select(turn.argsort(stable=True)[:num_beats].sort().values)


def with_fewer_labels(split: Split, fraction: float, draw: int = 0) -> Split:
    """The split with a stratified share of its training part; validation and test stay whole.

    The fractions of one draw are nested: the larger holds the smaller.

    Raises:
        ValueError: `fraction` is not above 0 and at most 1, or leaves less than a beat of each class.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"label fraction {fraction} is not above 0 and at most 1")
    if fraction == 1:
        return split
    return replace(split, train=subset(split.train, round(fraction * len(split.train)), draw))


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"fraction {fraction} to hold out is not between 0 and 1")


def _rank_in_class(target: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Size of each beat's class, and the beat's place in a random order of that class; float64 (num_beats,)."""
    import torch

    size = torch.bincount(target)
    shuffled = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))
    order = shuffled[target[shuffled].argsort(stable=True)]
    rank = torch.empty_like(target)
    rank[order] = torch.arange(len(target)) - (size.cumsum(0) - size)[target[order]]
    return size[target].double(), rank.double()


def _sides(held_out: Tensor, num_beats: int) -> tuple[Tensor, Tensor]:
    import torch

    kept = torch.ones(num_beats, dtype=torch.bool)
    kept[held_out] = False
    return torch.nonzero(kept).squeeze(1), held_out

"""Against imbalance, on the training part only: class weights, or synthetic beats of the rare classes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from data.beats import Beats, derive, measure_length, scale_and_pad

NUM_NEIGHBOURS = 5
WEIGHT_POWER = 0.6
"""Of `class_weight`: between the square root, which costs recall, and full weights, which cost precision."""


class Balanced(NamedTuple):
    """Training beats and, where a loss should weigh the classes, float32 (num_classes,) weights."""

    beats: Beats
    class_weights: Tensor | None


def class_weights(target: Tensor, num_classes: int, power: float = 1.0) -> Tensor:
    """Weights in inverse proportion to each class's frequency to the `power`.

    Returns:
        float32 (num_classes,), of mean 1 over the beats; 0 for a class without beats.
    """
    counts = torch.bincount(target, minlength=num_classes).double()
    weights = torch.where(counts > 0, counts.clamp(min=1).pow(-power), 0.0)
    return (weights * counts.sum() / (weights * counts).sum()).float()


def smote(beats: Beats, seed: int, max_ratio: float = 0.1) -> Beats:
    """Add synthetic beats to the rare classes (Chawla et al. 2002, JAIR 16:321–357).

    A class below `max_ratio` of the largest class is lifted to it, not to parity: the training part hardly grows.
    A synthetic beat's length (and RR intervals, where there are any) lies between its two parents'; the beat is zero
    after it and scaled to 0…1 like any other. It belongs to no patient (group −1).

    Raises:
        ValueError: several leads, `max_ratio` not within 0…1, or a rare class without enough beats to be neighbours.
    """
    target, num_samples = beats.labels, beats.signal.shape[2]
    if beats.signal.shape[1] != 1:
        raise ValueError(f"{beats.source}: smote takes beats of one lead, not {beats.signal.shape[1]}")
    if not 0 < max_ratio <= 1:
        raise ValueError(f"max_ratio {max_ratio} of smote is not within 0…1")
    wanted = _wanted(beats, max_ratio)
    if not wanted:
        return beats
    # The length and the intervals travel as features, so that they are interpolated by the same hidden factor.
    features = [beats.signal.squeeze(1), beats.valid_length.float().unsqueeze(1) / num_samples]
    if beats.intervals is not None:
        features.append(beats.intervals)
    made, made_target = _resample(torch.cat(features, dim=1), target, wanted, seed)
    length = np.round(made[:, num_samples] * num_samples).astype(np.int64)
    made_signal = torch.from_numpy(scale_and_pad(made[:, :num_samples], length)).unsqueeze(1)
    made_group = torch.full((len(made),), -1)
    made_intervals = torch.from_numpy(made[:, num_samples + 1 :])
    return replace(
        beats,
        signal=torch.cat([beats.signal, made_signal]),
        target=torch.cat([target, torch.from_numpy(made_target)]),
        valid_length=torch.cat([beats.valid_length, measure_length(made_signal)]),
        group=None if beats.group is None else torch.cat([beats.group, made_group]),
        intervals=None if beats.intervals is None else torch.cat([beats.intervals, made_intervals]),
        fingerprint=derive(beats.fingerprint, "smote", seed, max_ratio),
    )


def _wanted(beats: Beats, max_ratio: float) -> dict[int, int]:
    """Number of beats to reach, for each class that is present and below it."""
    counts = beats.counts()
    goal = round(max_ratio * max(counts.values()))
    rare = {name: count for name, count in counts.items() if 0 < count < goal}
    for name, count in rare.items():
        if count <= NUM_NEIGHBOURS:
            raise ValueError(
                f"{beats.source}: smote needs {NUM_NEIGHBOURS + 1} beats of a class to find {NUM_NEIGHBOURS} "
                f"neighbours, and class {name} has {count}: use another balance, or more training beats"
            )
    return {beats.classes.index(name): goal for name in rare}


def _resample(features: Tensor, target: Tensor, wanted: dict[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and target of the synthetic beats alone; imbalanced-learn puts them after the beats it was given."""
    from imblearn.over_sampling import SMOTE

    # Its annotations allow neither the documented dictionary nor arrays.
    sampler: Any = SMOTE(sampling_strategy=cast(Any, wanted), k_neighbors=NUM_NEIGHBOURS, random_state=seed)
    everything, label = sampler.fit_resample(features.numpy(), target.numpy())
    return everything[len(target) :], label[len(target) :]


def _keep(beats: Beats, seed: int) -> Balanced:  # noqa: ARG001 (a balance's signature)
    return Balanced(beats, None)


def _weigh(beats: Beats, seed: int) -> Balanced:  # noqa: ARG001
    return Balanced(beats, class_weights(beats.labels, beats.num_classes, WEIGHT_POWER))


def _add(beats: Beats, seed: int) -> Balanced:
    return Balanced(smote(beats, seed), None)


BALANCES: dict[str, Callable[[Beats, int], Balanced]] = {"none": _keep, "class_weight": _weigh, "smote": _add}
"""Function (training beats, seed) → Balanced."""

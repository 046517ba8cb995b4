"""Against imbalance, on the training part only: class weights, resampled beats, or batches of equal class shares."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.beats import Beats, derive, measure_length, scale_and_pad

NUM_NEIGHBOURS = 5
MAX_RATIO = 0.1
"""Of a class to the largest one, which resampling leaves no class below: not parity, where rare beats are copied or
interpolated a hundred times or most of the others are thrown away."""


class Counts(NamedTuple):
    """Training beats of each class before and after a balance."""

    before: dict[str, int]
    after: dict[str, int]

    def __str__(self) -> str:
        return ", ".join(f"{name} {count:,} → {self.after[name]:,}" for name, count in self.before.items())


@dataclass(frozen=True, kw_only=True)
class Balanced:
    """What to train on, and how to draw and weigh it."""

    beats: Beats
    counts: Counts
    weighted: bool = False
    """Whether the loss should weigh the classes, by `class_weights`."""
    balanced_batches: bool = False
    """Draw batches by `data.batches.balanced` and not by `data.batches.shuffled`."""


def class_weights(target: Tensor, num_classes: int, power: float = 1.0) -> Tensor:
    """Weights in inverse proportion to each class's frequency to the `power`.

    Returns:
        float32 (num_classes,), of mean 1 over the beats; 0 for a class without beats.
    """
    counts = torch.bincount(target, minlength=num_classes).double()
    weights = torch.where(counts > 0, counts.clamp(min=1).pow(-power), 0.0)
    return (weights * counts.sum() / (weights * counts).sum()).float()


def smote(beats: Beats, seed: int, max_ratio: float = MAX_RATIO) -> Beats:
    """Add beats interpolated between neighbours of a rare class (Chawla et al. 2002, JAIR 16:321–357).

    A class below `max_ratio` of the largest class is lifted to it. A synthetic beat's length (and RR intervals, where
    there are any) lies between its two parents'; the beat is zero after it and scaled to 0…1 like any other. It
    belongs to no patient (group −1). The real beats come first, as they were.

    Raises:
        ValueError: several leads, `max_ratio` not within 0…1, or a rare class without enough beats to be neighbours.
    """
    from imblearn.over_sampling import SMOTE

    return _synthesize(beats, "smote", SMOTE(k_neighbors=NUM_NEIGHBOURS, random_state=seed), max_ratio)


def borderline_smote(beats: Beats, seed: int, max_ratio: float = MAX_RATIO) -> Beats:
    """SMOTE from beats in danger only: half or more of their ten neighbours, but not all, are of other classes
    (borderline-1 of Han, Wang and Mao 2005, ICIC, LNCS 3644, 878–887).

    Raises:
        ValueError: as `smote`, or no beat of a rare class is in danger.
    """
    from imblearn.over_sampling import BorderlineSMOTE

    sampler = BorderlineSMOTE(k_neighbors=NUM_NEIGHBOURS, m_neighbors=2 * NUM_NEIGHBOURS, random_state=seed)
    return _synthesize(beats, "borderline_smote", sampler, max_ratio)


def adasyn(beats: Beats, seed: int, max_ratio: float = MAX_RATIO) -> Beats:
    """SMOTE that makes more from a beat the more of its neighbours are of other classes (He et al. 2008, IJCNN,
    1322–1328).

    The number made from each beat is rounded, so a class may end above or below the ratio.

    Raises:
        ValueError: as `smote`, or a rare class has no neighbours of other classes, or too few to round to a beat.
    """
    from imblearn.over_sampling import ADASYN

    return _synthesize(beats, "adasyn", ADASYN(n_neighbors=NUM_NEIGHBOURS, random_state=seed), max_ratio)


def smote_tomek(beats: Beats, seed: int, max_ratio: float = MAX_RATIO) -> Beats:
    """SMOTE, then both beats of every Tomek link are dropped: nearest neighbours of each other and of two classes
    (Batista, Bazzan and Monard 2003, WOB, 10–18).

    Links are looked for among the finished beats, real and synthetic, and taken out whatever their class, as
    imbalanced-learn's SMOTETomek does; so the rare classes may end just below the ratio.

    Raises:
        ValueError: as `smote`.
    """
    lifted = smote(beats, seed, max_ratio)
    return lifted.select(torch.from_numpy(~tomek_links(_features(lifted), lifted.labels.numpy())))


def tomek_links(features: NDArray[np.float32], target: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which beats (num_beats,) are in a Tomek link.

    imbalanced-learn's TomekLinks finds everybody's nearest neighbour: 77 s for the 91,340 beats that SMOTE makes of
    the MIT-BIH training part, on two cores. One side of a link is outside the largest class, so it is enough to ask
    the beats outside it and those in it that are nearest to one of them: 15 s. The rest stay their own neighbours.
    """
    from imblearn.under_sampling import TomekLinks
    from sklearn.neighbors import NearestNeighbors

    search, nearest = NearestNeighbors(n_neighbors=2).fit(features), np.arange(len(target))

    def ask(index: NDArray[np.int64]) -> None:
        if len(index):
            nearest[index] = search.kneighbors(features[index], return_distance=False)[:, 1]

    common = target == np.bincount(target).argmax()
    ask(np.flatnonzero(~common))
    ask(np.intersect1d(nearest[~common], np.flatnonzero(common)))
    return TomekLinks.is_tomek(target, nearest, np.unique(target))


def random_over(beats: Beats, seed: int, max_ratio: float = MAX_RATIO) -> Beats:
    """Repeat beats of each class below `max_ratio` of the largest class until it reaches that.

    Raises:
        ValueError: `max_ratio` not within 0…1.
    """
    from imblearn.over_sampling import RandomOverSampler

    return _choose(beats, RandomOverSampler(random_state=seed), _rare(beats, max_ratio))


def random_under(beats: Beats, seed: int, max_ratio: float = MAX_RATIO) -> Beats:
    """Drop beats of each class above the smallest class / `max_ratio` until it is down to that.

    Raises:
        ValueError: `max_ratio` not within 0…1.
    """
    from imblearn.under_sampling import RandomUnderSampler

    _check_ratio(max_ratio)
    counts = {label: count for label, count in enumerate(beats.counts().values()) if count}
    goal = int(min(counts.values()) / max_ratio)
    return _choose(beats, RandomUnderSampler(random_state=seed), {k: goal for k, n in counts.items() if n > goal})


def _check_ratio(max_ratio: float) -> None:
    if not 0 < max_ratio <= 1:
        raise ValueError(f"max_ratio {max_ratio} is not within 0…1")


def _rare(beats: Beats, max_ratio: float) -> dict[int, int]:
    """Number of beats to reach, for each class that is present and below it."""
    _check_ratio(max_ratio)
    counts = beats.counts().values()
    goal = round(max_ratio * max(counts))
    return {label: goal for label, count in enumerate(counts) if 0 < count < goal}


def _choose(beats: Beats, sampler: Any, wanted: dict[int, int]) -> Beats:
    """The beats that the sampler picks by number, in their order; a beat picked again comes after them all."""
    if not wanted:
        return beats
    sampler.set_params(sampling_strategy=wanted).fit_resample(np.zeros((len(beats), 1)), beats.labels.numpy())
    order, first = np.unique(sampler.sample_indices_, return_index=True)
    return beats.select(torch.from_numpy(np.r_[order, np.delete(sampler.sample_indices_, first)]))


def _features(beats: Beats) -> NDArray[np.float32]:
    """(num_beats, num_features): the signal, and as features beside it the length as a share and the RR intervals, so
    that a synthetic beat's are interpolated by the same hidden factor."""
    parts = [beats.signal.flatten(1), beats.valid_length.float().unsqueeze(1) / beats.signal.shape[2]]
    if beats.intervals is not None:
        parts.append(beats.intervals)
    return torch.cat(parts, dim=1).numpy()


def _synthesize(beats: Beats, name: str, sampler: Any, max_ratio: float) -> Beats:
    """The beats, and after them those that the sampler makes of the rare classes."""
    if beats.signal.shape[1] != 1:
        raise ValueError(f"{beats.source}: {name} takes beats of one lead, not {beats.signal.shape[1]}")
    wanted = _rare(beats, max_ratio)
    if not wanted:
        return beats
    num_samples = beats.signal.shape[2]
    made = {label: _interpolate(beats, name, sampler, label, goal) for label, goal in wanted.items()}
    features = np.concatenate(list(made.values()))
    length = np.round(features[:, num_samples] * num_samples).astype(np.int64)
    signal = torch.from_numpy(scale_and_pad(features[:, :num_samples], length)).unsqueeze(1)
    target = torch.cat([torch.full((len(rows),), label) for label, rows in made.items()])
    intervals = torch.from_numpy(features[:, num_samples + 1 :])
    return replace(
        beats,
        signal=torch.cat([beats.signal, signal]),
        target=torch.cat([beats.labels, target]),
        valid_length=torch.cat([beats.valid_length, measure_length(signal)]),
        group=None if beats.group is None else torch.cat([beats.group, torch.full((len(signal),), -1)]),
        intervals=None if beats.intervals is None else torch.cat([beats.intervals, intervals]),
        fingerprint=derive(beats.fingerprint, name, sampler.random_state, max_ratio),
    )


def _interpolate(beats: Beats, name: str, sampler: Any, label: int, goal: int) -> NDArray[np.float32]:
    """Features of the synthetic beats of one class; imbalanced-learn puts them after the beats it was given.

    One class at a time: its errors do not say which class they are about.
    """
    rare, count = beats.classes[label], int((beats.labels == label).sum())
    if count <= NUM_NEIGHBOURS:
        raise ValueError(
            f"{beats.source}: {name} needs {NUM_NEIGHBOURS + 1} beats of a class to find {NUM_NEIGHBOURS} "
            f"neighbours, and class {rare} has {count}: use another balance, or more training beats"
        )
    refusal, hint = f"{beats.source}: {name} makes no beats of class {rare}", "use another balance, such as smote"
    sampler.set_params(sampling_strategy={label: goal})
    try:
        made, _ = sampler.fit_resample(_features(beats), beats.labels.numpy())
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{refusal}: {str(error).partition('.')[0]}; {hint}") from error
    if len(made) == len(beats):
        raise ValueError(f"{refusal}: none of its {count} beats is in danger; {hint}")
    return made[len(beats) :]


def _resampling(resample: Callable[[Beats, int], Beats]) -> "Balance":
    def balance(beats: Beats, seed: int) -> Balanced:
        resampled = resample(beats, seed)
        return Balanced(beats=resampled, counts=Counts(beats.counts(), resampled.counts()))

    return balance


def _keep(beats: Beats, seed: int) -> Balanced:  # noqa: ARG001 (a balance's signature)
    return Balanced(beats=beats, counts=Counts(beats.counts(), beats.counts()))


def _weigh(beats: Beats, seed: int) -> Balanced:
    return replace(_keep(beats, seed), weighted=True)


def _batch(beats: Beats, seed: int) -> Balanced:
    return replace(_keep(beats, seed), balanced_batches=True)


Balance = Callable[[Beats, int], Balanced]

BALANCES: dict[str, Balance] = {
    "none": _keep,
    "class_weight": _weigh,
    "smote": _resampling(smote),
    "borderline_smote": _resampling(borderline_smote),
    "adasyn": _resampling(adasyn),
    "smote_tomek": _resampling(smote_tomek),
    "random_over": _resampling(random_over),
    "random_under": _resampling(random_under),
    "balanced_batches": _batch,
}
"""Function (training beats, seed) → Balanced."""

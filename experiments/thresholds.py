"""Alarms that find a wanted share of each class, or promise to miss no more, by thresholds set on validation data.

Each class stands against the rest: a beat raises an alarm for every class whose probability reaches that class's
threshold, so for none or for several.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """
    Raises:
        ValueError: `floor` is not above 0 and at most 1.
    """

    floor: float
    """The share of each class's validation beats that had to be found."""
    values: tuple[float | None, ...]
    """One for each class; None where validation had no beat of it, and so no alarm is ever raised."""

    def __post_init__(self) -> None:
        _check_floor(self.floor)

    def to_json(self) -> dict[str, Any]:
        return {"floor": self.floor, "values": list(self.values)}

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Rebuild what `to_json` gave.

        Raises:
            ValueError: something else.
        """
        if not isinstance(content, dict) or content.keys() != {"floor", "values"}:
            raise ValueError("not recorded thresholds: they have floor and values")
        floor, values = content["floor"], content["values"]
        if not (_is_number(floor) and isinstance(values, list)):
            raise ValueError("not recorded thresholds: their floor is a number, their values are a list")
        if not all(value is None or _is_number(value) for value in values):
            raise ValueError("not recorded thresholds: each value is a finite number or null")
        return cls(floor=floor, values=tuple(values))


@dataclass(frozen=True, kw_only=True)
class Promises:
    """Thresholds by which the expected share of a class's further beats without an alarm is at most a limit.

    Raises:
        ValueError: a limit is not between 0 and 1.
    """

    limits: tuple[float, ...]
    """Of the expected miss rate, one for each class."""
    values: tuple[float | None, ...]
    """One for each class; None where it has too few beats to promise anything, and so no alarm is ever raised."""
    num_beats: tuple[int, ...]
    """Validation beats of each class."""

    def __post_init__(self) -> None:
        for limit in self.limits:
            if not 0 < limit < 1:
                raise ValueError(f"miss rate {limit}: above 0 and below 1 is needed")

    @property
    def needed(self) -> tuple[int, ...]:
        """Of each class the fewest validation beats with which its limit can be promised."""
        enough = (ceil(1 / limit) for limit in self.limits)
        # The quotient may be rounded up over a whole number.
        return tuple(n - 2 if 1 / (n - 1) <= limit else n - 1 for n, limit in zip(enough, self.limits, strict=True))

    def chance(self, label: int, num_missed: int, num_beats: int) -> float:
        """How likely that many misses or more would be among `num_beats` further beats of a class that has a threshold.

        Were they exchangeable with those that set it, misses are beta-binomial, whatever the probabilities' law: the
        share below a threshold that k of n beats lie below is beta (k + 1, n − k) (Vovk, Conditional Validity of
        Inductive Conformal Predictors, ACML 2012). It is an upper bound where probabilities tie.
        """
        from scipy.stats import betabinom

        below = _allowed(self.num_beats[label], self.limits[label])
        return float(betabinom.sf(num_missed - 1, num_beats, below + 1, self.num_beats[label] - below))


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """What one class's threshold does to scored beats."""

    recall: float
    """Share of the class's beats that raise its alarm; NaN where there are none."""
    precision: float
    """Share of the alarms that are right; NaN where there are none."""
    num_alarms: int
    support: int
    """Beats of the class."""


def fit_thresholds(probabilities: ArrayLike, target: ArrayLike, floor: float) -> Thresholds:
    """For each class the highest threshold at which at least a share `floor` of its beats raise an alarm.

    It is the probability of one of those beats, and the share is exact: where beats tie, all of them raise the alarm.

    Args:
        probabilities: (num_beats, num_classes).
        target: integers (num_beats,) in [0, num_classes).

    Raises:
        ValueError: `floor` is not above 0 and at most 1; the shapes do not fit or are empty; a probability is not
            finite; a class is out of range.
    """
    _check_floor(floor)
    probability_BC, target_B = _checked(probabilities, target)
    values = (_highest(probability_BC[target_B == label, label], floor) for label in range(probability_BC.shape[1]))
    return Thresholds(floor=float(floor), values=tuple(values))


def fit_promises(probabilities: ArrayLike, target: ArrayLike, limits: Sequence[float]) -> Promises:
    """For each class the highest threshold with (misses + 1) / (beats + 1) at most the limit, on the class's beats.

    The miss rate of a further beat of the class is then at most the limit in expectation, over that beat and those that
    set the threshold, if all of them are exchangeable: conformal risk control (Angelopoulos, Bates, Fisch, Lei and
    Schuster, ICLR 2024, arXiv 2208.02814), whose loss is here a miss. It takes at least 1 / limit − 1 beats.

    Exchangeable is what beats of one source, drawn alike, are. Two things weaken the promise: validation beats that
    also chose the epoch are not untouched, and the beats of a patient resemble each other, so that those of a few
    patients say less of the next patient than their number tells.

    Args:
        probabilities: (num_beats, num_classes).
        target: integers (num_beats,) in [0, num_classes).
        limits: one for each class.

    Raises:
        ValueError: a limit is not between 0 and 1; the shapes do not fit or are empty; a probability is not finite; a
            class is out of range.
    """
    probability_BC, target_B = _checked(probabilities, target)
    if len(limits) != probability_BC.shape[1]:
        raise ValueError(f"{len(limits)} limits do not fit probabilities of {probability_BC.shape[1]} classes")
    of_class = [probability_BC[target_B == label, label] for label in range(len(limits))]
    return Promises(
        limits=tuple(map(float, limits)),
        values=tuple(_safe(own, limit) for own, limit in zip(of_class, limits, strict=True)),
        num_beats=tuple(map(len, of_class)),
    )


def alarms(thresholds: Thresholds | Promises, probabilities: ArrayLike, target: ArrayLike) -> list[Alarms]:
    """What each class's threshold does to these beats, in the order of the classes.

    Args:
        probabilities: (num_beats, num_classes).
        target: integers (num_beats,) in [0, num_classes).

    Raises:
        ValueError: the shapes do not fit or are empty; a probability is not finite; a class is out of range.
    """
    probability_BC, target_B = _checked(probabilities, target)
    num_classes = probability_BC.shape[1]
    if len(thresholds.values) != num_classes:
        raise ValueError(f"{len(thresholds.values)} thresholds do not fit probabilities of {num_classes} classes")
    raised_BC = probability_BC >= [np.inf if value is None else value for value in thresholds.values]
    true_BC = target_B[:, None] == np.arange(num_classes)
    hits, num_alarms, support = ((raised_BC & true_BC).sum(0), raised_BC.sum(0), true_BC.sum(0))
    recall, precision = (hits / np.where(total > 0, total, np.nan) for total in (support, num_alarms))
    columns = (recall.tolist(), precision.tolist(), num_alarms.tolist(), support.tolist())
    return [Alarms(recall=r, precision=p, num_alarms=a, support=s) for r, p, a, s in zip(*columns, strict=True)]


def _highest(own: NDArray[np.float64], floor: float) -> float | None:
    """The threshold of a class from its own beats' probabilities (num_beats,)."""
    if not own.size:
        return None
    # Divided as recall is, so that both round alike: .07 × 100 is more than 7, but 7 / 100 is .07.
    found = np.arange(1, own.size + 1) / own.size
    return float(np.sort(own)[::-1][np.searchsorted(found, floor)])


def _safe(own: NDArray[np.float64], limit: float) -> float | None:
    """The threshold of a class from its own beats' probabilities (num_beats,); None where they are too few."""
    num_missed = _allowed(own.size, limit)
    return float(np.sort(own)[num_missed]) if num_missed >= 0 else None


def _allowed(num_beats: int, limit: float) -> int:
    """The most misses with (misses + 1) / (num_beats + 1) at most the limit; −1 where even none is too many."""
    bounds = np.arange(1, num_beats + 1) / (num_beats + 1)
    return int(np.searchsorted(bounds, limit, side="right")) - 1


def _checked(probabilities: ArrayLike, target: ArrayLike) -> tuple[NDArray[np.float64], NDArray]:
    probability_BC, target_B = np.asarray(probabilities, np.float64), np.asarray(target)
    if probability_BC.ndim != 2 or target_B.shape != probability_BC.shape[:1]:
        raise ValueError(
            f"expected (num_beats, num_classes) probabilities and (num_beats,) targets, got shapes "
            f"{probability_BC.shape}, {target_B.shape}"
        )
    if not probability_BC.size:
        raise ValueError(f"no beats to set or try thresholds on: probabilities have shape {probability_BC.shape}")
    if not np.isfinite(probability_BC).all():
        raise ValueError("a probability is not finite")
    low, high, num_classes = target_B.min(), target_B.max(), probability_BC.shape[1]
    if not (low >= 0 and high < num_classes):
        raise ValueError(f"target has classes {low} to {high}, expected 0 to {num_classes - 1}")
    return probability_BC, target_B


def _check_floor(floor: float) -> None:
    if not 0 < floor <= 1:
        raise ValueError(f"recall floor {floor}: above 0 and at most 1 is needed")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))

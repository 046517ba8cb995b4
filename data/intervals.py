"""RR intervals of a record, and the log ratios of them that a classifier may use beside a beat's signal.

Ratios and not seconds: they say how early a beat came for this patient, whatever the patient's heart rate. The mean of
the last ten intervals and the mean of the record follow Mondéjar-Guerra et al. 2019, Biomed. Signal Process. Control
47:41–48, and de Chazal, O'Dwyer and Reilly 2004, IEEE TBME 51(7):1196–1206.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LAST = 10
MAX_LOG_RATIO = 2.0
"""Ratios beyond e² are stretches without annotations, not rhythm."""


class Ratio(NamedTuple):
    name: str
    looks_ahead: str
    """What of the future it needs; empty for none. A monitor that answers at once has none of it."""


RATIOS = (
    Ratio("log_before_over_last", ""),
    Ratio("log_after_over_last", "the next beat"),
    Ratio("log_before_over_after", "the next beat"),
    Ratio("log_previous_over_last", ""),
    Ratio("log_before_over_record", "the whole record"),
    Ratio("log_after_over_record", "the whole record"),
)
"""Columns of `Beats.intervals`. `last`: mean of the up to ten intervals that end at the beat; `previous`: the interval
before the one before."""


def rr_before_after(start: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """RR interval before and after each beat of a record, in the units of `start` (num_beats,), ascending.

    The first beat has none before it and the last none after it: the neighbouring interval stands in.

    Raises:
        ValueError: a single beat, which has no RR interval.
    """
    if len(start) == 1:
        raise ValueError("RR intervals need two beats")
    gaps = np.diff(start).astype(np.float64)
    return np.r_[gaps[:1], gaps], np.r_[gaps, gaps[-1:]]


def log_ratios(before: NDArray[np.floating], after: NDArray[np.floating]) -> NDArray[np.float32]:
    """The ratios of `RATIOS` for the beats of one record, in order.

    Args:
        before, after: (num_beats,) RR intervals in any one unit; 0 where two annotations share a sample.

    Returns:
        float32 (num_beats, 6), within ±2.
    """
    if len(before) == 0:
        return np.zeros((0, len(RATIOS)), np.float32)
    shortest = 1e-3 * before.mean()
    before, after = np.maximum(before, shortest), np.maximum(after, shortest)
    total = np.r_[0.0, before.cumsum()]
    end = np.arange(1, len(before) + 1)
    first = np.maximum(end - LAST, 0)
    last = (total[end] - total[first]) / (end - first)
    previous = np.r_[before[:1], before[:-1]]
    record = before.mean()
    ratios = np.stack(
        [before / last, after / last, before / after, previous / last, before / record, after / record], axis=1
    )
    return np.log(ratios).clip(-MAX_LOG_RATIO, MAX_LOG_RATIO).astype(np.float32)

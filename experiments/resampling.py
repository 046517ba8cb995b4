"""Bootstrap of whatever is measured on scored beats: of whole patients where they are known, else of single beats.

Beats of a patient resemble each other, so intervals from single beats are optimistic. Whole patients drawn with
replacement keep what they share (Field and Welsh, Bootstrapping Clustered Data, Journal of the Royal Statistical
Society B 69:369–390, 2007). Of few patients the intervals are still narrow: where patients differ as much as their
beats do, intervals of 95 % hold a mean in 94 % of studies of 44 patients, 91 % of 22 and 88 % of 10 (simulated).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Measure = Callable[[Floats], Mapping[str, Floats]]
"""How often each beat was drawn, (num_resamples, num_beats) → values by name, each (num_resamples,)."""

WEIGHTS_AT_ONCE = 2**22
"""Of this many beats in all resamples that are measured together: 32 MB."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and the percentile interval of its resamples; NaN where it is not defined."""

    value: float
    low: float
    high: float


def estimate(
    measure: Measure,
    num_beats: int,
    group: ArrayLike | None = None,
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, Estimate]:
    """Measure the beats once as they are, then as often as resampled: the same resamples for every value.

    A resample in which a value is not defined (NaN), as recall of a class that was not drawn, does not count for it.

    Args:
        group: (num_beats,) patient of each beat; None to draw single beats.

    Raises:
        ValueError: no beats, or not as many groups.
    """
    cluster = np.arange(num_beats) if group is None else np.unique(np.asarray(group), return_inverse=True)[1]
    if not num_beats or cluster.shape != (num_beats,):
        raise ValueError(f"nothing to resample: {num_beats} beats and groups of shape {cluster.shape}")
    values = {name: float(value[0]) for name, value in measure(np.ones((1, num_beats))).items()}
    parts = [measure(weights) for weights in _resamples(cluster, num_resamples, np.random.default_rng(seed))]
    bounds = [(1 - level) / 2, (1 + level) / 2]
    return {
        name: _estimate(value, np.concatenate([part[name] for part in parts]), bounds) for name, value in values.items()
    }


def _estimate(value: float, resampled: Floats, bounds: list[float]) -> Estimate:
    defined = resampled[~np.isnan(resampled)]
    low, high = np.quantile(defined, bounds) if defined.size and not np.isnan(value) else (np.nan, np.nan)
    return Estimate(value=value, low=float(low), high=float(high))


def _resamples(cluster: NDArray[np.int64], num_resamples: int, random: np.random.Generator) -> Iterator[Floats]:
    """How often each beat is drawn when as many clusters are drawn as there are, some resamples at a time."""
    num_clusters = int(cluster.max()) + 1
    at_once = max(1, WEIGHTS_AT_ONCE // len(cluster))
    for first in range(0, num_resamples, at_once):
        num = min(at_once, num_resamples - first)
        cells = random.integers(num_clusters, size=(num, num_clusters)) + num_clusters * np.arange(num)[:, None]
        counts = np.bincount(cells.ravel(), minlength=num * num_clusters).reshape(num, num_clusters)
        yield counts[:, cluster].astype(np.float64)

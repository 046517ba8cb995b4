"""Which trials go on, by name: Ray Tune's schedulers, told of epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune import schedulers
from ray.tune.schedulers import TrialScheduler

from experiments.space import Space

MATURITY = "maturity"
"""What trials are judged by: their epochs, but none until one has passed since their schedule's last thaw."""
FREE = ("lr", "weight_decay")
"""What population-based training changes in the middle of a run: nothing else of a recipe can be."""


@dataclass(frozen=True, kw_only=True)
class Race:
    """What a scheduler has to know of a search."""

    num_epochs: int
    grace_epochs: int
    """No trial is judged before this epoch, whatever its schedule."""
    space: Space


def fifo(_race: Race) -> TrialScheduler:
    """Every trial runs to its end."""
    return schedulers.FIFOScheduler()


def asha(race: Race) -> TrialScheduler:
    """Of the trials that have come as far, the better third goes on (Li et al. 2018, arXiv 1810.05934)."""
    return schedulers.ASHAScheduler(
        time_attr=MATURITY, max_t=race.num_epochs, grace_period=race.grace_epochs, reduction_factor=3
    )


def hyperband(race: Race) -> TrialScheduler:
    """Brackets of trials that wait for each other, and are halved (Li et al. 2016, arXiv 1603.06560)."""
    return schedulers.HyperBandScheduler(time_attr=MATURITY, max_t=race.num_epochs, reduction_factor=3)


def median(race: Race) -> TrialScheduler:
    """Who is worse than the median of the others so far ends (Golovin et al. 2017, Google Vizier)."""
    return schedulers.MedianStoppingRule(time_attr=MATURITY, grace_period=race.grace_epochs, min_samples_required=3)


def pbt(race: Race) -> TrialScheduler:
    """Population-based training (Jaderberg et al. 2017, arXiv 1711.09846): the worst quarter goes on from the weights
    of the best quarter, at rates that are changed a little; a population is all trials of an arm.

    Raises:
        ValueError: the space searches neither of `FREE`.
    """
    free = [one for one in race.space.dimensions if one.name in FREE and one.is_continuous and not one.when]
    ranges = {one.name: (tune.loguniform if one.scale == "log" else tune.uniform)(one.low, one.high) for one in free}

    def within(config: dict[str, Any]) -> dict[str, Any]:
        return config | {one.name: min(max(config[one.name], one.low), one.high) for one in free}

    if not free:
        raise ValueError(f"--scheduler pbt: space {race.space.name} has no range of {' or '.join(FREE)} to change")
    interval = max(1, race.num_epochs // 4)
    return schedulers.PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=interval,
        hyperparam_mutations=dict(ranges),
        custom_explore_fn=within,
    )


SCHEDULERS: Mapping[str, Callable[[Race], TrialScheduler]] = {
    "asha": asha,
    "fifo": fifo,
    "median": median,
    "hyperband": hyperband,
    "pbt": pbt,
}
NEED_STATES = ("hyperband", "pbt")
"""Pause trials, or give one's weights to another: through files that every node has to see."""
SPENDS = {"asha": 0.8, "fifo": 1.0, "median": 0.8, "hyperband": 0.7, "pbt": 1.0}
"""Share of a search's full cost that is spent."""

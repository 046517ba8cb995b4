"""From a time budget to trials, epochs and seeds: pure arithmetic on a measured speed."""

import math
import re
from dataclasses import dataclass, replace

from finetune.recipe import Recipe

SEARCH_SHARE = 0.4
"""Share of the budget for the search; the rest is for the paired seeds."""
VALIDATION_COST = 0.35
"""A forward pass over a validation beat, in training beats."""
FROZEN_COST = 0.15
"""A run that never trains its encoder, whose activations are computed once, in runs that do."""
PLUS_SHARE = 0.35
"""Of a comparison's time, for `scratch+`."""
RESERVE = 0.1
"""Share of the time for starting, for a worker that idles while the last run ends, and for writing."""
STAGE_S = 8.0
"""Seconds in which each stage (a search for each arm, then the comparison) starts its workers and winds down."""
TRIALS = {48: 15_000, 32: 15_000, 24: 15_000, 16: 15_000, 12: 15_000, 8: 4_000, 4: 1_000, 2: 0}
"""Trials an arm → training beats that each must have at least: below that, fewer trials beat smaller ones."""
SEARCH_EPOCHS = 6
SMALLEST_TRAIN = 500
MIN_SEEDS, MAX_SEEDS = 3, 8
ENOUGH_EPOCHS, MAX_EPOCHS = 5, 20
BATCHES = 4
"""An epoch of few beats has at least this many batches."""
MOST_VALIDATIONS = 20
"""In a run whose epochs were raised for the sake of its steps."""
SMALLEST_VALIDATION, VALIDATION_RATIO = 2_000, 2
"""Of a comparison: as many validation beats at most, or this times the training beats."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a command's time goes into."""

    num_train: int
    num_validation: int
    beats_per_s: float
    """Training beats a second of one worker, measured with all workers busy."""
    num_workers: int


@dataclass(frozen=True, kw_only=True)
class Search:
    """The same for every arm."""

    num_trials: int
    num_epochs: int
    num_beats: int

    @property
    def grace_epochs(self) -> int:
        """No trial is judged before this epoch."""
        return max(1, round(self.num_epochs * 2 / 3))

    def __str__(self) -> str:
        return f"{self.num_trials} trials an arm, each at most {self.num_epochs} epochs of {self.num_beats:,} beats"


@dataclass(frozen=True, kw_only=True)
class Finals:
    """The same for every arm."""

    num_seeds: int
    num_epochs: int
    num_beats: int
    plus_seeds: int = 0
    """Of `scratch+`, the first ones of the others' seeds."""
    plus_epochs: int = 0

    def __str__(self) -> str:
        words = f"{self.num_seeds} paired seeds of every arm, {self.num_epochs} epochs of {self.num_beats:,} beats"
        if not self.plus_seeds:
            return f"{words}; no scratch+"
        return f"{words}; scratch+ on {self.plus_seeds} of the seeds, {self.plus_epochs} epochs"


def parse_duration(text: str) -> float:
    """90s, 10m, 2h → seconds.

    Raises:
        ValueError: anything else, or nothing.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip())
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not seconds:
        raise ValueError(f"--budget {text}: a number and s, m or h are needed, such as 10m")
    return seconds


def working_s(left_s: float, num_stages: int) -> float:
    """Seconds for training in what is left; never less than a quarter of it."""
    return max(left_s - num_stages * STAGE_S, left_s / 4)


def after_search_s(budget_s: float, num_arms: int) -> float:
    """Seconds that the search is expected to leave."""
    return budget_s - working_s(budget_s, num_arms + 1) * SEARCH_SHARE - num_arms * STAGE_S


def plan_search(
    budget_s: float, work: Work, num_arms: int, num_trials: int | None = None, spends: float = 1.0
) -> Search:
    """As many trials as fit, each on as many beats as fit; with little time fewer beats, then fewer trials.

    Args:
        num_trials: of each arm, where the user has said it.
        spends: share of the trials' full cost that the scheduler lets them spend.
    """
    seconds = working_s(budget_s, num_arms + 1) * SEARCH_SHARE
    beats = seconds * work.beats_per_s * work.num_workers / (num_arms * spends)
    if num_trials:
        return _search(beats, work, num_trials)
    plans = [(_search(beats, work, number), least) for number, least in TRIALS.items()]
    return next(plan for plan, least in plans if plan.num_beats >= min(least, work.num_train))


def _search(beats: float, work: Work, num_trials: int) -> Search:
    epoch = int(beats / num_trials / SEARCH_EPOCHS - work.num_validation * VALIDATION_COST)
    num_beats = min(work.num_train, max(epoch, SMALLEST_TRAIN))
    return Search(num_trials=num_trials, num_epochs=SEARCH_EPOCHS, num_beats=num_beats)


def plan_finals(
    left_s: float,
    work: Work,
    num_arms: int,
    num_seeds: int | None = None,
    num_epochs: int | None = None,
    extra_epochs: float = 0.0,
    plus_seeds: int | None = None,
) -> Finals:
    """The trained arms and one frozen control on all beats: first epochs, then seeds; with little time fewer beats.

    `scratch+` has as many epochs and those that pretraining's compute would have bought. It gets a share of the time
    where that is enough for the fewest seeds of it.

    Args:
        left_s: seconds until the budget ends.
        num_seeds, num_epochs, plus_seeds: where the user has said it.
        extra_epochs: pretraining's multiply-adds in epochs of training from scratch; 0 for none.
    """
    beats = working_s(left_s, 1) * (1 - RESERVE) * work.beats_per_s * work.num_workers
    epoch = work.num_train + work.num_validation * VALIDATION_COST
    shared = _plan_paired(beats * (1 - PLUS_SHARE), epoch, work, num_arms, num_seeds, num_epochs)
    plus_epochs = shared.num_epochs + round(extra_epochs)
    affordable = int(beats * PLUS_SHARE / (plus_epochs * epoch))
    seeds = plus_seeds if plus_seeds is not None else affordable if affordable >= MIN_SEEDS else 0
    if not (seeds and extra_epochs and shared.num_beats == work.num_train):
        return _plan_paired(beats, epoch, work, num_arms, num_seeds, num_epochs)
    return replace(shared, plus_seeds=min(seeds, shared.num_seeds), plus_epochs=plus_epochs)


def _plan_paired(
    beats: float, epoch: float, work: Work, num_arms: int, num_seeds: int | None, num_epochs: int | None
) -> Finals:
    """Of `beats`, training beats for all arms and seeds together; `epoch` is what one of all beats costs."""
    beats /= num_arms + FROZEN_COST
    seeds = num_seeds or min(MAX_SEEDS, max(MIN_SEEDS, int(beats / epoch / (num_epochs or ENOUGH_EPOCHS))))
    affordable = max(0, min(MAX_EPOCHS, int(beats / epoch / seeds)))
    if num_epochs or affordable:
        return Finals(num_seeds=seeds, num_epochs=num_epochs or affordable, num_beats=work.num_train)
    num_beats = max(SMALLEST_TRAIN, int(beats / seeds - work.num_validation * VALIDATION_COST))
    return Finals(num_seeds=seeds, num_epochs=1, num_beats=min(num_beats, work.num_train))


def with_enough_steps(recipe: Recipe, num_train: int, num_steps: int) -> Recipe:
    """The recipe for few beats: smaller batches, epochs raised to make `num_steps` steps, validation now and then.

    A balance that adds beats adds steps too.
    """
    batch_size = min(recipe.batch_size, max(2, num_train // BATCHES))
    epochs = max(recipe.epochs, math.ceil(num_steps / max(1, round(num_train / batch_size))))
    every = recipe.validate_every if epochs == recipe.epochs else math.ceil(epochs / MOST_VALIDATIONS)
    return replace(recipe, batch_size=batch_size, epochs=epochs, validate_every=every)


def validation_size(num_train: int, num_validation: int) -> int:
    """Validation beats of a comparison: who has few labels to train on has not many to validate on, nor the time."""
    return min(num_validation, max(SMALLEST_VALIDATION, VALIDATION_RATIO * num_train))

"""Where a search looks next, by name: a grid, at random, or Optuna's TPE; Ray Tune asks, one trial at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from ray.tune.search import SearchAlgorithm, Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator

from experiments.space import Given, Scalar, Space
from finetune.distributions import distributions
from finetune.searchspace import GRID_POINTS

Config = dict[str, Scalar]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A configuration whose outcome is known, from this search or an earlier one."""

    config: Mapping[str, Scalar | None]
    values: tuple[float, ...]
    """Of each objective; higher is better."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a search is asked."""

    space: Space
    facts: Given
    num_objectives: int
    seed: int
    tried: Sequence[Tried]
    """What counts as done, and is not repeated."""
    prior: Sequence[Tried]
    """What earlier searches found: it guides this one and counts for nothing."""


class Asker(Searcher):
    """Optuna behind Ray Tune's interface: conditions, several objectives and known results come with it."""

    def __init__(self, question: Question, sampler: BaseSampler) -> None:
        super().__init__(metric="objective", mode="max")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.question, self.open = question, {}
        directions = [optuna.study.StudyDirection.MAXIMIZE] * question.num_objectives
        self.study = optuna.create_study(directions=directions, sampler=sampler)
        for known in (*question.prior, *question.tried):
            if question.space.accepts(known.config, question.facts):
                self.study.add_trial(self._as_trial(known))
        if not (question.prior or question.tried):
            self.study.enqueue_trial(question.space.first(question.facts))

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles a searcher along with its experiment; this one is only ever made anew."""
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:  # noqa: ARG002
        return True

    def suggest(self, trial_id: str) -> Config | None:
        self.open[trial_id] = trial = self.study.ask()
        return self.question.space.draw(trial, self.question.facts)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self.open.pop(trial_id)
        if error or not result or result.get("failed"):
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(trial, result["objectives"])

    def _as_trial(self, known: Tried) -> optuna.trial.FrozenTrial:
        space, facts = self.question.space, self.question.facts
        params = space.params(known.config, facts)
        return optuna.trial.create_trial(
            params=params, distributions=distributions(space, params, facts), values=list(known.values)
        )


class Grid(Searcher):
    """Every combination of the choices and of three values of each range, in a random order, none twice."""

    def __init__(self, question: Question) -> None:
        super().__init__(metric="objective", mode="max")
        done = {_name(question.space.params(known.config, question.facts)) for known in question.tried}
        configs = question.space.grid(GRID_POINTS, question.facts)
        order = np.random.default_rng(question.seed).permutation(len(configs))
        self.left = [configs[place] for place in order if _name(configs[place]) not in done]

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:  # noqa: ARG002
        return True

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002
        return self.left.pop(0) if self.left else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass


def _name(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


def population(searcher: Searcher, number: int) -> SearchAlgorithm:
    """As many configurations as the searcher proposes before it hears of any outcome."""
    suggested = [searcher.suggest(str(place)) for place in range(number)]
    configs = [config for config in suggested if isinstance(config, dict)]
    return BasicVariantGenerator(points_to_evaluate=configs)


def grid(question: Question) -> Searcher:
    return Grid(question)


def random(question: Question) -> Searcher:
    return Asker(question, RandomSampler(seed=question.seed))


def tpe(question: Question) -> Searcher:
    """Tree-structured Parzen estimator (Bergstra et al. 2011, NIPS), each dimension by itself; trials that are still
    running count as bad ones, so that two workers look at different places."""
    return Asker(question, TPESampler(seed=question.seed, n_startup_trials=5, constant_liar=True))


SEARCHERS: Mapping[str, Callable[[Question], Searcher]] = {"tpe": tpe, "random": random, "grid": grid}

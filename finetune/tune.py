"""The search: Ray Tune over recipes, for each arm at equal budgets.

Every finished trial is one line in the results store under the study's name. A search that was interrupted reads its
lines back and does only what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import ray
import torch
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from data.split import Split, subset
from experiments import loop, results, tables
from experiments.cluster import first_line
from experiments.machine import Machine, resolve_threads
from experiments.metrics import macro_recall
from experiments.results import RunResult
from experiments.tracking import Run
from finetune.plan import SEARCH_EPOCHS, Search
from finetune.recipe import Recipe, recipe_of
from finetune.train import Arm, Context, Epoch, train

SPACE: Mapping[str, Any] = {
    "lr": tune.loguniform(5e-4, 1e-2),
    "head": tune.choice(["linear", "mlp", "attention"]),
    "balance": tune.choice(["none", "class_weight", "smote"]),
}
"""What every arm searches."""
TRANSFER_SPACE: Mapping[str, Any] = {
    "schedule": tune.choice(["frozen", "full", "gradual", "lp_ft"]),
    "ratio": tune.loguniform(0.01, 1.0),
}
"""What only an arm with pretrained weights searches besides: random weights are worth neither keeping nor sparing."""
FIRST_TRIAL: Mapping[str, Any] = {"lr": 3e-3, "head": "linear", "balance": "class_weight"}
FIRST_TRANSFER_TRIAL: Mapping[str, Any] = {"schedule": "full", "ratio": 0.3}
SPEED_BEATS = 4096
SHORTEST_SEARCH_S = 20.0
"""An arm gets at least this, or its workers would hardly have started."""
THAWED_EPOCHS = SEARCH_EPOCHS // 2
"""No trial is judged before this epoch: until then a gradual schedule may not have thawed every stage."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a tune is about, where it is recorded, and on how many workers it runs."""

    name: str
    """Unique; the `study` of each of its results."""
    arms: tuple[Arm, ...]
    split: Split
    base: Context
    seed: int
    num_workers: int
    machine: Machine
    folder: Path
    store: Path
    tracked: Run
    interrupted: Callable[[], bool]

    def stop_if_interrupted(self) -> None:
        """Ctrl-C is acted on at safe points only: inside Ray's own calls the exception can be lost.

        Raises:
            KeyboardInterrupt: it was pressed.
        """
        if self.interrupted():
            raise KeyboardInterrupt

    def context(self, stage: str) -> Context:
        """Of the results of one stage, search or final."""
        return replace(self.base, labels={"study": self.name, "stage": stage})

    def finished(self, stage: str) -> list[RunResult]:
        """What the store already holds."""
        wanted = {"study": self.name, "stage": stage}
        return [result for result in results.read(self.store) if wanted.items() <= result.config.items()]

    def record(self, result: RunResult) -> None:
        results.append(self.store, result)
        name = f"{result.config['stage']} {result.arm} {result.part} seed {result.seed}"
        with self.tracked.child(name, result.config, {"arm": result.arm, "badge": result.badge}) as run:
            run.log(result.metrics | result.cost)


def measure_speed(study: Study) -> float:
    """Training beats a second of one worker while all of them are busy, the whole encoder learning."""
    train_part = subset(study.split.train, min(SPEED_BEATS, len(study.split.train)), study.seed)
    split = replace(study.split.without_test(), train=train_part, validation=train_part.select(torch.arange(32)))
    shared = ray.put((study.arms[-1], split, study.context("speed"), study.machine))
    try:
        return min(ray.get([_speed.remote(shared) for _ in range(study.num_workers)]))
    except RayError as error:
        raise ValueError(f"a worker failed: {first_line(error)}") from error


@ray.remote(num_cpus=1)
def _speed(shared: tuple[Arm, Split, Context, Machine]) -> float:
    arm, split, context, machine = shared
    resolve_threads(machine.threads)
    for epochs in (1, 2):  # the first call warms up
        cost = train(arm, split, Recipe(epochs=epochs), 0, context, machine).validation.cost
    return cost["beats"] / cost["seconds"]


def search(study: Study, plan: Search, seconds: float) -> dict[str, Recipe]:
    """The best recipe of each arm by validation macro recall, after `plan.num_trials` trials each.

    Args:
        seconds: for all arms; an arm that has had its share stops with the trials that it has finished.

    Raises:
        ValueError: every trial of an arm failed.
    """
    return {
        arm.name: _search_arm(study, plan, arm, max(seconds / len(study.arms), SHORTEST_SEARCH_S)) for arm in study.arms
    }


def _search_arm(study: Study, plan: Search, arm: Arm, time_budget_s: float) -> Recipe:
    done = [result for result in study.finished("search") if result.arm == arm.name]
    missing = plan.num_trials - len(done)
    if missing > 0:
        part = subset(study.split.train, plan.num_beats, study.seed)
        split = replace(study.split.without_test(), train=part)
        context = study.context("search")
        recorder = Recorder(study, arm, plan, len(done))
        tuner = tune.Tuner(
            tune.with_parameters(
                _trial, arm=arm, split=split, plan=plan, seed=study.seed, context=context, machine=study.machine
            ),
            param_space=dict(_space(arm)),
            tune_config=tune.TuneConfig(
                metric="macro_recall",
                mode="max",
                search_alg=_optuna(study, arm, done),
                scheduler=ASHAScheduler(max_t=plan.num_epochs, grace_period=THAWED_EPOCHS, reduction_factor=3),
                time_budget_s=time_budget_s,
                num_samples=missing,
                max_concurrent_trials=study.num_workers,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=arm.name, storage_path=str(study.folder / "ray"), verbose=0, callbacks=[recorder]
            ),
        )
        tuner.fit()
        done = [result for result in study.finished("search") if result.arm == arm.name]
    if not done:
        raise ValueError(f"no trial of the arm {arm.name} has finished: they failed, or the time was too short")
    return recipe_of(max(done, key=lambda result: result.metrics["macro_recall"]))


def _space(arm: Arm) -> Mapping[str, Any]:
    return SPACE if arm.checkpoint is None else {**SPACE, **TRANSFER_SPACE}


def _optuna(study: Study, arm: Arm, done: Sequence[RunResult]) -> OptunaSearch:
    """TPE that starts from the trials already done, or else from a sensible first one.

    The seed depends on how many are done: a resumed search does not draw the same points again.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    names = _space(arm)
    first = FIRST_TRIAL if arm.checkpoint is None else {**FIRST_TRIAL, **FIRST_TRANSFER_TRIAL}
    points = [{name: result.config[name] for name in names} for result in done] or [dict(first)]
    rewards = [result.metrics["macro_recall"] for result in done] or None
    seed = loop.mix(study.seed, f"search {arm.name}", len(done)) % 2**32
    return OptunaSearch(points_to_evaluate=points, evaluated_rewards=rewards, seed=seed)


def _trial(
    config: dict[str, Any], arm: Arm, split: Split, plan: Search, seed: int, context: Context, machine: Machine
) -> None:
    """One trial, in a worker: after every epoch reports the one that would be kept."""
    resolve_threads(machine.threads)

    def report(epoch: Epoch) -> None:
        tune.report(
            {
                "macro_recall": float(macro_recall(epoch.kept_confusion)),
                "confusion": epoch.kept_confusion.tolist(),
                "beats": epoch.beats,
            }
        )

    train(arm, split, Recipe(**config, epochs=plan.num_epochs), seed, context, machine, on_epoch=report)


class Recorder(tune.Callback):
    """Writes each finished trial to the store, from the driver alone."""

    def __init__(self, study: Study, arm: Arm, plan: Search, num_done: int) -> None:
        self.study, self.arm, self.plan, self.num_done = study, arm, plan, num_done
        self.best = max((r.metrics["macro_recall"] for r in study.finished("search") if r.arm == arm.name), default=0.0)

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks along with an experiment; this one is only ever made anew."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        del iteration, trials, info
        self.study.stop_if_interrupted()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        del iteration, trials, info
        last = trial.last_result
        recipe = Recipe(**trial.config, epochs=self.plan.num_epochs)
        cost = {"beats": last["beats"], "seconds": last["time_total_s"], "epochs": last["training_iteration"]}
        context, confusion = self.study.context("search"), np.array(last["confusion"])
        result = context.result(self.arm, recipe, self.study.seed, "validation", confusion, cost)
        self.study.record(result)
        self.num_done += 1
        recall = result.metrics["macro_recall"]
        self.best = max(self.best, recall)
        tables.say(
            f"search {self.arm.name} {self.num_done}/{self.plan.num_trials} · macro recall {recall:.3f} "
            f"(best {self.best:.3f}) · {recipe} · epoch {cost['epochs']} of {recipe.epochs} · "
            f"{tables.duration(cost['seconds'])}"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        del iteration, trials, info
        tables.say(f"search {self.arm.name}: a trial failed and is left out · {trial.config} · see {trial.local_path}")

"""The search: Ray Tune over recipes, for each arm at equal budgets.

Every finished trial is one line in the results store under the study's name. A search that was interrupted reads its
lines back and does only what is missing.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import tune
from ray.exceptions import RayError
from ray.tune.search import SearchAlgorithm, Searcher

from data.split import Split, subset
from experiments import loop, tables
from experiments.cluster import first_line
from experiments.machine import Machine, limit_memory, resolve_threads
from experiments.metrics import objective
from experiments.results import RunResult
from finetune.plan import Search
from finetune.recipe import Recipe, recipe_of
from finetune.schedulers import FREE, MATURITY, NEED_STATES, SCHEDULERS, Race
from finetune.schedules import Timeline
from finetune.searchers import SEARCHERS, Question, Tried, population
from finetune.shelves import SharedShelf
from finetune.studies import Study
from finetune.train import Arm, Context, train
from finetune.trainee import Epoch

SPEED_BEATS = 4096
SHORTEST_SEARCH_S = 20.0
"""An arm gets at least this, or its workers would hardly have started."""
RESTARTS = 2
"""Of a trial whose worker or node was lost."""


def measure_speed(study: Study) -> float:
    """Training beats a second of one worker while all of them are busy, the whole encoder learning."""
    train_part = subset(study.split.train, min(SPEED_BEATS, len(study.split.train)), study.seed)
    split = replace(study.split.without_test(), train=train_part, validation=train_part.select(torch.arange(32)))
    recipe = replace(study.base_recipe.untrained(), balance=Recipe().balance)
    shared = ray.put((study.arms[-1], split, recipe, study.context("speed"), study.machine))
    try:
        task = _speed.options(num_gpus=study.resources.get("gpu", 0.0))
        return min(ray.get([task.remote(shared) for _ in range(study.num_workers)]))
    except RayError as error:
        raise ValueError(f"a worker failed: {first_line(error)}") from error


@ray.remote(num_cpus=1)
def _speed(shared: tuple[Arm, Split, Recipe, Context, Machine]) -> float:
    arm, split, recipe, context, machine = shared
    resolve_threads(machine.threads)
    for epochs in (1, 2):  # the first call warms up
        cost = train(arm, split, replace(recipe, epochs=epochs), 0, context, machine).validation.cost
    return cost["beats"] / cost["seconds"]


def search(study: Study, plan: Search, seconds: float) -> dict[str, Recipe]:
    """The best recipe of each arm on validation data, after `plan.num_trials` trials each.

    Args:
        seconds: for all arms; an arm that has had its share stops with the trials that it has finished.

    Raises:
        ValueError: every trial of an arm failed.
    """
    for arm in study.arms:
        _search_arm(study, plan, arm, max(seconds / len(study.arms), SHORTEST_SEARCH_S))
    return {arm.name: recipe_of(study.best(study.compared(arm))) for arm in study.arms}


def _search_arm(study: Study, plan: Search, arm: Arm, time_budget_s: float) -> None:
    missing = plan.num_trials - len(study.searched(arm)) - len(study.failures(arm))
    if missing > 0:
        _run_trials(study, plan, arm, missing, time_budget_s)
    if not study.searched(arm):
        why = next((f": {failure['why']}" for failure in study.failures(arm)), ", or the time was too short")
        raise ValueError(f"no trial of the arm {arm.name} has finished: they failed{why}")


def _run_trials(study: Study, plan: Search, arm: Arm, missing: int, time_budget_s: float) -> None:
    part = subset(study.split.train, plan.num_beats, study.seed)
    split = replace(study.split.without_test(), train=part)
    shelf = SharedShelf.start()
    trial = tune.with_parameters(
        _trial,
        arm=arm,
        split=split,
        base=replace(_base(study, arm), epochs=plan.num_epochs),
        seed=study.seed,
        context=study.context("search"),
        machine=study.machine,
        objectives=study.objectives,
        shelf=shelf,
        keeps_states=study.shares_disk,
        num_bytes=study.trial_bytes,
    )
    at_once = 0 if study.scheduler in NEED_STATES else study.num_workers
    recorder = Recorder(study, arm, plan)
    race = Race(num_epochs=plan.num_epochs, grace_epochs=plan.grace_epochs, space=study.space)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the recorder says which trials fail
    shutil.rmtree(_states(study, arm), ignore_errors=True)  # of a search that was killed
    tuner = tune.Tuner(
        tune.with_resources(trial, dict(study.resources)),
        param_space=dict.fromkeys(dimension.name for dimension in study.space.dimensions),
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="max",
            search_alg=_searcher(study, arm, missing),
            scheduler=SCHEDULERS[study.scheduler](race),
            time_budget_s=time_budget_s,
            num_samples=missing,
            max_concurrent_trials=at_once,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=arm.name,
            storage_path=str(_states(study, arm).parent),
            verbose=0,
            callbacks=[recorder],
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1 if study.scheduler not in NEED_STATES else None),
        ),
    )
    try:
        tuner.fit()
        if study.scheduler in NEED_STATES:
            recorder.record_unfinished()
    finally:
        shutil.rmtree(_states(study, arm), ignore_errors=True)


def _states(study: Study, arm: Arm) -> Path:
    """Folder of what trials go on from after their worker was lost; of no use to another process."""
    return study.folder / "ray" / arm.name


def _searcher(study: Study, arm: Arm, missing: int) -> Searcher | SearchAlgorithm:
    """Population-based training has to be given its whole population before it starts."""
    searcher = SEARCHERS[study.searcher](_question(study, arm))
    return population(searcher, missing) if study.scheduler == "pbt" else searcher


def _question(study: Study, arm: Arm) -> Question:
    """The seed depends on how many are done: a resumed search does not draw the same points again. What has failed is
    known as the worst that there is."""
    done, failed = study.searched(arm), study.failures(arm)
    worst = (0.0,) * len(study.objectives)
    return Question(
        space=study.space,
        facts=arm.facts,
        num_objectives=len(study.objectives),
        seed=loop.mix(study.seed, f"search {arm.name}", len(done) + len(failed)) % 2**32,
        tried=[
            *(_tried(study, result) for result in done),
            *(Tried(config=failure["config"], values=worst) for failure in failed),
        ],
        prior=[_tried(study, result) for result in study.prior if result.arm == arm.name],
    )


def _tried(study: Study, result: RunResult) -> Tried:
    return Tried(config=result.config, values=study.values(np.array(result.confusion)))


def _trial(
    config: dict[str, Any],
    arm: Arm,
    split: Split,
    base: Recipe,
    seed: int,
    context: Context,
    machine: Machine,
    objectives: tuple[str, ...],
    shelf: SharedShelf,
    keeps_states: bool,
    num_bytes: int,
) -> None:
    """One trial, in a worker: after every epoch reports the one that would be kept. What fails, fails alone."""
    resolve_threads(machine.threads)
    limit_memory(num_bytes, machine.device)
    measures = [objective(name, context.classes) for name in objectives]
    recipe = replace(base, **_drawn(config))
    settled = Timeline(recipe, arm.stages).settled
    last: dict[str, Any] = {}

    def note(epoch: Epoch) -> None:
        values = [float(measure(epoch.kept_confusion)) for measure in measures]
        done = epoch.number + 1
        has_settled = not settled or done >= settled * recipe.epochs + 1
        last.update(objective=values[0], objectives=values, confusion=epoch.kept_confusion.tolist(), beats=epoch.beats)
        last.update({MATURITY: done if has_settled else 0})
        if not keeps_states:
            tune.report(dict(last))

    def hand_over(state: Path) -> None:
        tune.report(dict(last), checkpoint=tune.Checkpoint.from_directory(state.parent))

    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "trial.state" if keeps_states else None
        before = tune.get_checkpoint() if keeps_states else None
        if before is not None:
            before.to_directory(folder)
        try:
            train(
                arm,
                split,
                recipe,
                seed,
                context,
                machine,
                state_file=state,
                resume=before is not None,
                on_epoch=note,
                saved=hand_over if keeps_states else None,
                shelf=shelf,
                free=FREE,
            )
        except (ValueError, MemoryError, RuntimeError) as error:
            if "CUDA" in str(error) and "out of memory" not in str(error):
                raise  # the whole process can no longer use the device
            why = " ".join(str(error).split()) or type(error).__name__
            tune.report({"objective": 0.0, MATURITY: recipe.epochs, "failed": why})
        except OSError as error:
            tune.report({"objective": 0.0, MATURITY: recipe.epochs, "failed": str(error), "errno": error.errno})


class Recorder(tune.Callback):
    """Writes each finished trial to the store, from the driver alone."""

    def __init__(self, study: Study, arm: Arm, plan: Search) -> None:
        self.study, self.arm, self.plan = study, arm, plan
        self.first_objective = study.objectives[0]
        self.num_before = study.num_started(arm)
        self.numbers: dict[str, int] = {}
        """Of each trial, in the order in which they have started, those of an earlier start of the study first."""
        self.trials: list[Any] = []
        self.ended: set[str] = set()
        self.error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks along with an experiment; this one is only ever made anew."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        del iteration, info
        self.trials = trials
        self.numbers.setdefault(trial.trial_id, self.num_before + len(self.numbers))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        del iteration, trials, info
        self.study.stop_if_interrupted()
        if self.error:
            raise self.error

    @contextmanager
    def _raised_at_step_end(self) -> Iterator[None]:
        """Ray would take an error of this process for one of the trial, and run it again."""
        try:
            yield
        except Exception as error:
            self.error = error

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        del iteration, trials, info
        with self._raised_at_step_end():
            self._record(trial)

    def record_unfinished(self) -> None:
        """Trials that advance together end together, when the time is over: what they had come to counts."""
        for trial in self.trials:
            if trial.trial_id not in self.ended and "confusion" in (trial.last_result or {}):
                self._record(trial)

    def _record(self, trial: Any) -> None:
        """
        Raises:
            OSError: the worker's, such as a full disk: no fault of the trial's.
        """
        self.ended.add(trial.trial_id)
        last = trial.last_result
        if "errno" in last:
            raise OSError(last["errno"], last["failed"])
        if "confusion" not in last:
            self._leave_out(trial, last.get("failed", "no epoch was finished"))
            return
        recipe = replace(_base(self.study, self.arm), **_drawn(trial.config), epochs=self.plan.num_epochs)
        cost = {"beats": last["beats"], "seconds": last["time_total_s"], "epochs": last["training_iteration"]}
        context = self.study.context("search", trial=trial.trial_id, number=self.numbers[trial.trial_id])
        confusion = np.array(last["confusion"])
        result = context.result(self.arm, recipe, self.study.seed, "validation", confusion, cost)
        self.study.record(result)
        done = self.study.searched(self.arm)
        values = [self.study.values(np.array(one.confusion))[0] for one in done]
        tables.say(
            f"search {self.arm.name} {len(done)}/{self.plan.num_trials} · {self.first_objective.replace('_', ' ')} "
            f"{values[-1]:.3f} (best {max(values):.3f}) · {recipe} · epoch {cost['epochs']} of {recipe.epochs} · "
            f"{tables.duration(cost['seconds'])}"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        del iteration, trials, info
        with self._raised_at_step_end():
            self._leave_out(trial, _reason(trial))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        del iteration, trials, info
        tables.say(f"search {self.arm.name}: a worker was lost, its trial goes on · {_in_words(_drawn(trial.config))}")

    def _leave_out(self, trial: Any, why: str) -> None:
        self.ended.add(trial.trial_id)
        self.study.fail(self.arm, self.numbers.get(trial.trial_id, 0), _drawn(trial.config), why)
        tables.say(
            f"search {self.arm.name}: a trial failed and is left out · {why} · {_in_words(_drawn(trial.config))}"
        )


def _drawn(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without the dimensions that are not active, which Ray Tune has as None."""
    return {name: value for name, value in config.items() if value is not None}


def _base(study: Study, arm: Arm) -> Recipe:
    """What is not searched; random weights have no part in what concerns pretrained ones."""
    return study.base_recipe if arm.checkpoint is not None else study.base_recipe.untrained()


def _reason(trial: Any) -> str:
    """Of a trial whose worker was lost again and again: the last line of what Ray knows, without its conjectures."""
    try:
        lines = Path(trial.error_file).read_text().strip().splitlines()
    except (OSError, TypeError):
        lines = []
    return lines[-1].strip().partition(". ")[0] if lines else "its worker was lost"


def _in_words(config: Mapping[str, Any]) -> str:
    shown = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in config.values())
    return ", ".join(f"{name} {value}" for name, value in zip(config, shown, strict=True))
